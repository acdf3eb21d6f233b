"""What a drawing by pocket is led by: pocket's image tower, taught again with pictures that were changed against it.

The gradient of a network that learned from plain pictures finds changes that nobody sees. One that had to stand such
changes (Madry et al. 2018) has a gradient that moves what a person sees move (Santurkar et al. 2019, "Image Synthesis
with a Single (Robust) Classifier"). It looks at details and parts where ``OutlineTower`` looks at outlines and places
of colour; what both see at once is more often what it should be than what either does. ``recipes/draw`` made both.
"""

from __future__ import annotations

import functools
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from clip.clip import load
from clip.guidance import outline_tower
from clip.preprocess import Preprocess

__all__ = ["RobustTower", "for_pocket"]


class RobustTower(nn.Module):
    """Pictures (B, 3, S, S) in [0, 1], not normalised → embeddings (B, E), unit norm: the sum of two towers'.

    visual: an image tower of a model; its pictures are of the side that ``preprocess`` gives.
    outlines: another one, of pictures in [0, 1] of any side.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, visual: nn.Module, preprocess: Preprocess, outlines: nn.Module) -> None:
        super().__init__()
        self.visual, self.outlines = visual, outlines
        self.register_buffer("mean", torch.tensor(preprocess.mean).view(3, 1, 1))
        self.register_buffer("std", torch.tensor(preprocess.std).view(3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        seen = F.normalize(self.visual((images - self.mean) / self.std), dim=-1)
        return F.normalize(seen + self.outlines(images), dim=-1)


@functools.cache
def for_pocket() -> RobustTower:
    """The bundled one, shared by all who ask; 12 MB and 1.3 MB, in fp32 when loaded."""
    model, preprocess = load("pocket", device="cpu")
    visual = model.visual.float()
    visual.load_state_dict(load_file(Path(__file__).with_name("robust_tower.safetensors")))
    return RobustTower(visual, preprocess, outline_tower.for_pocket()).eval().requires_grad_(False)
