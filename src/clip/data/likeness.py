"""Pictures → short signatures; signatures → which pictures are the same, or nearly.

Three grades: the same bytes, the same pixels (another compression without loss), and nearly the same (compressed again,
resized, a little brighter). Crops, flips and turns are not found.

A signature has two parts for the third grade. *Gradients* are 64 bits: each tells whether the picture gets brighter
from one field of a 9 × 8 grid to the next (dHash, Krawetz 2013), here by at least four grey levels, so that the noise
of compression in flat areas sets no bits. *Colours* are 4 × 4 fields. Gradients find the candidates, colours decide:
drawings have many alike outlines, and a red circle is no copy of a blue one.

Pairs are found without comparing all with all (Manku, Jain and Das Sarma 2007): the 64 bits are cut into six blocks,
and two signatures that differ in four bits or fewer agree in two blocks at least. So 15 sorted lists, one for each two
blocks, bring all such pairs together.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clip.errors import ImageError
from clip.image_headers import read_header
from clip.images import MAX_BYTES, read_pixels

__all__ = ["COLOURS", "Fields", "Signature", "components", "fields_of", "image_bytes", "signature", "similar_pairs"]

COLOURS = 48
"""Numbers of a signature that are colours: 4 × 4 fields of red, green and blue."""

_GRID = (9, 8)
_LEAST_STEP = 4  # grey levels; with 0, a quarter of drawings differed from their own JPEG in more than three bits
_MOST_BITS = 6  # all pairs up to four bits are found, of those with five or six most
_BLOCKS = (11, 11, 11, 11, 10, 10)
# Of the mean difference of colours, in levels of 255: the share of the pictures' own contrast, a floor for pictures
# with hardly any, and a ceiling; all after a common shift in brightness.
_COLOUR_SHARE, _COLOUR_FLOOR, _COLOUR_MOST, _SHIFT_MOST = 0.15, 0.3, 6.0, 32.0
_FLAT = 2.0
_NEIGHBOURS = 64
"""How far apart in a sorted list two pictures are still compared, where more than this agree in their blocks."""
_DECODED_SIDE = 96  # large JPEGs are decoded at a half, a quarter or an eighth, keeping three times this

Pairs = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclasses.dataclass(frozen=True, slots=True)
class Signature:
    """What is remembered of one picture."""

    file: int
    """64 bits of a hash of the bytes."""
    pixels: int
    """64 bits of a hash of the decoded pixels."""
    gradients: int
    colours: NDArray[np.uint8]
    """(48,), the fields row by row."""
    width: int
    height: int
    format: str
    """As Pillow names it."""
    is_grey: bool
    """No colour anywhere in a reduced copy."""
    is_blank: bool
    """One colour everywhere: such pictures are not compared."""


class Fields(NamedTuple):
    """The part of a signature that nearly the same pictures have in common."""

    gradients: int
    colours: NDArray[np.uint8]
    is_grey: bool
    is_blank: bool


def image_bytes(image: Path | bytes) -> bytes:
    """The bytes of an encoded picture, within the limit of ``clip.images``. Raises ImageError."""
    if isinstance(image, bytes):
        return image
    try:
        if not image.is_file():  # a pipe or a terminal, which a table may name too, would never end
            raise ImageError(f"{image}: no such file; check the path")
        with image.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ImageError(f"{image}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    if len(data) > MAX_BYTES:
        raise ImageError(f"{image}: has more than {MAX_BYTES} bytes; re-encode the picture as JPEG or PNG")
    return data


def signature(data: bytes) -> Signature:
    """Decodes one picture. Raises ImageError with the reason."""
    pixels = read_pixels(data, shorter_side=_DECODED_SIDE)
    header = read_header(data)
    width, height = header.size or (pixels.shape[1], pixels.shape[0])
    if header.orientation >= 5:
        width, height = height, width
    fields = fields_of(pixels)
    return Signature(
        file=_digest(data),
        # The shape too: the bytes of 2 × 8 and 4 × 4 pixels may be the same.
        pixels=_digest(np.array(pixels.shape, np.int64).tobytes() + pixels.tobytes()),
        width=width,
        height=height,
        format=header.format,
        **fields._asdict(),
    )


def fields_of(pixels: NDArray[np.uint8]) -> Fields:
    """Of a picture (H, W, 3) that is decoded already, at whatever size."""
    image = Image.fromarray(pixels)
    if (divisor := min(image.size) // (3 * _DECODED_SIDE)) > 1:
        image = image.reduce(divisor)  # 1600 × 1200: in a third of the time, and at most three bits are others
    fields = np.asarray(image.resize((32, 32), Image.Resampling.BOX), np.int16)
    steps = np.diff(np.asarray(image.resize(_GRID, Image.Resampling.BOX).convert("L"), np.int16), axis=1)
    return Fields(
        gradients=int.from_bytes(np.packbits(steps > _LEAST_STEP).tobytes(), "big"),
        colours=fields.reshape(4, 8, 4, 8, 3).mean(axis=(1, 3)).round().astype(np.uint8).reshape(COLOURS),
        is_grey=bool((fields.max(axis=2) - fields.min(axis=2) <= 1).all()),
        is_blank=bool(fields.reshape(-1, 3).std(axis=0).max() < _FLAT),
    )


def _digest(data: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(data, digest_size=8).digest(), "little")


def similar_pairs(
    gradients: NDArray[np.uint64],
    colours: NDArray[np.uint8],
    *,
    wanted: Callable[[NDArray[np.intp], NDArray[np.intp]], NDArray[np.bool_]],
) -> Iterator[Pairs]:
    """Pairs of rows that are nearly the same picture, in portions; a pair may come several times.

    gradients: (N,). colours: (N, 48). wanted: asked before the colours are compared which of some pairs matter still.
    Time and memory grow as N log N: of more than 64 pictures that agree in two blocks, each is compared with the 64
    that follow it in the order of all their bits.
    """
    order = np.argsort(colours.mean(axis=1, dtype=np.float32), kind="stable") if len(colours) else np.empty(0, np.intp)
    starts = np.cumsum((0, *_BLOCKS))
    for turn, chosen in enumerate(itertools.combinations(range(len(_BLOCKS)), 2)):
        rest = [block for block in range(len(_BLOCKS)) if block not in chosen]
        moved = np.zeros(len(gradients), np.uint64)
        for block in (*chosen, *rest):  # the chosen blocks to the front, so that one sort brings those equal together
            width = _BLOCKS[block]
            part = gradients[order] >> np.uint64(64 - starts[block] - width) & np.uint64((1 << width) - 1)
            moved = moved << np.uint64(width) | part
        place = np.argsort(moved, kind="stable")
        moved, rows = moved[place], order[place]
        keys = moved >> np.uint64(64 - sum(_BLOCKS[block] for block in chosen))
        first = np.arange(len(rows))
        for distance in range(1, _NEIGHBOURS + 1):
            first = first[first + distance < len(rows)]
            first = first[keys[first] == keys[first + distance]]
            if not len(first):
                break
            bits = _bit_count(moved[first] ^ moved[first + distance])
            near = first[(bits <= _MOST_BITS) & ((bits > 0) | (turn == 0))]  # equal ones meet alike at each turn
            left, right = rows[near], rows[near + distance]
            matters = wanted(left, right)
            left, right = left[matters], right[matters]
            same = _same_colours(colours, left, right)
            if same.any():
                yield left[same], right[same]


def _bit_count(numbers: NDArray[np.uint64]) -> NDArray[np.intp]:
    counted: NDArray[np.intp] = np.unpackbits(numbers[:, None].view(np.uint8), axis=1).sum(axis=1, dtype=np.intp)
    return counted


def _same_colours(colours: NDArray[np.uint8], left: NDArray[np.intp], right: NDArray[np.intp]) -> NDArray[np.bool_]:
    one, other = colours[left].astype(np.float32), colours[right].astype(np.float32)
    shift = one.mean(axis=1) - other.mean(axis=1)  # a picture made brighter is still the same
    one -= one.mean(axis=1, keepdims=True)
    other -= other.mean(axis=1, keepdims=True)
    contrast = (np.abs(one) + np.abs(other)).mean(axis=1) / 2  # a few thin lines on white have little
    difference = np.abs(one - other).mean(axis=1)
    same: NDArray[np.bool_] = difference <= np.minimum(_COLOUR_FLOOR + _COLOUR_SHARE * contrast, _COLOUR_MOST)
    same &= np.abs(shift) <= _SHIFT_MOST
    return same


def components(labels: NDArray[np.int64], gradients: NDArray[np.uint64], colours: NDArray[np.uint8]) -> None:
    """Makes equal in ``labels`` (N,), in place, whatever is connected by similar pairs.

    labels: which rows belong together to begin with; each label is the smallest row that has it.
    """

    def root(row: int) -> int:
        while (above := int(labels[row])) != row:
            labels[row] = labels[above]
            row = above
        return row

    def roots(rows: NDArray[np.intp]) -> NDArray[np.int64]:
        found = labels[rows]
        while (found != (above := labels[found])).any():
            found = above
        labels[rows] = found
        return found

    for left, right in similar_pairs(gradients, colours, wanted=lambda a, b: roots(a) != roots(b)):
        for one, other in zip(left.tolist(), right.tolist(), strict=True):
            low, high = sorted((root(one), root(other)))
            labels[high] = low
        roots(np.concatenate((left, right)))  # short paths for the next portion
    roots(np.arange(len(labels)))
