"""One file goes from one place to another: nothing is replaced, and at no instant is it nowhere.

Within a file system the file takes a name that nobody else uses (``Step.part``, beside the destination), is looked at
under it, and takes its final one. Between two, a copy is made under that name, and the original is removed once the
copy is on the disk and has its final name. A process may be killed at any instant of this; ``settle`` then finds out
how far it came, and brings it to an end. Which instants there are, and what comes of each:

    how      source    part      destination    then
    rename   there     –         –              not begun: nothing has moved
    rename   –         there     –              goes on to the destination; back if it is not the file that was meant
    any      any       same as the destination  the name of the part goes, and the rest as below
    rename   –         –         there          done
    copy     there     any       –              the part goes: nothing has moved
    copy     there     –         there          the source goes: done
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import itertools
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Literal, NamedTuple

__all__ = ["Identity", "Step", "file_facts", "reason_of", "relocate", "settle", "sync_folder", "without_names_in_use"]

_CHUNK = 1 << 20
_NAME_BYTES = 255


class Identity(NamedTuple):
    """What a file has as long as nobody writes to it or puts another in its place."""

    device: int
    inode: int
    size: int
    mtime_ns: int


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A file that goes from one place to another; written down before it does."""

    id: str
    """Unique, of letters and digits."""
    source: Path
    destination: Path
    """Nothing has this name."""
    how: Literal["rename", "copy"]
    sha256: str
    """What the file has to hold."""
    identity: Identity
    """Of the source, when it held that."""

    @property
    def part(self) -> Path:
        """Its name on the way: of this step alone, and hidden from who looks for pictures."""
        return self.destination.with_name(f".{self.id}.part")


def relocate(step: Step) -> OSError | None:
    """Moves the file. Gives None, or why it is still where it was."""
    try:
        _attempt(step)
    except OSError as error:
        return error if settle(step) else None
    except BaseException:  # Ctrl-C: the file is put somewhere definite before anything else happens
        settle(step)
        raise
    return None


def settle(step: Step) -> str | None:
    """Brings a step to an end that was interrupted anywhere. Gives None if the file is at its destination, or why it is
    not. Whatever else has taken one of the names meanwhile stays as it is."""
    if os.path.lexists(step.part):
        if os.path.lexists(step.destination) and os.path.samestat(step.part.lstat(), step.destination.lstat()):
            step.part.unlink()
        elif step.how == "rename" or (not os.path.lexists(step.source) and _holds(step.part, step.sha256)):
            _settle_part(step)
        else:
            step.part.unlink()  # a copy, perhaps half of one, and the original is there
    if step.how == "rename" and os.path.lexists(step.source) and identity_of(step.source) == step.identity:
        return "it was interrupted before it was moved"
    if not _holds(step.destination, step.sha256):
        is_there = os.path.lexists(step.source)
        return "it was interrupted before it was moved" if is_there else "it is neither there nor here any more"
    if step.how == "copy":
        try:
            _remove_original(step)
        except OSError as error:
            return reason_of(error)
    return None


def _attempt(step: Step) -> None:
    step.destination.parent.mkdir(parents=True, exist_ok=True)
    if step.how == "rename":
        os.rename(step.source, step.part)  # noqa: PTH104  # takes in one go whatever has that name now
        if identity_of(step.part) != step.identity:
            raise OSError(errno.EBUSY, _CHANGED)
        place(step.part, step.destination)
    else:
        if _copy(step.source, step.part) != (step.identity, step.sha256):
            raise OSError(errno.EBUSY, _CHANGED)
        place(step.part, step.destination)
        sync_folder(step.destination.parent)  # the copy will be found, whatever happens, when the original is gone
        _remove_original(step)
    sync_folder(step.destination.parent)
    with contextlib.suppress(FileNotFoundError):
        sync_folder(step.source.parent)


_CHANGED = "it has changed since it was looked at"


def reason_of(error: OSError) -> str:
    """In words, without the paths, which the reader knows."""
    return error.strerror or str(error)


def _settle_part(step: Step) -> None:
    """What was taken from its place is the only one of its kind: it goes on if it is what was meant, else back."""
    wanted: Iterator[Path] = without_names_in_use(step.source)
    if _holds(step.part, step.sha256):
        wanted = itertools.chain([step.destination], wanted)
    else:
        step.source.parent.mkdir(parents=True, exist_ok=True)
    for name in wanted:
        with contextlib.suppress(FileExistsError):
            place(step.part, name)
            break


def _remove_original(step: Step) -> None:
    """Of a copy that is whole. A file that was put in its place since, and holds something else, stays.

    Raises OSError if it cannot be removed; the copy is gone then.
    """
    try:
        if identity_of(step.source) == step.identity or _holds(step.source, step.sha256):
            step.source.unlink()
    except FileNotFoundError:  # somebody else has removed it
        pass
    except OSError:
        step.destination.unlink()
        raise


def place(part: Path, name: Path) -> None:
    """Gives a file its final name. Raises FileExistsError if something has that name."""
    try:
        os.link(part, name, follow_symlinks=False)  # unlike a rename, it never replaces
    except FileExistsError:
        raise
    except (OSError, NotImplementedError):
        # A file system without links (FAT, some drives of a network), a folder, or a system that forbids links to the
        # files of others. Only a name that another program takes between these two lines would be replaced.
        if os.path.lexists(name):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(name)) from None
        os.rename(part, name)  # noqa: PTH104
    else:
        part.unlink()


def without_names_in_use(path: Path) -> Iterator[Path]:
    """``a.png``, ``a (2).png``, ``a (3).png`` …, without those that are there; none is longer than a name may be."""
    for number in itertools.count(1):
        stem, mark = path.stem, f" ({number})" if number > 1 else ""
        while len(os.fsencode(f"{stem}{mark}{path.suffix}")) > _NAME_BYTES and len(stem) > 1 and mark:
            stem = stem[:-1]
        candidate = path.with_name(f"{stem}{mark}{path.suffix}")
        if not os.path.lexists(candidate):
            yield candidate


# What a file is and holds ---------------------------------------------------------------------------------------------


def identity_of(path: Path) -> Identity:
    """Of what has this name; a link is not followed."""
    return _identity(path.lstat())


def file_facts(path: Path) -> tuple[Identity, str]:
    """Identity and SHA-256 of a file. Raises OSError if it is none, or is written to meanwhile."""
    with _opened(path) as file:
        return _read(file)


def sync_folder(folder: Path) -> None:
    """Returns once the names in a folder are on the disk, where the system can say so."""
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _identity(facts: os.stat_result) -> Identity:
    return Identity(facts.st_dev, facts.st_ino, facts.st_size, facts.st_mtime_ns)


def _holds(path: Path, sha256: str) -> bool:
    try:
        return file_facts(path)[1] == sha256
    except FileNotFoundError:
        return False
    except OSError:  # a folder, a link, a file that cannot be read: not what was meant
        return False


def _opened(path: Path) -> BinaryIO:
    """A regular file, not through a link; a pipe that has this name does not make anyone wait."""
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    if stat.S_ISLNK(path.lstat().st_mode):
        raise OSError(errno.ELOOP, "it is a symbolic link; move what it leads to")
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is no regular file")
    return os.fdopen(descriptor, "rb")


def _read(file: BinaryIO, copy: BinaryIO | None = None) -> tuple[Identity, str]:
    digest = hashlib.sha256()
    before = _identity(os.fstat(file.fileno()))
    while chunk := file.read(_CHUNK):
        digest.update(chunk)
        if copy is not None:
            copy.write(chunk)
    if _identity(os.fstat(file.fileno())) != before:
        raise OSError(errno.EBUSY, "it is being written to")
    return before, digest.hexdigest()


def _copy(source: Path, part: Path) -> tuple[Identity, str]:
    """Contents, mode, times and extended attributes; on the disk when it returns. Gives the facts of what was read."""
    with _opened(source) as file, part.open("xb") as copy:
        facts = _read(file, copy)
        copy.flush()
        shutil.copystat(source, part, follow_symlinks=False)
        os.fsync(copy.fileno())
    return facts
