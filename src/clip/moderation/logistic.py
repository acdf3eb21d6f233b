"""Logistic regression: the two numbers that calibrate a score, and linear heads on embeddings."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["Line", "calibrate", "expit", "log_losses", "logistic_regression", "smoothed"]

Array = NDArray[np.float64]

_STEPS = 200
_HALVINGS = 40
_TOLERANCE = 1e-9
"""Of the gradient, as a share of the number of items."""


class Line(NamedTuple):
    """Log-odds = weights · features + intercept."""

    weights: Array
    """(D,)"""
    intercept: float


def expit(logits: Any) -> Array:
    """Log-odds → probabilities, without overflow."""
    probabilities: Array = np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))
    return probabilities


def log_losses(logits: Array, targets: Array) -> Array:
    """In nats, of each item; targets from 0 to 1."""
    losses: Array = np.logaddexp(0.0, logits) - targets * logits
    return losses


def logistic_regression(
    features: Array, targets: Array, *, penalty: float, offset: Array | float = 0.0, start: Line | None = None
) -> Line:
    """The line of least Σ log loss + penalty / 2 · |weights|²; the intercept is free.

    features: (N, D). targets: (N,) from 0 to 1. penalty: above 0; scikit-learn's C is its inverse.
    offset: (N,) log-odds that are there already. start: a line near by, for less work.

    Newton's method, whose systems are solved by conjugate gradients only as exactly as the step is worth (Nocedal and
    Wright 2006, algorithm 7.1): products with the features alone, so that 768 columns cost no matrix of 768 × 768.
    """
    middle = features.mean(axis=0)  # embeddings have a large mean in common, which the intercept takes
    x = features - middle
    weights = np.zeros(x.shape[1]) if start is None else start.weights.copy()
    intercept = 0.0 if start is None else start.intercept + float(middle @ start.weights)

    def loss(logits: Array, w: Array) -> float:
        return float(log_losses(logits, targets).sum() + penalty / 2 * (w @ w))

    logits = x @ weights + intercept + offset
    now = loss(logits, weights)
    for _ in range(_STEPS):
        p = expit(logits)
        gradient = np.append(x.T @ (p - targets) + penalty * weights, (p - targets).sum())
        size = float(np.linalg.norm(gradient))
        if size <= _TOLERANCE * len(targets):
            break
        # Where all is certain the curvature vanishes in floating point; the floor keeps the intercept's step finite.
        curvature = np.maximum(p * (1 - p), 1e-12)
        step = _conjugate_gradients(x, curvature, penalty, -gradient, min(0.5, (size / len(targets)) ** 0.5) * size)
        along = x @ step[:-1] + step[-1]
        slope = float(gradient @ step)
        share = 1.0
        for _ in range(_HALVINGS):
            then = loss(logits + share * along, weights + share * step[:-1])
            if then <= now + 1e-4 * share * slope:
                break
            share /= 2
        else:
            break  # no better place can be told from this one
        weights = weights + share * step[:-1]
        intercept += share * float(step[-1])
        logits, now = logits + share * along, then
    return Line(weights, intercept - float(middle @ weights))


def _conjugate_gradients(x: Array, curvature: Array, penalty: float, wanted: Array, tolerance: float) -> Array:
    """The step whose product with the Hessian is ``wanted`` up to ``tolerance``. (D + 1,), the intercept last."""
    # Preconditioned by the diagonal: the intercept's entry is much larger than those of the weights.
    diagonal = np.append((x * x).T @ curvature + penalty, curvature.sum())
    step = np.zeros_like(wanted)
    residual = wanted.copy()
    scaled = residual / diagonal
    direction = scaled.copy()
    product = float(residual @ scaled)
    for _ in range(2 * len(wanted)):
        along = curvature * (x @ direction[:-1] + direction[-1])
        image = np.append(x.T @ along + penalty * direction[:-1], along.sum())
        length = product / float(direction @ image)
        step += length * direction
        residual -= length * image
        if float(np.linalg.norm(residual)) <= tolerance:
            break
        scaled = residual / diagonal
        before, product = product, float(residual @ scaled)
        direction = scaled + product / before * direction
    return step


def smoothed(belongs: NDArray[np.bool_]) -> Array:
    """Targets that are not quite 0 and 1, so that a score which separates all pictures gets no infinite slope (Platt
    1999, section 2.2)."""
    yes = int(belongs.sum())
    targets: Array = np.where(belongs, (yes + 1) / (yes + 2), 1 / (len(belongs) - yes + 2))
    return targets


def calibrate(values: Array, belongs: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and intercept with which values become log-odds (Platt 1999). Slope 0 where larger values belong no more
    often; the intercept then gives the share that belongs."""
    deviation = float(values.std())
    if deviation == 0:
        line = Line(np.zeros(1), 0.0)
    else:  # in deviations, so that the penalty, which is next to nothing, means the same for every model
        line = logistic_regression((values / deviation)[:, None], smoothed(belongs), penalty=1e-6)
    if not line.weights[0] > 0:
        share = float(smoothed(belongs).mean())
        return 0.0, float(np.log(share / (1 - share)))
    return float(line.weights[0]) / deviation, line.intercept
