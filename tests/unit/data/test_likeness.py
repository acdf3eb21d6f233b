"""Signatures of pictures, and the pairs that are found without comparing all with all."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageEnhance

from clip.data.likeness import COLOURS, components, image_bytes, signature, similar_pairs
from clip.errors import ImageError
from clip.images import read_image

EXAMPLES = Path(__file__).parents[3] / "examples"


def _encoded(image: Image.Image, image_format: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def _are_near(one: bytes, other: bytes) -> bool:
    signatures = [signature(one), signature(other)]
    labels = np.arange(2)
    components(
        labels,
        np.array([each.gradients for each in signatures], np.uint64),
        np.array([each.colours for each in signatures]),
    )
    return bool(labels[0] == labels[1])


def _pictures() -> list[Path]:
    return sorted(EXAMPLES.glob("*/*.png")) + sorted(EXAMPLES.glob("*/*.jpg"))


def test_the_same_picture_in_other_clothes_is_found() -> None:
    found = {"jpeg": 0, "half": 0, "brighter": 0}
    for path in _pictures():
        image = read_image(path)
        original = path.read_bytes()
        found["jpeg"] += _are_near(original, _encoded(image, "JPEG", quality=50))
        found["half"] += _are_near(original, _encoded(image.resize((image.width // 2, image.height // 2))))
        found["brighter"] += _are_near(original, _encoded(ImageEnhance.Brightness(image).enhance(0.93)))
    total = len(_pictures())
    assert total == 24
    assert found["jpeg"] == total
    assert found["brighter"] == total
    assert found["half"] >= 0.9 * total  # docs/data-check.md has the shares on many pictures


def test_different_pictures_are_not_near() -> None:
    pictures = [path.read_bytes() for path in _pictures()]
    signatures = [signature(data) for data in pictures]
    labels = np.arange(len(pictures))
    components(
        labels, np.array([s.gradients for s in signatures], np.uint64), np.array([s.colours for s in signatures])
    )
    assert labels.tolist() == list(range(len(pictures)))


def test_the_same_outline_in_another_colour_is_another_picture() -> None:
    def circle(colour: str) -> bytes:
        image = Image.new("RGB", (64, 64), "white")
        ImageDraw.Draw(image).ellipse((12, 12, 52, 52), fill=colour)
        return _encoded(image)

    assert signature(circle("#c00000")).gradients == signature(circle("#0000ff")).gradients
    assert not _are_near(circle("#c00000"), circle("#0000ff"))
    assert _are_near(circle("#c00000"), circle("#c60000"))


def test_what_a_signature_says() -> None:
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 256, (30, 50), dtype=np.uint8))
    one = signature(_encoded(grey))
    assert (one.width, one.height, one.format, one.is_grey, one.is_blank) == (50, 30, "PNG", True, False)
    again = signature(_encoded(grey, compress_level=0))
    assert (again.file != one.file, again.pixels == one.pixels) == (True, True)
    assert signature(_encoded(Image.new("RGB", (9, 9), "red"))).is_blank
    assert not signature(_encoded(Image.new("RGB", (9, 9), "red"))).is_grey
    turned = Image.Exif()
    turned[274] = 6
    file = io.BytesIO()
    grey.save(file, "JPEG", exif=turned)
    assert (signature(file.getvalue()).width, signature(file.getvalue()).height) == (30, 50)
    # The same bytes of pixels in another shape.
    assert signature(_encoded(Image.new("RGB", (2, 8)))).pixels != signature(_encoded(Image.new("RGB", (4, 4)))).pixels


def test_bytes_of_pictures_are_bounded_and_errors_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("missing.png", "pipe.png", "a\0b.png", "", "/dev/null"):
        with pytest.raises(ImageError, match="no such file"):
            image_bytes(tmp_path / name)
    monkeypatch.setattr("clip.data.likeness.MAX_BYTES", 4)
    (tmp_path / "large.png").write_bytes(b"12345")
    with pytest.raises(ImageError, match="more than 4 bytes"):
        image_bytes(tmp_path / "large.png")
    with pytest.raises(ImageError):
        signature(b"12345")


def _within(gradients: NDArray[np.uint64], bits: int) -> set[tuple[int, int]]:
    numbers = [int(number) for number in gradients]
    return {
        (i, j)
        for i in range(len(numbers))
        for j in range(i + 1, len(numbers))
        if (numbers[i] ^ numbers[j]).bit_count() <= bits
    }


def test_all_pairs_within_four_bits_are_found_and_none_beyond_six() -> None:
    rng = np.random.default_rng(1)
    base = rng.integers(0, 1 << 64, 60, dtype=np.uint64)
    gradients = np.concatenate([base, base, base])
    for row in range(len(base), len(gradients)):
        for bit in rng.choice(64, rng.integers(0, 9), replace=False):
            gradients[row] ^= np.uint64(1) << np.uint64(bit)
    gradients = gradients[rng.permutation(len(gradients))]
    colours = np.zeros((len(gradients), COLOURS), np.uint8)
    found: set[tuple[int, int]] = set()
    for left, right in similar_pairs(gradients, colours, wanted=lambda a, b: np.ones(len(a), bool)):
        found |= {(min(pair), max(pair)) for pair in zip(left.tolist(), right.tolist(), strict=True)}
    assert _within(gradients, 4) <= found <= _within(gradients, 6)
    assert len(_within(gradients, 4)) > 40


def test_components_are_those_of_the_pairs() -> None:
    # A chain, each two bits from the next: its ends are far apart, and still one component.
    chain = np.cumsum(np.array([0] + [3 << (2 * i) for i in range(20)], np.uint64), dtype=np.uint64)
    lonely = np.array([0xF0F0_F0F0_F0F0_F0F0, 0x0F0F_0F0F_0F0F_0F0F], np.uint64)
    gradients = np.concatenate([chain, lonely])[np.random.default_rng(2).permutation(23)]
    labels = np.arange(23)
    components(labels, gradients, np.zeros((23, COLOURS), np.uint8))
    assert sorted(np.unique(labels, return_counts=True)[1].tolist()) == [1, 1, 21]
    assert all(label <= row for row, label in enumerate(labels.tolist()))


def test_a_thousand_copies_are_one_component_and_no_rows_are_fine() -> None:
    labels = np.arange(1000)
    components(labels, np.full(1000, 7, np.uint64), np.full((1000, COLOURS), 9, np.uint8))
    assert not labels.any()
    empty = np.arange(0)
    components(empty, np.empty(0, np.uint64), np.empty((0, COLOURS), np.uint8))
