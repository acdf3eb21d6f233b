"""How far pictures are from words, as a number that a gradient can follow.

objective = Objective(model, preprocess, prompts=["a red heart"])
values = objective.backward(images)  # (B,), lower is better; images.grad holds the way down

Distances are computed in fp32 whatever the precision of the model, which is neither changed nor given gradients.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, get_args

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from clip.errors import ConfigError, ImageError, ShapeError, choices
from clip.features import AnyImage, as_array, encode_images, encode_texts
from clip.guidance.cutouts import Cutouts, Views
from clip.guidance.frozen import frozen_twin
from clip.model import CLIP
from clip.preprocess import Preprocess
from clip.prompts import checked_templates, fill

__all__ = [
    "Distance",
    "EmbeddingPrompt",
    "ImagePrompt",
    "Objective",
    "Prompt",
    "Term",
    "cosine_distance",
    "smoothness",
    "spherical_distance",
    "total_variation",
]

Distance = Literal["spherical", "cosine"]

Term = Callable[[Tensor], Tensor]
"""Pictures (B, 3, H, W) in [0, 1] → (B,): what else a picture should be, lower is better."""

_RANGE_TOLERANCE = 1e-4
"""What rounding may add to [0, 1]."""


@dataclasses.dataclass(frozen=True, slots=True)
class Prompt:
    """Words to go towards, or with a negative weight away from."""

    text: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class ImagePrompt:
    """A picture to go towards in what it means, not in its pixels."""

    image: AnyImage
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class EmbeddingPrompt:
    """An image embedding (E,) of the same model, of any norm: from an index, or what a prior made of a text, as in
    DALL·E 2 (Ramesh et al. 2022, section 2.2)."""

    embedding: Tensor | NDArray[np.float32]
    weight: float = 1.0


class Objective:
    """Mean distance of a picture's cut-outs to what it should show: Σ weight · distance / Σ |weight|, plus terms.

    model, preprocess: as ``clip.load`` gives them. The weights are shared, not copied; the model itself is left as it
        is, in its mode and with its gradients.
    prompts: texts, ``Prompt`` with a weight, ``ImagePrompt`` or ``EmbeddingPrompt``; encoded once, here.
    against: the same with their weights turned round: what the picture should not show.
    images: reference pictures, short for ``ImagePrompt``.
    cutouts: ``Cutouts.none()`` looks at the uncut picture alone.
    distance: "spherical": half the squared angle, which pulls harder the farther away; "cosine": 1 - cosine.
    templates: strings with ``{}``; a prompt is the mean over all of them.
    terms: ``(weight, function)``, such as ``(0.1, total_variation)``; each sees the whole picture once.
    chunk_size: cut-outs that go through the model at once, which bounds the memory of ``backward``.
    Raises ConfigError for what contradicts itself, TextTooLongError, and ImageError for a reference that is unreadable.
    """

    def __init__(
        self,
        model: CLIP,
        preprocess: Preprocess,
        *,
        prompts: Sequence[str | Prompt | ImagePrompt | EmbeddingPrompt] = (),
        against: Sequence[str | Prompt | ImagePrompt | EmbeddingPrompt] = (),
        images: Sequence[AnyImage] = (),
        cutouts: Cutouts | None = None,
        distance: Distance = "spherical",
        templates: Sequence[str] = ("{}",),
        terms: Sequence[tuple[float, Term]] = (),
        chunk_size: int = 64,
    ) -> None:
        if not isinstance(model, CLIP):
            raise ConfigError(
                f"a {type(model).__name__} gives no gradients; take the model and its preprocessing from clip.load"
            )
        if preprocess.size != model.config.image_resolution:
            raise ConfigError(
                f"preprocess gives pictures of {preprocess.size} pixels, the model takes "
                f"{model.config.image_resolution}; take both from the same clip.load"
            )
        if distance not in _DISTANCES:
            raise ConfigError(f"distance is {distance!r}; it must be one of {choices(distance, get_args(Distance))}")
        if chunk_size < 1:
            raise ConfigError(f"chunk_size is {chunk_size}; it must be at least 1")
        for name, value in (("prompts", prompts), ("against", against)):
            if isinstance(value, str):
                raise ConfigError(f"{name} is {value!r}; give a list, [{value!r}]")
        self.model, self.preprocess = frozen_twin(model), preprocess
        self.cutouts = Cutouts() if cutouts is None else cutouts
        self.distance: Distance = distance
        self.terms, self.chunk_size = tuple(terms), chunk_size
        goals = [*prompts, *(image if isinstance(image, ImagePrompt) else ImagePrompt(image) for image in images)]
        self.targets, self.weights = self._targets(goals, against, checked_templates(templates))

    @property
    def device(self) -> torch.device:
        """That of the model; pictures of another are brought there."""
        return self.model.logit_scale.device

    def __call__(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """(B,), lower is better, differentiable in the pictures; keeps all cut-outs in memory until the gradient is
        taken, where ``backward`` and ``value_and_gradient`` keep ``chunk_size``.

        images: (B, 3, H, W) in [0, 1] of any size, or (B, 4, H, W) with alpha.
        generator: of the cut-outs; one with the same seed gives the same, on every device and in every chunk size.
        Raises ShapeError, and ImageError for values out of range or not finite: the pixels of a generator are to be
        brought into [0, 1] by itself, where a clamp would stop their gradients.
        """
        images = self.checked(images)
        values = self._terms(images)
        for rows, views, share in self._chunks(images, generator):
            part = self._distances(images[rows], views) * share
            values = values.index_add(0, torch.arange(len(images), device=values.device)[rows], part)
        return values

    def value_and_gradient(self, images: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """The values (B,), and the gradient of their sum, shaped like the pictures. See the call for arguments.

        Memory is that of ``chunk_size`` cut-outs however many there are; the numbers are the same to rounding.
        """
        leaf = self.checked(images.detach()).detach().requires_grad_()
        with torch.enable_grad():
            values = self._terms(leaf)
            if values.requires_grad:
                torch.autograd.backward(values.sum())
            values = values.detach()
            for rows, views, share in self._chunks(leaf, generator):
                part = self._distances(leaf[rows], views) * share
                torch.autograd.backward(part.sum())
                values[rows] += part.detach()
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        return values, gradient.to(images.device, images.dtype)

    def backward(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """The values (B,), detached, after the gradient of their sum has gone back through the pictures to whatever
        they were made of: ``objective.backward(generator())`` and then ``optimizer.step()``."""
        values, gradient = self.value_and_gradient(images, generator=generator)
        torch.autograd.backward(images, gradient)
        return values

    def checked(self, images: Tensor) -> Tensor:
        """The pictures on the model's device, in fp32 or fp64; raises as a call does."""
        if images.ndim != 4 or images.shape[1] not in (3, 4) or 0 in images.shape:
            raise ShapeError(
                f"images have shape {tuple(images.shape)}; (batch, 3, height, width) is expected, or 4 with alpha"
            )
        if not images.is_floating_point():
            raise ShapeError(f"images are {images.dtype}; floating point in [0, 1] is expected: divide bytes by 255")
        low, high = (float(value) for value in images.detach().aminmax())
        if math.isnan(low) or math.isinf(low) or math.isinf(high):
            raise ImageError("images hold values that are not finite; nothing can be measured, look where they arose")
        if low < -_RANGE_TOLERANCE or high > 1 + _RANGE_TOLERANCE:
            raise ImageError(
                f"images hold values from {low:.4g} to {high:.4g}, and the range is 0 to 1; map them into it, with a "
                "sigmoid or (x + 1) / 2, or use straight_through_clamp"
            )
        return images.to(self.device, torch.float64 if images.dtype == torch.float64 else torch.float32)

    def _chunks(self, images: Tensor, generator: torch.Generator | None) -> Iterator[tuple[slice, Views, float]]:
        """Rows of the batch, some of their cut-outs, and what share of the mean these are."""
        batch, _, height, width = images.shape
        views = self.cutouts.draw(self.preprocess, width, height, generator)
        for first in range(0, batch, self.chunk_size):
            rows = slice(first, min(first + self.chunk_size, batch))
            step = max(self.chunk_size // (rows.stop - first), 1)
            for start in range(0, len(views), step):
                some = views[slice(start, start + step)]
                yield rows, some, len(some) / len(views)

    def _distances(self, images: Tensor, views: Views) -> Tensor:
        """(B,), the mean over these cut-outs."""
        with torch.autocast(self.device.type, enabled=False):
            pixels = views(images)  # (N, B, 3, S, S)
            count, batch = pixels.shape[:2]
            embeddings = self.embeddings(pixels.flatten(0, 1))  # (N·B, E)
            distances = _DISTANCES[self.distance](embeddings[:, None], self.targets.to(embeddings))  # (N·B, targets)
            return (distances @ self.weights.to(embeddings)).view(count, batch).mean(dim=0)

    def embeddings(self, pixels: Tensor) -> Tensor:
        """(N, 3, S, S) in [0, 1] → (N, E), unit norm, of the dtype of the pixels, differentiable in them."""
        mean, std = (pixels.new_tensor(value)[:, None, None] for value in (self.preprocess.mean, self.preprocess.std))
        pixels = (pixels - mean) / std
        is_half = self.model.dtype in (torch.float16, torch.bfloat16)
        if not is_half or not pixels.requires_grad:
            return F.normalize(self.model.encode_image(pixels).to(pixels), dim=-1)
        # In half precision the gradients of a mean over many cut-outs would vanish: they are scaled to one for the way
        # through the model, each cut-out by itself, and back to their size behind it.
        pixels = pixels.clone()  # a tensor of our own: hooks on it are nobody else's
        features = self.model.encode_image(pixels).to(pixels)
        scales: list[Tensor] = []

        def to_one(gradient: Tensor) -> Tensor:
            scales.append(gradient.abs().amax(dim=1, keepdim=True).clamp(min=1e-30))
            return gradient / scales[-1]

        features.register_hook(to_one)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        pixels.register_hook(lambda gradient: gradient * scales[-1][:, :, None, None])  # type: ignore[no-untyped-call]
        return F.normalize(features, dim=-1)

    def _terms(self, images: Tensor) -> Tensor:
        """(B,), in the dtype of the pictures."""
        values = images.new_zeros(len(images))
        for weight, term in self.terms:
            value = term(images)
            if value.shape != values.shape:
                raise ShapeError(
                    f"a term gave shape {tuple(value.shape)}; one value a picture, ({len(images)},), is expected"
                )
            values = values + weight * value
        return values

    def _targets(
        self,
        prompts: Sequence[str | Prompt | ImagePrompt | EmbeddingPrompt],
        against: Sequence[str | Prompt | ImagePrompt | EmbeddingPrompt],
        templates: tuple[str, ...],
    ) -> tuple[Tensor, Tensor]:
        """Embeddings (T, E), unit norm, and weights (T,), whose sizes sum to one."""
        goals = [Prompt(goal) if isinstance(goal, str) else goal for goal in (*prompts, *against)]
        if not goals:
            raise ConfigError("there is nothing to go towards; give prompts, images or against")
        signs = [1.0] * len(prompts) + [-1.0] * len(against)
        weights = [sign * goal.weight for sign, goal in zip(signs, goals, strict=True)]
        for goal, weight in zip(goals, weights, strict=True):
            if not math.isfinite(weight) or weight == 0:
                raise ConfigError(f"the weight of {_name(goal)} is {goal.weight}; it must be finite and not 0")
        rows = np.stack([self._embedding(goal, templates) for goal in goals]).astype(np.float64)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        total = sum(abs(weight) for weight in weights)
        as_tensor = [torch.from_numpy(rows), torch.tensor([weight / total for weight in weights], dtype=torch.float64)]
        targets, shares = (value.to(self.device, torch.float32) for value in as_tensor)
        return targets, shares

    def _embedding(
        self, goal: Prompt | ImagePrompt | EmbeddingPrompt, templates: tuple[str, ...]
    ) -> NDArray[np.float32]:
        """(E,), of any norm but zero."""
        width = self.model.config.embed_dim
        if isinstance(goal, Prompt):
            if not goal.text.strip():
                raise ConfigError("a prompt is empty; write what the picture should show")
            texts = [fill(template, goal.text) for template in templates]
            embeddings = np.concatenate([batch.embeddings for batch in encode_texts(self.model, texts)])
            mean: NDArray[np.float32] = embeddings.mean(axis=0)
            return mean
        if isinstance(goal, ImagePrompt):
            (batch,) = encode_images(self.model, self.preprocess, [goal.image], workers=1)
            row: NDArray[np.float32] = batch.embeddings[0]
            return row
        row = as_array(goal.embedding)
        if row.shape != (width,):
            raise ShapeError(f"an embedding has shape {row.shape}; the model's have ({width},)")
        if not np.isfinite(row).all() or not row.any():
            raise ConfigError("an embedding is zero or not finite, and points nowhere")
        return row


def spherical_distance(a: Tensor, b: Tensor) -> Tensor:
    """Half the squared angle between unit vectors (…, E) → (…): 2·arcsin(|a − b| / 2)², from 0 to π²/2.

    The angle is computed as 2·atan2(|a − b|, |a + b|) (Kahan 2006, section 12), which is exact to rounding at every
    angle and whose gradient is finite where the arcsine has none: zero for equal and for opposite vectors.
    """
    angle = 2 * torch.atan2(torch.linalg.vector_norm(a - b, dim=-1), torch.linalg.vector_norm(a + b, dim=-1))
    return angle.square() / 2


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """1 − cosine of unit vectors (…, E) → (…), from 0 to 2."""
    return 1 - (a * b).sum(dim=-1)


_DISTANCES: dict[Distance, Callable[[Tensor, Tensor], Tensor]] = {
    "spherical": spherical_distance,
    "cosine": cosine_distance,
}


def total_variation(images: Tensor) -> Tensor:
    """(B,): mean absolute difference of neighbouring pixels; flat areas with sharp edges cost little."""
    across, down = images.diff(dim=-1), images.diff(dim=-2)
    return across.abs().mean(dim=(1, 2, 3)) + down.abs().mean(dim=(1, 2, 3))


def smoothness(images: Tensor) -> Tensor:
    """(B,): mean squared difference of neighbouring pixels; edges cost much, slow changes little."""
    across, down = images.diff(dim=-1), images.diff(dim=-2)
    return across.square().mean(dim=(1, 2, 3)) + down.square().mean(dim=(1, 2, 3))


def _name(goal: Prompt | ImagePrompt | EmbeddingPrompt) -> str:
    return repr(goal.text) if isinstance(goal, Prompt) else f"an {type(goal).__name__}"
