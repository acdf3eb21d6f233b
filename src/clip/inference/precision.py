"""Which arithmetic the matrix products of this machine are fast in."""

from __future__ import annotations

import logging
from typing import Literal, get_args

import torch

from clip.errors import ConfigError, choices

__all__ = ["Precision", "has_bf16_units", "resolved"]

Precision = Literal["auto", "fp32", "bf16", "int8"]
"""Of the matrix products; normalisations, softmax, the residual stream and similarities are computed in fp32 always."""

_log = logging.getLogger(__name__)


def has_bf16_units() -> bool:
    """Whether this processor multiplies bfloat16 in hardware, by AMX or AVX-512-BF16. Else bf16 is slower than fp32."""
    known = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # absent from older versions of torch
    return any(getattr(torch.cpu, name, lambda: False)() for name in known)


def resolved(precision: Precision) -> Literal["fp32", "bf16", "int8"]:
    """What "auto" means here. Raises ConfigError for an unknown name."""
    if precision not in get_args(Precision):
        raise ConfigError(
            f"precision is {precision!r}; it must be one of {choices(str(precision), get_args(Precision))}"
        )
    if precision != "auto":
        return precision
    if has_bf16_units():
        return "bf16"
    _log.info("precision fp32: this processor has neither AMX nor AVX-512-BF16, without which bf16 is the slower one")
    return "fp32"
