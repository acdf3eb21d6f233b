"""How one picture may look: on white, on black, without its transparency, with its contrast stretched.

Each look is there only where it shows what the others do not, for every one of them costs time and may give a false
alarm.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip.moderation.frames import Picture

__all__ = ["Look", "difference", "looks", "reduced", "signature"]

Pixels = NDArray[np.uint8]

_SIGNATURE_SIDE = 24
_SAMPLED_SIDE = 192

_NEAR_THE_GROUND = 40  # levels of grey: what differs less from what it lies on can hardly be seen
_LOST_SHARE = 0.1  # of what is visible at all; below it the loss is that of an outline or a highlight
_TRANSLUCENT_SHARE = 0.15  # of all pixels; smoothed edges have less, pictures that change with the ground much more
_HIDDEN_SHARE = 0.02
_FLAT_CONTRAST = 48  # levels between the 2nd and the 98th percentile


class Look(NamedTuple):
    name: str
    """``""`` for the plain one."""
    is_hidden: bool
    pixels: Pixels
    """(H, W, 3), no more than asked for."""
    note: str | None = None


def looks(picture: Picture, *, max_pixels: int) -> Iterator[Look]:
    """The plain look first: what a viewer with a white page shows."""
    plain = _on(picture, 255)
    yield Look("", False, reduced(plain, max_pixels))
    if picture.alpha is not None:
        grounds = _grounds(picture.rgb, picture.alpha)
        for ground in grounds:
            yield Look(f"on {_GROUNDS[ground]}", False, reduced(_on(picture, ground), max_pixels))
        if _hides_colours(picture.rgb, picture.alpha):
            note = "colours are hidden under its transparency"
            yield Look("without transparency", True, reduced(picture.rgb, max_pixels), note)
    if picture.indices is not None and (ramp := _told_apart(picture.rgb, picture.alpha, picture.indices)) is not None:
        note = "its palette has different entries of one colour, which hide what is drawn with them"
        yield Look("palette told apart", True, reduced(ramp, max_pixels), note)
    if (stretched := _stretched(plain)) is not None:
        yield Look("contrast stretched", True, reduced(stretched, max_pixels), "it has hardly any contrast")


_GROUNDS = {0: "black", 128: "grey"}


def _on(picture: Picture, ground: int) -> Pixels:
    """Laid over a level of grey, rounded as Pillow does."""
    if picture.alpha is None:
        return picture.rgb
    page = Image.new("RGB", picture.rgb.shape[1::-1], (ground, ground, ground))
    page.paste(Image.fromarray(picture.rgb), mask=Image.fromarray(picture.alpha))
    return np.asarray(page)


def _grounds(rgb: Pixels, alpha: Pixels) -> list[int]:
    """On which a picture shows what it does not on white."""
    rgb, alpha = _sampled(rgb), _sampled(alpha)
    visible = alpha >= 8
    if not visible.any():
        return [0] if alpha.any() else []
    weight = alpha[visible].astype(np.float32)
    colours = rgb[visible].astype(np.int16)

    def lost(ground: int) -> float:
        return float(weight[np.abs(colours - ground).max(axis=1) < _NEAR_THE_GROUND].sum() / weight.sum())

    translucent = np.mean((alpha >= 8) & (alpha < 248)) > _TRANSLUCENT_SHARE
    on_white, on_black = lost(255), lost(0)
    if on_white <= _LOST_SHARE and not translucent:
        return []
    return [0, 128] if on_white > _LOST_SHARE and on_black > _LOST_SHARE else [0]


def _hides_colours(rgb: Pixels, alpha: Pixels) -> bool:
    """Whether what cannot be seen is more than one colour or a bleeding of its edges."""
    rgb, alpha = _sampled(rgb), _sampled(alpha)
    hidden = alpha < 16
    if np.mean(hidden) < _HIDDEN_SHARE:
        return False
    spread = np.percentile(rgb[hidden], (5, 95), axis=0)
    return bool(np.max(spread[1] - spread[0]) > 24)


def _told_apart(rgb: Pixels, alpha: Pixels | None, indices: Pixels) -> Pixels | None:
    """Each entry of the palette in a colour of its own, if there are several of one colour; None if not."""
    counts = np.bincount(indices.ravel(), minlength=256)
    used = np.flatnonzero(counts > _HIDDEN_SHARE / 8 * indices.size)
    if len(used) < 2:
        return None
    first = np.full(256, -1, np.int64)  # where each entry is used first, by writing from the end
    flat = indices.ravel()
    first[flat[::-1]] = np.arange(flat.size - 1, -1, -1)
    colours = rgb.reshape(-1, 3)[first[used]].astype(np.int16)
    if alpha is not None:
        colours = np.concatenate([colours, alpha.reshape(-1)[first[used], None]], axis=1)
    same = np.abs(colours[:, None] - colours[None]).max(axis=2) <= 3
    share = counts[used[(same.sum(axis=1) > 1)]].sum() / indices.size
    largest = counts[used[(same.sum(axis=1) > 1)]].max(initial=0) / indices.size
    if share - largest < _HIDDEN_SHARE:
        return None
    ramp = np.zeros((256, 3), np.uint8)
    ramp[used] = np.linspace(255, 0, len(used)).astype(np.uint8)[:, None]
    return ramp[indices]


def _stretched(pixels: Pixels) -> Pixels | None:
    """With its contrast at full, if it has hardly any; None if it has some, or none at all."""
    low, high = np.percentile(_sampled(pixels), (2, 98))
    if high - low > _FLAT_CONTRAST:
        return None
    sample = _sampled(pixels)
    low, high = np.percentile(sample.reshape(-1, 3), (0.2, 99.8), axis=0).min(), np.percentile(sample, 99.8)
    if not 2 <= high - low <= _FLAT_CONTRAST:
        return None
    levels = np.clip((np.arange(256) - low) * (255 / (high - low)), 0, 255).astype(np.uint8)
    stretched: Pixels = levels[pixels]
    return stretched


def reduced(pixels: Pixels, max_pixels: int) -> Pixels:
    """As it is, or made smaller by averaging to about that many pixels."""
    height, width = pixels.shape[:2]
    if height * width <= max_pixels:
        return pixels
    scale = (max_pixels / (height * width)) ** 0.5
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    if size[0] * size[1] > max_pixels:  # one side has become a single pixel
        size = (min(size[0], max_pixels), min(size[1], max_pixels))
    return _resized(pixels, size)


def _resized(pixels: Pixels, size: tuple[int, int]) -> Pixels:
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize(size, Image.Resampling.BOX))


def _sampled(pixels: Pixels) -> Pixels:
    """Every so many-th row and column, which is enough to decide by."""
    height, width = pixels.shape[:2]
    return pixels[:: -(-height // _SAMPLED_SIDE), :: -(-width // _SAMPLED_SIDE)]


def signature(picture: Picture) -> NDArray[np.float32]:
    """(24, 24, 4): a picture of any size, its transparency too, small enough to compare each frame with many."""
    size = (_SIGNATURE_SIDE, _SIGNATURE_SIDE)
    result = np.full((*size, 4), 255, np.float32)
    result[..., :3] = _resized(_sampled(picture.rgb), size)
    if picture.alpha is not None:
        result[..., 3] = _resized(_sampled(picture.alpha), size)
    return result


def difference(one: NDArray[np.float32], other: NDArray[np.float32]) -> NDArray[np.float32]:
    """Of signatures (…, 24, 24, 4), in levels of grey. The fourth power lets a small thing that is new count for more
    than the whole moving a little."""
    fourth = np.square(np.square(one - other))
    return np.asarray(fourth.mean(axis=(-3, -2, -1)) ** 0.25, np.float32)
