"""What guidance costs and what it is worth, with pocket on this CPU.

python benchmarks/guidance.py [--rounds 5]

1. A gradient of the objective, by the number of cut-outs and the chunk: time, and memory that graphs hold.
2. What cutting out costs beside the model: the same without the model.
3. What survives a resize that should not: a chequered picture, by this package's cut-outs and by others.
4. Diffusion with a denoiser that is exact for a mixture of four emoji: how often the named one is drawn, by guidance.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import clip
from clip.guidance.cutouts import Cutouts
from clip.guidance.denoising import Denoiser, guided, karras_sigmas, sample_euler
from clip.guidance.objective import Objective
from clip.preprocess import Preprocess

EMOJI = Path(__file__).parents[1] / "examples" / "emoji"
NAMES = ("avocado", "doughnut", "fire_engine", "fox")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    costs(rounds)
    aliasing()
    diffusion()


def costs(rounds: int) -> None:
    model, preprocess = clip.load("pocket", device="cpu")
    picture = torch.rand(1, 3, 224, 224)
    print("a gradient for a picture of 224 × 224 pixels")
    for count, chunk_size in ((16, 64), (64, 16), (64, 64), (256, 16), (256, 64), (256, 256)):
        how = Cutouts(count=count)
        objective = Objective(model, preprocess, prompts=["a red heart"], cutouts=how, chunk_size=chunk_size)
        whole = seconds(lambda objective=objective: objective.value_and_gradient(picture), rounds)
        cutting = seconds(lambda how=how, size=chunk_size: cut(how, preprocess, picture, size), rounds)
        held = graph_bytes(lambda objective=objective: objective.value_and_gradient(picture))
        print(
            f"  {count:3} cut-outs, {chunk_size:3} at once: {whole * 1000:6.0f} ms, of which cutting "
            f"{cutting / whole:4.0%}; graphs hold {held / 2**20:5.0f} MiB"
        )


def cut(how: Cutouts, preprocess: Preprocess, picture: Tensor, chunk_size: int) -> None:
    leaf = picture.requires_grad_()
    views = how.draw(preprocess, 224, 224)
    for start in range(0, len(views), chunk_size):
        torch.autograd.grad(views[slice(start, start + chunk_size)](leaf).sum(), leaf)


def seconds(work: Callable[[], object], rounds: int) -> float:
    work()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def graph_bytes(work: Callable[[], object]) -> int:
    """The most bytes that are kept for a backward pass at once, each memory counted once."""
    held: dict[int, tuple[int, int]] = {}
    most = 0

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal most
            storage = tensor.untyped_storage()
            self.tensor, self.key = tensor, storage.data_ptr()
            users = held.get(self.key, (0, 0))[0]
            held[self.key] = (users + 1, storage.nbytes())
            most = max(most, sum(size for _, size in held.values()))

        def __del__(self) -> None:
            users, size = held.pop(self.key)
            if users > 1:
                held[self.key] = (users - 1, size)

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda kept: kept.tensor):
        work()
    return most


def aliasing() -> None:
    ticks = torch.arange(192)
    chequered = ((ticks[:, None] + ticks) % 2).float().expand(1, 3, 192, 192)
    box = 176  # pixels of the picture, for 64 of the cut-out
    shrunk = {
        "Cutouts": Cutouts(count=1, uncut=0, size=(box / 192,) * 2, beyond=0)
        .draw(Preprocess(size=64), 192, 192, torch.Generator().manual_seed(0))(chequered)
        .flatten(0, 1),
        "adaptive_avg_pool2d": F.adaptive_avg_pool2d(chequered[..., :box, :box], 64),
        "grid_sample": F.grid_sample(
            chequered,
            F.affine_grid(torch.tensor([[[box / 192, 0.0, 0.0], [0.0, box / 192, 0.0]]]), [1, 3, 64, 64], False),
            align_corners=False,
        ),
    }
    print("a chequered picture of single pixels, shrunk 2.75 times: standard deviation of what should be even grey")
    for name, result in shrunk.items():
        print(f"  {name:20} {result.std():.3f}")


def diffusion() -> None:
    model, preprocess = clip.load("pocket", device="cpu")
    means = torch.stack([emoji(name) for name in NAMES])
    denoiser = mixture(means, 0.2)
    sigmas = karras_sigmas(16, least=10, most=120)
    x = torch.randn(12, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * sigmas[0]
    print(
        "12 seeds for each of four names, 16 steps: the named emoji drawn; distance to the name; seeds that it fell in"
    )
    for label, options in (
        ("unguided", None),
        ("through, scale 30", {"scale": 30.0}),
        ("through, scale 100", {"scale": 100.0}),
        ("straight, scale 100", {"scale": 100.0, "gradient": "straight"}),
        ("straight, scale 1000", {"scale": 1000.0, "gradient": "straight"}),
    ):
        hits, values, better, start = [], [], 0, time.perf_counter()
        for i, name in enumerate(NAMES):
            prompt = f"a {name.replace('_', ' ')}"
            objective = Objective(model, preprocess, prompts=[prompt], cutouts=Cutouts.none())
            drawn = sample_euler(denoiser if options is None else guided(denoiser, objective, **options), x, sigmas)
            with torch.no_grad():
                value = objective(((drawn + 1) / 2).clamp(0, 1))
                before = objective(((sample_euler(denoiser, x, sigmas) + 1) / 2).clamp(0, 1))
            nearest = (drawn[:, None] - means).square().flatten(2).sum(dim=-1).argmin(dim=1)
            hits.append(int((nearest == i).sum()))
            values.append(value.mean().item())
            better += int((value < before).sum())
        print(
            f"  {label:20} {sum(hits):2} of 48 {hits}   {statistics.fmean(values):.3f}   {better:2} of 48   "
            f"{time.perf_counter() - start:.0f} s"
        )


def mixture(means: Tensor, deviation: float) -> Denoiser:
    """The exact denoiser of an even mixture of normal distributions: means (N, C, H, W), one deviation."""

    def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
        noise = sigma[:, None].square()
        distances = (x[:, None] - means).square().flatten(2).sum(dim=-1)
        weights = torch.softmax(-distances / (2 * (noise + deviation**2)), dim=1)  # (B, N)
        mean = torch.einsum("bn,nchw->bchw", weights, means)
        return mean + (deviation**2 / (deviation**2 + noise))[..., None, None] * (x - mean)

    return denoiser


def emoji(name: str) -> Tensor:
    """(3, 64, 64) in [-1, 1], on white."""
    picture = Image.open(EMOJI / f"{name}.png").convert("RGBA").resize((64, 64))
    white = Image.new("RGBA", picture.size, "white")
    white.alpha_composite(picture)
    return torch.from_numpy(np.array(white.convert("RGB"))).permute(2, 0, 1) / 127.5 - 1


if __name__ == "__main__":
    main()
