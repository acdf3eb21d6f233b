"""What a run begins with: fresh weights of a named size, or a checkpoint made ready for training."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

from clip.config import INITIAL_LOGIT_BIAS
from clip.errors import ModelNotFoundError, choices
from clip.model import ARCHITECTURES, CLIP, CLIPConfig, architecture

__all__ = ["PRESETS", "fresh_model", "with_logit_bias"]

PRESETS = {
    "tiny": CLIPConfig(
        embed_dim=128,
        image_resolution=64,
        vision_layers=4,
        vision_width=128,
        vision_patch_size=8,
        transformer_width=128,
        transformer_layers=2,
        context_length=32,
    ),
    "small": CLIPConfig(
        embed_dim=192,
        image_resolution=64,
        vision_layers=12,
        vision_width=192,
        vision_patch_size=8,
        transformer_width=192,
        transformer_layers=6,
        context_length=32,
    ),
}
"""Sizes below the published ones: ``tiny`` learns some hundred pairs in a minute, ``small`` is for a laptop."""


def fresh_model(name: str, *, seed: int = 0, logit_bias: bool = False) -> CLIP:
    """A model with random weights, the same for the same seed: ``tiny``, ``small``, or a name of ``architecture``."""
    if name in PRESETS:
        config = PRESETS[name]
    else:
        try:
            config = architecture(name)
        except ModelNotFoundError as error:
            known = choices(name, [*PRESETS, *ARCHITECTURES])
            raise ModelNotFoundError(f"architecture {name!r} is not known; known are {known}") from error
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIP.from_config(dataclasses.replace(config, logit_bias=logit_bias))


def with_logit_bias(model: CLIP) -> CLIP:
    """The same tensors in a model that has a ``logit_bias``, which begins at -10 if there was none."""
    if model.logit_bias is not None:
        return model
    with torch.device("meta"):
        other = CLIP.from_config(dataclasses.replace(model.config, logit_bias=True))
    bias = nn.Parameter(torch.tensor(INITIAL_LOGIT_BIAS, device=model.logit_scale.device))
    other.load_state_dict({**model.state_dict(), "logit_bias": bias}, assign=True)
    for parameter in other.parameters():
        parameter.requires_grad_(True)
    return other.train(model.training)
