"""How fast `clip index` goes through a folder of JPEG files, and what the limit is: the model, the disk, or Python.

    python benchmarks/indexing.py --files 2000
    python benchmarks/indexing.py --photos ~/Pictures --models pocket ViT-B/32

The files are made: crops of the photographs of the package, enlarged to 640×480 with noise for the detail that they
lack, as JPEG of about 85 kB; no two are the same. With ``--photos`` they are copies of real ones instead. A name of an
architecture stands for random weights, which are as fast as trained ones.

Each round indexes the folder by a whole command, into a new index, and has the model alone encode pictures of it that
are in memory and preprocessed. "Pictures/s" leaves out what a command takes for the first 64, which is starting and
loading; "of the model" is this rate by that of the model alone, within a round. "Again" is a command that finds nothing
new. The shares are of the time of the thread that runs the model, as `clip index --json` tells them: the model at work
(with its loading), waiting for pictures to be decoded, storing.

The second table has the processor time of each part of the work for one picture, on one thread. "Command" is what a
whole command takes for each picture beyond the first 64; what it takes more than all parts is Python's, between them,
and what several threads cost. The largest part is the limit where all processors are at work.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from stores import environment, machine_line, ratios, say  # the scripts beside this one

SIZE, QUALITY = (640, 480), 88
BATCH = 32
FEW = 64
"""Pictures that a command takes hardly longer for than it takes to start."""
SAMPLE = 300
"""Pictures whose parts are timed one by one."""


def make_pictures(folder: Path, count: int) -> None:
    """Different ones, a thousand to a folder."""
    from images import enlarged_photo
    from PIL import Image

    from clip.samples import pictures

    rng = np.random.default_rng(0)
    photos = [sample for sample in pictures() if sample.name.startswith("photos/")]
    for number in range(count):
        with Image.open(io.BytesIO(photos[number % len(photos)].image)) as photo:
            side = rng.uniform(0.5, 1) * min(photo.width / 4, photo.height / 3)
            width, height = int(4 * side), int(3 * side)
            left, top = rng.integers(0, photo.width - width + 1), rng.integers(0, photo.height - height + 1)
            crop = io.BytesIO()
            photo.crop((left, top, left + width, top + height)).convert("RGB").save(crop, "BMP")
        path = folder / f"{number // 1000:03}" / f"{number:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        enlarged_photo(crop, *SIZE, rng).save(path, quality=QUALITY)


def copy_photos(source: Path, folder: Path, count: int) -> None:
    """The first so many JPEG files of a folder."""
    paths = sorted(path for path in source.rglob("*") if path.suffix.lower() in (".jpg", ".jpeg"))[:count]
    if not paths:
        raise SystemExit(f"{source}: no JPEG files are there")
    folder.mkdir()
    for number, path in enumerate(paths):
        shutil.copy(path, folder / f"{number:06}.jpg")


def model_file(name: str, folder: Path) -> str:
    """What `--model` is told: a name, or a file of random weights for an architecture."""
    import clip

    if name not in clip.config.ARCHITECTURES:
        return name
    from safetensors.torch import save_file

    from clip.bench.random_weights import random_model

    path = folder / f"{name.replace('/', '-')}.safetensors"
    model = random_model(clip.config.architecture(name), 0)
    clip.model.convert_weights(model)
    save_file({key: value.contiguous() for key, value in model.state_dict().items()}, path)
    return str(path)


# The command ---------------------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """One command."""

    report: dict[str, Any]
    """What it says of itself."""
    seconds: float
    """From start to end."""
    processor_seconds: float


def command(pictures: Path, index: Path, model: str) -> Run:
    arguments = [sys.executable, "-m", "clip", "index", str(pictures), "--into", str(index), "--model", model, "--json"]
    begin = time.perf_counter()
    process = subprocess.Popen([*arguments, "-q"], stdout=subprocess.PIPE, text=True, env=quiet())
    assert process.stdout
    line = process.stdout.readline()
    process.stdout.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise SystemExit(f"{' '.join(arguments)} failed; what it said is above")
    return Run(json.loads(line), seconds, usage.ru_utime + usage.ru_stime)


def quiet() -> dict[str, str]:
    return environment() | {"PYTHONWARNINGS": "ignore"}


def model_alone(model: str, pixels: Path) -> float:
    """Pictures a second of a process that has them in memory."""
    done = subprocess.run(
        [sys.executable, __file__, "--alone", model, str(pixels)],
        stdout=subprocess.PIPE, text=True, env=quiet(), check=True,
    )  # fmt: skip
    return float(done.stdout)


def rate_alone(model: str, pixels: Path) -> float:
    from clip import load_for_inference
    from clip.features import encode_images

    network, preprocess = load_for_inference(model)
    images = list(np.load(pixels))

    def seconds(count: int) -> float:
        start = time.perf_counter()
        for _ in encode_images(network, preprocess, images[:count], batch_size=BATCH):
            pass
        return time.perf_counter() - start

    seconds(4 * BATCH)
    repeats = max(1, round(2 / seconds(len(images))))
    return repeats * len(images) / sum(seconds(len(images)) for _ in range(repeats))


# One picture on one thread -------------------------------------------------------------------------------------------


def parts_of(model: str, pictures: Path, folder: Path) -> dict[str, float]:
    """Processor milliseconds for a picture, by part. Writes the preprocessed pictures for ``model_alone``."""
    done = subprocess.run(
        [sys.executable, __file__, "--parts", model, str(pictures), str(folder)],
        stdout=subprocess.PIPE, text=True, env=quiet() | {"OMP_NUM_THREADS": "1"}, check=True,
    )  # fmt: skip
    values: dict[str, float] = json.loads(done.stdout)
    return values


def time_parts(model: str, pictures: Path, folder: Path) -> dict[str, float]:
    """In the order of the work, each part for all pictures of the sample before the next."""
    import hashlib

    import torch

    from clip import load_for_inference
    from clip.data.likeness import fields_of
    from clip.features import encode_images
    from clip.image_headers import read_header
    from clip.images import read_pixels
    from clip.search.prepare import DIGEST_BYTES
    from clip.search.store import open_store

    torch.set_num_threads(1)
    network, preprocess = load_for_inference(model)
    paths = sorted(path for path in pictures.rglob("*.jpg"))[:SAMPLE]
    milliseconds: dict[str, float] = {}

    def timed(part: str, work: Callable[[Any], Any], items: Iterable[Any]) -> list[Any]:
        items = list(items)
        work(items[0])
        start = time.process_time()
        results = [work(item) for item in items]
        milliseconds[part] = 1000 * (time.process_time() - start) / len(paths)
        return results

    files = timed("reading", lambda path: path.read_bytes(), paths)
    timed("digest", lambda data: hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest(), files)
    decoded = timed("decoding", lambda data: read_pixels(data, shorter_side=preprocess.size), files)
    timed("header", read_header, files)
    timed("signature", fields_of, decoded)
    images = timed("preprocessing", lambda pixels: preprocess(pixels).numpy(), decoded)
    np.save(folder / "pixels.npy", np.stack(images))
    batches = [images[i : i + BATCH] for i in range(0, len(images), BATCH)]
    encoded = timed("model", lambda batch: list(encode_images(network, preprocess, batch, workers=1)), batches)
    embeddings = np.concatenate([batch.embeddings for pass_ in encoded for batch in pass_])
    with open_store(str(folder / "parts"), embed_dim=embeddings.shape[1]) as store:
        blocks = list(blocks_of_rows(paths, embeddings))
        timed("storing", lambda block: store.add(*block), blocks)
    return milliseconds


def blocks_of_rows(paths: list[Path], embeddings: Any) -> Iterator[tuple[list[Any], Any]]:
    """As many at a time as a second of a fast model gives."""
    from clip.search.store import Row

    rows = [
        Row(path=str(path), size_bytes=1, modified_ns=1, digest=bytes(16), width=640, height=480, format="JPEG",
            signature=bytes(56))
        for path in paths
    ]  # fmt: skip
    for begin in range(0, len(rows), 150):
        yield rows[begin : begin + 150], embeddings[begin : begin + 150]


# The comparison ------------------------------------------------------------------------------------------------------


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    pictures = folder / "pictures"
    say("making pictures")
    if options.photos:
        copy_photos(options.photos, pictures, options.files)
    else:
        make_pictures(pictures, options.files)
    paths = sorted(pictures.rglob("*.jpg"))
    if len(paths) < 4 * FEW:
        raise SystemExit(f"{len(paths)} pictures are too few; take {4 * FEW} or more")
    (folder / "few").mkdir()
    for path in paths[:FEW]:
        os.link(path, folder / "few" / path.name)
    sizes = [path.stat().st_size for path in paths]
    result: dict[str, Any] = {"files": len(sizes), "bytes": sum(sizes), "models": {}}
    for name in options.models:
        scratch = folder / name.replace("/", "-")
        scratch.mkdir()
        model = model_file(name, folder)
        values: dict[str, Any] = {"parts": parts_of(model, pictures, scratch), "rounds": []}
        for turn in range(options.rounds):
            say(f"{name}: round {turn + 1} of {options.rounds}")
            index = scratch / f"index-{turn}"
            few = command(folder / "few", scratch / f"few-{turn}", model)
            whole = command(pictures, index, model)
            again = command(pictures, index, model)
            alone = model_alone(model, scratch / "pixels.npy")
            if whole.report["added"] != len(paths) or again.report["unchanged"] != len(paths):
                raise SystemExit(f"not all {len(paths)} pictures were added: {whole.report}, {again.report}")
            more = len(paths) - FEW
            values["rounds"].append(
                {"seconds": whole.seconds, "again": again.seconds, "alone": alone, "parts": whole.report["seconds"]}
                | {"rate": more / (whole.seconds - few.seconds)}
                | {"processor": (whole.processor_seconds - few.processor_seconds) / more}
            )
            shutil.rmtree(index)
        result["models"][name] = values
    return result


def table(result: dict[str, Any]) -> str:
    head = ["model", "`clip index`, s", "again, s", "pictures/s", "model alone, /s", "of the model"]
    head += ["time in the model", "decoding", "storing", "walking"]
    lines = [f"| {' | '.join(head)} |", "|---" + "|---:" * (len(head) - 1) + "|"]
    for name, values in result["models"].items():
        rounds = values["rounds"]
        cells = [name, *(f"{median(rounds, key):.1f}" for key in ("seconds", "again"))]
        cells += [f"{median(rounds, key):,.0f}" for key in ("rate", "alone")]
        cells.append(ratios([turn["rate"] for turn in rounds], [turn["alone"] for turn in rounds]))
        for part in ("model", "decoding", "storing", "walking"):
            share = statistics.median(turn["parts"][part] / turn["parts"]["total"] for turn in rounds)
            cells.append(f"{share:.0%}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def table_of_parts(result: dict[str, Any]) -> str:
    names = list(next(iter(result["models"].values()))["parts"])
    lines = [f"| processor ms a picture | {' | '.join(names)} | all parts | command | the largest |"]
    lines.append("|---" + "|---:" * (len(names) + 2) + "|---|")
    for name, values in result["models"].items():
        parts = values["parts"]
        total, largest = sum(parts.values()), max(parts, key=parts.__getitem__)
        cells = [name, *(f"{parts[part]:.2f}" for part in names), f"{total:.2f}"]
        cells += [f"{1000 * median(values['rounds'], 'processor'):.2f}", f"{largest}, {parts[largest] / total:.0%}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def median(rounds: list[dict[str, Any]], key: str) -> float:
    return statistics.median(turn[key] for turn in rounds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=2000, help="(default: %(default)s)")
    parser.add_argument(
        "--photos", type=Path, metavar="FOLDER", help="take JPEG files from here instead of making some"
    )
    parser.add_argument("--models", nargs="+", default=["pocket", "ViT-B/32"], metavar="NAME")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all values of all rounds")
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)  # how this script starts itself
    parser.add_argument("--parts", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(rate_alone(options.alone[0], Path(options.alone[1])))
        return
    if options.parts:
        print(json.dumps(time_parts(options.parts[0], Path(options.parts[1]), Path(options.parts[2]))))
        return
    with tempfile.TemporaryDirectory() as folder:
        result = measure(options, Path(folder).resolve())
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    size = result["bytes"] / result["files"] / 1000
    print(f"{result['files']:,} JPEG files of {size:.0f} kB, {options.rounds} rounds; {machine_line()}\n")
    print(table(result), table_of_parts(result), sep="\n\n")


if __name__ == "__main__":
    main()
