"""Are the probabilities to be believed? Reliability, and a temperature that corrects them (Guo et al. 2017).

Temperature scaling divides all logits by one number, which changes no answer. It is fitted on one half of the pictures
and judged on the other, because on its own half it looks better than it is.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from clip.errors import ShapeError
from clip.evaluation import metrics
from clip.evaluation.intervals import bootstrap
from clip.evaluation.results import CalibrationResult, Measure

__all__ = ["MINIMUM_IMAGES", "TEMPERATURE_LIMITS", "calibrate", "fit_temperature"]

MINIMUM_IMAGES = 20
"""Fewer are not worth halving."""

TEMPERATURE_LIMITS = (0.01, 100.0)
"""Where every answer is right the best temperature is 0, and where the logits know nothing it has no end."""


def fit_temperature(logits: Tensor, labels: Tensor) -> float:
    """The temperature with the least negative log-likelihood, within ``TEMPERATURE_LIMITS``. logits: (N, K).

    The loss is convex in 1 / temperature, so its slope changes sign once: bisection finds that to the last digit, where
    a general optimiser would need a step size.
    """
    if not len(labels):
        raise ShapeError("there are no pictures to fit a temperature on")
    logits = logits.double()
    own = logits.gather(1, labels[:, None]).squeeze(1)

    def slope(inverse: float) -> float:  # of the loss, by the inverse temperature
        expected = ((logits * inverse).softmax(dim=1) * logits).sum(dim=1)
        return float((expected - own).mean())

    coldest, hottest = TEMPERATURE_LIMITS
    low, high = 1 / hottest, 1 / coldest
    if slope(low) >= 0:
        return hottest
    if slope(high) <= 0:
        return coldest
    while high / low > 1 + 1e-9:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / math.sqrt(low * high)


def calibrate(
    logits: Tensor,
    labels: Tensor,
    *,
    logit_scale: float | None = None,
    bins: int = 15,
    resamples: int = 1000,
    seed: int = 0,
) -> CalibrationResult | None:
    """Reliability before and after a temperature, which a random half of the pictures gives for the other half.

    logits: (N, K). logit_scale: what cosines were multiplied with to make the logits. None if there are fewer than
    ``MINIMUM_IMAGES``.
    """
    if len(labels) < MINIMUM_IMAGES:
        return None
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    fitted, held_out = order.chunk(2)
    temperature = fit_temperature(logits[fitted], labels[fitted])
    before, after = logits[held_out], logits[held_out] / temperature
    answers = labels[held_out]
    return CalibrationResult(
        temperature=temperature,
        logit_scale=None if logit_scale is None else logit_scale / temperature,
        fitted_on=len(fitted),
        before=metrics.reliability(before, answers, bins=bins),
        after=metrics.reliability(after, answers, bins=bins),
        measures_before=_measures(before, answers, bins, resamples, seed),
        measures_after=_measures(after, answers, bins, resamples, seed),
    )


def _measures(logits: Tensor, labels: Tensor, bins: int, resamples: int, seed: int) -> tuple[Measure, ...]:
    statistics = (
        ("ece", "expected calibration error", functools.partial(metrics.calibration_error, logits, labels, bins=bins)),
        ("nll", "negative log-likelihood", functools.partial(metrics.mean, metrics.log_losses(logits, labels))),
        ("brier", "Brier score", functools.partial(metrics.mean, metrics.brier_scores(logits, labels))),
    )
    measures = []
    for name, title, statistic in statistics:
        value = float(statistic())
        low, high = bootstrap(statistic, len(labels), resamples=resamples, seed=seed)
        if name == "ece":  # drawing again adds to it as drawing did: turned round, the interval is free of that
            low, high = max(min(2 * value - high, value), 0.0), max(2 * value - low, value)
        measures.append(
            Measure(
                name=name,
                title=title,
                value=value,
                low=low,
                high=high,
                n=len(labels),
                of="images",
                is_share=name == "ece",
                lower_is_better=True,
            )
        )
    return tuple(measures)
