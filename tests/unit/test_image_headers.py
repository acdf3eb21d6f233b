from __future__ import annotations

import io
from typing import Any

import pytest
from PIL import Image, PngImagePlugin

from clip.errors import ImageError
from clip.image_headers import exif_orientation, read_header


def _encode(image_format: str, **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 8, "a description of the picture"
    file = io.BytesIO()
    Image.new("RGB", (30, 20), "red").save(file, image_format, exif=exif, **options)
    return file.getvalue()


def _text() -> PngImagePlugin.PngInfo:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "a description of the picture", zip=True)
    return text


@pytest.mark.parametrize(
    ("image_format", "options", "orientation"),
    [
        ("JPEG", {"comment": b"a description of the picture", "icc_profile": b"profile" * 30}, 8),
        ("JPEG", {"progressive": True}, 8),
        ("PNG", {"pnginfo": _text(), "icc_profile": b"profile" * 30}, 8),
        ("TIFF", {"icc_profile": b"profile" * 30}, 8),
        ("TIFF", {"big_tiff": True, "compression": "tiff_lzw"}, 8),
        ("WEBP", {}, 8),
        ("WEBP", {"lossless": True}, 8),
        ("GIF", {"comment": b"a description of the picture"}, 1),
    ],
)
def test_it_says_what_the_first_picture_is(image_format: str, options: dict[str, Any], orientation: int) -> None:
    header = read_header(_encode(image_format, **options))
    assert (header.format, header.size, header.orientation) == (image_format, (30, 20), orientation)


def test_a_plain_webp_states_its_size_too() -> None:
    for options in ({}, {"lossless": True}):
        file = io.BytesIO()
        Image.new("RGB", (300, 2), "red").save(file, "WEBP", **options)
        assert read_header(file.getvalue()).size == (300, 2)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
def test_metadata_is_left_out(image_format: str) -> None:
    extra: dict[str, Any] = {"pnginfo": _text()} if image_format == "PNG" else {}
    data = _encode(image_format, icc_profile=b"profile" * 30, **extra)
    with Image.open(io.BytesIO(data)) as image:
        assert image.getexif() and image.info["icc_profile"]
    with Image.open(io.BytesIO(b"".join(read_header(data).parts))) as image:
        image.load()
        assert image.size == (30, 20)
        assert 0x0112 not in image.getexif() and 0x010E not in image.getexif()
        assert not image.info.keys() & {"icc_profile", "exif", "comment", "Comment"}


def test_further_pages_of_a_tiff_are_left_out() -> None:
    pages = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    pages[0].save(file, "TIFF", save_all=True, append_images=pages[1:])
    with Image.open(io.BytesIO(b"".join(read_header(file.getvalue()).parts))) as image:
        assert getattr(image, "n_frames", 1) == 1


def test_a_tag_with_too_many_values_is_refused() -> None:
    data = _encode("TIFF")
    width = b"\x00\x01\x04\x00\x01\x00\x00\x00\x1e"  # tag 256, a LONG, one value: 30
    assert width in data
    with pytest.raises(ImageError, match="tag 256 of the TIFF has 2 values instead of one"):
        read_header(data.replace(width, b"\x00\x01\x04\x00\x02\x00\x00\x00\x08"))


def test_more_channels_than_a_picture_has_are_refused() -> None:
    data = _encode("TIFF")
    channels = b"\x15\x01\x03\x00\x01\x00\x00\x00\x03"  # tag 277, a SHORT, one value: 3
    assert channels in data
    with pytest.raises(ImageError, match="has 255 channels; fetch or export"):
        read_header(data.replace(channels, channels[:-1] + b"\xff"))


@pytest.mark.parametrize(
    ("exif", "orientation"),
    [
        (b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0", 6),
        (b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0", 3),
        (b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\0\0\0\0", 1),
        (b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0", 1),
        (b"", 1),
        (b"XX", 1),
    ],
)
def test_the_orientation_of_exif(exif: bytes, orientation: int) -> None:
    assert exif_orientation(exif) == orientation
