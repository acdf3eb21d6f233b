"""From how a picture fares against neutral ones to evidence, and from evidence to a probability.

Evidence is the logarithm of a likelihood ratio, in nats: how much likelier something is to be seen in a picture of a
category than in another. It becomes a probability once it is said how common such pictures are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip.moderation.logistic import calibrate, expit

__all__ = ["SHARE", "Curve", "curve_of"]

Array = NDArray[np.float64]

SHARE = 0.05
"""How many of all pictures belong to a category, before anything is seen: probabilities are for such a collection. The
evidence holds for any."""

_LEAST_SLOPE, _LEAST_DEVIATION = 0.1, 1e-6


class Curve(NamedTuple):
    """Of a model: evidence = slope · z + intercept, where z is in deviations from what neutral pictures give."""

    slope: float
    intercept: float
    mean: float
    """Of the evidence for pictures that belong."""
    deviation: float

    def evidence(self, z: Array) -> Array:
        """In nats."""
        return self.slope * z + self.intercept

    def probability(self, evidence: float) -> float:
        """That a picture belongs, where a share of ``SHARE`` does."""
        return float(expit(evidence + math.log(SHARE / (1 - SHARE))))

    def quantile(self, share: float) -> float:
        """The evidence that so many of the pictures that belong stay below, as if it were normally distributed."""
        return self.mean + self.deviation * NormalDist().inv_cdf(share)


def curve_of(trials: Sequence[Array] | Array, is_match: NDArray[np.bool_]) -> Curve:
    """What a contest is worth, from T trials on the same N pictures: each trial (N,) is one thing that is looked for,
    and ``is_match`` (T, N) says which pictures show it. Those are compared with the others of their trial.
    """
    z = np.stack([_in_deviations(trial, row) for trial, row in zip(trials, is_match, strict=True)])
    slope, intercept = calibrate(z.ravel(), is_match.ravel())
    if slope >= _LEAST_SLOPE:
        matches = int(is_match.sum())
        intercept -= math.log(matches / (is_match.size - matches))  # less what their share alone says
    else:  # the model does not tell matches apart: next to no evidence, but the order of the pictures
        slope, intercept = _LEAST_SLOPE, 0.0
    found = slope * z[is_match] + intercept
    return Curve(slope, intercept, float(found.mean()), float(found.std()))


def _in_deviations(values: Array, is_match: NDArray[np.bool_]) -> Array:
    others = values[~is_match]
    deviations: Array = (values - others.mean()) / max(float(others.std()), _LEAST_DEVIATION)
    return deviations
