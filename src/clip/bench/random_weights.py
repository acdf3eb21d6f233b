"""A model of any size with weights that mean nothing: as fast as a trained one, and there is no need to fetch one."""

from __future__ import annotations

import torch

from clip.config import CLIPConfig
from clip.model import CLIP

__all__ = ["random_model"]


def random_model(config: CLIPConfig, seed: int = 0) -> CLIP:
    """The same weights for the same seed, in eval mode; every layer has a share in the result."""
    generator = torch.random.fork_rng(devices=[])
    with generator, torch.no_grad():
        torch.manual_seed(seed)
        model = CLIP.from_config(config).eval().requires_grad_(False)
        norms = [module for module in model.visual.modules() if isinstance(module, torch.nn.BatchNorm2d)]
        for norm in norms:  # fresh from its constructor a ResNet's branches are multiplied with zero
            norm.weight.fill_(0.7)
            norm.momentum = None  # the mean over all it sees
        if norms:
            model.visual.train()
            model.encode_image(torch.randn(4, 3, config.image_resolution, config.image_resolution))
            model.eval()
    return model
