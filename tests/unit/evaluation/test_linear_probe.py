"""Logistic regression against scikit-learn's, the sweep, and few shots drawn fairly."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from clip.errors import ConfigError, DataError
from clip.evaluation import linear_probe
from clip.evaluation.datasets import Classes, EmbeddedSource
from clip.evaluation.linear_probe import (
    LinearClassifier,
    evaluate_few_shot,
    evaluate_linear_probe,
    fit,
    split,
    sweep,
)
from clip.features import normalized


def blobs(n: int, classes: int, noise: float, seed: int) -> tuple[Tensor, Tensor]:
    """Unit-norm points around one centre for each class; the centres are the same for all seeds."""
    centres = torch.randn(classes, 12, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % classes
    return normalized(centres[labels] + noise * torch.randn(n, 12, generator=generator)), labels


def source(features: Tensor, labels: Tensor, names: tuple[str, ...]) -> tuple[EmbeddedSource, Classes]:
    n = len(labels)
    data = EmbeddedSource(
        name="data",
        keys=tuple(map(str, range(n))),
        rows=torch.arange(n),
        embeddings=features,
        captions=((),) * n,
        labels=labels,
        class_names=names,
        failures=(),
    )
    return data, Classes(synonyms=tuple((name,) for name in names), labels=labels)


@pytest.mark.parametrize(("classes", "l2"), [(3, 10.0), (3, 1.0), (7, 0.1), (3, 0.01)])
def test_the_fit_is_that_of_scikit_learn(classes: int, l2: float) -> None:
    features, labels = blobs(200, classes, noise=1.5, seed=1)
    ours = fit(features, labels, classes, l2=l2, tolerance=1e-8)
    reference = LogisticRegression(C=1 / l2, max_iter=5000, tol=1e-8).fit(features.double().numpy(), labels.numpy())
    assert ours.weight.numpy() == pytest.approx(reference.coef_, abs=2e-4 * np.abs(reference.coef_).max())
    new, _ = blobs(50, classes, noise=1.5, seed=2)
    ours_says = ours.logits(new).softmax(dim=1).numpy()
    assert ours_says == pytest.approx(reference.predict_proba(new.double().numpy()), abs=1e-3)


def test_a_start_changes_the_way_and_not_the_goal() -> None:
    features, labels = blobs(100, 3, noise=1.5, seed=1)
    cold = fit(features, labels, 3, l2=0.1, tolerance=1e-8)
    start = LinearClassifier(torch.randn(3, 12, dtype=torch.float64), torch.randn(3, dtype=torch.float64))
    kept = start.weight.clone()
    warm = fit(features, labels, 3, l2=0.1, start=start, tolerance=1e-8)
    assert torch.allclose(cold.logits(features).softmax(1), warm.logits(features).softmax(1), atol=1e-4)
    assert torch.equal(start.weight, kept)
    with pytest.raises(ConfigError, match="l2 is -1"):
        fit(features, labels, 3, l2=-1)


def test_the_sweep_narrows_to_an_eighth_of_a_decade_around_the_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def known(features: Tensor, labels: Tensor, classes: int, *, l2: float, start: object) -> LinearClassifier:
        """Right for so many of 1,000 pictures as the penalty is near to 10^2.4."""
        asked.append(float(np.log10(l2)))
        right = round(1000 - 100 * abs(asked[-1] - 2.4))
        return LinearClassifier(
            torch.tensor([[1.0], [-1.0]]).double(), torch.tensor([-right + 0.5, right - 0.5]).double()
        )

    monkeypatch.setattr(linear_probe, "fit", known)
    features = torch.arange(2000.0)[:, None]  # the first class from ``right`` on
    is_validation = torch.arange(2000) < 1000
    l2, points = sweep(features, torch.ones(2000, dtype=torch.int64), 2, is_validation)
    assert asked[:7] == [6, 4, 2, 0, -2, -4, -6]
    assert np.log10(l2) == pytest.approx(2.375)
    assert max(points, key=lambda point: point.accuracy).l2 == l2
    exponents = [np.log10(point.l2) for point in points]
    assert exponents == sorted(exponents)
    assert {2.25, 2.375, 2.5} <= {round(float(exponent), 3) for exponent in exponents}
    assert len(asked) == len(set(asked)) <= 15


def test_among_equals_the_smaller_loss_decides_and_the_range_has_an_end() -> None:
    features, labels = blobs(60, 3, noise=0.0, seed=1)
    l2, points = sweep(features, labels, 3, split(labels, 0.2))
    assert {point.accuracy for point in points} == {1.0}
    assert min(point.l2 for point in points) == 1e-6
    assert max(point.l2 for point in points) == 1e6
    assert l2 < 1e-4  # nothing is gained by a penalty here


def test_the_validation_split_has_its_share_of_each_class() -> None:
    labels = torch.tensor([0] * 50 + [1] * 10 + [2] * 2 + [3])
    chosen = split(labels, 0.2, seed=1)
    assert [int(chosen[labels == label].sum()) for label in range(4)] == [10, 2, 1, 0]
    assert torch.equal(chosen, split(labels, 0.2, seed=1))
    assert not torch.equal(chosen, split(labels, 0.2, seed=2))


def test_the_probe_learns_what_can_be_learned_and_chance_where_nothing_can() -> None:
    names = tuple("abcde")
    train = source(*blobs(150, 5, noise=0.3, seed=1), names)
    test = source(*blobs(100, 5, noise=0.3, seed=2), names)
    result = evaluate_linear_probe(*train, *test, resamples=100)
    assert result.classification.measures[0].value > 0.97
    assert (result.train_images, result.validation_images) == (150, 30)
    assert result.l2 in [point.l2 for point in result.sweep]
    features, labels = blobs(150, 5, noise=0.3, seed=1)
    shuffled = labels[torch.randperm(150, generator=torch.Generator().manual_seed(0))]
    nothing = evaluate_linear_probe(*source(features, shuffled, names), *test, resamples=100)
    assert nothing.classification.measures[0].value < 0.5


def test_test_pictures_choose_nothing() -> None:
    names = tuple("abc")
    train = source(*blobs(60, 3, noise=0.5, seed=1), names)
    features, labels = blobs(30, 3, noise=0.5, seed=2)
    one = evaluate_linear_probe(*train, *source(features, labels, names), resamples=100)
    other = evaluate_linear_probe(*train, *source(-features, labels, names), resamples=100)
    assert (one.l2, one.sweep) == (other.l2, other.sweep)


def test_classes_meet_by_name_and_strangers_are_left_out() -> None:
    features, labels = blobs(80, 4, noise=0.1, seed=1)
    train = source(features, labels, ("a", "b", "c", "stranger"))
    new, truth = blobs(40, 4, noise=0.1, seed=2)
    is_known = truth < 3
    test = source(new[is_known], 2 - truth[is_known], ("c", "b", "a"))
    result = evaluate_linear_probe(*train, *test, resamples=100)
    assert result.classification.predictions.class_names == ("c", "b", "a")
    assert result.classification.measures[0].value == 1
    assert result.train_images == 60
    distractors = source(new[is_known], 3 - truth[is_known], ("never seen", "c", "b", "a"))
    result = evaluate_linear_probe(*train, *distractors, resamples=100)
    assert result.classification.predictions.class_names == ("c", "b", "a")
    assert result.classification.measures[0].value == 1
    with pytest.raises(DataError, match="no pictures of 1 of the classes of data, such as 'd'"):
        evaluate_linear_probe(*train, *source(new, truth, ("a", "b", "c", "d")))


def test_one_picture_a_class_leaves_nothing_to_choose_on() -> None:
    names = tuple("abc")
    with pytest.raises(DataError, match="one picture of each class"):
        evaluate_linear_probe(*source(*blobs(3, 3, 0.1, 1), names), *source(*blobs(9, 3, 0.1, 2), names))
    with pytest.raises(DataError, match="1 classes; at least two"):
        one = source(torch.eye(2, 12), torch.zeros(2, dtype=torch.int64), ("a", "b"))
        evaluate_linear_probe(*one, *one)


def test_more_shots_are_better_and_draws_differ() -> None:
    names = tuple("abcd")
    train = source(*blobs(48, 4, noise=1.5, seed=1), names)  # 12 a class: 16 shots cannot be drawn
    test = source(*blobs(200, 4, noise=1.5, seed=2), names)
    result = evaluate_few_shot(*train, *test, draws=3, resamples=200)
    assert [point.shots for point in result.points] == [1, 2, 4, 8]
    values = [point.top1.value for point in result.points]
    assert values[0] > 0.4
    assert values[-1] > values[0] + 0.05
    for point in result.points:
        assert len(point.accuracies) == 3
        assert point.top1.value == pytest.approx(np.mean(point.accuracies))
        assert point.top1.low < point.top1.value < point.top1.high
    assert len(set(result.points[0].accuracies)) > 1
    again = evaluate_few_shot(*train, *test, draws=3, resamples=200)
    assert again == result
    with pytest.raises(ConfigError, match="draws is 0"):
        evaluate_few_shot(*train, *test, draws=0)


def test_the_interval_of_few_shots_knows_that_draws_differ() -> None:
    names = tuple("abcd")
    train = source(*blobs(400, 4, noise=0.8, seed=1), names)
    test = source(*blobs(2000, 4, noise=0.8, seed=2), names)
    point = evaluate_few_shot(*train, *test, shots=(1,), draws=8, resamples=400).points[0]
    spread = np.std(point.accuracies, ddof=1) / np.sqrt(8)
    assert point.top1.high - point.top1.low > 2 * 1.5 * spread  # of the draws, beside which 2,000 pictures are many
