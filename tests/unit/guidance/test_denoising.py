"""Guidance of denoisers whose posterior mean is known in closed form: mixtures of normal distributions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

import clip
from clip.errors import ConfigError, ShapeError
from clip.guidance.cutouts import Cutouts
from clip.guidance.denoising import (
    Denoiser,
    Prediction,
    clean_of,
    denoiser_of,
    guided,
    karras_sigmas,
    output_of,
    sample_euler,
    sample_heun,
    shifted,
)
from clip.guidance.objective import Objective

ROOT = Path(__file__).parents[3]


class Towards:
    """An objective with a known answer: half the squared distance to a picture in [0, 1]."""

    def __init__(self, goal: float | Tensor) -> None:
        self.goal = goal
        self.seen: list[Tensor] = []

    def value_and_gradient(self, images: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        self.seen.append(images)
        return (images - self.goal).square().sum(dim=(1, 2, 3)) / 2, images - self.goal


def mixture(means: Tensor, deviation: float) -> Denoiser:
    """The exact denoiser of an even mixture of normal distributions: means (N, C, H, W), one deviation."""

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        noise = sigma[:, None].square()
        distances = (x[:, None] - means).square().flatten(2).sum(dim=-1)
        weights = torch.softmax(-distances / (2 * (noise + deviation**2)), dim=1)  # (B, N)
        mean = torch.einsum("bn,nchw->bchw", weights, means)
        return mean + (deviation**2 / (deviation**2 + noise))[..., None, None] * (x - mean)

    return denoiser


def one_normal(mean: float = 0.0, deviation: float = 0.5) -> Denoiser:
    return mixture(torch.full((1, 3, 2, 2), mean), deviation)


# With a known answer --------------------------------------------------------------------------------------------------


def test_samples_of_one_normal_distribution_have_its_moments() -> None:
    x = 80 * torch.randn(4000, 3, 2, 2)
    for sample, steps in ((sample_euler, 60), (sample_heun, 20)):
        drawn = sample(one_normal(0.2, 0.5), x, karras_sigmas(steps))
        assert drawn.mean().item() == pytest.approx(0.2, abs=0.02)
        assert drawn.std().item() == pytest.approx(0.5, abs=0.03)


def test_heun_is_nearer_than_euler_at_equal_evaluations() -> None:
    x = 80 * torch.randn(50, 3, 2, 2)
    exact = 0.2 + 0.5 * (x - 0.2) / (80**2 + 0.5**2) ** 0.5  # along the exact flow
    euler = sample_euler(one_normal(0.2, 0.5), x, karras_sigmas(40)) - exact
    heun = sample_heun(one_normal(0.2, 0.5), x, karras_sigmas(20)) - exact
    assert heun.abs().max() < euler.abs().max() / 1.5
    half = sample_heun(one_normal(0.2, 0.5), x, karras_sigmas(40)) - exact
    assert half.abs().max() < heun.abs().max() / 3  # an error of second order


@pytest.mark.parametrize("sigma", [0.1, 1.0, 10.0])
def test_the_shift_of_a_normal_distribution(sigma: float) -> None:
    """D(x) = k·x with k = v / (v + sigma²), so the objective's slope at x is k/2 · (clean in [0, 1] - goal)."""
    k = 0.25 / (0.25 + sigma**2)
    x = torch.randn(3, 3, 2, 2) * 0.3
    towards = Towards(0.9)
    found = guided(one_normal(), towards, scale=0.1, limit=1e6)(x, torch.full((3,), sigma))
    picture = ((k * x + 1) / 2).clamp(0, 1)
    torch.testing.assert_close(towards.seen[0], picture)
    torch.testing.assert_close(found, k * x - 0.1 * sigma**2 * k / 2 * (picture - 0.9))


def test_what_it_samples_from() -> None:
    """A normal prior tilted by a quadratic is normal, and its mean is known: where guidance of the clean picture is not
    exact, at high sigma, it still leads there to a few per cent."""
    x = 80 * torch.randn(3000, 3, 2, 2)
    scale, goal = 2.0, 0.75  # of pictures in [0, 1]: 0.5 in [-1, 1], where the slope is a quarter
    drawn = sample_euler(guided(one_normal(), Towards(goal), scale=scale, limit=1e6), x, karras_sigmas(60))
    precision = 1 / 0.25 + scale / 4
    assert drawn.mean().item() == pytest.approx((scale / 4 * 0.5) / precision, rel=0.2)


def test_straight_moves_by_the_variance_that_is_left() -> None:
    x, sigma = torch.zeros(2, 3, 2, 2), torch.tensor([1.0, 3.0])
    found = guided(lambda x, sigma: x, Towards(1.0), scale=0.1, gradient="straight", limit=1e6)(x, sigma)
    variance = (sigma**2 / (1 + sigma**2))[:, None, None, None]
    torch.testing.assert_close(found, 0.1 * variance * 0.25 * torch.ones(2, 3, 2, 2))
    torch.testing.assert_close(shifted(x, sigma, Towards(1.0), scale=0.1, limit=1e6), found)


def test_the_limit_shortens_and_keeps_the_direction() -> None:
    x, sigma = torch.randn(2, 3, 2, 2) * 0.2, torch.tensor([0.5, 2.0])
    free = guided(one_normal(), Towards(1.0), scale=100, limit=1e9)(x, sigma) - one_normal()(x, sigma)
    bound = guided(one_normal(), Towards(1.0), scale=100, limit=0.1)(x, sigma) - one_normal()(x, sigma)
    torch.testing.assert_close(bound.square().mean(dim=(1, 2, 3)).sqrt(), 0.1 * sigma)
    torch.testing.assert_close(torch.cosine_similarity(bound.flatten(1), free.flatten(1)), torch.ones(2))


@pytest.mark.parametrize("gradient", ["through", "straight"])
def test_no_scale_no_difference(gradient: Any) -> None:
    x, sigma = torch.randn(2, 3, 2, 2), torch.tensor([0.5, 2.0])
    for scale in (0, 0.0):
        found = guided(one_normal(), Towards(1.0), scale=scale, gradient=gradient)(x, sigma)
        assert torch.equal(found, one_normal()(x, sigma))


def test_arguments_reach_the_denoiser_and_nothing_else_is_touched() -> None:
    weight = torch.nn.Parameter(torch.tensor(0.5))

    def denoiser(x: Tensor, sigma: Tensor, *, factor: float) -> Tensor:
        return weight * factor * x

    x = torch.ones(1, 3, 2, 2, requires_grad=True)
    for gradient in ("through", "straight"):
        found = guided(denoiser, Towards(1.0), scale=1.0, gradient=gradient)(x, torch.ones(1), factor=0.1)  # type: ignore[arg-type]
        assert not found.requires_grad
        assert 0.05 < found.mean() < 0.5
    assert weight.grad is None
    assert x.grad is None


def test_latents_go_through_a_decoder() -> None:
    latent, sigma = torch.zeros(1, 4, 2, 2), torch.ones(1)
    towards = Towards(1.0)
    guided(lambda x, sigma: x, towards, scale=1.0, to_unit_range=lambda z: (z[:, :3] + 1) / 2)(latent, sigma)
    assert towards.seen[0].shape == (1, 3, 2, 2)


# With pocket ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not (ROOT / "src/clip/pocket.safetensors").exists(), reason="pocket is not in this checkout")
def test_guided_samples_fit_the_words_better_and_are_the_right_picture_more_often() -> None:
    names = ("avocado", "doughnut", "fire_engine", "fox")
    means = torch.stack([emoji(name) for name in names])
    denoiser = mixture(means, 0.2)
    model, preprocess = clip.load("pocket", device="cpu")
    sigmas = karras_sigmas(10, least=10, most=120)  # which picture it will be is settled between these
    x = torch.randn(6, 3, 64, 64) * sigmas[0]
    unguided = sample_euler(denoiser, x, sigmas)
    hits = {"guided": 0, "unguided": 0}
    for name in ("fire_engine", "fox"):
        prompt = f"a {name.replace('_', ' ')}"
        objective = Objective(model, preprocess, prompts=[prompt], cutouts=Cutouts.none())
        drawn = sample_euler(guided(denoiser, objective, scale=100), x, sigmas)
        with torch.no_grad():
            values, before = (objective(((y + 1) / 2).clamp(0, 1)) for y in (drawn, unguided))
        assert (values < before).all()
        assert (before - values).mean() > 0.3
        for kind, y in (("guided", drawn), ("unguided", unguided)):
            nearest = (y[:, None] - means).square().flatten(2).sum(dim=-1).argmin(dim=1)
            hits[kind] += int((nearest == names.index(name)).sum())
    assert hits["guided"] >= hits["unguided"] + 4


def emoji(name: str) -> Tensor:
    """(3, 64, 64) in [-1, 1], on white."""
    picture = Image.open(ROOT / "examples" / "emoji" / f"{name}.png").convert("RGBA").resize((64, 64))
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return torch.from_numpy(np.array(white.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1


# What networks predict ------------------------------------------------------------------------------------------------

PREDICTIONS: dict[Prediction, Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda clean, noise, alpha, sigma: noise,
    "sample": lambda clean, noise, alpha, sigma: clean,
    "v_prediction": lambda clean, noise, alpha, sigma: alpha * noise - sigma * clean,
    "flow": lambda clean, noise, alpha, sigma: noise - clean,
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_clean_and_output_are_each_others_inverse(prediction: Prediction) -> None:
    clean, noise = torch.randn(2, 5, 3, 4, 4, dtype=torch.float64)
    sigma = torch.rand(5, 1, 1, 1, dtype=torch.float64) * 0.8 + 0.1
    alpha = 1 - sigma if prediction == "flow" else torch.sqrt(1 - sigma**2)
    x = alpha * clean + sigma * noise
    output = PREDICTIONS[prediction](clean, noise, alpha, sigma)
    torch.testing.assert_close(clean_of(output, x, alpha, sigma, prediction), clean)
    torch.testing.assert_close(output_of(clean, x, alpha, sigma, prediction), output)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction"])
def test_a_network_of_discrete_steps_becomes_a_denoiser(prediction: Prediction) -> None:
    """The network is exact for a normal distribution; so must the denoiser be."""
    alphas_cumprod = torch.linspace(0.999, 0.01, 1000, dtype=torch.float64)

    def network(x: Tensor, step: Tensor) -> Tensor:
        low = step.floor().long()
        share = step - low
        logs = ((1 - alphas_cumprod) / alphas_cumprod).log() / 2
        sigma = torch.exp(logs[low] * (1 - share) + logs[(low + 1).clamp(max=999)] * share)[:, None, None, None]
        alpha = 1 / torch.sqrt(1 + sigma**2)
        clean = 0.25 / (0.25 + sigma**2) * x / alpha
        return output_of(clean, x, alpha, sigma * alpha, prediction)

    x, sigma = torch.randn(3, 3, 2, 2, dtype=torch.float64), torch.tensor([0.05, 0.7, 5.0], dtype=torch.float64)
    denoiser = denoiser_of(network, alphas_cumprod, prediction=prediction)
    expected = one_normal()(x.float(), sigma.float()).double()
    torch.testing.assert_close(denoiser(x, sigma), expected, atol=1e-6, rtol=1e-5)


def test_sigmas_fall_to_zero() -> None:
    sigmas = karras_sigmas(10, least=0.1, most=50)
    assert sigmas[0].item() == pytest.approx(50)
    assert sigmas[-2].item() == pytest.approx(0.1, rel=1e-4)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_what_is_refused() -> None:
    towards = Towards(1.0)
    for options, words in (
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": 1, "gradient": "thru"}, "through, straight"),
        ({"scale": 1, "limit": 0}, "limit is 0"),
    ):
        with pytest.raises(ConfigError, match=words):
            guided(one_normal(), towards, **options)  # type: ignore[arg-type]
    x = torch.zeros(2, 3, 2, 2)
    with pytest.raises(ConfigError, match="gradient='straight'"):
        guided(torch.no_grad()(lambda x, sigma: 2 * x), towards, scale=1.0)(x, torch.ones(2))
    with pytest.raises(ShapeError, match="one for each of the 2 pictures"):
        guided(lambda x, sigma: x, towards, scale=1.0)(x, torch.ones(3))
    with pytest.raises(ConfigError, match="epsilon"):
        clean_of(x, x, torch.ones(1), torch.ones(1), "eps")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="clean_of"):
        denoiser_of(lambda x, step: x, torch.ones(3), prediction="flow")
    with pytest.raises(ConfigError, match="at least 2"):
        karras_sigmas(1)
