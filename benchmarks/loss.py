"""What batches cost: memory and time of the losses alone, and memory of a whole training step.

    python benchmarks/loss.py                      # losses, N = 1,024 … 32,768
    python benchmarks/loss.py --step               # a small model, batches of 256 … 32,768

Every measurement is a process of its own. "Memory" is what its peak (resident set) grew by from when the inputs were
there, so it counts what the loss or the step needs and not what torch and the data need. Time is the processor's, on
one thread, so that programs beside it disturb little; ratios are taken within a round and the table gives medians and,
in brackets, their spread.

"Whole" is the loss as OpenAI and OpenCLIP write it, with two matrices of logits; the sigmoid loss as OpenCLIP writes
it. Both sides must give the same loss before anything is printed. "bf16" has ``gradient_dtype=torch.bfloat16``.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from clip.features import normalized
from clip.model import CLIP, CLIPConfig
from clip.training import gradient_cache
from clip.training.losses import clip_loss, sigmoid_loss

EMBED_DIM = 512
SIZES = [1024, 2048, 4096, 8192, 16384, 32768]
MOST_WHOLE = 16384  # whole matrices of 32,768 take 17 GB
KINDS = {
    "softmax": ["softmax whole", "softmax tiled", "softmax tiled bf16"],
    "sigmoid": ["sigmoid whole", "sigmoid tiled", "sigmoid tiled bf16"],
}
MICRO_BATCH = 256
SMALL = CLIPConfig(
    embed_dim=128,
    image_resolution=32,
    vision_layers=4,
    vision_width=128,
    vision_patch_size=8,
    transformer_width=128,
    transformer_layers=4,
    context_length=16,
    vocab_size=1000,
)
STEPS = {"cached": [256, 1024, 4096, 16384, 32768], "direct": [256, 512, 1024, 2048]}


# In a process of its own ----------------------------------------------------------------------------------------------


def peak_bytes() -> int:
    """Of the resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def measure_loss(kind: str, count: int) -> dict[str, float]:
    """One loss with its gradients, as often as half a second allows; a smaller one first, to load what torch loads."""
    name, form, *_ = kind.split(" ")
    dtype = torch.bfloat16 if kind.endswith("bf16") else torch.float32

    def inputs(count: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(0)
        texts = F.normalize(torch.randn(count, EMBED_DIM, generator=generator), dim=-1)
        noise = 0.3 * torch.randn(count, EMBED_DIM, generator=generator)
        scalars = [torch.tensor(100.0)] if name == "softmax" else [torch.tensor(10.0), torch.tensor(-10.0)]
        return [x.requires_grad_() for x in (F.normalize(texts + noise, dim=-1), texts, *scalars)]

    def run(tensors: list[Tensor]) -> float:
        for tensor in tensors:
            tensor.grad = None
        if form == "whole":
            value = (whole_softmax if name == "softmax" else whole_sigmoid)(*tensors)
        else:
            value = (clip_loss if name == "softmax" else sigmoid_loss)(*tensors, gradient_dtype=dtype)
        value.backward()
        return value.item()

    run(inputs(128))
    tensors = inputs(count)
    before = peak_bytes()
    seconds: list[float] = []
    while not seconds or sum(seconds) < 0.5:
        start = time.process_time()
        value = run(tensors)
        seconds.append(time.process_time() - start)
    return {"seconds": statistics.median(seconds), "bytes": peak_bytes() - before, "value": value}


def whole_softmax(images: Tensor, texts: Tensor, scale: Tensor) -> Tensor:
    labels = torch.arange(len(images))
    logits_per_image = scale * images @ texts.T
    logits_per_text = scale * texts @ images.T
    return (F.cross_entropy(logits_per_image, labels) + F.cross_entropy(logits_per_text, labels)) / 2


def whole_sigmoid(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    signs = 2 * torch.eye(len(images)) - torch.ones(len(images), len(images))
    return -F.logsigmoid(signs * (scale * images @ texts.T + bias)).sum() / len(images)


def measure_step(kind: str, count: int) -> dict[str, float]:
    """Forward and backward of a small model over one batch."""
    torch.manual_seed(0)
    model = CLIP.from_config(SMALL).train()
    images = torch.randn(count, 3, SMALL.image_resolution, SMALL.image_resolution)
    texts = torch.randint(1, SMALL.vocab_size - 1, (count, SMALL.context_length))
    texts[:, -1] = SMALL.vocab_size - 1  # the end token is the largest

    def encode(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        return normalized(model.encode_image(images)), normalized(model.encode_text(texts))

    def loss(images: Tensor, texts: Tensor) -> Tensor:
        return clip_loss(images, texts, model.logit_scale.exp())

    def run(count: int) -> float:
        size = MICRO_BATCH if kind == "cached" else count
        value = gradient_cache.backward(encode, images[:count], texts[:count], loss, micro_batch_size=size, model=model)
        return value.item()

    run(8)
    model.zero_grad(set_to_none=False)
    before, start = peak_bytes(), time.process_time()
    value = run(count)
    return {"seconds": time.process_time() - start, "bytes": peak_bytes() - before, "value": value}


# In front -------------------------------------------------------------------------------------------------------------


def measured(function: Callable[[str, int], dict[str, float]], kind: str, count: int) -> dict[str, float]:
    """What ``function`` gives in a process of its own."""
    arguments = [sys.executable, str(Path(__file__).resolve()), "--measure", function.__name__, kind, str(count)]
    output = subprocess.run(arguments, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, float] = json.loads(output)
    return result


def spread(values: list[float]) -> str:
    return f"**{statistics.median(values):.2f}** ({min(values):.2f}–{max(values):.2f})"


def compare_losses(sizes: list[int], rounds: int) -> None:
    print("| N | loss | whole: MB | s | tiled: MB | s | memory, tiled / whole | time, tiled / whole | bf16 / whole |")
    print("|---:|---|---:|---:|---:|---:|---:|---:|---:|")
    for count in sizes:
        for name, kinds in KINDS.items():
            wanted = [kind for kind in kinds if count <= MOST_WHOLE or "whole" not in kind]
            found = [{kind: measured(measure_loss, kind, count) for kind in wanted} for _ in range(rounds)]
            whole, tiled, half = kinds
            cells = [f"{count:,}", name]
            for kind in (whole, tiled):
                if kind in wanted:
                    size = statistics.median(each[kind]["bytes"] for each in found) / 1e6
                    seconds = statistics.median(each[kind]["seconds"] for each in found)
                    cells += [f"{size:,.0f}", f"{seconds:.2f}"]
                else:
                    cells += ["", ""]
            if whole in wanted:
                for each in found:
                    values = [each[kind]["value"] for kind in wanted]
                    assert max(values) - min(values) <= 1e-5 * max(values) + 1e-6, values
                cells.append(spread([each[tiled]["bytes"] / each[whole]["bytes"] for each in found]))
                cells += [
                    spread([each[k]["seconds"] / each[whole]["seconds"] for each in found]) for k in (tiled, half)
                ]
            print("| " + " | ".join(cells + [""] * (9 - len(cells))) + " |", flush=True)


def show_steps(sizes: dict[str, list[int]]) -> None:
    print("| batch | way | memory, MB | samples a second | loss |\n|---:|---|---:|---:|---:|")
    for kind, counts in sizes.items():
        for count in counts:
            found = measured(measure_step, kind, count)
            rate = count / found["seconds"]
            name = f"micro-batches of {MICRO_BATCH}" if kind == "cached" else "all at once"
            print(
                f"| {count:,} | {name} | {found['bytes'] / 1e6:,.0f} | {rate:,.0f} | {found['value']:.4f} |", flush=True
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="batch sizes for the losses alone")
    parser.add_argument("--rounds", type=int, default=3, help="measurements of each")
    parser.add_argument("--step", action="store_true", help="memory of whole training steps instead")
    parser.add_argument("--most", type=int, default=32768, help="largest batch of a whole step")
    parser.add_argument("--measure", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.measure:
        function, kind, count = arguments.measure
        print(json.dumps({"measure_loss": measure_loss, "measure_step": measure_step}[function](kind, int(count))))
        return
    print(f"torch {torch.__version__}, {platform.machine()}, one thread\n")
    if arguments.step:
        show_steps({kind: [n for n in counts if n <= arguments.most] for kind, counts in STEPS.items()})
    else:
        compare_losses(arguments.sizes, arguments.rounds)


if __name__ == "__main__":
    main()
