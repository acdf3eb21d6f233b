"""The pictures of pocket → ``robust_tower.safetensors``: pocket's image tower, taught to stand changes nobody sees.

python recipes/draw/teach_robust.py --work build/pocket --output src/clip/guidance/robust_tower.safetensors

Run after step 3 of ``recipes/pocket``. Some fifty-five minutes on two cores with bf16 units. The tower goes on from
pocket's, and learns the labels' embeddings (pocket's own text tower, which stays as it is) from pictures that were
changed against it in two steps within an L2 distance (Madry et al. 2018). The average of its weights along the way is
kept. The held-out style and concepts of pocket train here neither.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from teach import COLOURED
from torch import Tensor, nn

import clip
from clip.features import encode_texts
from clip.model import CLIP
from clip.preprocess import Preprocess

BATCH, SIDE = 64, 64
COLOURED_SHARE = 0.8
"""Of a batch; the rest are icons and other drawings of one colour."""
WARMUP, RATE = 100, 6e-4
ATTACK_STEPS, JUDGED_STEPS = 2, 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4000)
    parser.add_argument("--distance", type=float, default=2.5, help="L2, of 64 × 64 pixels in [0, 1]")
    options = parser.parse_args()
    torch.manual_seed(0)

    lines = (options.work / "records.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    images = np.load(options.work / "images.npy", mmap_mode="r")
    train = [i for i, record in enumerate(records) if record["split"] == "train"]
    coloured = [i for i in train if records[i]["style"] in COLOURED]
    others = [i for i in train if records[i]["style"] not in COLOURED]
    held = [i for i, record in enumerate(records) if record["split"] == "val" and record["style"] in COLOURED][:600]
    labels = sorted({records[i]["label"] for i in train})
    place = {label: i for i, label in enumerate(labels)}
    held_labels = sorted({records[i]["label"] for i in held})
    expected = torch.tensor([held_labels.index(records[i]["label"]) for i in held])

    model, preprocess = clip.load("pocket", device="cpu")
    model = model.float().eval()
    texts, held_texts = _texts(model, labels), _texts(model, held_labels)
    net = model.visual.train().requires_grad_(True).to(memory_format=torch.channels_last)
    tower = _Tower(net, preprocess)
    average = {name: value.detach().clone() for name, value in net.state_dict().items()}
    matrices = [weight for weight in net.parameters() if weight.ndim >= 2]
    vectors = [weight for weight in net.parameters() if weight.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.02}, {"params": [*vectors, tower.scale], "weight_decay": 0.0}]
    )
    began = time.monotonic()
    for step in range(options.steps):
        for group in optimizer.param_groups:
            group["lr"] = RATE * min(1.0, (step + 1) / WARMUP) * 0.5 * (1 + math.cos(math.pi * step / options.steps))
        count = int(BATCH * COLOURED_SHARE)
        rows = [coloured[i] for i in torch.randint(len(coloured), (count,))]
        rows += [others[i] for i in torch.randint(len(others), (BATCH - count,))]
        views, goal = _augmented(_raw(images, rows)), torch.tensor([place[records[i]["label"]] for i in rows])
        net.requires_grad_(False)
        changed = _changed(tower, views, goal, texts, options.distance * min(1.0, 0.3 + step / 600), ATTACK_STEPS)
        net.requires_grad_(True)
        loss = tower.loss(changed, goal, texts)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        _average(average, net, min(0.997, (step + 1) / (step + 21)))
        if (step + 1) % 100 == 0:
            print(f"{step + 1} loss {loss.item():.3f} {time.monotonic() - began:.0f} s", flush=True)
    net.load_state_dict(average)
    net.eval().requires_grad_(False)
    pictures = _on_white(_raw(images, held))
    changed = torch.cat(
        [
            _changed(tower, some, goal, held_texts, options.distance, JUDGED_STEPS)
            for some, goal in zip(pictures.split(100), expected.split(100), strict=True)
        ]
    )
    for name, seen in (("as they are", pictures), ("changed", changed)):
        accuracy = _accuracy(tower, seen, expected, held_texts)
        print(f"{len(held)} validation pictures of {len(held_labels)} things, {name}: {accuracy}")
    weights = {name: value.half() if value.is_floating_point() else value for name, value in average.items()}
    save_file({name: value.contiguous() for name, value in weights.items()}, options.output)


class _Tower(nn.Module):
    """Pictures (B, 3, 64, 64) in [0, 1] → embeddings, and how far they are from the texts."""

    def __init__(self, net: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.net = net
        self.mean = torch.tensor(preprocess.mean).view(3, 1, 1)
        self.std = torch.tensor(preprocess.std).view(3, 1, 1)
        self.scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def forward(self, images: Tensor) -> Tensor:
        pixels = ((images - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return F.normalize(self.net(pixels).float(), dim=-1)

    def loss(self, images: Tensor, goal: Tensor, texts: Tensor) -> Tensor:
        return F.cross_entropy(self(images) @ texts.T * self.scale.exp(), goal, label_smoothing=0.05)


def _texts(model: CLIP, labels: list[str]) -> Tensor:
    return torch.cat([torch.from_numpy(batch.embeddings) for batch in encode_texts(model, labels)])


def _raw(images: np.ndarray, rows: list[int]) -> Tensor:
    """(N, 4, 64, 64) in [0, 1]"""
    return torch.from_numpy(np.stack([images[i] for i in rows])).permute(0, 3, 1, 2).float() / 255


def _on_white(pictures: Tensor) -> Tensor:
    return pictures[:, :3] * pictures[:, 3:] + 1 - pictures[:, 3:]


def _augmented(pictures: Tensor) -> Tensor:
    """(B, 4, 64, 64) → (B, 3, 64, 64): moved, turned, mirrored, on white or another colour."""
    count = len(pictures)

    def either_way(*shape: int) -> Tensor:
        return torch.rand(*shape) * 2 - 1

    background = torch.where(torch.rand(count, 1, 1, 1) < 0.6, torch.ones(()), torch.rand(count, 3, 1, 1))
    angle, zoom, aspect = either_way(count) * 0.2, 1.05 + either_way(count) * 0.2, 1 + either_way(count) * 0.1
    side = torch.where(torch.rand(count) < 0.5, -1.0, 1.0) * aspect
    across = torch.stack([angle.cos() * zoom * side, -angle.sin() * zoom, either_way(count) * 0.12], dim=-1)
    down = torch.stack([angle.sin() * zoom * side, angle.cos() * zoom, either_way(count) * 0.12], dim=-1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), [count, 4, SIDE, SIDE], align_corners=False)
    premultiplied = torch.cat([pictures[:, :3] * pictures[:, 3:], pictures[:, 3:]], dim=1)
    moved = F.grid_sample(premultiplied, grid, align_corners=False)
    flat = moved[:, :3] + (1 - moved[:, 3:]) * background
    contrast, brightness = 1 + either_way(count, 1, 1, 1) * 0.15, either_way(count, 3, 1, 1) * 0.06
    return ((flat - 0.5) * contrast + 0.5 + brightness).clamp(0, 1)


def _changed(tower: _Tower, images: Tensor, goal: Tensor, texts: Tensor, reach: float, steps: int) -> Tensor:
    """The pictures, changed within ``reach`` to what makes ``goal`` least likely."""
    change = torch.randn_like(images)
    change = change / _norm(change) * reach * torch.rand(len(images), 1, 1, 1)
    for _ in range(steps):
        change.requires_grad_()
        (gradient,) = torch.autograd.grad(tower.loss((images + change).clamp(0, 1), goal, texts), change)
        change = change.detach() + gradient / _norm(gradient) * reach * 1.6 / steps
        change = change * (reach / _norm(change)).clamp(max=1)
    return (images + change).clamp(0, 1)


def _norm(images: Tensor) -> Tensor:
    return images.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)


@torch.no_grad()
def _average(average: dict[str, Tensor], net: nn.Module, decay: float) -> None:
    for name, value in net.state_dict().items():
        if value.is_floating_point():
            average[name].lerp_(value, 1 - decay)
        else:
            average[name].copy_(value)


@torch.no_grad()
def _accuracy(tower: _Tower, images: Tensor, expected: Tensor, texts: Tensor) -> str:
    similarities = torch.cat([tower(some) for some in images.split(100)]) @ texts.T
    ranks = (similarities > similarities.gather(1, expected[:, None])).sum(dim=1)
    return f"top-1 {(ranks == 0).float().mean():.3f}, top-5 {(ranks < 5).float().mean():.3f}"


if __name__ == "__main__":
    main()
