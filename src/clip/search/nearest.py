"""The nearest embeddings: exactly, by comparing with all; or nearly, by a file of faiss beside a large catalogue."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from clip.search.store import Neighbours

__all__ = ["nearest_in_chunks"]

_QUERIES = 256
"""Queries compared with a chunk at once: their cosines with 8192 rows are 8 MB."""

_MARGIN = 1e-5
"""More than two ways to add up 4096 products in float32 differ by, for vectors of unit norm."""


def nearest_in_chunks(
    chunks: Iterable[tuple[NDArray[np.int64], NDArray[np.float32]]], queries: NDArray[np.float32], k: int
) -> list[Neighbours]:
    """The k nearest to each query (Q, E), of ids (N,) and embeddings (N, E) that come in order of the ids.

    The same numbers to the last bit however the rows are cut into chunks and the queries into calls, so that equal
    embeddings have equal cosines and stand in order of their ids.
    """
    best = [Neighbours(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
    for ids, embeddings in chunks:
        for start in range(0, len(queries), _QUERIES):
            rough = queries[start : start + _QUERIES] @ embeddings.T  # (Q, N); fast, but for the last bits
            for number, cosines in enumerate(rough, start):
                least = -np.inf if len(best[number].ids) < k else best[number].cosines[-1]
                if len(cosines) > k:
                    least = max(least, np.partition(cosines, -k)[-k])
                chosen = np.flatnonzero(cosines >= least - _MARGIN)
                if len(chosen):
                    found = Neighbours(ids[chosen], cosines_of(embeddings[chosen], queries[number]))
                    best[number] = _merged(best[number], found, k)
    return best


def cosines_of(embeddings: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """(N,), each added up in the same order, as a matrix product's are not."""
    cosines: NDArray[np.float32] = np.einsum("ne,e->n", embeddings, query)
    return cosines


def _merged(first: Neighbours, second: Neighbours, k: int) -> Neighbours:
    """The k best of both; ids of the second are greater."""
    ids, cosines = np.concatenate((first.ids, second.ids)), np.concatenate((first.cosines, second.cosines))
    order = np.argsort(-cosines, kind="stable")[:k]
    return Neighbours(ids[order], cosines[order])
