"""Trains pocket's image tower, a ViT, with the ResNet of ``train.py`` at its side.

A ViT alone stays near chance for thousands of steps on so few pictures; what it lacks is that neighbours belong
together. It gets that in three ways. Positions begin as two-dimensional waves, and attention as nearly the identity
(Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers"). At first every patch has to foretell the
ResNet's features at its place. And to the end it follows the ResNet's embedding of the picture beside the label's.
Half of the patches are left out (Li et al. 2023, FLIP), except in the last quarter.

Run after ``train.py``. Writes WORK/image.pt; run again, it goes on.
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
from teach import CONFIG, RESNET, Texts, part_of
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from train import MEAN, STD, Pictures, validate

from clip.model import CLIP, ModifiedResNet, ResidualAttentionBlock, VisionTransformer

DENSE_STEPS = 1400
GRID = CONFIG.image_resolution // 8  # patches a side, which is the grid of the ResNet's second stage
WIDTH = CONFIG.vision_width
RESNET_CHANNELS = 256 + 512  # of its second and third stage


def positions() -> Tensor:
    """(GRID², WIDTH): sines and cosines of row and column."""
    frequencies = 20 ** -(torch.arange(WIDTH // 4) / (WIDTH / 4))
    angles = torch.arange(GRID).float()[:, None] * frequencies
    waves = torch.cat([angles.sin(), angles.cos()], dim=1)  # (GRID, WIDTH / 2)
    rows, columns = waves[:, None].expand(-1, GRID, -1), waves[None].expand(GRID, -1, -1)
    return torch.cat([rows, columns], dim=-1).reshape(GRID**2, WIDTH)


@torch.no_grad()
def initialise(tower: VisionTransformer) -> None:
    """Queries meet keys, and values pass, nearly as under the identity; noise tells the heads apart."""
    tower.class_embedding.normal_(std=0.02)
    tower.positional_embedding.copy_(0.5 * torch.cat([torch.zeros(1, WIDTH), positions()]))
    noise, identity = WIDTH**-0.5, torch.eye(WIDTH)
    for block in tower.transformer.resblocks:
        assert isinstance(block, ResidualAttentionBlock)
        queries, keys = [], []
        for _ in range(block.attn.num_heads):
            u, s, v = torch.linalg.svd(0.7 * noise * torch.randn(WIDTH, WIDTH) + 0.7 * identity)
            s = s[: block.attn.head_dim].sqrt()
            queries.append((u[:, : block.attn.head_dim] * s).T)
            keys.append(v[: block.attn.head_dim] * s[:, None])
        u, s, v = torch.linalg.svd(0.4 * noise * torch.randn(WIDTH, WIDTH) - 0.4 * identity)
        block.attn.in_proj_weight.copy_(torch.cat([*queries, *keys, v * s.sqrt()[:, None]]))
        block.attn.out_proj.weight.copy_(u * s.sqrt())


def encode_some(tower: VisionTransformer, pixels: Tensor, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """Features (B, E) and patch tokens (B, patches, D) of images; ``kept``: (B, patches), which patches are seen."""
    x = tower.conv1(pixels).flatten(2).transpose(1, 2) + tower.positional_embedding[1:]  # (B, GRID², D)
    if kept is not None:
        x = x.gather(1, kept[..., None].expand(-1, -1, WIDTH))
    first = (tower.class_embedding + tower.positional_embedding[0]).expand(len(x), 1, -1)
    x = tower.transformer(tower.ln_pre(torch.cat([first, x], dim=1)).transpose(0, 1))
    return tower.ln_post(x[0]) @ tower.proj, x[1:].transpose(0, 1)


class Guide:
    """The trained ResNet: its embedding of a picture, and what it sees at each place."""

    def __init__(self, work: Path) -> None:
        model = CLIP.from_config(RESNET)
        weights = torch.load(work / "resnet.pt")["model"]
        model.load_state_dict({**model.state_dict(), **weights})
        assert isinstance(model.visual, ModifiedResNet)
        self.tower = model.visual.eval().requires_grad_(False).to(memory_format=torch.channels_last)
        self._maps: list[Tensor] = []
        for stage in (self.tower.layer2, self.tower.layer3):
            stage.register_forward_hook(lambda module, inputs, output: self._maps.append(output.float()))
        self._scale: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, E), and standardised maps (B, GRID², RESNET_CHANNELS)."""
        self._maps.clear()
        features = self.tower(pixels.contiguous(memory_format=torch.channels_last)).float()
        fine, coarse = self._maps
        maps = torch.cat([fine, F.interpolate(coarse, scale_factor=2)], dim=1).flatten(2).transpose(1, 2)
        if self._scale is None:
            self._scale = maps.mean((0, 1)), maps.std((0, 1)) + 1e-3
        return features, (maps - self._scale[0]) / self._scale[1]


def lightly_augmented(pixels: Tensor, may_flip: Tensor) -> Tensor:
    """(B, 4, H, W) uint8 premultiplied → (B, 3, H, W) floats: moved, tinted, on white or one colour."""
    rgba, count = pixels.float() / 255, len(pixels)
    angle, zoom = 0.12 * torch.randn(count), (0.4 * torch.rand(count) - 0.15).exp()
    cosine, sine, shift = angle.cos() * zoom, angle.sin() * zoom, (torch.rand(count, 2) - 0.5) / 4
    mirror = torch.where((torch.rand(count) < 0.5) & may_flip, -1.0, 1.0)
    matrix = torch.stack([cosine * mirror, -sine, shift[:, 0], sine * mirror, cosine, shift[:, 1]], dim=1)
    grid = F.affine_grid(matrix.view(-1, 2, 3), list(rgba.shape), align_corners=False)
    moved = F.grid_sample(rgba, grid, align_corners=False)
    colour, alpha = moved[:, :3], moved[:, 3:]
    tinted = torch.minimum(colour * (1 + 0.4 * (torch.rand(count, 3, 1, 1) - 0.5)), alpha)
    is_white = torch.rand(count, 1, 1, 1) < 0.6
    ground = torch.where(is_white, torch.ones(count, 3, 1, 1), torch.rand(count, 3, 1, 1))
    return (tinted + ground * (1 - alpha) - MEAN) / STD


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up, a plateau, and a linear descent over the second half."""
    return peak * min((step + 1) / 150, 1.0, (steps - step) / (0.5 * steps))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/pocket"))
    parser.add_argument("--steps", type=int, default=10000)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    pictures, guide = Pictures(arguments.work, Texts(arguments.work)), Guide(arguments.work)
    # Emoji and clip art alone: icons of abstract names taught the ResNet, and through it reach the ViT.
    drawn = np.concatenate([pictures.groups[kind] for kind in ("concept", "emoji", "clipart")])
    names = sorted({pictures.records[i]["label"] for i in drawn})
    bank = pictures.texts.targets[[pictures.texts.index[name] for name in names]]
    classes = torch.tensor([names.index(pictures.records[i]["label"]) for i in drawn])
    shares = torch.bincount(classes).float()[classes] ** -0.5

    model, checkpoint = CLIP.from_config(CONFIG), arguments.work / "image.pt"
    tower = model.visual
    assert isinstance(tower, VisionTransformer)
    initialise(tower)
    model.logit_scale.data.fill_(math.log(20))
    foretell = nn.Linear(WIDTH, RESNET_CHANNELS)
    matrices = [p for p in tower.parameters() if p.ndim > 1]
    others = [*(p for p in tower.parameters() if p.ndim <= 1), model.logit_scale, *foretell.parameters()]
    groups = [{"params": matrices, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    adamw, first = torch.optim.AdamW(groups, betas=(0.9, 0.98), fused=True), 0
    if checkpoint.exists():
        state = torch.load(checkpoint)
        model.load_state_dict({**model.state_dict(), **state["model"]})
        foretell.load_state_dict(state["foretell"])
        adamw.load_state_dict(state["optimizer"])
        first = state["step"]
    start, history = time.time(), []
    for step in range(first, arguments.steps):
        torch.manual_seed(step)
        chosen = torch.multinomial(shares, arguments.batch_size)
        rows = drawn[chosen.numpy()]
        pixels = lightly_augmented(pictures.pixels[rows], pictures.may_flip[rows])
        for group in adamw.param_groups:
            group["lr"] = learning_rate(step, arguments.steps, arguments.learning_rate)
        is_partial = step < 0.75 * arguments.steps
        kept = torch.rand(len(rows), GRID**2).argsort(1)[:, : GRID**2 // 2] if is_partial else None
        with torch.autocast("cpu", dtype=torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            wanted, maps = guide(pixels)
            features, tokens = encode_some(tower, pixels, kept)
            foretold = foretell(tokens)
        logits = model.logit_scale.exp() * F.normalize(features.float(), dim=-1) @ bank.T
        naming = F.cross_entropy(logits, classes[chosen], label_smoothing=0.1)
        following = 1 - F.cosine_similarity(features.float(), wanted).mean()
        loss = naming + 4 * following
        if step < DENSE_STEPS:
            at = maps if kept is None else maps.gather(1, kept[..., None].expand(-1, -1, RESNET_CHANNELS))
            loss = loss + 5 * F.smooth_l1_loss(foretold.float(), at)
        adamw.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(matrices, 1.0)
        adamw.step()
        hits = (logits.argmax(-1) == classes[chosen]).float().mean()
        history.append((naming.item(), following.item(), hits.item()))
        if step % 200 == 199 or step == arguments.steps - 1:
            weights = {**part_of(model.state_dict(), "visual."), "logit_scale": model.logit_scale.data}
            state = {"model": weights, "foretell": foretell.state_dict(), "optimizer": adamw.state_dict()}
            torch.save({**state, "step": step + 1}, checkpoint)
            means = dict(zip(("naming", "following", "top1"), np.mean(history, axis=0).round(4).tolist(), strict=True))
            line = {"step": step + 1, "seconds": round(time.time() - start), **means}
            line |= {"scale": round(model.logit_scale.exp().item(), 2), "val/top1": round(validate(model, pictures), 4)}
            print(json.dumps(line), flush=True)
            history = []


if __name__ == "__main__":
    main()
