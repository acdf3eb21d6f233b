"""The ModifiedResNet for inference alone: batch normalisation folded into the convolutions, channels last."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clip.model import Bottleneck, ModifiedResNet

__all__ = ["PackedResNet"]


class PackedResNet:
    """``ModifiedResNet`` for inference on a CPU."""

    def __init__(self, tower: ModifiedResNet, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.rows_per_image = (tower.input_resolution // 32) ** 2 + 1
        tower = copy.deepcopy(tower).float()
        _fold(tower, ("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
        for block in tower.modules():
            if isinstance(block, Bottleneck):
                _fold(block, ("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
                if block.downsample is not None:
                    _fold(block.downsample, ("0", "1"))
        self.tower = tower.to(dtype, memory_format=torch.channels_last)

    def __call__(self, images: Tensor) -> Tensor:
        """images: (B, 3, S, S) → (B, E) fp32."""
        return self.tower(images.to(self.dtype, memory_format=torch.channels_last)).float()


def _fold(module: nn.Module, *pairs: tuple[str, str]) -> None:
    for conv, norm in pairs:
        setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv), getattr(module, norm)))
        setattr(module, norm, nn.Identity())
