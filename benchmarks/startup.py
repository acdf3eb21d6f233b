"""From the start of a process to the first answer: `clip classify` beside OpenCLIP, with PyTorch and without.

    python benchmarks/startup.py --reference-python reference/bin/python

Everyone says which of two labels fits one picture, with the same random ViT-B/32, in a process of their own: OpenCLIP
as its README says, in fp32; `clip classify` on a compiled archive in the layout of OpenAI's published files; and `clip
classify` on the folder that `clip export --to openvino` makes of it, in which no torch is imported. Those with PyTorch
run in the environment of the reference interpreter, ours by way of PYTHONPATH, so that PyTorch is the same (besides the
libraries that compare.py names it needs click and rich); the exported model in the environment of this interpreter,
which needs the extras openvino and export.

Every round starts each once, one after the other, to and fro; a ratio is taken within a round, and the table gives
medians and, in brackets, the spread of the ratios. The files are in the disk's cache, and OpenVINO's compiled graphs in
ours, from a start that does not count; "first start" is an exported model whose graphs have to be compiled. Seconds are
from the creation of the process to its answer; processor seconds and peak of memory are those of its whole life.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from compare import command, environment, ratios  # the script beside this one

LABELS = ("a diagram", "a dog")
STARTERS = {
    "openclip": "OpenCLIP",
    "torch": "clip classify, torch",
    "openvino": "clip classify, OpenVINO",
    "openvino, first": "the same, first start",
}
TARGETS = {"torch": 0.55, "openvino": 0.2}
"""Of OpenCLIP's seconds, at most."""


class Start(NamedTuple):
    seconds: float
    processor_seconds: float
    memory_bytes: int
    answer: list[float]
    """Probabilities in the order of LABELS."""


def start(name: str, folder: Path, reference_python: str) -> Start:
    """One process to its first answer."""
    arguments, variables = how(name, folder, reference_python)
    begin = time.perf_counter()
    process = subprocess.Popen(
        arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=variables, cwd=folder, text=True
    )
    assert process.stdout
    line = process.stdout.readline()
    seconds = time.perf_counter() - begin
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{STARTERS[name]} failed; run it by hand: {' '.join(arguments)}")
    answer = json.loads(line)
    if name != "openclip":
        scores = {score["label"]: score["probability"] for score in answer["scores"]}
        answer = [scores[label] for label in LABELS]
    memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Start(seconds, usage.ru_utime + usage.ru_stime, memory, answer)


def how(name: str, folder: Path, reference_python: str) -> tuple[list[str], dict[str, str]]:
    """The command and the environment of a process."""
    if name == "openclip":
        return [reference_python, __file__, "--answer", str(folder)], environment(name, 0)
    variables = environment("ours", 0) | {"HOME": str(folder / ("first" if name == "openvino, first" else "home"))}
    python, model = (reference_python, "openai.pt") if name == "torch" else (sys.executable, "openvino")
    labels = ["--labels", ",".join(LABELS), "--template", "{}"]
    return [python, "-m", "clip", "classify", "picture.jpg", *labels, "--model", model, "--json"], variables


def answer_with_openclip(folder: Path) -> None:
    """As its README says."""
    import open_clip
    import torch
    from PIL import Image

    weights = str(folder / "openclip.safetensors")
    model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32-quickgelu", pretrained=weights)
    model.eval()
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    image = preprocess(Image.open(folder / "picture.jpg")).unsqueeze(0)
    text = tokenizer(list(LABELS))
    with torch.no_grad():
        image_features, text_features = model.encode_image(image), model.encode_text(text)
        image_features /= image_features.norm(dim=-1, keepdim=True)
        text_features /= text_features.norm(dim=-1, keepdim=True)
        logits = model.logit_scale.exp() * image_features @ text_features.T
    print(json.dumps(logits.softmax(dim=-1)[0].tolist()), flush=True)


def prepare(folder: Path, reference_python: str) -> None:
    """The weights in three formats, and the picture."""
    subprocess.run(command(reference_python, "--prepare", folder), check=True, env=environment("openai", 0), cwd=folder)
    export = [sys.executable, "-m", "clip", "export", "openai.pt", "openvino", "--to", "openvino", "-q"]
    subprocess.run(export, check=True, env=environment("ours", 0), cwd=folder, stdout=subprocess.DEVNULL)
    for home in ("home", "first"):
        (folder / home).mkdir()


def measure(rounds: int, folder: Path, reference_python: str) -> dict[str, list[Start]]:
    prepare(folder, reference_python)
    answers = {name: start(name, folder, reference_python).answer for name in STARTERS}  # warms the disk's cache
    for name, answer in answers.items():
        off = max(abs(a - b) for a, b in zip(answer, answers["openclip"], strict=True))
        if off > 0.02:  # bf16 changes the logits of random weights by a few hundredths
            raise SystemExit(f"{STARTERS[name]} answers {answer}, OpenCLIP {answers['openclip']}")
    starts: dict[str, list[Start]] = {name: [] for name in STARTERS}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        for name in list(STARTERS)[:: 1 if number % 2 else -1]:
            for blob in (folder / "first").rglob("*.blob"):
                blob.unlink()
            starts[name].append(start(name, folder, reference_python))
    return starts


def table(starts: dict[str, list[Start]]) -> str:
    lines = [
        "| | s | × OpenCLIP | target | processor s | × OpenCLIP | memory, MB | × OpenCLIP |",
        "|---" + "|---:" * 7 + "|",
    ]
    for name, values in starts.items():
        cells = []
        for index in range(3):
            column, reference = [value[index] for value in values], [value[index] for value in starts["openclip"]]
            median = statistics.median(column)
            cells.append(f"{median / 1e6:,.0f}" if index == 2 else f"{median:.2f}")
            cells.append(ratios(column, reference) if name != "openclip" else "1")
        target = f"≤ {TARGETS[name]}" if name in TARGETS else ""
        lines.append(f"| {STARTERS[name]} | {' | '.join([*cells[:2], target, *cells[2:]])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", help="interpreter of an environment with OpenAI's clip and OpenCLIP")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--output", type=Path, help="file for all values of all rounds, as JSON")
    parser.add_argument("--answer", type=Path, help=argparse.SUPPRESS)  # how this script starts itself
    options = parser.parse_args()
    if options.answer:
        answer_with_openclip(options.answer)
    elif not options.reference_python:
        parser.error("--reference-python is needed")
    else:
        with tempfile.TemporaryDirectory() as folder:
            starts = measure(options.rounds, Path(folder), options.reference_python)
        if options.output:
            rows = {name: [value._asdict() for value in values] for name, values in starts.items()}
            options.output.write_text(json.dumps(rows, indent=2) + "\n")
        print(f"2 labels, 1 picture, ViT-B/32 with random weights; {os.cpu_count()} cores, {options.rounds} rounds\n")
        print(table(starts))


if __name__ == "__main__":
    main()
