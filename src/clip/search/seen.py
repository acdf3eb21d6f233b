"""Which pictures an index has already, in 8 bytes each: what a run that goes on has to leave out."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from clip.search.items import Item
    from clip.search.store import Store

__all__ = ["Seen"]


class Seen:
    """Paths with the size and time that their files had, as hashes; can be sent to other processes.

    store: whose rows. under: only those whose path begins so.
    A picture is taken for another one with a chance of rows / 2⁶⁴: one in 2 · 10¹¹ with a hundred million rows.
    """

    def __init__(self, store: Store, under: str | None = None) -> None:
        self._hashes = np.sort(np.fromiter(_hashes(store, under), np.uint64))

    def __len__(self) -> int:
        return len(self._hashes)

    def __call__(self, path: str, size_bytes: int, modified_ns: int) -> bool:
        """Whether there is a row of this path, whose file was like this."""
        wanted = np.uint64(_hash(path, size_bytes, modified_ns))
        place = int(np.searchsorted(self._hashes, wanted))
        return place < len(self._hashes) and bool(self._hashes[place] == wanted)

    def has(self, item: Item) -> bool:
        """The same of a picture that is to be indexed; one of which nothing is known is not there."""
        if item.size_bytes is None or item.modified_ns is None:
            return False
        return self(item.path, item.size_bytes, item.modified_ns)


def _hashes(store: Store, under: str | None) -> Iterator[int]:
    for row in store.known(under):
        if row.size_bytes is not None and row.modified_ns is not None:
            yield _hash(row.path, row.size_bytes, row.modified_ns)


def _hash(path: str, size_bytes: int, modified_ns: int) -> int:
    what = f"{size_bytes} {modified_ns} {path}".encode("utf-8", "surrogateescape")
    return int.from_bytes(hashlib.blake2b(what, digest_size=8).digest(), "big")
