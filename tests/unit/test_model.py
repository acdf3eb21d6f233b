"""The model at reduced size: what its towers compute and leave out, and what code written around them relies on."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import math
import pickle
import re
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip import model as model_module
from clip.errors import ConfigError, ModelNotFoundError, ShapeError, StateDictError
from clip.model import (
    ARCHITECTURES,
    CLIP,
    CLIPConfig,
    LayerNorm,
    ModifiedResNet,
    MultiheadAttention,
    QuickGELU,
    ResidualAttentionBlock,
    Transformer,
    VisionTransformer,
    architecture,
    build_model,
    convert_weights,
    load_weights,
)

VIT = CLIPConfig(
    embed_dim=16,
    image_resolution=16,
    vision_layers=2,
    vision_width=32,
    vision_patch_size=8,
    vision_heads=4,
    vocab_size=50,
    transformer_width=24,
    transformer_heads=3,
    transformer_layers=2,
)
RESNET = dataclasses.replace(
    VIT,
    image_resolution=64,
    vision_layers=(1, 2, 1, 1),
    vision_width=4,
    vision_patch_size=None,
    vision_heads=2,
    vision_mlp_width=0,
)
BOTH = pytest.mark.parametrize("config", [VIT, RESNET], ids=["vit", "resnet"])
END = VIT.vocab_size - 1


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def make_model(config: CLIPConfig = VIT) -> CLIP:
    """In eval mode, with normalisations and biases that do something, unlike those of a fresh model."""
    model = CLIP.from_config(config).eval()
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("running_var"):
                tensor.uniform_(0.5, 1.5)
            elif tensor.is_floating_point() and (name.endswith(("bias", "running_mean")) or "bn3.weight" in name):
                tensor.normal_(std=0.3)
    return model


def images(count: int, config: CLIPConfig = VIT) -> Tensor:
    return torch.randn(count, 3, config.image_resolution, config.image_resolution)


def texts(*lengths: int, context_length: int = VIT.context_length) -> Tensor:
    """Rows of so many tokens, the last of which is the end token, and padding behind."""
    ids = torch.zeros(len(lengths), context_length, dtype=torch.int32)
    for row, length in enumerate(lengths):
        ids[row, : length - 1] = torch.randint(1, END, (length - 1,))
        ids[row, length - 1] = END
    return ids


def encode_untrimmed(model: CLIP, text: Tensor) -> Tensor:
    """What OpenAI's ``encode_text`` computes: all tokens of the row, padding too."""
    x = model.token_embedding(text) + model.positional_embedding[: text.shape[1]]
    x = model.ln_final(model.transformer(x.transpose(0, 1)).transpose(0, 1))
    return x[torch.arange(len(x)), text.argmax(dim=-1)] @ model.text_projection


# Texts ----------------------------------------------------------------------------------------------------------------


def test_text_is_cut_without_effect_on_features_and_gradients() -> None:
    model, text = make_model(), texts(3, 9, 5)
    cut, whole = model.encode_text(text), encode_untrimmed(model, text)
    torch.testing.assert_close(cut, whole, rtol=0, atol=1e-5)
    parameters = [model.positional_embedding, model.text_projection, *model.transformer.parameters()]
    of_cut = torch.autograd.grad(cut.square().sum(), parameters)
    of_whole = torch.autograd.grad(whole.square().sum(), parameters)
    for ours, theirs in zip(of_cut, of_whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_no_token_behind_the_longest_text_is_computed() -> None:
    model, seen = make_model(), []
    for block in model.transformer.resblocks:
        block.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    model.encode_text(texts(3, 9, 5))
    assert seen == [(9, 3, VIT.transformer_width)] * VIT.transformer_layers


@pytest.mark.parametrize("count", [31, 32, 47, 48, 64, 150])
def test_large_batches_go_in_groups_of_similar_length_and_come_back_in_order(count: int) -> None:
    model, computed = make_model(), []
    model.transformer.resblocks[0].register_forward_pre_hook(lambda _, args: computed.append(args[0].shape[:2]))
    lengths = [5 + 13 * i % 30 for i in range(count)]
    text = texts(*lengths)
    with torch.no_grad():
        features = model.encode_text(text)
        torch.testing.assert_close(features, encode_untrimmed(model, text), rtol=0, atol=1e-5)
    groups = min(4, max(1, count // 16))
    assert sum(size for _, size in computed[:groups]) == count
    assert computed[groups - 1][0] == max(lengths)  # the last group has the longest text
    if groups > 1:
        assert sum(length * size for length, size in computed[:groups]) < max(lengths) * count


def test_texts_whose_gradients_are_recorded_go_in_one_group() -> None:
    model, text, computed = make_model(), texts(*(5 + i % 40 for i in range(40))), []
    model.transformer.resblocks[0].register_forward_pre_hook(lambda _, args: computed.append(args[0].shape[:2]))
    of_cut, of_whole = (
        torch.autograd.grad(encode(text).square().sum(), list(model.transformer.parameters()))
        for encode in (model.encode_text, lambda text: encode_untrimmed(model, text))
    )
    assert computed == [(44, 40), (77, 40)]
    for ours, theirs in zip(of_cut, of_whole, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-3)


def test_a_text_does_not_depend_on_its_batch() -> None:
    model, text = make_model(), texts(3, 77, 5)
    together = model.encode_text(text)
    for row in range(3):
        torch.testing.assert_close(model.encode_text(text[row : row + 1])[0], together[row], rtol=0, atol=1e-5)


def test_padding_value_and_what_follows_the_end_have_no_influence() -> None:
    model, text = make_model(), texts(4, 6)
    other = text.clone()
    other[0, 4:], other[1, 6:] = END - 1, END  # the first of several end tokens counts
    torch.testing.assert_close(model.encode_text(other), model.encode_text(text), rtol=0, atol=1e-5)


def test_end_token_in_the_last_place() -> None:
    model, text = make_model(), texts(77, 77)
    torch.testing.assert_close(model.encode_text(text), encode_untrimmed(model, text), rtol=0, atol=1e-6)


def test_rows_shorter_than_the_context_are_welcome() -> None:
    model, text = make_model(), texts(3, 9, 5)
    torch.testing.assert_close(model.encode_text(text[:, :12]), model.encode_text(text), rtol=0, atol=1e-6)


def test_rows_longer_than_the_context_are_welcome_while_the_texts_fit() -> None:
    model = make_model()
    text = F.pad(texts(3, 9), (0, 23))
    torch.testing.assert_close(model.encode_text(text), model.encode_text(text[:, :77]))
    with pytest.raises(ShapeError, match=r"100 tokens; the context length is 77"):
        model.encode_text(texts(3, 100, context_length=100))


@pytest.mark.parametrize("context_length", [5, 300])
def test_other_context_lengths(context_length: int) -> None:
    model = make_model(dataclasses.replace(VIT, context_length=context_length))
    text = texts(3, context_length, context_length=context_length)
    torch.testing.assert_close(model.encode_text(text), encode_untrimmed(model, text), rtol=0, atol=1e-5)


def test_int32_and_int64_ids_are_the_same() -> None:
    model, text = make_model(), texts(3, 9)
    assert text.dtype == torch.int32
    assert torch.equal(model.encode_text(text), model.encode_text(text.long()))


def test_text_of_one_dimension_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(77,\); \(batch, tokens\)"):
        make_model().encode_text(texts(3)[0])


def test_a_token_sees_nothing_behind_it() -> None:
    mask = make_model().build_attention_mask()
    assert mask.shape == (77, 77)
    assert torch.equal(mask == 0, torch.ones(77, 77).tril().bool())
    assert mask[0, 1] == -math.inf


# Images ---------------------------------------------------------------------------------------------------------------


@BOTH
def test_an_image_does_not_depend_on_its_batch(config: CLIPConfig) -> None:
    model, batch = make_model(config), images(3, config)
    together = model.encode_image(batch)
    assert together.shape == (3, config.embed_dim)
    for row in range(3):
        torch.testing.assert_close(model.encode_image(batch[row : row + 1])[0], together[row], rtol=1e-5, atol=1e-5)


@BOTH
def test_larger_images_are_taken_with_a_larger_table_of_positions(config: CLIPConfig) -> None:
    """As dense prediction and high-resolution fine-tuning do with OpenAI's code."""
    model, side = make_model(config), config.image_resolution
    tower = model.visual.attnpool if config.is_resnet else model.visual
    tower.positional_embedding = torch.nn.Parameter(torch.zeros(16 + 1, tower.positional_embedding.shape[1]))
    assert model.encode_image(torch.zeros(1, 3, 2 * side, 2 * side)).shape == (1, config.embed_dim)


@BOTH
def test_images_of_another_shape_are_refused(config: CLIPConfig) -> None:
    model, side = make_model(config), config.image_resolution
    with pytest.raises(ShapeError, match="make 16 patches or cells; the model has positions for 4"):
        model.encode_image(torch.zeros(1, 3, 2 * side, 2 * side))
    with pytest.raises(ShapeError, match=r"\(batch, 3, height, width\) is expected"):
        model.encode_image(torch.zeros(1, 1, side, side))
    with pytest.raises(ShapeError, match="unsqueeze"):
        model.encode_image(torch.zeros(3, side, side))


@BOTH
def test_memory_format_does_not_matter(config: CLIPConfig) -> None:
    model, batch = make_model(config), images(2, config)
    expected = model.encode_image(batch)
    result = model.encode_image(batch.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-5)


def test_resnet_strides_pool_before_the_pointwise_convolution() -> None:
    tower = make_model(RESNET).visual
    assert isinstance(tower, ModifiedResNet)
    x = torch.randn(1, RESNET.vision_width * 4, 8, 8)
    assert tower.layer2(x).shape == (1, RESNET.vision_width * 8, 4, 4)
    for block in tower.layer2:
        assert all(conv.stride == (1, 1) for conv in block.modules() if isinstance(conv, nn.Conv2d))
    assert [name for name, _ in tower.layer2[0].downsample.named_children()] == ["-1", "0", "1"]


def test_attention_pool_equals_general_attention() -> None:
    pool = model_module.AttentionPool2d(3, 32, 4, 8)
    x = torch.randn(2, 32, 3, 3)
    tokens = x.flatten(2).permute(2, 0, 1)
    tokens = torch.cat([tokens.mean(0, keepdim=True), tokens]) + pool.positional_embedding[:, None]
    expected, _ = F.multi_head_attention_forward(
        tokens[:1],
        tokens,
        tokens,
        32,
        4,
        None,
        torch.cat([pool.q_proj.bias, pool.k_proj.bias, pool.v_proj.bias]),
        None,
        None,
        False,
        0.0,
        pool.c_proj.weight,
        pool.c_proj.bias,
        use_separate_proj_weight=True,
        q_proj_weight=pool.q_proj.weight,
        k_proj_weight=pool.k_proj.weight,
        v_proj_weight=pool.v_proj.weight,
    )
    torch.testing.assert_close(pool(x), expected[0], rtol=1e-5, atol=1e-6)


# The whole model ------------------------------------------------------------------------------------------------------


@BOTH
def test_logits_are_scaled_cosines_and_their_transpose(config: CLIPConfig) -> None:
    model, batch, text = make_model(config), images(3, config), texts(3, 9)
    per_image, per_text = model(batch, text)
    cosines = F.cosine_similarity(model.encode_image(batch)[:, None], model.encode_text(text)[None], dim=-1)
    torch.testing.assert_close(per_image, cosines / 0.07, rtol=1e-4, atol=1e-4)
    assert torch.equal(per_text, per_image.t())


@BOTH
def test_empty_batches(config: CLIPConfig) -> None:
    model = make_model(config)
    assert model.encode_image(images(0, config)).shape == (0, config.embed_dim)
    assert model.encode_text(texts()).shape == (0, config.embed_dim)
    assert model(images(2, config), texts())[0].shape == (2, 0)
    assert model(images(0, config), texts(3))[0].shape == (0, 1)


@BOTH
def test_every_parameter_gets_a_gradient(config: CLIPConfig) -> None:
    model = make_model(config).train()
    per_image, per_text = model(images(3, config), texts(3, 9, 5))
    (F.cross_entropy(per_image, torch.arange(3)) + F.cross_entropy(per_text, torch.arange(3))).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        if not name.endswith("k_proj.bias"):  # shifts all scores of a query alike: truly zero
            assert parameter.grad.abs().max() > 0, name


@BOTH
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_without_gradients_the_features_are_the_same(config: CLIPConfig, context: Callable[[], Any]) -> None:
    model, batch, text = make_model(config), images(2, config), texts(3, 9)
    expected = model.encode_image(batch), model.encode_text(text)
    with context():
        image_features, text_features = model.encode_image(batch), model.encode_text(text)
    assert not image_features.requires_grad and not text_features.requires_grad
    torch.testing.assert_close(image_features, expected[0])
    torch.testing.assert_close(text_features, expected[1])
    model.encode_text(text).sum().backward()  # inference mode has left nothing behind in the model


@BOTH
def test_fresh_weights_are_drawn_as_the_paper_says(config: CLIPConfig) -> None:
    config = dataclasses.replace(config, transformer_width=256, transformer_mlp_width=1024, transformer_heads=4)
    model = CLIP.from_config(config)
    block = model.transformer.resblocks[1]
    deviations = {
        0.02: model.token_embedding.weight,
        0.01: model.positional_embedding,
        256**-0.5: block.attn.in_proj_weight,
        256**-0.5 * 4**-0.5: block.mlp.c_proj.weight,
        512**-0.5: block.mlp.c_fc.weight,
    }
    for expected, tensor in deviations.items():
        assert tensor.std().item() == pytest.approx(expected, rel=0.1)
    assert model.text_projection.std().item() == pytest.approx(256**-0.5, rel=0.1)
    assert model.logit_scale.item() == pytest.approx(math.log(1 / 0.07))
    for name, parameter in model.named_parameters():
        if re.fullmatch(r"visual\.layer\d\.\d+\.bn3\.weight", name):  # each block begins as its shortcut
            assert not parameter.any()
        elif name.endswith(("bn3.weight", "ln_1.weight")):
            assert (parameter == 1).all()
    before = model.text_projection.detach().clone()
    model.initialize_parameters()
    assert not torch.equal(before, model.text_projection)


# Precision ------------------------------------------------------------------------------------------------------------


@BOTH
def test_autocast_is_near_full_precision_and_gives_fp32_logits(config: CLIPConfig) -> None:
    model, batch, text = make_model(config), images(3, config), texts(3, 9, 5)
    expected = model(batch, text)[0]
    with torch.autocast("cpu", torch.bfloat16):
        image_features, text_features = model.encode_image(batch), model.encode_text(text)
        logits = model(batch, text)[0]
        logits.sum().backward()
    assert image_features.dtype == text_features.dtype == torch.bfloat16
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.03 / 0.07)
    assert not torch.equal(logits, expected)


def _batched_products(compute: Callable[[], object]) -> list[list[list[int]]]:
    """The shapes of the operands of every batched matrix product under autocast."""
    with (
        torch.no_grad(),
        torch.autocast("cpu", torch.bfloat16),
        torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], record_shapes=True) as profile,
    ):
        compute()
    events = list(profile.events())
    assert any(event.name in ("aten::mm", "aten::addmm", "aten::bmm") for event in events)
    return [event.input_shapes for event in events if event.name in ("aten::bmm", "aten::baddbmm")]


def test_under_autocast_no_weight_is_copied_for_every_token() -> None:
    # nn.MultiheadAttention transposes a batch-first input and so makes the product with a frozen weight a batched one,
    # with a copy of the weight a token: OpenCLIP's autocast on a CPU is five times slower than its fp32.
    model, batch, text = make_model().requires_grad_(False), images(6), texts(3, 9, 5, 5, 5, 5)
    of_images = _batched_products(lambda: model.encode_image(batch))
    of_texts = _batched_products(lambda: model.encode_text(text))
    assert of_images == [[[24, 5, 8], [24, 8, 5]], [[24, 5, 5], [24, 5, 8]]] * 2  # of attention, for 6 · 4 heads
    assert of_texts == [[[18, 9, 8], [18, 8, 9]], [[18, 9, 9], [18, 9, 8]]] * 2

    attention = nn.MultiheadAttention(24, 3, batch_first=True).eval().requires_grad_(False)
    x = torch.randn(6, 9, 24)
    assert [9, 24, 72] in _batched_products(lambda: attention(x, x, x, need_weights=False))[0]  # what is to be avoided


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_layer_norm_computes_in_fp32_and_keeps_the_dtype(dtype: torch.dtype) -> None:
    norm = LayerNorm(8)
    nn.init.normal_(norm.weight)
    x = (1000 + torch.randn(4, 8)).to(dtype)
    expected = F.layer_norm(x.float(), (8,), norm.weight, norm.bias).to(dtype)
    # The CPU's own kernel for bfloat16 rounds x and its mean apart, which shows in rows whose values are all equal.
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=0.005 if dtype == torch.bfloat16 else 0)
    result = norm.to(dtype)(x)  # with half-precision weights, as after model.half()
    assert result.dtype == dtype
    torch.testing.assert_close(result, expected, rtol=0.02, atol=0.02)


def test_layer_norm_without_weights() -> None:
    x = torch.randn(4, 8)
    torch.testing.assert_close(LayerNorm(8, elementwise_affine=False)(x), F.layer_norm(x, (8,)))


HALF = re.compile(
    r"text_projection|visual\.proj|.*\.attn\.(in_proj_(weight|bias)|out_proj\.(weight|bias))"
    r"|.*\.mlp\.c_(fc|proj)\.(weight|bias)|visual\.(.*\.)?conv\d\.weight|.*\.downsample\.0\.weight"
    r"|visual\.attnpool\.[qkvc]_proj\.(weight|bias)"
)


@BOTH
def test_convert_weights_turns_the_matrices_only(config: CLIPConfig) -> None:
    model = make_model(config)
    convert_weights(model)
    halves = {name for name, tensor in model.state_dict().items() if tensor.dtype == torch.float16}
    assert halves == {name for name in model.state_dict() if HALF.fullmatch(name)}
    assert model.dtype == torch.float16
    assert all(p.dtype == torch.float32 for n, p in model.named_parameters() if n not in halves)
    assert model.transformer.resblocks[0].attn_mask.dtype == torch.float32


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_converted_and_wholly_half_models_compute(config: CLIPConfig, dtype: torch.dtype) -> None:
    model, batch, text = make_model(config), images(2, config), texts(3, 9)
    expected = model(batch, text)[0]
    convert_weights(model, dtype)
    assert model.encode_text(text).dtype == model.encode_image(batch).dtype == dtype
    logits = model(batch, text)[0]
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=0, atol=0.03 / 0.07)
    torch.testing.assert_close(model.to(dtype)(batch, text)[0], expected, rtol=0, atol=0.03 / 0.07)


# Attention ------------------------------------------------------------------------------------------------------------


def _attentions(**options: Any) -> tuple[MultiheadAttention, nn.MultiheadAttention]:
    ours = MultiheadAttention(12, 3, **options).eval()
    theirs = nn.MultiheadAttention(12, 3, **options).eval()
    for parameter in ours.parameters():
        nn.init.normal_(parameter, std=0.5)
    theirs.load_state_dict(ours.state_dict())
    return ours, theirs


_CAUSAL = torch.full((5, 5), -math.inf).triu(1)


@pytest.mark.parametrize(
    ("options", "arguments"),
    [
        ({}, {"need_weights": False}),
        ({}, {"need_weights": False, "attn_mask": _CAUSAL}),
        ({}, {"need_weights": False, "attn_mask": _CAUSAL.bool()}),
        ({}, {"need_weights": False, "attn_mask": _CAUSAL.bool().repeat(6, 1, 1)}),
        ({}, {"need_weights": False, "attn_mask": _CAUSAL, "is_causal": True}),
        ({}, {"need_weights": False, "key_padding_mask": torch.tensor([[False] * 5, [False] * 3 + [True] * 2])}),
        ({}, {"attn_mask": _CAUSAL}),
        ({}, {"average_attn_weights": False}),
        ({"bias": False}, {"need_weights": False}),
        ({"batch_first": True}, {"need_weights": False}),
        ({"add_bias_kv": True}, {"need_weights": False}),
        ({"add_zero_attn": True}, {"need_weights": False}),
        ({"kdim": 12, "vdim": 12}, {"need_weights": False}),
    ],
)
def test_attention_equals_torch(options: dict[str, Any], arguments: dict[str, Any]) -> None:
    ours, theirs = _attentions(**options)
    x = torch.randn(2, 5, 12) if options.get("batch_first") else torch.randn(5, 2, 12)
    result, weights = ours(x, x, x, **arguments)
    expected, expected_weights = theirs(x, x, x, **arguments)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert (weights is None) == (expected_weights is None)
    if weights is not None and expected_weights is not None:
        torch.testing.assert_close(weights, expected_weights)


def test_cross_and_unbatched_attention_equal_torch() -> None:
    ours, theirs = _attentions()
    query, key, value = torch.randn(3, 2, 12), torch.randn(5, 2, 12), torch.randn(5, 2, 12)
    for inputs in ((query, key, value), (key, key, value), (query[:, 0], query[:, 0], query[:, 0])):
        results, expected = ours(*inputs, need_weights=False)[0], theirs(*inputs, need_weights=False)[0]
        torch.testing.assert_close(results, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [None, "additive", "boolean"])
@pytest.mark.parametrize("queries", [1, 6])
def test_attention_in_memory_is_that_of_the_kernel(kind: str | None, queries: int) -> None:
    q, k, v = (torch.randn(2, 3, length, 8, requires_grad=True) for length in (queries, 6, 6))
    mask = {
        None: None,
        "additive": torch.full((queries, 6), float("-inf")).triu(1),
        "boolean": torch.ones(queries, 6, dtype=torch.bool).tril(2),
    }[kind]
    results = []
    for attend in (model_module._attend_in_memory, F.scaled_dot_product_attention):
        out = attend(q, k, v, mask, 0.0)
        results.append((out, *torch.autograd.grad(out.square().sum(), (q, k, v))))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_attention_in_bfloat16_on_a_cpu_is_near_full_precision() -> None:
    attention, x = MultiheadAttention(32, 4), torch.randn(7, 2, 32)
    mask = torch.full((7, 7), float("-inf")).triu(1)
    expected, _ = attention(x, x, x, need_weights=False, attn_mask=mask)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attention(x, x, x, need_weights=False, attn_mask=mask)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.03, atol=0.03)


def test_attention_drops_out_in_training_only() -> None:
    ours, theirs = _attentions(dropout=0.5)
    x = torch.randn(5, 2, 12)
    torch.testing.assert_close(ours(x, x, x, need_weights=False)[0], theirs(x, x, x, need_weights=False)[0])
    ours.train()
    assert not torch.equal(ours(x, x, x, need_weights=False)[0], ours(x, x, x, need_weights=False)[0])


def test_gradients_of_quick_gelu() -> None:
    x = torch.linspace(-9, 9, 101, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(QuickGELU(), x)
    assert torch.autograd.gradgradcheck(QuickGELU(), x)
    (found,) = torch.autograd.grad(QuickGELU()(x).sum(), x)
    torch.testing.assert_close(found, torch.func.vmap(torch.func.grad(QuickGELU()))(x.detach()))
    torch.testing.assert_close(found, torch.autograd.grad((x * (1.702 * x).sigmoid()).sum(), x)[0])


def test_quick_gelu() -> None:
    x = torch.linspace(-5, 5, 101, dtype=torch.float64)
    expected, given = x / (1 + torch.exp(-1.702 * x)), x.clone()
    torch.testing.assert_close(QuickGELU()(x), expected)
    with torch.no_grad():  # computed in place, but not in the place of the input
        torch.testing.assert_close(QuickGELU()(x), expected)
    assert torch.equal(x, given)
    assert torch.autograd.gradcheck(QuickGELU(), x.requires_grad_())


@pytest.mark.parametrize(("activation", "kind"), [("quick_gelu", QuickGELU), ("gelu", nn.GELU)])
def test_activation_of_both_towers(activation: Any, kind: type[nn.Module]) -> None:
    model = CLIP.from_config(dataclasses.replace(VIT, activation=activation))
    assert isinstance(model.visual, VisionTransformer)
    for block in [*model.visual.transformer.resblocks, *model.transformer.resblocks]:
        assert type(block.mlp.gelu) is kind


# Code written around OpenAI's classes ---------------------------------------------------------------------------------


def test_positional_constructor_and_attributes_are_those_of_openai() -> None:
    model = CLIP(16, 16, 2, 64, 8, 77, 50, 128, 2, 3)
    assert (model.context_length, model.vocab_size, model.visual.input_resolution) == (77, 50, 16)
    assert (model.visual.output_dim, model.transformer.width, model.transformer.layers) == (16, 128, 3)
    assert (model.transformer.resblocks[0].attn.num_heads, model.dtype) == (2, torch.float32)
    assert model.training


@pytest.mark.parametrize("layers", [(1, 1, 1, 1), [1, 1, 1, 1]])
def test_resnet_layers_may_be_a_tuple_or_a_list(layers: Any) -> None:
    model = CLIP(16, 64, layers, 4, None, 77, 50, 64, 1, 1)
    assert isinstance(model.visual, ModifiedResNet)
    assert model.visual.attnpool.num_heads == 4 * 32 // 64
    assert model.config.vision_layers == (1, 1, 1, 1)


def test_towers_can_be_built_by_themselves_as_openai_builds_them() -> None:
    tower = VisionTransformer(input_resolution=16, patch_size=8, width=64, layers=1, heads=1, output_dim=8)
    assert tower(images(2)).shape == (2, 8)
    resnet = ModifiedResNet(layers=(1, 1, 1, 1), output_dim=8, heads=2, input_resolution=64, width=4)
    assert resnet(images(2, RESNET)).shape == (2, 8)
    transformer = Transformer(width=64, layers=2, heads=1)
    assert transformer(torch.randn(5, 2, 64)).shape == (5, 2, 64)


def test_blocks_called_one_by_one_give_the_features_of_the_text() -> None:
    # As CoOp and its successors do, with learned prompts in the place of the embeddings.
    model, text = make_model(), texts(3, 9)
    x = model.token_embedding(text).type(model.dtype) + model.positional_embedding.type(model.dtype)
    x = x.permute(1, 0, 2)
    for block in model.transformer.resblocks:
        assert block.attn_mask is not None and block.attn_mask.shape == (77, 77)
        x = block(x)
    x = model.ln_final(x.permute(1, 0, 2)).type(model.dtype)
    x = x[torch.arange(x.shape[0]), text.argmax(dim=-1)] @ model.text_projection
    torch.testing.assert_close(x, model.encode_text(text), rtol=0, atol=1e-5)


def test_a_subclass_chooses_its_mask() -> None:
    class Bidirectional(CLIP):
        def build_attention_mask(self) -> Tensor:
            return torch.zeros(self.context_length, self.context_length)

    model = make_model()
    other = Bidirectional.from_config(VIT).eval()
    assert isinstance(other, Bidirectional)
    other.load_state_dict(model.state_dict())
    text = texts(77)
    assert not torch.allclose(other.encode_text(text), model.encode_text(text), atol=1e-3)


def test_a_subclass_encodes_in_its_own_way() -> None:
    class Constant(CLIP):
        def encode_image(self, image: Tensor) -> Tensor:
            return self.text_projection[:1].expand(len(image), -1)

    model = Constant.from_config(VIT)
    per_image, _ = model(images(2), texts(3, 9))
    torch.testing.assert_close(per_image[0], per_image[1])


def test_a_block_with_a_mask_of_its_own() -> None:
    class Local(ResidualAttentionBlock):
        """Sees itself only."""

        def attention(self, x: Tensor) -> Tensor:
            self.attn_mask = torch.full((len(x), len(x)), -math.inf).fill_diagonal_(0)
            return super().attention(x)

    block = Local(24, 3).eval()
    x = torch.randn(5, 2, 24)
    together = block(x)
    for place in range(5):
        torch.testing.assert_close(block(x[place : place + 1])[0], together[place], rtol=0, atol=1e-5)


def test_a_mask_may_be_assigned_or_taken_away() -> None:
    model = make_model()
    for block in model.transformer.resblocks:
        block.attn_mask = None
    assert model.encode_text(texts(3, 9)).shape == (2, VIT.embed_dim)


@BOTH
def test_the_state_dict_has_no_mask_and_loads_back(config: CLIPConfig) -> None:
    model, other = make_model(config), make_model(config)
    assert not any("attn_mask" in key for key in model.state_dict())
    assert other.load_state_dict(model.state_dict()) == ([], [])
    batch = images(2, config)
    assert torch.equal(model.encode_image(batch), other.encode_image(batch))


@BOTH
def test_copies_and_pickles_compute_the_same(config: CLIPConfig) -> None:
    model, batch, text = make_model(config), images(2, config), texts(3, 9)
    expected = model(batch, text)[0]
    saved = io.BytesIO()
    torch.save(model, saved)
    saved.seek(0)
    restored = torch.load(saved, weights_only=False)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model)), restored):
        assert torch.equal(other(batch, text)[0], expected)
        assert other.config == config
        assert not {p.data_ptr() for p in other.parameters()} & {p.data_ptr() for p in model.parameters()}


@BOTH
def test_dynamo_captures_one_graph(config: CLIPConfig) -> None:
    model, batch, text = make_model(config), images(2, config), texts(3, 9)
    with torch.no_grad():
        expected = model.encode_image(batch), model.encode_text(text)
        compiled_image = torch.compile(model.encode_image, fullgraph=True, backend="eager")
        compiled_text = torch.compile(model.encode_text, fullgraph=True, backend="eager")
        torch.testing.assert_close(compiled_image(batch), expected[0])
        torch.testing.assert_close(compiled_text(text), expected[1], rtol=0, atol=1e-5)
    torch.compiler.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # torch looks, not we
@pytest.mark.parametrize("is_checkpointed", [False, True])
def test_dynamo_captures_training_in_one_graph_whatever_the_length_of_the_texts(is_checkpointed: bool) -> None:
    model, batch, text = make_model().train(), images(3), texts(3, 9, 5)
    model.set_gradient_checkpointing(is_checkpointed)
    graphs: list[object] = []

    def backend(graph: torch.fx.GraphModule, _: list[Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    expected = gradients(model, batch, text)
    model.visual.compile(fullgraph=True, backend=backend)
    model.transformer.compile(fullgraph=True, backend=backend, dynamic=True)
    found = gradients(model, batch, text)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5)
    for longest in (12, 17, 30):
        gradients(model, batch, texts(3, longest, 5))
    assert len(graphs) == 2
    torch.compiler.reset()


class _Embeddings(nn.Module):
    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.model = model

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.encode_image(image), self.model.encode_text(text)


@pytest.mark.filterwarnings("ignore:.*torch.jit.trace.* is deprecated")
@BOTH
@torch.no_grad()
def test_a_trace_holds_for_other_batches_and_longer_texts(config: CLIPConfig) -> None:
    model = make_model(config)  # warnings are errors: the tracer finds nothing that it would turn into a constant
    traced = torch.jit.trace(_Embeddings(model), (images(1, config), texts(4)), check_trace=False)
    batch, text = images(3, config), texts(60, 77)
    for ours, theirs in zip(traced(batch, text), _Embeddings(model)(batch, text), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@BOTH
def test_an_export_holds_for_other_batches_and_longer_texts(config: CLIPConfig) -> None:
    both = _Embeddings(make_model(config))
    sizes = {name: {0: torch.export.Dim(name, min=2, max=64)} for name in ("image", "text")}
    program = torch.export.export(both, (images(2, config), texts(4, 4)), dynamic_shapes=sizes).module()
    batch, text = images(5, config), texts(60, 77, 5)
    for ours, theirs in zip(program(batch, text), both(batch, text), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


# Training -------------------------------------------------------------------------------------------------------------


def gradients(model: CLIP, image: Tensor, text: Tensor, *, seed: int = 3) -> dict[str, Tensor]:
    """Of the paper's loss, for every parameter."""
    torch.manual_seed(seed)
    labels = torch.arange(len(image))
    model.zero_grad()
    loss = sum(F.cross_entropy(logits, labels) for logits in model(image, text))
    assert isinstance(loss, Tensor)
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@BOTH
@pytest.mark.parametrize("is_training", [True, False])
def test_gradient_checkpointing_changes_no_gradient_and_no_statistic(config: CLIPConfig, is_training: bool) -> None:
    model, other = make_model(config).train(is_training), make_model(config)
    other.load_state_dict(model.state_dict())
    other.train(is_training)
    other.set_gradient_checkpointing(True)
    if isinstance(model.visual, VisionTransformer) and isinstance(other.visual, VisionTransformer):
        model.visual.patch_dropout = other.visual.patch_dropout = 0.5
        for block in [*model.modules(), *other.modules()]:
            if isinstance(block, MultiheadAttention):
                block.dropout = 0.3
    batch, text = images(3, config), texts(3, 9, 5)
    expected, found = gradients(model, batch, text), gradients(other, batch, text)
    assert expected.keys() == found.keys()
    for name, gradient in expected.items():
        assert torch.equal(found[name], gradient), name
    for (name, buffer), (_, own) in zip(other.named_buffers(), model.named_buffers(), strict=True):
        assert torch.equal(buffer, own), name


@BOTH
def test_gradient_checkpointing_keeps_less(config: CLIPConfig) -> None:
    config = dataclasses.replace(config, vision_layers=(3, 3, 3, 3) if config.is_resnet else 8, transformer_layers=8)
    model, batch, text = make_model(config).train(), images(3, config), texts(30, 40, 50)

    def kept_bytes() -> int:
        kept: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept[storage.data_ptr()] = storage.nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model(batch, text)
        return sum(kept.values()) - sum(
            p.untyped_storage().nbytes() for p in model.parameters() if p.data_ptr() in kept
        )

    plain = kept_bytes()
    model.set_gradient_checkpointing(True)
    assert kept_bytes() < plain / 3
    model.set_gradient_checkpointing(False)
    assert kept_bytes() == plain


def test_training_computes_one_token_of_the_last_block_for_the_same_gradients() -> None:
    config = dataclasses.replace(VIT, image_resolution=32)
    model, batch, text = make_model(config), images(3, config), texts(3, 9, 5)
    seen: list[tuple[int, ...]] = []
    for transformer in (cast(VisionTransformer, model.visual).transformer, model.transformer):
        transformer.resblocks[-1].mlp.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape)))
    expected = gradients(model, batch, text)
    found = gradients(model.train(), batch, text)
    assert seen == [(17, 3, 32), (9, 3, 24), (3, 32), (3, 24)]
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-5, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("what", ["transformer", "resblocks", "last", "subclass"])
def test_who_looks_at_the_last_block_sees_all_tokens(what: str) -> None:
    class Block(ResidualAttentionBlock):
        pass

    model, seen = make_model().train(), []
    transformer = cast(VisionTransformer, model.visual).transformer
    last = transformer.resblocks[-1]
    if what == "subclass":
        last.__class__ = Block
        last.mlp.register_forward_hook(lambda *args: seen.append(args[2].shape))
    else:
        module = {"transformer": transformer, "resblocks": transformer.resblocks, "last": last}[what]
        module.register_forward_hook(lambda *args: seen.append(args[2].shape))
    model.encode_image(images(3))
    assert seen == [(5, 3, VIT.vision_width)]


def test_patch_dropout_keeps_the_class_token_and_a_share_of_the_patches() -> None:
    stream = torch.arange(5.0 * 17).reshape(5, 17, 1)  # each token its own number
    kept = model_module._drop_patches(stream, 0.75)
    assert kept.shape == (5, 5, 1)
    assert torch.equal(kept[:, 0], stream[:, 0])
    for row, tokens in zip(kept[..., 0], stream[..., 0], strict=True):
        assert len(set(row.tolist())) == 5 and set(row.tolist()) <= set(tokens.tolist())
    offsets = kept[:, 1:, 0] - stream[:, :1, 0]
    assert len({tuple(sorted(row.tolist())) for row in offsets}) > 1, "each image has a choice of its own"
    assert model_module._drop_patches(stream, 0.999).shape == (5, 2, 1)


def test_patch_dropout_is_for_training_and_can_be_replayed() -> None:
    config = dataclasses.replace(VIT, image_resolution=64)
    model, batch = make_model(config), images(2, config)
    assert isinstance(model.visual, VisionTransformer)
    expected = model.encode_image(batch)
    model.visual.patch_dropout = 0.5
    assert torch.equal(model.encode_image(batch), expected)
    model.train()
    state = torch.get_rng_state()
    dropped = model.encode_image(batch)
    assert not torch.allclose(dropped, expected)
    assert not torch.equal(model.encode_image(batch), dropped)
    torch.set_rng_state(state)
    assert torch.equal(model.encode_image(batch), dropped)
    lengths: list[int] = []
    model.visual.transformer.register_forward_pre_hook(lambda _, inputs: lengths.append(len(inputs[0])))
    model.encode_image(batch)
    assert lengths == [1 + 32]


@pytest.mark.parametrize("share", [-0.1, 1.0])
def test_patch_dropout_outside_its_range_is_refused(share: float) -> None:
    model = make_model().train()
    assert isinstance(model.visual, VisionTransformer)
    model.visual.patch_dropout = share
    with pytest.raises(ConfigError, match=rf"patch_dropout is {share}; it must be"):
        model.encode_image(images(2))


@BOTH
def test_logit_bias_is_added_to_all_logits(config: CLIPConfig) -> None:
    model = make_model(dataclasses.replace(config, logit_bias=True))
    plain = load_weights(config, {k: v for k, v in model.state_dict().items() if k != "logit_bias"})
    assert model.logit_bias is not None and plain.logit_bias is None
    assert CLIP.from_config(model.config).logit_bias.item() == -10  # type: ignore[union-attr]
    model.logit_bias.data.fill_(-3.5)
    batch, text = images(3, config), texts(3, 9)
    per_image, per_text = model(batch, text)
    torch.testing.assert_close(per_image, plain(batch, text)[0] - 3.5)
    assert torch.equal(per_text, per_image.t())
    per_image.sum().backward()
    assert model.logit_bias.grad == per_image.numel()


def test_logit_bias_of_shape_one_is_taken_and_found_in_the_weights() -> None:
    weights = make_model().state_dict() | {"logit_bias": torch.tensor([-7.0])}
    model = build_model(weights)
    assert model.config.logit_bias and model.logit_bias is not None
    assert model.logit_bias.shape == () and model.logit_bias == -7


def test_configuration_without_a_logit_bias_is_written_as_before_there_was_one() -> None:
    assert "logit_bias" not in VIT.to_dict()
    config = dataclasses.replace(VIT, logit_bias=True)
    assert config.to_dict() == {**VIT.to_dict(), "logit_bias": True}
    assert CLIPConfig.from_dict(config.to_dict()) == config


# State dicts ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sizes_are_recovered_from_shapes(name: str) -> None:
    config = ARCHITECTURES[name]
    with torch.device("meta"):
        state_dict = CLIP.from_config(config).state_dict()
    assert CLIPConfig.from_state_dict(state_dict, activation=config.activation) == config


def test_a_dict_that_is_no_clip_is_refused() -> None:
    with pytest.raises(StateDictError, match=r"'visual.layer1.0.conv1.weight' is missing \(1 tensors found\)"):
        CLIPConfig.from_state_dict({"fc.weight": torch.zeros(2, 2)})
    state_dict = make_model().state_dict()
    state_dict["text_projection"] = torch.zeros(3)
    with pytest.raises(StateDictError, match=r"'text_projection' has shape \(3,\); 2 dimensions expected"):
        CLIPConfig.from_state_dict(state_dict)
    state_dict = make_model().state_dict()
    state_dict["visual.positional_embedding"] = torch.zeros(0, 32)
    with pytest.raises(StateDictError, match="image_resolution is 0"):
        CLIPConfig.from_state_dict(state_dict)


def _standard(config: CLIPConfig) -> CLIPConfig:
    """With heads of width 64, which is what shapes alone give."""
    return dataclasses.replace(config, vision_heads=0, transformer_heads=0)


@BOTH
def test_build_model_copies_and_leaves_the_dict_alone(config: CLIPConfig) -> None:
    original, text = make_model(_standard(config)), texts(3, 9)
    expected = original.encode_text(text)
    convert_weights(original)
    given = dict(original.state_dict())
    given |= {name: torch.tensor(7) for name in ("input_resolution", "context_length", "vocab_size")}
    before = {key: value.clone() for key, value in given.items()}

    model = build_model(given)
    assert not model.training
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.config == _standard(config)
    torch.testing.assert_close(model.encode_text(text), expected, rtol=0, atol=0.01)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.zero_()
    assert list(given) == list(before)
    assert all(given[key].dtype == value.dtype and torch.equal(given[key], value) for key, value in before.items())


@BOTH
def test_load_weights_uses_the_very_tensors(config: CLIPConfig) -> None:
    original = make_model(config)
    convert_weights(original)
    given = original.state_dict()
    model = load_weights(config, given)
    for name, tensor in model.state_dict().items():
        assert tensor.data_ptr() == given[name].data_ptr() and tensor.dtype == given[name].dtype, name
    assert not model.training
    assert all(parameter.requires_grad and parameter.is_leaf for parameter in model.parameters())
    assert not any(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
    text = texts(3, 9)
    assert torch.equal(model.encode_text(text), original.encode_text(text))


def test_load_weights_lists_what_does_not_fit() -> None:
    state_dict = make_model().state_dict()
    del state_dict["ln_final.bias"], state_dict["visual.proj"]
    state_dict["head.weight"] = torch.zeros(1)
    state_dict["text_projection"] = torch.zeros(2, 3)
    with pytest.raises(StateDictError) as caught:
        load_weights(VIT, state_dict)
    message = str(caught.value)
    assert "missing: ln_final.bias, visual.proj;" in message
    assert "unexpected: head.weight;" in message
    assert "mis-shaped: text_projection (2, 3) instead of (24, 16)" in message
    with pytest.raises(StateDictError, match=r"missing: .* …"):
        load_weights(VIT, {})


def test_logit_scale_of_shape_one_is_taken() -> None:
    state_dict = make_model().state_dict()
    state_dict["logit_scale"] = torch.tensor([4.5])
    model = load_weights(VIT, state_dict)
    assert model.logit_scale.shape == () and model.logit_scale.item() == 4.5
    assert state_dict["logit_scale"].shape == (1,)
    assert (
        build_model(make_model(_standard(VIT)).state_dict() | {"logit_scale": torch.tensor([2.5])}).logit_scale == 2.5
    )


def test_old_files_have_no_counters_of_batches() -> None:
    state_dict = {k: v for k, v in make_model(RESNET).state_dict().items() if not k.endswith("num_batches_tracked")}
    model = load_weights(RESNET, state_dict)
    assert model.state_dict()["visual.bn1.num_batches_tracked"] == 0


def test_load_weights_draws_no_random_numbers() -> None:
    state_dict = make_model().state_dict()
    before = torch.get_rng_state()
    load_weights(VIT, state_dict)
    assert torch.equal(before, torch.get_rng_state())


# Configuration --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [*ARCHITECTURES.values(), VIT, RESNET])
def test_configuration_goes_through_json(config: CLIPConfig) -> None:
    assert CLIPConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_derived_sizes_are_filled_in() -> None:
    config = CLIPConfig(
        embed_dim=8,
        image_resolution=32,
        vision_layers=1,
        vision_width=128,
        vision_patch_size=8,
        transformer_width=192,
        transformer_layers=1,
    )
    assert (config.vision_heads, config.vision_mlp_width) == (2, 512)
    assert (config.transformer_heads, config.transformer_mlp_width) == (3, 768)
    assert not config.is_resnet and RESNET.is_resnet
    assert dataclasses.replace(RESNET, vision_heads=0, vision_width=64).vision_heads == 32


@pytest.mark.parametrize(
    ("base", "change", "message"),
    [
        (VIT, {"embed_dim": 0}, "embed_dim is 0; it must be an integer of at least 1"),
        (VIT, {"transformer_layers": -1}, "transformer_layers is -1"),
        (VIT, {"vision_layers": 2.0}, r"vision_layers\[0\] is 2.0"),
        (VIT, {"vocab_size": True}, "vocab_size is True"),
        (VIT, {"context_length": "77"}, "context_length is '77'"),
        (VIT, {"activation": "relu"}, "activation is 'relu'; it must be 'quick_gelu' or 'gelu'"),
        (VIT, {"vision_patch_size": None}, "vision_patch_size is None; a ViT needs"),
        (VIT, {"vision_patch_size": 17}, "vision_patch_size is 17"),
        (VIT, {"vision_heads": 5}, "vision_heads is 5; it must divide the width, 32"),
        (VIT, {"transformer_heads": 7}, "transformer_heads is 7; it must divide the width, 24"),
        (RESNET, {"vision_layers": (1, 1, 1)}, "vision_layers has 3 stages; a ResNet has 4"),
        (RESNET, {"vision_layers": (1, 0, 1, 1)}, r"vision_layers\[1\] is 0"),
        (RESNET, {"image_resolution": 65}, "image_resolution is 65; a ResNet needs a multiple of 32"),
        (RESNET, {"vision_heads": 3}, "vision_heads is 3; it must divide the width, 128"),
    ],
)
def test_configuration_errors_name_the_field(base: CLIPConfig, change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(base, **change)


def test_configuration_is_read_strictly() -> None:
    values = VIT.to_dict()
    with pytest.raises(ConfigError, match=r"unknown configuration keys \['dropout'\]; known are \['activation'"):
        CLIPConfig.from_dict({**values, "dropout": 0.1})
    with pytest.raises(ConfigError, match=r"configuration keys \['embed_dim', 'vision_width'\] are missing"):
        CLIPConfig.from_dict({k: v for k, v in values.items() if k not in ("embed_dim", "vision_width")})
    with pytest.raises(dataclasses.FrozenInstanceError):
        VIT.embed_dim = 3  # type: ignore[misc]


def test_architectures_by_the_names_of_openai_and_openclip() -> None:
    for name, config in ARCHITECTURES.items():
        assert architecture(name) is config
    quick = ARCHITECTURES["ViT-B/32"]
    assert architecture("ViT-B-32-quickgelu") == quick
    assert architecture("ViT-B-32") == dataclasses.replace(quick, activation="gelu")
    assert architecture("ViT-L-14-336-quickgelu") == ARCHITECTURES["ViT-L/14@336px"]
    assert architecture("ViT-H-14-quickgelu") == dataclasses.replace(ARCHITECTURES["ViT-H-14"], activation="quick_gelu")
    assert architecture("RN50-quickgelu") == ARCHITECTURES["RN50"]
    with pytest.raises(ModelNotFoundError, match="'ViT-B/33' is not known; known are ViT-B/32, "):
        architecture("ViT-B/33")


@pytest.mark.parametrize("name", ["ViT-B-32-quickgelu-378", "RN50-", "vit-b-32", ""])
def test_near_names_are_not_taken_for_architectures(name: str) -> None:
    with pytest.raises(ModelNotFoundError):
        architecture(name)
