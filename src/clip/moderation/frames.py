"""Files that hold several pictures → frames, one after the other, each decoded within the limits of ``clip.images``.

An animation (GIF, APNG, WebP) is taken apart without decoding anything: each frame becomes a file of one picture, which
goes through the same checks as any other, and is laid on a canvas here. So a damaged frame costs that frame only, a
file of 100 000 frames can be sampled, and metadata never reaches a decoder. Pages of a TIFF and pictures that follow
each other in a JPEG (MPO) are files of one picture anyway.
"""

from __future__ import annotations

import dataclasses
import io
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from clip.errors import ImageError
from clip.image_headers import read_header
from clip.images import DECODER_ERRORS, MAX_PIXELS, read_pixels

__all__ = ["Frame", "Frames", "Patch", "Picture", "as_stored", "decode", "embedded_pictures", "find_frames"]

Pixels = NDArray[np.uint8]
Disposal = Literal["keep", "clear", "restore"]

_MAX_PIECES = 1 << 17
"""Frames, chunks or pages that are looked for; the rest of such a file is passed over."""

_MAX_EMBEDDED = 16
"""Beginnings of pictures inside a picture that are tried."""

# Formats that may have transparency; what has none goes through ``read_pixels`` alone.
_PLUGINS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "GIF": GifImageFile,
    "PNG": PngImageFile,
    "TIFF": TiffImageFile,
    "WEBP": WebPImageFile,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Picture:
    """Decoded pixels, upright, with all that compositing would lose."""

    rgb: Pixels
    """(H, W, 3), also where nothing of it is visible."""
    alpha: Pixels | None = None
    """(H, W); None if all is opaque."""
    indices: Pixels | None = None
    """(H, W): into the palette, where there is one."""
    orientation: int = 1
    """1…8: how the file asked for it to be turned, which it was."""

    def copied(self) -> Picture:
        """The same in memory of its own."""
        alpha = None if self.alpha is None else self.alpha.copy()
        return Picture(self.rgb.copy(), alpha, self.indices, self.orientation)


@dataclasses.dataclass(frozen=True, slots=True)
class Patch:
    """One frame of a file, not yet decoded: where it goes, and the pieces of a file that holds nothing else."""

    box: tuple[int, int, int, int]
    """Left, top, width and height on the canvas."""
    pieces: Callable[[], list[bytes | memoryview]]
    dispose: Disposal = "keep"
    """What becomes of it before the next frame; ``restore``: what was there before comes back."""
    is_over: bool = True
    """Laid over what is there; else it replaces it."""
    is_default: bool = False
    """The picture of an APNG that only viewers without animation show."""


@dataclasses.dataclass(frozen=True, slots=True)
class Frame:
    """What is seen at one moment."""

    index: int
    picture: Picture


Shown = Frame | ImageError

# --- one picture ------------------------------------------------------------------------------------------------------


def decode(data: bytes, *, max_pixels: int = MAX_PIXELS, shorter_side: int | None = None) -> Picture:
    """The first picture of a file. Raises ImageError, as ``read_pixels`` does.

    Transparency is kept for PNG, GIF, WebP and TIFF; other formats come over white.
    shorter_side: as in ``read_pixels``.
    """
    header = read_header(data)
    if header.format not in _PLUGINS:
        pixels = read_pixels(data, shorter_side=shorter_side, max_pixels=max_pixels)
        return Picture(pixels, orientation=header.orientation)
    assert header.size is not None  # those formats all say it
    width, height = header.size
    if not width or not height or width * height > max_pixels:
        read_pixels(data, max_pixels=max_pixels)  # which says why not
        raise ImageError(f"{width}×{height} pixels; the limit is {max_pixels}")
    try:
        with _PLUGINS[header.format](io.BytesIO(b"".join(header.parts))) as image:
            if image.width * image.height > max_pixels:
                raise ImageError(f"{image.width}×{image.height} pixels; the limit is {max_pixels}")
            image.load()
            if (picture := _picture(image)) is not None:
                return _turned(picture, header.orientation)
    except ImageError:
        raise
    except DECODER_ERRORS as error:
        raise ImageError(f"damaged or cut off ({type(error).__name__}: {error}); fetch or export it again") from error
    return Picture(read_pixels(data, max_pixels=max_pixels), orientation=header.orientation)


def _picture(image: Image.Image) -> Picture | None:
    """None for kinds of samples that only ``clip.images`` knows how to bring to 8 bits."""
    if image.mode not in ("1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"):
        return None
    has_alpha_palette = image.palette is not None and image.palette.mode == "RGBA"
    indices = np.array(image) if image.mode == "P" else None
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info or has_alpha_palette:
        pixels = np.array(image.convert("RGBA"))
        alpha = None if pixels[..., 3].min() == 255 else np.ascontiguousarray(pixels[..., 3])
        return Picture(np.ascontiguousarray(pixels[..., :3]), alpha, indices)
    return Picture(np.array(image.convert("RGB")), None, indices)


def as_stored(pixels: Pixels, orientation: int) -> Pixels:
    """Upright pixels (H, W, …) as a viewer shows them that knows nothing of EXIF."""
    return _upright(pixels, {6: 8, 8: 6}.get(orientation, orientation))


def _turned(picture: Picture, orientation: int) -> Picture:
    if orientation == 1:
        return picture
    layers = (picture.rgb, picture.alpha, picture.indices)
    rgb, alpha, indices = (None if layer is None else _upright(layer, orientation) for layer in layers)
    assert rgb is not None
    return Picture(rgb, alpha, indices, orientation)


def _upright(pixels: Pixels, orientation: int) -> Pixels:
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


# --- frames -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Frames:
    """A file taken apart, before anything is decoded."""

    patches: list[Patch]
    """At least one."""
    canvas: tuple[int, int] | None = None
    """Width and height of what the frames of an animation are drawn on; None where each stands by itself."""
    orientation: int = 1
    """Of the canvas."""
    is_whole: bool = True
    """Whether the file could be followed to its end."""

    def shown(self, chosen: Iterable[int], *, max_pixels: int, shorter_side: int | None = None) -> Iterator[Shown]:
        """The chosen frames (indices that rise) as they are seen, or why one cannot be.

        Where frames between are left out, the next is laid on what stands there: all that it draws shows, and what the
        others drew does not. The pixels of an animation's frame are the canvas itself, which the next frame changes.
        """
        canvas = None if self.canvas is None else _Canvas(*self.canvas)
        for index in chosen:
            patch = self.patches[index]
            try:
                picture = decode(b"".join(patch.pieces()), max_pixels=max_pixels, shorter_side=shorter_side)
            except ImageError as error:
                yield error
            else:
                yield Frame(
                    index, picture if canvas is None else _turned(canvas.shown(patch, picture), self.orientation)
                )


def find_frames(data: bytes, *, max_pixels: int = MAX_PIXELS) -> Frames:
    """The frames, pages or pictures of a file: at least one, which may still prove damaged.

    Raises ImageError for what is no picture.
    """
    header = read_header(data)
    find = _FINDERS.get(header.format)
    if find is None:
        return Frames([_whole(data)])
    patches, is_whole = _as_far_as_possible(find(data))
    if len(patches) < 2:
        # As the plain reader takes it, which is right about files that are not quite so.
        return Frames([_whole(data)], is_whole=is_whole or not patches)
    if header.format in ("TIFF", "JPEG"):
        return Frames(patches, is_whole=is_whole)
    assert header.size is not None
    width, height = header.size
    if header.format == "GIF":  # some viewers enlarge the screen for a frame beyond its edge
        for left, top, frame_width, frame_height in (patch.box for patch in patches):
            wider, higher = max(width, left + frame_width), max(height, top + frame_height)
            if wider * higher <= max_pixels:
                width, height = wider, higher
    if width * height > max_pixels:
        read_pixels(data, max_pixels=max_pixels)  # which says so
    return Frames(patches, (width, height), header.orientation, is_whole)


class _Canvas:
    """What the frames of an animation are drawn on."""

    def __init__(self, width: int, height: int) -> None:
        self._pixels = np.zeros((height, width, 4), np.uint8)
        self._undo: tuple[Pixels, Pixels | None] | None = None
        """Where the last frame was drawn if it is to go, and what comes back there; None for nothing at all."""

    def shown(self, patch: Patch, picture: Picture) -> Picture:
        if self._undo is not None:
            region, before = self._undo
            region[...] = 0 if before is None else before
        left, top, _, _ = patch.box
        region = self._pixels[max(top, 0) : top + picture.rgb.shape[0], max(left, 0) : left + picture.rgb.shape[1]]
        height, width = region.shape[:2]
        new = np.empty((height, width, 4), np.uint8)
        new[..., :3] = picture.rgb[:height, :width]
        new[..., 3] = 255 if picture.alpha is None else picture.alpha[:height, :width]
        before = region.copy() if patch.dispose == "restore" else None
        if not patch.is_over or picture.alpha is None or not region.size:
            region[...] = new
        else:
            over = np.asarray(Image.alpha_composite(Image.fromarray(region), Image.fromarray(new)))
            # Over nothing at all the new pixels stand as they are, with the colours that they hide.
            region[...] = np.where(region[..., 3:] == 0, new, over)
        self._undo = None if patch.dispose == "keep" else (region, before)
        alpha = self._pixels[..., 3]
        return Picture(self._pixels[..., :3], None if alpha.min() == 255 else alpha)


def _whole(data: bytes) -> Patch:
    return Patch((0, 0, 0, 0), lambda: [data])


def _as_far_as_possible(patches: Iterator[Patch]) -> tuple[list[Patch], bool]:
    """Those before the place where the file cannot be understood, and whether there is no such place."""
    found: list[Patch] = []
    try:
        for patch in patches:
            if len(found) == _MAX_PIECES:
                return found, False
            found.append(patch)
    except (IndexError, struct.error):
        return found, False
    return found, True


_GIF_DISPOSAL: dict[int, Disposal] = {2: "clear", 3: "restore"}
_PNG_DISPOSAL: dict[int, Disposal] = {1: "clear", 2: "restore"}


def _gif_patches(data: bytes) -> Iterator[Patch]:
    """A GIF for each frame: the screen as large as the frame, its palette or that of all, its transparent colour."""
    view = memoryview(data)
    flags, position = data[10], 13
    palette = (flags & 0x87, view[13 : 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)])
    position += len(palette[1])
    control: bytes = b""
    while data[position] in (0x21, 0x2C):
        if data[position] == 0x21:  # an extension, which only matters if it controls the next frame
            if data[position + 1] == 0xF9 and data[position + 2] == 4:
                control = data[position + 3 : position + 7]
            position = _after_sub_blocks(data, position + 2)
            continue
        left, top, width, height, local = struct.unpack_from("<4HB", data, position + 1)
        start = position
        position += 10 + (3 << ((local & 7) + 1) if local & 0x80 else 0)
        position = _after_sub_blocks(data, position + 1)
        dispose = _GIF_DISPOSAL.get(control[0] >> 2 & 7 if control else 0, "keep")
        yield Patch((left, top, width, height), _gif_file(palette, control, view[start:position]), dispose)
        control = b""


def _after_sub_blocks(data: bytes, position: int) -> int:
    while length := data[position]:
        position += 1 + length
    return position + 1


def _gif_file(
    palette: tuple[int, memoryview], control: bytes, frame: memoryview
) -> Callable[[], list[bytes | memoryview]]:
    size = bytes(frame[5:9])
    extension = b"\x21\xf9\x04" + control + b"\0" if control else b""
    screen = b"GIF89a" + size + bytes((palette[0], 0, 0))
    return lambda: [screen, palette[1], extension, b"\x2c\0\0\0\0", frame[5:], b"\x3b"]


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Kind, start and end of each chunk's contents."""
    position = 8
    for _ in range(2 * _MAX_PIECES):
        length, kind = struct.unpack_from(">I4s", data, position)
        yield kind, position + 8, position + 8 + length
        if kind == b"IEND":
            return
        position += 12 + length


def _png_patches(data: bytes) -> Iterator[Patch]:
    """A PNG for each frame. A first picture that is no frame (the default image) is taken for one that replaces all."""
    view = memoryview(data)
    ihdr = data[16:29]
    shared: list[bytes] = []
    width, height = struct.unpack_from(">2I", ihdr)
    box, is_over, is_default = (0, 0, width, height), False, True
    dispose: Disposal = "clear"
    contents: list[memoryview] = []
    for kind, start, end in _png_chunks(data):
        if kind in (b"PLTE", b"tRNS"):
            shared.append(_png_chunk(kind, data[start:end]))
        elif kind == b"IDAT":
            contents.append(view[start:end])
        elif kind == b"fdAT":
            contents.append(view[start + 4 : end])
        if kind in (b"fcTL", b"IEND"):
            if contents:
                yield Patch(box, _png_file(ihdr, box, shared, contents), dispose, is_over, is_default)
            contents = []
        if kind == b"fcTL":
            width, height, left, top, _, _, disposal, blend = struct.unpack_from(">4I2H2B", data, start + 4)
            box, is_over, is_default = (left, top, width, height), blend == 1, False
            dispose = _PNG_DISPOSAL.get(disposal, "keep")


def _png_chunk(kind: bytes, contents: bytes) -> bytes:
    return struct.pack(">I", len(contents)) + kind + contents + struct.pack(">I", zlib.crc32(kind + contents))


def _png_file(
    ihdr: bytes, box: tuple[int, ...], shared: list[bytes], contents: list[memoryview]
) -> Callable[[], list[bytes | memoryview]]:
    head = b"\x89PNG\r\n\x1a\n" + _png_chunk(b"IHDR", struct.pack(">2I", *box[2:]) + ihdr[8:])
    return lambda: [head, *shared, _png_chunk(b"IDAT", b"".join(contents)), _png_chunk(b"IEND", b"")]


def _webp_patches(data: bytes) -> Iterator[Patch]:
    """A WebP for each frame, with its transparency."""
    position, size = 12, len(data)
    while position + 8 <= size:
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"ANMF":
            packed = [int.from_bytes(data[position + 8 + 3 * i : position + 11 + 3 * i], "little") for i in range(4)]
            flags = data[position + 23]
            box = (2 * packed[0], 2 * packed[1], packed[2] + 1, packed[3] + 1)
            contents = memoryview(data)[position + 24 : position + 8 + length]
            yield Patch(box, _webp_file(box, contents), "clear" if flags & 1 else "keep", not flags & 2)
        position += 8 + length + (length & 1)


def _webp_file(box: tuple[int, int, int, int], contents: memoryview) -> Callable[[], list[bytes | memoryview]]:
    flags = 0x10 if bytes(contents[:4]) in (b"ALPH", b"VP8L") else 0
    extended = (
        b"VP8X" + struct.pack("<IB3x", 10, flags) + b"".join((side - 1).to_bytes(3, "little") for side in box[2:])
    )
    head = b"RIFF" + struct.pack("<I", 4 + len(extended) + len(contents)) + b"WEBP" + extended
    return lambda: [head, contents]


def _tiff_patches(data: bytes) -> Iterator[Patch]:
    """The file with the directory of each page for its first."""
    order = "<" if data[:2] == b"II" else ">"
    is_big = struct.unpack_from(order + "H", data, 2)[0] == 43
    where, code, count, length = (8, "Q", "Q", 20) if is_big else (4, "I", "H", 12)
    view = memoryview(data)
    seen: set[int] = set()
    (offset,) = struct.unpack_from(order + code, data, where)
    while offset and offset not in seen and len(seen) < _MAX_PIECES:
        seen.add(offset)
        (entries,) = struct.unpack_from(order + count, data, offset)
        following = offset + struct.calcsize(count) + entries * length
        head = data[:where] + struct.pack(order + code, offset)
        yield Patch((0, 0, 0, 0), partial(list, (head, view[len(head) :])))
        (offset,) = struct.unpack_from(order + code, data, following)


def _jpeg_patches(data: bytes) -> Iterator[Patch]:
    """Each JPEG that follows another: MPO, and whatever was appended. Those in its segments are thumbnails."""
    view, start = memoryview(data), 0
    while start >= 0:
        yield Patch((0, 0, 0, 0), partial(list, (view[start:],)))
        # In what is compressed FF is followed by 0, or by a marker that does not begin a picture.
        scan = _after_segments(data, start)
        start = data.find(b"\xff\xd8\xff", scan)


def _after_segments(data: bytes, start: int) -> int:
    """Where the first scan of the JPEG at ``start`` begins."""
    position = start + 2
    while data[position] == 0xFF and data[position + 1] != 0xDA:
        position += 2 if data[position + 1] in (0x01, 0xFF, *range(0xD0, 0xD9)) else 2 + _length(data, position + 2)
    return position


def _length(data: bytes, position: int) -> int:
    return max(int(struct.unpack_from(">H", data, position)[0]), 2)


_FINDERS: dict[str, Callable[[bytes], Iterator[Patch]]] = {
    "GIF": _gif_patches,
    "JPEG": _jpeg_patches,
    "PNG": _png_patches,
    "TIFF": _tiff_patches,
    "WEBP": _webp_patches,
}


# --- pictures inside a picture ----------------------------------------------------------------------------------------

_BEGINNING = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|GIF8[79]a|RIFF....WEBPVP8", re.DOTALL)


def embedded_pictures(data: bytes, *, max_pixels: int) -> Iterator[Picture]:
    """Thumbnails in metadata, and pictures appended to another: whatever begins like a picture and can be decoded."""
    tried = 0
    for match in _BEGINNING.finditer(data, 1):
        tried += 1
        if tried > _MAX_EMBEDDED:
            return
        try:
            yield decode(data[match.start() :], max_pixels=max_pixels)
        except ImageError:
            continue
