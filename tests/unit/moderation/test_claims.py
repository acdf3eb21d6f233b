from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import beta
from sklearn.metrics import average_precision_score, precision_recall_fscore_support

from clip.errors import ShapeError
from clip.intervals import wilson
from clip.moderation.claims import (
    average_precision,
    calibration_error,
    choose,
    claim,
    figures,
    least_trials,
    lower_bound,
)
from clip.moderation.logistic import expit


def test_the_bound_is_that_of_clopper_and_pearson() -> None:
    for trials in (1, 2, 7, 59, 400, 20_000):
        for successes in {1, trials // 3, trials // 2, trials - 1, trials} - {0, -1}:
            expected = beta.ppf(0.05, successes, trials - successes + 1)
            assert lower_bound(successes, trials) == pytest.approx(expected, abs=1e-12)
    assert lower_bound(0, 10) == lower_bound(0, 0) == 0.0
    with pytest.raises(ShapeError, match="11 successes of 10 trials"):
        lower_bound(11, 10)


def test_how_many_are_needed() -> None:
    assert least_trials(0.95) == 59 and lower_bound(59, 59) >= 0.95 > lower_bound(58, 58)
    assert least_trials(0.99) == 299
    needed = least_trials(0.9, 0.95)
    assert needed == 129 and lower_bound(122, 129) >= 0.9  # 0.95 of 129 are 122.55; nobody is right by halves
    assert least_trials(0.9, 0.9) is None and least_trials(0.95, 0.95 + 1e-9) is None


def sample(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    belongs = random.random(n) < 0.4
    return random.normal(3 * belongs, 1).round(1), belongs


def test_figures_are_those_of_scikit_learn() -> None:
    logits, belongs = sample()
    found = figures(expit(logits), belongs, float(expit(1.5)), seed=0)
    precision, recall, f1, _ = precision_recall_fscore_support(belongs, logits >= 1.5, average="binary")
    assert found.precision is not None
    assert (found.precision.value, found.recall.value, found.f1) == pytest.approx((precision, recall, f1))
    assert found.average_precision.value == pytest.approx(average_precision_score(belongs, logits))
    assert (found.precision.low, found.precision.high) == wilson(precision, found.hits)
    assert (found.recall.low, found.recall.high) == wilson(recall, found.yes)
    assert found.average_precision.low < found.average_precision.value < found.average_precision.high
    assert found == figures(expit(logits), belongs, float(expit(1.5)), seed=0)


def test_no_hit_has_no_precision() -> None:
    logits, belongs = sample()
    found = figures(expit(logits), belongs, 1.0, seed=0)
    assert (found.hits, found.precision, found.recall.value, found.f1) == (0, None, 0.0, 0.0)
    assert found.precision_at(0.1) is None
    made = claim("precision", 0.9, found, 800)
    assert (made.bound, made.is_supported, made.needed) == (0.0, False, None)


def test_precision_depends_on_how_common_a_category_is() -> None:
    logits, belongs = sample(4000)
    found = figures(expit(logits), belongs, float(expit(1.5)), seed=0)
    assert found.precision is not None
    same = found.precision_at(found.yes / found.pictures)
    rare = found.precision_at(0.01)
    assert same is not None and rare is not None
    assert same.value == pytest.approx(found.precision.value)
    hits, alarms = found.right / found.yes, (found.hits - found.right) / (found.pictures - found.yes)
    assert rare.value == pytest.approx(0.01 * hits / (0.01 * hits + 0.99 * alarms))
    assert rare.low < rare.value < rare.high < same.low


def test_average_precision_with_ties_and_weights() -> None:
    scores, belongs = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, False, True, True])
    weights = np.array([[1.0, 1.0, 1.0, 1.0], [2.0, 0.0, 3.0, 1.0], [0.0, 5.0, 0.0, 1.0]])
    expected = [average_precision_score(belongs, scores, sample_weight=row) for row in weights]
    np.testing.assert_allclose(average_precision(scores, belongs, weights), expected)


def test_the_interval_of_perfect_ranking_is_not_empty() -> None:
    found = figures(np.linspace(0, 1, 60), np.arange(60) >= 40, 0.5, seed=0)
    assert found.average_precision.value == 1.0
    assert 0.8 < found.average_precision.low < 0.9


def test_calibration_error() -> None:
    random = np.random.default_rng(0)
    scores = random.random(20_000)
    belongs = random.random(20_000) < scores
    assert calibration_error(scores, belongs) < 0.015
    assert calibration_error(scores**3, belongs) == pytest.approx(1 / 2 - 1 / 4, abs=0.02)


def test_the_lowest_threshold_for_precision_and_the_highest_for_recall() -> None:
    logits, belongs = sample(4000)
    for measure, target in (("precision", 0.9), ("recall", 0.9)):
        threshold = choose(logits, belongs, measure, target)  # type: ignore[arg-type]
        hit = logits >= threshold
        reached = (belongs[hit] if measure == "precision" else hit[belongs]).mean()
        assert target < reached < target + 0.04  # above, so that a second sample reaches it too, and not far


def test_a_threshold_lies_between_two_pictures() -> None:
    belongs = np.arange(40) >= 20
    assert choose(np.arange(40.0), belongs, "precision", 0.9) == 19.5
    assert choose(np.arange(40.0), belongs, "recall", 0.9) == 21.5  # 18 of 20; too few for a bound
    assert choose(np.arange(40.0), belongs, "recall", 0.6) == 20.5  # 19 of 20 have a bound of 0.65, 18 of 0.59
    assert choose(np.zeros(40), belongs, "recall", 0.9) == -1.0  # all alike: all are hits


def test_few_pictures_choose_the_best_that_they_can() -> None:
    belongs = np.arange(24) >= 14
    logits = np.where(belongs, 1.0, 0.0) + np.arange(24) / 100
    assert (logits >= choose(logits, belongs, "precision", 0.99)).sum() == 10
    logits[13] = 5.0  # one false alarm above all: no threshold reaches the target
    assert (logits >= choose(logits, belongs, "precision", 0.99)).sum() == 11
