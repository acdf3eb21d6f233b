"""Metrics against cases worked by hand, scikit-learn, and what must not change them."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve
from torch import Tensor

from clip.errors import ShapeError
from clip.evaluation import metrics
from clip.evaluation.metrics import Placing


def placing(above: int, tied: int, correct: int) -> Placing:
    return Placing(torch.tensor([above]), torch.tensor([tied]), torch.tensor([correct]))


def by_orders(above: int, tied: int, correct: int, k: int) -> tuple[float, float, float]:
    """Hit in the first k, rank and reciprocal rank, as means over every order of the equal candidates."""
    ranks = [
        above + 1 + min(order.index(i) for i in range(correct))
        for order in itertools.permutations(range(tied + correct))
    ]
    return float(np.mean([r <= k for r in ranks])), float(np.mean(ranks)), float(np.mean([1 / r for r in ranks]))


# Where the correct ones stand -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("above", "tied", "correct"), [*itertools.product((0, 1, 3), (0, 1, 3), (1, 2, 3))])
def test_equal_scores_count_as_the_mean_over_all_their_orders(above: int, tied: int, correct: int) -> None:
    case = placing(above, tied, correct)
    for k in (1, 2, 4, 5, 9):
        hit, rank, reciprocal = by_orders(above, tied, correct, k)
        assert metrics.in_top(case, k).item() == pytest.approx(hit, abs=1e-12)
        assert metrics.expected_ranks(case).item() == pytest.approx(rank)
        assert metrics.reciprocal_ranks(case).item() == pytest.approx(reciprocal)


def test_a_model_that_says_the_same_of_all_has_exactly_chance() -> None:
    for labels in (torch.zeros(7, dtype=torch.int64), torch.arange(7)):
        placed = metrics.label_placings(torch.ones(7, 10), labels)
        assert metrics.in_top(placed, 1).mean() == pytest.approx(1 / 10)
        assert metrics.in_top(placed, 5).mean() == pytest.approx(5 / 10)
    correct = torch.zeros(2, 10, dtype=torch.bool)
    correct[0, :3] = correct[1, 9] = True
    hits = metrics.in_top(metrics.placings(torch.zeros(2, 10), correct), 5)
    assert hits.tolist() == pytest.approx([1 - math.comb(7, 5) / math.comb(10, 5), 5 / 10])
    assert hits.mean() == pytest.approx(metrics.chance_in_top(10, torch.tensor([3, 1]), 5))


def test_any_of_several_correct_candidates_is_a_hit() -> None:
    scores = torch.tensor([[0.9, 0.8, 0.7, 0.1], [0.9, 0.8, 0.7, 0.1]])
    correct = torch.tensor([[False, True, False, True], [False, False, True, True]])
    placed = metrics.placings(scores, correct)
    assert placed.above.tolist() == [1, 2]
    assert metrics.in_top(placed, 1).tolist() == [0, 0]
    assert metrics.in_top(placed, 2).tolist() == [1, 0]
    assert metrics.expected_ranks(placed).tolist() == [2, 3]


def test_a_correct_candidate_does_not_stand_in_the_way_of_another() -> None:
    placed = metrics.placings(torch.tensor([[0.9, 0.8, 0.7]]), torch.tensor([[True, True, False]]))
    assert [part.item() for part in placed] == [0, 0, 1]


def test_labels_are_the_case_of_one_correct_candidate() -> None:
    scores = torch.randint(0, 4, (50, 6)).float()  # many ties
    labels = torch.randint(0, 6, (50,))
    mask = torch.nn.functional.one_hot(labels, 6).bool()
    for one, other in zip(metrics.label_placings(scores, labels), metrics.placings(scores, mask), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("k", [1, 2, 5])
def test_top_k_accuracy_is_that_of_scikit_learn_where_no_scores_are_equal(k: int) -> None:
    scores, labels = torch.randn(200, 8), torch.randint(0, 8, (200,))
    ours = metrics.in_top(metrics.label_placings(scores, labels), k).mean().item()
    assert ours == pytest.approx(reference.top_k_accuracy_score(labels, scores, k=k, labels=range(8)))


def test_what_cannot_be_ranked_is_refused() -> None:
    with pytest.raises(ShapeError, match="query 1 has no correct"):
        metrics.placings(torch.zeros(2, 2), torch.tensor([[True, False], [False, False]]))
    with pytest.raises(ShapeError, match="both must be"):
        metrics.placings(torch.zeros(2, 2), torch.ones(2, 3, dtype=torch.bool))
    with pytest.raises(ShapeError, match="not finite"):
        metrics.label_placings(torch.tensor([[0.0, torch.nan]]), torch.tensor([0]))
    with pytest.raises(ShapeError, match="labels run from 0 to 2; there are 2 classes"):
        metrics.label_placings(torch.zeros(2, 2), torch.tensor([0, 2]))
    with pytest.raises(ShapeError, match="k is 0"):
        metrics.in_top(placing(0, 0, 1), 0)


# Sums -----------------------------------------------------------------------------------------------------------------


def test_each_class_counts_the_same_however_many_pictures_it_has() -> None:
    labels = torch.tensor([0, 0, 0, 0, 2])  # class 1 has none
    hits = torch.tensor([1.0, 1, 1, 0, 0])
    assert metrics.mean(hits) == pytest.approx(3 / 5)
    assert metrics.mean_per_class(hits, labels) == pytest.approx((3 / 4 + 0) / 2)
    recalls = metrics.class_recall(hits, labels, 4)
    assert recalls.isnan().tolist() == [False, True, False, True]
    assert recalls[[0, 2]].tolist() == [0.75, 0]


def test_mean_per_class_is_scikit_learns_balanced_accuracy() -> None:
    labels = torch.from_numpy(np.random.default_rng(0).choice(5, 300, p=[0.6, 0.2, 0.1, 0.05, 0.05]))
    predicted = torch.where(torch.rand(300) < 0.5, labels, torch.randint(0, 5, (300,)))
    ours = metrics.mean_per_class((predicted == labels).double(), labels)
    assert ours.item() == pytest.approx(reference.balanced_accuracy_score(labels, predicted))


def test_a_single_class_is_its_own_mean() -> None:
    labels = torch.zeros(4, dtype=torch.int64)
    assert metrics.mean_per_class(torch.tensor([1.0, 0, 0, 0]), labels) == 0.25


def test_confusion_matrix_is_that_of_scikit_learn() -> None:
    labels, predicted = torch.randint(0, 4, (100,)), torch.randint(0, 5, (100,))  # class 4 is predicted, never true
    ours = metrics.confusion_matrix(predicted, labels, 5)
    assert np.array_equal(ours, reference.confusion_matrix(labels, predicted, labels=range(5)))
    assert metrics.confusion_matrix(labels[:0], labels[:0], 2).tolist() == [[0, 0], [0, 0]]
    with pytest.raises(ShapeError, match="1 predictions for 2 labels"):
        metrics.confusion_matrix(torch.zeros(1), torch.zeros(2), 2)


@pytest.mark.parametrize("values", [[3.0], [3.0, 1.0], [5.0, 1.0, 2.0], [1.0, 1.0, 4.0, 9.0]])
def test_median_is_numpys(values: list[float]) -> None:
    assert metrics.median(torch.tensor(values)).item() == np.median(values)


@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 3)), min_size=1, max_size=12))
@settings(deadline=None, max_examples=60)
def test_a_weight_is_as_many_copies(items: list[tuple[int, int]]) -> None:
    values, times = (torch.tensor(column, dtype=torch.float64) for column in zip(*items, strict=True))
    if not times.sum():
        return
    copies = values.repeat_interleave(times.long())
    weights = torch.stack([times, torch.ones_like(times)])
    for statistic in (metrics.mean, metrics.median):
        expected = [statistic(copies).item(), statistic(values).item()]
        assert statistic(values, weights).tolist() == pytest.approx(expected)


def test_nothing_has_no_mean() -> None:
    for statistic in (metrics.mean, metrics.median):
        with pytest.raises(ShapeError, match="at least one"):
            statistic(torch.zeros(0))


# Probabilities --------------------------------------------------------------------------------------------------------


def test_losses_are_those_of_scikit_learn() -> None:
    logits, labels = torch.randn(60, 5), torch.randint(0, 5, (60,))
    probabilities = logits.double().softmax(dim=1).numpy()
    ours = metrics.log_losses(logits, labels).mean().item()
    assert ours == pytest.approx(reference.log_loss(labels, probabilities, labels=range(5)))
    truth = np.eye(5)[labels]
    assert metrics.brier_scores(logits, labels).numpy() == pytest.approx(((probabilities - truth) ** 2).sum(axis=1))


def test_brier_of_certainty() -> None:
    logits = torch.tensor([[100.0, 0.0], [100.0, 0.0], [0.0, 0.0]])
    assert metrics.brier_scores(logits, torch.tensor([0, 1, 0])).tolist() == pytest.approx([0, 2, 0.5])


def logits_of(*probabilities: float) -> Tensor:
    """Of two classes, the first with these probabilities."""
    first = torch.tensor(probabilities, dtype=torch.float64)
    return torch.stack([first, 1 - first], dim=1).log()


def test_reliability_worked_by_hand() -> None:
    logits = logits_of(0.9, 0.9, 0.7, 0.6)
    found = metrics.reliability(logits, torch.tensor([0, 1, 0, 0]), bins=5)
    assert found.edges.tolist() == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, 1])
    assert found.count.sum() == 4
    assert found.count[4] == 2
    assert found.accuracy[4] == 0.5
    assert found.confidence[4] == pytest.approx(0.9)
    assert found.accuracy[0].isnan()
    # |0.5 - 0.9| * 2/4 + the two right ones, each in a bin of its own or together
    assert metrics.calibration_error(logits, torch.tensor([0, 1, 0, 0]), bins=5).item() == pytest.approx(
        0.4 * 2 / 4 + 0.3 / 4 + 0.4 / 4
    )


def test_reliability_is_scikit_learns_curve() -> None:
    logits, labels = 2 * torch.randn(400, 3), torch.randint(0, 3, (400,))
    found = metrics.reliability(logits, labels, bins=8)
    confidence = logits.double().softmax(dim=1).amax(dim=1)
    accuracy, mean_confidence = calibration_curve((logits.argmax(dim=1) == labels).numpy(), confidence, n_bins=8)
    filled = found.count > 0
    assert found.accuracy[filled].numpy() == pytest.approx(accuracy)
    assert found.confidence[filled].numpy() == pytest.approx(mean_confidence)


def test_calibration_error_of_one_bin_is_confidence_less_accuracy() -> None:
    logits, labels = torch.randn(100, 4), torch.randint(0, 4, (100,))
    hits = (logits.argmax(dim=1) == labels).double().mean()
    confidence = logits.double().softmax(dim=1).amax(dim=1).mean()
    assert metrics.calibration_error(logits, labels, bins=1) == pytest.approx(abs(hits - confidence).item())


# What must not matter -------------------------------------------------------------------------------------------------


@given(st.integers(0, 10_000), st.integers(2, 20), st.integers(2, 6))
@settings(deadline=None, max_examples=30)
def test_no_metric_depends_on_the_order_of_pictures_or_classes(seed: int, n: int, k: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(-2, 3, (n, k), generator=generator).double()  # many ties
    labels = torch.randint(0, k, (n,), generator=generator)
    pictures, classes = torch.randperm(n, generator=generator), torch.randperm(k, generator=generator)
    shuffled, renamed = logits[pictures][:, classes], classes.argsort()[labels[pictures]]

    def numbers(logits: Tensor, labels: Tensor) -> list[float]:
        placed = metrics.label_placings(logits, labels)
        hits = metrics.in_top(placed, 1)
        return [
            metrics.mean(hits).item(),
            metrics.mean(metrics.in_top(placed, 2)).item(),
            metrics.mean_per_class(hits, labels).item(),
            metrics.median(metrics.expected_ranks(placed)).item(),
            metrics.mean(metrics.reciprocal_ranks(placed)).item(),
            metrics.calibration_error(logits, labels).item(),
            metrics.mean(metrics.log_losses(logits, labels)).item(),
            metrics.mean(metrics.brier_scores(logits, labels)).item(),
        ]

    assert numbers(logits, labels) == pytest.approx(numbers(shuffled, renamed))
