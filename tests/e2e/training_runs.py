"""What the tests of ``clip train`` share: a model of a moment, some pairs, and processes that begin with torch loaded.

Each process is forked from a server that has imported the package once, so that starting one costs milliseconds.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import socket
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import clip
from clip.model import CLIP, CLIPConfig

MODEL = CLIPConfig(
    embed_dim=16,
    image_resolution=16,
    vision_layers=1,
    vision_width=16,
    vision_patch_size=8,
    transformer_width=16,
    transformer_layers=1,
    context_length=16,
)

_PRELOADED = [
    "torch",
    "torch._dynamo",  # every optimizer imports it: half a second
    "torch.distributed.fsdp",
    "clip.cli.train",
    "clip.data.sources",
    "clip.training.allocator",
    "clip.training.loop",
    "clip.training.estimate",
]
_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(_PRELOADED)


def make_pairs(folder: Path, count: int = 26) -> Path:
    """A model and so many pictures of one colour each, with its number as a caption."""
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    clip.save(CLIP.from_config(MODEL), folder.parent / "start.safetensors")
    words = ("red", "green", "blue", "dark", "bright", "warm", "cold", "pale")
    for i in range(count):
        colour = np.random.default_rng(i).integers(0, 256, 3, dtype=np.uint8)
        Image.fromarray(np.broadcast_to(colour, (20, 20, 3)).copy()).save(folder / f"{i:03}.png")
        (folder / f"{i:03}.txt").write_text(f"{words[i % 8]} {words[i // 8]} {i}")
    return folder


def arguments(pairs: Path, run: Path, *more: object) -> list[str]:
    """A ``clip train`` command."""
    fixed: tuple[object, ...] = ("train", "--data", pairs, "--output", run, "--workers", 0, "--device", "cpu")
    return [str(word) for word in (*fixed, "--model", pairs.parent / "start.safetensors", *more)]


def start(words: list[str], log: Path, environment: dict[str, str] | None = None) -> BaseProcess:
    """A process that runs ``clip`` with these words; stdout and stderr go to ``log``."""
    process = _processes.Process(target=_run, args=(words, str(log), environment or {}))
    process.start()
    return process


def start_together(words: list[str], log: Path, count: int) -> list[BaseProcess]:
    """The same in so many processes that train together, as torchrun would start them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return [
        start(words, log.with_suffix(f".{rank}"), {**common, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        for rank in range(count)
    ]


def _run(words: list[str], log: str, environment: dict[str, str]) -> None:
    import torch

    from clip.cli.main import run

    os.environ.update(environment)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout = os.fdopen(1, "w", closefd=False)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    torch.set_num_threads(1)
    status = run(words)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # the interpreter's own end would take as long as the run


def losses(run: Path) -> dict[int, float]:
    """The loss of each step that was logged; fails on a step that is there twice."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    found = {line["step"]: line["loss"] for line in lines if "loss" in line}
    assert len(found) == sum("loss" in line for line in lines)
    return found
