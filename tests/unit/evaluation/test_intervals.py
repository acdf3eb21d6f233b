"""Intervals: published values, how often they hold the truth, clusters, and the difference of two models."""

from __future__ import annotations

import functools

import pytest
import torch

from clip.errors import ConfigError, ShapeError
from clip.evaluation import metrics
from clip.evaluation.intervals import bootstrap, measured_share, paired_difference
from clip.intervals import wilson


def test_wilson_is_as_published() -> None:
    # Newcombe 1998, table I, method 3
    for right, n, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(right / n, n) == pytest.approx((low, high), abs=5e-5)
    assert wilson(1.0, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)


def test_wilson_holds_its_share_and_narrows() -> None:
    for right in range(11):
        low, high = wilson(right / 10, 10)
        assert 0 <= low <= right / 10 <= high <= 1
        assert high - low > 0.2
    assert wilson(0.5, 10_000)[1] - 0.5 == pytest.approx(1.96 * 0.5 / 100, rel=0.01)
    with pytest.raises(ShapeError, match="at least one"):
        wilson(0.5, 0)


def test_the_bootstrap_of_a_mean_is_about_its_standard_error() -> None:
    values = torch.randn(400, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    low, high = bootstrap(functools.partial(metrics.mean, values), 400, resamples=4000)
    standard_error = values.std().item() / 20
    assert (high - low) / 2 == pytest.approx(1.96 * standard_error, rel=0.06)
    assert low < values.mean() < high


def test_the_same_seed_gives_the_same_interval_and_another_another() -> None:
    statistic = functools.partial(metrics.mean, torch.rand(50))
    assert bootstrap(statistic, 50, seed=3) == bootstrap(statistic, 50, seed=3)
    assert bootstrap(statistic, 50, seed=3) != bootstrap(statistic, 50, seed=4)


def test_resamples_in_parts_are_those_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    statistic = functools.partial(metrics.median, torch.rand(50))
    whole = bootstrap(statistic, 50, resamples=200)
    monkeypatch.setattr("clip.evaluation.intervals._ELEMENTS_AT_ONCE", 50 * 7)
    assert bootstrap(statistic, 50, resamples=200) == whole


def test_items_of_a_cluster_are_no_news_to_each_other() -> None:
    values = (torch.rand(40, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    copied, clusters = values.repeat_interleave(5), torch.arange(40).repeat_interleave(5)
    alone = bootstrap(functools.partial(metrics.mean, values), 40)
    assert bootstrap(functools.partial(metrics.mean, copied), 200, clusters=clusters) == pytest.approx(alone)
    low, high = bootstrap(functools.partial(metrics.mean, copied), 200)
    assert high - low < 0.6 * (alone[1] - alone[0])


@pytest.mark.parametrize("chance", [0.1, 0.5, 0.97])
def test_intervals_hold_the_truth_about_as_often_as_they_say(chance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    held = 0
    for trial in range(200):
        hits = (torch.rand(60, generator=generator) < chance).double()
        measure = measured_share("top1", "", hits, of="images", resamples=100, seed=trial)
        held += measure.low <= chance <= measure.high
    assert held >= 180


def test_hits_have_wilsons_interval_and_other_means_the_bootstraps() -> None:
    hits = torch.tensor([1.0, 0, 1, 1])
    measure = measured_share("top1", "top-1 accuracy", hits, of="images", chance=0.1)
    assert (measure.value, measure.n, measure.interval, measure.chance) == (0.75, 4, "wilson", 0.1)
    assert (measure.low, measure.high) == wilson(0.75, 4)
    assert measured_share("mrr", "", torch.tensor([1.0, 0.5, 0.2]), of="images").interval == "bootstrap"
    assert measured_share("top1", "", hits, of="captions", clusters=torch.tensor([0, 0, 1, 1])).interval == "bootstrap"


def test_all_right_is_no_certainty() -> None:
    measure = measured_share("top1", "", torch.ones(16), of="captions", clusters=torch.arange(4).repeat_interleave(4))
    assert (measure.value, measure.high) == (1, 1)
    assert measure.low == wilson(1, 4).low  # four images, not sixteen captions
    measure = measured_share(
        "mean_per_class",
        "",
        torch.zeros(9),
        of="images",
        statistic=functools.partial(metrics.mean_per_class, labels=torch.arange(9)),
    )
    assert (measure.low, measure.high) == wilson(0, 9)


def test_the_mean_per_class_of_lone_pictures_is_as_uncertain_as_their_mean() -> None:
    hits = (torch.arange(40) % 4 > 0).double()
    per_class = functools.partial(metrics.mean_per_class, labels=torch.arange(40))
    measure = measured_share("mean_per_class", "", hits, of="images", statistic=per_class)
    assert measure.value == 0.75
    assert (measure.low, measure.high) == pytest.approx(wilson(0.75, 40), abs=0.03)


def test_a_small_difference_shows_when_the_same_items_are_compared() -> None:
    generator = torch.Generator().manual_seed(0)
    hits = (torch.rand(500, generator=generator) < 0.5).double()
    better = hits.clone()
    better[(hits == 0).nonzero()[:15, 0]] = 1
    value, (low, high) = paired_difference(better, hits)
    assert value == pytest.approx(15 / 500)
    assert 0 < low < value < high
    backwards, (other_low, other_high) = paired_difference(hits, better)
    assert (backwards, other_low, other_high) == pytest.approx((-value, -high, -low))
    one, other = wilson(better.mean().item(), 500), wilson(hits.mean().item(), 500)
    assert one.low < other.high  # apart, they would have shown nothing


def test_models_that_never_differ_here_may_differ_elsewhere() -> None:
    hits = torch.tensor([1.0, 0, 1, 1, 0])
    value, (low, high) = paired_difference(hits, hits)
    assert value == 0
    assert (low, high) == pytest.approx((-wilson(0, 5).high, wilson(0, 5).high))


def test_what_cannot_be_drawn_is_refused() -> None:
    statistic = functools.partial(metrics.mean, torch.rand(5))
    with pytest.raises(ShapeError, match="no items"):
        bootstrap(statistic, 0)
    with pytest.raises(ConfigError, match="resamples is 0"):
        bootstrap(statistic, 5, resamples=0)
    with pytest.raises(ShapeError, match="clusters"):
        bootstrap(statistic, 5, clusters=torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ShapeError, match="the same items"):
        paired_difference(torch.zeros(2), torch.zeros(3))
