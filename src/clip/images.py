"""Picture files → upright RGB pixels, within limits, for every task.

``read_pixels`` gives an array and is the fast way to a tensor; ``read_image`` gives the same pixels as a PIL image, for
``clip.preprocess`` to treat exactly as OpenAI's code does.
Whatever the bytes are, the outcome is a picture or an ImageError. Warnings, process-wide settings and other threads are
left alone, and decoding releases the interpreter lock.
"""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageFile
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from clip.errors import ImageError
from clip.image_headers import ImageHeader, exif_orientation, read_header

__all__ = ["DECODER_ERRORS", "MAX_BYTES", "MAX_PIXELS", "ImageSource", "read_image", "read_pixels"]

ImageSource = str | os.PathLike[str] | bytes | BinaryIO
"""A path, the bytes of a file, or a file opened in binary mode, which is read from where it stands to its end."""

MAX_PIXELS = 89_478_485
"""Width times height, as the file states it; the size from which on Pillow warns. An RGB array of it is 256 MiB."""

MAX_BYTES = 1 << 28
"""Of a file or stream. 256 MiB are as much as the largest picture has when it is not compressed at all."""

# How many times the size asked for a reduced JPEG must have. On pixel-sharp photographs, resized after it by that much,
# the largest difference to a full decode was 11 of 255 grey levels with 2, 5 with 3, 3 with 4 (docs/images.md).
_REDUCTION_MARGIN = 3

DECODER_ERRORS = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, ArithmeticError, AttributeError, EOFError),
    *(AssertionError, MemoryError, RuntimeError, struct.error, zlib.error, Image.DecompressionBombError),
)
"""What Pillow's decoders raise on malformed files, found by mutating files of each format."""


def read_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """The picture as a PIL image of mode RGB: the pixels that ``read_pixels`` gives at full size."""
    name, data = _read_bytes(source)
    with _errors_about(name):
        image, orientation = _decode_with_pillow(_checked_header(data, max_pixels), max_pixels)
        return image if orientation == 1 else Image.fromarray(_upright(np.array(image), orientation))


def read_pixels(
    source: ImageSource, *, shorter_side: int | None = None, max_pixels: int = MAX_PIXELS
) -> NDArray[np.uint8]:
    """The first picture of a file as (H, W, 3) uint8, RGB, contiguous and writable.

    EXIF orientation is applied, transparency is laid over white, samples of 16 bits keep their upper 8.
    shorter_side: what the caller will resize the shorter side to. A JPEG may then be decoded at a half, a quarter or an
    eighth of its size, as long as its shorter side stays at least three times this; other files come at full size.
    max_pixels: the largest width × height to decode, checked on the header, before anything is allocated.
    Raises ImageError: not there, not a picture, damaged, cut off, or too large.
    """
    name, data = _read_bytes(source)
    with _errors_about(name):
        header = _checked_header(data, max_pixels)
        if header.format == "JPEG" and (pixels := _decode_jpeg(data, header, shorter_side)) is not None:
            return _upright(pixels, header.orientation)
        image, orientation = _decode_with_pillow(header, max_pixels)
        return _upright(np.array(image), orientation)


@contextmanager
def _errors_about(name: str) -> Iterator[None]:
    try:
        yield
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error.__cause__


def _read_bytes(source: ImageSource) -> tuple[str, bytes]:
    """A name for messages, and the bytes."""
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>", bytes(source)
    if isinstance(source, (str, os.PathLike)):
        name = os.fspath(source)
        try:
            with Path(source).open("rb", buffering=0) as file:
                return name, _read_stream(file, name, expected_bytes=os.fstat(file.fileno()).st_size)
        except ImageError:
            raise
        except IsADirectoryError as error:
            raise ImageError(f"{name}: is a directory; pass the path of one picture") from error
        except FileNotFoundError as error:
            raise ImageError(f"{name}: no such file; check the path") from error
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            raise ImageError(f"{name}: cannot be read ({error}); check its permissions") from error
    if not hasattr(source, "read"):
        raise TypeError(f"expected a path, bytes or a binary file, found {type(source).__name__}")
    name = str(getattr(source, "name", "<stream>"))
    try:
        return name, _read_stream(source, name)
    except ImageError:
        raise
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: cannot be read ({error}); pass a file opened with mode 'rb'") from error


def _read_stream(file: BinaryIO | io.FileIO, name: str, *, expected_bytes: int = 0) -> bytes:
    """All that is left in ``file``, which may give less than it is asked for."""
    # Room is allocated for as much as is asked for, so that must not be the limit itself.
    chunk_bytes = min(max(expected_bytes + 1, 1 << 16), MAX_BYTES + 1)
    chunks: list[bytes] = []
    total = 0
    while chunk := file.read(chunk_bytes):
        if not isinstance(chunk, bytes):
            raise ImageError(f"{name}: gives text instead of bytes; open it with mode 'rb'")
        chunks.append(chunk)
        total += len(chunk)
        if total > MAX_BYTES:
            raise ImageError(f"{name}: has more than {MAX_BYTES} bytes; re-encode the picture as JPEG or PNG")
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


def _checked_header(data: bytes, max_pixels: int) -> ImageHeader:
    header = read_header(data)
    if header.size is not None:
        _check_size(header.size, max_pixels)
    return header


def _check_size(size: tuple[int, int], max_pixels: int) -> None:
    width, height = size
    if not width or not height:
        raise ImageError(f"the picture has {width}×{height} pixels; the file is damaged")
    if width * height > max_pixels:
        raise ImageError(
            f"{width}×{height} are {width * height} pixels, the limit is {max_pixels}; "
            "shrink the picture, or raise max_pixels if you trust the file"
        )


def _decode_jpeg(data: bytes, header: ImageHeader, shorter_side: int | None) -> NDArray[np.uint8] | None:
    """Pixels by libjpeg-turbo, bit for bit those of Pillow at full size, or None if this is a task for Pillow."""
    if header.channels not in (1, 3) or header.bits != 8:
        return None
    assert header.size is not None
    width, height = _reduced(header.size, shorter_side)
    try:
        if simplejpeg.decode_jpeg_header(data)[1::-1] != header.size:
            return None  # something between the segments that libjpeg and we understand differently
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", min_width=width, min_height=height)
        return pixels
    except ValueError:
        # Any irregularity, a harmless one too (bytes between segments): Pillow knows which files are worth refusing.
        return None


def _reduced(size: tuple[int, int], shorter_side: int | None) -> tuple[int, int]:
    """Width and height to decode to."""
    width, height = size
    # The other eighths that libjpeg offers have no vector code and take longer.
    for divisor in (8, 4, 2):
        # Where a side is not divisible the last pixel covers less of the picture, and a resize would shift the rest.
        divides = not width % divisor and not height % divisor
        if divides and shorter_side is not None and min(size) >= _REDUCTION_MARGIN * shorter_side * divisor:
            return width // divisor, height // divisor
    return size


def _decode_with_pillow(header: ImageHeader, max_pixels: int) -> tuple[Image.Image, int]:
    """The picture in RGB and its orientation, which is still to be applied."""
    # The plugin itself instead of Image.open, which has no limit but its own and warns about it.
    open_image = _plugin(header.format)
    try:
        with open_image(io.BytesIO(b"".join(header.parts))) as image:
            _check_size(image.size, max_pixels)
            image.load()
            orientation = header.orientation
            if header.format == "AVIF":  # whose transform boxes Pillow presents as EXIF
                orientation = exif_orientation(image.info.get("exif", b""))
            return _to_rgb(image), orientation
    except ImageError:
        raise
    except DECODER_ERRORS as error:
        raise ImageError(f"damaged or cut off ({type(error).__name__}: {error}); fetch or export it again") from error


def _plugin(image_format: str) -> Callable[[BinaryIO], ImageFile.ImageFile]:
    if image_format == "AVIF":
        try:
            from PIL import AvifImagePlugin
        except ImportError:
            AvifImagePlugin = None  # type: ignore[assignment]  # noqa: N806 (before Pillow 11.3)
        if AvifImagePlugin is None or not AvifImagePlugin.SUPPORTED:
            raise ImageError("this Pillow was built without AVIF; install Pillow 11.3 or later, or convert to JPEG")
        return AvifImagePlugin.AvifImageFile
    return _PLUGINS[image_format]


_PLUGINS: dict[str, Callable[[BinaryIO], ImageFile.ImageFile]] = {
    "BMP": BmpImageFile,
    "GIF": GifImageFile,
    "JPEG": JpegImageFile,
    "PNG": PngImageFile,
    "PPM": PpmImageFile,
    "TIFF": TiffImageFile,
    "WEBP": WebPImageFile,
}


def _to_rgb(image: Image.Image) -> Image.Image:
    """A decoded picture of any mode as RGB over white."""
    if image.mode.startswith("I"):
        return _grey_to_rgb(image)
    if image.mode == "F":
        raise ImageError("the samples are floating-point numbers of no defined range; export it with 8 or 16 bits")
    if image.mode == "LAB":
        return _lab_to_rgb(image)
    has_alpha_palette = image.palette is not None and image.palette.mode == "RGBA"
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info or has_alpha_palette:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _grey_to_rgb(image: Image.Image) -> Image.Image:
    """16 bits of grey as the upper 8. Pillow would clip instead: all but the darkest 0.4 % become white."""
    samples, bits, is_inverted = np.asarray(image), 16, False
    if isinstance(image, TiffImageFile):
        bits, is_inverted = image.tag_v2[258][0], image.tag_v2.get(262) == 0  # Pillow inverts 8 bits, but not 16
    if bits > 16 or samples.min() < 0 or samples.max() > 0xFFFF:
        raise ImageError("the samples are 32-bit or negative integers of no defined range; export it with 8 or 16 bits")
    grey = samples >> (bits - 8)
    if is_inverted:
        grey = 255 - grey
    if (transparent := image.info.get("transparency")) is not None:
        grey = np.where(samples == transparent, 255, grey)
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def _lab_to_rgb(image: Image.Image) -> Image.Image:
    """Pillow converts CIELAB by colour management only."""
    transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # only in-place transforms give None
    return converted


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """``pixels`` (H, W, 3) turned and mirrored as EXIF orientation 1…8 asks, contiguous."""
    if orientation == 1:
        return pixels
    # Moving whole pixels of three bytes instead of single bytes is 2.6 times as fast.
    whole = pixels.view("V3")[:, :, 0]
    if orientation >= 5:  # 5 to 8 are 1 to 4 with rows and columns exchanged
        whole = whole.T
    if orientation in (2, 3, 6, 7):
        whole = whole[:, ::-1]
    if orientation in (3, 4, 7, 8):
        whole = whole[::-1]
    return np.ascontiguousarray(whole)[:, :, None].view(np.uint8)
