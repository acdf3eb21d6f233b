"""Which pictures of an index are the same, or nearly: the hits of a query as groups, a whole index as clusters.

Two pictures belong together if their files are equal byte for byte, or if their signatures are alike
(``clip.data.likeness``: compressed again, resized, a little brighter; no crops). Embeddings do not decide: they say
what a picture is of. With pocket, a rising chart is nearer to a falling one (0.974) than a quarter of drawings are to
their own JPEG, and every model has cosines of its own. So pictures that came as embeddings, without their files, are
never called alike.
"""

from __future__ import annotations

import dataclasses
import itertools
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip.errors import DataError
from clip.search.store import Condition, Row, Store

__all__ = ["SIGNATURE_BYTES", "Cluster", "clusters", "groups"]

_DIGEST_BYTES, _GRADIENT_BYTES, _COLOUR_BYTES = 16, 8, 48
SIGNATURE_BYTES = _GRADIENT_BYTES + _COLOUR_BYTES

_AT_ONCE = 4096  # rows that are read from a store in one call
# As many as likeness allows. Where no two of a few hits are as near, it need not be imported, with Pillow: that takes
# longer than the comparison.
_NEAR_BITS = 6
_FEW = 256


class Cluster(NamedTuple):
    """Two or more pictures that are the same, or nearly."""

    keep: Row
    """The one with the most pixels; of several, the oldest."""
    others: tuple[Row, ...]
    """In the same order."""

    @property
    def is_same_file(self) -> bool:
        """Whether all are equal byte for byte; otherwise some only look alike."""
        return self.keep.digest is not None and all(row.digest == self.keep.digest for row in self.others)

    @property
    def freed_bytes(self) -> int:
        """Of the files of the others, as far as their sizes are known."""
        return sum(row.size_bytes or 0 for row in self.others)


def groups(rows: Sequence[Row]) -> list[list[int]]:
    """Places of rows that belong together; each group, and the first of each, in the order of the rows."""
    remembered = _Remembered()
    for row in rows:
        remembered.add(row)
    found: dict[int, list[int]] = {}
    for place, first in enumerate(remembered.labels(only_if_near=True).tolist()):
        found.setdefault(first, []).append(place)
    return list(found.values())


def clusters(
    store: Store,
    conditions: Sequence[Condition] = (),
    *,
    same_file: bool = False,
    on_progress: Callable[[int], object] = lambda count: None,
) -> Iterator[Cluster]:
    """All clusters among the rows that fulfil all conditions, the largest first.

    The rows are compared at once, with some 260 bytes of memory for each; those of a cluster are read again when its
    turn comes.
    same_file: only of files that are equal byte for byte.
    on_progress: told of so many more rows that were read.
    """
    remembered, ids = _Remembered(), array("q")
    for batch in store.scan(conditions, batch_size=_AT_ONCE):
        ids.extend(batch.ids.tolist())
        for row in batch.rows:
            remembered.add(dataclasses.replace(row, signature=None) if same_file else row)
        on_progress(len(batch.rows))
    labels = remembered.labels()
    by_label = np.argsort(labels, kind="stable")
    firsts, starts, counts = np.unique(labels[by_label], return_index=True, return_counts=True)
    several = np.flatnonzero(counts > 1)
    several = several[np.lexsort((firsts[several], -counts[several]))]
    numbers = np.frombuffer(ids, np.int64)
    wanted = (numbers[by_label[starts[i] : starts[i] + counts[i]]] for i in several.tolist())
    return _clusters(store, wanted)


def _clusters(store: Store, wanted: Iterator[NDArray[np.int64]]) -> Iterator[Cluster]:
    for rows in _read(store, wanted):
        if len(rows) > 1:  # others may have removed some meanwhile
            keep, *others = sorted(rows, key=_worth)
            yield Cluster(keep, tuple(others))


def _worth(row: Row) -> tuple[int, float, str]:
    """Sorts the one to keep to the front."""
    age = float("inf") if row.modified_ns is None else row.modified_ns
    return -(row.width or 0) * (row.height or 0), age, row.path


def _read(store: Store, wanted: Iterator[NDArray[np.int64]]) -> Iterator[list[Row]]:
    """The rows of each of some lists of ids; short lists are read together."""
    waiting: list[NDArray[np.int64]] = []
    for ids in itertools.chain(wanted, (None,)):
        if waiting and (ids is None or sum(map(len, waiting)) + len(ids) > _AT_ONCE):
            rows: dict[int, Row] = {}
            together = np.concatenate(waiting)
            for start in range(0, len(together), _AT_ONCE):
                found = store.find(together[start : start + _AT_ONCE])
                rows.update(zip(found.ids.tolist(), found.rows, strict=True))
            for each in waiting:
                yield [rows[number] for number in each.tolist() if number in rows]
            waiting = []
        if ids is not None:
            waiting.append(ids)


class _Remembered:
    """Digests and signatures of rows, each in one block of memory."""

    def __init__(self) -> None:
        self._count = 0
        self._with_digest, self._digests = array("q"), bytearray()
        self._with_signature, self._gradients, self._colours = array("q"), bytearray(), bytearray()

    def add(self, row: Row) -> None:
        if row.digest is not None:
            _check(row.digest, _DIGEST_BYTES, "digest", row)
            self._with_digest.append(self._count)
            self._digests += row.digest
        if row.signature is not None:
            _check(row.signature, SIGNATURE_BYTES, "signature", row)
            self._with_signature.append(self._count)
            self._gradients += row.signature[:_GRADIENT_BYTES]
            self._colours += row.signature[_GRADIENT_BYTES:]
        self._count += 1

    def labels(self, *, only_if_near: bool = False) -> NDArray[np.int64]:
        """(N,): for each row the first of those that it belongs together with.

        only_if_near: of a few rows, look at all pairs of gradients first.
        """
        labels = np.arange(self._count)
        places = np.frombuffer(self._with_digest, np.int64)
        labels[places] = places[_first_of_equal(*np.frombuffer(self._digests, np.uint64).reshape(-1, 2).T)]
        rows = np.frombuffer(self._with_signature, np.int64)
        gradients = np.frombuffer(self._gradients, ">u8").astype(np.uint64)
        if only_if_near and len(rows) <= _FEW and not _any_near(gradients):
            return labels
        from clip.data.likeness import components

        alike = _first_of_equal(labels[rows])  # among those with a signature
        components(alike, gradients, np.frombuffer(self._colours, np.uint8).reshape(-1, _COLOUR_BYTES))
        # A row of equal files may have no signature and yet be the first of all that are now together.
        first = np.full(len(rows), self._count)
        np.minimum.at(first, alike, labels[rows])
        joined = np.arange(self._count)
        joined[labels[rows]] = first[alike]
        return joined[labels]


def _check(value: bytes, length: int, what: str, row: Row) -> None:
    if len(value) != length:
        raise DataError(f"{row.path}: its {what} has {len(value)} bytes instead of {length}; index it again")


def _first_of_equal(*columns: NDArray[np.int64] | NDArray[np.uint64]) -> NDArray[np.int64]:
    """(N,): for each place the first with the same value in all columns."""
    order = np.lexsort(columns)
    is_new = np.ones(len(order), np.bool_)
    is_new[1:] = np.any([column[order[1:]] != column[order[:-1]] for column in columns], axis=0)
    first = np.empty(len(order), np.int64)
    first[order] = order[np.flatnonzero(is_new)][np.cumsum(is_new) - 1]
    return first


def _any_near(gradients: NDArray[np.uint64]) -> bool:
    different = gradients[:, None] ^ gradients
    bits = np.unpackbits(different[..., None].view(np.uint8), axis=-1).sum(axis=-1)
    return bool((np.triu(bits <= _NEAR_BITS, k=1)).any())
