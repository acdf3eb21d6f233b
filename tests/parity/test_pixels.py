"""Preprocessing against what OpenAI's and OpenCLIP's code made of the same images (tests/golden/pixels)."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from clip.errors import ImageError
from clip.preprocess import Preprocess

GOLDEN = Path(__file__).parents[1] / "golden" / "pixels"


def _load_cases() -> Any:
    spec = importlib.util.spec_from_file_location("golden_pixels", GOLDEN / "make.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


cases = _load_cases()
with np.load(GOLDEN / "reference.npz") as _file:
    reference = dict(_file)
facts = json.loads(str(reference["facts"]))
# With the same Pillow every bit has to agree. Before Pillow 13 a picture more than twice as tall as wide came out
# differently, with the reference too; for the others a grey level is allowed.
same_pillow = facts["versions"]["PIL"].split(".")[0] == Image.__version__.split(".")[0]


def _levels(tensor: torch.Tensor, table: np.ndarray) -> np.ndarray:
    """The grey levels (3, n, n) of a normalised tensor, by exact look-up: a value outside the table fails."""
    values = tensor.numpy()
    levels = np.stack([np.searchsorted(table[c], values[c]) for c in range(3)])
    assert all((table[c][np.minimum(levels[c], 255)] == values[c]).all() for c in range(3))
    return levels


def _assert_same(result: torch.Tensor, golden: np.ndarray, image: Image.Image) -> None:
    assert result.dtype == torch.float32 and result.is_contiguous()
    if not same_pillow and image.height > 2 * image.width:
        pytest.skip("depends on the version of Pillow")
    difference = np.abs(_levels(result, reference["table"]) - golden.astype(int)).max()
    assert difference <= (0 if same_pillow else 1)


def test_the_table_is_the_normalisation_of_every_grey_level() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8), 3).reshape(16, 16, 3)
    result = Preprocess(size=16)(ramp).numpy().reshape(3, 256)
    assert np.array_equal(result, reference["table"])


@pytest.mark.parametrize(("name", "image"), [pytest.param(*case, id=case[0]) for case in cases.openai_cases()])
def test_a_pil_image_gives_openais_pixels(name: str, image: Image.Image) -> None:
    before = (image.mode, image.size, image.tobytes(), dict(image.info))
    if name in facts["raising"]:
        with pytest.raises(ImageError, match="cannot be resized"):
            Preprocess(size=cases.SIZE)(image)
    else:
        _assert_same(Preprocess(size=cases.SIZE)(image), reference[f"openai {name}"], image)
    assert before == (image.mode, image.size, image.tobytes(), dict(image.info))


@pytest.mark.skipif(not same_pillow, reason="hashes hold for one version of Pillow")
@pytest.mark.parametrize(("name", "image"), [pytest.param(*case, id=case[0]) for case in cases.large_cases()])
def test_at_224_every_bit_is_openais(name: str, image: Image.Image) -> None:
    result = Preprocess()(image)
    assert hashlib.sha256(result.numpy().tobytes()).hexdigest() == facts["hashes"][name]


@pytest.mark.parametrize(
    ("name", "resize", "interpolation", "fill", "image"),
    [pytest.param(*case, id=case[0]) for case in cases.openclip_cases()],
)
def test_the_other_ways_to_resize_give_openclips_pixels(
    name: str, resize: Any, interpolation: Any, fill: int, image: Image.Image
) -> None:
    preprocess = Preprocess(size=cases.SIZE, resize=resize, interpolation=interpolation, fill=fill)
    _assert_same(preprocess(image), reference[f"openclip {name}"], image)


@pytest.mark.parametrize(("width", "height"), [*cases.SHAPES, *cases.LARGE_SHAPES, (2000, 31), (7, 900)])
@pytest.mark.parametrize("resize", ["shortest", "squash", "longest"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_decoded_pixels_are_within_one_grey_level(width: int, height: int, resize: Any, interpolation: Any) -> None:
    image = cases.image("RGB", width, height)
    preprocess = Preprocess(size=48, resize=resize, interpolation=interpolation)
    exact, fast = (_levels(preprocess(source), reference["table"]) for source in (image, np.array(image)))
    difference = np.abs(exact - fast)
    # Where the picture grows, a filter weight above 1 can make two of one level that was rounded between the passes.
    assert difference.max() <= (1 if min(width, height) >= 48 else 2)
    assert difference.mean() < 0.03
