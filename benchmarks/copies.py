"""How well near copies of pictures are found: the share of altered pictures that match their originals, and how many
pairs of a folder's own pictures match.

    python benchmarks/copies.py PICTURES... [--every N]
    python benchmarks/copies.py PICTURES... [--every N] --model pocket
    python benchmarks/copies.py --rows 1000000

PICTURES: files, or folders that are searched for .png, .jpg and .webp. --every N: alter only each Nth picture.
--model NAME: also the cosines of that model, between altered pictures and their originals, and between different ones.
--rows N: instead, what the search for pairs among N random signatures costs, a tenth of them copies and a twentieth
without any gradient.
"""

from __future__ import annotations

import io
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

from clip.data.likeness import COLOURS, Signature, components, signature, similar_pairs
from clip.images import read_image


def _encoded(image: Image.Image, image_format: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def _resized(image: Image.Image, scale: float) -> Image.Image:
    return image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))))


def _cropped(image: Image.Image, share: float) -> Image.Image:
    x, y = image.width * share / 2, image.height * share / 2
    return image.crop((round(x), round(y), round(image.width - x), round(image.height - y)))


ALTERED: dict[str, Callable[[Image.Image], bytes]] = {
    "JPEG, quality 75": lambda image: _encoded(image, "JPEG", quality=75),
    "JPEG, quality 40": lambda image: _encoded(image, "JPEG", quality=40),
    "half the size": lambda image: _encoded(_resized(image, 0.5)),
    "twice the size": lambda image: _encoded(_resized(image, 2)),
    "32 colours": lambda image: _encoded(image.quantize(32)),
    "10 % darker": lambda image: _encoded(ImageEnhance.Brightness(image).enhance(0.9)),
    "2 % cropped": lambda image: _encoded(_cropped(image, 0.02)),
    "10 % cropped": lambda image: _encoded(_cropped(image, 0.1)),
    "mirrored": lambda image: _encoded(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
}


def _matches(one: Signature, other: Signature) -> bool:
    labels = np.arange(2)
    components(labels, *_arrays([one, other]))
    return bool(labels[0] == labels[1])


def _arrays(signatures: list[Signature]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([s.gradients for s in signatures], np.uint64), np.array([s.colours for s in signatures])


def search(rows: int) -> None:
    rng = np.random.default_rng(0)
    gradients = rng.integers(0, 1 << 64, rows, dtype=np.uint64)
    colours = rng.integers(0, 256, (rows, COLOURS), dtype=np.uint8)
    copied = rng.choice(rows, rows // 10)
    gradients[: len(copied)], colours[: len(copied)] = gradients[copied], colours[copied]
    gradients[-(rows // 20) :] = 0
    labels = np.arange(rows)
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    components(labels, gradients, colours)
    seconds = time.process_time() - start
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(f"{rows:,} rows: {seconds:.1f} s of processor time, {grown / 1024:.0f} MiB")


def cosines(name: str, files: list[Path], altered: list[Path], alike: set[tuple[int, int]]) -> None:
    """Whether embeddings could tell copies, too."""
    from clip.features import encode_images
    from clip.inference.loading import load_for_inference

    model, preprocess = load_for_inference(name)

    def encode(sources: list[bytes]) -> np.ndarray:
        return np.concatenate([batch.embeddings for batch in encode_images(model, preprocess, sources)])

    own = encode([file.read_bytes() for file in files])
    between = np.triu(own @ own.T, 1)
    for one, other in alike:  # real copies among the files say nothing here
        between[one, other] = 0
    for place in np.argsort(-between, axis=None)[:5].tolist():
        one, other = divmod(place, len(files))
        print(f"    different: {between[one, other]:.3f}  {files[one].name} and {files[other].name}")
    rows = [files.index(file) for file in altered]
    for change, alter in ALTERED.items():
        found = (encode([alter(read_image(file)) for file in altered]) * own[rows]).sum(axis=1)
        low, quarter, half = np.quantile(found, (0.05, 0.25, 0.5))
        print(f"{change:<20} cosine to the original {half:.3f}; a quarter is below {quarter:.3f}, 5 % below {low:.3f}")


def main(arguments: list[str]) -> None:
    if "--rows" in arguments:
        search(int(arguments[arguments.index("--rows") + 1]))
        return
    every = 1
    if "--every" in arguments:
        at = arguments.index("--every")
        every = int(arguments[at + 1])
        del arguments[at : at + 2]
    model = None
    if "--model" in arguments:
        at = arguments.index("--model")
        model = arguments[at + 1]
        del arguments[at : at + 2]
    files = [
        file
        for path in map(Path, arguments)
        for file in (sorted(path.rglob("*")) if path.is_dir() else [path])
        if file.suffix in (".png", ".jpg", ".webp")
    ]
    found = {file: signature(file.read_bytes()) for file in files}
    files = [file for file in files if not found[file].is_blank]
    pairs: set[tuple[int, int]] = set()
    for left, right in similar_pairs(
        *_arrays([found[file] for file in files]), wanted=lambda left, right: np.ones(len(left), bool)
    ):
        pairs |= {(min(pair), max(pair)) for pair in zip(left.tolist(), right.tolist(), strict=True)}
    total = len(files) * (len(files) - 1) // 2
    print(f"{len(files):,} pictures; of {total:,} pairs of them {len(pairs):,} match")
    for one, other in sorted(pairs)[:5]:
        print(f"    {files[one].name} and {files[other].name}")
    altered = files[::every]
    images = [read_image(file) for file in altered]
    for name, alter in ALTERED.items():
        share = np.mean(
            [_matches(found[file], signature(alter(image))) for file, image in zip(altered, images, strict=True)]
        )
        print(f"{name:<20} {100 * share:5.1f} % found")
    if model is not None:
        cosines(model, files, altered, pairs)


if __name__ == "__main__":
    main(sys.argv[1:])
