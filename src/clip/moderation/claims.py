"""What a sample supports: exact bounds, the threshold that is likely to survive a second sample, and figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from clip.errors import ShapeError
from clip.intervals import wilson
from clip.moderation.fitted import Claim, Estimate, Figures

__all__ = [
    "LEVEL",
    "average_precision",
    "calibration_error",
    "choose",
    "claim",
    "figures",
    "least_trials",
    "lower_bound",
]

LEVEL = 0.95
"""Of one-sided bounds: how sure a claim is."""

_CAUTION = 0.9977
"""Of the bound by which a threshold is chosen: 1.645 + √2 · 0.84 deviations. So a threshold that just passes is claimed
from a second sample of the same size in four of five cases; with ``LEVEL`` it would be in one of two."""

_RESAMPLES = 1000
_AT_ONCE = 1 << 20
_MOST_TRIALS = 1_000_000

Measure = Literal["precision", "recall"]
Array = NDArray[np.float64]
Truth = NDArray[np.bool_]


def lower_bound(successes: int, trials: int, level: float = LEVEL) -> float:
    """The share that is not above the true one, with a confidence of ``level``, whatever the true one is (Clopper and
    Pearson 1934, one-sided). 0 without trials."""
    if not 0 <= successes <= trials:
        raise ShapeError(f"{successes} successes of {trials} trials; 0 to as many as there are trials are expected")
    if successes == 0:
        return 0.0
    low, high = 0.0, successes / trials
    for _ in range(60):
        middle = (low + high) / 2
        if _at_least(successes, trials, middle) < 1 - level:
            low = middle
        else:
            high = middle
    return low


def _at_least(successes: int, trials: int, share: float) -> float:
    """Probability of so many successes or more: the incomplete beta function I_share(successes, trials - successes + 1)
    by its continued fraction (Press et al. 2007, section 6.4)."""
    if share <= 0:
        return 0.0
    if share >= 1:
        return 1.0
    a, b = float(successes), float(trials - successes + 1)
    front = math.exp(
        math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(share) + b * math.log1p(-share)
    )
    if share < (a + 1) / (a + b + 2):
        return front * _fraction(a, b, share) / a
    return 1.0 - front * _fraction(b, a, 1 - share) / b


def _fraction(a: float, b: float, x: float) -> float:
    c, d = 1.0, 1 / (1 - (a + b) * x / (a + 1))  # Lentz's method; x is where nothing vanishes
    value = d
    for m in range(1, 10_000):
        for numerator in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / (1 + numerator * d)
            c = 1 + numerator / c
            value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return value


def least_trials(target: float, share: float = 1.0, level: float = LEVEL) -> int | None:
    """The fewest trials of which, with so large a share of successes, the bound reaches ``target``; None if none do.

    With share 1: how many hits without one false alarm. 59 for 0.95, 299 for 0.99.
    """
    if share <= target:
        return None

    def is_enough(trials: int) -> bool:
        """Whether ``lower_bound`` is not below the target, without looking for where it is."""
        successes = math.floor(share * trials + 1e-9)
        return successes > 0 and _at_least(successes, trials, target) <= 1 - level

    high = 1
    while not is_enough(high):
        high *= 2
        if high > _MOST_TRIALS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_enough(middle) else (middle, high)
    return high


def choose(logits: Array, belongs: Truth, measure: Measure, target: float) -> float:
    """The log-odds from which on pictures are hits: for precision as low as the target permits, for recall as high.

    The target counts as reached where a bound from these pictures reaches it with room to spare. Where they are too few
    for that: for precision the threshold with the best bound, for recall the highest at which the share itself reaches
    the target. Halfway between two pictures, so that neither decides by the last digit of its score.
    """
    order = np.argsort(-logits, kind="stable")
    sorted_logits, right = logits[order], np.cumsum(belongs[order])
    last = np.append(np.flatnonzero(np.diff(sorted_logits)), len(logits) - 1)  # of pictures with equal scores
    hits, right = last + 1, right[last]
    trials = hits if measure == "precision" else np.full_like(hits, int(belongs.sum()))
    bounds = np.array([_bound(int(k), int(n)) for k, n in zip(right, trials, strict=True)])
    reached = np.flatnonzero(bounds >= target)
    if measure == "precision":
        place = reached[-1] if len(reached) else len(bounds) - 1 - int(bounds[::-1].argmax())
    else:
        reached = reached if len(reached) else np.flatnonzero(right >= target * trials)
        place = reached[0]
    chosen = float(sorted_logits[last[place]])
    if place + 1 == len(last):
        return chosen - 1.0  # every picture is a hit; so is what scores a little less
    return (chosen + float(sorted_logits[last[place + 1]])) / 2


def _bound(successes: int, trials: int) -> float:
    return wilson(successes / trials, trials, level=2 * _CAUTION - 1).low


def claim(measure: Measure, target: float, found: Figures, labelled: int, level: float = LEVEL) -> Claim:
    """labelled: how many pictures were labelled for these figures, with those that were learned from."""
    trials = found.hits if measure == "precision" else found.yes
    bound = lower_bound(found.right, trials, level)
    needed = None
    if bound < target and trials and (least := least_trials(target, found.right / trials, level)):
        needed = math.ceil(labelled * least / trials)
    return Claim(
        measure=measure,
        target=target,
        level=level,
        bound=bound,
        trials=trials,
        successes=found.right,
        is_supported=bound >= target,
        needed=needed,
    )


def figures(scores: Array, belongs: Truth, threshold: float, *, seed: int) -> Figures:
    """Of held-out pictures, at least one of which belongs. scores: (N,) 0 to 1. seed: of the bootstrap."""
    hit = scores >= threshold
    yes, hits, right = int(belongs.sum()), int(hit.sum()), int((hit & belongs).sum())
    return Figures(
        pictures=len(belongs),
        yes=yes,
        hits=hits,
        right=right,
        precision=_share(right, hits) if hits else None,
        recall=_share(right, yes),
        f1=2 * right / (hits + yes),
        average_precision=_bootstrapped(average_precision, scores, belongs, seed),
        calibration_error=calibration_error(scores, belongs),
    )


def _share(successes: int, trials: int) -> Estimate:
    share = successes / trials
    return Estimate(value=share, low=(interval := wilson(share, trials)).low, high=interval.high)


def average_precision(scores: Array, belongs: Truth, weights: NDArray[np.floating] | None = None) -> Array:
    """Σ (Rᵢ - Rᵢ₋₁) Pᵢ over the distinct scores, descending. weights: (R, N), one result for each row; None: (1, N) of
    ones. At least one picture that belongs has a weight."""
    weights = np.ones((1, len(scores))) if weights is None else weights
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    weights = weights[:, order]
    hits = np.cumsum(weights, axis=1)[:, last]
    right = np.cumsum(weights * belongs[order], axis=1)[:, last]
    precision = right / np.maximum(hits, 1e-12)
    found: Array = (np.diff(right, axis=1, prepend=0) * precision).sum(axis=1) / right[:, -1]
    return found


def _bootstrapped(statistic: Callable[..., Array], scores: Array, belongs: Truth, seed: int) -> Estimate:
    """Percentile interval (Efron 1979) over samples with as many pictures of either kind as there are."""
    value = float(statistic(scores, belongs)[0])
    if value == 1.0:  # every sample is the same; of so many pictures that belong, none is misplaced
        return Estimate(value=1.0, low=wilson(1.0, int(belongs.sum())).low, high=1.0)
    generator = np.random.default_rng(seed)
    parts = [np.flatnonzero(belongs), np.flatnonzero(~belongs)]
    found: list[Array] = []
    rows = max(_AT_ONCE // len(scores), 1)
    for first in range(0, _RESAMPLES, rows):
        count = min(rows, _RESAMPLES - first)
        weights = np.empty((count, len(scores)))
        for part in parts:
            drawn = generator.integers(len(part), size=(count, len(part))) + len(part) * np.arange(count)[:, None]
            weights[:, part] = np.bincount(drawn.ravel(), minlength=drawn.size).reshape(drawn.shape)
        found.append(statistic(scores, belongs, weights))
    low, high = np.quantile(np.concatenate(found), [0.025, 0.975]).tolist()
    return Estimate(value=value, low=min(low, value), high=max(high, value))


def calibration_error(scores: Array, belongs: Truth) -> float:
    """Mean difference of score and share, over bins of equally many pictures: at most ten, at least twenty in each."""
    order = np.argsort(scores, kind="stable")
    bins = np.array_split(order, min(10, max(len(scores) // 20, 1)))
    return float(sum(abs((scores[part] - belongs[part]).sum()) for part in bins) / len(scores))
