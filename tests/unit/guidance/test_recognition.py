"""The objective of a drawing: its gradient is right, and a drawing of the thing is lower than for other words."""

from __future__ import annotations

import pytest
import torch

import clip
from clip.errors import ConfigError
from clip.guidance.cutouts import Cutouts
from clip.guidance.outline_tower import outline_features
from clip.guidance.recognition import Recognition, rivals
from clip.guidance.robust_tower import for_pocket
from clip.images import read_pixels
from clip.model import CLIP
from clip.preprocess import Preprocess
from clip.samples import pictures


@pytest.fixture(scope="module")
def pocket() -> tuple[CLIP, Preprocess]:
    model, preprocess = clip.load("pocket", device="cpu")
    return model.float().eval(), preprocess


def _fox() -> torch.Tensor:
    sample = next(sample for sample in pictures() if sample.name == "emoji/fox.png")
    return torch.from_numpy(read_pixels(sample.image).copy()).permute(2, 0, 1)[None].float() / 255


def test_rivals_are_many_and_different() -> None:
    names = rivals()
    assert len(names) > 300
    assert len(set(names)) == len(names)
    assert all(name == name.strip().lower() for name in names)


def test_what_shares_a_word_is_no_rival(pocket: tuple[CLIP, Preprocess]) -> None:
    names = ["red fish", "red apple", "fish cake", "house", "car"]
    objective = Recognition(*pocket, prompts=["a red fish"], names=names, against=["a fish bone"])
    assert objective.rivals == ("red apple", "house", "car", "a fish bone")
    with pytest.raises(ConfigError, match="nothing that the picture could be taken for"):
        Recognition(*pocket, prompts=["a fish"], names=["fish"])
    with pytest.raises(ConfigError, match="not empty"):
        Recognition(*pocket, prompts=[" "], names=["fish"])


def test_a_drawing_of_the_thing_is_lower_than_others(pocket: tuple[CLIP, Preprocess]) -> None:
    names = ["fox", "heart", "house"]
    for share in (0.0, 1.0):
        values = [
            float(
                Recognition(
                    *pocket, prompts=[name], names=rivals(), tower=for_pocket(), share=share, cutouts=Cutouts.none()
                )(_fox())
            )
            for name in names
        ]
        assert min(values) == values[0]


def test_it_names_a_picture(pocket: tuple[CLIP, Preprocess]) -> None:
    named = Recognition(*pocket, prompts=["a fox"], names=rivals()).named(_fox()[0], top=5)
    assert named[0][0] == "a fox"
    assert 1 >= named[0][1] >= named[4][1] > 0


def test_the_gradient_of_the_outlines_is_that_of_finite_differences() -> None:
    random = torch.Generator().manual_seed(0)
    images = torch.rand(1, 3, 32, 32, generator=random, dtype=torch.float64)
    weights = torch.rand(832, generator=random, dtype=torch.float64)

    def value(images: torch.Tensor) -> torch.Tensor:
        return (outline_features(images) * weights).sum(dim=1)

    assert torch.autograd.gradcheck(value, images.requires_grad_(), atol=1e-4, rtol=1e-3, fast_mode=True)


def test_value_and_gradient_agree_with_autograd(pocket: tuple[CLIP, Preprocess]) -> None:
    objective = Recognition(*pocket, prompts=["a fish"], names=rivals(), tower=for_pocket())
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    values, gradient = objective.value_and_gradient(images, generator=torch.Generator().manual_seed(1))
    again = objective(images, generator=torch.Generator().manual_seed(1))
    torch.autograd.backward(again.sum())
    assert torch.allclose(values, again.detach(), atol=1e-5)
    assert images.grad is not None
    assert torch.allclose(gradient, images.grad, atol=1e-6)
    assert not values.requires_grad
