"""Layers whose weights are laid out once as the matrix kernels read them.

torch's own layers have oneDNN rearrange the weight in every call, which at batch 1 takes as long as the product. The
packed forms are what torch's compiler emits; the operators are private, so where a build of torch or a processor lacks
them the ordinary layer does the work, with the same results up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PackedConv2d", "PackedLinear"]

Fused = Literal["none", "relu", "swish", "gelu"]
"""What is applied to the result while it is in registers; swish is x · sigmoid(x), torch's silu."""

_UNFUSED: dict[Fused, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "swish": F.silu,
    "gelu": F.gelu,
}


def _has(dtype: torch.dtype, *names: str) -> bool:
    """Whether torch has these private operators, and this processor the instructions that they need for ``dtype``."""
    is_available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    if not is_available or not all(hasattr(torch.ops.mkldnn, name) for name in names):
        return False
    return dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class PackedLinear:
    """x (N, D) → x Wᵀ + b (N, D'), in the precision of the packed weight.

    weight: (D', D); bias: (D',) or None, both in any precision and not kept.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, fused: Fused = "none") -> None:
        weight = weight.detach().to(dtype).contiguous()
        self.out_features, self.in_features = weight.shape
        self.fused = fused
        has_kernel = _has(dtype, "_linear_pointwise", "_reorder_linear_weight")
        # The kernel adds a bias in fp32, to the sums before they are rounded.
        self.bias = None if bias is None else bias.detach().to(torch.float32 if has_kernel else dtype, copy=True)
        self._kernel: Any = torch.ops.mkldnn._linear_pointwise if has_kernel else None
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight) if has_kernel else weight.clone()

    def __call__(self, x: Tensor) -> Tensor:
        if self._kernel is None:
            return _UNFUSED[self.fused](F.linear(x, self._weight, self.bias))
        algorithm = "none" if self.fused == "gelu" else ""  # of GELU: the exact one, by the error function
        y: Tensor = self._kernel(x, self._weight, self.bias, self.fused, [], algorithm)
        return y


class PackedConv2d:
    """x (B, C, H, W) → its convolution plus bias (B, C', H', W'), in the precision of the packed weight, channels last.

    weight: (C', C, K, K); bias: (C',), both in any precision and not kept.
    size: H = W of what it will see. Others give the same, but their kernel may want another layout of the weight, and
        rearranges it in every call.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor,
        dtype: torch.dtype,
        fused: Literal["none", "relu"] = "none",
        *,
        stride: int = 1,
        padding: int = 0,
        size: int,
    ) -> None:
        self.dtype, self.fused, self.stride, self.padding = dtype, fused, stride, padding
        # Rounded biases shift whole maps and were half of pocket's error in bf16. The kernel adds them in fp32, except
        # that of the fused sum, which takes none but rounded ones.
        self.bias = bias.detach().to(torch.float32, copy=True)
        self.rounded_bias = self.bias.to(dtype)
        weight = weight.detach().to(dtype).contiguous(memory_format=torch.channels_last)
        self._has_kernels = _has(
            dtype, "_convolution_pointwise", "_convolution_pointwise_", "_reorder_convolution_weight"
        )
        if self._has_kernels:
            shape = (1, weight.shape[1], size, size)  # batches of all sizes have the layout of one
            weight = torch.ops.mkldnn._reorder_convolution_weight(weight, *self._geometry(), shape)
        self._weight = weight

    def _geometry(self) -> tuple[list[int], list[int], list[int], int]:
        """Padding, strides, dilations and groups."""
        return [self.padding] * 2, [self.stride] * 2, [1, 1], 1

    def _plain(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self._weight, self.rounded_bias, self.stride, self.padding)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), channels last."""
        if not self._has_kernels:
            return _UNFUSED[self.fused](self._plain(x))
        kernel = torch.ops.mkldnn._convolution_pointwise
        y: Tensor = kernel(x, self._weight, self.bias, *self._geometry(), self.fused, [], "")
        return y

    def add_to_(self, sums: Tensor, x: Tensor) -> Tensor:
        """relu(sums + the convolution of x), written over ``sums`` (B, C', H', W') while it is in registers."""
        if not self._has_kernels:
            return sums.add_(self._plain(x)).relu_()
        kernel = torch.ops.mkldnn._convolution_pointwise_.binary
        y: Tensor = kernel(sums, x, self._weight, self.rounded_bias, *self._geometry(), "add", 1.0, "relu", [], "")
        return y
