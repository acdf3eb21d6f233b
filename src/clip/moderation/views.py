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
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from clip.errors import ConfigError, ImageError, choices
from clip.images import MAX_BYTES, MAX_PIXELS, ImageSource
from clip.moderation.frames import Frame, Frames, Picture, as_stored, embedded_pictures, find_frames
from clip.moderation.looks import Look, difference, looks, signature
from clip.moderation.margins import border_colour, on_square, without_margins
from clip.moderation.sampling import MostDifferent, evenly
from clip.moderation.text_regions import find_writing, without_writing

__all__ = ["PRESETS", "Looked", "View", "Views", "bytes_of", "views_of", "views_of_bytes"]

Kind = Literal["whole", "turned", "crop", "tile", "without-text", "hidden"]

Pixels = NDArray[np.uint8]

_VIEWED_PIXELS = 1 << 21
"""Of one look at a single picture: the smallest tile of the thorough grid still has 400 pixels a side."""
_VIEWED_PIXELS_OF_FRAMES = 1 << 19
_WHOLE_SIDE = 672
"""The longer side of a whole view that is padded: three times what most models see."""
_SHORTER_SIDE = 448
"""For ``read_pixels``, which keeps at least three times as much of a JPEG."""
_FRAME_COST = 1 << 17
"""What a frame costs beside its pixels, in pixels."""
_PAGE_COST = 1 << 20
_UNEQUAL = 1.15
"""Sides; of what is squarer the proportions hardly suffer."""
_ELONGATED = 1.6
_LEAST_WRITING = 0.01
"""Of the picture; less does not change what it is taken for."""
_FLAT = 16
"""Levels of grey between the lightest and the darkest; a part with less shows nothing."""
_DIFFERENT = 24.0
"""From how large a ``difference`` on an embedded picture is another one, and no thumbnail."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Views:
    """How closely pictures are looked at; ``Views.fast``, ``Views.standard`` and ``Views.thorough`` are the presets."""

    name: str
    grids: tuple[int, ...] = ()
    """Passes of overlapping tiles: so many along the shorter side."""
    frames: int = 1
    """At most so many of an animation: the first, the last, and those that differ most."""
    turns: tuple[int, ...] = ()
    """Degrees, against the clock, by which the whole is turned as well; of an animation only its first frame."""
    is_text_removed: bool = False
    """Whether a picture with writing on it is also looked at without."""
    parts: int = 4
    """At most so many squares along a picture that is longer than wide."""
    max_views: int = 8
    """Of one picture, whatever it holds."""
    max_decoded: int = 1 << 26
    """Pixels of all frames but the first; more frames than that are sampled evenly."""

    fast: ClassVar[Views]
    standard: ClassVar[Views]
    thorough: ClassVar[Views]

    def __post_init__(self) -> None:
        for field, low in (("frames", 1), ("parts", 1), ("max_views", 1), ("max_decoded", 1)):
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


_QUARTERS = (90, 180, 270)

Views.fast = Views(name="fast", parts=4, frames=4, max_views=12, max_decoded=1 << 26)
Views.standard = Views(
    name="standard",
    grids=(2,),
    turns=_QUARTERS,
    is_text_removed=True,
    parts=8,
    frames=8,
    max_views=48,
    max_decoded=1 << 28,
)
Views.thorough = Views(
    name="thorough",
    grids=(2, 4),
    turns=(*_QUARTERS, *(angle for angle in range(30, 360, 30) if angle % 90)),
    is_text_removed=True,
    parts=24,
    frames=16,
    max_views=160,
    max_decoded=1 << 29,
)

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

    Raises ImageError for what cannot be read; an animation is read if any of its frames is.
    """
    name, data = bytes_of(source)
    return views_of_bytes(data, how, name=name)


def views_of_bytes(data: bytes, how: Views = Views.standard, *, name: str = "<bytes>") -> Looked:
    """``views_of`` for bytes that were read; messages begin with the name."""
    try:
        found = _Found(find_frames(data), how)
        views = [*itertools.islice(_views(data, found, how), how.max_views + 1)]
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error.__cause__
    if len(views) > how.max_views:
        views.pop()
        found.notes.append(f"only the first {how.max_views} views were looked at")
    return Looked(tuple(views), found.count, tuple(found.notes), hashlib.sha256(data).hexdigest())


def bytes_of(source: ImageSource) -> tuple[str, bytes]:
    """A name for messages, and the bytes."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>", bytes(source)
    try:
        if isinstance(source, (str, os.PathLike)):
            name = os.fspath(source)
            with Path(source).open("rb") as file:
                data = file.read(MAX_BYTES + 1)
        else:
            name = str(getattr(source, "name", "<stream>"))
            data = source.read(MAX_BYTES + 1)
    except IsADirectoryError as error:
        raise ImageError(f"{name}: is a directory; pass the path of one picture") from error
    except FileNotFoundError as error:
        raise ImageError(f"{name}: no such file; check the path") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: cannot be read ({error}); check its permissions") from error
    if len(data) > MAX_BYTES:
        raise ImageError(f"{name}: has more than {MAX_BYTES} bytes; re-encode the picture as JPEG or PNG")
    return name, data


class _Found:
    """The looks at the frames that were chosen, and what there is to say about the others."""

    def __init__(self, frames: Frames, how: Views) -> None:
        self.count = len(frames.patches)
        self.notes: list[str] = []
        chosen = _affordable(frames, how.max_decoded)
        self._most_different = MostDifferent[tuple[int, int, list[Look]]](how.frames)
        damaged = self._take(frames, chosen, how.max_decoded)
        if self.count > 1:
            self.notes.append(f"{len(self.kept)} of its {self.count} frames were looked at, those that differ most")
        if damaged:
            self.notes.append(f"{damaged} of {len(chosen)} frames are damaged or too large and were passed over")
        if len(chosen) < self.count:
            self.notes.append(f"{self.count - len(chosen)} of {self.count} frames were not even decoded")
        if not frames.is_whole:
            self.notes.append("the file is cut off, damaged or too long; only its beginning was read")
        if frames.patches[0].is_default:
            self.notes.append("viewers without animation show a picture that is none of its frames")
        if self.orientation != 1:
            self.notes.append(f"viewers that ignore its EXIF orientation ({self.orientation}) show it turned")

    @property
    def kept(self) -> list[tuple[int, int, list[Look]]]:
        """Index, orientation and looks of each, in their order."""
        return sorted(self._most_different.kept, key=lambda frame: frame[0])

    @property
    def orientation(self) -> int:
        return self.kept[0][1]

    def _take(self, frames: Frames, chosen: list[int], max_decoded: int) -> int:
        """How many could not be decoded. Raises ImageError if none could."""
        decoded = viewed = damaged = 0
        error: ImageError | None = None
        max_viewed = _VIEWED_PIXELS if self.count == 1 else _VIEWED_PIXELS_OF_FRAMES
        shown = frames.shown(chosen, max_pixels=MAX_PIXELS, shorter_side=_SHORTER_SIDE)
        for index, frame in zip(chosen, shown, strict=False):
            if not isinstance(frame, Frame):
                error, damaged = error or frame, damaged + 1
                continue
            height, width = frame.picture.rgb.shape[:2]
            sign = signature(frame.picture)
            is_last = index == chosen[-1]
            place = self._most_different.place_for(sign, is_last=is_last)
            # Half the budget is for decoding, which was planned, and half for looking at frames that seem worth it.
            if place is not None and (viewed + height * width <= max_decoded // 2 or place == 0 or is_last):
                viewed += height * width
                # The next frame will be drawn over these pixels.
                picture = frame.picture.copied() if frames.canvas else frame.picture
                found = list(looks(picture, max_pixels=max_viewed))
                self._most_different.put(place, sign, (index, frame.picture.orientation, found))
            decoded += height * width if frames.canvas is None else 0
            if decoded > max_decoded:
                self.notes.append(f"frames after number {index} were not looked at; they are too large for that")
                break
        if not self._most_different.kept:
            raise error or ImageError("it has no frames")
        return damaged


def _affordable(frames: Frames, max_decoded: int) -> list[int]:
    """All frames, or as many of them, evenly spaced, as half the budget is enough for."""
    sizes = (patch.box[2] * patch.box[3] if frames.canvas else _PAGE_COST for patch in frames.patches)
    cost = sum(sizes) + _FRAME_COST * len(frames.patches)
    return evenly(len(frames.patches), max(2, int(len(frames.patches) * max_decoded / 2 / cost)))


def _views(data: bytes, found: _Found, how: Views) -> Iterator[View]:
    """What matters most comes first, for there is an end to it."""
    (index, orientation, first), *others = found.kept
    yield _whole(first[0], index)
    for other_index, _, frame_looks in others:
        yield _whole(frame_looks[0], other_index)
    for look in first[1:]:
        yield _whole(look, index)
        if look.note:
            found.notes.append(look.note)
    if orientation != 1:
        yield _whole(first[0]._replace(name="as stored", pixels=as_stored(first[0].pixels, orientation)), index)
    yield from _embedded(data, found)
    for frame_index, _, frame_looks in found.kept:
        yield from _other_wholes(frame_looks[0], frame_index, how.turns if frame_index == index else ())
    if how.is_text_removed:
        for frame_index, _, frame_looks in found.kept:
            yield from _without_text(frame_looks[0], frame_index, found)
    for frame_index, _, frame_looks in found.kept:
        for look in frame_looks:
            if frame_index != index and look is not frame_looks[0]:
                yield _whole(look, frame_index)
            yield from _parts_along(look, frame_index, how.parts)
    for grid, (frame_index, _, frame_looks) in itertools.product(how.grids, found.kept):
        for look in frame_looks:
            yield from _tiles(look, frame_index, grid)


def _named(what: str, look: Look, frame: int) -> str:
    name = f"{what} {look.name}" if look.name else what
    return f"frame {frame}: {name}" if frame else name


def _whole(look: Look, frame: int) -> View:
    return View(_named("whole", look, frame), _kind(look, "whole"), frame, _squashed(look.pixels))


def _kind(look: Look, kind: Kind) -> Kind:
    return "hidden" if look.is_hidden else kind


def _other_wholes(look: Look, frame: int, turns: tuple[int, ...]) -> Iterator[View]:
    """In its own proportions, without its empty margins, turned."""
    height, width = look.pixels.shape[:2]
    if max(height, width) > _UNEQUAL * min(height, width):
        yield View(_named("whole, padded", look, frame), _kind(look, "whole"), frame, _squared(look.pixels))
    trimmed = without_margins(look.pixels)
    if trimmed is not None:
        yield View(_named("trimmed", look, frame), _kind(look, "whole"), frame, trimmed)
    whole = look.pixels if trimmed is None else trimmed
    for angle in turns:
        name = _named(f"turned by {angle}°", look, frame)
        yield View(name, _kind(look, "turned"), frame, _turned(_squashed(whole), angle))


def _turned(pixels: Pixels, angle: int) -> Pixels:
    """On what is at its border, as large as what it holds."""
    if angle % 90 == 0:
        return np.ascontiguousarray(np.rot90(pixels, angle // 90))
    ground = border_colour(pixels)
    turned = Image.fromarray(pixels).rotate(angle, Image.Resampling.BILINEAR, expand=True, fillcolor=ground)
    trimmed = without_margins(np.asarray(turned))
    return np.asarray(turned) if trimmed is None else trimmed


def _squashed(pixels: Pixels) -> Pixels:
    """As a square, so that a model that crops the centre sees all of it at the largest size."""
    height, width = pixels.shape[:2]
    if height == width:
        return pixels
    side = min(max(height, width), _WHOLE_SIDE)
    filter_ = Image.Resampling.BOX if min(height, width) > side else Image.Resampling.BILINEAR
    return np.asarray(Image.fromarray(np.ascontiguousarray(pixels)).resize((side, side), filter_))


def _squared(pixels: Pixels) -> Pixels:
    """In the middle of a square of what is at its border."""
    height, width = pixels.shape[:2]
    if height == width:
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    side = min(max(height, width), _WHOLE_SIDE)
    image = ImageOps.contain(image, (side, side), Image.Resampling.BILINEAR)
    return on_square(np.asarray(image), border_colour(pixels))


def _embedded(data: bytes, found: _Found) -> Iterator[View]:
    """Pictures inside the file that are none of its frames."""
    known = [_sign(frame_looks[0].pixels) for _, _, frame_looks in found.kept]
    number = 0
    for picture in embedded_pictures(data, max_pixels=MAX_PIXELS // 8):
        look = next(looks(picture, max_pixels=_VIEWED_PIXELS_OF_FRAMES))
        sign = _sign(look.pixels)
        if difference(np.stack(known), sign).min() < _DIFFERENT:
            continue
        known.append(sign)
        number += 1
        found.notes.append("another picture is hidden inside the file: a thumbnail of something else, or appended")
        yield View(f"hidden picture {number}", "hidden", 0, _squashed(look.pixels))


def _without_text(look: Look, frame: int, found: _Found) -> Iterator[View]:
    writing = find_writing(look.pixels)
    if writing.coverage < _LEAST_WRITING:
        return
    where = f"of frame {frame}" if frame else "of it"
    found.notes.append(f"writing, or what looks like it, covers {writing.coverage:.0%} {where}")
    bare = look._replace(pixels=without_writing(look.pixels, writing))
    yield View(_named("without text", bare, frame), "without-text", frame, _squashed(bare.pixels))


def _parts_along(look: Look, frame: int, limit: int) -> Iterator[View]:
    """Overlapping squares along the longer side of a picture that is far from square."""
    height, width = look.pixels.shape[:2]
    short, long = sorted((height, width))
    if long <= _ELONGATED * short:
        return
    count = min(-(-2 * long // short) - 1, limit)
    length = max(short, int(long / (count / 2 + 0.5)))
    for number, start in enumerate(np.linspace(0, long - length, count).astype(int), 1):
        where = np.s_[start : start + length]
        part = look.pixels[where] if height > width else look.pixels[:, where]
        if not _is_flat(part):
            yield View(_named(f"part {number} of {count}", look, frame), _kind(look, "crop"), frame, _squashed(part))


def _tiles(look: Look, frame: int, grid: int) -> Iterator[View]:
    """Squares that overlap by about a half, so many along the shorter side."""
    height, width = look.pixels.shape[:2]
    short = min(height, width)
    across, down = (min(round(grid * side / short), 4 * grid) for side in (width, height))
    tile_width, tile_height = (max(1, int(side * 1.5 / (n + 0.5))) for side, n in ((width, across), (height, down)))
    for row, top in enumerate(np.linspace(0, height - tile_height, down).astype(int), 1):
        for column, left in enumerate(np.linspace(0, width - tile_width, across).astype(int), 1):
            tile = look.pixels[top : top + tile_height, left : left + tile_width]
            if not _is_flat(tile):
                yield View(
                    _named(f"tile {column},{row} of {across}x{down}", look, frame), "tile", frame, _squared(tile)
                )


def _is_flat(pixels: Pixels) -> bool:
    height, width = pixels.shape[:2]
    sample = pixels[:: max(1, height // 128), :: max(1, width // 128)]
    return bool((sample.max(axis=(0, 1)).astype(np.int16) - sample.min(axis=(0, 1))).max() < _FLAT)


def _sign(pixels: Pixels) -> NDArray[np.float32]:
    return signature(Picture(pixels))
