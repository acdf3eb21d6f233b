"""The files of an index: ``CURRENT`` names its catalogue, and is the only thing that says so.

    CURRENT                   "catalogue-1.db"; moved into place, so that a reader finds the old index or the new one
    catalogue-1.db            the database; -wal and -shm beside it while somebody has it open
    nearest-1-3.faiss         belongs to catalogue 1; an older one is removed when the catalogue names a newer one
    lock, nearest-1.lock      held while catalogues come and go, and while a file of faiss is made

Numbers only grow: a catalogue of a higher number than the current one is a replacement that is not whole yet, one of a
lower number is what a process that ended has not removed.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from clip.errors import ConfigError, DataError

__all__ = [
    "PATIENCE_SECONDS",
    "catalogues",
    "current_catalogue",
    "identity",
    "locked",
    "make_current",
    "remove_catalogue",
    "state_of",
    "unlink_matching",
    "wal_of",
]

PATIENCE_SECONDS = 60.0
"""How long one waits for another. Each writer holds the lock for one batch, a fraction of a second."""


def current_catalogue(folder: Path) -> int | None:
    """The number of the catalogue that ``CURRENT`` names; None if there is no index."""
    try:
        name = (folder / "CURRENT").read_bytes()[:100].strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{folder}: is no index that can be read ({error.strerror})") from error
    found = re.fullmatch(rb"catalogue-([1-9][0-9]{0,17})\.db", name)
    if not found:
        raise DataError(f"{folder / 'CURRENT'}: names no catalogue but {name!r}; make the index anew")
    return int(found[1])


def catalogues(folder: Path) -> list[int]:
    names = (re.fullmatch(r"catalogue-([1-9][0-9]*)\.db", path.name) for path in folder.iterdir())
    return [int(name[1]) for name in names if name]


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """For what is more than a transaction; readers need no lock."""
    import filelock

    try:
        held = filelock.FileLock(folder / "lock").acquire(timeout=PATIENCE_SECONDS)
    except filelock.Timeout as error:
        raise ConfigError(f"{folder}: another process has been changing the index for a minute; try again") from error
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror}); check its permissions") from error
    with held:
        yield


def make_current(folder: Path, number: int) -> None:
    beside = folder / ".CURRENT"
    with beside.open("wb") as file:
        file.write(f"catalogue-{number}.db\n".encode())
        file.flush()
        os.fsync(file.fileno())
    beside.replace(folder / "CURRENT")
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove_catalogue(folder: Path, number: int) -> None:
    """Removes a catalogue and what belongs to it; whoever has it open goes on reading it."""
    with contextlib.suppress(OSError):  # the database first: without it nobody looks for the others
        (folder / f"catalogue-{number}.db").unlink()
    unlink_matching(folder, rf"catalogue-{number}\.db-.*|\.?nearest-{number}[-.].*")


def unlink_matching(folder: Path, pattern: str, *, but: str | None = None) -> None:
    for path in folder.iterdir():
        if re.fullmatch(pattern, path.name) and path.name != but:
            with contextlib.suppress(OSError):  # on Windows not while it is open
                path.unlink()


def wal_of(path: Path) -> Path:
    return path.with_name(f"{path.name}-wal")


def identity(path: Path) -> tuple[int, int] | None:
    """Which file it is; None if there is none."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def state_of(path: Path) -> tuple[int, ...] | None:
    """What changes when somebody else writes."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino, wal_of(path).exists()
