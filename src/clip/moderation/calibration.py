"""From a number that is larger for matches to the evidence that it is: one curve for a model, fitted on what is known.

Evidence is the logarithm of a likelihood ratio, in nats: how much likelier the number is for a match than for another.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Curve", "fit_curve"]

_STEPS, _PENALTY, _LEAST_SLOPE = 30, 1e-3, 0.1


class Curve(NamedTuple):
    """Evidence = slope · z + intercept."""

    slope: float
    intercept: float
    mean: float
    """Evidence of matches: its mean and its deviation."""
    deviation: float

    def quantile(self, share: float) -> float:
        """The evidence below which so many of the matches are, as if it were normally distributed."""
        return self.mean + self.deviation * NormalDist().inv_cdf(share)


def fit_curve(z: NDArray[np.float64], is_match: NDArray[np.bool_]) -> Curve:
    """Logistic regression; its targets are not quite 0 and 1, so that the few matches of a model that tells them all
    apart do not make the curve a step (Platt 1999, section 2.2). z, is_match: (N,)."""
    matches = int(is_match.sum())
    others = is_match.size - matches
    target = np.where(is_match, (matches + 1) / (matches + 2), 1 / (others + 2))
    design = np.stack([z, np.ones_like(z)])
    weights = np.array([1.0, math.log((matches + 1) / (others + 1))])
    for _ in range(_STEPS):  # Newton's method on a convex loss; the small penalty is for z that are all the same
        probability = np.exp(-np.logaddexp(0, -(weights @ design)))
        gradient = design @ (probability - target) + _PENALTY * weights
        hessian = (design * (probability * (1 - probability))) @ design.T + _PENALTY * np.eye(2)
        weights -= np.linalg.solve(hessian, gradient)
    slope, intercept = weights.tolist()
    if not slope >= _LEAST_SLOPE:  # the model does not tell matches apart: next to no evidence, but the order
        slope, intercept = _LEAST_SLOPE, 0.0
    else:
        intercept -= math.log(matches / others)  # less what is the share of matches among what is known
    found = slope * z[is_match] + intercept
    return Curve(slope, intercept, float(found.mean()), float(found.std()))
