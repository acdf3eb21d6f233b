"""Dials that are off change nothing; those that are on do what they say, within their limits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from clip.data.augment import Augmentation, TrainingPreprocess
from clip.errors import ConfigError
from clip.preprocess import Preprocess

PLAIN = Preprocess(size=16, mean=(0, 0, 0), std=(1, 1, 1))


def _noise(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def _apply(pixels: np.ndarray, seed: int = 0, preprocess: Preprocess = PLAIN, **dials: object) -> Tensor:
    dials = {"crop_scale": (1.0, 1.0), **dials}
    transform = TrainingPreprocess(preprocess, augmentation=Augmentation(**dials))  # type: ignore[arg-type]
    return transform(pixels, np.random.default_rng(seed))


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_without_augmentation_it_is_the_preprocessing_of_inference(resize: str) -> None:
    preprocess = Preprocess(size=16, resize=resize)  # type: ignore[arg-type]
    pixels = _noise(40, 60)
    transform = TrainingPreprocess(preprocess, augmentation=Augmentation.none())
    assert torch.equal(transform(pixels, np.random.default_rng(1)), preprocess(pixels))
    assert (transform.size, transform.shorter_side) == (16, 16)


@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
def test_a_crop_keeps_its_share_and_shape_and_lies_anywhere(resize: str) -> None:
    preprocess = Preprocess(size=16, resize=resize)  # type: ignore[arg-type]
    transform = TrainingPreprocess(preprocess, augmentation=Augmentation(crop_scale=(0.25, 0.64)))
    assert transform.shorter_side == 32
    pixels = np.stack(np.broadcast_arrays(np.arange(60)[:, None], np.arange(100), 0), axis=-1).astype(np.uint8)
    sides, corners = [], []
    for seed in range(300):
        draw = np.random.default_rng(seed).random(9)
        crop = transform._cropped(pixels, tuple(draw[:3]))
        height, width = crop.shape[:2]
        whole = (60, 60) if resize == "shortest" else (60, 100)
        assert 0.5 <= round(height / whole[0], 2) <= 0.8 and abs(height / whole[0] - width / whole[1]) < 0.02
        sides.append(height)
        corners.append((crop[0, 0, 0] / (60 - height), crop[0, 0, 1] / (100 - width)))
    assert min(sides) < 32 and max(sides) > 46
    assert np.min(corners, axis=0).max() < 0.05 and np.max(corners, axis=0).min() > 0.95


def test_pictures_of_one_pixel() -> None:
    for shape in ((1, 1), (1, 90), (90, 1)):
        result = _apply(_noise(*shape), crop_scale=(0.01, 0.02), rotate=10.0, colour=0.5)
        assert result.shape == (3, 16, 16) and result.isfinite().all()


def test_a_flip_turns_left_and_right_round() -> None:
    pixels = _noise(16, 16)
    assert torch.equal(_apply(pixels, flip=1.0), _apply(pixels).flip(-1))
    flipped = sum(torch.equal(_apply(pixels, seed, flip=0.25), _apply(pixels).flip(-1)) for seed in range(400))
    assert 60 < flipped < 140


def test_grey_has_no_colour_and_keeps_its_luma() -> None:
    pixels = _noise(16, 16)
    grey, plain = _apply(pixels, grey=1.0), _apply(pixels)
    torch.testing.assert_close(grey[0], grey[1])
    torch.testing.assert_close(grey[0], plain[0] * 0.299 + plain[1] * 0.587 + plain[2] * 0.114, atol=1e-5, rtol=0)


def test_colour_stays_on_the_scale_and_grows_with_its_dial() -> None:
    pixels = _noise(16, 16)
    plain = _apply(pixels)
    changes = []
    for strength in (0.1, 0.4):
        results = [_apply(pixels, seed, colour=strength) for seed in range(30)]
        assert all(result.min() >= 0 and result.max() <= 1 for result in results)
        changes.append(float(torch.stack([(result - plain).abs().mean() for result in results]).mean()))
    assert 0 < changes[0] < changes[1] / 2


def test_a_rotation_turns_about_the_centre_and_fills_the_corners() -> None:
    pixels = np.zeros((64, 64, 3), dtype=np.uint8)
    angles = [seed for seed in range(20) if _apply(pixels, seed, rotate=45.0, background=255)[0, 0, 0] > 0.9]
    assert angles
    for seed in range(20):
        assert _apply(pixels, seed, rotate=45.0)[:, 7:9, 7:9].max() == 0


def test_one_dial_leaves_the_draws_of_the_others() -> None:
    pixels = _noise(40, 40)
    one = _apply(pixels, 5, crop_scale=(0.2, 0.9))
    other = _apply(pixels, 5, crop_scale=(0.2, 0.9), flip=1.0)
    assert torch.equal(one.flip(-1), other)


def test_the_fields_come_back_from_json() -> None:
    dials = Augmentation(crop_scale=(0.5, 0.75), flip=0.5, rotate=5, colour=0.2, grey=0.1, background=0)
    assert Augmentation.from_dict(dials.to_dict()) == dials
    with pytest.raises(ConfigError, match="unknown augmentation field 'color'; the fields are colour"):
        Augmentation.from_dict({"color": 0.1})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("crop_scale", (0.0, 1.0)),
        ("crop_scale", (0.9, 0.5)),
        ("crop_scale", (0.9, 1.1)),
        ("crop_scale", 0.9),
        ("flip", 1.5),
        ("flip", float("nan")),
        ("grey", -0.1),
        ("colour", "much"),
        ("rotate", 181),
        ("background", 256),
        ("background", True),
    ],
)
def test_dials_out_of_range(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{name} is "):
        Augmentation(**{name: value})  # type: ignore[arg-type]
