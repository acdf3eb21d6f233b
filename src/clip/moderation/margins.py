"""The empty margins of a picture, and the picture without them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["border_colour", "on_square", "without_margins"]

Pixels = NDArray[np.uint8]

_SAME = 32
"""Levels by which the ground may vary: compression and a little shade."""
_EMPTY_SHARE = 0.95
"""Of a picture's border, from which on it is the ground of something in the middle."""
_PAGE_SHARE = 0.6
"""Of the border of what lies in a frame, from which on it is a page; what is on it may touch the frame."""
_FULL_SHARE = 0.85
"""Of a side; what fills more of it has no margins worth cutting."""
_BORDER_SHARE = 0.06
"""Of the longer side, left around what was cut out: about what emoji and icons have."""
_FRAMES = 3
"""One inside the other."""
_SAMPLED_SIDE = 256


def border_colour(pixels: Pixels) -> tuple[int, int, int]:
    """The median of the outermost pixels of (H, W, 3)."""
    red, green, blue = np.median(_border(pixels), axis=0)
    return int(red), int(green), int(blue)


def _border(pixels: Pixels) -> Pixels:
    return np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]])


def without_margins(pixels: Pixels) -> Pixels | None:
    """What is in the picture, on a square of its ground, or None if there are no margins, or nothing but.

    Frames inside each other are all cut off.
    """
    found = None
    for _ in range(_FRAMES):
        box = _content(pixels)
        if box is None:
            break
        left, top, right, bottom = box
        ground = border_colour(pixels)
        pixels = pixels[top:bottom, left:right]
        inset = 1 + 2 * _step(pixels)  # more than what the box has too much
        page = pixels[inset:-inset, inset:-inset]
        if page.size and _is_empty(_border(page), share=_PAGE_SHARE):  # a page in a frame, whose margins are its own
            pixels = page
            found = on_square(page, border_colour(page))
        else:
            found = on_square(pixels, ground, border=round(_BORDER_SHARE * max(pixels.shape)))
    return found


def _step(pixels: Pixels) -> int:
    height, width = pixels.shape[:2]
    return max(1, int(max(height, width)) // _SAMPLED_SIDE)


def _is_empty(border: Pixels, *, share: float = _EMPTY_SHARE) -> bool:
    away = np.abs(border.astype(np.int16) - np.median(border, axis=0)).max(axis=1)
    return bool(np.mean(away < _SAME) >= share)


def _content(pixels: Pixels) -> tuple[int, int, int, int] | None:
    """Left, top, right and bottom of what differs from the border, where that is of one colour."""
    height, width = pixels.shape[:2]
    if not _is_empty(_border(pixels)):
        return None
    step = _step(pixels)
    sample = pixels[::step, ::step].astype(np.int16)
    ground = np.array(border_colour(pixels), np.int16)
    differs = np.abs(sample - ground).max(axis=2) >= _SAME
    rows, columns = (np.flatnonzero(differs.any(axis=axis)) for axis in (1, 0))
    if not len(rows):
        return None
    left, right = max(0, int(columns[0] - 1) * step), min(width, int(columns[-1] + 2) * step)
    top, bottom = max(0, int(rows[0] - 1) * step), min(height, int(rows[-1] + 2) * step)
    if max(right - left, bottom - top) > _FULL_SHARE * max(height, width):
        return None
    return left, top, right, bottom


def on_square(pixels: Pixels, ground: tuple[int, int, int], *, border: int = 0) -> Pixels:
    """In the middle of a square of that colour."""
    height, width = pixels.shape[:2]
    side = max(height, width) + 2 * border
    square = np.empty((side, side, 3), np.uint8)
    square[:] = ground
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square
