"""Features, logits, loss and gradients equal those of OpenAI's code, OpenCLIP and transformers on the same weights.

The goldens were made by ``tests/golden/model/make_goldens.py``; weights and inputs come from a seed on both sides.
``python tests/parity/test_model_parity.py`` prints the measured differences as a table.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.model import ARCHITECTURES, CLIP, AttentionPool2d, CLIPConfig, MultiheadAttention, QuickGELU, load_weights

GOLDEN = Path(__file__).parents[1] / "golden" / "model"

# Differences between the references themselves, in fp32 on different versions and thread counts, are about a quarter.
FEATURE_TOLERANCE = 2e-6  # of unit-norm features, largest absolute difference
LOGIT_TOLERANCE = 1e-4  # at scale 100
GRADIENT_TOLERANCE = 5e-5  # of every sampled number, relative to its tensor's largest
# The slope of a ReLU jumps at zero: where rounding moves one activation across, gradients jump. OpenAI's own of RN50
# differ by 1.4e-3, and their norms by 3e-4, between one thread and two.
RESNET_GRADIENT_TOLERANCE = 5e-3


def _seeded() -> ModuleType:
    spec = importlib.util.spec_from_file_location("seeded", GOLDEN / "seeded.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


seeded = _seeded()


@functools.cache
def goldens() -> dict[str, Any]:
    with np.load(GOLDEN / "goldens.npz") as file:
        return dict(file)


PAIRS = [
    (case, reference)
    for case in seeded.CASES
    for reference in ("openai", "openclip", "transformers")
    if f"{case}/{reference}/loss" in goldens()  # OpenAI's code has no GELU, transformers no ResNet
]


class Measured(NamedTuple):
    image_features: Tensor
    text_features: Tensor
    logits_per_image: Tensor
    loss: Tensor
    gradients: Tensor
    """A row per parameter: norm, largest magnitude, samples."""


def make_model(case: str) -> CLIP:
    values = seeded.CASES[case]
    names = ("embed_dim", "image_resolution", "vision_layers", "vision_width", "vision_patch_size", "context_length")
    names += ("vocab_size", "transformer_width", "transformer_heads", "transformer_layers")
    config = CLIPConfig(
        **dict(zip(names, values["sizes"], strict=True)),
        vision_heads=values.get("heads", 0),
        vision_mlp_width=values.get("mlp", 0),
        activation="gelu" if "gelu" in values else "quick_gelu",
    )
    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in CLIP.from_config(config).state_dict().items()}
    return load_weights(config, {key: torch.from_numpy(value) for key, value in seeded.weights(shapes).items()})


def inputs(model: CLIP) -> tuple[Tensor, Tensor]:
    images = torch.from_numpy(seeded.images(3, model.visual.input_resolution))
    return images, torch.from_numpy(seeded.texts(3, model.context_length, model.vocab_size))


@functools.cache
def measured(case: str) -> Measured:
    model = make_model(case)
    images, texts = inputs(model)
    with torch.no_grad():
        features = model.encode_image(images), model.encode_text(texts)
        logits, _ = model(images, texts)
        model.logit_scale.fill_(math.log(1 / 0.07))  # as the goldens' loss: at 100 the softmax magnifies rounding
    scaled, transposed = model(images, texts)
    labels = torch.arange(len(images))
    loss = (F.cross_entropy(scaled, labels) + F.cross_entropy(transposed, labels)) / 2
    loss.backward()
    gradients = dict(model.named_parameters())
    rows = [gradient_row(gradients[name].grad) for name in goldens()[f"{case}/parameters"]]
    return Measured(*features, logits, loss.detach(), torch.stack(rows))


def gradient_row(gradient: Tensor | None) -> Tensor:
    assert gradient is not None
    flat = gradient.flatten()
    samples = goldens()["tiny ViT/openai/gradients"].shape[1] - 2
    places = np.linspace(0, len(flat) - 1, samples).astype(np.int64)
    return torch.cat([flat.double().norm().float()[None], flat.abs().max()[None], flat[torch.from_numpy(places)]])


def differences(case: str, reference: str) -> dict[str, float]:
    """The largest difference of each quantity, in the measures of the tolerances."""
    ours = measured(case)
    theirs = {key: torch.from_numpy(goldens()[f"{case}/{reference}/{key}"]) for key in Measured._fields}
    result = {
        key: float((F.normalize(getattr(ours, key)) - F.normalize(theirs[key])).abs().max())
        for key in ("image_features", "text_features")
    }
    result["logits_per_image"] = float((ours.logits_per_image - theirs["logits_per_image"]).abs().max())
    result["loss"] = float((ours.loss - theirs["loss"]).abs())
    # A key's bias shifts all scores of a query alike, so that its true gradient is zero and the computed one is noise.
    real = torch.tensor([not name.endswith("k_proj.bias") for name in goldens()[f"{case}/parameters"]])
    error = (ours.gradients - theirs["gradients"])[real] / theirs["gradients"][real, 1:2]
    norm = theirs["gradients"][real, 0]
    result["gradients"] = float(error[:, 1:].abs().max())
    result["gradient_norms"] = float(((ours.gradients[real, 0] - norm) / norm).abs().max())
    return result


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize(("case", "reference"), PAIRS)
def test_equals_the_reference(case: str, reference: str) -> None:
    found = differences(case, reference)
    assert found["image_features"] <= FEATURE_TOLERANCE
    assert found["text_features"] <= FEATURE_TOLERANCE
    assert found["logits_per_image"] <= LOGIT_TOLERANCE
    assert found["loss"] <= 2e-6
    tolerance = GRADIENT_TOLERANCE if seeded.CASES[case]["sizes"][4] else RESNET_GRADIENT_TOLERANCE
    assert found["gradients"] <= tolerance
    assert found["gradient_norms"] <= tolerance


@pytest.mark.parametrize("case", seeded.CASES)
def test_goldens_tell_inputs_apart(case: str) -> None:
    reference = "openclip" if "gelu" in seeded.CASES[case] else "openai"
    for key in ("image_features", "text_features"):
        embeddings = F.normalize(torch.from_numpy(goldens()[f"{case}/{reference}/{key}"]))
        distances = torch.pdist(embeddings)
        assert distances.min() > 1000 * FEATURE_TOLERANCE


def _replace(model: nn.Module, kind: type[nn.Module], make: Callable[[nn.Module], nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, kind):
                setattr(parent, name, make(child))


def _wrong_activation(model: CLIP) -> None:
    _replace(model, QuickGELU, lambda _: nn.GELU(approximate="tanh"))
    _replace(model, nn.GELU, lambda old: old if old.approximate == "tanh" else QuickGELU())  # type: ignore[attr-defined]


def _q_and_k_swapped(model: CLIP) -> None:
    for block in model.modules():
        if isinstance(block, MultiheadAttention):
            q, k, v = block.in_proj_weight.data.chunk(3)
            block.in_proj_weight.data = torch.cat([k, q, v])


def _pool_q_and_k_swapped(model: CLIP) -> None:
    pool = model.visual.attnpool
    assert isinstance(pool, AttentionPool2d)
    pool.q_proj, pool.k_proj = pool.k_proj, pool.q_proj


def _normalisation_epsilon(model: CLIP) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm | nn.BatchNorm2d):
            module.eps = 1e-3


def _sees_the_future(model: CLIP) -> None:
    for block in model.transformer.resblocks:
        block.attn_mask = None


def _one_text_head(model: CLIP) -> None:
    block = model.transformer.resblocks[0]
    assert isinstance(block.attn, MultiheadAttention)
    block.attn.num_heads, block.attn.head_dim = 2 * block.attn.num_heads, block.attn.head_dim // 2


def _no_image_positions(model: CLIP) -> None:
    tower = getattr(model.visual, "attnpool", model.visual)
    tower.positional_embedding.data.zero_()


@pytest.mark.parametrize(
    ("case", "fault", "tower"),
    [
        ("tiny ViT", _wrong_activation, "image"),
        ("tiny ViT", _wrong_activation, "text"),
        ("tiny LAION", _wrong_activation, "image"),
        ("tiny ViT", _q_and_k_swapped, "image"),
        ("tiny ViT", _q_and_k_swapped, "text"),
        ("tiny ViT", _normalisation_epsilon, "image"),
        ("tiny ViT", _normalisation_epsilon, "text"),
        ("tiny ViT", _sees_the_future, "text"),
        ("tiny ViT", _one_text_head, "text"),
        ("tiny ViT", _no_image_positions, "image"),
        ("tiny ResNet", _pool_q_and_k_swapped, "image"),
        ("tiny ResNet", _normalisation_epsilon, "image"),
        ("tiny ResNet", _no_image_positions, "image"),
    ],
)
@torch.no_grad()
def test_a_fault_is_far_outside_the_tolerance(case: str, fault: Callable[[CLIP], None], tower: str) -> None:
    model = make_model(case)
    fault(model)
    images, texts = inputs(model)
    features = model.encode_image(images) if tower == "image" else model.encode_text(texts)
    reference = "openclip" if "gelu" in seeded.CASES[case] else "openai"
    expected = torch.from_numpy(goldens()[f"{case}/{reference}/{tower}_features"])
    assert (F.normalize(features) - F.normalize(expected)).abs().max() > 10 * FEATURE_TOLERANCE


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_parameter_count_equals_openclip(name: str) -> None:
    counts = json.loads((GOLDEN / "parameter_counts.json").read_text())
    with torch.device("meta"):
        model = CLIP.from_config(ARCHITECTURES[name])
    assert sum(parameter.numel() for parameter in model.parameters()) == counts[name]


def main() -> None:
    print("| Model | Reference | image features | text features | logits | loss | gradients | gradient norms |")
    print("|---|---|---|---|---|---|---|---|")
    for case, reference in PAIRS:
        cells = " | ".join(f"{value:.1e}" for value in differences(case, reference).values())
        print(f"| {case} | {reference} | {cells} |")
    print("\nReferences:", ", ".join(goldens()["versions"]) + f"; here torch {torch.__version__}")


if __name__ == "__main__":
    main()
