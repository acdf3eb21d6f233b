from __future__ import annotations

import json
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clip.errors import ConfigError, ImageError, ShapeError
from clip.preprocess import OPENAI_MEAN, OPENAI_STD, Preprocess

LEVELS = {"mean": (0, 0, 0), "std": (1 / 255,) * 3}  # the result is then in grey levels


def _columns(*levels: int) -> Image.Image:
    """An image of one row's grey levels, as tall as wide."""
    return Image.fromarray(np.tile(np.array(levels, np.uint8)[None, :, None], (len(levels), 1, 3)))


def test_it_gives_a_normalised_contiguous_float_tensor() -> None:
    result = Preprocess(size=8)(Image.new("RGB", (20, 10), (255, 0, 51)))
    assert result.shape == (3, 8, 8)
    assert result.dtype == torch.float32
    assert result.is_contiguous()
    expected = (torch.tensor([1.0, 0.0, 0.2]) - torch.tensor(OPENAI_MEAN)) / torch.tensor(OPENAI_STD)
    assert torch.equal(result[:, 3, 3], expected)


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "1"])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_without_torch_the_values_are_the_same_bit_for_bit(mode: str, resize: Any, interpolation: Any) -> None:
    preprocess = Preprocess(size=24, resize=resize, interpolation=interpolation, fill=7)
    for seed, size in enumerate([(60, 41), (41, 60), (24, 24), (7, 90), (10, 9)]):
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
        image = Image.fromarray(pixels).convert(mode)
        found = preprocess.to_numpy(image)
        assert found.shape == (3, 24, 24)
        assert found.dtype == np.float32
        assert found.flags.c_contiguous
        np.testing.assert_array_equal(found, preprocess(image).numpy())
        # Pixels take the exact path too, where torch's filter would be near it only.
        np.testing.assert_array_equal(preprocess.to_numpy(pixels), preprocess(Image.fromarray(pixels)).numpy())


@pytest.mark.parametrize("width, first", [(4, 0), (5, 0), (6, 1), (7, 2), (8, 2), (9, 2), (10, 3), (11, 4)])
def test_an_odd_margin_rounds_half_to_even(width: int, first: int) -> None:
    image = Image.fromarray(np.tile(np.arange(width, dtype=np.uint8)[None, :, None], (4, 1, 3)))
    for source in (image, np.array(image)):
        assert Preprocess(size=4, **LEVELS)(source)[0, 0].round().tolist() == list(range(first, first + 4))


def test_squash_keeps_everything_and_longest_adds_a_border() -> None:
    image = Image.new("RGB", (8, 4), (200, 200, 200))
    for source in (image, np.array(image)):
        squashed = Preprocess(size=8, resize="squash", **LEVELS)(source).round()
        assert squashed.min() == squashed.max() == 200
        padded = Preprocess(size=8, resize="longest", fill=9, **LEVELS)(source)[1].round()
        assert padded[:, 0].tolist() == [9, 9, 200, 200, 200, 200, 9, 9]


def test_longest_on_an_odd_border_has_the_extra_row_below() -> None:
    padded = Preprocess(size=8, resize="longest", **LEVELS)(Image.new("RGB", (8, 5), "white"))[0].round()
    assert padded[:, 0].tolist() == [0, 255, 255, 255, 255, 255, 0, 0]


def test_a_very_long_image_costs_no_more_than_its_kept_box() -> None:
    # Resized whole it would be 16 × 16 million pixels.
    pixels = np.zeros((1, 1_000_000, 3), np.uint8)
    pixels[:, 500_000:] = 255
    for source in (Image.fromarray(pixels), pixels):
        result = Preprocess(size=16, **LEVELS)(source)[0]
        assert result[:, 0].max() < 9  # the edge, enlarged 16 times, is smooth
        assert result[:, -1].min() > 246


def test_arrays_of_any_memory_order_are_accepted_and_left_alone() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    expected = Preprocess(size=16)(pixels)
    mirrored = pixels[:, ::-1]
    read_only = pixels.copy()
    read_only.flags.writeable = False
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).transpose(1, 2, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for same in (read_only, planes, np.repeat(pixels, 2, axis=0)[::2]):
            assert torch.equal(Preprocess(size=16)(same), expected)
        assert torch.equal(Preprocess(size=16)(mirrored), Preprocess(size=16)(mirrored.copy()))
    assert not torch.equal(Preprocess(size=16)(mirrored), expected)


def test_the_result_shares_no_memory_with_the_image() -> None:
    pixels = np.zeros((16, 16, 3), np.uint8)
    result = Preprocess(size=16)(pixels)
    result.zero_()
    assert torch.equal(Preprocess(size=16)(pixels), Preprocess(size=16)(np.zeros((16, 16, 3), np.uint8)))
    assert not pixels.any()


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((3, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((1, 4, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(pixels: Any) -> None:
    for convert in (Preprocess(), Preprocess().to_numpy):
        with pytest.raises(ShapeError, match=r"expected pixels \(H, W, 3\) of uint8, found"):
            convert(pixels)


def test_images_without_pixels_are_refused() -> None:
    for empty in (Image.new("RGB", (0, 5)), np.zeros((5, 0, 3), np.uint8)):
        for convert in (Preprocess(), Preprocess().to_numpy):
            with pytest.raises(ImageError, match="0×5 has no pixels"):
                convert(empty)


def test_a_truncated_lazy_image_is_an_image_error(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    _columns(*range(64)).save(path)
    path.write_bytes(path.read_bytes()[:100])
    with Image.open(path) as image, pytest.raises(ImageError, match="truncated"):
        Preprocess()(image)


def test_other_things_are_refused() -> None:
    for convert in (Preprocess(), Preprocess().to_numpy):
        with pytest.raises(TypeError, match="expected a PIL image or a NumPy array, found str"):
            convert("picture.jpg")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": 0}, "size is 0"),
        ({"size": 2.5}, "size is 2.5"),
        ({"size": True}, "size is True"),
        ({"mean": (0.5, 0.5)}, "mean is"),
        ({"mean": (0.5, 0.5, float("nan"))}, "mean is"),
        ({"mean": "abc"}, "mean is"),
        ({"std": (0.5, 0, 0.5)}, "std is .* above 0"),
        ({"resize": "shortes"}, "resize is 'shortes'; it must be one of shortest, "),
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos'; it must be one of"),
        ({"fill": 256}, "fill is 256"),
        ({"fill": -1}, "fill is -1"),
    ],
)
def test_a_bad_value_names_its_field(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Preprocess(**fields)
    with pytest.raises(ConfigError, match=message):
        Preprocess.from_dict(fields)


def test_it_survives_json_and_pickle() -> None:
    preprocess = Preprocess(size=336, mean=(0.5, 0.5, 0.5), resize="longest", interpolation="bilinear", fill=255)
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.to_dict()))) == preprocess
    assert pickle.loads(pickle.dumps(preprocess)) == preprocess
    assert Preprocess.from_dict({}) == Preprocess()
    assert len({preprocess, Preprocess()}) == 2


def test_an_unknown_field_is_refused_with_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="'interpolate'; the fields are interpolation, size, mean"):
        Preprocess.from_dict({"interpolate": "bicubic"})
