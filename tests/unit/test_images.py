from __future__ import annotations

import io
import random
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from PIL import Image, ImageFile, ImageOps, features

from clip.errors import ImageError
from clip.image_headers import FORMATS
from clip.images import MAX_BYTES, read_image, read_pixels


def _picture(width: int = 96, height: int = 64) -> Image.Image:
    y, x = np.mgrid[0:height, 0:width]
    smooth = np.stack([127 + 120 * np.sin(x / 9), 127 + 120 * np.cos(y / 7), (x + y) % 256], axis=-1)
    noise = np.random.default_rng(0).normal(0, 9, smooth.shape)
    return Image.fromarray((smooth + noise).clip(0, 255).astype(np.uint8))


def _encode(image: Image.Image, image_format: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def _exif(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    exif[0x010F] = "maker of cameras"
    return exif


PICTURE = _picture()
needs_avif = pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")

# --- what is read -----------------------------------------------------------------------------------------------------

ENCODED = {
    "jpeg": lambda: _encode(PICTURE, "JPEG"),
    "jpeg 4:4:4": lambda: _encode(PICTURE, "JPEG", subsampling=0),
    "jpeg 4:2:2": lambda: _encode(PICTURE, "JPEG", subsampling=1),
    "jpeg grey": lambda: _encode(PICTURE.convert("L"), "JPEG"),
    "jpeg progressive": lambda: _encode(PICTURE, "JPEG", progressive=True),
    "jpeg of RGB": lambda: _encode(PICTURE, "JPEG", keep_rgb=True),
    "jpeg cmyk": lambda: _encode(PICTURE.convert("CMYK"), "JPEG"),
    "mpo": lambda: _encode(PICTURE, "MPO", save_all=True, append_images=[ImageOps.mirror(PICTURE)]),
    "png": lambda: _encode(PICTURE, "PNG"),
    "png palette": lambda: _encode(PICTURE.quantize(16), "PNG"),
    "png bitmap": lambda: _encode(PICTURE.convert("1"), "PNG"),
    "apng": lambda: _encode(PICTURE, "PNG", save_all=True, append_images=[ImageOps.mirror(PICTURE)]),
    "gif": lambda: _encode(PICTURE, "GIF"),
    "gif animated": lambda: _encode(PICTURE, "GIF", save_all=True, append_images=[ImageOps.mirror(PICTURE)]),
    "gif disposed": lambda: _encode(PICTURE, "GIF", save_all=True, append_images=[PICTURE], disposal=2),
    "webp": lambda: _encode(PICTURE, "WEBP"),
    "webp lossless": lambda: _encode(PICTURE, "WEBP", lossless=True),
    "webp animated": lambda: _encode(PICTURE, "WEBP", save_all=True, append_images=[ImageOps.mirror(PICTURE)]),
    "tiff": lambda: _encode(PICTURE, "TIFF"),
    "tiff pages": lambda: _encode(PICTURE, "TIFF", save_all=True, append_images=[ImageOps.mirror(PICTURE)]),
    "tiff lzw": lambda: _encode(PICTURE, "TIFF", compression="tiff_lzw"),
    "tiff deflate": lambda: _encode(PICTURE, "TIFF", compression="tiff_adobe_deflate"),
    "tiff jpeg": lambda: _encode(PICTURE, "TIFF", compression="jpeg"),
    "tiff fax": lambda: _encode(PICTURE.convert("1"), "TIFF", compression="group4"),
    "tiff palette": lambda: _encode(PICTURE.quantize(16), "TIFF"),
    "tiff cmyk": lambda: _encode(PICTURE.convert("CMYK"), "TIFF"),
    "bigtiff": lambda: _encode(PICTURE, "TIFF", big_tiff=True),
    "bmp": lambda: _encode(PICTURE, "BMP"),
    "bmp palette": lambda: _encode(PICTURE.quantize(16), "BMP"),
    "ppm": lambda: _encode(PICTURE, "PPM"),
    "pgm": lambda: _encode(PICTURE.convert("L"), "PPM"),
    "pbm": lambda: _encode(PICTURE.convert("1"), "PPM"),
    "avif": lambda: _encode(PICTURE, "AVIF"),
}


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_avif) if n == "avif" else n for n in ENCODED])
def test_every_format_gives_the_pixels_that_pillow_gives(name: str) -> None:
    data = ENCODED[name]()
    with Image.open(io.BytesIO(data)) as image:
        expected = np.array(image.convert("RGB"))
    pixels = read_pixels(data)
    assert np.array_equal(pixels, expected)
    assert pixels.flags.c_contiguous and pixels.flags.writeable
    image = read_image(data)
    assert image.mode == "RGB" and np.array_equal(np.array(image), expected)


def test_path_bytes_and_file_give_the_same(tmp_path: Path) -> None:
    data = _encode(PICTURE, "PNG")
    path = tmp_path / "picture.unknown suffix"
    path.write_bytes(data)
    expected = np.array(PICTURE)
    with path.open("rb") as file, path.open("rb", buffering=0) as raw:
        for source in (path, str(path), data, bytearray(data), memoryview(data), io.BytesIO(data), file, raw):
            assert np.array_equal(read_pixels(source), expected)  # type: ignore[arg-type]


class _Dripping(io.RawIOBase):
    """Gives less than it is asked for, as a socket does."""

    def __init__(self, data: bytes) -> None:
        self._file = io.BytesIO(data)

    def read(self, size: int = -1) -> bytes:
        return self._file.read(min(size, 100))


def test_a_stream_may_give_its_bytes_in_drips() -> None:
    assert np.array_equal(read_pixels(_Dripping(_encode(PICTURE, "PNG"))), np.array(PICTURE))  # type: ignore[arg-type]


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", pytest.param("AVIF", marks=needs_avif)])
def test_pictures_come_upright(image_format: str, orientation: int) -> None:
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = _encode(PICTURE, image_format, exif=_exif(orientation), **options)
    with Image.open(io.BytesIO(data)) as image:
        expected = np.array(ImageOps.exif_transpose(image).convert("RGB"))
    pixels = read_pixels(data)
    assert np.array_equal(pixels, expected)
    assert pixels.flags.c_contiguous and pixels.flags.writeable


def test_a_reduced_jpeg_comes_upright_too() -> None:
    data = _encode(_picture(256, 128), "JPEG", exif=_exif(6))
    assert read_pixels(data, shorter_side=16).shape == (128, 64, 3)


@pytest.mark.parametrize(
    "exif",
    [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0nonsense" * 9],
)
def test_damaged_exif_is_no_reason_to_refuse_a_picture(exif: bytes) -> None:
    assert np.array_equal(read_pixels(_encode(PICTURE, "PNG", exif=exif)), np.array(PICTURE))
    data = _encode(PICTURE, "JPEG")
    segment = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    assert np.array_equal(read_pixels(data[:2] + segment + data[2:]), read_pixels(data))


# --- colours ----------------------------------------------------------------------------------------------------------


def test_transparency_lies_over_white() -> None:
    image = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate([(255, 0, 0, 255), (255, 0, 0, 0), (0, 0, 0, 128)]):
        image.putpixel((x, 0), pixel)
    expected = [[255, 0, 0], [255, 255, 255], [127, 127, 127]]
    for image_format, options in (("PNG", {}), ("WEBP", {"lossless": True, "exact": True}), ("TIFF", {})):
        assert read_pixels(_encode(image, image_format, **options))[0].tolist() == expected
    grey = _encode(image.convert("LA"), "PNG")
    assert read_pixels(grey)[0].tolist() == [[76] * 3, [255] * 3, [127] * 3]


@pytest.mark.parametrize("image_format", ["PNG", "GIF"])
def test_a_transparent_palette_entry_is_white(image_format: str) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert read_pixels(_encode(image, image_format, transparency=1))[0].tolist() == [[10, 20, 30], [255, 255, 255]]
    assert read_pixels(_encode(image, image_format))[0].tolist() == [[10, 20, 30], [40, 50, 60]]


def test_half_transparent_palettes_and_transparent_colours() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([0, 0, 0, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert read_pixels(_encode(image, "PNG", transparency=bytes([128, 255])))[0, 0].tolist() == [127, 127, 127]
    colour = Image.new("RGB", (1, 1), (1, 2, 3))
    assert read_pixels(_encode(colour, "PNG", transparency=(1, 2, 3))).tolist() == [[[255, 255, 255]]]
    assert read_pixels(_encode(colour.convert("L"), "PNG", transparency=2)).tolist() == [[[255, 255, 255]]]
    assert read_pixels(_encode(Image.new("1", (1, 1)), "PNG", transparency=0)).tolist() == [[[255, 255, 255]]]


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_sixteen_bits_of_grey_keep_the_upper_eight(image_format: str) -> None:
    samples = np.array([[0, 255, 256, 0x7FFF, 0x8000, 0xFFFF]], np.uint16)
    pixels = read_pixels(_encode(Image.fromarray(samples), image_format))
    assert pixels[0].tolist() == [[level] * 3 for level in (0, 0, 1, 127, 128, 255)]


def test_sixteen_bits_of_grey_in_big_endian() -> None:
    data = _encode(Image.fromarray(np.array([[0, 0x8000, 0xFFFF]], ">u2")), "TIFF")
    assert read_pixels(data)[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("bits", "photometric", "samples", "expected"),
    [
        (16, 1, struct.pack("<HH", 0, 0xFFFF), [0, 255]),
        (16, 0, struct.pack("<HH", 0, 0xFFFF), [255, 0]),
        (12, 1, bytes([0xFF, 0xF8, 0x00]), [255, 128]),
        (8, 0, bytes([0, 255]), [255, 0]),
    ],
)
def test_the_greys_of_tiff(bits: int, photometric: int, samples: bytes, expected: list[int]) -> None:
    samples += b"\0" * (len(samples) % 2)
    tags = [(256, 2), (257, 1), (258, bits), (259, 1), (262, photometric), (273, 8), (277, 1), (278, 1)]
    tags.append((279, len(samples)))
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags)
    head = b"II*\0" + struct.pack("<I", 8 + len(samples)) + samples
    data = head + struct.pack("<H", len(tags)) + directory + bytes(4)
    assert read_pixels(data)[0, :, 0].tolist() == expected


def test_sixteen_bits_of_colour() -> None:
    assert read_pixels(_png(2, 1, 16, 2, bytes([0, 255, 128, 0, 255, 255] * 2)))[0, 0].tolist() == [0, 128, 255]


def test_a_transparent_level_of_sixteen_bits_is_white() -> None:
    data = _png(2, 1, 16, 0, bytes([1, 2, 1, 3]), (b"tRNS", bytes([1, 2])))
    assert read_pixels(data)[0, :, 0].tolist() == [255, 1]


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_few_bits_of_grey_span_black_to_white(bits: int) -> None:
    assert read_pixels(_png(2, 1, bits, 0, bytes([(2**bits - 1) << (8 - 2 * bits)])))[0, :, 0].tolist() == [0, 255]


def test_lab_is_converted() -> None:
    lab = Image.new("LAB", (1, 1), (255 * 53 // 100, 128 + 80, 128 + 67))  # the red of sRGB
    red, green, blue = read_pixels(_encode(lab, "TIFF"))[0, 0].astype(int)
    assert red > 230 and green < 60 and blue < 60


def test_inverted_cmyk_of_adobe_is_not_a_negative() -> None:
    white = _encode(Image.new("CMYK", (16, 16), (0, 0, 0, 0)), "JPEG")
    assert b"Adobe" in white[:50]
    assert read_pixels(white).min() > 250


def test_numbers_without_a_range_are_refused() -> None:
    for mode, message in (("F", "floating-point"), ("I", "32-bit")):
        with pytest.raises(ImageError, match=message):
            read_pixels(_encode(Image.new(mode, (4, 4), 3), "TIFF"))


def _png(width: int, height: int, bits: int, colour: int, row: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG whose rows are all the same, with extra chunks."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress((b"\0" + row) * height)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*c) for c in chunks)


# --- reduced JPEGs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "shorter_side", "expected"),
    [
        ((800, 600), None, (800, 600)),
        ((800, 600), 200, (800, 600)),
        ((800, 600), 101, (800, 600)),
        ((800, 600), 100, (400, 300)),
        ((800, 600), 51, (400, 300)),
        ((800, 600), 50, (200, 150)),
        ((800, 600), 25, (100, 75)),
        ((800, 600), 1, (100, 75)),
        ((600, 800), 50, (150, 200)),
        ((804, 600), 25, (201, 150)),
        ((800, 602), 25, (400, 301)),
        ((801, 600), 25, (801, 600)),
        ((900, 24), 4, (450, 12)),
    ],
)
def test_a_jpeg_is_decoded_at_three_times_the_size_asked_for_or_more(
    size: tuple[int, int], shorter_side: int | None, expected: tuple[int, int]
) -> None:
    pixels = read_pixels(_encode(_picture(*size), "JPEG"), shorter_side=shorter_side)
    assert pixels.shape == (expected[1], expected[0], 3)


def test_a_reduced_jpeg_lies_where_the_full_one_does() -> None:
    data = _encode(_picture(800, 600), "JPEG", quality=95)
    full, reduced = (
        np.asarray(Image.fromarray(read_pixels(data, shorter_side=side)).resize((40, 30)), int) for side in (None, 25)
    )
    assert np.abs(full - reduced).max() <= 5


def test_other_formats_keep_their_size() -> None:
    for name in ("png", "webp", "jpeg cmyk"):
        assert read_pixels(ENCODED[name](), shorter_side=1).shape == (64, 96, 3)


# --- what is refused --------------------------------------------------------------------------------------------------


def _bombs() -> dict[str, bytes]:
    tiff = _encode(Image.new("L", (8, 8)), "TIFF")
    width = struct.pack("<HHII", 256, 4, 1, 8)
    gif = bytearray(_encode(Image.new("L", (8, 8)), "GIF"))
    frame = gif.index(b",\0\0\0\0")
    gif[frame + 5 : frame + 9] = struct.pack("<HH", 60000, 60000)
    jpeg = bytearray(_encode(PICTURE, "JPEG"))
    start = jpeg.index(b"\xff\xc0")
    jpeg[start + 5 : start + 9] = struct.pack(">HH", 60000, 60000)
    cmyk = bytearray(_encode(PICTURE.convert("CMYK"), "JPEG"))
    start = cmyk.index(b"\xff\xc0")
    cmyk[start + 5 : start + 9] = struct.pack(">HH", 60000, 60000)
    webp = bytearray(ENCODED["webp animated"]())
    webp[24:30] = b"\xff\x3f\0\xff\x3f\0"
    bmp = bytearray(_encode(PICTURE, "BMP"))
    bmp[18:26] = struct.pack("<ii", 60000, 60000)
    assert width in tiff
    return {
        "png": _png(60000, 60000, 8, 2, b""),
        "tiff": tiff.replace(width, struct.pack("<HHII", 256, 4, 1, 1 << 31)),
        "tile": tiff.replace(struct.pack("<HHI", 278, 4, 1), struct.pack("<HHI", 322, 4, 1)).replace(
            struct.pack("<HHII", 322, 4, 1, 8), struct.pack("<HHII", 322, 4, 1, 1 << 30)
        ),
        "gif frame": bytes(gif),
        "jpeg": bytes(jpeg),
        "jpeg cmyk": bytes(cmyk),
        "webp": bytes(webp),
        "bmp": bytes(bmp),
        "ppm": b"P6 60000 60000 255\n",
        "pbm": b"P1\n99999 99999\n1",
    }


@pytest.mark.parametrize("name", _bombs())
def test_the_stated_size_is_checked_before_decoding(name: str) -> None:
    with pytest.raises(ImageError, match=r"pixels, the limit is 89478485; shrink the picture, or raise max_pixels"):
        read_pixels(_bombs()[name])


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_avif) if n == "avif" else n for n in ENCODED])
def test_the_limit_is_inclusive(name: str) -> None:
    data = ENCODED[name]()
    assert read_pixels(data, max_pixels=96 * 64).shape == (64, 96, 3)
    with pytest.raises(ImageError, match="96×64 are 6144 pixels, the limit is 6143"):
        read_pixels(data, max_pixels=96 * 64 - 1)


def test_metadata_cannot_expand() -> None:
    text = b"comment\0\0" + zlib.compress(bytes(200_000_000))
    data = _png(1, 1, 8, 0, b"\x07", (b"zTXt", text), (b"iCCP", b"p\0\0" + text[9:]))
    assert read_pixels(data).tolist() == [[[7, 7, 7]]]


def test_a_jpeg_of_endless_scans_is_refused() -> None:
    data = _encode(PICTURE, "JPEG", progressive=True)
    scan = data.index(b"\xff\xda")
    with pytest.raises(ImageError, match="more than 500 scans"):
        read_pixels(data[:scan] + data[scan : scan + 10] * 600)


def test_millions_of_empty_pieces_are_refused() -> None:
    png = _png(1, 1, 8, 0, b"\0")
    jpeg = _encode(PICTURE, "JPEG")
    for data in (
        png[:33] + (b"\0\0\0\0teXt" + bytes(4)) * 200_000 + png[33:],
        jpeg[:2] + b"\xff\xfe\0\2" * 200_000 + jpeg[2:],
        jpeg[:2] + b"\xff" * 200_000 + jpeg[2:],
        _encode(PICTURE, "TIFF", big_tiff=True)[:16] + struct.pack("<Q", 200_000) + bytes(4_000_000),
    ):
        with pytest.raises(ImageError, match=r"more than 131072|lies outside"):
            read_pixels(data)


def test_a_stream_without_end_is_refused_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip.images.MAX_BYTES", 1000)
    with pytest.raises(ImageError, match="<stream>: has more than 1000 bytes"):
        read_pixels(io.BytesIO(bytes(1001)))
    assert read_pixels(io.BytesIO(_encode(Image.new("L", (1, 1)), "PNG"))).shape == (1, 1, 3)
    assert MAX_BYTES >= 100_000_000


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_avif) if n == "avif" else n for n in ENCODED])
def test_a_file_cut_in_half_is_refused(name: str, tmp_path: Path) -> None:
    path = tmp_path / "half"
    data = ENCODED[name]()
    path.write_bytes(data[: len(data) // 2] if name not in ANIMATED else data[: len(data) // 4])
    with pytest.raises(ImageError) as caught:
        read_pixels(path)
    assert str(caught.value).startswith(f"{path}: ")


ANIMATED = {"gif animated", "gif disposed", "apng", "mpo", "webp animated", "tiff pages"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the file is empty"),
        (b"hello", "not a picture in one of the formats AVIF, BMP, GIF, JPEG, PNG, PPM, TIFF, WEBP"),
        (b"%PDF-1.7", "not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "not a picture"),
        (b"8BPS\0\1", "not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "'heic'.*are not read"),
        (b"\xff\xd8\xff", "JPEG header is cut off"),
        (b"\xff\xd8\xff\xd9", "ends before its picture begins"),
        (b"\x89PNG\r\n\x1a\n", "does not begin with its header"),
        (b"GIF89a", "GIF header is cut off"),
        (b"RIFF\0\0\0\0WEBP", "unknown chunk"),
        (b"II*\0\xff\xff\xff\xff", "lies outside"),
        (b"BM", "damaged or cut off"),
        (b"P6 x", "damaged or cut off"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=message) as caught:
        read_pixels(data)
    assert str(caught.value).startswith("<bytes>: ")
    path = tmp_path / "file.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=message) as caught:
        read_image(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_places_without_a_picture_are_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"missing\.png: no such file"):
        read_pixels(tmp_path / "missing.png")
    with pytest.raises(ImageError, match="is a directory; pass the path of one picture"):
        read_pixels(tmp_path)
    with pytest.raises(ImageError, match="cannot be read"):
        read_pixels("null\0character")
    with (tmp_path / "text").open("w+", encoding="utf-8") as text, pytest.raises(ImageError, match="mode 'rb'"):
        text.write("x" * 9)
        text.seek(0)
        read_pixels(text)  # type: ignore[arg-type]
    closed = io.BytesIO()
    closed.close()
    with pytest.raises(ImageError, match="<stream>: cannot be read"):
        read_pixels(closed)
    with pytest.raises(TypeError, match="expected a path, bytes or a binary file, found int"):
        read_pixels(7)  # type: ignore[arg-type]


def test_the_formats_are_these() -> None:
    assert FORMATS == ("AVIF", "BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")


# --- irregular JPEGs --------------------------------------------------------------------------------------------------


def test_a_harmless_irregularity_is_read_as_pillow_reads_it() -> None:
    data = _encode(PICTURE, "JPEG")
    tables = data.index(b"\xff\xdb")
    irregular = data[:tables] + b"\0\0\0" + data[tables:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(irregular)
    assert np.array_equal(read_pixels(irregular), read_pixels(data))


@pytest.mark.parametrize("name", ["jpeg", "jpeg grey", "jpeg cmyk"])
def test_a_truncated_jpeg_is_refused(name: str) -> None:
    data = ENCODED[name]()
    for end in (len(data) // 4, len(data) // 2, len(data) - 50):
        with pytest.raises(ImageError, match=r"damaged or cut off|ends before its picture"):
            read_pixels(data[:end])


# --- robustness -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param(n, marks=needs_avif) if n == "avif" else n for n in ENCODED])
def test_mutated_files_give_a_picture_or_an_image_error(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    data, chance = ENCODED[name](), random.Random(name)
    errors = 0
    for _ in range(40):
        mutant = bytearray(data)
        reach = chance.choice([64, 300, len(data)])  # mostly the header, where the damage is interesting
        for _ in range(chance.choice([1, 1, 3, 12])):
            mutant[chance.randrange(min(reach, len(mutant)))] = chance.choice([0, 1, 127, 255, chance.randrange(256)])
        if chance.random() < 0.2:
            del mutant[chance.randrange(len(mutant)) :]
        try:
            pixels = read_pixels(bytes(mutant), max_pixels=1_000_000, shorter_side=chance.choice([None, 8]))
            assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
        except ImageError as error:
            assert str(error).startswith("<bytes>: ")
            errors += 1
    assert errors
    capfd.readouterr()  # libtiff reports damage on standard error by itself


def test_settings_of_pillow_are_left_alone_in_many_threads() -> None:
    before = (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, dict(Image.OPEN))
    sources = [ENCODED[name]() for name in ("jpeg", "png", "gif", "tiff", "webp", "jpeg cmyk")]
    expected = [read_pixels(data) for data in sources]
    failures: list[str] = []

    def work() -> None:
        for _ in range(5):
            for data, pixels in zip(sources, expected, strict=True):
                if not np.array_equal(read_pixels(data), pixels):
                    failures.append("differs")

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert before == (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES, dict(Image.OPEN))


def test_importing_it_does_not_import_torch() -> None:
    subprocess.run([sys.executable, "-c", "import clip.images, sys; assert 'torch' not in sys.modules"], check=True)
