"""Brings an index up to date with folders of pictures, or adds pictures that come from elsewhere.

    changes = find_changes(store, ["/photos"])         what is new, changed and gone: no file is opened
    report = apply_changes(store, encoder, changes)    reads, decodes, embeds and stores it, a second's work at a time

A run that is killed loses what it did since it last stored something, a second ago; the next one goes on from there.
Several may run at once. A picture is known by its path, its size and its time; one that was moved, by its bytes. The
model is loaded for pictures that are new to the index, and for nothing else.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from clip.errors import ClipError, DataError, ImageError
from clip.features import Encoded, Failure, OnError
from clip.inference.exported import is_exported
from clip.picture_files import is_picture_name
from clip.preprocess import Preprocess
from clip.search.about import About
from clip.search.items import Item
from clip.search.prepare import Contents, Prepared, prepare, prepare_contents, read_contents
from clip.search.store import Condition, Known, Row, Store
from clip.search.walk import PictureFile, is_gone, walk

__all__ = [
    "Changes",
    "Failed",
    "ImageEncoder",
    "Kept",
    "Report",
    "Seconds",
    "add_items",
    "apply_changes",
    "find_changes",
    "read_roots",
    "update_folders",
]

_ROOTS, _ABOUT = "roots", "about"
"""Documents of the store."""

_STORE_SECONDS, _STORE_ROWS = 1.0, 4096
"""What is embedded is stored when the first of it has waited for so long, or when there is so much."""


class ImageEncoder(Protocol):
    """The part of ``clip.search.encoder.Encoder`` that is used here. Nothing but ``encode`` may load the model."""

    name: str

    def encode(
        self, sources: Iterable[Any], *, batch_size: int = 32, on_error: OnError | None = None
    ) -> Iterator[Encoded[Any]]:
        """Embeddings of preprocessed pictures (3, S, S)."""


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


# Folders --------------------------------------------------------------------------------------------------------------


def update_folders(
    store: Store,
    encoder: ImageEncoder,
    roots: Sequence[str] | None = None,
    *,
    remove_missing: bool = False,
    batch_size: int = 32,
    workers: int | None = None,
) -> Report:
    """``find_changes``, then ``apply_changes``."""
    changes = find_changes(store, roots, remove_missing=remove_missing)
    return apply_changes(store, encoder, changes, batch_size=batch_size, workers=workers)


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
        _remember(store, chosen)
        outermost = _outermost(chosen)
        for root in outermost:
            unreadable = _Unreadable(report)
            missing: list[Known] = []
            count = 0
            for file, row in _joined(walk(root, on_unreadable=unreadable), _rows_of(store, root)):
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


def _remember(store: Store, roots: Iterable[str]) -> None:
    """Folders only: a file by itself is looked at when it is named."""
    known = read_roots(store)
    new = {root for root in roots if os.path.isdir(root)} - set(known)  # noqa: PTH112
    if new:
        store.write_document(_ROOTS, json.dumps(sorted([*known, *new])).encode())


def _forget(store: Store, roots: Sequence[str]) -> None:
    if roots:
        left = [root for root in read_roots(store) if root not in roots]
        store.write_document(_ROOTS, json.dumps(left).encode())


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


def _joined(files: Iterator[PictureFile], rows: Iterator[Known]) -> Iterator[tuple[PictureFile | None, Known | None]]:
    """Files with the rows of the same paths; both come in order of the bytes of their paths."""
    file, row = next(files, None), next(rows, None)
    while file is not None or row is not None:
        if file is not None and row is not None and file.path == row.path:
            yield file, row
            file, row = next(files, None), next(rows, None)
        elif row is None or (file is not None and os.fsencode(file.path) < os.fsencode(row.path)):
            yield file, None
            file = next(files, None)
        else:
            yield None, row
            row = next(rows, None)


def apply_changes(
    store: Store,
    encoder: ImageEncoder,
    changes: Changes,
    *,
    batch_size: int = 32,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failed], None] = lambda failed: None,
) -> Report:
    """Reads, decodes, embeds and stores what has changed, and forgets what has gone.

    A file that cannot be read is reported, and is tried again by the next run; what the index knows of it stays.
    workers: threads that decode; by default one per processor.
    on_progress: told how many more of the pending files are done. on_failure: told of each that cannot be read.
    """
    report = changes.report
    with report.seconds.spent("total"):
        with report.seconds.spent("walking"):
            twins = _Twins(store, changes)
        run = _Run(store, encoder, report, batch_size, on_progress, on_failure)
        run.before, run.twins = changes.before, twins
        run.do((Item(path=path, image=path, size_bytes=size, modified_ns=modified)
                for path, size, modified in changes.pending), workers)  # fmt: skip
        with report.seconds.spent("storing"):
            left = [path for path in twins.unused if is_gone(path)]  # another process may have written it again
            for first in range(0, len(left), _STORE_ROWS):
                report.removed += store.remove(left[first : first + _STORE_ROWS])
            store.remove([path for path in twins.used if is_gone(path)])
            if report.stored or report.removed:
                store.optimize()
    return report


def add_items(
    store: Store,
    encoder: ImageEncoder,
    items: Iterable[Item],
    *,
    batch_size: int = 32,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failed], None] = lambda failed: None,
) -> Report:
    """Adds pictures of any source. Those that the index has, of the same size and time if these are told, are passed
    over. The arguments are those of ``apply_changes``."""
    report = Report()
    with report.seconds.spent("total"):
        run = _Run(store, encoder, report, batch_size, on_progress, on_failure)
        run.do(run.unknown(items), workers)
        if report.stored:
            with report.seconds.spent("storing"):
                store.optimize()
    return report


class _Twins:
    """Which pictures of the index have the contents of those that are pending, as far as can be told without reading
    these: the sizes must be the same."""

    def __init__(self, store: Store, changes: Changes) -> None:
        sizes = {file.size_bytes for file in changes.pending}
        gone = {row.path for row in changes.vanished}
        self._vanished: dict[bytes, list[str]] = {}
        for row in changes.vanished:
            assert row.digest is not None
            self._vanished.setdefault(row.digest, []).append(row.path)
        self._present: dict[bytes, str] = {}
        for row in store.known() if sizes else ():
            if row.digest is None or row.size_bytes not in sizes or row.path in gone:
                continue
            # One that does not change itself is better: there its contents are sure to be found.
            if row.digest not in self._present or self._present[row.digest] in changes.before:
                self._present[row.digest] = row.path
        self.used: list[str] = []
        """Of the vanished rows, those that are under another path now."""

    @property
    def unused(self) -> list[str]:
        return [path for paths in self._vanished.values() for path in paths]

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._present or digest in self._vanished

    def path(self, digest: bytes) -> str | None:
        """Of a picture with these contents."""
        if paths := self._vanished.get(digest):
            return paths[-1]
        return self._present.get(digest)

    def is_vanished(self, digest: bytes) -> bool:
        return bool(self._vanished.get(digest))

    def take(self, digest: bytes) -> bool:
        """Whether a vanished picture had these contents; it then counts as renamed, and is no longer among these."""
        if not (paths := self._vanished.get(digest)):
            return False
        self.used.append(paths.pop())
        self._present.setdefault(digest, self.used[-1])
        return True


# The pipeline ---------------------------------------------------------------------------------------------------------


class _Run:
    """Threads read and decode; this thread asks the model and stores."""

    def __init__(
        self,
        store: Store,
        encoder: ImageEncoder,
        report: Report,
        batch_size: int,
        on_progress: Callable[[int], None],
        on_failure: Callable[[Failed], None],
    ) -> None:
        self._store, self._encoder, self._report = store, encoder, report
        self._batch_size, self._on_progress, self._on_failure = batch_size, on_progress, on_failure
        document = store.read_document(_ABOUT)
        if document is None:
            raise DataError(f"{store.address}: does not say what model it is for; make the index anew")
        self._preprocess = Preprocess.from_dict(About.from_bytes(document, store.address).preprocess)
        self._with_torch = not is_exported(encoder.name)
        self.before: dict[str, Known] = {}
        self.twins: _Twins | None = None
        self._rows: list[Row] = []
        self._embeddings: list[NDArray[np.float32]] = []
        self._waiting_since = 0.0

    def unknown(self, items: Iterable[Item]) -> Iterator[Item]:
        """Items without those that the store has."""
        for item in items:
            row = self._known(item.path)
            if row is None:
                yield item
            elif item.size_bytes in (None, row.size_bytes) and item.modified_ns in (None, row.modified_ns):
                self._report.unchanged += 1
                self._on_progress(1)
            else:
                self.before[item.path] = row
                yield item

    def _known(self, path: str) -> Known | None:
        row = next(iter(self._store.known(path)), None)  # of all paths that begin so, this one is the first
        return row if row is not None and row.path == path else None

    def do(self, items: Iterable[Item], workers: int | None) -> None:
        seconds = self._report.seconds
        outcomes = _ahead(self._look, items, workers or _processors(), 2 * self._batch_size)
        batch: list[Prepared] = []
        try:
            while True:
                with seconds.spent("decoding"):
                    item, outcome = next(outcomes, (None, None))
                if item is None or len(batch) == self._batch_size:
                    self._embed(batch)
                    batch = []
                self._store_if_due(at_once=item is None)
                if item is None:
                    return
                if isinstance(outcome, ImageError):
                    self._fail(item.path, outcome)
                elif isinstance(outcome, Contents):
                    with seconds.spent("storing"):
                        again = self._reuse(outcome)
                    if again is not None:
                        batch.append(again)
                elif outcome is not None:
                    batch.append(outcome)
        finally:
            outcomes.close()

    def _look(self, item: Item) -> Prepared | Contents | ImageError:
        """In a thread. A picture whose contents the index has need not be decoded, and its bytes are let go."""
        try:
            contents = read_contents(item)
            if self.twins is not None and contents.digest in self.twins:
                return contents._replace(data=b"")
            return prepare_contents(contents, self._preprocess, with_torch=self._with_torch)
        except ImageError as error:
            return error

    def _fail(self, path: str, error: ClipError) -> None:
        failed = Failed(path, str(error).removeprefix(f"{path}: "))
        self._report.failed.append(failed)
        self._on_failure(failed)
        self._on_progress(1)

    def _reuse(self, contents: Contents) -> Prepared | None:
        """Stores a picture with the embedding that another path has, or the same path had before. If that picture has
        changed since it was seen, this one is prepared for the model instead."""
        assert self.twins is not None
        item, _, digest = contents
        twin = self.twins.path(digest)
        found = self._stored(twin) if twin is not None else None
        if found is None or found[0].digest != digest:
            try:
                return prepare(item, self._preprocess, with_torch=self._with_torch)
            except ImageError as error:
                self._fail(item.path, error)
                return None
        row, embedding = found
        if item.path in self.before:
            metadata = self._metadata(item)
        else:
            metadata = row.metadata if self.twins.is_vanished(digest) else item.metadata
        self._keep(
            dataclasses.replace(
                row, path=item.path, size_bytes=item.size_bytes, modified_ns=item.modified_ns, metadata=metadata
            ),
            embedding,
        )
        return None

    def _metadata(self, picture: Item | Row) -> Mapping[str, Any]:
        """Its own, or what the index has of a picture that it knew before."""
        if picture.metadata or picture.path not in self.before:
            return picture.metadata
        found = self._stored(picture.path)
        return found[0].metadata if found else picture.metadata

    def _stored(self, path: str) -> tuple[Row, NDArray[np.float32]] | None:
        for found in self._store.scan([Condition("path", "=", path)]):
            if found.rows:
                return found.rows[0], found.embeddings[0]
        return None

    def _embed(self, batch: list[Prepared]) -> None:
        """Of some pictures those that no other process has stored meanwhile."""
        seconds = self._report.seconds
        with seconds.spent("storing"):
            new = [picture for picture in batch if not self._is_stored(picture.row)]
        self._report.unchanged += len(batch) - len(new)
        self._on_progress(len(batch) - len(new))
        if not new:
            return

        def on_error(failure: Failure[Any]) -> None:
            message = str(failure.error).removeprefix(f"item {failure.position}: ")
            self._fail(new[failure.position].row.path, ClipError(message))

        with seconds.spent("model"):
            pixels = [picture.pixels for picture in new]
            encoded = list(self._encoder.encode(pixels, batch_size=len(pixels), on_error=on_error))
        for part in encoded:
            self._report.embedded += len(part.positions)
            for position, embedding in zip(part.positions, part.embeddings, strict=True):
                row = new[position].row
                self._keep(dataclasses.replace(row, metadata=self._metadata(row)), embedding)

    def _is_stored(self, row: Row) -> bool:
        known = self._known(row.path)
        return known is not None and known[1:] == (row.size_bytes, row.modified_ns, row.digest)

    def _keep(self, row: Row, embedding: NDArray[np.float32]) -> None:
        """Counts a picture, and stores it soon."""
        assert row.digest is not None
        before = self.before.get(row.path)
        if before is not None:
            if before.digest == row.digest:
                self._report.touched += 1
            else:
                self._report.changed += 1
        elif self.twins is not None and self.twins.take(row.digest):
            self._report.renamed += 1
        elif self.twins is not None and row.digest in self.twins:
            self._report.copied += 1
        else:
            self._report.added += 1
        if not self._rows:
            self._waiting_since = time.monotonic()
        self._rows.append(row)
        self._embeddings.append(embedding)

    def _store_if_due(self, *, at_once: bool) -> None:
        waited = time.monotonic() - self._waiting_since
        if not self._rows or not (at_once or waited >= _STORE_SECONDS or len(self._rows) >= _STORE_ROWS):
            return
        with self._report.seconds.spent("storing"):
            self._store.add(self._rows, np.stack(self._embeddings))
        self._on_progress(len(self._rows))
        self._rows, self._embeddings = [], []


def _ahead(
    look: Callable[[Item], Prepared | Contents | ImageError], items: Iterable[Item], workers: int, ahead: int
) -> Generator[tuple[Item, Prepared | Contents | ImageError]]:
    """Items in order with what became of them; up to ``ahead`` of them are in work or wait."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="clip-decode")
    pending: deque[tuple[Item, Future[Prepared | Contents | ImageError]]] = deque()
    stream = iter(items)
    try:
        while True:
            for item in itertools.islice(stream, ahead - len(pending)):
                pending.append((item, pool.submit(look, item)))
            if not pending:
                return
            item, future = pending.popleft()
            yield item, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _processors() -> int:
    """How many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
