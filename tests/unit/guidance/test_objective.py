"""The objective's numbers against ones written out plainly, its gradient against finite differences."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import clip
from clip.errors import ConfigError, ImageError, ShapeError
from clip.guidance.cutouts import Cutouts
from clip.guidance.objective import (
    Distance,
    EmbeddingPrompt,
    ImagePrompt,
    Objective,
    Prompt,
    cosine_distance,
    smoothness,
    spherical_distance,
    total_variation,
)
from clip.inference.optimized import optimize_for_inference
from clip.model import CLIP, convert_weights
from clip.preprocess import Preprocess

GREY = (0.5, 0.5, 0.5)
MANY = Cutouts(
    count=5, rotate=20, perspective=0.2, colour=0.2, noise=0.02, flip=0.5, beyond=0.3, background=GREY, size=(0.4, 1)
)
TINY = Preprocess(size=32)


def pictures(batch: int = 2, size: int = 40, dtype: torch.dtype = torch.float32) -> Tensor:
    """Grey enough that no filter overshoots: there a clamp has the value of one and the gradient of none."""
    return 0.5 + 0.1 * torch.rand(batch, 3, size, size + 8, dtype=dtype)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(3)


# Values ---------------------------------------------------------------------------------------------------------------


def test_the_uncut_picture_has_the_distance_of_its_embeddings(tiny_vit: CLIP) -> None:
    objective = Objective(tiny_vit, TINY, prompts=["a fox"], cutouts=Cutouts.none(), distance="cosine")
    picture = np.random.default_rng(0).integers(100, 150, (32, 32, 3), np.uint8)
    with torch.no_grad():
        image = F.normalize(tiny_vit.encode_image(TINY(Image.fromarray(picture))[None]), dim=-1)
        text = F.normalize(tiny_vit.encode_text(clip.tokenize("a fox")), dim=-1)
        value = objective(torch.from_numpy(picture).permute(2, 0, 1)[None] / 255)
    torch.testing.assert_close(value, 1 - (image * text).sum(dim=-1), atol=1e-5, rtol=0)


def test_weights_add_up_and_their_sizes_sum_to_one(tiny_vit: CLIP) -> None:
    x = pictures()

    def value(**goals: object) -> Tensor:
        return Objective(tiny_vit, TINY, cutouts=Cutouts.none(), **goals)(x)  # type: ignore[arg-type]

    fox, cat, dog = (value(prompts=[name]) for name in ("a fox", "a cat", "a dog"))
    weighted = value(prompts=[Prompt("a fox", 2), Prompt("a cat")], against=["a dog"])
    torch.testing.assert_close(weighted, (2 * fox + cat - dog) / 4)
    torch.testing.assert_close(
        value(prompts=["a fox", Prompt("a dog", -1)]), value(prompts=["a fox"], against=["a dog"])
    )


def test_templates_are_averaged(tiny_vit: CLIP) -> None:
    objective = Objective(tiny_vit, TINY, prompts=["fox"], templates=["{}", "a drawing of a(n) {}"])
    with torch.no_grad():
        each = F.normalize(tiny_vit.encode_text(clip.tokenize(["fox", "a drawing of a fox"])), dim=-1)
    torch.testing.assert_close(objective.targets[0], F.normalize(each.mean(dim=0), dim=0), atol=1e-5, rtol=0)


def test_a_reference_picture_is_nearest_to_itself(tiny_vit: CLIP) -> None:
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (32, 32, 3), np.uint8))
    x = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None] / 255
    objective = Objective(tiny_vit, TINY, images=[picture], cutouts=Cutouts.none())
    assert objective(x).item() < 1e-4
    assert objective(1 - x).item() > 10 * objective(x).item()
    same = Objective(tiny_vit, TINY, prompts=[ImagePrompt(picture, 3)], cutouts=Cutouts.none())
    torch.testing.assert_close(same(x), objective(x))


def test_an_embedding_of_any_norm_is_a_goal(tiny_vit: CLIP) -> None:
    x = pictures()
    with torch.no_grad():
        text = tiny_vit.encode_text(clip.tokenize("a fox"))[0]
    goal = Objective(tiny_vit, TINY, prompts=[EmbeddingPrompt(5 * text)], cutouts=Cutouts.none())
    torch.testing.assert_close(goal(x), Objective(tiny_vit, TINY, prompts=["a fox"], cutouts=Cutouts.none())(x))


def test_a_term_is_added_once_whatever_the_cutouts(tiny_vit: CLIP) -> None:
    x = pictures()
    plain = Objective(tiny_vit, TINY, prompts=["a fox"], cutouts=MANY)
    with_term = Objective(tiny_vit, TINY, prompts=["a fox"], cutouts=MANY, terms=[(0.5, total_variation)], chunk_size=2)
    difference = with_term(x, generator=seeded()) - plain(x, generator=seeded())
    torch.testing.assert_close(difference, 0.5 * total_variation(x), atol=1e-6, rtol=0)


def test_what_terms_measure() -> None:
    steps = torch.zeros(1, 3, 4, 4)
    steps[..., 2:] = 1  # one edge among three differences across
    assert total_variation(steps).item() == pytest.approx(1 / 3)
    ramp = torch.linspace(0, 1, 4).expand(1, 3, 4, 4)
    assert total_variation(ramp).item() == pytest.approx(1 / 3)
    assert smoothness(ramp).item() == pytest.approx(1 / 9)
    assert smoothness(steps).item() == pytest.approx(1 / 3)


# Gradients ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distance", ["spherical", "cosine"])
def test_the_gradient_is_that_of_finite_differences(tiny_resnet: CLIP, distance: Distance) -> None:
    """In fp64 throughout, which the normalisations of a vision transformer are not."""
    objective = Objective(
        tiny_resnet.double(),
        Preprocess(size=64),
        prompts=["a fox"],
        against=["a cat"],
        cutouts=MANY,
        distance=distance,
        terms=[(0.1, total_variation), (0.1, smoothness)],
    )
    x = pictures(2, 12, torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda images: objective(images, generator=seeded()), x, eps=1e-6, atol=1e-6, fast_mode=True
    )


def test_one_direction_of_pocket(pocket: tuple[CLIP, Preprocess]) -> None:
    model, preprocess = pocket
    objective = Objective(model, preprocess, prompts=["a red heart"], cutouts=Cutouts(count=4))
    x = pictures(1, 64)
    _, gradient = objective.value_and_gradient(x, generator=seeded())
    direction = gradient.sign()
    step = 2e-4  # fp32: smaller ones drown in rounding, larger ones bend
    with torch.no_grad():
        ahead, behind = (objective(x + way * direction, generator=seeded()).item() for way in (step, -step))
    assert (ahead - behind) / (2 * step) == pytest.approx((gradient * direction).sum().item(), rel=0.05)


@pytest.mark.parametrize("chunk_size", [1, 3, 5, 100])
def test_chunks_change_nothing(tiny_vit: CLIP, chunk_size: int) -> None:
    def result(chunk_size: int) -> tuple[Tensor, Tensor]:
        objective = Objective(
            tiny_vit.double(),
            TINY,
            prompts=["a fox", "red"],
            cutouts=MANY,
            chunk_size=chunk_size,
            terms=[(0.1, smoothness)],
        )
        return objective.value_and_gradient(pictures_, generator=seeded())

    pictures_ = pictures(3, dtype=torch.float64)
    (value, gradient), (expected, exact) = result(chunk_size), result(1000)
    torch.testing.assert_close(value, expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, exact, atol=1e-12, rtol=1e-9)


def test_the_chunked_gradient_is_that_of_the_call(tiny_resnet: CLIP) -> None:
    objective = Objective(tiny_resnet.double(), Preprocess(size=64), prompts=["a fox"], cutouts=MANY, chunk_size=2)
    x = pictures(2, dtype=torch.float64).requires_grad_()
    values = objective(x, generator=seeded())
    values.sum().backward()
    chunked, gradient = objective.value_and_gradient(x, generator=seeded())
    torch.testing.assert_close(chunked, values.detach(), atol=1e-12, rtol=0)
    torch.testing.assert_close(gradient, x.grad, atol=1e-12, rtol=1e-9)


def test_memory_is_bounded_by_the_chunk(tiny_vit: CLIP) -> None:
    """Counts the bytes that graphs keep at once."""
    held, most = 0, 0

    def peak(count: int, chunk_size: int) -> int:
        nonlocal held, most
        held = most = 0
        objective = Objective(tiny_vit, TINY, prompts=["a fox"], cutouts=Cutouts(count=count), chunk_size=chunk_size)

        class Kept:
            def __init__(self, tensor: Tensor) -> None:
                nonlocal held, most
                self.tensor, self.size = tensor, tensor.numel() * tensor.element_size()
                held += self.size
                most = max(most, held)

            def __del__(self) -> None:
                nonlocal held
                held -= self.size

        with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
            objective.value_and_gradient(pictures())
        return most

    assert peak(64, 8) < 1.2 * peak(8, 8) < peak(64, 64) / 2


def test_backward_reaches_what_the_picture_is_made_of(tiny_vit: CLIP) -> None:
    objective = Objective(tiny_vit, TINY, prompts=["a fox"], cutouts=Cutouts.none())
    level = torch.tensor(0.1, requires_grad=True)
    picture = pictures(1)
    values = objective.backward(torch.sigmoid(picture * level))
    by_call = torch.autograd.grad(objective(torch.sigmoid(picture * level)).sum(), level)[0]
    assert not values.requires_grad
    torch.testing.assert_close(level.grad, by_call)


def test_descent_lowers_it(pocket: tuple[CLIP, Preprocess]) -> None:
    objective = Objective(*pocket, prompts=["a red heart"], cutouts=Cutouts.none())
    x = pictures(1, 64)
    first = None
    for _ in range(5):
        value, gradient = objective.value_and_gradient(x)
        first = value if first is None else first
        x = (x - 0.02 * gradient.sign()).clamp(0, 1)
    assert objective(x) < first - 0.1


# Precision ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0.0, 1e-3, 1.0, 90.0, 179.0, 180.0])
def test_the_spherical_distance_at_every_angle(degrees: float) -> None:
    angle = math.radians(degrees)
    a = torch.tensor([1.0, 0.0, 0.0], requires_grad=True)
    b = -a.detach() if degrees == 180 else torch.tensor([math.cos(angle), math.sin(angle), 0.0])
    value = spherical_distance(a, b)
    # fp32 rounds the vectors by 6e-8, and with them the angle
    assert math.sqrt(2 * value.item()) == pytest.approx(angle, abs=2e-7, rel=1e-6)
    (gradient,) = torch.autograd.grad(value, a)
    assert gradient.isfinite().all()
    if degrees in (0.0, 180.0):
        assert gradient.norm() < 1e-5
    else:  # along the sphere the slope of angle²/2 is the angle
        assert gradient[1].item() == pytest.approx(-angle, rel=1e-3)


def test_the_spherical_distance_is_the_published_one() -> None:
    a, b = (F.normalize(torch.randn(50, 8, dtype=torch.float64), dim=-1) for _ in range(2))
    torch.testing.assert_close(spherical_distance(a, b), 2 * torch.arcsin((a - b).norm(dim=-1) / 2) ** 2)
    torch.testing.assert_close(cosine_distance(a, b), 1 - F.cosine_similarity(a, b))


@pytest.mark.parametrize(("dtype", "likeness"), [(torch.float16, 0.99), (torch.bfloat16, 0.9)])
def test_half_precision_keeps_small_gradients(tiny_vit: CLIP, dtype: torch.dtype, likeness: float) -> None:
    """With 1000 times smaller weights on the prompt, plain fp16 would return zeros."""
    x = pictures()

    def gradient(model: CLIP, factor: float) -> Tensor:
        objective = Objective(model, TINY, prompts=["a fox"], cutouts=Cutouts(count=4))
        objective.weights *= factor
        return objective.value_and_gradient(x, generator=seeded())[1]

    exact = gradient(tiny_vit, 1e-6)
    convert_weights(tiny_vit, dtype)
    half = gradient(tiny_vit, 1e-6)
    assert half.dtype == torch.float32
    assert F.cosine_similarity(half.flatten(), exact.flatten(), dim=0) > likeness
    torch.testing.assert_close(half.norm(), exact.norm(), rtol=0.05, atol=0)


# The model and the pictures are left as they are ----------------------------------------------------------------------


def test_the_model_is_left_as_it_was(tiny_resnet: CLIP) -> None:
    tiny_resnet.train()
    before = {key: value.clone() for key, value in tiny_resnet.state_dict().items()}
    objective = Objective(tiny_resnet, Preprocess(size=64), prompts=["a fox"], cutouts=Cutouts(count=2))
    objective(pictures().requires_grad_()).sum().backward()
    objective.value_and_gradient(pictures())
    assert tiny_resnet.training
    assert all(parameter.grad is None and parameter.requires_grad for parameter in tiny_resnet.parameters())
    for key, value in tiny_resnet.state_dict().items():
        torch.testing.assert_close(value, before[key], rtol=0, atol=0)


def test_the_weights_are_shared(tiny_vit: CLIP) -> None:
    twin = Objective(tiny_vit, TINY, prompts=["a fox"]).model
    assert {p.data_ptr() for p in twin.parameters()} == {p.data_ptr() for p in tiny_vit.parameters()}


def test_the_same_under_no_grad_and_inference_mode(tiny_vit: CLIP) -> None:
    objective = Objective(tiny_vit, TINY, prompts=["a fox"], cutouts=MANY)
    x = pictures()
    expected = objective.value_and_gradient(x, generator=seeded())
    with torch.no_grad():
        again = objective.value_and_gradient(x, generator=seeded())
    torch.testing.assert_close(again, expected)


# What is refused ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "error", "words"),
    [
        (torch.zeros(3, 8, 8), ShapeError, "batch, 3, height, width"),
        (torch.zeros(1, 1, 8, 8), ShapeError, "batch, 3, height, width"),
        (torch.zeros(0, 3, 8, 8), ShapeError, "batch, 3, height, width"),
        (torch.zeros(1, 3, 8, 8, dtype=torch.uint8), ShapeError, "divide bytes by 255"),
        (torch.full((1, 3, 8, 8), -1.0), ImageError, "range is 0 to 1"),
        (torch.full((1, 3, 8, 8), 1.01), ImageError, "1.01"),
        (torch.full((1, 3, 8, 8), torch.nan), ImageError, "not finite"),
        (torch.full((1, 3, 8, 8), torch.inf), ImageError, "not finite"),
    ],
)
def test_bad_pictures(tiny_vit: CLIP, images: Tensor, error: type[Exception], words: str) -> None:
    objective = Objective(tiny_vit, TINY, prompts=["a fox"])
    for method in (objective, objective.value_and_gradient):
        with pytest.raises(error, match=words):
            method(images)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "nothing to go towards"),
        ({"prompts": "a fox"}, "give a list"),
        ({"prompts": [" "]}, "a prompt is empty"),
        ({"prompts": [Prompt("a fox", 0)]}, "'a fox' is 0"),
        ({"prompts": [Prompt("a fox", math.nan)]}, "finite"),
        ({"prompts": ["a fox"], "distance": "sperical"}, "spherical, cosine"),
        ({"prompts": ["a fox"], "chunk_size": 0}, "at least 1"),
        ({"prompts": ["a fox"], "templates": ["a photo"]}, "has no {}"),
        ({"prompts": [EmbeddingPrompt(np.zeros(16, np.float32))]}, "points nowhere"),
        ({"prompts": [EmbeddingPrompt(np.ones(8, np.float32))]}, r"\(16,\)"),
    ],
)
def test_bad_options(tiny_vit: CLIP, options: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Objective(tiny_vit, TINY, **options)  # type: ignore[arg-type]


def test_models_that_give_no_gradient_or_other_sizes(tiny_vit: CLIP, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"take the model and its preprocessing from clip\.load"):
        Objective(optimize_for_inference(tiny_vit), TINY, prompts=["a fox"])  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="224 pixels, the model takes 32"):
        Objective(tiny_vit, Preprocess(), prompts=["a fox"])
    with pytest.raises(ImageError):
        Objective(tiny_vit, TINY, images=[tmp_path / "none.png"])
    with pytest.raises(ShapeError, match="one value a picture"):
        Objective(tiny_vit, TINY, prompts=["a fox"], terms=[(1.0, lambda x: x.mean())])(pictures())


@pytest.fixture(scope="module")
def pocket() -> tuple[CLIP, Preprocess]:
    if not (Path(clip.__path__[0]) / "pocket.safetensors").exists():
        pytest.skip("pocket is not in this checkout")
    return clip.load("pocket", device="cpu")
