"""Another model for an index: its pictures are read again, into a second index that then takes the place of the first.

Until then the first one answers as before. A run that is killed goes on where it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

from clip.errors import ClipError
from clip.search.changes import Failed, Report, joined, read_roots, remember_roots
from clip.search.documents import describe, read_about, refresh_background
from clip.search.embedded import Embedded
from clip.search.encoder import Encoder
from clip.search.indexing import add_items
from clip.search.items import Item
from clip.search.sources import open_source
from clip.search.store import Store

__all__ = ["ReEmbedded", "re_embed"]

_CONTAINER = re.compile(r"(.+?\.(?:tar|parquet))/", re.DOTALL)
"""In a path of the index: the file that the picture is inside of."""


class ReEmbedded(NamedTuple):
    """What ``re_embed`` did."""

    report: Report
    """Pictures that an earlier, ended run had done count as unchanged."""
    has_taken_over: bool
    """Otherwise the index is still the old one: pictures that cannot be read would have been lost."""


def re_embed(
    store: Store,
    encoder: Encoder,
    *,
    remove_missing: bool = False,
    batch_size: int = 32,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[Failed], None] = lambda failed: None,
) -> ReEmbedded:
    """Embeds all pictures of an index with ``encoder``, and makes it an index of that model.

    remove_missing: leave out the pictures that cannot be read any more. Otherwise one of them is enough for the old
        index to stay; what was embedded is kept for the next attempt.
    """
    lost: dict[str, Failed] = {}

    def note(failed: Failed) -> None:
        lost[failed.path] = failed
        on_failure(failed)

    def add(items: Iterable[Item]) -> Report:
        return add_items(
            new, encoder, items, batch_size=batch_size, workers=workers, on_progress=on_progress, on_failure=note
        )

    with _replacement(store, encoder) as new:
        remember_roots(new, read_roots(store))
        report = add(_items(store, note))
        while late := _only_in(store, new) - lost.keys():  # what others have added meanwhile
            report.include(add(Item(path=path, image=path) for path in sorted(late)))
        new.remove(_only_in(new, store))
        report.failed = list(lost.values())
        if lost and not remove_missing:
            return ReEmbedded(report, has_taken_over=False)
        new.optimize()
        refresh_background(new)
        new.take_over()
        return ReEmbedded(report, has_taken_over=True)


def _replacement(store: Store, encoder: Encoder) -> Store:
    """What an ended run has left, if that was for the same model; otherwise an empty one."""
    new = store.replacement(embed_dim=encoder.about.embed_dim)
    about = read_about(new)
    if about is not None:
        if (about.fingerprint, about.preprocess) == (encoder.about.fingerprint, encoder.about.preprocess):
            return new
        new.close()
        new = store.replacement(embed_dim=encoder.about.embed_dim, restart=True)
    describe(new, encoder)
    return new


def _only_in(store: Store, other: Store) -> set[str]:
    return {row.path for row, same in joined(store.known(), other.known()) if row and not same}


def _items(store: Store, on_failure: Callable[[Failed], None]) -> Iterator[Item]:
    """All pictures of an index: files first, then those that are inside of archives and tables."""
    containers: set[str] = set()
    for found in store.scan():
        for row in found.rows:
            if inside := _CONTAINER.match(row.path):
                containers.add(inside[1])
            else:
                yield Item(path=row.path, image=row.path, metadata=row.metadata)
    for container in sorted(containers):
        wanted = {row.path for row in store.known(f"{container}/")}
        problems: list[str] = []
        try:
            source = open_source(container)
            if source is not None and not isinstance(source, Embedded):
                for item in source.items(lambda error: problems.append(str(error))):  # noqa: B023  # called at once
                    if item.path in wanted:
                        wanted.remove(item.path)
                        yield item
        except ClipError as error:
            problems.append(str(error))
        for path in sorted(wanted):
            on_failure(Failed(path, next((text for text in problems if path in text), f"is not in {container} now")))
