"""Logistic regression on image embeddings: what a few labels, or many, can get out of them.

As in the paper (Radford et al. 2021, section 3.2 and appendix A.3): L-BFGS for at most 1,000 iterations, the strength
of the L2 penalty found on a validation split by a logarithmic sweep that narrows in on the peak, then a fit on training
and validation pictures together. Two differences: the features are the unit-norm embeddings of the joint space, the
same that everything else here uses, where the paper takes the width of the tower before the projection; and unless the
data come with a split of their own, a fifth of the training pictures, drawn class by class, is the validation split.
Test pictures choose nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from clip.errors import ConfigError, DataError
from clip.evaluation import metrics
from clip.evaluation.classification import classification_of
from clip.evaluation.datasets import Classes, EmbeddedSource
from clip.evaluation.intervals import bootstrap
from clip.evaluation.results import (
    FewShotPoint,
    FewShotResult,
    LinearProbeResult,
    Measure,
    Predictions,
    SweepPoint,
)

__all__ = [
    "FEW_SHOT_L2",
    "SHOTS",
    "LinearClassifier",
    "Sweep",
    "check_taught",
    "evaluate_few_shot",
    "evaluate_linear_probe",
    "fit",
    "split",
    "sweep",
    "untaught",
]

SHOTS = (1, 2, 4, 8, 16)

FEW_SHOT_L2 = 0.1
"""Not chosen anew for each number of shots: there is nothing to choose it on. As the precision of a Gaussian prior on
the weights, it does not depend on how many pictures there are. Chosen once, on training pictures of Fashion-MNIST that
an early pocket had embedded: of eight values from 0.001 to 10, 0.1 and 0.3 were best for 2, 4, 8 and 16 a class."""

VALIDATION_SHARE = 0.2
_DECADES = (-6.0, -4.0, -2.0, 0.0, 2.0, 4.0, 6.0)
_FINEST = 0.125
"""Steps of the sweep, as powers of ten: seven at first, in the end eight a decade."""


class LinearClassifier(NamedTuple):
    """Logits are ``features @ weight.T + bias``."""

    weight: Tensor
    """(K, E) float64."""
    bias: Tensor
    """(K,) float64."""

    def logits(self, features: Tensor) -> Tensor:
        """(N, K) float32."""
        return (features.double() @ self.weight.T + self.bias).float()


def fit(
    features: Tensor,
    labels: Tensor,
    classes: int,
    *,
    l2: float,
    start: LinearClassifier | None = None,
    max_iterations: int = 1000,
    tolerance: float = 1e-6,
) -> LinearClassifier:
    """Multinomial logistic regression, penalised with ``l2 / 2`` times the squared norm of the weights.

    features: (N, E); labels: (N,) int64. The loss is summed over pictures and the bias is free, as in scikit-learn,
    whose ``C`` is ``1 / l2``. tolerance: of the largest component of the gradient of the mean loss. In float64, without
    which the line search stalls before weak penalties have their say.
    """
    if l2 < 0 or not math.isfinite(l2):
        raise ConfigError(f"l2 is {l2}; it must be 0 or more")
    # The bias is free, so moving all features changes no answer; but embeddings lie in a narrow cone, and about their
    # mean the problem is far better conditioned.
    centre = features.double().mean(dim=0)
    x = features.double() - centre
    weight = torch.zeros(classes, x.shape[1], dtype=torch.float64) if start is None else start.weight.clone()
    bias = torch.zeros(classes, dtype=torch.float64) if start is None else start.bias + start.weight @ centre
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=1e-3 * tolerance,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def loss_and_gradient() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(x @ weight.T + bias, labels) + l2 / (2 * len(x)) * weight.square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(loss_and_gradient)  # type: ignore[no-untyped-call]
    return LinearClassifier(weight.detach(), (bias - weight @ centre).detach())


class Sweep(NamedTuple):
    """What a search for the penalty found."""

    l2: float
    points: tuple[SweepPoint, ...]
    """Ascending in ``l2``."""


def sweep(features: Tensor, labels: Tensor, classes: int, is_validation: Tensor) -> Sweep:
    """The penalty with the best validation accuracy among those that the paper's search visits.

    Seven from 1e-6 to 1e6, then both neighbours of the best at half the distance, until there are eight a decade.
    Among equals the one with the smaller validation loss is the better: many penalties give the same answers, and the
    strongest of them give almost the same probability to all classes.
    """
    train, truth = features[~is_validation], labels[is_validation]
    fitted: dict[float, tuple[float, float, LinearClassifier]] = {}  # exponent → accuracy, minus loss, classifier

    def visit(exponent: float) -> None:
        if exponent in fitted or not _DECADES[0] <= exponent <= _DECADES[-1]:
            return
        near = min(fitted, key=lambda other: abs(other - exponent), default=None)
        start = None if near is None else fitted[near][2]
        classifier = fit(train, labels[~is_validation], classes, l2=10**exponent, start=start)
        logits = classifier.logits(features[is_validation])
        accuracy = metrics.in_top(metrics.label_placings(logits, truth), 1).mean()
        fitted[exponent] = (float(accuracy), -float(metrics.log_losses(logits, truth).mean()), classifier)

    def peak() -> float:
        return max(fitted, key=lambda exponent: fitted[exponent][:2])

    for exponent in reversed(_DECADES):  # strong penalties are quick to fit, and a good start for weaker ones
        visit(exponent)
    step = (_DECADES[1] - _DECADES[0]) / 2
    while step >= _FINEST:
        best = peak()
        visit(best + step)
        visit(best - step)
        step /= 2
    points = tuple(SweepPoint(l2=10**exponent, accuracy=fitted[exponent][0]) for exponent in sorted(fitted))
    return Sweep(10 ** peak(), points)


def split(labels: Tensor, share: float, *, seed: int = 0) -> Tensor:
    """(N,) bool: a random ``share`` of each class; of a class with one picture none, with more at least one."""
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    generator = torch.Generator().manual_seed(seed)
    for label in sorted(set(labels.tolist())):
        own = (labels == label).nonzero().squeeze(1)
        count = min(max(round(share * len(own)), 1), len(own) - 1)
        chosen[own[torch.randperm(len(own), generator=generator)[:count]]] = True
    return chosen


def evaluate_linear_probe(
    train: EmbeddedSource,
    train_classes: Classes,
    test: EmbeddedSource,
    test_classes: Classes,
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> LinearProbeResult:
    """Trains on one source and measures on the other. Raises DataError where a class cannot be learned."""
    task = _task(train, train_classes, test, test_classes)
    is_validation = split(task.labels, VALIDATION_SHARE, seed=seed)
    if not is_validation.any():
        raise DataError(f"{train.name}: has one picture of each class, and none to choose a penalty on; use few-shot")
    l2, points = sweep(task.features, task.labels, len(task.names), is_validation)
    classifier = fit(task.features, task.labels, len(task.names), l2=l2)
    predictions = Predictions(
        class_names=task.names,
        keys=test.keys,
        rows=test.rows,
        labels=task.test_labels,
        logits=classifier.logits(test.embeddings),
    )
    return LinearProbeResult(
        classification=classification_of(predictions, resamples=resamples, seed=seed),
        l2=l2,
        sweep=points,
        train_images=len(task.labels),
        validation_images=int(is_validation.sum()),
    )


def evaluate_few_shot(
    train: EmbeddedSource,
    train_classes: Classes,
    test: EmbeddedSource,
    test_classes: Classes,
    *,
    shots: Sequence[int] = SHOTS,
    draws: int = 5,
    zero_shot: Measure | None = None,
    l2: float = FEW_SHOT_L2,
    resamples: int = 1000,
    seed: int = 0,
) -> FewShotResult:
    """Accuracy of logistic regression on 1, 2, 4, 8 and 16 pictures a class, each drawn ``draws`` times.

    A draw of more shots contains that of fewer. Numbers of shots that some class does not have are left out.
    """
    if draws < 1 or not shots or min(shots) < 1:
        raise ConfigError(f"draws is {draws} and shots {tuple(shots)}; both must be at least 1")
    task = _task(train, train_classes, test, test_classes)
    classes = len(task.names)
    members = [(task.labels == label).nonzero().squeeze(1) for label in range(classes)]
    orders = []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(seed + draw)
        orders.append([rows[torch.randperm(len(rows), generator=generator)] for rows in members])
    points = []
    for count in sorted(set(shots)):
        if count > min(map(len, members)):
            break
        hits = []
        for order in orders:
            chosen = torch.cat([rows[:count] for rows in order])
            classifier = fit(task.features[chosen], task.labels[chosen], classes, l2=l2)
            placing = metrics.label_placings(classifier.logits(test.embeddings), task.test_labels)
            hits.append(metrics.in_top(placing, 1))
        points.append(_few_shot_point(count, torch.stack(hits, dim=1), classes, resamples, seed))
    return FewShotResult(points=tuple(points), zero_shot=zero_shot, l2=l2)


def _few_shot_point(shots: int, hits: Tensor, classes: int, resamples: int, seed: int) -> FewShotPoint:
    """hits: (N, draws). The interval draws pictures and, independently, draws (Owen 2007)."""
    value = float(hits.mean())
    draws = hits.shape[1]

    def statistic(weights: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        times = torch.zeros(len(weights), draws, dtype=torch.float64)
        drawn = torch.randint(draws, (len(weights), draws), generator=generator)
        times.scatter_add_(1, drawn, torch.ones(drawn.shape, dtype=torch.float64))
        return ((weights @ hits) * times).sum(dim=1) / (weights.sum(dim=1) * draws)

    low, high = bootstrap(statistic, len(hits), resamples=resamples, seed=seed)
    return FewShotPoint(
        shots=shots,
        accuracies=tuple(hits.mean(dim=0).tolist()),
        top1=Measure(
            name="top1",
            title="top-1 accuracy",
            value=value,
            low=low,
            high=high,
            n=len(hits),
            of="images",
            chance=1 / classes,
        ),
    )


def untaught(classes: Classes, training_classes: Classes) -> set[str]:
    """Names of classes that have test pictures and no training pictures."""
    return _names_there(classes) - _names_there(training_classes)


def check_taught(train_name: str, test_name: str, classes: Classes, training_classes: Classes) -> None:
    """Raises DataError if there are ``untaught`` classes."""
    if missing := untaught(classes, training_classes):
        raise DataError(
            f"{train_name}: has no pictures of {len(missing)} of the classes of {test_name}, such as {min(missing)!r}; "
            "both must name classes alike"
        )


def _names_there(classes: Classes) -> set[str]:
    return {classes.names[label] for label in set(classes.labels.tolist())}


class _Task(NamedTuple):
    """Two sources whose labels mean the same."""

    names: tuple[str, ...]
    """K classes that have training pictures, in the order of the test's."""
    features: Tensor
    """(N, E), training pictures of these classes."""
    labels: Tensor
    """(N,) int64."""
    test_labels: Tensor


def _task(train: EmbeddedSource, train_classes: Classes, test: EmbeddedSource, test_classes: Classes) -> _Task:
    """Training pictures of classes that the test does not know are left out, as are names without training pictures.

    Raises DataError if a class of the test has no training picture, or there is only one class.
    """
    check_taught(train.name, test.name, test_classes, train_classes)
    trained = _names_there(train_classes)
    names = tuple(name for name in test_classes.names if name in trained)
    if len(names) < 2:
        raise DataError(f"{train.name}: has pictures of {len(names)} classes; at least two are needed")
    place = {name: i for i, name in enumerate(names)}
    labels = torch.tensor([place.get(name, -1) for name in train_classes.names])[train_classes.labels]
    test_labels = torch.tensor([place.get(name, -1) for name in test_classes.names])[test_classes.labels]
    return _Task(names, train.embeddings[labels >= 0], labels[labels >= 0], test_labels)
