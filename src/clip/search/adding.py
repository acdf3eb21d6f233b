"""Everything that an index can take in, each by its own way: folders, pictures, tables, shards, files of embeddings."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from clip.errors import ClipError, ConfigError
from clip.search.about import About
from clip.search.changes import Failed, Kept, Report, find_changes, read_roots
from clip.search.embedded import Embedded, import_embeddings
from clip.search.indexing import ImageEncoder, add_items, apply_changes, set_apart
from clip.search.seen import Seen
from clip.search.sources import Pictures, open_source
from clip.search.store import Store

if TYPE_CHECKING:
    from clip.search.ray_engine import RayEngine

__all__ = ["Opened", "Watcher", "add_sources", "open_sources"]

Opened = str | Pictures | Embedded
"""A folder or a picture, by its path; or what ``open_source`` gives."""


class Watcher(Protocol):
    """Is told what goes on."""

    def showing(self, what: str, total: int | None) -> AbstractContextManager[None]:
        """Around a piece of work. total: how often ``advance`` will count; None if that is not known."""

    def advance(self, count: int) -> None:
        """So many more pictures are done."""

    def failed(self, failed: Failed) -> None:
        """This file cannot be indexed, or this folder not be read."""

    def kept(self, kept: Kept) -> None:
        """These pictures are not there now, and stay in the index."""


class _Unwatched:
    def showing(self, what: str, total: int | None) -> AbstractContextManager[None]:
        return nullcontext()

    def advance(self, count: int) -> None: ...

    def failed(self, failed: Failed) -> None: ...

    def kept(self, kept: Kept) -> None: ...


def open_sources(
    sources: Sequence[str], *, image_column: str | None = None, embedding_column: str | None = None
) -> list[Opened]:
    """What each of some addresses means. The errors are those of ``open_source``."""

    def opened(source: str) -> Opened:
        if os.path.isdir(source):  # noqa: PTH112  # a name may hold a NUL
            return source
        found = open_source(source, image_column=image_column, embedding_column=embedding_column)
        return source if found is None else found

    return [opened(source) for source in sources]


def add_sources(
    store: Store,
    about: About,
    encoder: ImageEncoder,
    sources: Sequence[Opened],
    *,
    is_claimed: bool = False,
    remove_missing: bool = False,
    batch_size: int = 32,
    ray: RayEngine | None = None,
    watcher: Watcher | None = None,
) -> Report:
    """Brings an index up to date with all of the sources; without any, with all folders that it knows.

    is_claimed: embeddings whose files do not say what made them are of the model of the index.
    remove_missing: forget the pictures of folders that are not there or are empty.
    ray: what embeds new pictures in place of ``encoder``.
    """
    report = Report()
    watch = watcher or _Unwatched()
    how: dict[str, Any] = {"batch_size": batch_size, "on_progress": watch.advance, "on_failure": watch.failed}

    def update_folders(roots: Sequence[str] | None) -> None:
        if roots is None and not read_roots(store):
            raise ConfigError(f"{store.address}: no folder was indexed yet; name one: clip index FOLDER")
        changes = find_changes(store, roots, remove_missing=remove_missing)
        for failed in changes.report.failed:
            watch.failed(failed)
        for kept in changes.report.kept:
            watch.kept(kept)
        with watch.showing("Indexing", len(changes.pending)):
            if ray:
                changes, parts = set_apart(store, changes)
                ray.add(parts)
            report.include(apply_changes(store, encoder, changes, **how))

    def add(pictures: Pictures) -> None:
        problems: list[Failed] = []
        what = _noting(problems, watch), functools.partial(Seen, store)
        with watch.showing(f"Indexing {pictures.name}", pictures.total()):
            if ray:
                ray.add(pictures.parts(*what))
            else:
                report.include(add_items(store, encoder, pictures.items(*what), **how))
        report.failed += problems

    def take_over(embedded: Embedded) -> None:
        embedded.check(about, store.address, is_claimed=is_claimed)
        with watch.showing(f"Importing {embedded.name}", embedded.total()):
            on_problem = _noting(report.failed, watch)
            report.added += import_embeddings(store, embedded, on_problem=on_problem, on_batch=watch.advance).rows

    roots = [source for source in sources if isinstance(source, str)]
    for source in sources:
        if isinstance(source, Embedded):
            take_over(source)
        elif not isinstance(source, str):
            add(source)
    if roots or not sources:
        update_folders(roots or None)
    if ray:
        report.include(ray.report)
    return report


def _noting(problems: list[Failed], watch: Watcher) -> Callable[[ClipError], None]:
    """For the records of a source, whose errors name them."""

    def note(error: ClipError) -> None:
        place, _, reason = str(error).partition(": ")
        problems.append(Failed(place, reason))
        watch.failed(problems[-1])

    return note
