"""Brings an index up to date with folders of pictures, or adds pictures of other sources.

    changes = find_changes(store, ["/photos"])         what is new, changed and gone: no file is opened
    report = apply_changes(store, encoder, changes)    reads, decodes, embeds and stores it, a second's work at a time

A run that is killed loses what it did since it last stored something, a second ago; the next one goes on from there.
Several may run at once. A picture is known by its path, its size and its time; one that was moved, by its bytes. The
model is loaded for pictures that are new to the index, and for nothing else.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clip.errors import ClipError, DataError, ImageError
from clip.features import Encoded, Failure, OnError
from clip.inference.exported import is_exported
from clip.preprocess import Preprocess
from clip.search.changes import Changes, Failed, Report, find_changes
from clip.search.documents import read_about
from clip.search.items import Item
from clip.search.prepare import Contents, Prepared, prepare, prepare_contents, read_contents
from clip.search.store import Condition, Known, Row, Store
from clip.search.walk import PictureFile, is_gone

__all__ = ["Files", "ImageEncoder", "add_items", "apply_changes", "set_apart", "update_folders"]

_STORE_SECONDS, _STORE_ROWS = 1.0, 4096
"""What is embedded is stored when the first of it has waited for so long, or when there is so much."""


class ImageEncoder(Protocol):
    """The part of ``clip.search.encoder.Encoder`` that is used here. Nothing but ``encode`` may load the model."""

    name: str

    def encode(
        self, sources: Iterable[Any], *, batch_size: int = 32, on_error: OnError | None = None
    ) -> Iterator[Encoded[Any]]:
        """Embeddings of preprocessed pictures (3, S, S)."""


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
        run.do(map(_item, changes.pending), workers)
        with report.seconds.spent("storing"):
            left = [path for path in twins.unused if is_gone(path)]  # another process may have written it again
            for first in range(0, len(left), _STORE_ROWS):
                report.removed += store.remove(left[first : first + _STORE_ROWS])
            store.remove([path for path in twins.used if is_gone(path)])
    return report


def set_apart(store: Store, changes: Changes, *, portion: int = 1024) -> tuple[Changes, Iterator[Files]]:
    """Changes without the files that are certainly new to the index, and these in portions for others to embed.

    What may only have moved, whose size is that of a picture in the index, needs the index and no model.
    """
    sizes = {row.size_bytes for row in store.known() if row.digest is not None} if changes.pending else set()
    here: list[PictureFile] = []
    apart: list[PictureFile] = []
    for file in changes.pending:
        (here if file.path in changes.before or file.size_bytes in sizes else apart).append(file)
    parts = (Files(tuple(apart[first : first + portion])) for first in range(0, len(apart), portion))
    return dataclasses.replace(changes, pending=here), parts


@dataclasses.dataclass(frozen=True, slots=True)
class Files:
    """Some picture files, as a ``clip.search.sources.Part``: another process reads them."""

    files: tuple[PictureFile, ...]

    def items(self, on_problem: Callable[[ClipError], None]) -> Iterator[Item]:
        return map(_item, self.files)


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
    return report


def _item(file: PictureFile) -> Item:
    return Item(path=file.path, image=file.path, size_bytes=file.size_bytes, modified_ns=file.modified_ns)


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
        about = read_about(store)
        if about is None:
            raise DataError(f"{store.address}: does not say what model it is for; make the index anew")
        self._preprocess = Preprocess.from_dict(about.preprocess)
        self._with_torch = not is_exported(encoder.name)
        self.before: dict[str, Known] = {}
        self.twins: _Twins | None = None
        self._rows: list[Row] = []
        self._embeddings: list[NDArray[np.float32]] = []
        self._waiting_since = 0.0
        self._torch_lock = threading.Lock()
        self._torch_seconds = 0.0

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
            # This thread has waited for it as for pictures, but it is a part of loading the model.
            waited = min(self._torch_seconds, seconds.decoding)
            seconds.decoding -= waited
            seconds.model += waited

    def _look(self, item: Item) -> Prepared | Contents | ImageError:
        """In a thread. A picture whose contents the index has need not be decoded, and its bytes are let go."""
        try:
            contents = read_contents(item)
            if self.twins is not None and contents.digest in self.twins:
                return contents._replace(data=b"")
            if self._with_torch:
                self._import_torch()
            return prepare_contents(contents, self._preprocess, with_torch=self._with_torch)
        except ImageError as error:
            return error

    def _import_torch(self) -> None:
        """Takes a second or two, and no time at all once it is done."""
        if "torch" not in sys.modules or self._torch_lock.locked():
            with self._torch_lock:
                start = time.perf_counter()
                import torch  # noqa: F401

                self._torch_seconds += time.perf_counter() - start

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
        if (row.path, row.size_bytes, row.modified_ns) == (item.path, item.size_bytes, item.modified_ns):
            self._report.unchanged += 1  # another process has stored it meanwhile
            self._on_progress(1)
            return None
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
