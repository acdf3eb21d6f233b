"""Which records each step reads: a pure function of the seed and the position, on every rank and after every restart.

Training walks an endless sequence of positions. Position ``epoch * length + i`` holds record ``permutation(i)`` of that
epoch, where the permutation is not a list but a function (a small cipher), so that nothing grows with the data and any
position can be asked for at once: resuming costs nothing, and ranks need not speak to each other.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterable
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from clip.data.records import Source
from clip.errors import ConfigError

__all__ = [
    "WINDOW_RECORDS",
    "Draw",
    "Order",
    "Span",
    "generator",
    "part_of_rank",
    "permuted",
    "span",
    "steps_per_epoch",
]

WINDOW_RECORDS = 100_000
"""Records that are shuffled among each other where a source lies in shards: ten of the usual 10,000."""

_MAX_BLOCK = 1024
"""The longest block within which a mixture keeps its quotas; weights are rounded to this fraction of the whole."""


@runtime_checkable
class Sharded(Protocol):
    """A source whose neighbouring records lie in one file, so that reading nearby ones together is faster."""

    shard_sizes: tuple[int, ...]
    """Records of each shard, in the order of their indices. It may also have ``window_records``: how many to mix."""


@runtime_checkable
class Weighted(Protocol):
    """A source that is made of others, each to be drawn with a share of its own; see ``sources.Mixture``."""

    parts: tuple[Source, ...]
    weights: tuple[float, ...] | None


class Draw(NamedTuple):
    """Records at some positions."""

    rows: NDArray[np.int64]
    """Indices in the source."""
    passes: NDArray[np.int64]
    """How often each record was drawn before: its epoch, except in a mixture, where small parts come round earlier."""


class Span(NamedTuple):
    """The positions of one step, over all ranks."""

    epoch: int
    first: int
    last: int
    """The one after the last."""


# --- Steps and ranks --------------------------------------------------------------------------------------------------


def steps_per_epoch(length: int, global_batch_size: int) -> int:
    """Batches of an epoch; the last of them may be smaller than the others."""
    return -(-length // global_batch_size)


def span(step: int, length: int, global_batch_size: int) -> Span:
    """The positions that a step consumes. No batch mixes two epochs: the last of an epoch has what is left."""
    epoch, batch = divmod(step, steps_per_epoch(length, global_batch_size))
    first = batch * global_batch_size
    last = min(first + global_batch_size, length)
    return Span(epoch, epoch * length + first, epoch * length + last)


def part_of_rank(first: int, last: int, rank: int, world_size: int) -> tuple[int, int]:
    """The contiguous part of positions first … last - 1 that is a rank's. Sizes differ by one at most; one may be 0."""
    size = last - first
    return first + size * rank // world_size, first + size * (rank + 1) // world_size


# --- Randomness that anybody can compute again ------------------------------------------------------------------------


def generator(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The source of all randomness about one record in one epoch: its caption and its augmentation."""
    return np.random.Generator(np.random.Philox(key=[_key(seed, epoch), index]))


def permuted(positions: NDArray[np.int64], length: int, key: int | NDArray[np.uint64]) -> NDArray[np.int64]:
    """Where a random permutation of ``range(length)``, chosen by ``key``, takes each of ``positions``.

    key: one for all positions, or one for each of them.
    A Feistel cipher on the pairs (left, right) of a rectangle just above ``length`` (Black and Rogaway 2002, "Ciphers
    with arbitrary finite domains", method 3): each round adds a hash of one half to the other, which can be undone, so
    no two positions meet. What falls outside ``range(length)`` is enciphered again until it falls inside.
    """
    result = positions.astype(np.uint64)
    keys = np.broadcast_to(np.asarray(key, dtype=np.uint64), result.shape)
    width = np.uint64(max(math.isqrt(max(length, 1) - 1) + 1, 1))
    height = np.uint64(-(-length // int(width)))
    outside = np.ones(result.shape, dtype=bool)
    while outside.any():
        left, right = np.divmod(result[outside], width)
        chosen = keys[outside]
        for number in range(0, _ROUNDS, 2):
            left = (left + _mixed(right, _mixed(chosen, number)) % height) % height
            right = (right + _mixed(left, _mixed(chosen, number + 1)) % width) % width
        result[outside] = left * width + right
        outside = result >= length
    return result.astype(np.int64)


_ROUNDS = 8


def _mixed(numbers: NDArray[np.uint64], key: int | NDArray[np.uint64]) -> NDArray[np.uint64]:
    """64 bits that depend on all of both, by the finaliser of splitmix64 (Steele, Lea and Flood 2014)."""
    state = (numbers ^ np.asarray(key, dtype=np.uint64)) + np.uint64(0x9E3779B97F4A7C15)
    state = (state ^ state >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ state >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return state ^ state >> np.uint64(31)


def _key(*numbers: int) -> int:
    """64 bits that depend on all the numbers and on their order."""
    state = np.zeros(1, dtype=np.uint64)  # an array, for numpy warns when the product of two scalars wraps round
    for number in numbers:
        state = _mixed(state, number & (1 << 64) - 1)
    return int(state[0])


# --- The order of a source --------------------------------------------------------------------------------------------


class Order:
    """The endless sequence of a source's records.

    Each epoch holds each record once. Where the source lies in shards, their order is permuted, and records are
    permuted within windows of several shards, so that a machine reads few files at a time.

    A mixture with weights is different: each block of positions holds an exact quota of every part, and each part walks
    its own endless sequence, shuffled anew each time round. Its epoch is as long as its parts together.

    shuffle: False walks the records in the order of the source; a mixture keeps its quotas.
    """

    def __init__(self, source: Source, *, seed: int, shuffle: bool = True) -> None:
        self.length = len(source)
        self._sequence: _Plain | _Mixed
        if isinstance(source, Weighted) and source.weights is not None:
            self._sequence = _Mixed(
                [_Plain(part, _key(seed, i), shuffle) for i, part in enumerate(source.parts)],
                source.weights,
                _key(seed),
                shuffle,
            )
        else:
            self._sequence = _Plain(source, _key(seed), shuffle)

    def draw(self, first: int, last: int) -> Draw:
        """The records at positions first … last - 1."""
        return self._sequence.draw(np.arange(first, last, dtype=np.int64))


class _Plain:
    """Each record once an epoch."""

    def __init__(self, source: Source, key: int, shuffle: bool) -> None:
        self.length = len(source)
        if not self.length:
            raise ConfigError(f"{source.name} has no records; there is nothing to draw from")
        self._key = key
        self._shuffle = shuffle
        self._shard_sizes = np.array(source.shard_sizes if isinstance(source, Sharded) else (), dtype=np.int64)
        self._shard_starts = np.cumsum(self._shard_sizes) - self._shard_sizes
        self._window = int(getattr(source, "window_records", WINDOW_RECORDS))
        self._known_layout: tuple[int, _Layout] | None = None

    def draw(self, positions: NDArray[np.int64]) -> Draw:
        epochs, places = np.divmod(positions, self.length)
        if not self._shuffle:
            return Draw(places, epochs)
        rows = np.empty_like(places)
        for epoch in np.unique(epochs).tolist():
            chosen = epochs == epoch
            rows[chosen] = self._shuffled(places[chosen], _key(self._key, epoch))
        return Draw(rows, epochs)

    def _shuffled(self, places: NDArray[np.int64], key: int) -> NDArray[np.int64]:
        if len(self._shard_sizes) < 2:
            return permuted(places, self.length, key)
        shards, ends, bounds = self._layout(key)
        rows = np.empty_like(places)
        for start, stop in _around(bounds, places):
            chosen = (places >= start) & (places < stop)
            moved = start + permuted(places[chosen] - start, stop - start, _key(key, 1 + start))
            which = np.searchsorted(ends, moved, side="right")
            rows[chosen] = self._shard_starts[shards[which]] + moved - (ends[which] - self._shard_sizes[shards[which]])
        return rows

    def _layout(self, key: int) -> _Layout:
        """The shards of an epoch; kept, for the next step asks for the same."""
        if self._known_layout is None or self._known_layout[0] != key:
            count = len(self._shard_sizes)
            shards = permuted(np.arange(count), count, _key(key, 0))
            ends = np.cumsum(self._shard_sizes[shards])
            self._known_layout = key, _Layout(shards, ends, _windows(ends.tolist(), self._window))
        return self._known_layout[1]


class _Layout(NamedTuple):
    shards: NDArray[np.int64]
    """In their order."""
    ends: NDArray[np.int64]
    """Where each of them ends."""
    bounds: list[int]
    """Where windows of several begin; and the end of the last."""


def _windows(ends: list[int], size: int) -> list[int]:
    """Bounds of the windows: whole shards, as many as reach ``size`` records."""
    bounds = [0]
    while bounds[-1] < ends[-1]:
        bounds.append(ends[min(bisect.bisect_left(ends, bounds[-1] + size), len(ends) - 1)])
    return bounds


def _around(bounds: list[int], places: NDArray[np.int64]) -> Iterable[tuple[int, int]]:
    """Start and stop of the windows that hold any of ``places``."""
    if not len(places):
        return ()
    first = bisect.bisect_right(bounds, int(places.min())) - 1
    last = bisect.bisect_right(bounds, int(places.max()))
    return itertools.pairwise(bounds[first : last + 1])


class _Mixed:
    """Parts by quotas; see ``Order``."""

    def __init__(self, parts: list[_Plain], weights: tuple[float, ...], key: int, shuffle: bool) -> None:
        self._parts = parts
        self._quotas = quotas(weights)
        self._block = int(self._quotas.sum())
        self._starts = np.cumsum([0] + [part.length for part in parts])
        self._key = key

    def draw(self, positions: NDArray[np.int64]) -> Draw:
        blocks, slots = np.divmod(positions, self._block)
        slots = permuted(slots, self._block, _mixed(blocks.astype(np.uint64), self._key))
        ends = np.cumsum(self._quotas)
        which = np.searchsorted(ends, slots, side="right")
        counts = blocks * self._quotas[which] + slots - (ends - self._quotas)[which]  # how many of its part came before
        rows, passes = np.empty_like(positions), np.empty_like(positions)
        for i, part in enumerate(self._parts):
            chosen = which == i
            drawn = part.draw(counts[chosen])
            rows[chosen], passes[chosen] = drawn.rows + self._starts[i], drawn.passes
        return Draw(rows, passes)


def quotas(weights: tuple[float, ...]) -> NDArray[np.int64]:
    """How many of each part a block holds: the shortest block that has the weights exactly, or else 1,024 positions
    shared out by largest remainder, at least one to each part."""
    shares = np.array(weights) / np.sum(weights)
    for size in range(1, _MAX_BLOCK + 1):
        whole = np.rint(shares * size)
        if whole.min() >= 1 and np.abs(whole - shares * size).max() < 1e-9 * size:
            return np.asarray(whole, dtype=np.int64)
    counts = np.maximum(np.floor(shares * _MAX_BLOCK), 1).astype(np.int64)
    while (missing := _MAX_BLOCK - int(counts.sum())) != 0:
        remainders = shares * _MAX_BLOCK - counts
        remainders[counts <= 1] = np.where(missing < 0, np.inf, remainders[counts <= 1])
        counts[remainders.argmax() if missing > 0 else remainders.argmin()] += np.sign(missing)
    return np.asarray(counts, dtype=np.int64)
