"""A second, small image tower for pocket that looks at outlines and patches of colour alone: what a drawing is led by.

A convolutional network can be told that anything is a heart by changes that nobody sees, and a gradient finds them at
once. Histograms of oriented gradients (Dalal & Triggs 2005) over cells of a quarter of the side's half cannot: what
moves them is what a person sees move. A network of one hidden layer takes them to where pocket's text tower puts the
words. It names fewer pictures right than pocket does, and the ones that it leads to are named right by others.
``recipes/draw`` made it, from the pictures that made pocket.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

__all__ = ["OutlineTower", "for_pocket", "outline_features"]

FEATURES, HIDDEN, EMBED_DIM = 832, 384, 256

_SIDE = 32
"""Pixels: finer than this nothing is looked at."""
_DIRECTIONS = 8
_CHANNELS = ((0.45, 0.5, 0.05), (0.1, 0.1, 0.8))
"""Two mixtures of red, green and blue: yellow, as light as white in the first, is dark in the second."""


class OutlineTower(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1], not normalised → embeddings (B, 256), unit norm, in the space of pocket."""

    mean: Tensor
    spread: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(FEATURES))
        self.register_buffer("spread", torch.ones(FEATURES))
        self.hidden = nn.Linear(FEATURES, HIDDEN)
        self.out = nn.Linear(HIDDEN, EMBED_DIM)
        self.straight = nn.Linear(FEATURES, EMBED_DIM)

    def forward(self, images: Tensor) -> Tensor:
        return self.embeddings(outline_features(images))

    def embeddings(self, features: Tensor) -> Tensor:
        """(B, 832) of ``outline_features`` → (B, 256)."""
        features = (features - self.mean) / self.spread
        return F.normalize(self.straight(features) + self.out(F.silu(self.hidden(features))), dim=-1)


@functools.cache
def for_pocket() -> OutlineTower:
    """The one that is bundled, shared by all who ask; 1.3 MB."""
    tower = OutlineTower().eval().requires_grad_(False)
    tower.load_state_dict(load_file(Path(__file__).with_name("outline_tower.safetensors")))
    return tower.float()


def outline_features(images: Tensor) -> Tensor:
    """Pictures (B, 3, H, W) in [0, 1] → (B, 832): edges in eight directions in 8×8 and 4×4 cells, and 8×8 colours.

    The energy of an edge is cubed, so that each has few directions, and the sum over a cell brought back by the cube
    root; cells overlap by half, so that nothing jumps as an outline moves.
    """
    if images.shape[-2:] != (_SIDE, _SIDE):
        images = F.interpolate(images, size=(_SIDE, _SIDE), mode="area")
    mixed = torch.einsum("oc,bchw->bohw", images.new_tensor(_CHANNELS), images)
    framed = F.pad(mixed, (1, 1, 1, 1), mode="replicate")
    across = framed[..., 1:-1, 2:] - framed[..., 1:-1, :-2]
    down = framed[..., 2:, 1:-1] - framed[..., :-2, 1:-1]
    edges = []
    for k in range(_DIRECTIONS):
        angle = 2 * math.pi * k / _DIRECTIONS
        along = (math.cos(angle) * across + math.sin(angle) * down).clamp(min=0)
        edges.append((along * along * along).sum(dim=1))
    fine = F.avg_pool2d(F.pad(torch.stack(edges, dim=1), (2, 2, 2, 2)), 8, 4)  # (B, 8, 8, 8)
    cells = [(fine, 8.0), (F.avg_pool2d(fine, 2), 4.0)]
    histograms = []
    for energies, weight in cells:
        roots = (energies + 1e-5).pow(1 / 3).flatten(1)
        histograms.append(roots / (roots.norm(dim=1, keepdim=True) + 0.1) * weight)
    return torch.cat([*histograms, F.avg_pool2d(images, _SIDE // 8).flatten(1)], dim=1)
