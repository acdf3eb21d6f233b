from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from clip.moderation.logistic import calibrate, expit, log_losses, logistic_regression


def embeddings(n: int, d: int, seed: int = 0) -> np.ndarray:
    """Unit norm, with a large mean in common, as those of CLIP."""
    x = np.random.default_rng(seed).normal(size=(n, d)) + 1.0
    return x / np.linalg.norm(x, axis=1, keepdims=True)


@pytest.mark.parametrize(("n", "d", "penalty"), [(300, 32, 0.1), (300, 32, 10.0), (80, 256, 1.0), (500, 3, 0.001)])
def test_it_is_scikit_learns_logistic_regression(n: int, d: int, penalty: float) -> None:
    x = embeddings(n, d)
    y = np.random.default_rng(1).random(n) < expit(30 * (x[:, 0] - x[:, 0].mean()))
    line = logistic_regression(x, y.astype(float), penalty=penalty)
    known = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000).fit(x, y)
    # Theirs stops where the gradient is 1e-6 or so at best; both are then as far from the minimum as that.
    np.testing.assert_allclose(line.weights, known.coef_[0], atol=1e-4 * np.abs(known.coef_).max())
    assert line.intercept == pytest.approx(known.intercept_[0], abs=1e-3)


def test_an_offset_is_taken_as_it_is() -> None:
    x = embeddings(200, 8)
    offset = np.random.default_rng(2).normal(size=200) * 3
    y = (np.random.default_rng(3).random(200) < expit(offset)).astype(float)
    line = logistic_regression(x, y, penalty=1e6, offset=offset)
    assert np.abs(line.weights).max() < 1e-3  # the offset says it all, and the penalty allows nothing else
    p = expit(x @ line.weights + line.intercept + offset)
    assert p.sum() == pytest.approx(y.sum(), abs=1e-5)  # what the free intercept is for
    warm = logistic_regression(x, y, penalty=1e6, offset=offset, start=line)
    np.testing.assert_allclose(warm.weights, line.weights, atol=1e-8)


def test_separable_features_and_certain_offsets_end() -> None:
    x = np.linspace(-1, 1, 40)[:, None]
    y = (x[:, 0] > 0).astype(float)
    line = logistic_regression(x, y, penalty=1e-6)
    assert np.isfinite(line.weights).all() and ((x @ line.weights + line.intercept > 0) == (y == 1)).all()
    line = logistic_regression(x, y, penalty=1.0, offset=np.where(y == 1, -400.0, 400.0))  # all wrong, and sure of it
    assert np.isfinite(line.weights).all() and np.isfinite(line.intercept)


def test_calibration_recovers_the_curve_whatever_the_units() -> None:
    random = np.random.default_rng(0)
    z = random.normal(size=20_000)
    y = random.random(20_000) < expit(1.7 * z - 0.8)
    slope, intercept = calibrate(z, y)
    assert slope == pytest.approx(1.7, abs=0.1) and intercept == pytest.approx(-0.8, abs=0.1)
    slope, intercept = calibrate(1000 * z + 5, y)
    assert slope == pytest.approx(0.0017, rel=0.05) and intercept == pytest.approx(-0.8 - 5 * slope, abs=0.1)


def test_calibration_of_what_says_nothing() -> None:
    y = np.arange(40) < 10
    for values in (np.zeros(40), -y.astype(float)):
        slope, intercept = calibrate(values, y)
        assert slope == 0 and expit(intercept) == pytest.approx(0.25, abs=0.05)
    slope, intercept = calibrate(y.astype(float), y)  # tells all apart; ten pictures are no reason for certainty
    assert 0.85 < expit(slope + intercept) < 0.95


def test_large_log_odds() -> None:
    assert expit(np.array([-1e4, 0.0, 1e4])).tolist() == [0.0, 0.5, 1.0]
    assert log_losses(np.array([-1e4, 1e4]), np.array([1.0, 1.0])).tolist() == [1e4, 0.0]
