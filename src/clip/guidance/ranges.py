"""The range of pixels: [0, 1] here, [-1, 1] in most diffusion models, and anything out of a decoder."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["from_symmetric", "out_of_range", "straight_through_clamp"]


def straight_through_clamp(values: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Values clamped, with the gradient of values that are not.

    A filter overshoots at edges, and white comes out as 1.0000001: the gradient of a true clamp would be zero at every
    such pixel, and a white background could never change.
    """
    return values + (values.clamp(low, high) - values).detach()


def from_symmetric(images: Tensor) -> Tensor:
    """[-1, 1] → [0, 1], clamped straight through."""
    return straight_through_clamp((images + 1) / 2)


def out_of_range(images: Tensor, low: float = -1.0, high: float = 1.0) -> Tensor:
    """(B,): mean squared distance of pixels from the range, before any clamp; what holds back a guidance that is too
    strong (the range loss of Crowson 2021)."""
    return torch.square(images - images.clamp(low, high)).mean(dim=(1, 2, 3))
