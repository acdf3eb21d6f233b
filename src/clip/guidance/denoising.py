"""Diffusion led by an objective, around any denoiser: a callable goes in, a guided one with its signature comes out.

The convention is that of k-diffusion: ``denoiser(x, sigma, **others)`` takes noisy pictures, x = clean + sigma · noise
with sigma (B,), and gives the clean pictures that it predicts. ``denoiser_of`` makes one of a network that predicts the
noise or the velocity. Pictures of most diffusion models are in [-1, 1]; objectives take [0, 1], and ``to_unit_range``
is the way from one to the other.

What the objective looks at is the predicted *clean* picture; the noisy one is like nothing that CLIP has ever seen.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any, Literal, Protocol, get_args

import torch
from torch import Tensor

from clip.errors import ConfigError, ShapeError, choices
from clip.guidance.ranges import from_symmetric

__all__ = [
    "Denoiser",
    "Gradient",
    "Prediction",
    "Valued",
    "clean_of",
    "denoiser_of",
    "guided",
    "karras_sigmas",
    "output_of",
    "sample_euler",
    "sample_heun",
    "shifted",
]

Denoiser = Callable[..., Tensor]
"""``(x (B, C, H, W), sigma (B,), **others)`` → the predicted clean pictures, shaped like x."""

Gradient = Literal["through", "straight"]
Prediction = Literal["epsilon", "v_prediction", "sample", "flow"]


class Valued(Protocol):
    """An ``Objective``, or whatever else can say which way is down."""

    def value_and_gradient(self, images: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Pictures (B, 3, H, W) in [0, 1] → (B,), lower is better, and the gradient of their sum, like the pictures."""


def guided(
    denoiser: Denoiser,
    objective: Valued,
    *,
    scale: float,
    gradient: Gradient = "through",
    limit: float = 1.0,
    to_unit_range: Callable[[Tensor], Tensor] = from_symmetric,
    generator: torch.Generator | None = None,
) -> Denoiser:
    """A denoiser whose pictures also lower the objective.

    It samples from p(x) · exp(-scale · objective): the predicted clean picture moves by -scale · sigma² · gradient
    (classifier guidance, Dhariwal and Nichol 2021, in k-diffusion's terms).

    scale: 0 gives what the denoiser gives, bit for bit.
    gradient: "through" differentiates the objective through the denoiser, which knows what else has to change with a
        pixel; it costs a backward pass and its memory. "straight" takes the clean picture for the noisy one with the
        variance that is left, sigma² / (1 + sigma²) (Song et al. 2023, ΠGDM): cheap, and far weaker.
    limit: the most that a picture moves, as root mean square over its pixels and in units of sigma: at 1 guidance is
        never stronger than the noise. What is larger is shortened, direction kept.
    to_unit_range: predicted clean pictures, or latents, → (B, 3, H, W) in [0, 1]; differentiable.
    generator: of the objective's cut-outs.
    """
    _check(scale, gradient, limit)
    if scale == 0:
        return denoiser

    def guided_denoiser(x: Tensor, sigma: Tensor, **others: Any) -> Tensor:
        if gradient == "straight":
            with torch.no_grad():
                clean = denoiser(x, sigma, **others)
            return shifted(
                clean, sigma, objective, scale=scale, limit=limit, to_unit_range=to_unit_range, generator=generator
            )
        with torch.enable_grad():
            noisy = x.detach().requires_grad_()
            clean = denoiser(noisy, sigma, **others)
            if not clean.requires_grad:
                raise ConfigError(
                    "no gradient comes through this denoiser, it may run under no_grad; use gradient='straight'"
                )
            pictures = to_unit_range(clean)
            _, down = objective.value_and_gradient(pictures.detach(), generator=generator)
            (slope,) = torch.autograd.grad(pictures, noisy, down)
        size = _column(sigma, x)
        return (clean - _limited(scale * size.square() * slope, limit * size)).detach()

    return guided_denoiser


def shifted(
    clean: Tensor,
    sigma: Tensor,
    objective: Valued,
    *,
    scale: float,
    limit: float = 1.0,
    to_unit_range: Callable[[Tensor], Tensor] = from_symmetric,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Predicted clean pictures, moved to lower the objective, without a denoiser: the "straight" way of ``guided``."""
    with torch.enable_grad():
        leaf = clean.detach().requires_grad_()
        pictures = to_unit_range(leaf)
        _, down = objective.value_and_gradient(pictures.detach(), generator=generator)
        (slope,) = torch.autograd.grad(pictures, leaf, down)
    size = _column(sigma, clean)
    variance = size.square() / (1 + size.square())
    return clean - _limited(scale * variance * slope, limit * size)


def _limited(shift: Tensor, limit: Tensor) -> Tensor:
    """The shift of each picture, shortened to this root mean square."""
    length = shift.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    return shift * (limit / length.clamp(min=torch.finfo(shift.dtype).tiny)).clamp(max=1)


def _column(sigma: Tensor, x: Tensor) -> Tensor:
    """(B,) or a scalar → (B, 1, 1, 1) or (1, 1, 1, 1) beside pictures."""
    if sigma.ndim > 1 or (sigma.ndim == 1 and len(sigma) not in (1, len(x))):
        raise ShapeError(f"sigma has shape {tuple(sigma.shape)}; one for each of the {len(x)} pictures is expected")
    return sigma.to(x).reshape(-1, 1, 1, 1)


def _check(scale: float, gradient: str, limit: float) -> None:
    if not math.isfinite(scale):
        raise ConfigError(f"scale is {scale}; it must be finite")
    if gradient not in get_args(Gradient):
        raise ConfigError(f"gradient is {gradient!r}; it must be one of {choices(gradient, get_args(Gradient))}")
    if not limit > 0:
        raise ConfigError(f"limit is {limit}; it must be above 0")


# What networks predict ------------------------------------------------------------------------------------------------


def clean_of(output: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """The clean picture that a network's output means, where x = alpha · clean + sigma · noise.

    prediction: what the network gives: "epsilon", the noise; "sample", the clean picture; "v_prediction",
    alpha · noise - sigma · clean (Salimans and Ho 2022); "flow", noise - clean, where alpha = 1 - sigma.
    """
    _check_prediction(prediction)
    if prediction == "sample":
        return output
    if prediction == "epsilon":
        return (x - sigma * output) / alpha
    if prediction == "flow":
        return x - sigma * output
    return (alpha * x - sigma * output) / (alpha.square() + sigma.square())


def output_of(clean: Tensor, x: Tensor, alpha: Tensor, sigma: Tensor, prediction: Prediction) -> Tensor:
    """The inverse of ``clean_of``: what the network would have given, had it meant this clean picture."""
    _check_prediction(prediction)
    if prediction == "sample":
        return clean
    if prediction == "epsilon":
        return (x - alpha * clean) / sigma
    if prediction == "flow":
        return (x - clean) / sigma
    return (alpha * x - (alpha.square() + sigma.square()) * clean) / sigma


def denoiser_of(
    network: Callable[..., Tensor], alphas_cumprod: Tensor, *, prediction: Prediction = "epsilon"
) -> Denoiser:
    """A denoiser, in the convention of this module, of a network that was trained with discrete steps.

    network: ``(x (B, C, H, W), step (B,), **others)`` → its prediction, x = sqrt(ā) · clean + sqrt(1 - ā) · noise.
    alphas_cumprod: (steps,), ā of each step, falling. A sigma between two steps is given a step between them, by its
        logarithm; one outside is given the nearest.
    """
    if prediction == "flow":
        raise ConfigError("a network that predicts a flow has no alphas_cumprod; wrap it with clean_of")
    _check_prediction(prediction)
    logs = ((1 - alphas_cumprod) / alphas_cumprod).double().log() / 2  # of sigma, rising

    def denoiser(x: Tensor, sigma: Tensor, **others: Any) -> Tensor:
        table = logs.to(x.device)
        wanted = sigma.detach().to(x.device).double().reshape(-1).log().clamp(table[0], table[-1]).expand(len(x))
        above = torch.searchsorted(table, wanted).clamp(1, len(table) - 1)
        low, high = table[above - 1], table[above]
        step = above - 1 + (wanted - low) / (high - low)
        size = _column(sigma, x)
        alpha = 1 / torch.sqrt(1 + size.square())
        output = network(x * alpha, step.to(x.dtype), **others)
        return clean_of(output, x * alpha, alpha, size * alpha, prediction)

    return denoiser


def _check_prediction(prediction: str) -> None:
    known = get_args(Prediction)
    if prediction not in known:
        raise ConfigError(f"prediction is {prediction!r}; it must be one of {choices(prediction, known)}")


# Samplers for tests and for whoever has none --------------------------------------------------------------------------


def karras_sigmas(steps: int, *, least: float = 0.02, most: float = 80.0, rho: float = 7.0) -> Tensor:
    """(steps + 1,), falling to 0 (Karras et al. 2022, equation 5)."""
    if steps < 2:
        raise ConfigError(f"steps is {steps}; it must be at least 2")
    ramp = torch.linspace(0, 1, steps)
    sigmas = (most ** (1 / rho) + ramp * (least ** (1 / rho) - most ** (1 / rho))) ** rho
    return torch.cat([sigmas, sigmas.new_zeros(1)])


@torch.no_grad()
def sample_euler(denoiser: Denoiser, x: Tensor, sigmas: Tensor, **others: Any) -> Tensor:
    """Clean pictures from x = sigmas[0] · noise, by Euler's steps (Karras et al. 2022, section 3)."""
    for sigma, following in itertools.pairwise(sigmas):
        clean = denoiser(x, sigma.expand(len(x)), **others)
        x = clean + (x - clean) * (following / sigma)
    return x


@torch.no_grad()
def sample_heun(denoiser: Denoiser, x: Tensor, sigmas: Tensor, **others: Any) -> Tensor:
    """The same by Heun's steps: two evaluations each, and an error of second order (algorithm 1)."""
    for sigma, following in itertools.pairwise(sigmas):
        direction = (x - denoiser(x, sigma.expand(len(x)), **others)) / sigma
        end = x + direction * (following - sigma)
        if following > 0:
            other = (end - denoiser(end, following.expand(len(x)), **others)) / following
            end = x + (direction + other) / 2 * (following - sigma)
        x = end
    return x
