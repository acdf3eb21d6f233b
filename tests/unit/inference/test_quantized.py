from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip.inference import quantized
from clip.inference.packed import Fused
from clip.inference.quantized import QuantizedLinear, balanced, has_int8_units

AFTER = {"none": lambda x: x, "relu": F.relu, "swish": F.silu, "gelu": F.gelu}

needs_int8_units = pytest.mark.skipif(not has_int8_units(), reason="this processor multiplies no bytes")


def error(given: Tensor, expected: Tensor) -> float:
    """Relative to the whole, as sums of many roundings are."""
    return float((given.float() - expected).norm() / expected.norm())


def layer(inputs: int = 96, outputs: int = 40) -> tuple[Tensor, Tensor]:
    return torch.randn(outputs, inputs) * inputs**-0.5, torch.randn(outputs)


@needs_int8_units
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("fused", AFTER)
@pytest.mark.parametrize("rows", [0, 1, 7, 801])
def test_it_is_the_linear_layer_up_to_steps_of_a_byte(rows: int, fused: Fused, dtype: torch.dtype) -> None:
    (weight, bias), x = layer(), torch.randn(rows, 96)
    given = QuantizedLinear(weight.half(), bias.double(), dtype, fused)(x.to(dtype))
    assert given.dtype == dtype
    assert given.shape == (rows, 40)
    if rows:
        assert error(given, AFTER[fused](F.linear(x, weight, bias))) < 0.015


@needs_int8_units
def test_whole_numbers_are_exact() -> None:
    weight, x = torch.randint(-127, 128, (40, 96)).float(), torch.randint(-127, 128, (9, 96)).float()
    weight[:, 0], x[:, 1] = 127, -127  # of rows and tokens that reach so far a step is one
    assert torch.allclose(QuantizedLinear(weight, None, torch.float32)(x), x @ weight.t(), rtol=1e-6, atol=1e-3)


@needs_int8_units
def test_a_lower_bound_makes_the_steps_finer() -> None:
    weight, bias = layer()
    x = F.silu(torch.randn(50, 96))
    expected = F.linear(x, weight, bias)
    plain = error(QuantizedLinear(weight, bias, torch.float32)(x), expected)
    bounded = error(QuantizedLinear(weight, bias, torch.float32, least=-0.28)(x), expected)
    assert bounded < 0.9 * plain


@needs_int8_units
@pytest.mark.parametrize("least", [None, -5.0])
def test_a_token_is_the_same_alone_and_beside_a_large_one(least: float | None) -> None:
    (weight, bias), x = layer(), torch.randn(5, 96)
    quantised = QuantizedLinear(weight, bias, torch.float32, least=least)
    alone = quantised(x[:1])
    x[1:] *= 1000
    assert torch.allclose(quantised(x)[:1], alone, atol=1e-6)


@needs_int8_units
@pytest.mark.parametrize("least", [None, 0.0])
def test_a_token_of_zeros_gives_the_bias(least: float | None) -> None:
    weight, bias = layer()
    given = QuantizedLinear(weight, bias, torch.float32, least=least)(torch.zeros(2, 96))
    assert torch.allclose(given, bias.expand(2, -1), atol=1e-6)


@needs_int8_units
def test_a_row_of_zeros_in_the_weight_gives_zeros() -> None:
    weight, _ = layer()
    weight[3] = 0
    assert not QuantizedLinear(weight, None, torch.float32)(torch.randn(2, 96))[:, 3].any()


@needs_int8_units
@pytest.mark.parametrize("least", [None, -5.0])
def test_what_is_no_number_stays_none(least: float | None) -> None:
    (weight, bias), x = layer(), torch.randn(3, 96)
    x[1, 7] = float("nan")
    given = QuantizedLinear(weight, bias, torch.float32, least=least)(x)
    assert given[1].isnan().all()
    assert given[[0, 2]].isfinite().all()


@needs_int8_units
def test_neither_weights_nor_tokens_are_shared_or_changed() -> None:
    (weight, bias), x = layer(), torch.randn(3, 96)
    kept, quantised = x.clone(), QuantizedLinear(weight, bias, torch.float32, least=-5.0)
    before = quantised(x)
    assert torch.equal(x, kept)
    weight.zero_()
    bias.zero_()
    assert torch.equal(quantised(x), before)


def normalised(x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *norm)


def outlier_layer() -> tuple[Tensor, Tensor, Tensor]:
    """A weight and the normalisation before it, of which two channels are forty times as large as the rest."""
    weight, _ = layer()
    norm_weight = torch.rand(96) + 0.5
    norm_weight[[5, 50]] *= 40
    weight[:, [5, 50]] /= 40
    return weight, norm_weight, torch.randn(96) * 0.1


def test_balancing_changes_no_result() -> None:
    weight, *norm = outlier_layer()
    x = torch.randn(20, 96)
    expected = normalised(x, (norm[0], norm[1])) @ weight.t()
    kept = weight.clone()
    new_weight, *new_norm = balanced(weight, *norm)
    assert torch.equal(weight, kept)
    assert torch.allclose(normalised(x, (new_norm[0], new_norm[1])) @ new_weight.t(), expected, atol=1e-4)


@needs_int8_units
def test_balancing_leaves_the_other_channels_their_resolution() -> None:
    weight, *norm = outlier_layer()
    x = torch.randn(200, 96)
    expected = normalised(x, (norm[0], norm[1])) @ weight.t()
    plain = error(QuantizedLinear(weight, None, torch.float32)(normalised(x, (norm[0], norm[1]))), expected)
    weight, *norm = balanced(weight, *norm)
    given = error(QuantizedLinear(weight, None, torch.float32)(normalised(x, (norm[0], norm[1]))), expected)
    assert plain > 0.05
    assert given < 0.015


def test_units_are_asked_of_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_is_vnni_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False)
    assert not quantized.has_int8_units()
