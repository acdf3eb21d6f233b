"""What differs between folders of pictures and an index: found by size and time, without opening a file.

It also remembers the folders, so that all can be looked at again, and never takes a disk that is away for pictures that
are gone.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple, Protocol, TypeVar

from clip.errors import DataError
from clip.picture_files import is_picture_name
from clip.search.store import Known, Store
from clip.search.walk import PictureFile, is_gone, walk

__all__ = ["Changes", "Failed", "Kept", "Report", "Seconds", "find_changes", "joined", "read_roots", "remember_roots"]

_ROOTS = "roots"
"""A document of the store."""


class Failed(NamedTuple):
    """A file that could not be indexed, or a folder that could not be read."""

    path: str
    reason: str


class Kept(NamedTuple):
    """Pictures that are not there now, and are not forgotten either: their disk may only be away."""

    root: str
    pictures: int
    reason: str


@dataclasses.dataclass(slots=True)
class Seconds:
    """Where the time went, as the thread saw it that runs the model; the parts make up nearly all of the total."""

    total: float = 0.0
    walking: float = 0.0
    """Listing folders, and comparing them with the index."""
    decoding: float = 0.0
    """Waiting for pictures to be read and decoded: next to nothing where the model is the limit."""
    model: float = 0.0
    """Loading it included."""
    storing: float = 0.0

    @contextmanager
    def spent(self, part: str) -> Iterator[None]:
        """Counts what is done inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, part, getattr(self, part) + time.perf_counter() - start)


@dataclasses.dataclass(slots=True, kw_only=True)
class Report:
    """What a run did. It grows while the run goes on."""

    added: int = 0
    """Pictures that the index did not know."""
    changed: int = 0
    """Files with other contents than before."""
    touched: int = 0
    """Files with another time or size on record, but the same contents."""
    renamed: int = 0
    """New paths with the contents of a file that has gone."""
    copied: int = 0
    """New paths with the contents of a file that is still there."""
    removed: int = 0
    unchanged: int = 0
    embedded: int = 0
    """How many went through the model."""
    failed: list[Failed] = dataclasses.field(default_factory=list)
    kept: list[Kept] = dataclasses.field(default_factory=list)
    seconds: Seconds = dataclasses.field(default_factory=Seconds)

    @property
    def stored(self) -> int:
        """Rows that were written."""
        return self.added + self.changed + self.touched + self.renamed + self.copied

    def include(self, other: Report) -> None:
        """Counts what another run did as well."""
        for field in dataclasses.fields(self):
            if field.name != "seconds":
                setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))
        for field in dataclasses.fields(Seconds):
            setattr(self.seconds, field.name, getattr(self.seconds, field.name) + getattr(other.seconds, field.name))

    def to_dict(self) -> dict[str, Any]:
        """As JSON, with the number of failures instead of their list."""
        counts = ("added", "changed", "touched", "renamed", "copied", "removed", "unchanged", "embedded")
        return {
            **{name: getattr(self, name) for name in counts},
            "failed": len(self.failed),
            "kept": [kept._asdict() for kept in self.kept],
            "seconds": {name: round(value, 3) for name, value in dataclasses.asdict(self.seconds).items()},
        }


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Changes:
    """What differs between folders and an index."""

    pending: Sequence[PictureFile]
    """New or changed files, in order of the bytes of their paths."""
    before: dict[str, Known]
    """Rows of those that have changed, by path."""
    vanished: Sequence[Known]
    """Rows whose files have gone."""
    report: Report
    """Of what was found; ``apply_changes`` goes on with it."""


def find_changes(store: Store, roots: Sequence[str] | None = None, *, remove_missing: bool = False) -> Changes:
    """Compares folders, or files by themselves, with an index. Memory grows with the changes only.

    roots: None for all folders that were ever indexed; each that is passed is remembered.
    remove_missing: forget the pictures of a root that is not there, or has no pictures any more. Otherwise they are
        kept, because that is what the folder of a disk looks like while the disk is not plugged in.
    """
    report = Report()
    pending: list[PictureFile] = []
    before: dict[str, Known] = {}
    vanished: list[Known] = []
    with report.seconds.spent("total"), report.seconds.spent("walking"):
        remembered = read_roots(store)
        chosen = remembered if roots is None else [os.path.abspath(root) for root in roots]  # noqa: PTH100
        everywhere = sorted({*remembered, *chosen})
        away = {} if remove_missing else {root: 0 for root in everywhere if _is_empty(root)}
        remember_roots(store, chosen)
        outermost = _outermost(chosen)
        for root in outermost:
            unreadable = _Unreadable(report)
            missing: list[Known] = []
            count = 0
            for file, row in joined(walk(root, on_unreadable=unreadable), _rows_of(store, root)):
                if file is None:
                    assert row is not None
                    missing.append(row)
                    continue
                count += 1
                if row is not None and (row.size_bytes, row.modified_ns) == file[1:]:
                    report.unchanged += 1
                    continue
                pending.append(file)
                if row is not None:
                    before[row.path] = row
            if missing and not count and not remove_missing:
                away.setdefault(root, 0)
            for row in missing:
                if row.digest is None or unreadable.covers(row.path) or _root_of(row.path, outermost) != root:
                    continue  # it came as an embedding; nobody can see it; another root answers for it
                if (place := _root_of(row.path, away)) is not None:
                    away[place] += 1
                elif is_gone(row.path):
                    vanished.append(row)
        for root, count in away.items():
            if count:
                report.kept.append(Kept(root, count, "is empty now" if os.path.lexists(root) else "is not there"))
        excused = set(remembered) if remove_missing else {kept.root for kept in report.kept}
        report.failed = [failed for failed in report.failed if not (failed.path in excused and is_gone(failed.path))]
        if remove_missing:
            _forget(store, [root for root in chosen if is_gone(root)])
    return Changes(pending=pending, before=before, vanished=vanished, report=report)


def read_roots(store: Store) -> list[str]:
    """The folders that were ever indexed."""
    document = store.read_document(_ROOTS)
    try:
        roots = json.loads(document) if document else []
        if not isinstance(roots, list) or not all(isinstance(root, str) for root in roots):
            raise ValueError("no list of paths")
    except ValueError as error:
        raise DataError(
            f"{store.address}: its list of folders cannot be read ({error}); make the index anew"
        ) from error
    return roots


def remember_roots(store: Store, roots: Iterable[str]) -> None:
    """Adds to them. Folders only: a file by itself is looked at when it is named."""
    new = {root for root in roots if os.path.isdir(root)}  # noqa: PTH112
    if not new <= {*read_roots(store)}:
        with _alone(store):
            store.write_document(_ROOTS, json.dumps(sorted({*read_roots(store), *new})).encode())


def _forget(store: Store, roots: Sequence[str]) -> None:
    if roots:
        with _alone(store):
            left = [root for root in read_roots(store) if root not in roots]
            store.write_document(_ROOTS, json.dumps(left).encode())


def _alone(store: Store) -> AbstractContextManager[object]:
    """No other process adds a root between reading and writing: in a folder; a server has nothing to lock here."""
    if not os.path.isdir(store.address):  # noqa: PTH112
        return nullcontext()
    import filelock

    return filelock.FileLock(os.path.join(store.address, "roots.lock"))  # noqa: PTH118


class _Unreadable:
    """Folders and files that could not be looked at. Told of them in turn; whatever lies below is not gone."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._paths: list[str] = []

    def __call__(self, path: str, error: OSError) -> None:
        self._report.failed.append(Failed(path, f"cannot be read ({error.strerror})"))
        if not isinstance(error, FileNotFoundError):
            self._paths.append(path)

    def covers(self, path: str) -> bool:
        return any(path == one or path.startswith(_folder(one)) for one in self._paths)


def _folder(path: str) -> str:
    """With the slash that all paths inside begin with."""
    return path if path.endswith("/") else path + "/"


def _root_of(path: str, roots: Iterable[str]) -> str | None:
    """The innermost of some roots that a path is, or lies in."""
    found = [root for root in roots if path == root or path.startswith(_folder(root))]
    return max(found, key=len, default=None)


def _outermost(roots: Iterable[str]) -> list[str]:
    """Roots without those that the walk of another one comes through."""
    ordered = sorted(set(roots))
    return [root for root in ordered if not any(_comes_through(other, root) for other in ordered)]


def _comes_through(outer: str, inner: str) -> bool:
    if inner == outer or not inner.startswith(_folder(outer)) or not os.path.lexists(inner):
        return False
    parts = inner.removeprefix(_folder(outer)).split("/")
    paths = list(itertools.accumulate(parts, lambda path, part: _folder(path) + part, initial=outer))[1:]
    if not os.path.isdir(inner):  # noqa: PTH112
        paths.pop()  # a link to a file is followed
        if not is_picture_name(parts[-1]):
            return False
    return not any(part.startswith(".") for part in parts) and not any(map(os.path.islink, paths))


def _is_empty(root: str) -> bool:
    """Whether there is no such folder, or nothing in it; for a file, whether it is not there."""
    try:
        with os.scandir(root) as entries:
            return next(entries, None) is None
    except NotADirectoryError:
        return False
    except OSError:
        return True


def _rows_of(store: Store, root: str) -> Iterator[Known]:
    if os.path.isdir(root):  # noqa: PTH112
        yield from store.known(_folder(root))
        return
    for row in store.known(root):  # a file, or nothing that is there now: then either may have been
        if row.path == root or row.path.startswith(_folder(root)):
            yield row


class _Named(Protocol):
    @property
    def path(self) -> str: ...


One = TypeVar("One", bound=_Named)
Other = TypeVar("Other", bound=_Named)


def joined(ones: Iterator[One], others: Iterator[Other]) -> Iterator[tuple[One | None, Other | None]]:
    """Pairs with the same path, and None beside what is in one stream only. Both are in order of the bytes of their
    paths, and so are the pairs."""
    one, other = next(ones, None), next(others, None)
    while one is not None or other is not None:
        if one is not None and other is not None and one.path == other.path:
            yield one, other
            one, other = next(ones, None), next(others, None)
        elif other is None or (one is not None and os.fsencode(one.path) < os.fsencode(other.path)):
            yield one, None
            one = next(ones, None)
        else:
            yield None, other
            other = next(others, None)
