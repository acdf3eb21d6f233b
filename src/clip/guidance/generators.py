"""What a gradient can draw with: parameters → pictures. Vector shapes are in ``vector``."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from clip.errors import ConfigError, ImageError, ShapeError

__all__ = ["Generator", "Pixels"]


class Generator(nn.Module, ABC):
    """Parameters that make pictures. Its parameters are what an optimizer moves; its state dict is what is resumed."""

    @abstractmethod
    def forward(self) -> Tensor:
        """(B, 3, H, W), float32, in [0, 1], differentiable in all parameters."""


class Pixels(Generator):
    """A parameter for each pixel and channel, brought into [0, 1] by a sigmoid.

    start: (B, 3, H, W) or (3, H, W) in [0, 1]: the pictures to begin with, kept 1/512 away from black and white, where
        the sigmoid would hardly move.
    """

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        if start.ndim == 3:
            start = start[None]
        if start.ndim != 4 or start.shape[1] != 3 or 0 in start.shape:
            raise ShapeError(f"the start has shape {tuple(start.shape)}; (batch, 3, height, width) is expected")
        if not (start.min() >= 0 and start.max() <= 1):
            raise ImageError(f"the start holds values from {start.min():.4g} to {start.max():.4g}, not from 0 to 1")
        self.logits = nn.Parameter(torch.logit(start.detach().float(), eps=1 / 512))

    @classmethod
    def noise(
        cls,
        width: int,
        height: int,
        *,
        batch: int = 1,
        level: float = 0.5,
        noise: float = 0.05,
        generator: torch.Generator | None = None,
    ) -> Pixels:
        """Pictures of one grey ``level`` with normal noise on it."""
        _check_size(width, height)
        device = None if generator is None else generator.device
        pixels = torch.randn(batch, 3, height, width, generator=generator, device=device)
        return cls((level + noise * pixels).clamp(0, 1))

    def forward(self) -> Tensor:
        return torch.sigmoid(self.logits)


def _check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise ConfigError(f"the size is {width}×{height}; a picture has at least one pixel")
