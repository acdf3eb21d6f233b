"""Trains the image tower to put each drawing where the sentence encoder puts its label.

Run after ``corpus.py`` and ``targets.py``; the text tower is not needed, since the same encoder teaches it. The loss is
a cross-entropy over all labels of the corpus, whose embeddings are fixed. What ships is the running average of the
weights. Writes WORK/image.pt; run again, it goes on.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from teach import CONFIG, Texts, aim_loss, learning_rate, optimizer
from torch import Tensor, nn

from clip.model import CLIP, ModifiedResNet
from clip.preprocess import Preprocess

SHARES = {"concept": 0.45, "emoji": 0.1, "icon": 0.35, "clipart": 0.1}  # concept: emoji of things and animals
AVERAGING = 0.999
STARTER_STYLES = ("twemoji", "openmoji", "fluent_flat")
ONE_WAY = re.compile(
    r"left|right|arrow|clock|letter|sign|symbol|music|note|question|number|flag|hand|button|watch|mark"
)


class Pictures:
    """The corpus in memory, and batches of it as no two illustrators would draw them."""

    def __init__(self, work: Path, texts: Texts) -> None:
        self.records = [json.loads(line) for line in (work / "records.jsonl").read_text().splitlines()]
        self.pixels = torch.from_numpy(np.load(work / "images.npy", mmap_mode="r+")).permute(0, 3, 1, 2)
        train = [i for i, record in enumerate(self.records) if record["split"] == "train"]
        self.validation = [i for i, record in enumerate(self.records) if record["split"] == "val"]
        self.unseen = [
            i
            for i, r in enumerate(self.records)
            if r["split"] == "val_concept" and r["style"] in STARTER_STYLES and r["label"] in texts.index
        ]
        self.may_flip = torch.tensor([not ONE_WAY.search(record["label"]) for record in self.records])
        self.texts = texts
        # (N, E); a label that the teacher did not see, of a test picture, has no aim and needs none.
        self.aims = texts.targets[[texts.index.get(record["label"], 0) for record in self.records]]
        self.labels = sorted({self.records[i]["label"] for i in train})
        self.bank = texts.targets[[texts.index[label] for label in self.labels]]
        # The concepts of the starter set are things and animals; the other emoji are faces, people and signs.
        concepts = {
            record["label"] for record in self.records if record["style"] in STARTER_STYLES and record["subcategory"]
        }
        groups: dict[str, list[int]] = {kind: [] for kind in SHARES}
        for i in train:
            style, label = self.records[i]["style"], self.records[i]["label"]
            kind = style if style in groups else "concept" if label in concepts else "emoji"
            groups[kind].append(i)
        self.groups = {kind: np.array(members) for kind, members in groups.items()}
        self.concept_labels = sorted(concepts & {self.records[i]["label"] for i in [*train, *self.validation]})
        # Within a kind, the square root evens out how often common and rare labels come.
        self.weights = {}
        for kind, members in self.groups.items():
            names = [self.records[i]["label"] for i in members]
            counts = Counter(names)
            weights = np.array([counts[name] ** -0.5 for name in names])
            self.weights[kind] = weights / weights.sum()

    def draw(self, count: int, generator: np.random.Generator) -> np.ndarray:
        kinds = generator.multinomial(count, list(SHARES.values()))
        return np.concatenate([
            generator.choice(self.groups[kind], size=size, p=self.weights[kind])
            for kind, size in zip(SHARES, kinds, strict=True)
        ])  # fmt: skip


MEAN, STD = (torch.tensor(values).view(1, 3, 1, 1) for values in (Preprocess().mean, Preprocess().std))


def on_white(pixels: Tensor) -> Tensor:
    """(B, 4, H, W) uint8 premultiplied → (B, 3, H, W), what ``preprocess`` makes of the picture on white."""
    rgba = pixels.float() / 255
    return (rgba[:, :3] + 1 - rgba[:, 3:] - MEAN) / STD


def augmented(pixels: Tensor, may_flip: Tensor) -> Tensor:
    """(B, 4, H, W) uint8 premultiplied → (B, 3, H, W) floats: moved, warped, lit, coloured, on some ground."""
    count, side = len(pixels), pixels.shape[-1]
    rgba = pixels.float() / 255

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(count, *shape) * (high - low) + low

    def chance(probability: float) -> Tensor:
        return (torch.rand(count, 1, 1, 1) < probability).float()

    # Silhouettes get a colour of their own, about half of them a dark one.
    is_black = (rgba[:, :3].amax(dim=(1, 2, 3)) == 0).float().view(-1, 1, 1, 1)
    ink = uniform(0, 1, 3, 1, 1) * torch.where(torch.rand(count, 1, 1, 1) < 0.5, 0.25, 1.0)
    colour, alpha = rgba[:, :3] * (1 - is_black) + ink * rgba[:, 3:] * is_black, rgba[:, 3:]

    # Place: zoom, aspect, rotation, shift, mirror, and a soft warp, in one resampling.
    angle, zoom, aspect = torch.randn(count) * 0.1, uniform(-0.15, 0.25).exp(), uniform(-0.1, 0.1).exp()
    mirror = torch.where((torch.rand(count) < 0.4) & may_flip, -1.0, 1.0)
    cosine, sine, shift = angle.cos(), angle.sin(), uniform(-0.1, 0.1, 2)
    matrix = torch.stack([cosine * zoom * aspect * mirror, -sine * zoom, shift[:, 0],
                          sine * zoom * mirror, cosine * zoom / aspect, shift[:, 1]], dim=1).view(-1, 2, 3)  # fmt: skip
    grid = F.affine_grid(matrix, [count, 4, side, side], align_corners=False)
    warp = F.interpolate(torch.randn(count, 2, 4, 4) * 0.05, (side, side), mode="bilinear", align_corners=True)
    grid = grid + (warp * chance(0.3)).permute(0, 2, 3, 1)
    moved = F.grid_sample(torch.cat([colour, alpha], dim=1), grid, padding_mode="zeros", align_corners=False)
    colour, alpha = moved[:, :3], moved[:, 3:]

    # Light and paint, on the thing alone: shading, contrast, saturation, a turn of the hue, grey, outlines.
    x, y = torch.linspace(-1, 1, side).view(1, 1, 1, -1), torch.linspace(-1, 1, side).view(1, 1, -1, 1)
    slope = uniform(-0.3, 0.3, 2, 1, 1) * chance(0.5)
    light = 1 + slope[:, :1] * x + slope[:, 1:] * y + uniform(-0.2, 0.2, 1, 1, 1)
    grey = colour.mean(1, keepdim=True)
    saturation = torch.where(torch.rand(count, 1, 1, 1) < 0.12, 0.0, uniform(0.6, 1.4, 1, 1, 1))
    colour = (grey + (colour - grey) * saturation) * light
    half = 0.5 * alpha
    colour = half + (colour - half) * uniform(0.7, 1.3, 1, 1, 1)
    colour = colour + uniform(-0.06, 0.06, 3, 1, 1) * alpha
    turned = colour.roll(1, dims=1)
    mix = uniform(0, 0.5, 1, 1, 1) * chance(0.15)
    colour = colour * (1 - mix) + turned * mix
    colour = torch.minimum(colour.clamp(min=0), alpha)
    some = torch.randperm(count)[: count // 8]
    inside = -F.max_pool2d(-alpha[some], 3, stride=1, padding=1)
    colour[some] *= 1 - (alpha[some] - inside).clamp(0, 1) * uniform(0.4, 1, 1, 1, 1)[some]

    # Ground: white for most, else flat, a gradient, or blotches.
    flat, other = uniform(0, 1, 3, 1, 1), uniform(0, 1, 3, 1, 1)
    blotches = F.interpolate(torch.rand(count, 3, 6, 6), (side, side), mode="bilinear", align_corners=True)
    ramp = ((x * uniform(-1, 1, 1, 1, 1) + y * uniform(-1, 1, 1, 1, 1)) / 2 + 0.5).clamp(0, 1)
    kind = torch.rand(count, 1, 1, 1)
    ground = torch.where(kind < 0.15, flat.expand(-1, -1, side, side), flat * ramp + other * (1 - ramp))
    ground = torch.where(kind > 0.27, 0.6 * flat + 0.4 * blotches, ground)
    # What is nearly as bright as its ground would vanish: that goes on white, if dark enough, else on black.
    drawn = alpha.sum((2, 3), keepdim=True).clamp(min=1)
    brightness = colour.mean(1, keepdim=True).sum((2, 3), keepdim=True) / drawn
    plain = torch.where(brightness < 0.75, 1.0, 0.05)
    is_plain = (kind > 0.35) | ((ground.mean((1, 2, 3), keepdim=True) - brightness).abs() < 0.25)
    picture = colour + torch.where(is_plain, plain.expand(-1, 3, side, side), ground) * (1 - alpha)

    some = torch.randperm(count)[: count // 4]
    blurred = F.avg_pool2d(picture[some], 3, stride=1, padding=1, count_include_pad=False)
    picture[some] += (blurred - picture[some]) * uniform(-0.4, 0.9, 1, 1, 1)[some]  # below zero it sharpens
    return (picture.clamp(0, 1) - MEAN) / STD


@torch.no_grad()
def validate(tower: ModifiedResNet, pictures: Pictures) -> dict[str, float]:
    """Of the validation pictures, top-1 among all concepts; of the concepts kept from training, top-1 and top-5."""
    texts, found = pictures.texts, {}
    for name, rows, names, ks in (
        ("seen", pictures.validation, pictures.concept_labels, (1,)),
        ("unseen", pictures.unseen, sorted({pictures.records[i]["label"] for i in pictures.unseen}), (1, 5)),
    ):
        embeddings = F.normalize(tower(on_white(pictures.pixels[rows])).float(), dim=-1)
        similarity = embeddings @ texts.targets[[texts.index[label] for label in names]].T
        wanted = torch.tensor([names.index(pictures.records[i]["label"]) for i in rows])
        rank = (similarity > similarity.gather(1, wanted[:, None])).sum(1)
        found |= {f"{name}/top{k}": round((rank < k).float().mean().item(), 4) for k in ks}
    return found


@torch.no_grad()
def average_(average: nn.Module, model: nn.Module, step: int) -> None:
    """Moves the running average, over few steps at first, a little towards the weights."""
    decay = min(AVERAGING, (step + 1) / (step + 10))
    for old, new in zip(average.parameters(), model.parameters(), strict=True):
        old.lerp_(new, 1 - decay)
    for old, new in zip(average.buffers(), model.buffers(), strict=True):
        old.copy_(new)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    parser.add_argument("--steps", type=int, default=20500)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    pictures = Pictures(arguments.work, Texts(arguments.work))
    tower, checkpoint = CLIP.from_config(CONFIG).visual, arguments.work / "image.pt"
    assert isinstance(tower, ModifiedResNet)
    tower.to(memory_format=torch.channels_last)  # twice the speed of convolutions in bf16
    average = copy.deepcopy(tower).eval()
    logit_scale = nn.Parameter(torch.tensor(math.log(15)))
    adamw, first = optimizer([*tower.parameters(), logit_scale], weight_decay=0.1), 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        tower.load_state_dict(state["tower"])
        average.load_state_dict(state["average"])
        logit_scale.data = state["logit_scale"]
        adamw.load_state_dict(state["optimizer"])
        first = state["step"]
    start, history = time.time(), []
    for step in range(first, arguments.steps):
        torch.manual_seed(step)  # by step, so that a resumed run draws what an unbroken one would
        rows = pictures.draw(arguments.batch_size, np.random.default_rng(step))
        aims, pixels = pictures.aims[rows], augmented(pictures.pixels[rows], pictures.may_flip[rows])
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.learning_rate, cooldown=0.35)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features = tower(pixels.contiguous(memory_format=torch.channels_last))
        cosine = F.cosine_similarity(features.float(), aims).mean()
        # The cosine pulls towards the aim from the first step on, when the cross-entropy hardly knows where to.
        loss = aim_loss(features, aims, pictures.bank, logit_scale.exp()) - 3 * cosine
        adamw.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0)
        adamw.step()
        logit_scale.data.clamp_(0, math.log(100))
        average_(average, tower, step)
        history.append((loss.item(), cosine.item()))
        if step % 400 == 399 or step == arguments.steps - 1:
            state = {"tower": tower.state_dict(), "average": average.state_dict(), "optimizer": adamw.state_dict()}
            beside = checkpoint.with_suffix(".new")
            torch.save({**state, "logit_scale": logit_scale.data, "step": step + 1}, beside)
            beside.replace(checkpoint)
            loss_mean, cosine_mean = np.mean(history, axis=0).round(4).tolist()
            line = {"step": step + 1, "seconds": round(time.time() - start), "loss": loss_mean, "cosine": cosine_mean}
            print(json.dumps(line | validate(average, pictures)), flush=True)
            history = []


if __name__ == "__main__":
    main()
