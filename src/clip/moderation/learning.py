"""One category: what the pictures of one half teach, judged by those of the other."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip.moderation.claims import choose, claim, figures
from clip.moderation.fitted import CategoryFit, Figures, HeadTrial
from clip.moderation.logistic import calibrate, expit, log_losses, logistic_regression
from clip.moderation.measuring import Sample
from clip.moderation.policy import Category

__all__ = ["LEAST_FOR_HEAD", "LEAST_OF_EACH", "Heads", "Learned", "fit_category"]

Heads = bool | Literal["auto"]

LEAST_OF_EACH = 20
"""Pictures that belong, and as many that do not: with fewer nothing is fitted for a category."""

LEAST_FOR_HEAD = 60
"""The same for a head: five folds of the half that is learned from then hold six of each."""

_FOLDS = 5
_PENALTIES = (100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.1)
"""Of heads, from the strongest, with which almost nothing but the contrast counts."""
_Z = 1.6449  # one-sided 95 %

Array = NDArray[np.float64]
Truth = NDArray[np.bool_]


class Learned(NamedTuple):
    """One category, and which of its pictures judged it: None where nothing was learned."""

    fit: CategoryFit
    held_out: NDArray[np.intp] | None


class _Method(NamedTuple):
    """Log-odds = slope · contrast + weights · embedding + intercept."""

    slope: float
    intercept: float
    weights: NDArray[np.float32] | None
    logits: Array
    """(n,) of the pictures learned from; of a head, as if each had not been among them."""


def fit_category(category: Category, sample: Sample, *, seed: int = 0, heads: Heads = "auto") -> Learned:
    """What pictures teach about one category. Nothing, if they are too few or the model does not tell them apart."""
    contrasts, embeddings, belongs, groups = sample
    yes, no = int(belongs.sum()), int((~belongs).sum())
    target = category.target

    def nothing(reason: str) -> Learned:
        return Learned(CategoryFit(name=category.name, method="policy", reason=reason, yes=yes, no=no), None)

    if min(yes, no) < LEAST_OF_EACH:
        return nothing(f"a fit needs at least {LEAST_OF_EACH} pictures that belong and as many that do not")
    generator = np.random.default_rng([seed, zlib.crc32(category.name.encode())])
    half = _parts(belongs, groups, 2, generator)
    learned, held_out = np.flatnonzero(half == 0), np.flatnonzero(half == 1)
    c, e, y = contrasts[learned], embeddings[learned].astype(np.float64), belongs[learned]
    slope, intercept = calibrate(c, y)
    plain = _Method(slope, intercept, None, slope * c + intercept)
    method, trial, reason = plain, None, "heads were not asked for"
    if heads and min(yes, no) < LEAST_FOR_HEAD:
        reason = f"a head needs at least {LEAST_FOR_HEAD} pictures that belong and as many that do not"
    elif heads:
        trial, head = _try_head(c, e, y, _parts(y, groups[learned], _FOLDS, generator), is_wanted=heads is True)
        is_better = "better" if trial.gain_bound > 0 else "no better"
        reason = f"a head predicts {is_better} than the contrast by more than chance"
        method = head if trial.is_used else plain
    if method.slope == 0 and method.weights is None:
        return nothing("pictures that belong do not score higher than others")

    def judged(method: _Method) -> tuple[float, Array, Figures]:
        """Threshold, scores of the other half, and figures."""
        if target is not None:
            threshold = float(expit(choose(method.logits, y, target.measure, target.value)))
        else:
            assert category.threshold is not None
            threshold = category.threshold
        logits = method.slope * contrasts[held_out] + method.intercept
        if method.weights is not None:
            logits += embeddings[held_out].astype(np.float64) @ method.weights.astype(np.float64)
        scores = expit(logits)
        return threshold, scores, figures(scores, belongs[held_out], threshold, seed=seed)

    threshold, scores, found = judged(method)
    order = np.argsort(-scores, kind="stable")
    fitted = CategoryFit(
        name=category.name,
        method="contrast" if method.weights is None else "head",
        reason=reason,
        yes=yes,
        no=no,
        slope=method.slope,
        intercept=method.intercept,
        weights=method.weights,
        threshold=threshold,
        origin="chosen" if target else "stated",
        figures=found,
        contrast=None if method is plain or plain.slope == 0 else judged(plain)[2],
        claim=claim(target.measure, target.value, found, yes + no) if target else None,
        trial=trial,
        scores=tuple(scores[order].tolist()),
        belongs=tuple(belongs[held_out][order].tolist()),
    )
    return Learned(fitted, held_out)


def _parts(belongs: Truth, groups: NDArray[np.int64], count: int, generator: np.random.Generator) -> NDArray[np.intp]:
    """(N,) one of ``count`` parts for each, at random; equally many groups of each kind of labels in each."""
    _, which = np.unique(groups, return_inverse=True)
    has_yes, has_no = np.bincount(which, belongs) > 0, np.bincount(which, ~belongs) > 0
    kind = has_yes + 2 * has_no
    part = np.empty(len(kind), np.intp)
    first = 0
    for each in (1, 2, 3):
        members = generator.permutation(np.flatnonzero(kind == each))
        part[members] = (first + np.arange(len(members))) % count
        first += len(members)  # so that what is left over does not always go to the same part
    return part[which]


def _try_head(c: Array, e: Array, y: Truth, folds: NDArray[np.intp], *, is_wanted: bool) -> tuple[HeadTrial, _Method]:
    """A head on top of the contrast, log-odds = slope · contrast + intercept + weights · embedding, and its trial.

    The first two numbers are those of the contrast alone: the stronger the penalty, the less a head changes. Each fold
    is predicted by a head that has not seen it, whose penalty was chosen without it too: by the fold that follows it.
    is_wanted: use it even where it is not better.
    """
    targets = y.astype(np.float64)

    def trained(rows: Truth, penalties: Sequence[float]) -> Iterator[Array]:
        """The log-odds of all pictures: without a head, then for each penalty, the strongest first."""
        slope, intercept = calibrate(c[rows], y[rows])
        base = slope * c + intercept
        yield base
        line = None
        for penalty in penalties:
            line = logistic_regression(e[rows], targets[rows], penalty=penalty, offset=base[rows], start=line)
            yield base + e @ line.weights + line.intercept

    plain, predicted = np.empty_like(c), np.empty_like(c)
    losses = np.zeros(len(_PENALTIES))
    for fold in range(_FOLDS):
        test, judge = folds == fold, folds == (fold + 1) % _FOLDS
        _, *paths = trained(~test & ~judge, _PENALTIES)
        of_fold = np.array([log_losses(logits[judge], targets[judge]).sum() for logits in paths])
        losses += of_fold
        without, with_head = trained(~test, (_PENALTIES[int(of_fold.argmin())],))
        plain[test], predicted[test] = without[test], with_head[test]
    gains = log_losses(plain, targets) - log_losses(predicted, targets)
    gain = float(gains.mean())
    bound = gain - _Z * float(gains.std(ddof=1)) / len(gains) ** 0.5

    penalty = _PENALTIES[int(losses.argmin())]
    slope, intercept = calibrate(c, y)
    line = logistic_regression(e, targets, penalty=penalty, offset=slope * c + intercept)
    # A head is surer of the pictures it was trained on; how sure it may be is told by those it had not seen.
    s, t = calibrate(predicted, y)
    weights = (s * line.weights).astype(np.float32)
    head = _Method(s * slope, s * (intercept + line.intercept) + t, weights, s * predicted + t)
    is_used = (is_wanted or bound > 0) and bool(weights.any())
    return HeadTrial(penalty=penalty, gain=gain, gain_bound=bound, is_used=is_used), head
