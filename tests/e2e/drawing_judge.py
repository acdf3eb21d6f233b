"""A small classifier of drawings that ``clip draw`` knows nothing of: see ``recipes/draw/teach_judge.py``."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import safe_open
from torch import Tensor, nn

__all__ = ["Judge"]


class Judge(nn.Module):
    """Pictures (B, 3, H, W) in [0, 1] → logits (B, names)."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        self.names = names
        widths = (3, 32, 64, 96, 128)
        layers: list[nn.Module] = []
        for i in range(4):
            stride = 1 if i == 0 else 2
            layers += [nn.Conv2d(widths[i], widths[i + 1], 3, stride, 1), nn.BatchNorm2d(widths[i + 1]), nn.ReLU()]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Linear(widths[-1], len(names))

    @classmethod
    def load(cls, path: Path) -> Judge:
        with safe_open(path, "pt") as file:
            judge = cls(file.metadata()["names"].split("\n"))
            judge.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        return judge.float().eval()

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[-2:] != (32, 32):
            images = F.interpolate(images, (32, 32), mode="area")
        logits: Tensor = self.last(self.layers(images - 0.5).amax(dim=(2, 3)))
        return logits

    @torch.no_grad()
    def ranked(self, image: Tensor) -> list[str]:
        """All names for a picture (3, H, W), the best first."""
        return [self.names[i] for i in self(image[None])[0].argsort(descending=True).tolist()]
