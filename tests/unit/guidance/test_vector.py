"""Shapes and strokes: their raster is that of an SVG renderer, and its gradient that of finite differences."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from clip.errors import ConfigError, ShapeError
from clip.guidance.svg import svg_text
from clip.guidance.vector import Shapes, Strokes, Vector, coverage


def _random(kind: str, seed: int) -> Vector:
    random = torch.Generator().manual_seed(seed)
    picture: Vector
    if kind == "strokes":
        picture = Strokes.random(5, generator=random)
    else:
        picture = Shapes.random(5, mirrored=kind == "mirrored", generator=random)
        with torch.no_grad():
            picture.roundness.add_(2 * torch.randn(picture.roundness.shape, generator=random))
    with torch.no_grad():
        picture.points.add_(0.03 * torch.randn(picture.points.shape, generator=random))
    return picture


@pytest.mark.parametrize("kind", ["shapes", "mirrored", "strokes"])
@pytest.mark.parametrize("size", [48, 200])
def test_the_raster_is_that_of_resvg(kind: str, size: int) -> None:
    resvg_py = pytest.importorskip("resvg_py")
    for seed in range(3):
        picture = _random(kind, seed)
        png = bytes(resvg_py.svg_to_bytes(svg_string=svg_text(picture.outlines()), width=size, height=size))
        with Image.open(io.BytesIO(png)) as image:
            expected = np.asarray(image.convert("RGB")).astype(np.float32) / 255
        found = picture(size)[0].detach().permute(1, 2, 0).numpy()
        # Coordinates of the file are rounded to a thousandth, and where edges of two layers meet in one pixel, or an
        # outline crosses itself, cover is no area any more: some pixels differ, a picture does not.
        assert np.abs(found - expected).mean() < 0.003


def test_a_square_covers_its_area() -> None:
    side = torch.linspace(0, 1, 41)[:-1, None] * 10
    zero, ten = torch.zeros_like(side), torch.full_like(side, 10)
    square = torch.cat([*(torch.cat(pair, dim=1) for pair in ((side, zero), (ten, side), (10 - side, ten)))])
    square = torch.cat([square, torch.cat([zero, 10 - side], dim=1)]) + torch.tensor([2.25, 3.5])
    covers = coverage(square[None], 20, 20)[0]
    assert covers.sum() == pytest.approx(100, abs=1e-3)
    assert covers[8, 2] == pytest.approx(0.75, abs=1e-5)
    assert covers[3, 8] == pytest.approx(0.5, abs=1e-5)
    assert covers[8, 14:].abs().max() < 1e-5  # no streak right of it


def test_what_lies_outside_the_picture_leaves_no_streak() -> None:
    angles = torch.arange(400) * (2 * torch.pi / 400)
    circle = torch.stack([angles.cos(), angles.sin()], dim=-1) * 6
    for centre in ((0.0, 0.0), (20.0, 10.0), (10.0, 20.0), (-30.0, 10.0), (10.0, -30.0), (50.0, 50.0)):
        covers = coverage(circle[None] + torch.tensor(centre), 20, 20)[0]
        inside = (torch.arange(20) + 0.5 - centre[0])[None, :] ** 2 + (torch.arange(20) + 0.5 - centre[1])[:, None] ** 2
        assert covers[inside < 25].sub(1).abs().sum() < 1e-3
        assert covers[inside > 49].abs().sum() < 1e-3


@pytest.mark.parametrize("kind", ["shapes", "mirrored", "strokes"])
def test_the_gradient_is_that_of_finite_differences(kind: str) -> None:
    picture = _random(kind, 4).double()
    weights = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Smooth weights: the exact cover is a polygon's, whose derivative jumps where a corner leaves a pixel.
    weights = torch.nn.functional.avg_pool2d(weights, 9, 1, 4)

    def value() -> torch.Tensor:
        total: torch.Tensor = (picture(32).double() * weights).sum()
        return total

    gradients = torch.autograd.grad(value(), list(picture.parameters()))
    for parameter, gradient in zip(picture.parameters(), gradients, strict=True):
        for place in (0, parameter.numel() // 2, parameter.numel() - 1):
            flat = parameter.data.view(-1)
            kept, step = flat[place].clone(), 1e-4
            with torch.no_grad():
                flat[place] = kept + step
                more = value()
                flat[place] = kept - step
                less = value()
                flat[place] = kept
            expected = float((more - less) / (2 * step))
            assert float(gradient.reshape(-1)[place]) == pytest.approx(expected, rel=0.05, abs=0.05)


def test_a_mirrored_picture_is_its_own_mirror_image() -> None:
    picture = Shapes.random(3, batch=2, mirrored=1, generator=torch.Generator().manual_seed(1))
    images = picture()
    assert torch.allclose(images[0], images[0].flip(-1), atol=1e-4)
    assert not torch.allclose(images[1], images[1].flip(-1), atol=0.1)


def test_a_transparent_picture_has_alpha_only_where_its_shapes_are() -> None:
    picture = Shapes.random(2, background=None, generator=torch.Generator().manual_seed(0))
    layers = picture.layers().detach()
    assert layers.shape == (1, 4, 64, 64)
    over_black = layers[:, :3] * layers[:, 3:]
    assert torch.allclose(over_black + 1 - layers[:, 3:], picture(), atol=1e-5)
    assert layers[0, 3].min() == 0
    assert layers[0, 3].max() == pytest.approx(1)


def test_kept_takes_one_picture_and_some_of_its_shapes() -> None:
    picture = Shapes.random(4, batch=3, mirrored=2, generator=torch.Generator().manual_seed(0))
    kept = picture.kept(2, torch.tensor([0, 3]))
    assert torch.equal(kept.points, picture.points[2:, [0, 3]])
    assert not kept.is_mirrored.any()
    assert picture.points.shape[:2] == (3, 4)


def test_a_step_far_outside_is_brought_back() -> None:
    picture = Shapes.random(2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        picture.points.add_(100)
    picture.constrain_()
    assert picture.points.max() < 1
    assert picture().isfinite().all()


def test_wrong_shapes_are_told() -> None:
    with pytest.raises(ShapeError, match="3 points or more"):
        Shapes(torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 3))
    with pytest.raises(ShapeError, match="colours have shape"):
        Shapes(torch.zeros(1, 2, 3, 2), torch.zeros(1, 3, 3))
    with pytest.raises(ShapeError, match="widths have shape"):
        Strokes(torch.zeros(1, 2, 3, 2), torch.zeros(1, 3), torch.zeros(1, 2, 3))
    with pytest.raises(ConfigError, match="there must be"):
        Shapes.random(0)
    with pytest.raises(ConfigError, match="size is 4"):
        Shapes.random(1, size=4)
