from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip.inference import packed
from clip.inference.packed import Fused, PackedConv2d, PackedLinear

AFTER = {"none": lambda x: x, "relu": F.relu, "swish": F.silu, "gelu": F.gelu}
BOUNDS = {torch.float32: 1e-5, torch.bfloat16: 0.02}
"""Of results near 1: bf16 has steps of 1/128 there, and the products were rounded too."""


@pytest.fixture(params=["private operators", "ordinary layers"])
def _both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a torch that has the operators and on one that lacks them."""
    if request.param == "ordinary layers":
        monkeypatch.setattr(packed, "_has", lambda *args: False)


def rounded(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What is left of x in that precision, so that only the arithmetic is compared."""
    return x.to(dtype).float()


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("fused", AFTER)
@pytest.mark.parametrize("rows", [1, 7])
def test_a_packed_linear_layer_is_the_linear_layer(rows: int, fused: Fused, dtype: torch.dtype) -> None:
    x, weight, bias = torch.randn(rows, 24), torch.randn(10, 24) / 5, torch.randn(10)
    given = PackedLinear(weight.double(), bias.double(), dtype, fused)(x.to(dtype))
    expected = AFTER[fused](F.linear(rounded(x, dtype), rounded(weight, dtype), bias))
    assert given.dtype == dtype
    assert torch.allclose(given.float(), expected, rtol=BOUNDS[dtype], atol=BOUNDS[dtype])


@pytest.mark.usefixtures("_both_ways")
def test_a_linear_layer_may_have_no_bias() -> None:
    x, weight = torch.randn(3, 24), torch.randn(10, 24)
    assert torch.allclose(PackedLinear(weight, None, torch.float32)(x), x @ weight.t(), atol=1e-5)


CONVOLUTIONS = {
    "1×1": {"kernel": 1},
    "3×3": {"kernel": 3, "padding": 1},
    "3×3 in steps of 2": {"kernel": 3, "padding": 1, "stride": 2},
}


def convolution(kernel: int, dtype: torch.dtype, channels: int = 6, **geometry: Any) -> tuple[Tensor, Tensor, Any]:
    weight = torch.randn(10, channels, kernel, kernel) / (channels * kernel**2) ** 0.5
    bias = torch.randn(10)
    return rounded(weight, dtype), bias, PackedConv2d(weight.double(), bias, dtype, "relu", size=7, **geometry)


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize(("batch", "size"), [(1, 7), (3, 7), (2, 12), (1, 1)])
def test_a_packed_convolution_is_the_convolution(batch: int, size: int, name: str, dtype: torch.dtype) -> None:
    geometry = dict(CONVOLUTIONS[name])
    weight, bias, conv = convolution(geometry.pop("kernel"), dtype, **geometry)
    x = torch.randn(batch, 6, size, size).to(dtype).contiguous(memory_format=torch.channels_last)
    expected = F.relu(F.conv2d(x.float(), weight, bias, **geometry))
    given = conv(x)
    assert given.dtype == dtype
    assert given.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(given.float(), expected, rtol=BOUNDS[dtype], atol=BOUNDS[dtype])


@pytest.mark.usefixtures("_both_ways")
@pytest.mark.parametrize("dtype", BOUNDS)
@pytest.mark.parametrize(("batch", "size"), [(1, 7), (3, 7), (1, 1)])
def test_the_sum_with_a_shortcut_is_written_over_it(batch: int, size: int, dtype: torch.dtype) -> None:
    weight, bias, conv = convolution(1, dtype)
    x = torch.randn(batch, 6, size, size).to(dtype).contiguous(memory_format=torch.channels_last)
    shortcut = torch.randn(batch, 10, size, size).to(dtype).contiguous(memory_format=torch.channels_last)
    expected = F.relu(shortcut.float() + F.conv2d(x.float(), weight, bias))
    given = conv.add_to_(shortcut, x)
    assert given.data_ptr() == shortcut.data_ptr()
    assert torch.allclose(given.float(), expected, rtol=BOUNDS[dtype], atol=2 * BOUNDS[dtype])


def test_weights_are_not_shared() -> None:
    weight, bias, x = torch.randn(10, 6, 1, 1), torch.randn(10), torch.randn(1, 6, 3, 3)
    conv, linear = (
        PackedConv2d(weight, bias, torch.float32, size=3),
        PackedLinear(weight[..., 0, 0], bias, torch.float32),
    )
    before = conv(x), linear(x[..., 0, 0])
    weight.zero_()
    bias.zero_()
    assert torch.equal(conv(x), before[0])
    assert torch.equal(linear(x[..., 0, 0]), before[1])


@pytest.mark.skipif(not packed._has(torch.float32, "_linear_pointwise"), reason="this torch has no such operators")
@pytest.mark.parametrize("missing", ["operator", "instructions"])
def test_what_a_machine_lacks_is_not_asked_of_it(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not packed._has(torch.float32, "_linear_pointwise", "_no_such_operator")
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: missing != "instructions")
    assert packed._has(torch.bfloat16, "_linear_pointwise") == (missing != "instructions")
    assert packed._has(torch.float32, "_linear_pointwise")
