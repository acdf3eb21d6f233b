"""Where there is writing in a picture, and the picture without it. Nothing is read: only shapes are looked at.

    writing = find_writing(pixels)
    if writing.coverage > 0.02:
        bare = without_writing(pixels, writing)

A model like CLIP reads, and believes what it reads: "a cute puppy" painted over a knife makes it a puppy. Writing is
rows of small shapes of one colour and one height (letters), at two sizes of the picture, dark on light and light on
dark. How much of it is found, and what else is taken for it: docs/red-team.md.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

__all__ = ["Writing", "find_writing", "without_writing"]

Pixels = NDArray[np.uint8]
Mask = NDArray[np.bool_]
Numbers = NDArray[np.float32]

_SIDES = (448, 176)
"""Longer side in pixels of the sizes at which letters are looked for: small ones at the first, large at the second."""
_ENLARGED = 2.0
"""At most, of a picture that is smaller than that."""
_WINDOW = 15
"""Half the side of the square whose mean tells dark from light."""
_LEAST_CONTRAST = 36.0
"""Levels between a letter and its surroundings."""
_HEIGHTS = (5, 72)
"""Of letters, in pixels of those sizes."""
_MOST_SPREAD = 30.0
"""Levels by which the colour of a letter varies."""
_LETTERS = 4
"""In a row, from which on it is writing."""
_MOST_SHAPES = 800
"""More are a texture."""


@dataclasses.dataclass(frozen=True, slots=True)
class Writing:
    """What looks like letters."""

    mask: Mask
    """(H, W): the letters and a narrow border."""
    boxes: tuple[tuple[int, int, int, int], ...]
    """Left, top, right and bottom of each group of letters, in pixels."""

    @property
    def coverage(self) -> float:
        """0 to 1: the share of the picture that the boxes cover."""
        covered = np.zeros(self.mask.shape, np.bool_)
        for left, top, right, bottom in self.boxes:
            covered[top:bottom, left:right] = True
        return float(covered.mean())


class _Shapes(NamedTuple):
    """Connected shapes of one size of the picture; arrays (N,) and (N, 2), (N, 3)."""

    boxes: NDArray[np.int64]  # (N, 4): left, top, right, bottom
    centres: Numbers
    heights: Numbers
    colours: Numbers
    labels: NDArray[np.int64]  # (H, W): which shape a pixel belongs to, −1 for none


def find_writing(pixels: Pixels) -> Writing:
    """pixels: (H, W, 3) uint8."""
    height, width = pixels.shape[:2]
    mask = np.zeros((height, width), np.bool_)
    boxes: list[tuple[int, int, int, int]] = []
    for side in _SIDES:
        scale = min(_ENLARGED, side / max(height, width))
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small = np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
        for letters in _letters_of(small):
            for shapes, group in letters:
                left, top = shapes.boxes[group, :2].min(axis=0)
                right, bottom = shapes.boxes[group, 2:].max(axis=0)
                border = max(1, round(0.12 * float(np.median(shapes.heights[group]))))
                found = _grown(np.isin(shapes.labels, group), border)
                mask |= np.asarray(Image.fromarray(found).resize((width, height), Image.Resampling.NEAREST))
                x, y = width / size[0], height / size[1]
                boxes.append(
                    (int(left * x), int(top * y), min(width, int(-(-right * x // 1))), int(-(-bottom * y // 1)))
                )
    return Writing(mask, tuple(dict.fromkeys(boxes)))


def _letters_of(pixels: Pixels) -> list[list[tuple[_Shapes, NDArray[np.int64]]]]:
    """Groups of shapes that are letters: the dark ones, then the light ones."""
    grey = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    mean = _box_mean(grey, _WINDOW)
    found = []
    for foreground in (grey < mean - _LEAST_CONTRAST / 2, grey > mean + _LEAST_CONTRAST / 2):
        shapes = _shapes(foreground, pixels, grey - mean)
        found.append([(shapes, group) for group in _rows(shapes)])
    return found


def _box_mean(values: Numbers, radius: int) -> Numbers:
    """Mean of the square around each pixel, of what of it lies inside."""
    sums = np.pad(values.astype(np.float64), ((1, 0), (1, 0))).cumsum(axis=0).cumsum(axis=1)
    height, width = values.shape
    top, bottom = (np.clip(np.arange(height) + d, 0, height) for d in (-radius, radius + 1))
    left, right = (np.clip(np.arange(width) + d, 0, width) for d in (-radius, radius + 1))
    total = sums[bottom][:, right] - sums[bottom][:, left] - sums[top][:, right] + sums[top][:, left]
    return np.asarray(total / np.outer(bottom - top, right - left), np.float32)


def _shapes(foreground: Mask, pixels: Pixels, contrast: Numbers) -> _Shapes:
    """The connected shapes that could be letters: of a letter's size and slimness, and of one colour."""
    labels = _connected(foreground)
    count = int(labels.max()) + 1
    rows, columns = np.nonzero(labels >= 0)
    which = labels[rows, columns]
    area = np.bincount(which, minlength=count)
    boxes = np.empty((count, 4), np.int64)
    for column, values, worst, reduce in (
        (0, columns, 1 << 30, np.minimum),
        (1, rows, 1 << 30, np.minimum),
        (2, columns + 1, 0, np.maximum),
        (3, rows + 1, 0, np.maximum),
    ):
        boxes[:, column] = worst
        reduce.at(boxes[:, column], which, values)
    widths, heights = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    own = pixels[rows, columns].astype(np.float32)
    # The smoothed edge of a letter is as large as its inside: what differs most from the surroundings counts most.
    strength = np.bincount(which, np.abs(contrast[rows, columns]), count) / np.maximum(area, 1)
    weights = contrast[rows, columns] ** 4
    total = np.maximum(np.bincount(which, weights, count), 1e-6)
    colours = np.stack([np.bincount(which, weights * own[:, c], count) / total for c in range(3)], axis=1)
    spread = np.stack([np.bincount(which, weights * own[:, c] ** 2, count) / total for c in range(3)], axis=1)
    spread -= colours**2
    filled = area / np.maximum(widths * heights, 1)
    longer = np.maximum(widths, heights)
    is_letter = (longer >= _HEIGHTS[0]) & (longer <= _HEIGHTS[1]) & (np.minimum(widths, heights) >= 1)
    is_letter &= (widths <= 2.5 * heights) & (heights <= 10 * widths) & (filled > 0.12) & (area >= 6)
    is_letter &= (strength >= _LEAST_CONTRAST) & (spread.max(axis=1) < _MOST_SPREAD**2)
    height, width = labels.shape
    is_letter &= (boxes[:, 0] > 0) & (boxes[:, 1] > 0) & (boxes[:, 2] < width) & (boxes[:, 3] < height)
    chosen = np.flatnonzero(is_letter)
    number = np.full(count + 1, -1, np.int64)
    number[chosen] = np.arange(len(chosen))
    return _Shapes(
        boxes[chosen],
        ((boxes[chosen, :2] + boxes[chosen, 2:]) / 2).astype(np.float32),
        heights[chosen].astype(np.float32),
        colours[chosen].astype(np.float32),
        number[labels],
    )


def _connected(foreground: Mask) -> NDArray[np.int64]:
    """(H, W): the number of the shape that a pixel belongs to, diagonal neighbours included; −1 outside all."""
    index = np.full(foreground.shape, -1, np.int64)
    count = int(foreground.sum())
    index[foreground] = np.arange(count)
    pairs = []
    for one, other in (
        (np.s_[:, :-1], np.s_[:, 1:]),
        (np.s_[:-1], np.s_[1:]),
        (np.s_[:-1, :-1], np.s_[1:, 1:]),
        (np.s_[:-1, 1:], np.s_[1:, :-1]),
    ):
        both = foreground[one] & foreground[other]
        pairs.append(np.stack([index[one][both], index[other][both]]))
    edges = np.concatenate(pairs, axis=1)
    parents = np.arange(count)
    while edges.shape[1]:  # hang the higher root under the lower, then point everybody at the root
        np.minimum.at(parents, edges.max(axis=0), edges.min(axis=0))
        while not np.array_equal(parents, parents[parents]):
            parents = parents[parents]
        edges = parents[edges]
        edges = edges[:, edges[0] != edges[1]]
    if count:
        index[foreground] = np.unique(parents, return_inverse=True)[1]
    return index


def _rows(shapes: _Shapes) -> list[NDArray[np.int64]]:
    """Groups of at least four shapes that stand in a row at regular steps, whichever way it runs."""
    count = len(shapes.boxes)
    if not _LETTERS <= count <= _MOST_SHAPES:
        return []
    size = np.maximum(shapes.heights, (shapes.boxes[:, 2] - shapes.boxes[:, 0]))
    away = shapes.centres[None] - shapes.centres[:, None]  # from the first to the second
    distance = np.hypot(away[..., 0], away[..., 1])
    larger, smaller = np.maximum.outer(size, size), np.minimum.outer(size, size)
    colour = np.abs(shapes.colours[:, None] - shapes.colours[None]).max(axis=2)
    near = (distance < 1.8 * larger) & (distance > 0) & (larger < 2.2 * smaller) & (colour < 40)
    parents = np.arange(count)

    def root(i: int) -> int:
        while parents[i] != i:
            i = int(parents[i])
        return i

    is_in_row = np.zeros(count, np.bool_)
    for middle in range(count):
        others = np.flatnonzero(near[middle])
        if len(others) < 2 or len(others) > 24:
            continue
        unit = away[middle, others] / distance[middle, others, None]
        # One to each side: opposite directions, up to 25 degrees, and steps that are much alike.
        opposite = unit @ unit.T < -0.9
        steps = distance[middle, others]
        regular = np.maximum.outer(steps, steps) < 2.5 * np.minimum.outer(steps, steps)
        for a, b in zip(*np.nonzero(np.triu(opposite & regular)), strict=True):
            is_in_row[[others[a], middle, others[b]]] = True
            for other in (others[a], others[b]):
                one, two = root(middle), root(int(other))
                parents[max(one, two)] = min(one, two)
    roots = np.array([root(i) if is_in_row[i] else -1 for i in range(count)])
    groups = [np.flatnonzero(roots == i) for i in np.unique(roots[roots >= 0])]
    return [group for group in groups if len(group) >= _LETTERS and _is_of_one_hand(shapes, group)]


def _is_of_one_hand(shapes: _Shapes, group: NDArray[np.int64]) -> bool:
    """Letters have one colour, and few heights: those of small letters and of capitals."""
    colours, heights = shapes.colours[group], shapes.heights[group]
    one_colour = np.median(np.abs(colours - np.median(colours, axis=0)).max(axis=1)) < 12
    one_height = np.median(np.abs(heights - np.median(heights))) <= max(1.0, 0.25 * float(np.median(heights)))
    return bool(one_colour and one_height)


def _grown(mask: Mask, border: int) -> Mask:
    return np.asarray(_box_mean(mask.astype(np.float32), border) > 1e-6)


def without_writing(pixels: Pixels, writing: Writing) -> Pixels:
    """The picture with its letters painted out in the colours around them."""
    weights = (~writing.mask).astype(np.float32)
    if weights.all() or not weights.any():
        return pixels
    filled = _filled(pixels.astype(np.float32) * weights[..., None], weights)
    return np.where(writing.mask[..., None], filled.round().clip(0, 255).astype(np.uint8), pixels)


def _filled(colours: Numbers, weights: Numbers) -> Numbers:
    """Known colours where there are any, elsewhere those of the picture at half the size, filled likewise.

    colours: (H, W, 3), already times the weights (H, W), which are 0 where nothing is known.
    """
    known = colours / np.maximum(weights, 1e-6)[..., None]
    if weights.all() or max(weights.shape) == 1:
        return np.asarray(known, np.float32)
    height, width = weights.shape
    pad = ((0, height % 2), (0, width % 2))
    stacked = np.pad(np.dstack([colours, weights]), (*pad, (0, 0)))
    halved = stacked.reshape(stacked.shape[0] // 2, 2, stacked.shape[1] // 2, 2, 4).mean(axis=(1, 3))
    coarse = _filled(halved[..., :3], halved[..., 3])
    finer = coarse.repeat(2, axis=0).repeat(2, axis=1)[:height, :width]
    return np.where(weights[..., None] > 0, known, finer)
