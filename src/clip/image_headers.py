"""What a picture file says before anything is decoded, and the file reduced to what its first picture needs.

Limits must be checked before a decoder allocates, and metadata is where decoders can be made to expand, to loop and to
warn. So the few bytes that matter are read here: format, size and EXIF orientation. The decoder then gets a file
without text, profiles, EXIF and further pictures.
"""

from __future__ import annotations

import dataclasses
import struct
from collections.abc import Callable, Iterator
from typing import NamedTuple

from clip.errors import ImageError

__all__ = ["FORMATS", "ImageHeader", "exif_orientation", "read_header"]

_MAX_JPEG_SCANS = 500
"""A progressive JPEG has about ten scans. Each is a pass over all pixels, however few bytes it has; a scan of any other
JPEG has bytes for each of its pixels."""

_MAX_PIECES = 1 << 17
"""Segments, chunks, boxes or tags; a PNG of 256 MiB has 32 768 chunks. Millions of empty ones would take more memory
here than they have bytes."""


@dataclasses.dataclass(frozen=True, slots=True)
class ImageHeader:
    """The first picture of a file, as the file describes it."""

    format: str
    """As Pillow names it."""
    size: tuple[int, int] | None = None
    """Width and height in pixels as stored, before orientation; None where only the decoder can tell."""
    orientation: int = 1
    """1…8, as in EXIF; 1 also when the file has none or a damaged one."""
    channels: int | None = None
    """Of a JPEG."""
    bits: int | None = None
    """Of one sample of a JPEG."""
    parts: tuple[bytes | memoryview, ...] = ()
    """What the decoder needs, to be joined."""


def read_header(data: bytes) -> ImageHeader:
    """The header of the first picture in ``data``. Raises ImageError with the reason: not a picture, or malformed."""
    for image_format, is_format, read in _READERS:
        if is_format(data):
            try:
                return read(data)
            except (IndexError, struct.error):
                raise ImageError(f"the {image_format} header is cut off; fetch or export the file again") from None
            except ImageError as error:
                raise ImageError(f"{error}; fetch or export the file again") from None
    if not data:
        raise ImageError("the file is empty; fetch or export it again")
    if data[4:8] == b"ftyp":
        kind = data[8:12].decode("latin-1").strip()
        raise ImageError(f"files of kind {kind!r} (HEIC, video) are not read; convert the picture to JPEG")
    raise ImageError(f"not a picture in one of the formats {', '.join(FORMATS)}; convert it to PNG or JPEG")


# --- JPEG -------------------------------------------------------------------------------------------------------------

_JPEG_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}  # SOF markers; the three others are DHT, JPG and DAC
_JPEG_PROGRESSIVE = {0xC2, 0xC6, 0xCA, 0xCE}
_JPEG_NEEDED = {*_JPEG_FRAMES, 0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xEE}  # and DQT, DRI, JFIF, Adobe (which has the colours)


def _read_jpeg(data: bytes) -> ImageHeader:
    view = memoryview(data)
    parts = [view[:2]]
    size, channels, bits, orientation, is_progressive = None, 0, 8, 1, False
    for marker, start, end in _jpeg_segments(data):
        if marker == 0xDA:  # start of scan: what follows is the picture
            if is_progressive and data.count(b"\xff\xda", start) > _MAX_JPEG_SCANS:
                raise ImageError(f"the JPEG has more than {_MAX_JPEG_SCANS} scans, which can only be an attack")
            parts.append(view[start:])
            break
        if marker in _JPEG_FRAMES:
            bits, height, width, channels = struct.unpack_from(">BHHB", data, start + 4)
            size, is_progressive = (width, height), marker in _JPEG_PROGRESSIVE
        elif marker == 0xE1 and data.startswith(b"Exif\0\0", start + 4) and orientation == 1:
            orientation = exif_orientation(data[start + 10 : end])
        if marker in _JPEG_NEEDED:
            parts.append(view[start:end])
    if size is None:
        raise ImageError("the JPEG has no frame header")
    return ImageHeader("JPEG", size, orientation, channels, bits, tuple(parts))


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Marker, start and end of each segment up to the first scan. Bytes between segments are passed over."""
    position = 2
    for _ in range(_MAX_PIECES):
        start = data.find(b"\xff", position)
        if start < 0:
            raise ImageError("the JPEG ends before its picture begins")
        marker = data[start + 1]
        if marker in (0x00, 0xFF):  # stuffing, or padding before a marker
            position = start + 1
            continue
        if marker == 0x01 or 0xD0 <= marker <= 0xD8:  # markers without a segment
            position = start + 2
            continue
        if marker == 0xD9:
            raise ImageError("the JPEG ends before its picture begins")
        position = start + 2 + struct.unpack_from(">H", data, start + 2)[0]
        yield marker, start, position
    raise ImageError(f"the JPEG has more than {_MAX_PIECES} segments")


# --- PNG --------------------------------------------------------------------------------------------------------------


def _read_png(data: bytes) -> ImageHeader:
    if data[12:16] != b"IHDR":
        raise ImageError("the PNG does not begin with its header")
    view = memoryview(data)
    parts, orientation, position = [view[:8]], 1, 8
    for _ in range(_MAX_PIECES):
        if position + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if kind in (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"):
            # An animation's own chunks are left out: what remains is the picture that plain viewers show.
            parts.append(view[position:end])
        elif kind == b"eXIf":
            orientation = exif_orientation(data[position + 8 : end - 4])
        if kind == b"IEND":
            break
        position = end
    else:
        raise ImageError(f"the PNG has more than {_MAX_PIECES} chunks")
    return ImageHeader("PNG", struct.unpack_from(">II", data, 16), orientation, parts=tuple(parts))


# --- GIF --------------------------------------------------------------------------------------------------------------


def _read_gif(data: bytes) -> ImageHeader:
    width, height, flags = struct.unpack_from("<HHB", data, 6)
    position = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    palette, transparency = data[10:position], b""
    while True:
        block = data[position]
        if block == 0x2C:  # the first picture, which may be larger than the screen
            left, top, frame_width, frame_height = struct.unpack_from("<4H", data, position + 1)
            break
        if block == 0x3B:
            raise ImageError("the GIF has no picture")
        position += 1
        if block == 0x21:  # an extension: label, then sub-blocks up to an empty one
            label, position = data[position], position + 1
            if label == 0xF9 and data[position + 1] & 1:
                transparency = b"\x21\xf9\x04\x01\0\0" + data[position + 4 : position + 5] + b"\0"
            while data[position]:
                position += 1 + data[position]
            position += 1
    size = (max(width, left + frame_width), max(height, top + frame_height))
    if max(size) > 0xFFFF:
        raise ImageError("the GIF has a picture beyond the edge of its screen")
    # No disposal method: Pillow would allocate what it is to be replaced with.
    parts = (b"GIF89a" + struct.pack("<HH", *size), palette, transparency, memoryview(data)[position:])
    return ImageHeader("GIF", size, parts=parts)


# --- WebP -------------------------------------------------------------------------------------------------------------


def _read_webp(data: bytes) -> ImageHeader:
    kind, orientation = data[12:16], 1
    if kind == b"VP8X":
        low_and_high = struct.unpack_from("<HBHB", data, 24)
        size = (low_and_high[0] + (low_and_high[1] << 16) + 1, low_and_high[2] + (low_and_high[3] << 16) + 1)
    elif kind == b"VP8L":
        (packed,) = struct.unpack_from("<I", data, 21)
        size = ((packed & 0x3FFF) + 1, (packed >> 14 & 0x3FFF) + 1)
    elif kind == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        size = (width & 0x3FFF, height & 0x3FFF)
    else:
        raise ImageError(f"the WebP begins with an unknown chunk {kind!r}")
    position = 12
    while position + 8 <= len(data):
        kind, length = struct.unpack_from("<4sI", data, position)
        if kind == b"EXIF":
            orientation = exif_orientation(data[position + 8 : position + 8 + length])
        position += 8 + length + (length & 1)
    return ImageHeader("WEBP", size, orientation, parts=(data,))


# --- TIFF, which is also what EXIF is ---------------------------------------------------------------------------------

_WIDTH, _HEIGHT, _BITS, _ORIENTATION, _CHANNELS, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 258, 274, 277, 322, 323
# Geometry, compression, colours, strips, tiles and JPEG tables. The rest (text, profiles, EXIF, further pictures) goes,
# and the orientation goes because we apply it ourselves.
_TIFF_NEEDED = {
    *(_WIDTH, _HEIGHT, _BITS, 259, 262, 266, 273, _CHANNELS, 278, 279, 284, 292, 293, 317, 320),
    *(_TILE_WIDTH, _TILE_HEIGHT, 324, 325, 332, 338, 339, 347, *range(512, 522), 529, 530, 531, 532),
}
_TIFF_SEVERAL = {_BITS, 273, 279, 320, 324, 325, 338, 339, 347, *range(519, 522), 529, 530, 532}  # more than one value
_TIFF_TYPES = {3: ("H", 2), 4: ("I", 4), 5: ("II", 8), 7: ("B", 1), 16: ("Q", 8)}  # SHORT LONG RATIONAL UNDEFINED LONG8


class _Entry(NamedTuple):
    tag: int
    kind: int
    length: int
    """How many values it has."""
    raw: bytes
    """The entry as it stands in the file."""
    value_offset: int
    """Where its values begin, in the entry or elsewhere."""


def _read_tiff(data: bytes) -> ImageHeader:
    order, is_big, entries = _tiff_entries(data)
    values: dict[int, int] = {}
    needed: list[_Entry] = []
    total = 0
    for entry in entries:
        if entry.kind not in _TIFF_TYPES or entry.tag not in (*_TIFF_NEEDED, _ORIENTATION) or not entry.length:
            continue
        code, width = _TIFF_TYPES[entry.kind]
        total += width * entry.length
        if entry.value_offset + width * entry.length > len(data) or total > len(data):
            raise ImageError(f"tag {entry.tag} of the TIFF lies outside the file")
        if entry.length > 1 and entry.tag not in _TIFF_SEVERAL:
            raise ImageError(f"tag {entry.tag} of the TIFF has {entry.length} values instead of one")
        values.setdefault(entry.tag, struct.unpack_from(order + code, data, entry.value_offset)[0])
        if entry.tag != _ORIENTATION:
            needed.append(entry)
    if _WIDTH not in values or _HEIGHT not in values:
        raise ImageError("the TIFF does not say how large its picture is")
    if values.get(_CHANNELS, 1) > 6:  # Pillow would refuse it too, but log an error first
        raise ImageError(f"the TIFF has {values[_CHANNELS]} channels")
    # A tile is decoded whole, so a small picture in a huge tile counts as huge.
    size = (max(values[_WIDTH], values.get(_TILE_WIDTH, 0)), max(values[_HEIGHT], values.get(_TILE_HEIGHT, 0)))
    # The entries point into the file by absolute offset, so they can be copied into a new directory at its end.
    padding = b"\0" * (-len(data) % 8)
    where = len(data) + len(padding)
    if is_big:
        head = data[:8] + struct.pack(order + "Q", where)
        directory = (struct.pack(order + "Q", len(needed)), *(entry.raw for entry in needed), bytes(8))
    else:
        head = data[:4] + struct.pack(order + "I", where)
        directory = (struct.pack(order + "H", len(needed)), *(entry.raw for entry in needed), bytes(4))
    orientation = values.get(_ORIENTATION, 1)
    return ImageHeader(
        "TIFF",
        size,
        orientation if 1 <= orientation <= 8 else 1,
        parts=(head, memoryview(data)[len(head) :], padding, *directory),
    )


def _tiff_entries(data: bytes) -> tuple[str, bool, list[_Entry]]:
    """Byte order, whether it is a BigTIFF, and the first directory."""
    order = "<" if data[:2] == b"II" else ">"
    (version,) = struct.unpack_from(order + "H", data, 2)
    if version == 43:
        is_big, offset = True, struct.unpack_from(order + "Q", data, 8)[0]
        count, start, length, fields, inline = "Q", 8, 20, "HHQ", 8
    elif version == 42:
        is_big, offset = False, struct.unpack_from(order + "I", data, 4)[0]
        count, start, length, fields, inline = "H", 2, 12, "HHI", 4
    else:
        raise ImageError("unknown version of TIFF")
    if offset > len(data):
        raise ImageError("the directory of the TIFF lies outside the file")
    entries = []
    (entry_count,) = struct.unpack_from(order + count, data, offset)
    if entry_count > _MAX_PIECES or offset + start + entry_count * length > len(data):
        raise ImageError("the directory of the TIFF lies outside the file")
    for position in range(offset + start, offset + start + entry_count * length, length):
        tag, kind, values = struct.unpack_from(order + fields, data, position)
        value_offset = position + length - inline
        if _TIFF_TYPES.get(kind, ("", 0))[1] * values > inline:
            (value_offset,) = struct.unpack_from(order + ("Q" if is_big else "I"), data, value_offset)
        entries.append(_Entry(tag, kind, values, data[position : position + length], value_offset))
    return order, is_big, entries


def exif_orientation(exif: bytes) -> int:
    """The orientation in an EXIF block, 1 if there is none. Damaged metadata is no reason to refuse a picture."""
    exif = exif.removeprefix(b"Exif\0\0")
    if exif[:2] not in (b"II", b"MM"):
        return 1
    try:
        order, _, entries = _tiff_entries(exif)
        for entry in entries:
            if entry.tag == _ORIENTATION and entry.kind == 3 and entry.length == 1:
                (orientation,) = struct.unpack_from(order + "H", exif, entry.value_offset)
                return orientation if 1 <= orientation <= 8 else 1
    except (ImageError, struct.error):
        pass
    return 1


# --- AVIF -------------------------------------------------------------------------------------------------------------


def _read_avif(data: bytes) -> ImageHeader:
    """Only the decoder can tell the size. The EXIF is hidden from it: an AVIF turns by its own transform boxes."""
    view, position = memoryview(data), 0
    parts: list[bytes | memoryview] = []
    for _ in range(_MAX_PIECES):
        if position + 8 > len(data):
            break
        length, kind = struct.unpack_from(">I4s", data, position)
        if length == 1:
            (length,) = struct.unpack_from(">Q", data, position + 8)
        end = position + max(length, 8) if length else len(data)
        # Everything but the pixels is a directory, where this is the type of an item.
        parts.append(view[position:end] if kind == b"mdat" else data[position:end].replace(b"Exif", b"none"))
        position = end
    else:
        raise ImageError(f"the AVIF has more than {_MAX_PIECES} boxes")
    return ImageHeader("AVIF", parts=tuple(parts))


# --- all formats ------------------------------------------------------------------------------------------------------


def _is_webp(data: bytes) -> bool:
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP"


def _is_avif(data: bytes) -> bool:
    (length,) = struct.unpack(">I", data[:4].rjust(4, b"\0"))
    brands = data[8 : min(length, 256)]  # the major one, a version, and the compatible ones
    return data[4:8] == b"ftyp" and any(brands[i : i + 4] in (b"avif", b"avis") for i in range(0, len(brands), 4))


def _is_netpbm(data: bytes) -> bool:
    return data[:1] == b"P" and data[1:2] in tuple(b"%d" % i for i in range(1, 7)) and data[2:3].isspace()


def _sizeless(image_format: str) -> Callable[[bytes], ImageHeader]:
    """For formats whose decoder reports the size before it allocates, and has no metadata to be protected from."""
    return lambda data: ImageHeader(image_format, parts=(data,))


_READERS: list[tuple[str, Callable[[bytes], bool], Callable[[bytes], ImageHeader]]] = [
    ("JPEG", lambda data: data[:3] == b"\xff\xd8\xff", _read_jpeg),
    ("PNG", lambda data: data[:8] == b"\x89PNG\r\n\x1a\n", _read_png),
    ("WEBP", _is_webp, _read_webp),
    ("GIF", lambda data: data[:6] in (b"GIF87a", b"GIF89a"), _read_gif),
    ("TIFF", lambda data: data[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), _read_tiff),
    ("BMP", lambda data: data[:2] == b"BM", _sizeless("BMP")),
    ("AVIF", _is_avif, _read_avif),
    ("PPM", _is_netpbm, _sizeless("PPM")),
]

FORMATS = tuple(sorted(image_format for image_format, _, _ in _READERS))
"""What can be read, as Pillow names it; AVIF only where Pillow was built with it."""
