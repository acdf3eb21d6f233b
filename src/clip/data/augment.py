"""What training does to a picture before ``Preprocess``: few dials, all off but a mild crop, and all recorded.

CLIP needs little: a random square crop is the paper's only augmentation (Radford et al. 2021, section 2.4). What
changes the meaning of a caption hurts: a flip turns letters and arrows round, grey and colour jitter contradict "a red
car". So these are 0 unless asked for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from clip.errors import ConfigError, choices
from clip.preprocess import Preprocess

__all__ = ["Augmentation", "TrainingPreprocess", "Transform"]


class Transform(Protocol):
    """Pixels → tensor. Must be picklable, and draw all its randomness from ``generator``."""

    @property
    def size(self) -> int:
        """Width and height of the result."""

    @property
    def shorter_side(self) -> int | None:
        """What the shorter side is resized to, so that large JPEGs are decoded at less; None if it is not known."""

    def __call__(self, pixels: NDArray[np.uint8], generator: np.random.Generator) -> Tensor:
        """pixels: (H, W, 3), RGB. Returns (3, S, S) float32."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """Dials of random changes; each is drawn anew for each picture and epoch."""

    crop_scale: tuple[float, float] = (0.9, 1.0)
    """Share, least and most, of what inference would keep (the centre square; all, where it squashes or pads). The crop
    has that shape and lies anywhere in the picture. (1, 1) is the crop of inference itself."""
    flip: float = 0.0
    """Chance of turning left and right round."""
    rotate: float = 0.0
    """Largest angle in degrees, either way; corners are filled with the colour of ``background``."""
    colour: float = 0.0
    """Strength of random changes of brightness, contrast and saturation: factors from 1 - colour to 1 + colour."""
    grey: float = 0.0
    """Chance of losing all colour."""
    background: int = 255
    """Grey level 0…255 of what a rotation uncovers: white, as transparent pictures are laid over it too."""

    def __post_init__(self) -> None:
        low_high = self.crop_scale
        if not isinstance(low_high, (list, tuple)) or len(low_high) != 2 or not 0 < low_high[0] <= low_high[1] <= 1:
            raise ConfigError(f"crop_scale is {low_high!r}; it must be two shares of the area, 0 < least <= most <= 1")
        object.__setattr__(self, "crop_scale", (float(low_high[0]), float(low_high[1])))
        for name, most in (("flip", 1.0), ("grey", 1.0), ("colour", 1.0), ("rotate", 180.0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= most:
                raise ConfigError(f"{name} is {value!r}; it must be a number from 0 to {most:g}")
        if isinstance(self.background, bool) or not isinstance(self.background, int) or not 0 <= self.background <= 255:
            raise ConfigError(f"background is {self.background!r}; it must be a grey level from 0 to 255")

    @classmethod
    def none(cls) -> Augmentation:
        """Changes nothing: the preprocessing of inference."""
        return cls(crop_scale=(1.0, 1.0))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON, which ``from_dict`` reads."""
        return {**dataclasses.asdict(self), "crop_scale": list(self.crop_scale)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Augmentation:
        """The value that ``to_dict`` wrote. Raises ConfigError for an unknown key or a bad value."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in fields:
            if key not in known:
                raise ConfigError(f"unknown augmentation field {key!r}; the fields are {choices(str(key), known)}")
        return cls(**fields)


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class _Changes:
    """One draw of all the dials. Drawn always and in this order, so that turning one dial leaves the others' draws."""

    crop: tuple[float, float, float]
    """Area and place across and down, each on the scale 0…1."""
    is_flipped: bool
    angle: float
    brightness: float
    contrast: float
    saturation: float


class TrainingPreprocess:
    """``Preprocess`` with random changes before it: crop, flip, rotation, colours.

    Follows the fast path of ``Preprocess``, with its filter, size and normalisation, so that a model sees in training
    what it will see in use. With ``Augmentation.none()`` the two are equal to the last bit.
    """

    def __init__(self, preprocess: Preprocess, *, augmentation: Augmentation | None = None) -> None:
        self.preprocess = preprocess
        self.augmentation = Augmentation() if augmentation is None else augmentation

    @property
    def size(self) -> int:
        return self.preprocess.size

    @property
    def shorter_side(self) -> int | None:
        """Of the whole picture, so that the smallest crop still has the pixels that are asked for."""
        least = self.augmentation.crop_scale[0]
        return math.ceil(self.preprocess.size / math.sqrt(least))

    def __call__(self, pixels: NDArray[np.uint8], generator: np.random.Generator) -> Tensor:
        """pixels: (H, W, 3) uint8, RGB. Returns (3, size, size) float32, normalised."""
        changes = self._drawn(generator)
        if changes.angle:
            pixels = self._rotated(pixels, changes.angle)
        pixels = self._cropped(pixels, changes.crop)
        if changes.is_flipped:
            pixels = pixels[:, ::-1]
        result = self.preprocess(np.ascontiguousarray(pixels))
        if (changes.brightness, changes.contrast, changes.saturation) == (1.0, 1.0, 1.0):
            return result
        return self._recoloured(result, changes)

    def _drawn(self, generator: np.random.Generator) -> _Changes:
        dials = self.augmentation
        area, across, down, flip, angle, brightness, contrast, saturation, grey = generator.random(9).tolist()
        return _Changes(
            crop=(area, across, down),
            is_flipped=flip < dials.flip,
            angle=(2 * angle - 1) * dials.rotate,
            brightness=1 + (2 * brightness - 1) * dials.colour,
            contrast=1 + (2 * contrast - 1) * dials.colour,
            saturation=0.0 if grey < dials.grey else 1 + (2 * saturation - 1) * dials.colour,
        )

    def _rotated(self, pixels: NDArray[np.uint8], angle: float) -> NDArray[np.uint8]:
        ground = (self.augmentation.background,) * 3
        image = Image.fromarray(pixels).rotate(angle, Image.Resampling.BILINEAR, fillcolor=ground)
        return np.asarray(image)

    def _cropped(self, pixels: NDArray[np.uint8], draw: tuple[float, float, float]) -> NDArray[np.uint8]:
        """A box of random area and place, never distorted, or all of the picture where the dial is off."""
        least, most = self.augmentation.crop_scale
        if least == 1.0:
            return pixels
        height, width = pixels.shape[:2]
        kept_height, kept_width = height, width
        if self.preprocess.resize == "shortest":
            kept_height = kept_width = min(height, width)
        side = math.sqrt(least + (most - least) * draw[0])
        crop_height, crop_width = max(round(kept_height * side), 1), max(round(kept_width * side), 1)
        left, top = int(draw[1] * (width - crop_width + 1)), int(draw[2] * (height - crop_height + 1))
        return pixels[top : top + crop_height, left : left + crop_width]

    def _recoloured(self, image: Tensor, changes: _Changes) -> Tensor:
        """Brightness, contrast and saturation on the scale 0…1, clamped to it, then normalised again."""
        mean = image.new_tensor(self.preprocess.mean).view(3, 1, 1)
        std = image.new_tensor(self.preprocess.std).view(3, 1, 1)
        levels = (image * std + mean) * changes.brightness
        levels.clamp_(0, 1)
        grey = _grey(levels).mean()
        levels = (grey + (levels - grey) * changes.contrast).clamp_(0, 1)
        grey = _grey(levels)
        levels = (grey + (levels - grey) * changes.saturation).clamp_(0, 1)
        return (levels - mean) / std


def _grey(image: Tensor) -> Tensor:
    """Luma (1, H, W) of (3, H, W) in RGB, by ITU-R 601, as Pillow has it."""
    red, green, blue = image.unbind(0)
    return (0.299 * red + 0.587 * green + 0.114 * blue).unsqueeze(0)
