"""What other engines change: every architecture exported, in each form, with its certificate.

    python benchmarks/exports.py                                  # all nine of OpenAI's, one after the other
    python benchmarks/exports.py --models ViT-B/32 RN50 --forms openvino-int8

Weights are random, from a seed, where a name is an architecture, and real where it is a checkpoint or ``pocket``.
Random ones show that the graphs are right and how long they take; what 8 bits cost a trained model shows on a trained
one. Each export runs in a process of its own, whose peak of memory is the last column; "seconds" are of the processor.
Use an idle machine: latencies are medians by turns, but the two forms use threads differently.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from clip.config import ARCHITECTURES
from clip.errors import ClipError
from clip.exports.export import export

OPENAI = [name for name, config in ARCHITECTURES.items() if config.activation == "quick_gelu"]
FORMS: dict[str, dict[str, Any]] = {
    "openvino": {"to": "openvino"},
    "onnx": {"to": "onnx"},
    "openvino-int8": {"to": "openvino", "int8": True, "min_cosine": 0.0},
}
COLUMNS = (
    *("model", "form", "largest difference", "cosine (centred), images", "cosine (centred), texts", "same labels"),
    *("same finds", "MB", "image ×, batch 1", "batch 8", "text ×, batch 1", "batch 8", "seconds", "peak MB"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=OPENAI, metavar="NAME")
    parser.add_argument("--forms", nargs="+", default=list(FORMS), choices=FORMS)
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        _work(*arguments.worker)
        return
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    print("| " + " | ".join(COLUMNS) + " |")
    print("| --- | --- |" + " ---: |" * (len(COLUMNS) - 2))
    for name in arguments.models:
        for form in arguments.forms:
            done = subprocess.run(
                [sys.executable, __file__, "--worker", name, form], stdout=subprocess.PIPE, text=True, check=False
            )
            if done.returncode:
                print(f"| {name} | {form} | failed with status {done.returncode} |", flush=True)
            else:
                print(_row(name, form, json.loads(done.stdout.splitlines()[-1])), flush=True)


def _work(name: str, form: str) -> None:
    """One export in this process; prints its certificate."""
    with tempfile.TemporaryDirectory() as folder:
        source = _checkpoint(name, Path(folder))
        before = sum(os.times()[:2])
        try:
            certificate = export(source, Path(folder) / "exported", **FORMS[form])
        except ClipError as error:
            sys.exit(f"{name}, {form}: {error}")
        seconds = sum(os.times()[:2]) - before
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({**certificate.to_dict(), "seconds": seconds, "peak_bytes": peak}))


def _checkpoint(name: str, folder: Path) -> str:
    """The path of random weights for an architecture, in half precision as OpenAI's are; other names as they are."""
    if name not in ARCHITECTURES:
        return name
    path = folder / "random.safetensors"
    # In a process of its own, so that making the weights does not count.
    code = f"""
import torch, clip
from clip.config import ARCHITECTURES
torch.manual_seed(0)
clip.save(clip.model.CLIP.from_config(ARCHITECTURES[{name!r}]).eval().half(), {str(path)!r})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    return str(path)


def _row(name: str, form: str, found: dict[str, Any]) -> str:
    fidelity = found["fidelity"]

    def cosine(what: str) -> str:
        centred = fidelity[f"{what}_centred_cosine"]
        return f"{fidelity[f'{what}_cosine']:.6f}" + ("" if centred is None else f" ({centred:.5f})")

    cells = [name, form, f"{found['relative_difference']:.1e}", cosine("image"), cosine("text")]
    cells += [f"{found['same_labels']} / {fidelity['images']}", f"{found['same_finds']} / {found['captions']}"]
    cells += [f"{found['exported_bytes'] / 1e6:,.0f}"]
    cells += [f"{latency['speed_up']:.1f}" for latency in found["latencies"]]
    cells += [f"{found['seconds']:.0f}", f"{found['peak_bytes'] / 1e6:,.0f}"]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
