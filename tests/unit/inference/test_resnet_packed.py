"""The packed ResNet beside the one that it was made from."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clip
from clip import samples
from clip.images import read_image
from clip.inference import packed
from clip.inference.resnet import PackedResNet
from clip.model import CLIP, CLIPConfig, ModifiedResNet

TINY = CLIPConfig(
    embed_dim=16,
    image_resolution=64,
    vision_layers=(2, 1, 2, 1),
    vision_width=8,
    vision_patch_size=None,
    vision_heads=4,
    transformer_width=64,
    transformer_layers=1,
)
SIZES = [32, 64, 96]
"""The maps of the last stage have 1, 2 and 3 rows."""


def tower_of(size: int) -> ModifiedResNet:
    """With statistics and biases as after training: of each channel its own, and far from zero and one."""
    tower = CLIP.from_config(dataclasses.replace(TINY, image_resolution=size)).visual.eval()
    assert isinstance(tower, ModifiedResNet)
    with torch.no_grad():
        for module in tower.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.3, 3)
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(std=0.3)
    return tower


def least_cosine(given: Tensor, expected: Tensor) -> float:
    return float(F.cosine_similarity(given, expected).min())


@pytest.fixture(params=["private operators", "ordinary layers"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a torch that has the operators and on one that lacks them."""
    if request.param == "ordinary layers":
        monkeypatch.setattr(packed, "_has", lambda *args: False)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_in_fp32_the_features_differ_by_rounding_alone(size: int, batch: int) -> None:
    tower, images = tower_of(size), torch.randn(batch, 3, size, size)
    expected = tower(images)
    given = PackedResNet(tower, torch.float32)(images)
    assert given.dtype == torch.float32
    assert float((given - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("size", SIZES)
@torch.no_grad()
def test_in_bf16_the_features_are_near(size: int) -> None:
    tower, images = tower_of(size), torch.randn(3, 3, size, size)
    given = PackedResNet(tower, torch.bfloat16)(images)
    assert given.dtype == torch.float32
    assert least_cosine(given, tower(images)) > 0.9995  # random maps of 8 channels: rounding averages over few


@torch.no_grad()
def test_pocket_in_bf16_is_pocket() -> None:
    model, preprocess = clip.load("pocket", device="cpu")
    images = torch.stack([preprocess(read_image(picture.image)) for picture in samples.pictures()])
    expected = model.encode_image(images)
    assert isinstance(model.visual, ModifiedResNet)
    given = PackedResNet(model.visual, torch.bfloat16)(images)
    mean = expected.mean(dim=0)
    assert least_cosine(given, expected) > 0.9999
    assert least_cosine(given - mean, expected - mean) > 0.9999  # without what all pictures share


@torch.no_grad()
def test_half_precision_weights_are_folded_in_fp32() -> None:
    tower, images = tower_of(64).half(), torch.randn(2, 3, 64, 64)
    given = PackedResNet(tower, torch.float32)(images)
    expected = tower.float()(images)
    assert float((given - expected).abs().max()) < 1e-5 * float(expected.abs().max())


@torch.no_grad()
def test_large_batches_go_through_in_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = PackedResNet(tower_of(32), torch.float32), torch.randn(7, 3, 32, 32)
    together = net(images)
    net.images_per_pass = 3
    counts = []
    first = net.first

    def counted(x: Tensor) -> Tensor:
        counts.append(len(x))
        return first(x)

    monkeypatch.setattr(net, "first", counted)
    assert torch.allclose(net(images), together, atol=1e-5)
    assert counts == [3, 3, 1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_neither_the_tower_nor_the_images_are_changed_or_kept(dtype: torch.dtype) -> None:
    tower, images = tower_of(64), torch.randn(2, 3, 64, 64)
    before = {key: value.clone() for key, value in tower.state_dict().items()}
    kept = images.clone()
    net = PackedResNet(tower, dtype)
    given = net(images)
    assert torch.equal(images, kept)
    assert all(torch.equal(value, before[key]) for key, value in tower.state_dict().items())
    for value in tower.state_dict().values():
        value.zero_()
    assert torch.equal(net(images), given)


@torch.no_grad()
def test_an_image_is_the_same_alone_and_among_others() -> None:
    net, images = PackedResNet(tower_of(64), torch.bfloat16), torch.randn(5, 3, 64, 64)
    alone = torch.cat([net(image[None]) for image in images])
    assert least_cosine(alone, net(images)) > 0.9999
