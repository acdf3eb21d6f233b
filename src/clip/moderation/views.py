"""What of a picture is looked at: the whole, parts of it, each frame of an animation, and what is meant not to be seen.

    looked = views_of("photo.gif", Views.standard)
    for view in looked.views:
        view.name, view.pixels            # "tile 2,1 of 2x2", (H, W, 3) uint8 of any size, for ``Preprocess``

A model that sees 64 or 224 pixels cannot find a small thing in a large scene, loses the borders of what is not square,
and knows nothing of transparency or of the second frame. Which views are worth their time was measured:
docs/red-team.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from clip.errors import ConfigError, choices
from clip.images import ImageSource, read_pixels

__all__ = ["PRESETS", "Looked", "View", "Views", "views_of"]

Kind = Literal["whole", "crop", "tile", "without-text", "hidden"]

Pixels = NDArray[np.uint8]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """How closely pictures are looked at; ``Views.fast``, ``Views.standard`` and ``Views.thorough`` are the presets."""

    name: str
    grids: tuple[int, ...] = ()
    """Passes of overlapping tiles: so many along the shorter side."""
    frames: int = 1
    """At most so many of an animation: the first, the last, and those that differ most."""
    max_views: int = 8
    """Of one picture, whatever it holds."""

    fast: ClassVar[Views]
    standard: ClassVar[Views]
    thorough: ClassVar[Views]

    def __post_init__(self) -> None:
        for field, low in (("frames", 1), ("max_views", 1)):
            if getattr(self, field) < low:
                raise ConfigError(f"{field} is {getattr(self, field)}; it must be at least {low}")
        if any(grid < 2 for grid in self.grids):
            raise ConfigError(f"grids is {self.grids}; a grid has at least 2 tiles along a side")

    @classmethod
    def named(cls, name: str) -> Views:
        """The preset of this name. Raises ConfigError, with the known names, for another."""
        if name not in PRESETS:
            raise ConfigError(f"no views are called {name!r}; choose one of {choices(name, PRESETS)}")
        return PRESETS[name]


Views.fast = Views(name="fast", frames=4, max_views=12)
Views.standard = Views(name="standard", grids=(2,), frames=8, max_views=48)
Views.thorough = Views(name="thorough", grids=(2, 4), frames=16, max_views=160)

PRESETS = {views.name: views for views in (Views.fast, Views.standard, Views.thorough)}
"""Preset by name, the fastest first."""


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """One thing to embed."""

    name: str
    """For people: ``whole``, ``tile 2,1 of 2x2``, ``frame 7: whole``, ``without text`` …"""
    kind: Kind
    frame: int
    """From 0."""
    pixels: Pixels
    """(H, W, 3) uint8, RGB, upright. Views may share memory with each other."""


@dataclasses.dataclass(frozen=True, slots=True)
class Looked:
    """What is to be looked at of one file."""

    views: tuple[View, ...]
    """At least one; the first is the whole of the first frame."""
    frames: int
    """That the file has, as far as could be told."""
    notes: tuple[str, ...]
    """What a reviewer should know, a sentence each."""
    sha256: str
    """Of the file's bytes."""


def views_of(source: ImageSource, how: Views = Views.standard) -> Looked:
    """What to look at of a picture file. Threads may call it side by side.

    Raises ImageError for what cannot be read; for an animation, only if its first frame cannot.
    """
    if isinstance(source, (str, bytes)) or not hasattr(source, "read"):
        data = source if isinstance(source, bytes) else open(source, "rb").read()  # noqa
    else:
        data = source.read()
    pixels = read_pixels(data)
    views = list(_parts(pixels, how, 0))
    return Looked(tuple(views[: how.max_views]), 1, (), hashlib.sha256(data).hexdigest())


def _parts(pixels: Pixels, how: Views, frame: int) -> Iterator[View]:
    """The whole, then the tiles of each grid."""
    yield View("whole", "whole", frame, _squared(pixels))
    for grid in how.grids:
        for name, tile in _tiles(pixels, grid):
            yield View(name, "tile", frame, tile)


def _squared(pixels: Pixels) -> Pixels:
    height, width = pixels.shape[:2]
    side = max(height, width)
    if height == width:
        return pixels
    square = np.full((side, side, 3), 255, np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[top : top + height, left : left + width] = pixels
    return square


def _tiles(pixels: Pixels, grid: int) -> Iterator[tuple[str, Pixels]]:
    height, width = pixels.shape[:2]
    side = max(1, round(min(height, width) * 1.5 / (grid + 0.5)))
    across = max(grid, round(grid * width / min(height, width)))
    down = max(grid, round(grid * height / min(height, width)))
    for row, top in enumerate(np.linspace(0, height - side, down).astype(int)):
        for column, left in enumerate(np.linspace(0, width - side, across).astype(int)):
            yield f"tile {column + 1},{row + 1} of {across}x{down}", pixels[top : top + side, left : left + side]
