"""Cut-outs of a picture, at the size that a model takes: what a word must fit however one looks at the picture.

A model fooled by one view of the pixels is not fooled by twenty at other places, sizes and angles, so the mean over
cut-outs leads to shapes instead of noise. All of it is differentiable in the pixels.

How a cut-out is resized matters: ``grid_sample`` and adaptive pooling alias as they shrink, and a gradient finds the
pixels between their samples and leaves them as noise. Here each cut-out is two products with matrices, one down and one
across, that hold the antialiased bicubic filter of ``Preprocess`` at any place and scale, fractions of pixels included:
the uncut picture is what the model will see later. Rotation and perspective follow at a scale of about one,
where bilinear sampling has nothing to alias; they blur a little.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from clip.errors import ConfigError
from clip.guidance.ranges import straight_through_clamp
from clip.preprocess import Preprocess

__all__ = ["Cutouts", "Views"]

_LUMA = (0.299, 0.587, 0.114)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Cutouts:
    """How many cut-outs, and what is done to each: drawn anew at each call, the same for all pictures of a call."""

    count: int = 16
    """Cut-outs of a picture, the uncut ones among them. Time grows with it; memory with ``chunk_size``."""
    uncut: int = 1
    """How many of them are the picture as ``Preprocess`` gives it, unchanged; the first ones."""
    size: tuple[float, float] = (0.6, 1.0)
    """Side of a cut-out, least and most, as a share of what is seen uncut; evenly distributed."""
    beyond: float = 0.1
    """How far a cut-out may lie outside the picture, as a share of its own side; there it shows the background."""
    flip: float = 0.0
    """Chance of turning left and right round. Letters and arrows do not survive it."""
    rotate: float = 0.0
    """Largest angle in degrees, either way."""
    perspective: float = 0.0
    """Largest slant: a corner may be up to 1 + p times as far away as the middle, and the opposite one 1 - p."""
    colour: float = 0.0
    """Strength of random changes of brightness, contrast and saturation: factors from 1 - colour to 1 + colour."""
    noise: float = 0.0
    """Standard deviation of noise on the pixels, on the scale 0…1."""
    background: tuple[float, float, float] | None = (1.0, 1.0, 1.0)
    """What shows outside the picture and through transparent pixels; None: another random colour in each cut-out, so
    that a transparent picture cannot count on one."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ConfigError(f"count is {self.count}; it must be at least 1")
        if not 0 <= self.uncut <= self.count:
            raise ConfigError(f"uncut is {self.uncut}; it must be from 0 to count, {self.count}")
        if len(self.size) != 2 or not 0 < self.size[0] <= self.size[1] <= 2:
            raise ConfigError(f"size is {self.size!r}; it must be two shares of the picture, 0 < least <= most <= 2")
        limits = {"beyond": 1.0, "flip": 1.0, "rotate": 180.0, "perspective": 0.5, "colour": 1.0, "noise": 1.0}
        for name, most in limits.items():
            if not 0 <= getattr(self, name) <= most:
                raise ConfigError(f"{name} is {getattr(self, name)!r}; it must be a number from 0 to {most:g}")
        if self.background is not None and (
            len(self.background) != 3 or not all(0 <= value <= 1 for value in self.background)
        ):
            raise ConfigError(f"background is {self.background!r}; it must be three numbers from 0 to 1, or None")

    @classmethod
    def none(cls) -> Cutouts:
        """The uncut picture alone: no randomness, and the fastest."""
        return cls(count=1, uncut=1)

    def draw(self, preprocess: Preprocess, width: int, height: int, generator: torch.Generator | None = None) -> Views:
        """All that is random about the cut-outs of pictures of this size, drawn at once, so that nothing depends on how
        they are divided into chunks. A generator of the CPU gives the same cut-outs on every device."""
        device = generator.device if generator is not None else torch.device("cpu")
        # All dials are drawn, in this order, so that turning one leaves the draws of the others.
        u = torch.rand(self.count, 14, generator=generator, device=device, dtype=torch.float64).cpu()
        seeds = torch.randint(2**62, (self.count,), generator=generator, device=device).cpu()
        either_way = 2 * u - 1

        whole = torch.tensor(_uncut_box(preprocess, width, height), dtype=torch.float64)  # left, top, width, height
        share = self.size[0] + (self.size[1] - self.size[0]) * u[:, :1]
        sides = share * whole[2:]
        # Across and down: from ``beyond`` of its side outside on one border of the picture to the same on the other.
        picture = torch.tensor([width, height], dtype=torch.float64)
        first = torch.minimum(-self.beyond * sides, (picture - sides) / 2)
        last = torch.maximum(picture - sides + self.beyond * sides, (picture - sides) / 2)
        boxes = torch.cat([first + (last - first) * u[:, 1:3], sides], dim=1)

        angle = math.radians(self.rotate) * either_way[:, 3]
        slant = self.perspective / 2 * either_way[:, 4:6]
        factors = 1 + self.colour * either_way[:, 6:9]
        if self.background is None:
            backgrounds = u[:, 9:12]
        else:
            backgrounds = torch.tensor(self.background, dtype=torch.float64).expand(self.count, 3).clone()

        changed = torch.arange(self.count) >= self.uncut
        if preprocess.resize == "longest":
            backgrounds[~changed] = preprocess.fill / 255  # the borders that the model knows
        return Views(
            how=self,
            preprocess=preprocess,
            boxes=torch.where(changed[:, None], boxes, whole),
            is_flipped=changed & (u[:, 12] < self.flip),
            angles=torch.where(changed, angle, 0),
            slants=torch.where(changed[:, None], slant, 0),
            factors=torch.where(changed[:, None], factors, 1),
            backgrounds=backgrounds,
            seeds=seeds,
            is_changed=changed,
        )


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Views:
    """Cut-outs that have been drawn, N of them; a slice of it is some of them."""

    how: Cutouts
    preprocess: Preprocess
    boxes: Tensor
    """(N, 4) left, top, width and height in pixels of the picture, not rounded."""
    is_flipped: Tensor
    angles: Tensor
    slants: Tensor
    """(N, 2), across and down."""
    factors: Tensor
    """(N, 3) of brightness, contrast and saturation."""
    backgrounds: Tensor
    """(N, 3)"""
    seeds: Tensor
    """(N,) of the noise."""
    is_changed: Tensor

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, some: slice) -> Views:
        tensors: dict[str, Any] = {
            field.name: value[some]
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), Tensor)
        }
        return dataclasses.replace(self, **tensors)

    def __call__(self, images: Tensor) -> Tensor:
        """images: (B, 3, H, W) in [0, 1], or (B, 4, H, W) with alpha, not premultiplied → (N, B, 3, S, S) in [0, 1],
        not normalised yet. The device and dtype are those of the images.
        """
        # Alpha says where the picture is: inside its borders, and where it is not transparent. Colours are multiplied
        # by it before they are mixed, lest those of invisible pixels bleed into their neighbours.
        alpha = images[:, 3:] if images.shape[1] == 4 else torch.ones_like(images[:, :1])
        layers = torch.cat([images[:, :3] * alpha, alpha], dim=1)  # (B, 4, H, W)
        is_warped = bool(self.angles.any() or self.slants.any())
        border = math.ceil((self._margin() - 1) * self.preprocess.size / 2) if is_warped else 0
        cut = _resampled(layers, self.boxes, self.is_flipped, self.preprocess, border)
        if is_warped:
            cut = self._warped(cut, border)
        colours, alpha = cut[:, :, :3], cut[:, :, 3:]
        backgrounds = self.backgrounds.to(cut)[:, None, :, None, None]
        return straight_through_clamp(self._noisy(self._jittered(colours + (1 - alpha) * backgrounds)))

    def _margin(self) -> float:
        """How much larger than the cut-out what is resized must be, for a warp to find its corners in it."""
        angle = min(math.radians(self.how.rotate), math.pi / 4)
        return (math.cos(angle) + math.sin(angle)) / (1 - self.how.perspective)

    def _warped(self, cut: Tensor, border: int) -> Tensor:
        """(N, B, 4, S + 2 border, …) → (N, B, 4, S, S): the middle of it, turned and slanted."""
        count, batch = cut.shape[:2]
        size, scale = self.preprocess.size, self.preprocess.size / cut.shape[-1]
        ticks = (torch.arange(size, device=cut.device, dtype=cut.dtype) + 0.5) * (2 / size) - 1
        down, across = torch.meshgrid(ticks, ticks, indexing="ij")
        cosine, sine = (f(self.angles).to(cut)[:, None, None] for f in (torch.cos, torch.sin))
        slants = self.slants.to(cut)[:, :, None, None]
        depth = 1 + slants[:, 0] * across + slants[:, 1] * down
        grid = torch.stack([cosine * across - sine * down, sine * across + cosine * down]) * scale / depth
        warped = F.grid_sample(cut.flatten(1, 2), grid.permute(1, 2, 3, 0), align_corners=False)
        warped = warped.view(count, batch, 4, size, size)
        is_warped = (self.angles != 0) | self.slants.any(dim=1)  # the others lost nothing: take their middle as it is
        middle = cut[..., border : border + size, border : border + size]
        return torch.where(is_warped.to(cut.device)[:, None, None, None, None], warped, middle)

    def _jittered(self, pixels: Tensor) -> Tensor:
        if not self.how.colour:
            return pixels
        brightness, contrast, saturation = self.factors.to(pixels).T[:, :, None, None, None, None]
        pixels = pixels * brightness
        grey: Tensor = (pixels * pixels.new_tensor(_LUMA)[:, None, None]).sum(dim=2, keepdim=True)
        pixels = grey + saturation * (pixels - grey)
        mean = grey.mean(dim=(-2, -1), keepdim=True)
        jittered: Tensor = mean + contrast * (pixels - mean)
        return jittered

    def _noisy(self, pixels: Tensor) -> Tensor:
        if not self.how.noise:
            return pixels
        noise = torch.stack(
            [
                torch.randn(
                    pixels.shape[2:], generator=torch.Generator().manual_seed(int(seed))
                )  # of the CPU: any device
                for seed in self.seeds
            ]
        )
        noise = noise * self.is_changed[:, None, None, None]
        return pixels + self.how.noise * noise.to(pixels)[:, None]


def _uncut_box(preprocess: Preprocess, width: int, height: int) -> tuple[float, float, float, float]:
    """Left, top, width and height of what the model is shown of a picture, in its pixels; larger than the picture where
    ``longest`` adds borders."""
    new_width, new_height = preprocess._resized(width, height)  # rounded as there: a pixel of the result is at stake
    left, top = preprocess._offset(new_width), preprocess._offset(new_height)
    if preprocess.resize == "squash":
        left = top = 0
    across, down = width / new_width, height / new_height
    return left * across, top * down, preprocess.size * across, preprocess.size * down


def _resampled(layers: Tensor, boxes: Tensor, is_flipped: Tensor, preprocess: Preprocess, border: int) -> Tensor:
    """layers: (B, C, H, W) → (N, B, C, S + 2 border, …): the boxes at S pixels, and so much of what is around them."""
    batch, channels, height, width = layers.shape
    scales = boxes[:, 2:] / preprocess.size  # pixels of the picture for one of the result
    first, size = boxes[:, :2] - border * scales, preprocess.size + 2 * border
    across = _resize_matrix(first[:, 0], scales[:, 0], width, size, preprocess.interpolation)  # (N, size, W)
    down = _resize_matrix(first[:, 1], scales[:, 1], height, size, preprocess.interpolation)  # (N, size, H)
    across = torch.where(is_flipped[:, None, None], across.flip(1), across)
    across, down = across.to(layers), down.to(layers)
    count = len(boxes)
    # One large product across, then one for each cut-out down.
    rows = layers.reshape(-1, width) @ across.reshape(-1, width).T  # (B·C·H, N·size)
    rows = straight_through_clamp(rows)  # as Pillow does between the two: what overshot would be five grey levels off
    rows = rows.view(batch * channels, height, count, size).permute(2, 1, 0, 3).reshape(count, height, -1)
    return (down @ rows).view(count, size, batch, channels, size).permute(0, 2, 3, 1, 4)


def _resize_matrix(first: Tensor, scales: Tensor, length: int, size: int, interpolation: str) -> Tensor:
    """(N, size, length): row i holds the weights of the source pixels in pixel i of the result.

    The filter is that of Pillow: it widens as the picture shrinks, and its weights are renormalised at the border. A
    pixel of the result whose middle lies outside the source is empty: its row is zero.
    """
    scale = scales[:, None, None]
    middles = first[:, None, None] + (torch.arange(size, dtype=torch.float64)[:, None] + 0.5) * scale
    sources = torch.arange(length, dtype=torch.float64) + 0.5
    weights = _KERNELS[interpolation]((sources - middles) / scale.clamp(min=1))
    weights = weights / weights.sum(dim=-1, keepdim=True).clamp(min=1e-3)
    return weights * ((middles > 0) & (middles < length))


def _bicubic(x: Tensor) -> Tensor:
    """Keys' kernel with a = -0.5, as Pillow has it."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


def _bilinear(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp(min=0)


_KERNELS: dict[str, Callable[[Tensor], Tensor]] = {"bicubic": _bicubic, "bilinear": _bilinear}
