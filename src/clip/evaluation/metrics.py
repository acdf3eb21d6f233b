"""Metrics as pure functions: scores and answers → numbers. No model, no files.

Most give one value for each item (image, query), so that intervals can be drawn from them; those that sum up a set take
``weights`` (..., N) and give (...), so that the resamples of a bootstrap are computed at once (see ``intervals``).

**Equal scores.** Where a correct candidate has the same score as a wrong one, a sort would decide by accident, and by
the order of the data: a model that answers the same for all would find everything, or nothing. Here each such item
counts with the probability that a random order of the equal ones would give: a constant model has exactly chance.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clip.errors import ShapeError
from clip.evaluation.results import Reliability

__all__ = [
    "Placing",
    "brier_scores",
    "calibration_error",
    "chance_in_top",
    "class_recall",
    "confusion_matrix",
    "expected_ranks",
    "in_top",
    "label_placings",
    "log_losses",
    "mean",
    "mean_per_class",
    "median",
    "placings",
    "reciprocal_ranks",
    "reliability",
]


class Placing(NamedTuple):
    """Where the best correct candidate of each of Q queries stands; three tensors (Q,) int64."""

    above: Tensor
    """Wrong candidates with a larger score."""
    tied: Tensor
    """Wrong candidates with the same score."""
    correct: Tensor
    """Correct candidates with that score, itself included: at least 1."""


def placings(scores: Tensor, correct: Tensor) -> Placing:
    """Of the best correct candidate in each row. scores: (Q, C); correct: (Q, C) bool, at least one in each row."""
    if scores.ndim != 2 or scores.shape != correct.shape:
        raise ShapeError(f"scores are {tuple(scores.shape)}, correct {tuple(correct.shape)}; both must be (Q, C)")
    _check_finite(scores)
    if not correct.any(dim=1).all():
        query = int((~correct.any(dim=1)).nonzero()[0])
        raise ShapeError(f"query {query} has no correct candidate; leave it out")
    best = scores.masked_fill(~correct, -torch.inf).amax(dim=1, keepdim=True)  # (Q, 1)
    same = scores == best
    return Placing(((scores > best) & ~correct).sum(dim=1), (same & ~correct).sum(dim=1), (same & correct).sum(dim=1))


def label_placings(scores: Tensor, labels: Tensor) -> Placing:
    """Of the true class in each row. scores: (N, K); labels: (N,) int64. As ``placings`` without a mask (N, K)."""
    _check_labels(scores, labels)
    _check_finite(scores)
    own = scores.gather(1, labels[:, None])
    return Placing((scores > own).sum(dim=1), (scores == own).sum(dim=1) - 1, torch.ones_like(labels))


def in_top(placing: Placing, k: int) -> Tensor:
    """(Q,) float64: the probability that a correct candidate is among the first ``k``; 0 or 1 where nothing is tied.

    For images and their labels the mean is the top-k accuracy; for queries with one or several correct candidates it
    is recall@k as papers on retrieval report it: a hit is any of the correct ones.
    """
    if k < 1:
        raise ShapeError(f"k is {k}; it must be at least 1")
    above, tied, correct = (part.double() for part in placing)
    free = k - above  # places left for the equal ones
    # All correct ones land behind the free places: hypergeometric, C(tied, free) / C(tied + correct, free).
    inside = free.clamp(min=0).minimum(tied)
    missed = torch.exp(
        torch.lgamma(tied + 1)
        - torch.lgamma(tied - inside + 1)
        - torch.lgamma(tied + correct + 1)
        + torch.lgamma(tied + correct - inside + 1)
    )
    return torch.where(free <= 0, 0.0, torch.where(free > tied, 1.0, 1 - missed))


def chance_in_top(candidates: int, correct: Tensor, k: int) -> float:
    """Mean of ``in_top`` for a model that orders ``candidates`` at random; ``correct``: (Q,), how many are right."""
    return float(in_top(Placing(torch.zeros_like(correct), candidates - correct, correct), k).mean())


def expected_ranks(placing: Placing) -> Tensor:
    """(Q,) float64: the rank of the best correct candidate, counted from 1; its mean over orders of equal scores."""
    above, tied, correct = (part.double() for part in placing)
    return above + (tied + correct + 1) / (correct + 1)


def reciprocal_ranks(placing: Placing) -> Tensor:
    """(Q,) float64: one over the rank of the best correct candidate, its mean over orders of equal scores."""
    above, tied, correct = placing
    result = 1 / (above.double() + 1)
    for a, t, c in {tuple(row) for row in torch.stack(placing, dim=1)[tied > 0].tolist()}:
        result[(above == a) & (tied == t) & (correct == c)] = _reciprocal_among_equals(a, t, c)
    return result


def _reciprocal_among_equals(above: int, tied: int, correct: int) -> float:
    """Mean of 1 / rank of the first correct one, over the orders of ``tied`` wrong and ``correct`` right candidates."""
    total, chance = 0.0, correct / (tied + correct)  # that the first correct one takes place 1 of the equal ones
    for place in range(1, tied + 2):
        total += chance / (above + place)
        if place <= tied:
            chance *= (tied - place + 1) / (tied + correct - place)
    return total


# Sums over a set ------------------------------------------------------------------------------------------------------


def mean(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean of ``values`` (N,)."""
    weights = _weights(values, weights)
    return (weights @ values.double()) / weights.sum(dim=-1)


def median(values: Tensor, weights: Tensor | None = None) -> Tensor:
    """The median of ``values`` (N,); of an even number the mean of the middle two."""
    weights = _weights(values, weights)
    ordered, order = values.double().sort()
    cumulated = weights[..., order].cumsum(dim=-1)
    half = cumulated[..., -1:] / 2
    last = len(values) - 1
    lower = torch.searchsorted(cumulated, half, right=False).clamp(max=last)
    upper = torch.searchsorted(cumulated, half, right=True).clamp(max=last)
    return ((ordered[lower] + ordered[upper]) / 2).squeeze(-1)


def mean_per_class(hits: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
    """The mean over classes of the share that is found: each class counts the same, however many pictures it has.

    hits: (N,), 1 for right and 0 for wrong; labels: (N,) int64. Classes without pictures are left out. Each picture
    counts one over the size of its class in the whole set, also in a resample: recomputing the sizes there would lose
    the classes that have one picture or two, and make the interval too narrow.
    """
    own = torch.bincount(labels).double()[labels]
    return mean(hits, _weights(hits, weights) / own)


def class_recall(hits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(K,) float64: the share of each class that is found; NaN for a class without pictures."""
    found = torch.zeros(classes, dtype=torch.float64).index_add(0, labels, hits.double())
    return found / torch.bincount(labels, minlength=classes)


def confusion_matrix(predicted: Tensor, labels: Tensor, classes: int) -> Tensor:
    """(K, K) int64: how many pictures of the class of the row were given the class of the column."""
    if predicted.shape != labels.shape:
        raise ShapeError(f"{len(predicted)} predictions for {len(labels)} labels")
    return torch.bincount(labels * classes + predicted, minlength=classes * classes).view(classes, classes)


# Probabilities --------------------------------------------------------------------------------------------------------


def log_losses(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) float64: minus the log-probability of the true class, in nats. logits: (N, K)."""
    _check_labels(logits, labels)
    return F.cross_entropy(logits.double(), labels, reduction="none")


def brier_scores(logits: Tensor, labels: Tensor) -> Tensor:
    """(N,) float64, from 0 to 2: squared distance of the probabilities from the truth (Brier 1950)."""
    _check_labels(logits, labels)
    probabilities = logits.double().softmax(dim=1)
    own = probabilities.gather(1, labels[:, None]).squeeze(1)
    return probabilities.square().sum(dim=1) - 2 * own + 1


def reliability(logits: Tensor, labels: Tensor, *, bins: int = 15) -> Reliability:
    """Accuracy against confidence in bins of equal width, (low, high] (Guo et al. 2017, section 2). logits: (N, K)."""
    hits, confidence, bin_of = _binned(logits, labels, bins)
    count = torch.bincount(bin_of, minlength=bins)
    empty = torch.zeros(bins, dtype=torch.float64)
    return Reliability(
        edges=_edges(bins),
        count=count,
        confidence=empty.index_add(0, bin_of, confidence) / count,
        accuracy=empty.index_add(0, bin_of, hits) / count,
    )


def calibration_error(logits: Tensor, labels: Tensor, weights: Tensor | None = None, *, bins: int = 15) -> Tensor:
    """Expected calibration error (Guo et al. 2017, equation 3): mean distance of accuracy from confidence in a bin.

    Even perfectly calibrated probabilities have some, the more the fewer pictures there are.
    """
    hits, confidence, bin_of = _binned(logits, labels, bins)
    weights = _weights(hits, weights)
    gaps = weights.new_zeros(*weights.shape[:-1], bins).index_add(-1, bin_of, weights * (hits - confidence))
    return gaps.abs().sum(dim=-1) / weights.sum(dim=-1)


def _binned(logits: Tensor, labels: Tensor, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    """Whether each picture is right, its confidence, and the bin of that; each (N,)."""
    if bins < 1:
        raise ShapeError(f"bins is {bins}; it must be at least 1")
    hits = in_top(label_placings(logits, labels), 1)
    confidence = logits.double().softmax(dim=1).amax(dim=1)
    return hits, confidence, torch.bucketize(confidence, _edges(bins)[1:-1])


def _edges(bins: int) -> Tensor:
    return torch.linspace(0, 1, bins + 1, dtype=torch.float64)


# Checks ---------------------------------------------------------------------------------------------------------------


def _weights(values: Tensor, weights: Tensor | None) -> Tensor:
    if values.ndim != 1 or not len(values):
        raise ShapeError(f"values have shape {tuple(values.shape)}; at least one is needed, in one dimension")
    return torch.ones(len(values), dtype=torch.float64) if weights is None else weights.double()


def _check_labels(scores: Tensor, labels: Tensor) -> None:
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ShapeError(
            f"scores are {tuple(scores.shape)}, labels {tuple(labels.shape)}; (N, K) and (N,) are expected"
        )
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < scores.shape[1]:
        raise ShapeError(f"labels run from {labels.min()} to {labels.max()}; there are {scores.shape[1]} classes")


def _check_finite(scores: Tensor) -> None:
    if not scores.isfinite().all():  # NaN compares as False with everything, and would rank first
        raise ShapeError("scores are not finite; leave out the items they come from")
