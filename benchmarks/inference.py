"""everyclip beside OpenCLIP in fp32, for pictures and texts on a CPU: how much faster, how exact, and how large.

    reference/bin/python -m pip install open_clip_torch
    python benchmarks/inference.py --reference-python reference/bin/python

OpenCLIP in fp32 is 1.0, in its own environment; ours runs under the interpreter of this script, or with --same-python
under the reference's, which then needs our libraries (README.md beside this file). Both read one file: random weights
in OpenAI's layout and precision, from a seed. Each form of a model is a process of its own, and all take turns on the
same threads: a ratio is taken within a round, and the table gives the median, and in brackets the least and largest.

Cosines are to OpenCLIP's own fp32 embeddings of 32 pictures or 64 captions; centred ones after the mean of the
reference is taken off both, since embeddings of random weights are nearly the same for all. GFLOP/s count what the
reference computes (for captions up to their end token); "of peak" is the share of the fastest matrix product of
that precision on these threads, measured in the same run, which a form that skips work can seem to pass.

"Files" are 640×480 JPEG files of 85 kB: for OpenCLIP the faster of a plain loop and a DataLoader of two workers. The
peak of memory is that of a process that loads the file and encodes 32 pictures and three texts; it depends on the build
of torch, so it is judged under the reference interpreter on both sides where that has our libraries.

Needs an idle machine. Rows whose extra is not installed are left out, and said below the table.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.util
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SOURCE = Path(__file__).parents[1] / "src"
SEED = 0
PICTURES, CAPTIONS, LOADED = 32, 64, 32
WORDS = "a the of in on with two man woman dog cat sitting holding red blue white table street large photo".split(" ")  # noqa: SIM905
LABELS = ("a diagram", "a dog", "a cat")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table."""

    title: str
    model: str
    kind: str
    """"images", "texts", "files" or "memory"."""
    batch: int
    form: str
    """What of ours runs: an engine and a precision."""
    at_least: float | None = None
    aim: float | None = None
    least_cosine: float = 0.0
    """Below it a speed does not count."""

    @property
    def precision(self) -> str:
        return self.form.split()[1]

    @property
    def is_small_better(self) -> bool:
        return self.kind == "memory"


ROWS = (
    Row("ViT-B/32 images, batch 32, bf16", "ViT-B/32", "images", 32, "torch bf16", 4.5, 6.5, 0.9999),
    Row("ViT-B/32 images, batch 32, fp32", "ViT-B/32", "images", 32, "torch fp32"),
    Row("ViT-B/32 images, batch 1, bf16", "ViT-B/32", "images", 1, "torch bf16", 3.3, 4.5, 0.9999),
    Row("ViT-B/32 images, batch 32, int8 (OpenVINO)", "ViT-B/32", "images", 32, "openvino int8", 6.0, 9.0, 0.999),
    Row("ViT-B/16 images, batch 8, bf16", "ViT-B/16", "images", 8, "torch bf16", 4.5, 6.0, 0.9999),
    Row("ViT-L/14 images, batch 4, bf16", "ViT-L/14", "images", 4, "torch bf16", 4.5, 6.0, 0.9999),
    Row("RN50 images, batch 8, bf16", "RN50", "images", 8, "torch bf16", 5.0, 9.5, 0.999),
    Row("RN50 images, batch 8, bf16 (OpenVINO)", "RN50", "images", 8, "openvino bf16", 9.0, 9.5, 0.999),
    Row("RN50 images, batch 8, int8 (OpenVINO)", "RN50", "images", 8, "openvino int8", 9.0, 9.5, 0.99),
    Row("short captions, batch 64, bf16", "ViT-B/32", "texts", 64, "torch bf16", 18, 25, 0.999),
    Row("640×480 JPEG files to embeddings, bf16", "ViT-B/32", "files", 32, "torch bf16", 4.0, 6.0, 0.999),
    Row("peak memory, bf16, one torch", "ViT-B/32", "memory", 32, "torch bf16", 0.85, 0.6),
    Row("peak memory, bf16, each its torch", "ViT-B/32", "memory", 32, "torch bf16"),
)
SAME_TORCH = "one torch"


# What both sides read ---------------------------------------------------------------------------------------------


def prepare(folder: Path, models: Sequence[str], files: int) -> None:
    """Pictures as files and as tensors, captions, and the weights of each model, under our interpreter."""
    import torch
    from images import jpeg_of, synthetic_photo  # the script beside this one
    from safetensors.torch import save_file

    import clip
    from clip.bench.random_weights import random_model
    from clip.images import read_image

    rng = np.random.default_rng(SEED)
    (folder / "pictures").mkdir()
    paths = [folder / "pictures" / f"{i:04}.jpg" for i in range(files)]
    for i, path in enumerate(paths):  # as many different ones as are cheap to make
        path.write_bytes(jpeg_of(synthetic_photo(640, 480, rng), 85_000)[0] if i < 64 else paths[i % 64].read_bytes())
    (folder / "calibration").mkdir()  # like those, and none of them
    for i in range(PICTURES):
        (folder / "calibration" / f"{i:04}.jpg").write_bytes(jpeg_of(synthetic_photo(640, 480, rng), 85_000)[0])
    preprocess = clip.preprocess.Preprocess()
    pixels = torch.stack([preprocess(read_image(path)) for path in paths[:PICTURES]])
    np.save(folder / "images.npy", pixels.numpy())
    words = random.Random(SEED)
    captions = [" ".join(words.choices(WORDS, k=words.randint(5, 19))) for _ in range(CAPTIONS)]
    (folder / "captions.json").write_text(json.dumps(captions))

    for name in models:
        model = random_model(clip.config.architecture(name), SEED)
        clip.model.convert_weights(model)
        save_file({key: value.contiguous() for key, value in model.state_dict().items()}, weights(folder, name))


def weights(folder: Path, model: str) -> Path:
    return folder / f"{model.replace('/', '-')}.safetensors"


# Workers: one process for each side and form --------------------------------------------------------------------


@dataclasses.dataclass
class Side:
    """What can be timed, once loaded."""

    encode: dict[str, Callable[[int], Any]]
    """"images" and "texts": features of the first so many, of any norm."""
    files: dict[str, Callable[[list[str]], NDArray[np.float32]]]
    """Ways from paths to embeddings."""
    about: str


def open_clip_side(model_name: str, folder: Path) -> Side:
    """As its README says."""
    import open_clip
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset

    name = model_name.replace("/", "-") + "-quickgelu"
    model, _, preprocess = open_clip.create_model_and_transforms(name, pretrained=str(weights(folder, model_name)))
    model = model.eval()
    images = torch.from_numpy(np.load(folder / "images.npy"))
    texts = open_clip.get_tokenizer(name)(json.loads((folder / "captions.json").read_text()))

    class Files(Dataset[Any]):
        def __init__(self, paths: list[str]) -> None:
            self.paths = paths

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, index: int) -> Any:
            return preprocess(Image.open(self.paths[index]))

    loaders: dict[int, DataLoader[Any]] = {}

    def loop(paths: list[str]) -> NDArray[np.float32]:
        batches = (paths[first : first + LOADED] for first in range(0, len(paths), LOADED))
        return embed(torch.stack([preprocess(Image.open(path)) for path in batch]) for batch in batches)

    def loader(paths: list[str]) -> NDArray[np.float32]:
        if len(paths) not in loaders:  # kept, so that starting the workers is not counted
            loaders[len(paths)] = DataLoader(Files(paths), LOADED, num_workers=2, persistent_workers=True)
        return embed(loaders[len(paths)])

    def embed(batches: Any) -> NDArray[np.float32]:
        rows: NDArray[np.float32] = torch.cat([model.encode_image(b, normalize=True) for b in batches]).numpy()
        return rows

    encode = {"images": lambda n: model.encode_image(images[:n]), "texts": lambda n: model.encode_text(texts[:n])}
    about = f"OpenCLIP {open_clip.__version__}, torch {torch.__version__}, fp32"
    return Side(encode, {"loop": loop, "DataLoader": loader}, about)


def our_side(model_name: str, folder: Path, form: str) -> Side:
    """As every task gets its model."""
    import clip
    from clip.features import encode_images
    from clip.inference.loading import load_for_inference, runtime_of
    from clip.simple_tokenizer import token_ids

    assert SOURCE in Path(clip.__file__).parents, f"ours is shadowed by {clip.__file__}"
    engine, precision = form.split()
    if engine == "torch":
        model, preprocess = load_for_inference(
            weights(folder, model_name), device="cpu", precision=precision, activation="quick_gelu"
        )
    else:
        model, preprocess = load_for_inference(exported(folder, model_name, form), precision=precision)
    images: Any = np.load(folder / "images.npy")
    texts: Any = token_ids(json.loads((folder / "captions.json").read_text()), 77, False)
    about = f"everyclip {clip.__version__}, {runtime_of(model)}"
    if engine == "torch":
        import torch

        images, texts = torch.from_numpy(images), torch.from_numpy(texts)
        about += f", torch {torch.__version__}"

    def files(paths: list[str]) -> NDArray[np.float32]:
        return np.concatenate([np.asarray(b.embeddings) for b in encode_images(model, preprocess, paths)])

    encode = {"images": lambda n: model.encode_image(images[:n]), "texts": lambda n: model.encode_text(texts[:n])}
    return Side(encode, {"features.encode_images": files}, about)


def load_side(model: str, form: str, folder: Path) -> Side:
    return open_clip_side(model, folder) if form == "OpenCLIP" else our_side(model, folder, form)


def use_processors(count: int) -> None:
    """Keeps this process to so many processors, whatever engine is in it."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])
    assert "torch" not in sys.modules, "torch counts the processors when it is imported"


@contextlib.contextmanager
def no_gradients() -> Iterator[None]:
    """Where torch is there at all: an exported model is to run without."""
    if "torch" not in sys.modules:
        yield
        return
    import torch

    with torch.inference_mode():
        yield


def serve(model: str, form: str, folder: Path, threads: int) -> None:
    """For each line of stdin, what to run and for how long, prints a rate; before that, embeddings are stored."""
    use_processors(threads)
    side = load_side(model, form, folder)
    paths = sorted(str(path) for path in (folder / "pictures").iterdir())
    with no_gradients():
        for line in sys.stdin:
            task = json.loads(line)
            kind, count = task["kind"], task["count"]
            if kind == "about":
                answer: Any = side.about
            elif kind == "store":
                encoded = side.encode[task["what"]](count) if task["what"] != "files" else None
                rows = next(iter(side.files.values()))(paths[:count]) if encoded is None else np.asarray(encoded)
                np.save(task["path"], rows)
                answer = None
            elif kind == "files":
                answer = max(
                    rate(lambda way=way: way(paths), len(paths), task["seconds"]) for way in side.files.values()
                )
            else:
                answer = rate(lambda: side.encode[kind](count), count, task["seconds"])  # noqa: B023
            print(json.dumps(answer), flush=True)


def rate(run: Callable[[], Any], count: int, seconds: float) -> float:
    """Items a second, of whole calls for at least so long."""
    repeats, start = 0, time.perf_counter()
    while (elapsed := time.perf_counter() - start) < seconds:
        run()
        repeats += 1
    return repeats * count / elapsed


def peak_memory(model: str, form: str, folder: Path, threads: int) -> None:
    """Loads the model, encodes, and prints the peak of this process in bytes."""
    import resource

    use_processors(threads)
    side = load_side(model, form, folder)
    with no_gradients():
        side.encode["images"](PICTURES)
        side.encode["texts"](len(LABELS))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def ceilings(threads: int) -> None:
    """Prints the ceiling of each precision in FLOP/s."""
    use_processors(threads)
    from clip.bench.ceiling import matmul_ceiling

    print(json.dumps({name: matmul_ceiling(name) for name in ("fp32", "bf16", "int8")}))


# The run --------------------------------------------------------------------------------------------------------


def environment(is_ours: bool, threads: int) -> dict[str, str]:
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    variables |= {"PYTHONWARNINGS": "ignore", "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}
    return {**variables, "PYTHONPATH": str(SOURCE)} if is_ours else variables


def command(python: str, *arguments: object) -> list[str]:
    return [python, str(Path(__file__).resolve()), *map(str, arguments)]


class Worker:
    """A process that has loaded one form of a model and measures when asked."""

    def __init__(self, python: str, model: str, form: str, folder: Path, threads: int) -> None:
        self.title = f"{model}, {form}"
        self.log = (folder / f"{self.title.replace('/', '-')}.log").open("w+")
        self.process = subprocess.Popen(
            command(python, "--serve", model, form, folder, "--threads", threads),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=environment(form != "OpenCLIP", threads),
            cwd=folder,
            text=True,
        )

    def ask(self, kind: str, count: int = 0, **task: Any) -> Any:
        assert self.process.stdin and self.process.stdout
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps({"kind": kind, "count": count, **task}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            self.log.seek(0)
            raise SystemExit(f"the worker of {self.title} has ended:\n{self.log.read()}")
        return json.loads(line)

    def close(self) -> None:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()
        self.log.close()


def exported(folder: Path, model: str, form: str) -> Path:
    """The folder that both floating-point precisions of an engine share, or that of int8."""
    engine, precision = form.split()
    return folder / f"{model.replace('/', '-')}-{engine}-{'int8' if precision == 'int8' else 'float'}"


def export(folder: Path, model: str, form: str, threads: int) -> str:
    """Writes the folder of an exported model if it is not there yet. Gives what was wrong, or nothing."""
    target, (engine, precision) = exported(folder, model, form), form.split()
    if target.exists():
        return ""
    arguments = ["-m", "clip", "export", str(weights(folder, model)), str(target), "--to", engine]
    arguments += ["--activation", "quick_gelu"]
    if precision == "int8":  # the table judges the cosine itself
        arguments += ["--int8", "--min-cosine", "0", "--calibration", str(folder / "calibration")]
    done = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=environment(True, threads),
    )
    return (
        "" if done.returncode == 0 else f"clip export failed: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
    )


def missing(row: Row, options: argparse.Namespace) -> str:
    """Why this row cannot be measured here, or nothing."""
    if row.form.startswith("openvino"):
        if importlib.util.find_spec("openvino") is None:
            return "the extra openvino is not installed"
        if options.same_python:
            return "exported models run under the interpreter of this script"
    if row.kind == "memory" and SAME_TORCH in row.title:
        wanted = "import clip.inference.loading, clip.features, simplejpeg"
        code = subprocess.run([options.reference_python, "-c", wanted], capture_output=True, env=environment(True, 1))
        return "the reference interpreter has not our libraries" if code.returncode else ""
    return ""


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Everything: {"rows": [{…, "rounds": {"OpenCLIP": […], "ours": […]}}], "notes": […], …}."""
    from clip.bench.machine import this_machine

    threads: int = options.threads
    ours = options.reference_python if options.same_python else sys.executable
    rows = [row for row in ROWS if not options.only or any(word in row.title for word in options.only)]
    notes = {row.title: reason for row in rows if (reason := missing(row, options))}
    rows = [row for row in rows if row.title not in notes]
    models = list(dict.fromkeys(row.model for row in rows))
    say(f"writing {', '.join(models)} and {options.files} pictures")
    call(command(sys.executable, "--prepare", folder, *models, "--files", options.files), folder, threads)
    for row in rows:
        if row.form.startswith("openvino"):
            say(f"exporting {row.model} for {row.form}")
            if reason := export(folder, row.model, row.form, threads):
                notes[row.title] = reason
    rows = [row for row in rows if row.title not in notes]

    result: dict[str, Any] = {"threads": threads, "rounds": options.rounds, "seconds": options.seconds, "notes": notes}
    result |= {"machine": this_machine(threads=threads, torch="").to_dict(), "about": {}, "rows": []}
    result["load"] = os.getloadavg()[0]  # of programs that ran before this one
    peaks = [json.loads(call(command(ours, "--ceilings", "--threads", threads), folder, threads))]
    for model in models:
        result["rows"] += measure_model(
            model, [row for row in rows if row.model == model], ours, options, folder, result
        )
    peaks.append(json.loads(call(command(ours, "--ceilings", "--threads", threads), folder, threads)))
    result["ceilings"] = {name: max((p[name] for p in peaks if p[name]), default=None) for name in peaks[0]}
    result["rows"].sort(key=lambda row: [r.title for r in ROWS].index(row["title"]))
    return result


def measure_model(
    model: str, rows: Sequence[Row], ours: str, options: argparse.Namespace, folder: Path, result: dict[str, Any]
) -> list[dict[str, Any]]:
    """The rows of one model, over all rounds: its processes are then gone, and their memory free for the next."""
    pythons = {"OpenCLIP": options.reference_python}
    pythons |= {row.form: ours for row in rows if row.kind != "memory"}
    rounds: dict[str, dict[str, list[float]]] = {row.title: {"OpenCLIP": [], "ours": []} for row in rows}
    with contextlib.ExitStack() as stack:
        workers = {form: Worker(python, model, form, folder, options.threads) for form, python in pythons.items()}
        for worker in workers.values():
            stack.callback(worker.close)
        for form, worker in workers.items():
            result["about"][f"{model}, {form}"] = worker.ask("about")
        closeness = {row.title: compare(row, workers, folder) for row in rows if row.kind != "memory"}
        for number in range(options.rounds):
            say(f"{model}: round {number + 1} of {options.rounds}")
            for row in rows:
                order = ["OpenCLIP", row.form][:: 1 if number % 2 else -1]  # to and fro, against a drift of the machine
                for form in order:
                    if row.kind == "memory":
                        is_same = SAME_TORCH in row.title or form == "OpenCLIP"
                        python = options.reference_python if is_same else ours
                        value = float(
                            call(
                                command(python, "--memory", model, form, folder, "--threads", options.threads),
                                folder,
                                options.threads,
                                form != "OpenCLIP",
                            )
                        )
                    else:
                        value = workers[form].ask(row.kind, row.batch, seconds=options.seconds)
                    rounds[row.title]["OpenCLIP" if form == "OpenCLIP" else "ours"].append(value)
    from clip.bench.flops import image_flops, text_flops
    from clip.config import architecture
    from clip.simple_tokenizer import token_ids

    config = architecture(model)
    lengths = token_ids(json.loads((folder / "captions.json").read_text()), 77, False).argmax(axis=1) + 1
    flops = {"texts": float(np.mean([text_flops(config, int(length)) for length in lengths]))}
    flops |= dict.fromkeys(("images", "files"), float(image_flops(config)))
    return [
        {**dataclasses.asdict(row), "precision": row.precision, "rounds": rounds[row.title]}
        | {"flops": flops.get(row.kind), **closeness.get(row.title, {})}
        for row in rows
    ]


def compare(row: Row, workers: dict[str, Worker], folder: Path) -> dict[str, Any]:
    """How close our embeddings are to the reference's. The row is warm afterwards: its first call is not timed."""
    from clip.fidelity import compare

    for form in ("OpenCLIP", row.form):
        if row.kind != "files":
            workers[form].ask(row.kind, row.batch, seconds=0.5)
    is_text = row.kind == "texts"
    fidelity = compare(*(embeddings(row, form, workers[form], folder) for form in ("OpenCLIP", row.form)))
    return {
        "cosine": fidelity.text_cosine if is_text else fidelity.image_cosine,
        "centred_cosine": fidelity.text_centred_cosine if is_text else fidelity.image_centred_cosine,
        "fidelity": fidelity.to_dict(),
    }


def embeddings(row: Row, form: str, worker: Worker, folder: Path) -> Any:
    """Of the pictures, through files where the row is about files, and of the captions."""
    from clip.fidelity import Embeddings

    stored = {}
    for kind, count in (("files" if row.kind == "files" else "images", PICTURES), ("texts", CAPTIONS)):
        path = folder / f"{row.model}-{form}-{kind}.npy".replace("/", "-")
        if not path.exists():
            worker.ask("store", count, what=kind, path=str(path))
        stored[kind] = np.load(path)
    return Embeddings(*stored.values())


def call(arguments: list[str], folder: Path, threads: int, is_ours: bool = True) -> str:
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=folder, env=environment(is_ours, threads))
    if done.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed:\n{done.stderr}")
    return done.stdout


def say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


# The table ------------------------------------------------------------------------------------------------------


def ratios(row: dict[str, Any]) -> list[float]:
    return sorted(a / b for a, b in zip(row["rounds"]["ours"], row["rounds"]["OpenCLIP"], strict=True))


def verdict(row: dict[str, Any]) -> str:
    """Which target the median meets, with embeddings close enough."""
    if row["at_least"] is None:
        return ""
    ratio = statistics.median(ratios(row))
    if row.get("cosine", 1.0) < row["least_cosine"]:
        return f"no: cosine below {row['least_cosine']}"
    is_met = {
        name: ratio <= row[name] if row["kind"] == "memory" else ratio >= row[name] for name in ("at_least", "aim")
    }
    return "aim" if is_met["aim"] else "yes" if is_met["at_least"] else "no"


def table(result: dict[str, Any]) -> str:
    """GitHub's Markdown."""
    from clip.bench.measure import cosine_text

    head = (
        "work",
        "at least",
        "aim",
        "× OpenCLIP",
        "met",
        "OpenCLIP, /s",
        "ours, /s",
        "GFLOP/s",
        "of peak",
        "cosine",
        "centred",
    )
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * 3 + "|---" + "|---:" * 6 + "|"]
    for row in result["rows"]:
        values = ratios(row)
        theirs, ours = (statistics.median(row["rounds"][side]) for side in ("OpenCLIP", "ours"))
        sign = "≤ " if row["kind"] == "memory" else ""
        cells = [row["title"], *("" if row[key] is None else f"{sign}{row[key]:g}" for key in ("at_least", "aim"))]
        cells += [f"**{statistics.median(values):.2f}** ({values[0]:.2f}–{values[-1]:.2f})", verdict(row)]
        if row["kind"] == "memory":
            cells += [f"{theirs / 1e6:,.0f} MB", f"{ours / 1e6:,.0f} MB", "", "", "", ""]
        else:
            rate, ceiling = ours * row["flops"], result["ceilings"][row["precision"]]
            cells += [number(theirs), number(ours), f"{rate / 1e9:,.0f}"]
            cells += [
                f"{rate / ceiling:.0%}" if ceiling else "",
                cosine_text(row["cosine"]),
                cosine_text(row["centred_cosine"]),
            ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def header(result: dict[str, Any]) -> str:
    about, machine = result["about"], result["machine"]
    theirs = next(text for form, text in about.items() if form.endswith("OpenCLIP"))
    ours = dict.fromkeys(text for form, text in about.items() if not form.endswith("OpenCLIP"))
    load = f", beside other work (load {result['load']:.1f})" if result["load"] > 0.5 else ""
    peaks = ", ".join(f"{name} {value / 1e9:,.0f}" for name, value in result["ceilings"].items() if value)
    return (
        f"{theirs} = 1.0; {'; '.join(ours)}; {machine['processor']} ({', '.join(machine['units'])}), "
        f"{result['threads']} threads, {result['rounds']} rounds of {result['seconds']:g} s{load}. "
        f"Fastest matrix products, GFLOP/s: {peaks}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", help="interpreter of an environment with open_clip_torch")
    parser.add_argument("--same-python", action="store_true", help="run ours under it too, so that torch is the same")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3, help="of each rate in each round (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=2, help="of each side (default: %(default)s)")
    parser.add_argument("--files", type=int, default=128, help="pictures of a pass over files (default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", metavar="WORD", help="rows whose title has one of these: --only RN50 captions"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all values of all rounds")
    for role, count in (("--prepare", "+"), ("--serve", 3), ("--memory", 3)):  # how this script starts itself
        parser.add_argument(role, nargs=count, help=argparse.SUPPRESS)
    parser.add_argument("--ceilings", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.prepare:
        prepare(Path(options.prepare[0]), options.prepare[1:], options.files)
    elif options.serve:
        serve(options.serve[0], options.serve[1], Path(options.serve[2]), options.threads)
    elif options.memory:
        peak_memory(options.memory[0], options.memory[1], Path(options.memory[2]), options.threads)
    elif options.ceilings:
        ceilings(options.threads)
    elif not options.reference_python:
        parser.error("--reference-python is needed")
    else:
        with tempfile.TemporaryDirectory() as folder:
            result = measure(options, Path(folder))
        if options.json:
            options.json.write_text(json.dumps(result, indent=2) + "\n")
        print(f"{header(result)}\n\n{table(result)}")
        for title, reason in result["notes"].items():
            print(f"\nLeft out: {title}: {reason}.")


if __name__ == "__main__":
    main()
