"""JPEG file → tensor, against OpenAI's pipeline, on one core: how much faster, and how many grey levels apart.

    python benchmarks/images.py --reference-python ../openai/bin/python --photos examples/photos

The reference interpreter needs openai-clip, and runs ``_transform(224)(Image.open(path))``. Both take turns on the same
core; times are those of the processor, so that other programs count less, and a ratio is the median over rounds of the
two times of one round. Without a reference interpreter, our exact path
stands in: it gives the same values and takes about as long.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from clip.images import read_image, read_pixels
from clip.preprocess import OPENAI_STD, Preprocess

SIZES = {"640×480": ((640, 480), 85_000), "4000×3000": ((4000, 3000), 2_000_000)}
KINDS = ("made", "photo", "noise")

REFERENCE = """
import sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np, torch
from PIL import Image
from clip.clip import _transform
torch.set_num_threads(1)
transform = _transform(224)
for line in sys.stdin:
    path, repeats, output = line.rstrip("\\n").split("\\t")
    start = time.process_time()
    for _ in range(int(repeats)):
        tensor = transform(Image.open(path))
    seconds = time.process_time() - start
    if output:
        np.save(output, tensor.numpy())
    print(seconds, flush=True)
"""

preprocess = Preprocess()
WAYS: dict[str, Callable[[Path], torch.Tensor]] = {
    "read_image, exact": lambda path: preprocess(read_image(path)),
    "read_pixels, full size": lambda path: preprocess(read_pixels(path)),
    "read_pixels, shorter_side=224": lambda path: preprocess(read_pixels(path, shorter_side=224)),
}


def synthetic_photo(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Light that varies on every scale, as in nature, shapes with sharp edges, and the noise of a sensor."""
    picture = np.zeros((height, width, 3), np.float32)
    for octave in range(2, 10):
        grid = rng.normal(0, 90 / octave**1.2, (2**octave, 2**octave, 3)).astype(np.float32)
        planes = [Image.fromarray(grid[:, :, c]).resize((width, height), Image.Resampling.BICUBIC) for c in range(3)]
        picture += np.stack([np.asarray(plane) for plane in planes], axis=-1) * (1 if octave > 3 else 0.5)
    image = Image.fromarray((picture + 128).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(25):
        corners = rng.integers(0, (width, height), 2) + rng.integers(-height // 4, height // 4, (5, 2))
        draw.polygon([(int(x), int(y)) for x, y in corners], fill=tuple(int(v) for v in rng.integers(0, 256, 3)))
    return _with_sensor_noise(image.filter(ImageFilter.GaussianBlur(0.7)), rng)  # no lens draws a one-pixel edge


def enlarged_photo(path: Path, width: int, height: int, rng: np.random.Generator) -> Image.Image:
    """A real photograph filled up to this size, with noise in place of the detail it lacks."""
    with Image.open(path) as photo:
        scale = max(width / photo.width, height / photo.height)
        size = (max(round(photo.width * scale), width), max(round(photo.height * scale), height))
        large = photo.convert("RGB").resize(size, Image.Resampling.LANCZOS).crop((0, 0, width, height))
    return _with_sensor_noise(large, rng)


def noise(width: int, height: int, rng: np.random.Generator) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _with_sensor_noise(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    grain = rng.normal(0, 4, (image.height, image.width, 1)).astype(np.float32)
    return Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))


def jpeg_of(image: Image.Image, target_bytes: int) -> tuple[bytes, int]:
    """The JPEG of the highest quality that has at most this many bytes, or of quality 30, and that quality."""
    low, high, best = 30, 96, None
    while low <= high:
        quality = (low + high) // 2
        file = io.BytesIO()
        image.save(file, "JPEG", quality=quality)
        if best is None or file.tell() <= target_bytes:
            best = (file.getvalue(), quality)
        low, high = (quality + 1, high) if file.tell() <= target_bytes else (low, quality - 1)
    assert best is not None
    return best


class Reference:
    """The other interpreter, waiting for paths."""

    def __init__(self, python: Path) -> None:
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [python, "-c", REFERENCE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def seconds(self, path: Path, repeats: int, output: Path | None = None) -> float:
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(f"{path}\t{repeats}\t{output or ''}\n")
        self._process.stdin.flush()
        return float(self._process.stdout.readline())

    def close(self) -> None:
        self._process.communicate()


def time_of(way: Callable[[Path], torch.Tensor], path: Path, repeats: int) -> float:
    start = time.process_time()
    for _ in range(repeats):
        way(path)
    return time.process_time() - start


def seconds_in_threads(way: Callable[[Path], torch.Tensor], path: Path, threads: int) -> float:
    """Wall time of 200 pictures."""
    with ThreadPoolExecutor(threads) as pool:
        start = time.perf_counter()
        list(pool.map(way, [path] * 200))
        return time.perf_counter() - start


def grey_levels(first: NDArray[np.float32], second: NDArray[np.float32]) -> tuple[int, float]:
    """The largest and the mean difference, of 255."""
    levels = np.abs(first - second) * np.array(OPENAI_STD, np.float32)[:, None, None] * 255
    return round(float(levels.max())), float(np.round(levels).mean())


def make_files(folder: Path, photos: Path | None, seed: int, count: int) -> dict[tuple[str, str], list[Path]]:
    files: dict[tuple[str, str], list[Path]] = {}
    sources = sorted(photos.glob("*.jpg"))[:count] if photos else []
    for name, ((width, height), target_bytes) in SIZES.items():
        for kind in KINDS:
            for index in range({"photo": len(sources), "made": 2, "noise": 1}[kind]):
                rng = np.random.default_rng([seed, width, index])
                if kind == "photo":
                    image = enlarged_photo(sources[index], width, height, rng)
                else:
                    image = (synthetic_photo if kind == "made" else noise)(width, height, rng)
                data, quality = jpeg_of(image, target_bytes)
                path = folder / f"{kind}-{width}-{index}.jpg"
                path.write_bytes(data)
                files.setdefault((name, kind), []).append(path)
                print(f"{path.name}: {len(data) / 1000:.0f} kB, quality {quality}", file=sys.stderr)
    return files


def print_margins(photos: Path) -> None:
    """How far reduced decoding is from a full one, on photographs at their own size, which are sharp to the pixel.

    The margin is the shorter side of the reduced picture divided by the size it is then resized to.
    """
    print("\n| margin | max levels at 1/2, 1/4, 1/8 | mean levels at 1/2, 1/4, 1/8 |\n| --- | --- | --- |")
    for margin in (1, 2, 3, 4):
        largest, means = [], []
        for divisor in (2, 4, 8):
            differences = []
            for path in sorted(photos.glob("*.jpg")):
                with Image.open(path) as photo:
                    width, height = photo.width // 8 * 8, photo.height // 8 * 8
                    data = io.BytesIO()
                    photo.convert("RGB").crop((0, 0, width, height)).save(data, "JPEG", quality=92)
                full = read_image(data.getvalue())
                reduced = simplejpeg.decode_jpeg(
                    data.getvalue(), "RGB", min_width=width // divisor, min_height=height // divisor
                )
                small = Preprocess(size=min(reduced.shape[:2]) // margin)
                differences.append(grey_levels(small(reduced).numpy(), small(full).numpy()))
            largest.append(str(max(d[0] for d in differences)))
            means.append(f"{statistics.mean(d[1] for d in differences):.2f}")
        print(f"| {margin} | {', '.join(largest)} | {', '.join(means)} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference-python", type=Path, help="interpreter that has openai-clip")
    parser.add_argument("--photos", type=Path, help="folder of photographs to enlarge")
    parser.add_argument("--photo-count", type=int, default=6, help="how many of them (default: 6)")
    parser.add_argument("--rounds", type=int, default=15, help="per file (default: 15)")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    if cores:
        os.sched_setaffinity(0, cores[:1])  # the child process inherits it
    reference = Reference(arguments.reference_python) if arguments.reference_python else None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files = make_files(folder, arguments.photos, arguments.seed, arguments.photo_count)
        print("| JPEG | way | ms | reference ms | ratio (min…max of files) | max levels | mean levels |")
        print("| --- | --- | --- | --- | --- | --- | --- |")
        for (size, kind), paths in files.items():
            repeats = 4 if size == "640×480" else 1
            rows: dict[str, list[tuple[float, float, float, int, float]]] = {way: [] for way in WAYS}
            for path in paths:
                if reference:
                    reference.seconds(path, 1, folder / "reference.npy")
                    exact = np.load(folder / "reference.npy")
                else:
                    exact = preprocess(read_image(path)).numpy()
                times: dict[str, list[float]] = {way: [] for way in ("reference", *WAYS)}
                for _ in range(arguments.rounds):
                    times["reference"].append(
                        reference.seconds(path, repeats)
                        if reference
                        else time_of(WAYS["read_image, exact"], path, repeats)
                    )
                    for way, run in WAYS.items():
                        times[way].append(time_of(run, path, repeats))
                for way, run in WAYS.items():
                    ratio = statistics.median(a / b for a, b in zip(times["reference"], times[way], strict=True))
                    milliseconds = (1000 / repeats * statistics.median(times[key]) for key in (way, "reference"))
                    rows[way].append((*milliseconds, ratio, *grey_levels(run(path).numpy(), exact)))
            for way, results in rows.items():
                ours, theirs, ratios, largest, mean = zip(*results, strict=True)
                print(
                    f"| {size} {kind} | {way} | {statistics.median(ours):.2f} | {statistics.median(theirs):.2f} | "
                    f"{statistics.median(ratios):.1f} ({min(ratios):.1f}…{max(ratios):.1f}) | {max(largest)} | "
                    f"{statistics.mean(mean):.3f} |"
                )
        if len(cores) > 1:
            os.sched_setaffinity(0, cores[:2])
            path = files["640×480", "made"][0]
            run = WAYS["read_pixels, shorter_side=224"]
            gains = [seconds_in_threads(run, path, 1) / seconds_in_threads(run, path, 2) for _ in range(9)]
            print(f"\nTwo threads on two cores: {statistics.median(gains):.2f} times the pictures per second of one.")
    if reference:
        reference.close()
    if arguments.photos:
        print_margins(arguments.photos)


if __name__ == "__main__":
    main()
