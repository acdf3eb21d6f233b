"""No record is lost or repeated, whatever the sizes, the number of ranks and the point of a restart."""

from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from clip.data.order import Order, part_of_rank, quotas, span, steps_per_epoch
from clip.data.records import Sample
from clip.data.sources import Mixture


class Shards:
    class_names: tuple[str, ...] = ()
    name = "shards"

    def __init__(self, shard_sizes: tuple[int, ...], window_records: int) -> None:
        self.shard_sizes = shard_sizes
        self.window_records = window_records

    def __len__(self) -> int:
        return sum(self.shard_sizes)

    def __getitem__(self, index: int) -> Sample:
        raise NotImplementedError


sources = st.builds(
    Shards,
    st.lists(st.integers(0, 40), min_size=1, max_size=6).filter(any).map(tuple),
    st.integers(1, 100),
)


def _rows(order: Order, step: int, batch_size: int, world_size: int) -> list[int]:
    """What all ranks together read in a step."""
    whole = span(step, order.length, batch_size)
    rows: list[int] = []
    for rank in range(world_size):
        rows += order.draw(*part_of_rank(whole.first, whole.last, rank, world_size)).rows.tolist()
    return rows


@settings(max_examples=60, deadline=None)
@given(sources, st.integers(1, 50), st.integers(0, 2**63), st.integers(1, 5), st.integers(0, 3))
def test_an_epoch_holds_each_record_once(
    source: Shards, batch_size: int, seed: int, world_size: int, epoch: int
) -> None:
    order = Order(source, seed=seed)
    steps = steps_per_epoch(len(source), batch_size)
    batches = [_rows(order, epoch * steps + step, batch_size, world_size) for step in range(steps)]
    assert sorted(itertools.chain(*batches)) == list(range(len(source)))
    assert [len(batch) for batch in batches[:-1]] == [batch_size] * (steps - 1)
    # The ranks change nothing, and neither does an order made anew in the middle, as a restart makes it.
    middle = epoch * steps + steps // 2
    assert _rows(Order(source, seed=seed), middle, batch_size, 1) == batches[steps // 2]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0.01, 100)), min_size=1, max_size=4),
    st.integers(0, 2**31),
    st.integers(1, 37),
)
def test_parts_of_a_mixture_come_round_evenly(parts: list[tuple[int, float]], seed: int, piece: int) -> None:
    lengths = [length for length, _ in parts]
    mixture = Mixture(tuple(Shards((length,), 10) for length in lengths), tuple(weight for _, weight in parts))
    block = int(quotas(tuple(weight for _, weight in parts)).sum())
    drawn = Order(mixture, seed=seed).draw(0, 2048 // block * block)  # within a block the rounds are shuffled, too
    starts = np.cumsum([0, *lengths])
    for first, last in itertools.pairwise(starts):
        rows = drawn.rows[(drawn.rows >= first) & (drawn.rows < last)]
        counts = np.bincount(rows - first, minlength=last - first)
        assert counts.max() - counts.min() <= 1
    again = Order(mixture, seed=seed)
    pieces = [again.draw(i, min(i + piece, 200)).rows.tolist() for i in range(0, 200, piece)]
    assert list(itertools.chain(*pieces)) == drawn.rows[:200].tolist()
