"""One image → the tensor that a model expects: resize, crop, to RGB, to float, normalise.

A PIL image takes the exact path, whose every value is that of OpenAI's ``_transform``. An array of decoded pixels, as
``clip.images.read_pixels`` gives it, takes the fast path: the same filter in shorter integers, at most one grey level
away (two, in single pixels, where the picture has to grow). ``to_numpy`` takes the exact path for both and needs no
torch, which is imported at the first call that gives a tensor; Pillow is at the first that needs it, for a search in
words only wants to know what the pictures went through.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from clip.errors import ConfigError, ImageError, ShapeError, choices

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

__all__ = ["OPENAI_MEAN", "OPENAI_STD", "Preprocess"]

OPENAI_MEAN = (0.48145466, 0.4578275, 0.40821073)
OPENAI_STD = (0.26862954, 0.26130258, 0.27577711)

Resize = Literal["shortest", "squash", "longest"]
Interpolation = Literal["bicubic", "bilinear"]

# A 1 × 100 000 picture, its shorter side resized to 224, would be 5 gigapixels of which 50 000 are kept. Beyond this
# many pixels only the kept box is computed. Pillow rounds the edges of a box to single precision, so below it, where
# every real picture lies, the whole is resized and then cropped: the only way to OpenAI's exact values.
_MAX_RESIZED_PIXELS = 1 << 25


@lru_cache
def _pillow_may_go_down_first() -> bool:
    """https://github.com/python-pillow/Pillow/pull/9549: what OpenAI's pipeline gives for pictures more than twice as
    tall as wide depends on the version of Pillow."""
    import PIL

    return int(PIL.__version__.split(".")[0]) >= 13


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Preprocess:
    """What is done to an image before the image tower sees it; call it with the image.

    The fields hold all that OpenCLIP's ``preprocess_cfg`` and the ``preprocessor_config.json`` of transformers say.
    """

    size: int = 224
    """Width and height of the result in pixels."""
    mean: tuple[float, float, float] = OPENAI_MEAN
    """Subtracted per channel (red, green, blue), on the scale 0…1."""
    std: tuple[float, float, float] = OPENAI_STD
    """Divided by per channel, on the scale 0…1."""
    resize: Resize = "shortest"
    """``shortest``: shorter side to ``size``, then centre crop; ``squash``: both sides to ``size``, whatever the aspect
    ratio; ``longest``: longer side to ``size``, then centred on a square of ``fill``."""
    interpolation: Interpolation = "bicubic"
    """Always with antialiasing: the filter widens as the picture shrinks."""
    fill: int = 0
    """Grey level 0…255 of the border that ``longest`` adds."""

    def __post_init__(self) -> None:
        if not _is_int(self.size) or self.size < 1:
            raise ConfigError(f"size is {self.size!r}; it must be a positive number of pixels")
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, (list, tuple)) or len(values) != 3 or not all(_is_finite(v) for v in values):
                raise ConfigError(f"{name} is {values!r}; it must be three finite numbers, one per channel")
            object.__setattr__(self, name, tuple(float(v) for v in values))
        if min(self.std) <= 0:
            raise ConfigError(f"std is {self.std!r}; each number must be above 0, because pixels are divided by it")
        for name, known in (("resize", get_args(Resize)), ("interpolation", get_args(Interpolation))):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(f"{name} is {value!r}; it must be one of {choices(str(value), known)}")
        if not _is_int(self.fill) or not 0 <= self.fill <= 255:
            raise ConfigError(f"fill is {self.fill!r}; it must be a grey level from 0 to 255")

    def __call__(self, image: Image.Image | NDArray[np.uint8]) -> Tensor:
        """The image as a tensor (3, size, size), float32, normalised.

        image: a PIL image of any mode: the exact path, which like OpenAI's ignores EXIF orientation, drops alpha and
        resizes palettes without interpolation; or (H, W, 3) uint8, upright RGB: the fast path.
        Both release the interpreter lock while they resize, so threads run side by side.
        Raises ImageError for an image without pixels or whose mode has no way to RGB, ShapeError for another array.
        """
        import torch

        if isinstance(image, np.ndarray):
            return torch.from_numpy(self._normalized(self._resize_fast(_checked(image))))
        return torch.from_numpy(self.to_numpy(image))

    def to_numpy(self, image: Image.Image | NDArray[np.uint8]) -> NDArray[np.float32]:
        """The image as an array (3, size, size), float32, normalised, without torch: for both kinds of image the values
        that the call gives for a PIL image. Raises what the call raises.
        """
        from PIL import Image

        if isinstance(image, np.ndarray):
            image = Image.fromarray(_checked(image))
        elif not isinstance(image, Image.Image):
            raise TypeError(f"expected a PIL image or a NumPy array, found {type(image).__name__}")
        return self._normalized(self._resize_exactly(image))

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain JSON, which ``from_dict`` reads."""
        return {**dataclasses.asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Preprocess:
        """The value that ``to_dict`` wrote. Raises ConfigError for an unknown key or a bad value."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in fields:
            if key not in known:
                raise ConfigError(f"unknown preprocessing field {key!r}; the fields are {choices(str(key), known)}")
        return cls(**fields)

    def _resized(self, width: int, height: int) -> tuple[int, int]:
        """Width and height after the resize, before cropping or padding."""
        short, long = min(width, height), max(width, height)
        if self.resize == "squash":
            return self.size, self.size
        if self.resize == "shortest":
            long = int(self.size * long / short)  # truncated, as in torchvision
            return (self.size, long) if width <= height else (long, self.size)
        ratio = long / self.size
        return max(round(width / ratio), 1), max(round(height / ratio), 1)

    def _offset(self, length: int) -> int:
        """Where the centre crop begins on a side of this length; negative where there is a border to add."""
        if length < self.size:
            return -((self.size - length) // 2)
        return round((length - self.size) / 2)  # half to even, as in torchvision

    def _normalized(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        """pixels: (size, size, 3) → (3, size, size), contiguous."""
        mean, std = _columns(self.mean, self.std)
        result = np.empty((3, self.size, self.size), np.float32)
        # The three operations of ToTensor and Normalize in their order: folding them into one changes the last bit.
        result[:] = pixels.transpose(2, 0, 1)
        result /= np.float32(255)
        result -= mean
        result /= std
        return result

    def _resize_exactly(self, image: Image.Image) -> NDArray[np.uint8]:
        """(size, size, 3) by Pillow, step by step what torchvision does."""
        from PIL import Image

        if not image.width or not image.height:
            raise ImageError(f"an image of {image.width}×{image.height} has no pixels to resize")
        width, height = self._resized(image.width, image.height)
        left, top = self._offset(width), self._offset(height)
        resampling = Image.Resampling[self.interpolation.upper()]
        try:
            if width * height > _MAX_RESIZED_PIXELS:
                x_scale, y_scale = image.width / width, image.height / height
                right, bottom = left + self.size, top + self.size
                box = (left * x_scale, top * y_scale, right * x_scale, bottom * y_scale)
                image = image.resize((self.size, self.size), resampling, box=box)
            else:
                image = image.resize((width, height), resampling)
                if self.resize == "shortest":
                    image = image.crop((left, top, left + self.size, top + self.size))
            # OpenAI compatibility: RGB comes last. Palettes and bitmaps are resized without interpolation, and what
            # lies under transparent pixels shows.
            image.info.pop("transparency", None)  # of our copy: convert would try to keep it, and warn when it cannot
            image = image.convert("RGB")
        except (ValueError, KeyError, OSError) as error:
            raise ImageError(
                f"an image of mode {image.mode!r} and {image.width}×{image.height} cannot be resized and converted "
                f"to RGB ({error}); pass image.convert('RGB')"
            ) from error
        return self._on_square(np.asarray(image))

    def _resize_fast(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(size, size, 3) by torch; strided where it was cropped."""
        import torch
        import torch.nn.functional as F

        height, width = pixels.shape[:2]
        new_width, new_height = self._resized(width, height)
        if new_width * new_height > _MAX_RESIZED_PIXELS:
            from PIL import Image

            return self._resize_exactly(Image.fromarray(pixels))
        # torch wants memory that it may write to and strides that are not negative
        pixels = np.require(pixels, requirements=["C", "W"])
        batch = torch.from_numpy(pixels).permute(2, 0, 1).unsqueeze(0)  # (1, 3, H, W), channels last in memory
        # With channels last torch has vector code for bytes: 7 times the speed of Pillow's filter. Both round between
        # the two directions, so their order shows, by up to 18 levels in noise. Torch goes across first.
        if _pillow_may_go_down_first() and height > new_height and height - new_height > 2 * (width - new_width):
            batch = F.interpolate(batch, (new_height, width), mode=self.interpolation, antialias=True)
        resized = F.interpolate(batch, (new_height, new_width), mode=self.interpolation, antialias=True)[0]
        if self.resize == "shortest":
            left, top = self._offset(new_width), self._offset(new_height)
            resized = resized[:, top : top + self.size, left : left + self.size]
        return self._on_square(resized.permute(1, 2, 0).numpy())

    def _on_square(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """``pixels`` (h, w, 3) in the middle of (size, size, 3) of ``fill``, or as they are if that large."""
        height, width = pixels.shape[:2]
        if (height, width) == (self.size, self.size):
            return pixels
        left, top = -self._offset(width), -self._offset(height)
        square = np.full((self.size, self.size, 3), self.fill, np.uint8)
        square[top : top + height, left : left + width] = pixels
        return square


def _checked(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pixels (H, W, 3) of which there are some."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ShapeError(f"expected pixels (H, W, 3) of uint8, found {pixels.shape} of {pixels.dtype}")
    height, width = pixels.shape[:2]
    if not height or not width:
        raise ImageError(f"an image of {width}×{height} has no pixels to resize")
    return pixels


@lru_cache(maxsize=16)
def _columns(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Both as (3, 1, 1)."""
    return np.array(mean, np.float32).reshape(3, 1, 1), np.array(std, np.float32).reshape(3, 1, 1)


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
