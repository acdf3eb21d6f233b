"""Cut-outs beside the preprocessing, beside plain cropping, and at the frequencies that must not survive them."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from clip.errors import ConfigError
from clip.guidance.cutouts import Cutouts, Views
from clip.preprocess import Preprocess

SIZE = 32
SMALL = Preprocess(size=SIZE)


def uncut(preprocess: Preprocess, images: Tensor) -> Tensor:
    (cut,) = Cutouts.none().draw(preprocess, images.shape[-1], images.shape[-2])(images)
    return cut


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def at_boxes(*boxes: tuple[float, float, float, float], how: Cutouts | None = None) -> Views:
    """Cut-outs at these places, nothing else done to them."""
    plain = dataclasses.replace(how or Cutouts(), count=len(boxes), uncut=0)
    views = plain.draw(SMALL, 64, 64, seeded())
    return dataclasses.replace(views, boxes=torch.tensor(boxes, dtype=torch.float64))


@pytest.mark.parametrize("size", [(32, 32), (96, 96), (100, 151), (211, 64), (20, 27), (33, 7)])
@pytest.mark.parametrize(
    "options",
    [{}, {"resize": "squash"}, {"resize": "longest", "fill": 90}, {"interpolation": "bilinear"}],
    ids=lambda options: "-".join(map(str, options.values())) or "shortest",
)
def test_the_uncut_picture_is_that_of_the_preprocessing(size: tuple[int, int], options: dict[str, object]) -> None:
    """Within the roundings of its two passes to bytes, each half a grey level, and for the vertical one times the sum
    of the weights' sizes, up to 1.3; in noise, which overshoots everywhere."""
    preprocess = Preprocess(size=SIZE, **options)  # type: ignore[arg-type]
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    mean, std = (torch.tensor(value)[:, None, None] for value in (preprocess.mean, preprocess.std))
    expected = preprocess(Image.fromarray(pixels)) * std + mean
    found = uncut(preprocess, torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255)[0]
    assert (found - expected).abs().max() * 255 <= 1.25
    assert (found - expected).abs().mean() * 255 <= 0.5


def test_a_cutout_of_its_own_size_is_a_crop() -> None:
    x = torch.rand(2, 3, 64, 64)
    cut = at_boxes((5, 9, SIZE, SIZE))(x)[0]
    torch.testing.assert_close(cut, x[..., 9 : 9 + SIZE, 5 : 5 + SIZE], atol=1e-6, rtol=0)


def test_a_smaller_or_larger_one_is_an_antialiased_resize_of_a_crop() -> None:
    x = 0.4 + 0.2 * torch.rand(1, 3, 64, 64)
    down, up = at_boxes((0, 0, 64, 64), (16, 24, 16, 16))(x)[:, 0]
    expected = F.interpolate(x, (SIZE, SIZE), mode="bicubic", antialias=True)[0]
    torch.testing.assert_close(down, expected, atol=1e-5, rtol=0)
    expected = F.interpolate(x[..., 24:40, 16:32], (SIZE, SIZE), mode="bicubic", antialias=True)[0]
    inner = slice(6, -6)  # at its edge a cut-out sees its neighbours, where a crop ends
    torch.testing.assert_close(up[:, inner, inner], expected[:, inner, inner], atol=1e-5, rtol=0)


def test_what_is_too_fine_is_grey_and_not_a_pattern() -> None:
    """A chequered picture three times as large: adaptive pooling and grid_sample make stripes of it."""
    ticks = torch.arange(96)
    chequered = ((ticks[:, None] + ticks) % 2).float().expand(1, 3, 96, 96)
    assert uncut(SMALL, chequered).std() < 0.01
    turned = Cutouts(count=8, uncut=0, size=(0.9, 1), beyond=0, rotate=30, perspective=0.2)
    middle = turned.draw(SMALL, 96, 96, seeded())(chequered)[..., 8:-8, 8:-8]
    assert middle.std() < 0.02
    grid = F.affine_grid(torch.tensor([[[0.97, 0.0, 0.0], [0.0, 0.97, 0.0]]]), [1, 3, SIZE, SIZE], align_corners=False)
    assert F.grid_sample(chequered, grid, align_corners=False).std() > 0.1


def test_beyond_the_borders_is_background() -> None:
    x = torch.zeros(1, 3, 64, 64)
    red = Cutouts(background=(1.0, 0.0, 0.0))
    cut = at_boxes((-32, 0, 64, 64), how=red)(x)[0, 0]
    torch.testing.assert_close(cut[:, :, :16].mean(dim=(1, 2)), torch.tensor([1.0, 0.0, 0.0]))
    assert cut[:, :, 16:].max() == 0


def test_transparent_pixels_show_the_background_and_do_not_bleed() -> None:
    x = torch.zeros(1, 4, 64, 64)
    x[:, 0] = 1  # red everywhere, under what cannot be seen as well
    x[:, 2, :, :32] = 1  # magenta on the left,
    x[:, 3, :, 32:] = 1  # which is transparent
    for background in ((0.0, 1.0, 0.0), (1.0, 1.0, 1.0)):
        cut = at_boxes((0, 0, 64, 64), how=Cutouts(background=background))(x)[0, 0]
        torch.testing.assert_close(cut[:, :, :14], torch.tensor(background)[:, None, None].expand(3, SIZE, 14))
        torch.testing.assert_close(cut[:, :, 18:], torch.tensor([1.0, 0, 0])[:, None, None].expand(3, SIZE, 14))
    backgrounds = Cutouts(background=None, count=6).draw(SMALL, 64, 64, seeded()).backgrounds
    assert len(backgrounds.unique(dim=0)) == 6


def test_flips_turn_round() -> None:
    x = torch.rand(1, 3, 64, 64)
    how = Cutouts(count=20, flip=0.5)
    views = how.draw(SMALL, 64, 64, seeded())
    plain = dataclasses.replace(views, is_flipped=torch.zeros(20, dtype=torch.bool))(x)
    assert 3 < views.is_flipped.sum() < 17
    expected = torch.where(views.is_flipped[:, None, None, None, None], plain.flip(-1), plain)
    torch.testing.assert_close(views(x), expected, atol=1e-6, rtol=0)


def test_a_quarter_turn_is_a_quarter_turn() -> None:
    x = F.interpolate(torch.rand(1, 3, 6, 6), (64, 64), mode="bicubic").clamp(0, 1)
    views = at_boxes((0, 0, 64, 64), how=Cutouts(rotate=90.0))
    turned = dataclasses.replace(views, angles=torch.tensor([torch.pi / 2], dtype=torch.float64))(x)[0]
    upright = dataclasses.replace(views, angles=torch.tensor([0.0], dtype=torch.float64))(x)[0]
    expected = torch.rot90(upright, 1, (-2, -1))
    inner = slice(2, -2)
    torch.testing.assert_close(turned[..., inner, inner], expected[..., inner, inner], atol=0.01, rtol=0)


def test_a_slant_keeps_the_middle_and_makes_one_side_larger() -> None:
    x = torch.zeros(1, 3, 64, 64)
    x[..., 24:40, 24:40] = 1  # a square in the middle
    views = at_boxes((0, 0, 64, 64), how=Cutouts(perspective=0.5, background=(0.0, 0.0, 0.0)))
    slanted = dataclasses.replace(
        views, angles=torch.zeros(1), slants=torch.tensor([[0.25, 0.0]], dtype=torch.float64)
    )(x)[0, 0, 0]
    assert slanted[16, 16] == 1
    left, right = slanted[:, :16].sum(), slanted[:, 16:].sum()
    assert right > 1.1 * left  # the right is farther along the axis of depth, and what is sampled there spans less


def test_colours_change_by_the_factors() -> None:
    x = 0.3 + 0.3 * torch.rand(1, 3, 64, 64)
    views = at_boxes((0, 0, 64, 64), (0, 0, 64, 64), (0, 0, 64, 64), (0, 0, 64, 64), how=Cutouts(colour=0.5))
    factors = torch.tensor([[1.0, 1, 1], [1.2, 1, 1], [1, 0.0, 1], [1, 1, 0]], dtype=torch.float64)
    same, bright, flat, grey = dataclasses.replace(views, factors=factors)(x)[:, 0]
    torch.testing.assert_close(bright, same * 1.2)
    luma = torch.tensor([0.299, 0.587, 0.114])[:, None, None]
    torch.testing.assert_close(flat, (same * luma).sum(0).mean().expand_as(flat))
    torch.testing.assert_close(grey, (same * luma).sum(0).expand_as(grey))


def test_noise_has_its_strength_and_spares_the_uncut() -> None:
    x = torch.full((1, 3, 64, 64), 0.5)
    cut = Cutouts(count=3, noise=0.1, background=(0.5, 0.5, 0.5)).draw(SMALL, 64, 64, seeded())(x)
    assert cut[0].std() < 1e-6
    assert 0.09 < cut[1].std() < 0.11
    assert (cut[1] - cut[2]).std() > 0.1


# Randomness -----------------------------------------------------------------------------------------------------------

ALL = Cutouts(count=6, flip=0.5, rotate=30, perspective=0.3, colour=0.3, noise=0.1, background=None)


def test_a_seed_gives_the_same_in_any_slices() -> None:
    x = torch.rand(2, 3, 40, 48)
    whole = ALL.draw(SMALL, 48, 40, seeded(5))
    again = ALL.draw(SMALL, 48, 40, seeded(5))
    parts = torch.cat([again[slice(start, start + 4)](x) for start in (0, 4)])
    torch.testing.assert_close(whole(x), parts, atol=1e-6, rtol=0)
    assert (ALL.draw(SMALL, 48, 40, seeded(6)).boxes[1:] != whole.boxes[1:]).all()


def test_without_a_generator_the_global_seed_counts() -> None:
    torch.manual_seed(1)
    first = ALL.draw(SMALL, 40, 40)
    torch.manual_seed(1)
    torch.testing.assert_close(first.boxes, ALL.draw(SMALL, 40, 40).boxes)


def test_turning_one_dial_leaves_the_draws_of_the_others() -> None:
    other = dataclasses.replace(ALL, rotate=0.0, colour=0.0)
    torch.testing.assert_close(
        ALL.draw(SMALL, 40, 40, seeded()).boxes, other.draw(SMALL, 40, 40, seeded()).boxes, rtol=0, atol=0
    )


def test_all_pictures_of_a_batch_get_the_same() -> None:
    x = torch.rand(1, 3, 40, 40).expand(3, 3, 40, 40)
    cut = ALL.draw(SMALL, 40, 40, seeded())(x)
    torch.testing.assert_close(cut[:, 0], cut[:, 2], atol=1e-6, rtol=0)


def test_boxes_keep_their_sizes_and_limits() -> None:
    views = Cutouts(count=500, uncut=1, size=(0.5, 1.5), beyond=0.2).draw(SMALL, 100, 80, seeded())
    left, top, width, height = views.boxes[1:].T
    assert ((width >= 40) & (width <= 120)).all()
    torch.testing.assert_close(width, height)
    outside = [-left, -top, left + width - 100, top + height - 80]
    centred = (width - torch.tensor([[100], [80], [100], [80]])) / 2
    for distance, middle in zip(outside, centred, strict=True):
        assert (distance <= torch.maximum(0.2 * width, middle) + 1e-9).all()
    assert width.min() < 44
    assert width.max() > 116


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 0}, "count is 0"),
        ({"count": 2, "uncut": 3}, "uncut is 3"),
        ({"size": (0.0, 1.0)}, "0 < least"),
        ({"size": (0.8, 0.5)}, "0 < least"),
        ({"rotate": -1}, "rotate is -1"),
        ({"perspective": 0.9}, "0 to 0.5"),
        ({"noise": float("nan")}, "noise is nan"),
        ({"background": (0, 0, 2)}, "three numbers"),
    ],
)
def test_bad_options(options: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Cutouts(**options)  # type: ignore[arg-type]
