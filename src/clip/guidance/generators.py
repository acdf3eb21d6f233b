"""What a gradient can draw with: parameters → pictures. Vector shapes are in ``vector``."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

__all__ = ["Generator"]


class Generator(nn.Module, ABC):
    """Parameters that make pictures. Its parameters are what an optimizer moves; its state dict is what is resumed."""

    @abstractmethod
    def forward(self) -> Tensor:
        """(B, 3, H, W), float32, in [0, 1], differentiable in all parameters."""
