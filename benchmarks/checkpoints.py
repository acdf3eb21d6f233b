"""What loading a checkpoint costs, step by step, on one thread: a random ViT-B/32, stored as OpenAI does.

    python benchmarks/checkpoints.py

Prints medians of seven runs in milliseconds, with the file in the page cache.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import clip
from clip.checkpoints import files
from clip.checkpoints.archives import read_archive
from clip.model import ARCHITECTURES, CLIP, convert_weights


def milliseconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Median of seven runs, and what the last gave."""
    times = []
    result = None
    for _ in range(7):
        start = time.perf_counter()
        result = function()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times), result


def main() -> None:
    torch.set_num_threads(1)
    model = CLIP.from_config(ARCHITECTURES["ViT-B/32"])
    convert_weights(model)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ViT-B-32.pt"
        clip.save(model, path, to="openai")
        print(f"{path.stat().st_size / 1e6:.0f} MB, torch {torch.__version__}")
        read, archive = milliseconds(lambda: read_archive(path))
        weights = {k: v for k, v in archive.content.items() if v.is_floating_point()}
        check, _ = milliseconds(lambda: files._refuse_bad_numbers(path, weights))
        convert, _ = milliseconds(lambda: {key: value.float() for key, value in weights.items()})
        checkpoint = files.read_checkpoint(path)
        build, _ = milliseconds(checkpoint.build)
        load, _ = milliseconds(lambda: clip.load(path, device="cpu"))
        for name, value in {
            "structure and mapped tensors": read,
            "check for numbers that are not finite": check,
            "conversion to fp32": convert,
            "model around the tensors": build,
            "clip.load, all together": load,
        }.items():
            print(f"{value:7.0f} ms  {name}")


if __name__ == "__main__":
    main()
