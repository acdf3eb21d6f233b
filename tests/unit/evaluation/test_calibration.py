"""Temperature: known ones are found, answers stay, and what is fitted is not what is reported."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clip.errors import ShapeError
from clip.evaluation import metrics
from clip.evaluation.calibration import TEMPERATURE_LIMITS, calibrate, fit_temperature


def drawn(n: int, classes: int, temperature: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits that are right when divided by ``temperature``: labels are drawn from those probabilities."""
    generator = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(n, classes, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(dim=1), 1, generator=generator).squeeze(1)
    return logits * temperature, labels


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0, 20.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    logits, labels = drawn(20_000, 5, temperature)
    assert fit_temperature(logits, labels) == pytest.approx(temperature, rel=0.03)


def test_no_other_temperature_is_better() -> None:
    logits, labels = drawn(300, 4, 2.5)
    best = fit_temperature(logits, labels)
    least = metrics.log_losses(logits / best, labels).mean()
    for factor in (0.9, 0.99, 1.01, 1.1):
        assert metrics.log_losses(logits / (best * factor), labels).mean() > least


def test_where_there_is_no_best_the_limits_hold() -> None:
    certain = torch.eye(3)[[0, 1, 2, 0]]
    assert fit_temperature(certain, torch.tensor([0, 1, 2, 0])) == TEMPERATURE_LIMITS[0]
    assert fit_temperature(certain, torch.tensor([1, 2, 0, 1])) == TEMPERATURE_LIMITS[1]
    with pytest.raises(ShapeError, match="no pictures"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))


def test_too_sure_a_model_is_corrected_on_pictures_that_chose_nothing() -> None:
    logits, labels = drawn(2000, 5, 4.0)
    found = calibrate(logits.float(), labels, logit_scale=100.0, resamples=200)
    assert found is not None
    assert found.temperature == pytest.approx(4, rel=0.1)
    assert found.logit_scale == pytest.approx(100 / found.temperature)
    assert (found.fitted_on, found.measures_before[0].n) == (1000, 1000)
    assert int(found.before.count.sum()) == int(found.after.count.sum()) == 1000
    before = {measure.name: measure for measure in found.measures_before}
    after = {measure.name: measure for measure in found.measures_after}
    for name in ("ece", "nll", "brier"):
        assert after[name].value < before[name].value
        assert after[name].low <= after[name].value <= after[name].high
    assert after["ece"].low == 0
    assert before["ece"].low > 0.1


def test_temperature_changes_no_answer() -> None:
    logits, labels = drawn(500, 4, 3.0)
    temperature = fit_temperature(logits, labels)
    assert torch.equal(logits.argmax(dim=1), (logits / temperature).argmax(dim=1))


def test_few_pictures_are_not_halved() -> None:
    logits, labels = drawn(19, 3, 1.0)
    assert calibrate(logits, labels) is None
    assert calibrate(*drawn(20, 3, 1.0), resamples=100) is not None
