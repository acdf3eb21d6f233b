"""Linear layers in int8, for processors that multiply bytes (VNNI, AMX): half the time of bf16 in the product itself.

Weights have a scale a row, set once. Activations have one a token, set from that token alone at run time: no pictures
for calibration are needed, and what an image gives does not depend on those beside it. A channel far larger than the
others would take the resolution from the rest of its token; behind a normalisation, ``balanced`` hands its size to the
weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from clip.inference.packed import Fused

__all__ = ["QuantizedLinear", "balanced", "has_int8_units"]

_AFTER: dict[Fused, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu_,
    "swish": lambda x: F.silu(x, inplace=True),
    "gelu": F.gelu,
}
_ROWS = 160
"""In one pass over a layer: its sums are fp32, and of more rows the allocator gives them back and fetches them anew."""


def has_int8_units() -> bool:
    """Whether this processor multiplies bytes in hardware, and this torch has the private operators for it."""
    operators = ("qlinear_prepack", "qlinear_pointwise")
    # Without VNNI oneDNN adds pairs of products in 16 bits, which overflow.
    units = ("_is_vnni_supported", "_is_amx_tile_supported")
    has_units = any(getattr(torch.cpu, name, lambda: False)() for name in units)
    return has_units and all(hasattr(torch.ops.onednn, name) for name in operators)


def balanced(weight: Tensor, norm_weight: Tensor, norm_bias: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The same linear layer behind the same normalisation, with the sizes of channels shared out between the two.

    weight: (D', D); norm_weight, norm_bias: (D,). Returns the three in fp32: columns of the weight times s, the others
    over s, which changes no result. After Xiao et al. 2023 ("SmoothQuant"), equation 4 with α = ½, where s is the root
    of the quotient of both sides' largest values. That of a normalised channel is not looked for in data, but taken to
    go with the root of γ² + β², its size if it has unit variance before them.
    """
    weight, norm_weight, norm_bias = (x.detach().float() for x in (weight, norm_weight, norm_bias))
    of_channels = torch.hypot(norm_weight, norm_bias).clamp_(min=1e-5)
    of_columns = weight.abs().amax(dim=0).clamp_(min=1e-5)
    s = (of_channels / of_columns).sqrt_()
    s /= s.log().mean().exp()
    return weight * s, norm_weight / s, norm_bias / s


class QuantizedLinear:
    """x (N, D) → x Wᵀ + b (N, D') in ``dtype``, by products of bytes.

    weight: (D', D); bias: (D',) or None, both in any precision and not kept.
    least: below every value of x, if there is such a bound, as of what an activation gives: all 256 steps then lie
        between it and the token's largest value.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        dtype: torch.dtype,
        fused: Fused = "none",
        *,
        least: float | None = None,
    ) -> None:
        weight = weight.detach().float()
        self.out_features, self.in_features = weight.shape
        self.dtype, self.fused, self.least = dtype, fused, least
        self._scale = weight.abs().amax(dim=1).clamp_min_(1e-12) / 127  # (D',)
        steps = (weight / self._scale[:, None]).round_()
        self.bias = torch.zeros(self.out_features) if bias is None else bias.detach().to(torch.float32, copy=True)
        if least is not None:  # x = least + scale · steps, and W · least is the same for every token
            self.bias += least * self._scale * steps.sum(dim=1)
        self._weight = torch.ops.onednn.qlinear_prepack(steps.to(torch.int8), None)
        self._zero_points = torch.zeros(self.out_features, dtype=torch.int64)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (N, D), in any precision."""
        result = x.new_empty(x.shape[0], self.out_features, dtype=self.dtype)
        for rows, into in zip(torch.split(x, _ROWS), torch.split(result, _ROWS), strict=True):
            into.copy_(self._product(rows))
        return result

    def _product(self, x: Tensor) -> Tensor:
        # oneDNN is fast in unsigned bytes alone; signed ones take a thousand times as long on some processors.
        if self.least is None:
            scale = x.abs().amax(dim=1, keepdim=True).float().div_(127).clamp_min_(1e-12)  # (N, 1)
            zero_point = 128
            steps = torch.mul(x, 1 / scale).add_(zero_point + 0.5)
        else:
            scale = x.amax(dim=1, keepdim=True).float().sub_(self.least).div_(255).clamp_min_(1e-12)
            zero_point = 0
            steps = torch.sub(x.float(), self.least).mul_(1 / scale).add_(0.5)
        # The cast cuts the fraction off: with the half added, it rounds.
        y: Tensor = torch.ops.onednn.qlinear_pointwise(
            steps.to(torch.uint8),
            1.0,  # the scale of x, which differs from row to row
            zero_point,
            self._weight,
            self._scale,
            self._zero_points,
            None,
            1.0,
            0,
            torch.float32,
            "none",
            [],
            "",
        )
        return _AFTER[self.fused](torch.addcmul(self.bias, y, scale, out=y))
