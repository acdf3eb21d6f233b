"""Layers whose weights are laid out once as the matrix kernels read them.

torch's linear layer has oneDNN rearrange the weight in every call, which at batch 1 takes as long as the product. Its
packed form is what torch's own compiler emits; the operators are private, so where a build of torch lacks them the
ordinary layer does the work, with equal results.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["PackedLinear"]

Fused = Literal["none", "relu", "swish", "gelu"]
"""What is applied to the result while it is in registers; swish is x · sigmoid(x), torch's silu."""

_UNFUSED = {"none": lambda x: x, "relu": F.relu, "swish": F.silu, "gelu": F.gelu}


def _operator(name: str) -> Any:
    """The private operator, or None where torch has none."""
    if not torch.backends.mkldnn.is_available():
        return None
    return getattr(torch.ops.mkldnn, name, None)


class PackedLinear:
    """x (N, D) → x Wᵀ + b (N, D'), in the precision of the packed weight.

    weight: (D', D); bias: (D',) or None, both in any precision and not kept.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype, fused: Fused = "none") -> None:
        weight = weight.detach().to(dtype).contiguous()
        self.bias = None if bias is None else bias.detach().to(dtype, copy=True)
        self.out_features, self.in_features = weight.shape
        self.fused = fused
        self._kernel = _operator("_linear_pointwise") if hasattr(torch.ops.mkldnn, "_reorder_linear_weight") else None
        self._weight = weight.clone() if self._kernel is None else torch.ops.mkldnn._reorder_linear_weight(weight)

    def __call__(self, x: Tensor) -> Tensor:
        if self._kernel is None:
            return _UNFUSED[self.fused](F.linear(x, self._weight, self.bias))
        algorithm = "none" if self.fused == "gelu" else ""  # of GELU: the exact one, by the error function
        y: Tensor = self._kernel(x, self._weight, self.bias, self.fused, [], algorithm)
        return y
