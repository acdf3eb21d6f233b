"""Each record once an epoch, for any number of ranks, after any restart, and shuffled well."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from clip.data.order import Order, generator, part_of_rank, permuted, quotas, span, steps_per_epoch
from clip.data.records import Sample
from clip.data.sources import Mixture
from clip.errors import ConfigError


class Numbered:
    """A source of which only the length matters."""

    class_names: tuple[str, ...] = ()

    def __init__(self, length: int, shard_sizes: tuple[int, ...] = (), window_records: int = 100_000) -> None:
        self.name = "numbered"
        self._length = length
        if shard_sizes:
            self.shard_sizes = shard_sizes
            self.window_records = window_records

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        return Sample(key=str(index), image=b"", captions=(f"record {index}",))


def test_steps_do_not_mix_epochs_and_the_last_batch_has_what_is_left() -> None:
    assert steps_per_epoch(10, 4) == 3
    assert [span(step, 10, 4) for step in range(4)] == [(0, 0, 4), (0, 4, 8), (0, 8, 10), (1, 10, 14)]


def test_a_batch_larger_than_the_data_is_an_epoch() -> None:
    assert [span(step, 3, 8) for step in range(2)] == [(0, 0, 3), (1, 3, 6)]


def test_parts_of_ranks_are_contiguous_almost_equal_and_may_be_empty() -> None:
    assert [part_of_rank(100, 110, rank, 4) for rank in range(4)] == [(100, 102), (102, 105), (105, 107), (107, 110)]
    assert [part_of_rank(5, 6, rank, 3) for rank in range(3)] == [(5, 5), (5, 5), (5, 6)]


@pytest.mark.parametrize("length", [1, 2, 3, 7, 12, 100, 1001])
def test_a_permutation_holds_each_number_once(length: int) -> None:
    for key in range(20):
        assert sorted(permuted(np.arange(length), length, key).tolist()) == list(range(length))


def test_a_permutation_can_be_asked_for_single_positions_of_a_huge_range() -> None:
    length = 10**12
    positions = np.array([0, 1, 2, length - 1])
    moved = permuted(positions, length, 7)
    assert len(set(moved.tolist())) == 4 and moved.min() >= 0 and moved.max() < length
    assert permuted(positions[2:3], length, 7) == moved[2]


def test_a_permutation_with_a_key_for_each_position() -> None:
    keys = np.array([3, 4, 3, 4], dtype=np.uint64)
    expected = [int(permuted(np.array([i]), 50, int(key))[0]) for i, key in enumerate(keys)]
    assert permuted(np.arange(4), 50, keys).tolist() == expected


def test_permutations_are_as_random_as_chance() -> None:
    """Each number at each place equally often, and neighbours no more often together than by chance (5 sigma)."""
    length, trials = 20, 4000
    drawn = np.stack([permuted(np.arange(length), length, key * 7919) for key in range(trials)])
    counts = np.stack([np.bincount(drawn[:, place], minlength=length) for place in range(length)])
    chi_square = ((counts - trials / length) ** 2 / (trials / length)).sum()
    freedom = (length - 1) ** 2
    assert abs(chi_square - freedom) < 5 * np.sqrt(2 * freedom)
    follows = (np.diff(drawn, axis=1) == 1).sum()
    expected = trials * (length - 1) ** 2 / (length * (length - 1))
    assert abs(follows - expected) < 5 * np.sqrt(expected)


def test_the_order_is_fixed_for_ever() -> None:
    """A checkpoint of last year must go on with the same records: these numbers are a format."""
    assert Order(Numbered(10), seed=0).draw(0, 12).rows.tolist() == [3, 0, 5, 8, 6, 9, 4, 2, 7, 1, 9, 2]
    assert generator(0, 1, 2).random(2).tolist() == [0.06500481902423372, 0.13133874433882609]


def test_epochs_and_seeds_differ() -> None:
    one, other = Order(Numbered(50), seed=1), Order(Numbered(50), seed=2)
    first = one.draw(0, 50)
    assert first.passes.tolist() == [0] * 50
    assert one.draw(50, 100).rows.tolist() != first.rows.tolist() != other.draw(0, 50).rows.tolist()
    assert one.draw(49, 51).passes.tolist() == [0, 1]


def test_without_shuffling_records_come_in_the_order_of_the_source() -> None:
    assert Order(Numbered(5), seed=3, shuffle=False).draw(3, 8).rows.tolist() == [3, 4, 0, 1, 2]


def test_shards_are_walked_in_windows() -> None:
    source = Numbered(60, (10,) * 6, window_records=20)
    order = Order(source, seed=0)
    for epoch in range(3):
        rows = order.draw(60 * epoch, 60 * (epoch + 1)).rows
        assert sorted(rows.tolist()) == list(range(60))
        for start in range(0, 60, 20):
            assert len(set((rows[start : start + 20] // 10).tolist())) == 2  # two shards at a time
            assert len(set((rows[start : start + 5] // 10).tolist())) == 2 or epoch  # mixed, not one after the other
    assert (order.draw(0, 20).rows // 10).tolist() != (order.draw(60, 80).rows // 10).tolist()


def test_uneven_and_empty_shards_lose_nothing() -> None:
    sizes = (3, 0, 17, 1, 0, 9)
    order = Order(Numbered(30, sizes, window_records=4), seed=5)
    assert sorted(order.draw(30, 60).rows.tolist()) == list(range(30))
    pieces = [order.draw(first, min(first + 7, 60)).rows.tolist() for first in range(30, 60, 7)]
    assert list(itertools.chain(*pieces)) == order.draw(30, 60).rows.tolist()


def test_a_mixture_without_weights_holds_each_record_once() -> None:
    mixture = Mixture((Numbered(7), Numbered(20, (5, 15)), Numbered(3)))
    assert mixture.shard_sizes == (7, 5, 15, 3)
    assert sorted(Order(mixture, seed=0).draw(0, 30).rows.tolist()) == list(range(30))


def test_a_mixture_keeps_its_quotas_in_each_block_and_its_parts_come_round() -> None:
    mixture = Mixture((Numbered(90), Numbered(10)), (1.0, 3.0))
    order = Order(mixture, seed=0)
    assert order.length == 100
    drawn = order.draw(0, 400)
    is_first = drawn.rows < 90
    assert (is_first.reshape(-1, 4).sum(1) == 1).all()
    small = drawn.rows[~is_first].reshape(-1, 30)  # ten blocks, three rounds
    assert (np.stack([np.bincount(rows - 90, minlength=10) for rows in small]) == 3).all()
    assert np.sort(drawn.passes[~is_first]).tolist() == [i // 10 for i in range(300)]
    assert drawn.passes[is_first].max() == 1 and (drawn.passes[is_first] == 1).sum() == 10


def test_quotas() -> None:
    assert quotas((1.0, 3.0)).tolist() == [1, 3]
    assert quotas((0.5, 0.25, 0.25)).tolist() == [2, 1, 1]
    odd = quotas((np.pi, 1.0, 1e-9))
    assert odd.sum() == 1024 and odd[2] == 1 and abs(odd[0] / odd[1] - np.pi) < 0.02
    assert quotas((1e-9,) * 3 + (1.0,)).tolist() == [1, 1, 1, 1021]


def test_an_empty_source_is_refused() -> None:
    with pytest.raises(ConfigError, match="numbered has no records"):
        Order(Numbered(0), seed=0)


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -2.0), (1.0, float("nan")), (1.0, float("inf"))])
def test_weights_that_cannot_be(weights: tuple[float, ...]) -> None:
    with pytest.raises(ConfigError, match="weight"):
        Mixture((Numbered(1), Numbered(1)), weights)


def test_weights_do_not_nest() -> None:
    inner = Mixture((Numbered(1), Numbered(1)), (1, 2))
    with pytest.raises(ConfigError, match="inside another"):
        Mixture((inner, Numbered(1)), (1, 1))
    with pytest.raises(ConfigError, match="no sources"):
        Mixture(())
