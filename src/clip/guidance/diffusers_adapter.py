"""Pipelines of diffusers, led by an objective without a change to them.

with guided_pipeline(pipeline, objective, scale=100):
    images = pipeline(num_inference_steps=50).images

Every pipeline calls ``scheduler.step(model_output, timestep, sample)`` once for each evaluation of its network, and
this is where the predicted clean picture can be read and moved: for pixels and latents, with and without
classifier-free guidance, whose result it is. The callback at the end of a step, which pixel pipelines do not even have
(``DDPMPipeline``, ``DDIMPipeline``), comes too late: it is given the next noisy latents and not the prediction.

Pipelines run under ``no_grad``, so the gradient is the "straight" one of ``guided``: it costs a pass through the
objective, and for latents one through the decoder, but none back through the network. ``denoiser_of_unet`` is the way
to the other. This module needs no import of diffusers: whoever has a pipeline has it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor

from clip.errors import ConfigError, ShapeError, choices
from clip.guidance.denoising import Denoiser, Prediction, Valued, clean_of, denoiser_of, output_of, shifted
from clip.guidance.ranges import from_symmetric

__all__ = ["denoiser_of_unet", "guided_pipeline", "latent_decoder"]

_SCHEDULERS: dict[str, Literal["steps", "sigmas", "scaled sigmas", "flow"]] = {
    "DDIMScheduler": "steps",
    "DDPMScheduler": "steps",
    "PNDMScheduler": "steps",
    "DPMSolverMultistepScheduler": "scaled sigmas",
    "EulerAncestralDiscreteScheduler": "sigmas",
    "EulerDiscreteScheduler": "sigmas",
    "FlowMatchEulerDiscreteScheduler": "flow",
}
"""Where each keeps its noise levels: in a table of the training steps, x = sqrt(ā) · clean + sqrt(1 - ā) · noise; in
``sigmas``, x = clean + sigma · noise; in ``sigmas``, but with x scaled to a variance of one; or in ``sigmas``,
x = (1 - sigma) · clean + sigma · noise."""

_LEAST_ALPHA = 1e-3
"""Where nothing of a picture is left in the noise; keeps the first step of a flow finite."""


@contextmanager
def guided_pipeline(
    pipeline: Any,
    objective: Valued,
    *,
    scale: float,
    limit: float = 1.0,
    to_unit_range: Callable[[Tensor], Tensor] | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[None]:
    """Within it, what the pipeline draws also lowers the objective. Behind it, the pipeline is as it was.

    pipeline: a ``DiffusionPipeline`` whose ``scheduler`` is one of DDIM, DDPM, PNDM, DPMSolverMultistep, Euler,
        EulerAncestral and FlowMatchEuler.
    scale, limit, generator: as for ``guided`` with its "straight" gradient. 0 changes nothing, bit for bit.
    to_unit_range: what the scheduler works on → pictures in [0, 1]. By default ``latent_decoder`` where the pipeline
        has a ``vae`` or ``vqvae``, and pixels in [-1, 1] where it has none.
    Raises ConfigError for another scheduler, ShapeError for a network that also predicts a variance.
    """
    scheduler = pipeline.scheduler
    name = type(scheduler).__name__
    if name not in _SCHEDULERS:
        raise ConfigError(
            f"the pipeline has a {name}, whose prediction cannot be read; replace it by one of "
            f"{choices(name, _SCHEDULERS)}: pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config)"
        )
    prediction = _prediction(scheduler, name)
    if to_unit_range is None:
        to_unit_range = latent_decoder(pipeline) if _autoencoder(pipeline) is not None else from_symmetric
    plain = scheduler.step

    @functools.wraps(plain)  # pipelines look at its signature
    def step(model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        if model_output.shape != sample.shape:
            raise ShapeError(
                f"the network gives {tuple(model_output.shape)} for {tuple(sample.shape)}; a learned variance is not "
                "supported, use a pipeline that removes it before the scheduler"
            )
        if scale != 0:
            model_output = moved(model_output, timestep, sample)
        return plain(model_output, timestep, sample, *args, **kwargs)

    def moved(model_output: Tensor, timestep: Any, sample: Tensor) -> Tensor:
        level = _level(scheduler, name, timestep)
        alpha, sigma = (torch.tensor(value, device=sample.device) for value in (level.alpha, level.sigma))
        x = sample.float() * level.scale
        clean = clean_of(model_output.float(), x, alpha, sigma, prediction)
        noise = sigma / alpha.clamp(min=_LEAST_ALPHA)
        better = shifted(
            clean, noise, objective, scale=scale, limit=limit, to_unit_range=to_unit_range, generator=generator
        )
        return output_of(better, x, alpha, sigma, prediction).to(model_output.dtype)

    scheduler.step = step
    try:
        yield
    finally:
        del scheduler.step  # of the instance: the method of its class shows again


def latent_decoder(pipeline: Any) -> Callable[[Tensor], Tensor]:
    """Latents as the scheduler of the pipeline has them → pictures (B, 3, H, W) in [0, 1], differentiable."""
    autoencoder = _autoencoder(pipeline)
    if autoencoder is None:
        raise ConfigError(f"a {type(pipeline).__name__} has no vae: it works on pixels")
    config = autoencoder.config
    scaling = config.get("scaling_factor") or 1.0
    shift = config.get("shift_factor") or 0.0

    def decode(latents: Tensor) -> Tensor:
        return from_symmetric(autoencoder.decode((latents / scaling + shift).to(autoencoder.dtype)).sample.float())

    return decode


def denoiser_of_unet(unet: Callable[..., Any], scheduler: Any) -> Denoiser:
    """A denoiser for ``guided`` and the samplers beside it, of a network of diffusers and a scheduler with
    ``alphas_cumprod``: through it goes a gradient. Further arguments (``encoder_hidden_states`` …) are handed on."""
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise ConfigError(f"a {type(scheduler).__name__} has no alphas_cumprod; use clean_of with the network itself")

    def network(x: Tensor, step: Tensor, **others: Any) -> Tensor:
        return cast(Tensor, unet(x, step, **others).sample)

    return denoiser_of(network, scheduler.alphas_cumprod, prediction=_prediction(scheduler, type(scheduler).__name__))


class _Level(NamedTuple):
    alpha: float
    sigma: float
    scale: float
    """Makes alpha · clean + sigma · noise of what the scheduler calls its sample."""


def _level(scheduler: Any, name: str, timestep: Any) -> _Level:
    """How much of the picture and of noise there is at this step."""
    kind = _SCHEDULERS[name]
    if kind == "steps":
        kept = float(scheduler.alphas_cumprod[int(timestep)])
        return _Level(kept**0.5, (1 - kept) ** 0.5, 1.0)
    index = scheduler.step_index
    if index is None:
        index = scheduler.index_for_timestep(timestep)
    sigma = float(scheduler.sigmas[index])
    if kind == "flow":
        return _Level(1 - sigma, sigma, 1.0)
    alpha = 1 / (1 + sigma**2) ** 0.5
    return _Level(alpha, sigma * alpha, alpha if kind == "sigmas" else 1.0)


def _prediction(scheduler: Any, name: str) -> Prediction:
    if _SCHEDULERS.get(name) == "flow":
        return "flow"
    prediction = scheduler.config.prediction_type
    if prediction not in ("epsilon", "v_prediction", "sample"):
        raise ConfigError(f"the scheduler's prediction_type is {prediction!r}; epsilon, v_prediction or sample is read")
    return cast(Prediction, prediction)


def _autoencoder(pipeline: Any) -> Any:
    return getattr(pipeline, "vae", None) or getattr(pipeline, "vqvae", None)
