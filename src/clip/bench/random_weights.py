"""A model of any size with weights that mean nothing: as fast as a trained one, and there is no need to fetch one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from clip.config import CLIPConfig
from clip.model import CLIP, Bottleneck

__all__ = ["random_model"]


def random_model(config: CLIPConfig, seed: int = 0) -> CLIP:
    """The same weights for the same seed, in eval mode; every layer has a share in the result."""
    generator = torch.random.fork_rng(devices=[])
    with generator, torch.no_grad():
        torch.manual_seed(seed)
        model = CLIP.from_config(config).eval().requires_grad_(False)
        norms = [module for module in model.visual.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:
            norm.momentum = None  # the mean over all it sees
        for block in model.visual.modules():
            # Fresh from its constructor a ResNet multiplies its branches with zero. As in a trained one, they are made
            # small beside the stream that they add to; at full size random layers would amplify every rounding.
            if isinstance(block, Bottleneck):
                block.bn3.weight.fill_(0.2)
        if norms:
            model.visual.train()
            model.encode_image(_pictures(8, config.image_resolution))
            model.eval()
    return model


def _pictures(count: int, side: int) -> Tensor:
    """(count, 3, side, side) of light that varies on every scale, as in nature; plain noise has other statistics."""
    scales = [size for size in (3, 7, 14, 28, 56) if size <= side]
    octaves = [F.interpolate(torch.randn(count, 3, size, size), (side, side), mode="bicubic") for size in scales]
    pictures: Tensor = torch.stack(octaves).sum(dim=0) * (1.5 / len(octaves)) ** 0.5
    return pictures
