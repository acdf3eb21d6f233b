"""One reading and one decoding give the row and the pixels."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip.data.likeness import signature
from clip.errors import ImageError
from clip.features import encode_images
from clip.images import read_pixels
from clip.model import CLIP
from clip.preprocess import Preprocess
from clip.search import prepare as module
from clip.search.items import Item
from clip.search.prepare import prepare

PREPROCESS = Preprocess(size=32)


def picture(*, size: tuple[int, int] = (60, 40), seed: int = 0, image_format: str = "JPEG", **options: object) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST).save(file, image_format, **options)
    return file.getvalue()


def test_a_row_says_all_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(picture())
    os.utime(path, ns=(7, 12345678901))
    row, pixels = prepare(Item(path="name", image=str(path), metadata={"year": 2001}), PREPROCESS)
    assert (row.path, row.width, row.height, row.format, row.metadata) == ("name", 60, 40, "JPEG", {"year": 2001})
    assert (row.size_bytes, row.modified_ns) == (path.stat().st_size, 12345678901)
    assert row.digest == hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
    expected = signature(path.read_bytes())
    assert row.signature == expected.gradients.to_bytes(8, "big") + expected.colours.tobytes()
    assert pixels.shape == (3, 32, 32) and pixels.dtype == np.float32


def test_what_an_item_says_of_its_file_is_kept() -> None:
    """The walk has seen the file before it was read; of two states the older one is safe to remember."""
    item = Item(path="a", image=picture(), size_bytes=5, modified_ns=6)
    row, _ = prepare(item, PREPROCESS)
    assert (row.size_bytes, row.modified_ns) == (5, 6)
    row, _ = prepare(dataclasses.replace(item, size_bytes=None, modified_ns=None), PREPROCESS)
    assert (row.size_bytes, row.modified_ns) == (len(picture()), None)


def test_turned_pictures_are_as_wide_as_they_are_seen() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    row, _ = prepare(Item(path="a", image=picture(exif=exif)), PREPROCESS)
    assert (row.width, row.height) == (40, 60)


@pytest.mark.parametrize("image_format", ["PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_all_formats(image_format: str) -> None:
    row, _ = prepare(Item(path="a", image=picture(image_format=image_format)), PREPROCESS)
    assert (row.width, row.height, row.format) == (60, 40, image_format)


def test_the_pixels_are_those_that_the_features_take(tiny_vit: CLIP, tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(picture(size=(700, 500)))  # large enough to be decoded at a quarter
    _, pixels = prepare(Item(path="a", image=str(path)), PREPROCESS)
    (by_file,) = encode_images(tiny_vit, PREPROCESS, [str(path)])
    (by_pixels,) = encode_images(tiny_vit, PREPROCESS, [pixels])
    assert (by_file.embeddings == by_pixels.embeddings).all()
    _, without_torch = prepare(Item(path="a", image=str(path)), PREPROCESS, with_torch=False)
    assert (without_torch == PREPROCESS.to_numpy(read_pixels(path, shorter_side=32))).all()


def test_a_blank_picture_has_no_signature() -> None:
    file = io.BytesIO()
    Image.new("RGB", (50, 50), "white").save(file, "PNG")
    assert prepare(Item(path="a", image=file.getvalue()), PREPROCESS).row.signature is None


def test_it_can_be_sent_to_another_process() -> None:
    prepared = prepare(Item(path="a", image=picture()), PREPROCESS)
    row, pixels = pickle.loads(pickle.dumps(prepared))
    assert row == prepared.row and (pixels == prepared.pixels).all()


def test_any_failure_is_an_image_error_that_names_the_item(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, whole = tmp_path / "pipe.jpg", tmp_path / "whole.jpg"
    os.mkfifo(pipe)
    whole.write_bytes(picture())

    def reason(image: str | bytes) -> str:
        with pytest.raises(ImageError) as caught:
            prepare(Item(path="the\nname", image=image), PREPROCESS)
        assert str(caught.value).startswith("the\nname: ")
        return str(caught.value).removeprefix("the\nname: ")

    assert reason(str(tmp_path / "nowhere")) == "cannot be read (No such file or directory)"
    assert reason(str(tmp_path)) == reason(str(pipe)) == reason("/dev/zero") == "cannot be read (not a regular file)"
    assert reason("a\0b.jpg").startswith("cannot be read (")
    assert reason(b"") == "the file is empty; fetch or export it again"
    assert reason(b"text").startswith("not a picture in one of the formats")
    assert "damaged or cut off" in reason(picture(image_format="PNG")[:-100])
    monkeypatch.setattr(module, "MAX_BYTES", 500)
    assert reason(str(whole)) == reason(picture()) == "has more than 500 bytes; re-encode the picture as JPEG or PNG"
