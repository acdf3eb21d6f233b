"""The pictures of pocket → ``outline_tower.safetensors``, the second tower that leads a drawing.

python recipes/draw/teach.py --work build/pocket --output src/clip/guidance/outline_tower.safetensors

Run after step 3 of ``recipes/pocket``. Two stages, some ten minutes on two cores. First the layers learn from features
of augmented pictures. Then the whole learns from pictures that were changed against it (Madry et al. 2018), by an L2
distance within which nobody would name them otherwise, and from random shapes, whose name is none in particular: what
leads it then is what a person sees (Santurkar et al. 2019, "Image Synthesis with a Single (Robust) Classifier").
The held-out style and concepts of pocket train here neither.
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
from torch import Tensor

import clip
from clip.features import encode_texts
from clip.guidance.outline_tower import OutlineTower, outline_features
from clip.guidance.vector import Shapes

COLOURED = {"openmoji", "twemoji", "emojione", "emojione-v1", "fluent-emoji-flat", "fluent_flat"}
COLOURED |= {"streamline-emojis", "fxemoji", "clipart"}
SIDE, VIEWS, BATCH, RANDOM = 32, 6, 256, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2000, help="of the first stage")
    parser.add_argument("--robust-steps", type=int, default=600)
    parser.add_argument("--distance", type=float, default=1.0, help="L2, of 32 × 32 pixels in [0, 1]")
    options = parser.parse_args()
    torch.manual_seed(0)

    lines = (options.work / "records.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    images = np.load(options.work / "images.npy", mmap_mode="r")
    rows = [i for i, r in enumerate(records) if r["style"] in COLOURED and r["split"] == "train"]
    held = [i for i, r in enumerate(records) if r["split"] == "val"]
    labels = sorted({records[i]["label"] for i in (*rows, *held)})
    place = {label: i for i, label in enumerate(labels)}
    pictures, answers = _small(images, rows), torch.tensor([place[records[i]["label"]] for i in rows])
    validation, expected = _small(images, held), torch.tensor([place[records[i]["label"]] for i in held])
    validation = validation[:, :3] + 1 - validation[:, 3:]

    model, _ = clip.load("pocket", device="cpu")
    texts = torch.cat([torch.from_numpy(batch.embeddings) for batch in encode_texts(model, labels)])
    tower = OutlineTower()
    scale = torch.nn.Parameter(torch.tensor(math.log(15.0)))
    _features_stage(tower, scale, texts, pictures, answers, options.steps)
    _report(tower, texts, validation, expected)
    _robust_stage(tower, scale, texts, pictures, answers, options.robust_steps, options.distance)
    _report(tower, texts, validation, expected)
    save_file({name: value.half().contiguous() for name, value in tower.state_dict().items()}, options.output)


def _small(images: np.ndarray, rows: list[int]) -> Tensor:
    """(N, 4, 32, 32) in [0, 1], premultiplied."""
    pixels = torch.from_numpy(np.stack([images[i] for i in rows])).permute(0, 3, 1, 2)
    return torch.cat([F.avg_pool2d(some.float() / 255, 2) for some in pixels.split(1024)])


def _augmented(pictures: Tensor) -> Tensor:
    """(B, 4, 32, 32) → (B, 3, 32, 32): moved, turned, mirrored, on white or another colour."""
    count = len(pictures)

    def either_way(*shape: int) -> Tensor:
        return torch.rand(*shape) * 2 - 1

    background = torch.where(torch.rand(count, 1, 1, 1) < 0.7, torch.ones(()), torch.rand(count, 3, 1, 1))
    angle, zoom, aspect = either_way(count) * 0.2, 1.05 + either_way(count) * 0.15, 1 + either_way(count) * 0.08
    side = torch.where(torch.rand(count) < 0.5, -1.0, 1.0) * aspect
    across = torch.stack([angle.cos() * zoom * side, -angle.sin() * zoom, either_way(count) * 0.1], dim=-1)
    down = torch.stack([angle.sin() * zoom * side, angle.cos() * zoom, either_way(count) * 0.1], dim=-1)
    grid = F.affine_grid(torch.stack([across, down], dim=1), [count, 4, SIDE, SIDE], align_corners=False)
    moved = F.grid_sample(pictures, grid, align_corners=False)
    flat = moved[:, :3] + (1 - moved[:, 3:]) * background
    return ((flat - 0.5) * (1 + either_way(count, 1, 1, 1) * 0.15) + 0.5 + either_way(count, 3, 1, 1) * 0.05).clamp(
        0, 1
    )


def _rate(step: int, steps: int, most: float) -> float:
    return most * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / steps))


def _features_stage(
    tower: OutlineTower, scale: Tensor, texts: Tensor, pictures: Tensor, answers: Tensor, steps: int
) -> None:
    with torch.no_grad():
        views = [outline_features(_augmented(some)).half() for _ in range(VIEWS) for some in pictures.split(256)]
    features, answers = torch.cat(views), answers.repeat(VIEWS)
    some = features[::7].float()
    tower.mean.copy_(some.mean(dim=0))
    tower.spread.copy_(some.std(dim=0) + 0.1 * some.std(dim=0).mean())
    optimizer = torch.optim.AdamW([*tower.parameters(), scale], weight_decay=0.3)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = _rate(step, steps, 1.5e-3)
        rows = torch.randint(len(features), (384,))
        noisy = features[rows].float() + 0.4 * tower.spread * torch.randn(384, features.shape[1])
        noisy = torch.where(torch.rand_like(noisy) < 0.15, tower.mean, noisy)
        loss = F.cross_entropy(tower.embeddings(noisy) @ texts.T * scale.exp(), answers[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _robust_stage(
    tower: OutlineTower,
    scale: Tensor,
    texts: Tensor,
    pictures: Tensor,
    answers: Tensor,
    steps: int,
    distance: float,
) -> None:
    optimizer = torch.optim.AdamW([*tower.parameters(), scale], weight_decay=0.2)
    began = time.monotonic()
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = _rate(step, steps, 1e-3)
        rows = torch.randint(len(pictures), (BATCH,))
        views, goal = _augmented(pictures[rows]), answers[rows]
        reach = distance * min(1.0, step / (0.2 * steps) + 0.2)
        change = _attack(tower, scale, texts, views, goal, reach)
        loss = F.cross_entropy(tower((views + change).clamp(0, 1)) @ texts.T * scale.exp(), goal)
        with torch.no_grad():
            count = int(torch.randint(1, 7, ()))
            shapes = Shapes.random(count, batch=RANDOM, mirrored=RANDOM // 2, size=SIDE)
            shapes.points += 0.05 * torch.randn(shapes.points.shape)
            nothing = shapes()
        # A random shape that the tower is changed to see something in: still of no name.
        sure = (tower(nothing) @ texts.T).argmax(dim=1).detach()
        nothing = nothing - _attack(tower, scale, texts, nothing, sure, reach)
        loss = loss - 0.2 * (tower(nothing.clamp(0, 1)) @ texts.T * scale.exp()).log_softmax(dim=1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 50 == 0:
            print(f"{step} {loss.item():.3f} {time.monotonic() - began:.0f} s", flush=True)


def _attack(tower: OutlineTower, scale: Tensor, texts: Tensor, images: Tensor, goal: Tensor, reach: float) -> Tensor:
    """The change within ``reach`` that makes ``goal`` least likely, found in two steps from a random one."""
    change = torch.randn_like(images)
    change = change / _norm(change) * reach * torch.rand(len(images), 1, 1, 1) * 0.7
    for _ in range(2):
        change.requires_grad_()
        loss = F.cross_entropy(tower(images + change) @ texts.T * scale.exp().detach(), goal)
        (gradient,) = torch.autograd.grad(loss, change)
        change = change.detach() + gradient / _norm(gradient) * reach * 0.7
        change = change * (reach / _norm(change)).clamp(max=1)
    return change


def _norm(images: Tensor) -> Tensor:
    return images.flatten(1).norm(dim=1).clamp(min=1e-12).view(-1, 1, 1, 1)


@torch.no_grad()
def _report(tower: OutlineTower, texts: Tensor, images: Tensor, expected: Tensor) -> None:
    similarities = tower(images) @ texts.T
    ranks = (similarities > similarities.gather(1, expected[:, None])).sum(dim=1)
    print(
        f"validation: top-1 {(ranks == 0).float().mean():.3f}, top-5 {(ranks < 5).float().mean():.3f} of {len(texts)}"
    )


if __name__ == "__main__":
    main()
