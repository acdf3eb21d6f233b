"""A training step of everyclip beside OpenCLIP's: same machine, same PyTorch, same weights, same batch, same gradients.

    other/bin/python -m pip install open_clip_torch simplejpeg requests filelock safetensors regex ftfy
    python benchmarks/training.py --reference-python other/bin/python --model small --batch-size 256

Both run in the environment of the reference interpreter, ours by way of PYTHONPATH, so that only the package differs.
Each configuration is a process with the same random weights; captions have 7 to 21 tokens, padded to the context as
both tokenizers pad them. A step is forward, contrastive loss, backward and AdamW (fused in all of them), for OpenCLIP
as in its own training script. Before anything is timed, the gradients in fp32 must be equal, and the table says how far
those of each precision are from them.

Every round asks each configuration once, one after the other, to and fro; a ratio is taken within a round, and the
table gives medians, and in brackets the spread of the ratios. Two ratios are given: by the clock, for an idle machine,
and by the processor time of the process, for one that others use (with --threads 1: waiting threads would count).

With --loader, a run of ours through ``clip.data.loading.batches`` follows, over JPEG files that it makes: how long a
step takes and how long it waits for its data, beside the step whose batch lies in memory.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import itertools
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

SOURCE = Path(__file__).parents[1] / "src"

# embed_dim; pixels, layers, width, patch size of images; context, vocabulary, width, heads, layers of texts
MODELS = {
    "small": (192, 64, 12, 192, 8, 32, 49408, 192, 3, 6),
    "ViT-B/32": (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12),
    "tiny": (32, 32, 2, 64, 8, 32, 49408, 64, 1, 2),  # to try this script
}
BATCH_SIZES = {"small": 256, "ViT-B/32": 32, "tiny": 8}
TARGETS = {"small": 2.5, "ViT-B/32": 1.8}


class Configuration(NamedTuple):
    package: str
    precision: str
    is_compiled: bool = False
    keeps_memory: bool = False

    @property
    def title(self) -> str:
        extra = [name for name, on in (("compiled", self.is_compiled), ("memory kept", self.keeps_memory)) if on]
        return ", ".join([f"{'OpenCLIP' if self.package == 'openclip' else 'everyclip'} {self.precision}", *extra])


REFERENCE = "openclip-bf16"
CONFIGURATIONS = {
    "openclip-fp32": Configuration("openclip", "fp32"),
    REFERENCE: Configuration("openclip", "bf16"),
    "ours-fp32": Configuration("ours", "fp32"),
    "ours-bf16": Configuration("ours", "bf16"),
    "ours-bf16-kept": Configuration("ours", "bf16", keeps_memory=True),
    "ours-bf16-compiled": Configuration("ours", "bf16", is_compiled=True),
    "ours-bf16-compiled-kept": Configuration("ours", "bf16", is_compiled=True, keeps_memory=True),
}
DEFAULT = ["openclip-fp32", REFERENCE, "ours-bf16", "ours-bf16-kept", "ours-bf16-compiled-kept"]


# In the environment of the reference ----------------------------------------------------------------------------------


def make_openclip(sizes: Sequence[int]) -> Any:
    from open_clip.model import CLIP

    embed_dim, pixels, layers, width, patch_size, context, vocabulary, text_width, heads, text_layers = sizes
    vision = {"image_size": pixels, "layers": layers, "width": width, "patch_size": patch_size}
    text = {"context_length": context, "vocab_size": vocabulary, "width": text_width, "heads": heads}
    return CLIP(embed_dim, vision, {**text, "layers": text_layers}, quick_gelu=True)


def prepare(folder: Path, model: str) -> None:
    """Writes the weights that all configurations begin with."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    weights = make_openclip(MODELS[model]).state_dict()
    save_file({key: value.contiguous() for key, value in weights.items()}, folder / "weights.safetensors")


def make_batch(sizes: Sequence[int], count: int, seed: int) -> tuple[Any, Any]:
    import torch

    generator, lengths = torch.Generator().manual_seed(seed), random.Random(seed)
    images = torch.randn(count, 3, sizes[1], sizes[1], generator=generator)
    texts = torch.zeros(count, sizes[5], dtype=torch.long)
    for row in texts:
        end = lengths.randint(7, 21) - 1
        row[0], row[end] = sizes[6] - 2, sizes[6] - 1
        row[1:end] = torch.randint(1, sizes[6] - 2, (end - 1,), generator=generator)
    return images, texts


class Trainer:
    """A model and its optimiser; ``step`` is what is measured."""

    def __init__(self, configuration: Configuration, folder: Path, model: str) -> None:
        import torch
        from safetensors.torch import load_file

        weights = load_file(folder / "weights.safetensors")
        self.is_ours = configuration.package == "ours"
        self.dtype = torch.bfloat16 if configuration.precision == "bf16" else None
        if self.is_ours:
            from clip.model import CLIP
            from clip.training.losses import clip_loss

            assert SOURCE in Path(sys.modules["clip"].__file__ or "").parents, "everyclip is shadowed"
            self.model = CLIP(*MODELS[model])
            self.clip_loss = clip_loss
        else:
            from open_clip.loss import ClipLoss

            self.model = make_openclip(MODELS[model])
            self.loss_of = ClipLoss()
        self.model.load_state_dict(weights)
        self.model.train()
        if configuration.is_compiled:
            self.model.visual.compile()
            self.model.transformer.compile(dynamic=True)
        parameters = list(self.model.parameters())
        groups = [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": 0.2},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.98), eps=1e-6, fused=True)

    def loss(self, images: Any, texts: Any) -> Any:
        import torch
        import torch.nn.functional as F

        with torch.autocast("cpu", self.dtype) if self.dtype else contextlib.nullcontext():
            if not self.is_ours:
                image_embeddings, text_embeddings, scale = self.model(images, texts)[:3]
                return self.loss_of(image_embeddings, text_embeddings, scale)
            image_features, text_features = self.model.encode_image(images), self.model.encode_text(texts)
        image_embeddings, text_embeddings = (F.normalize(x.float(), dim=-1) for x in (image_features, text_features))
        return self.clip_loss(image_embeddings, text_embeddings, self.model.logit_scale.exp())

    def step(self, images: Any, texts: Any) -> float:
        import torch

        self.optimizer.zero_grad()
        loss = self.loss(images, texts)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=4.6052)
        return float(loss)

    def gradients(self, images: Any, texts: Any) -> dict[str, Any]:
        self.optimizer.zero_grad()
        self.loss(images, texts).backward()
        return {name: p.grad.clone() for name, p in self.model.named_parameters()}


def serve_measurements(name: str, folder: Path, model: str, batch_size: int, threads: int) -> None:
    """First writes the gradients; then for each line of stdin, a number of seconds, prints the median step."""
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(threads or torch.get_num_threads())
    if CONFIGURATIONS[name].keeps_memory:
        from clip.training.allocator import keep_freed_memory

        assert keep_freed_memory()
    trainer = Trainer(CONFIGURATIONS[name], folder, model)
    save_file(trainer.gradients(*make_batch(MODELS[model], min(batch_size, 16), 0)), folder / f"{name}.gradients")
    batches = [make_batch(MODELS[model], batch_size, seed) for seed in (1, 2, 3)]
    losses = [trainer.step(*batch) for batch in batches]
    print(json.dumps({"losses": losses, "torch": torch.__version__, "threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        steps: list[tuple[float, float]] = []
        begin = time.perf_counter()
        for batch in itertools.cycle(batches):
            start, processor = time.perf_counter(), time.process_time()
            trainer.step(*batch)
            steps.append((time.perf_counter() - start, time.process_time() - processor))
            if len(steps) >= 3 and time.perf_counter() - begin > float(line):
                break
        seconds, processor = (statistics.median(values) for values in zip(*steps, strict=True))
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        release_memory(trainer)
        print(json.dumps([seconds, processor, memory]), flush=True)


def release_memory(trainer: Trainer) -> None:
    """What waits shall not hold the memory that the others need."""
    trainer.optimizer.zero_grad()
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):  # another C library than glibc
            ctypes.CDLL(None).malloc_trim(0)


def run_loader(folder: Path, model: str, batch_size: int, threads: int, steps: int) -> None:
    """Prints the seconds of each step and of its wait, through the real loader and from memory."""
    import numpy as np
    import torch
    from PIL import Image

    from clip.data.loading import batches
    from clip.data.sources import open_source
    from clip.preprocess import Preprocess

    torch.set_num_threads(threads or torch.get_num_threads())
    generator, words = (
        np.random.default_rng(0),
        ["a", "the", "of", "two", "man", "dog", "cat", "red", "table", "street"],
    )
    pictures = folder / "pictures"
    pictures.mkdir()
    for index in range(4 * batch_size):
        coarse = generator.integers(0, 255, (24, 32, 3), dtype=np.uint8)
        picture = Image.fromarray(coarse).resize((640, 480), Image.Resampling.BICUBIC)
        picture.save(pictures / f"{index:06}.jpg", quality=90)
        count = int(generator.integers(5, 20))
        (pictures / f"{index:06}.txt").write_text(" ".join(generator.choice(words, count)))
    trainer = Trainer(CONFIGURATIONS["ours-bf16"], folder, model)
    sizes = MODELS[model]
    waits, taken = [], []
    stream = batches(
        open_source(str(pictures)),
        transform=Preprocess(size=sizes[1]),
        context_length=sizes[5],
        global_batch_size=batch_size,
        seed=0,
        steps=steps + 2,
    )
    for batch in stream:
        start = time.perf_counter()
        trainer.step(batch.images, batch.texts)
        taken.append(time.perf_counter() - start)
        waits.append(batch.wait_seconds)
    kept, alone = (batch.images, batch.texts), []
    for _ in range(steps):
        start = time.perf_counter()
        trainer.step(*kept)
        alone.append(time.perf_counter() - start)
    print(json.dumps({"wait": waits[2:], "step": taken[2:], "alone": alone}), flush=True)


# In our environment ---------------------------------------------------------------------------------------------------


def environment(name: str, threads: int) -> dict[str, str]:
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables["PYTHONWARNINGS"] = "ignore"
    if threads:
        variables["OMP_NUM_THREADS"] = str(threads)
    return {**variables, "PYTHONPATH": str(SOURCE)} if name.startswith("ours") else variables


def command(python: str, role: str, *arguments: object) -> list[str]:
    return [python, str(Path(__file__).resolve()), role, *map(str, arguments)]


class Worker:
    """A process with one configuration, which measures when asked."""

    def __init__(self, name: str, folder: Path, options: argparse.Namespace) -> None:
        arguments = (name, folder, options.model, options.batch_size, options.threads)
        self.arguments = command(options.reference_python, "--serve", *arguments)
        self.process = subprocess.Popen(
            self.arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(name, options.threads),
            cwd=folder,
            text=True,
        )
        self.about: dict[str, Any] = self._read()

    def _read(self) -> Any:
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker has ended; run it by hand: {' '.join(self.arguments)}")
        return json.loads(line)

    def measure(self, seconds: float) -> Any:
        assert self.process.stdin
        print(seconds, file=self.process.stdin, flush=True)
        return self._read()

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def gradient_error(folder: Path, name: str, other: str) -> float:
    """The distance of all gradients to those of the other configuration, relative to their length."""
    from safetensors.torch import load_file

    found, expected = load_file(folder / f"{name}.gradients"), load_file(folder / f"{other}.gradients")
    assert found.keys() == expected.keys()
    distance = sum(float((found[key] - expected[key]).square().sum()) for key in expected)
    return (distance / sum(float(value.square().sum()) for value in expected.values())) ** 0.5


@contextlib.contextmanager
def workers(names: Sequence[str], folder: Path, options: argparse.Namespace) -> Iterator[dict[str, Worker]]:
    running: dict[str, Worker] = {}
    try:
        for name in names:
            print(f"starting {name}", file=sys.stderr)
            running[name] = Worker(name, folder, options)
        yield running
    finally:
        for worker in running.values():
            worker.close()


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    names = list(dict.fromkeys([REFERENCE, *options.configurations]))
    environment_ = environment("openclip", options.threads)
    subprocess.run(
        command(options.reference_python, "--prepare", folder, options.model), check=True, env=environment_, cwd=folder
    )
    # The reference of the gradients is OpenCLIP's fp32; a process of its own where it is not measured.
    with workers([name for name in ("openclip-fp32", "ours-fp32") if name not in names], folder, options):
        pass
    rounds: dict[str, list[Any]] = {name: [] for name in names}
    with workers(names, folder, options) as running:
        errors = {name: gradient_error(folder, name, "openclip-fp32") for name in [*names, "ours-fp32"]}
        if errors["ours-fp32"] > 1e-4:
            raise SystemExit(f"gradients in fp32 differ by {errors['ours-fp32']:.1e}")
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            for name in names[:: 1 if number % 2 else -1]:  # to and fro, against a drift of the machine
                rounds[name].append(running[name].measure(options.seconds))
        about = running[REFERENCE].about
    return {
        "model": options.model,
        "batch_size": options.batch_size,
        "torch": about["torch"],
        "threads": about["threads"],
        "gradient_errors": errors,
        "rounds": rounds,
    }


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> str:
    values = sorted(b / a for a, b in zip(ours, theirs, strict=True))
    return f"**{statistics.median(values):.2f}** ({values[0]:.2f}–{values[-1]:.2f})"


def table(result: dict[str, Any]) -> str:
    """The medians and the ratios as Markdown."""
    lines = [
        "| | samples/s | × OpenCLIP bf16, clock | × OpenCLIP bf16, processor | memory, MB | gradients from fp32 |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    reference = list(zip(*result["rounds"][REFERENCE], strict=True))
    for name, values in result["rounds"].items():
        seconds, processor, memory = zip(*values, strict=True)
        rate = result["batch_size"] / statistics.median(seconds)
        cells = [f"{rate:.1f}", ratio(seconds, reference[0]), ratio(processor, reference[1])]
        cells += [f"{max(memory) / 1e6:,.0f}", f"{result['gradient_errors'][name]:.1e}"]
        lines.append(f"| {CONFIGURATIONS[name].title} | {' | '.join(cells)} |")
    return "\n".join(lines)


def loader_report(options: argparse.Namespace, folder: Path) -> str:
    arguments = (folder, options.model, options.batch_size, options.threads, options.loader)
    call = command(options.reference_python, "--load", *arguments)
    environment_ = environment("ours", options.threads)
    done = subprocess.run(call, check=True, env=environment_, cwd=folder, stdout=subprocess.PIPE, text=True)
    result = json.loads(done.stdout)
    step, wait, alone = (statistics.median(result[key]) for key in ("step", "wait", "alone"))
    return (
        f"Through the loader (JPEG files of 640 × 480): a step of {step:.3f} s waits {wait:.4f} s for its batch "
        f"({wait / (step + wait):.1%}); with the batch in memory and nothing decoded it takes {alone:.3f} s."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", help="interpreter of an environment with the packages named above")
    parser.add_argument("--model", choices=MODELS, default="small")
    parser.add_argument("--batch-size", type=int, help="default: 256 for small, 32 for ViT-B/32")
    parser.add_argument("--configurations", nargs="+", choices=CONFIGURATIONS, default=DEFAULT, metavar="NAME")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=5, help="of each in each round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch (default: as it chooses)")
    parser.add_argument("--loader", type=int, default=0, metavar="STEPS", help="so many steps through the real loader")
    parser.add_argument("--output", type=Path, help="file for all values of all rounds, as JSON")
    for role, count in (("--prepare", 2), ("--serve", 5), ("--load", 5)):  # how this script starts itself
        parser.add_argument(role, nargs=count, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        prepare(Path(options.prepare[0]), options.prepare[1])
    elif options.serve:
        name, folder, model, batch_size, threads = options.serve
        serve_measurements(name, Path(folder), model, int(batch_size), int(threads))
    elif options.load:
        folder, model, batch_size, threads, steps = options.load
        run_loader(Path(folder), model, int(batch_size), int(threads), int(steps))
    elif not options.reference_python:
        parser.error("--reference-python is needed")
    else:
        options.batch_size = options.batch_size or BATCH_SIZES[options.model]
        with tempfile.TemporaryDirectory() as folder:
            result = measure(options, Path(folder))
            loader = loader_report(options, Path(folder)) if options.loader else ""
        if options.output:
            options.output.write_text(json.dumps(result, indent=2) + "\n")
        print(f"{options.model}, batch {options.batch_size}; torch {result['torch']}, {result['threads']} threads\n")
        print(table(result))
        if options.model in TARGETS:
            print(f"\nTarget: {TARGETS[options.model]} × OpenCLIP bf16.")
        if loader:
            print(f"\n{loader}")


if __name__ == "__main__":
    main()
