"""The packed model beside the one that it was made from."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import clip
from clip.config import CLIPConfig
from clip.errors import ConfigError, ShapeError
from clip.inference.optimized import InferenceCLIP, optimize_for_inference
from clip.inference.packed import PackedLinear
from clip.model import CLIP

VIT = CLIPConfig(
    embed_dim=16,
    image_resolution=30,  # its last six rows and columns are in no patch
    vision_layers=3,
    vision_width=64,
    vision_patch_size=8,
    vision_heads=2,
    transformer_width=48,
    transformer_heads=3,
    transformer_layers=3,
)
RESNET = dataclasses.replace(
    VIT, image_resolution=64, vision_layers=(1, 2, 1, 1), vision_width=8, vision_patch_size=None, vision_heads=4
)
CONFIGS = {
    "quick_gelu": VIT,
    "gelu": dataclasses.replace(VIT, activation="gelu"),
    "one layer": dataclasses.replace(VIT, vision_layers=1, transformer_layers=1),
    "resnet": RESNET,
}
TEXTS = ["a", "a photo of a cat", "two dogs and a red ball on the grass", "", "x " * 75]


def model_of(config: CLIPConfig) -> CLIP:
    """With biases and normalisations that are not zero and one, as after training."""
    model = CLIP.from_config(config).eval()
    for name, tensor in model.state_dict().items():
        if tensor.ndim == 1 and tensor.is_floating_point():
            tensor.add_(torch.rand_like(tensor) * 0.2) if "var" in name else tensor.add_(torch.randn_like(tensor) * 0.1)
    return model


def images(config: CLIPConfig, count: int) -> Tensor:
    return torch.randn(count, 3, config.image_resolution, config.image_resolution)


@contextmanager
def rows_counted() -> Iterator[list[int]]:
    """The rows of each matrix product between."""
    rows: list[int] = []
    call = PackedLinear.__call__

    def counted(self: PackedLinear, x: Tensor) -> Tensor:
        rows.append(x.shape[0])
        return call(self, x)

    with patch.object(PackedLinear, "__call__", counted):
        yield rows


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("count", [1, 3])
def test_fp32_differs_in_rounding_alone(config: CLIPConfig, count: int) -> None:
    model = model_of(config)
    packed = optimize_for_inference(model, "fp32")
    pixels, text = images(config, count), clip.tokenize(TEXTS)
    torch.testing.assert_close(packed.encode_image(pixels), model.encode_image(pixels).detach(), rtol=1e-5, atol=2e-5)
    torch.testing.assert_close(packed.encode_text(text), model.encode_text(text).detach(), rtol=1e-5, atol=2e-5)
    for ours, theirs in zip(packed(pixels, text), model(pixels, text), strict=True):
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_bf16_keeps_the_direction_of_every_embedding(config: CLIPConfig) -> None:
    model = model_of(config)
    packed = optimize_for_inference(model, "bf16")
    pixels, text = images(config, 3), clip.tokenize(TEXTS)
    pairs = [
        (packed.encode_image(pixels), model.encode_image(pixels)),
        (packed.encode_text(text), model.encode_text(text)),
    ]
    for ours, theirs in pairs:
        assert ours.dtype == torch.float32
        assert F.cosine_similarity(ours, theirs.detach()).min() > 0.9998


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_are_read_in_the_precision_of_their_file(dtype: torch.dtype) -> None:
    model = model_of(VIT)
    stored = {key: value.to(dtype) for key, value in model.state_dict().items()}
    as_stored = clip.model.load_weights(VIT, dict(stored))
    widened = clip.model.load_weights(VIT, {key: value.float() for key, value in stored.items()})
    pixels, text = images(VIT, 2), clip.tokenize(TEXTS)
    ours, theirs = optimize_for_inference(as_stored, "fp32"), optimize_for_inference(widened, "fp32")
    assert torch.equal(ours.encode_image(pixels), theirs.encode_image(pixels))
    assert torch.equal(ours.encode_text(text), theirs.encode_text(text))


@pytest.mark.parametrize("threads", [2, 3])
def test_streams_give_what_one_gives(threads: int) -> None:
    packed = optimize_for_inference(model_of(VIT), "fp32")
    pixels = images(VIT, 25)
    text = clip.tokenize([" ".join(["word"] * (n % 9)) for n in range(60)])
    alone = packed.encode_image(pixels), packed.encode_text(text)
    torch.set_num_threads(threads)
    together = packed.encode_image(pixels), packed.encode_text(text)
    assert torch.get_num_threads() == threads
    for ours, theirs in zip(together, alone, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_neither_padding_nor_what_nobody_reads_is_computed() -> None:
    packed = optimize_for_inference(model_of(VIT), "fp32")
    text = clip.tokenize(TEXTS)
    tokens = int((text.argmax(dim=1) + 1).sum())
    with rows_counted() as rows:
        packed.encode_text(text)
    # Four products in each block, in the last one of one token a text.
    assert rows == [tokens] * 4 * (VIT.transformer_layers - 1) + [len(TEXTS)] * 4
    with rows_counted() as rows:
        packed.encode_image(images(VIT, 2))
    assert rows == [2 * 9] + [2 * 10] * 4 * 2 + [2] * 4


def test_a_batch_of_none_is_no_features() -> None:
    packed = optimize_for_inference(model_of(VIT))
    assert packed.encode_image(images(VIT, 0)).shape == (0, 16)
    assert packed.encode_text(torch.zeros(0, 77, dtype=torch.long)).shape == (0, 16)


def test_short_tables_of_ids_are_texts_too() -> None:
    model = model_of(VIT)
    text = clip.tokenize(["a cat", "a small dog"])[:, :9]
    torch.testing.assert_close(
        optimize_for_inference(model, "fp32").encode_text(text), model.encode_text(text).detach(), rtol=1e-5, atol=2e-5
    )


def test_what_was_packed_is_neither_changed_nor_kept() -> None:
    model = model_of(VIT)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    packed = optimize_for_inference(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    pixels, text = images(VIT, 1), clip.tokenize("a cat")
    expected = packed.encode_image(pixels), packed.encode_text(text)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    assert torch.equal(packed.encode_image(pixels), expected[0])
    assert torch.equal(packed.encode_text(text), expected[1])
    gone = weakref.ref(model)
    del model, parameter
    gc.collect()
    assert gone() is None


def test_it_records_no_gradients_and_its_features_are_ordinary_tensors() -> None:
    packed = optimize_for_inference(model_of(VIT))
    features = packed.encode_image(images(VIT, 2).requires_grad_())
    assert not features.requires_grad
    assert not features.is_inference()
    assert packed.eval() is packed
    assert not packed.training


def test_the_bias_of_sigmoid_models_is_added() -> None:
    model = model_of(dataclasses.replace(VIT, logit_bias=True))
    pixels, text = images(VIT, 2), clip.tokenize(["a", "b"])
    expected = model(pixels, text)[0].detach()
    torch.testing.assert_close(optimize_for_inference(model, "fp32")(pixels, text)[0], expected, rtol=1e-4, atol=1e-4)


def test_what_cannot_be_packed_is_said() -> None:
    model = CLIP.from_config(VIT)
    with pytest.raises(ConfigError, match=r"training mode; call model\.eval\(\)"):
        optimize_for_inference(model.train())
    with pytest.raises(ConfigError, match="the model is on meta"):
        optimize_for_inference(CLIP.from_config(VIT).to("meta").eval())
    with pytest.raises(ConfigError, match="precision is 'fp8'; it must be one of"):
        optimize_for_inference(model.eval(), "fp8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="int8 needs the graphs of another engine"):
        optimize_for_inference(model.eval(), "int8")


def test_wrong_shapes_are_said() -> None:
    packed = InferenceCLIP(model_of(VIT))
    with pytest.raises(ShapeError, match=r"\(2, 3, 32, 32\); \(batch, 3, 30, 30\) is expected"):
        packed.encode_image(torch.zeros(2, 3, 32, 32))
    with pytest.raises(ShapeError, match=r"\(3, 30, 30\); \(batch, 3, 30, 30\)"):
        packed.encode_image(torch.zeros(3, 30, 30))
    with pytest.raises(ShapeError, match=r"\(77,\); \(batch, up to 77 tokens\)"):
        packed.encode_text(torch.zeros(77, dtype=torch.long))
    with pytest.raises(ShapeError, match=r"\(1, 78\)"):
        packed.encode_text(torch.zeros(1, 78, dtype=torch.long))
