"""everyclip beside OpenAI's clip and OpenCLIP: same machine, same PyTorch, same ViT-B/32 weights, same numbers out.

    other/bin/python -m pip install openai-clip open_clip_torch simplejpeg requests filelock safetensors regex ftfy
    python benchmarks/compare.py --reference-python other/bin/python

All three run in the environment of the reference interpreter, ours by way of PYTHONPATH (its libraries are the last six
in the line above), so that only the package differs. The weights are random, from a seed: OpenAI's and ours read one
compiled archive in the layout of OpenAI's published files, OpenCLIP a safetensors file of its own. Everything computes
in fp32 on the CPU. Before anything is timed, the three must give the same answer and the same embeddings.

Every round asks each package once, one after the other; a ratio is taken within a round, and the table gives medians,
and in brackets the spread of the ratios. "Start" is a fresh process, from its creation to the probabilities of three
labels for one picture in a file, by the clock and by the processor, and "memory" the peak of that process. The rates
are of one process that has warmed up; images are tensors, captions of "texts" have 7 to 21 tokens. Rates are taken by
the clock: use an idle machine.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

PACKAGES = {"openai": "OpenAI", "openclip": "OpenCLIP", "ours": "everyclip"}
LABELS = ["a diagram", "a dog", "a cat"]
WORDS = "a the of in on with two man woman dog cat sitting holding red blue white table street large photo".split(" ")  # noqa: SIM905
SOURCE = Path(__file__).parents[1] / "src"

# What each package is asked for, in the words of the worker: the kind and how many at a time.
RATES = {
    "images/s, batch 32": ("images", 32),
    "images/s, batch 1": ("images", 1),
    "texts/s, batch 64": ("texts", 64),
    "texts/s, batch 1": ("texts", 1),
    "captions tokenized/s": ("captions", 2000),
}
# Ours to OpenAI's: at most for what should be small, at least for rates.
TARGETS = {
    "start, s": 0.6,
    "start, processor s": 0.6,
    "images/s, batch 32": 1.0,
    "images/s, batch 1": 1.0,
    "texts/s, batch 64": 4.8,
    "captions tokenized/s": 5.0,
}


# In the environment of the reference ----------------------------------------------------------------------------------


def prepare(folder: Path) -> None:
    """Writes the weights in both formats and the picture."""
    import torch
    from PIL import Image, ImageDraw
    from safetensors.torch import save_file

    import clip

    torch.manual_seed(0)
    model = clip.model.CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12).eval().requires_grad_(False)
    clip.model.convert_weights(model)
    save_file({key: value.float() for key, value in model.state_dict().items()}, folder / "openclip.safetensors")
    del model.context_length, model.vocab_size
    for name, value in {"input_resolution": 224, "context_length": 77, "vocab_size": 49408}.items():
        model.register_buffer(name, torch.tensor(value))
    inputs = torch.zeros(1, 3, 224, 224), clip.tokenize(LABELS)
    methods = {"forward": inputs, "encode_image": inputs[0], "encode_text": inputs[1]}
    torch.jit.trace_module(model, methods, check_trace=False).save(str(folder / "openai.pt"))

    picture = Image.new("RGB", (640, 480), "darkseagreen")
    draw = ImageDraw.Draw(picture)
    for side in range(300, 20, -20):
        draw.ellipse((100 + side, 50, 150 + 2 * side, 50 + side), fill=(side % 255, 120, side // 2))
    picture.save(folder / "picture.jpg", quality=90)


class Package(NamedTuple):
    model: Any
    preprocess: Callable[[Any], Any]
    tokenize: Callable[[Sequence[str]], Any]
    version: str


def load(name: str, folder: Path) -> Package:
    """As the README of each package says."""
    if name == "openclip":
        import open_clip

        weights = str(folder / "openclip.safetensors")
        model, _, preprocess = open_clip.create_model_and_transforms("ViT-B-32-quickgelu", pretrained=weights)
        return Package(model.eval(), preprocess, open_clip.get_tokenizer("ViT-B-32"), open_clip.__version__)
    import clip

    assert (SOURCE in Path(clip.__file__).parents) == (name == "ours"), f"{name} is shadowed by {clip.__file__}"
    model, preprocess = clip.load(str(folder / "openai.pt"), device="cpu")
    return Package(model, preprocess, clip.tokenize, getattr(clip, "__version__", ""))


def answer_once(name: str, folder: Path) -> None:
    """Prints the probabilities of the labels for the picture, as soon as they are known."""
    package = load(name, folder)
    import torch
    from PIL import Image

    image = package.preprocess(Image.open(folder / "picture.jpg")).unsqueeze(0)
    text = package.tokenize(LABELS)
    with torch.no_grad():
        image_features, text_features, *_ = package.model.encode_image(image), package.model.encode_text(text)
        image_features /= image_features.norm(dim=-1, keepdim=True)
        text_features /= text_features.norm(dim=-1, keepdim=True)
        probabilities = (100 * image_features @ text_features.t()).softmax(dim=-1)[0].tolist()
    print(json.dumps(probabilities), flush=True)


def serve_measurements(name: str, folder: Path, threads: int) -> None:
    """For each line of stdin, a measurement and a number of seconds, prints a rate; first a few embeddings."""
    import torch
    import torch.nn.functional as F

    if threads:
        torch.set_num_threads(threads)
    package = load(name, folder)
    tasks = json.loads((folder / "tasks.json").read_text())
    images = torch.randn(32, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    ids = {count: package.tokenize(tasks["texts"][:count]) for count in (1, 64)}

    def run(kind: str, count: int) -> Any:
        if kind == "captions":
            return package.tokenize(tasks["captions"][:count])
        return package.model.encode_image(images[:count]) if kind == "images" else package.model.encode_text(ids[count])

    with torch.inference_mode():
        embeddings = torch.cat([F.normalize(run("images", 1)), F.normalize(run("texts", 64))[:4]]).tolist()
        for kind, count in RATES.values():
            run(kind, count)
        about = {"version": package.version, "torch": torch.__version__, "threads": torch.get_num_threads()}
        print(json.dumps({"embeddings": embeddings, **about}), flush=True)
        for line in sys.stdin:
            kind, count, seconds = json.loads(line)
            repeats, start = 0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds:
                run(kind, count)
                repeats += 1
            print(repeats * count / elapsed, flush=True)


# In our environment ---------------------------------------------------------------------------------------------------


def command(python: str, *arguments: str | Path) -> list[str]:
    return [python, str(Path(__file__).resolve()), *map(str, arguments)]


def environment(name: str, threads: int) -> dict[str, str]:
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables |= {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1"}
    if threads:
        variables["OMP_NUM_THREADS"] = str(threads)
    return {**variables, "PYTHONPATH": str(SOURCE)} if name == "ours" else variables


class Start(NamedTuple):
    seconds: float
    processor_seconds: float
    memory_bytes: int
    answer: list[float]


def measure_start(python: str, name: str, folder: Path, threads: int) -> Start:
    """From the creation of a process to its answer; processor time and peak of memory are those of its whole life."""
    start = time.perf_counter()
    arguments = command(python, "--answer", name, folder)
    process = subprocess.Popen(
        arguments,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment(name, threads),
        cwd=folder,
        text=True,
    )
    assert process.stdout
    answer = process.stdout.readline()
    seconds = time.perf_counter() - start
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{PACKAGES[name]} failed; run it by hand: {' '.join(arguments)}")
    memory = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Start(seconds, usage.ru_utime + usage.ru_stime, memory, json.loads(answer))


class Worker:
    """A process that has loaded one package and measures when asked."""

    def __init__(self, python: str, name: str, folder: Path, threads: int) -> None:
        self.arguments = command(python, "--serve", name, folder, "--threads", str(threads))
        self.process = subprocess.Popen(
            self.arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment(name, threads),
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

    def rate(self, kind: str, count: int, seconds: float) -> float:
        assert self.process.stdin
        print(json.dumps([kind, count, seconds]), file=self.process.stdin, flush=True)
        return float(self._read())

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def largest_difference(rows: Sequence[Any], others: Sequence[Any]) -> float:
    """Of two nested lists of numbers of the same shape."""
    pairs = zip(rows, others, strict=True)
    return max(largest_difference(a, b) if isinstance(a, list) else abs(a - b) for a, b in pairs)


def make_tasks() -> dict[str, list[str]]:
    from tokenizer import make_corpora  # the script beside this one

    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(5, 19))) for _ in range(64)]
    texts[0] = "a photo of a dog"
    texts[1] = " ".join(generator.choices(WORDS, k=19))
    return {"texts": texts, "captions": make_corpora(2000)["varied"]}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Rounds of everything: {"rounds": {measure: {package: [value of each round]}}, ...}."""
    python, threads = options.reference_python, options.threads
    subprocess.run(command(python, "--prepare", folder), check=True, env=environment("openai", 0), cwd=folder)
    (folder / "tasks.json").write_text(json.dumps(make_tasks()))

    names = ("start, s", "start, processor s", "memory, MB", *RATES)
    rounds: dict[str, dict[str, list[float]]] = {name: {package: [] for package in PACKAGES} for name in names}
    answers = {name: measure_start(python, name, folder, threads).answer for name in PACKAGES}  # warms the disk's cache
    workers = {name: Worker(python, name, folder, threads) for name in PACKAGES}
    try:
        for package in PACKAGES:
            off = largest_difference(answers[package], answers["openai"])
            apart = largest_difference(workers[package].about["embeddings"], workers["openai"].about["embeddings"])
            if off > 1e-3 or apart > 2e-6:
                raise SystemExit(f"{PACKAGES[package]} differs: answers by {off:.1e}, embeddings by {apart:.1e}")
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            order = list(PACKAGES)[:: 1 if number % 2 else -1]  # to and fro, against a drift of the machine
            for package in order:
                start = measure_start(python, package, folder, threads)
                values = (start.seconds, start.processor_seconds, start.memory_bytes / 1e6)
                for name, value in zip(names, values, strict=False):
                    rounds[name][package].append(value)
            for name, (kind, count) in RATES.items():
                for package in order:
                    rounds[name][package].append(workers[package].rate(kind, count, options.seconds))
    finally:
        for worker in workers.values():
            worker.close()
    about = {package: {k: v for k, v in w.about.items() if k != "embeddings"} for package, w in workers.items()}
    return {"machine": platform.machine(), "cores": os.cpu_count(), "packages": about, "rounds": rounds}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> str:
    values = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return f"**{statistics.median(values):.2f}** ({values[0]:.2f}–{values[-1]:.2f})"


def table(result: dict[str, Any]) -> str:
    """The medians and the ratios as Markdown."""
    lines = [f"| | {' | '.join(PACKAGES.values())} | everyclip / OpenAI | target | everyclip / OpenCLIP |"]
    lines.append("|---" + "|---:" * (len(PACKAGES) + 3) + "|")
    for name, values in result["rounds"].items():
        medians = [statistics.median(values[package]) for package in PACKAGES]
        cells = [f"{median:,.0f}" if median >= 100 else f"{median:.2f}" for median in medians]
        target = f"{'≥' if '/s' in name else '≤'} {TARGETS[name]}" if name in TARGETS else ""
        cells += [ratios(values["ours"], values["openai"]), target, ratios(values["ours"], values["openclip"])]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", help="interpreter of an environment with the packages named above")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=4, help="of each rate in each round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=0, help="of PyTorch (default: as it chooses)")
    parser.add_argument("--output", type=Path, help="file for all values of all rounds, as JSON")
    for role in ("--prepare", "--answer", "--serve"):  # how this script starts itself
        parser.add_argument(role, nargs=1 if role == "--prepare" else 2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        prepare(Path(options.prepare[0]))
    elif options.answer:
        answer_once(options.answer[0], Path(options.answer[1]))
    elif options.serve:
        serve_measurements(options.serve[0], Path(options.serve[1]), options.threads)
    elif not options.reference_python:
        parser.error("--reference-python is needed")
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(options, Path(folder))
        if options.output:
            options.output.write_text(json.dumps(result, indent=2) + "\n")
        versions = (f"{PACKAGES[name]} {about['version']}".strip() for name, about in result["packages"].items())
        about = result["packages"]["ours"]
        print(f"{', '.join(versions)}; torch {about['torch']}, {about['threads']} threads, {options.rounds} rounds\n")
        print(table(result))


if __name__ == "__main__":
    main()
