"""Embeddings like those of a large collection, made of the few real ones that there are.

    clip encode photos/ --output photos.npy
    clip encode --texts captions.txt --output captions.npy
    python benchmarks/vectors.py vectors --pictures photos.npy --texts captions.npy --count 1000000

Without the two files, crops of the pictures of the package stand in, and sentences about them. The folder then holds
``pictures.npy`` (N, E) and ``queries.npy`` (Q, E), both float32 at unit norm.

A made picture is a + 0.8 (b − c) of a real embedding a and two of its 30 nearest, b and c: dense where real pictures
are, empty between. Queries are the real embeddings of texts. Both are rotated alike into E dimensions, and pictures get
some noise there, so that no dimension is empty. Texts lie apart from pictures in every CLIP: an approximate search that
finds nearly all neighbours of pictures may miss most of those of texts, so it is with texts that it must be judged.

``--clusters`` makes another set without any model: a thousand pictures around each of N / 1000 random points, the same
in all directions, and queries drawn alike. The members of a cluster are nearly equally near to each other, as no real
ones are: it is the harder set for whatever leaves out numbers, and the easier one for whatever leaves out clusters.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

SEED = 0
NEIGHBOURS, STEP, NOISE = 30, 0.8, 0.2
PER_CLUSTER, SPREAD = 1000, 1.0
CROPS, QUERIES = 60, 2000
ROWS = 20_000
"""That are made at a time."""

Array = NDArray[np.float32]


class Vectors(NamedTuple):
    pictures: Array
    """(N, E), mapped from its file."""
    queries: Array
    """(Q, E)"""


def read(folder: Path) -> Vectors:
    return Vectors(np.load(folder / "pictures.npy", mmap_mode="r"), np.load(folder / "queries.npy"))


def make(folder: Path, pictures: Path | None, texts: Path | None, count: int, embed_dim: int, seed: int = SEED) -> None:
    """Writes the set that looks like a real one. Equal arguments give equal files."""
    real_pictures: Array = np.load(pictures) if pictures else embed_crops()
    real_texts: Array = np.load(texts) if texts else embed_sentences()
    width = real_pictures.shape[1]
    if real_texts.shape[1] != width or embed_dim < width:
        raise SystemExit(f"{width} and {real_texts.shape[1]} dimensions do not go into {embed_dim}")
    rng = np.random.default_rng(seed)
    neighbours = nearest_to_each(real_pictures, NEIGHBOURS)
    rotation = np.linalg.qr(rng.normal(size=(embed_dim, width)))[0].T.astype(np.float32)  # (width, E)

    def blocks() -> Iterator[Array]:
        for begin in range(0, count, ROWS):
            size = min(ROWS, count - begin)
            a = rng.integers(0, len(real_pictures), size)
            b, c = (neighbours[a, rng.integers(0, neighbours.shape[1], size)] for _ in range(2))
            made = unit(real_pictures[a] + STEP * (real_pictures[b] - real_pictures[c])) @ rotation
            yield unit(made + noise(rng, size, embed_dim) * NOISE)

    chosen = rng.permutation(len(real_texts))[:QUERIES]
    write(folder, blocks(), count, unit(real_texts[chosen] @ rotation))


def make_clusters(folder: Path, count: int, embed_dim: int, seed: int = SEED) -> None:
    """Writes the set of random clusters."""
    rng = np.random.default_rng(seed)
    centres = unit(rng.normal(size=(max(1, count // PER_CLUSTER), embed_dim)).astype(np.float32))

    def members(size: int) -> Array:
        return unit(centres[rng.integers(0, len(centres), size)] + noise(rng, size, embed_dim) * SPREAD)

    blocks = (members(min(ROWS, count - begin)) for begin in range(0, count, ROWS))
    write(folder, blocks, count, members(QUERIES))


def write(folder: Path, blocks: Iterator[Array], count: int, queries: Array) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    shape = (count, queries.shape[1])
    pictures = np.lib.format.open_memmap(folder / "pictures.npy", "w+", np.float32, shape)
    begin = 0
    for block in blocks:
        pictures[begin : begin + len(block)] = block
        begin += len(block)
    np.save(folder / "queries.npy", queries)


def unit(values: NDArray[Any]) -> Array:
    norms: Array = np.linalg.norm(values, axis=1, keepdims=True)
    return (values / norms).astype(np.float32)


def noise(rng: np.random.Generator, rows: int, embed_dim: int) -> Array:
    """(rows, E), of norm 1 or nearly so."""
    return rng.standard_normal((rows, embed_dim), np.float32) / np.float32(embed_dim**0.5)


def nearest_to_each(vectors: Array, k: int) -> NDArray[np.intp]:
    """(N, k): of each vector the nearest others."""
    k = min(k, len(vectors) - 1)
    blocks = []
    for begin in range(0, len(vectors), ROWS // 10):
        cosines = vectors[begin : begin + ROWS // 10] @ vectors.T
        cosines[np.arange(len(cosines)), np.arange(begin, begin + len(cosines))] = -2
        blocks.append(np.argpartition(-cosines, k, axis=1)[:, :k])
    return np.concatenate(blocks)


def exact(pictures: Array, queries: Array, k: int, is_allowed: NDArray[np.bool_] | None = None) -> NDArray[np.intp]:
    """(Q, k): the nearest pictures to each query, in any order. What recall is measured against."""
    best = np.empty((len(queries), 0), np.float32)
    rows = np.empty((len(queries), 0), np.intp)
    for begin in range(0, len(pictures), ROWS):
        cosines = queries @ np.ascontiguousarray(pictures[begin : begin + ROWS]).T
        if is_allowed is not None:
            cosines[:, ~is_allowed[begin : begin + ROWS]] = -2
        near = np.argpartition(-cosines, min(k, cosines.shape[1] - 1), axis=1)[:, :k]
        best = np.concatenate([best, np.take_along_axis(cosines, near, 1)], axis=1)
        rows = np.concatenate([rows, near + begin], axis=1)
        keep = np.argsort(-best, axis=1)[:, :k]
        best, rows = np.take_along_axis(best, keep, 1), np.take_along_axis(rows, keep, 1)
    return rows


def recall(found: list[Any] | NDArray[Any], truth: NDArray[np.intp]) -> float:
    """Share of the true neighbours that were found."""
    hits = sum(len(set(map(int, a)) & set(b)) for a, b in zip(found, truth.tolist(), strict=True))
    return hits / truth.size


# Without files of embeddings -----------------------------------------------------------------------------------------


def embed_crops() -> Array:
    """Real embeddings by pocket: parts of the pictures of the package, some seen in a mirror."""
    import io

    from PIL import Image

    from clip import load_for_inference
    from clip.features import encode_images
    from clip.samples import pictures

    model, preprocess = load_for_inference("pocket")
    rng = np.random.default_rng(SEED)

    def crops() -> Iterator[Image.Image]:
        for sample in pictures():
            image = Image.open(io.BytesIO(sample.image)).convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
            for _ in range(CROPS):
                side = int(min(image.size) * rng.uniform(0.3, 1))
                left, top = (int(rng.integers(0, extent - side + 1)) for extent in image.size)
                crop = image.crop((left, top, left + side, top + side))
                yield crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop

    return np.concatenate([batch.embeddings for batch in encode_images(model, preprocess, crops())])


def embed_sentences() -> Array:
    """Real embeddings by pocket: what one might ask of such pictures."""
    from clip import load_for_inference
    from clip.evaluation.things import COLOURS
    from clip.features import encode_texts
    from clip.prompts import DEFAULT_TEMPLATES, fill
    from clip.samples import pictures

    labels = Path(__file__).parents[1] / "examples" / "emoji" / "labels.csv"
    with labels.open(encoding="utf-8", newline="") as file:
        names = {row["label"] for row in csv.DictReader(file)} | {sample.label for sample in pictures()}
    names |= {f"{colour} {name}" for colour in COLOURS for name in names}
    sentences = sorted({fill(template, name) for template in DEFAULT_TEMPLATES for name in names})
    model, _ = load_for_inference("pocket")
    return np.concatenate([batch.embeddings for batch in encode_texts(model, sentences)])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What a script says that needs such a set."""
    parser.add_argument("--vectors", type=Path, metavar="FOLDER", help="what vectors.py made; else it is made for once")


def read_or_make(folder: Path | None, count: int, scratch: Path) -> Vectors:
    """The set that was asked for, or one from the pictures of the package."""
    if folder is None:
        folder = scratch / "vectors"
        print("making embeddings from the pictures of the package", file=sys.stderr, flush=True)
        make(folder, None, None, count, 512)
    vectors = read(folder)
    if len(vectors.pictures) < count:
        raise SystemExit(f"{folder} has {len(vectors.pictures):,} pictures, not {count:,}; make more with vectors.py")
    return vectors


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=Path, help="embeddings of pictures, .npy (N, E)")
    parser.add_argument("--texts", type=Path, help="embeddings of texts by the same model, .npy (Q, E)")
    parser.add_argument("--clusters", action="store_true", help="random clusters instead")
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--embed-dim", type=int, default=512)
    options = parser.parse_args()
    if options.clusters:
        make_clusters(options.folder, options.count, options.embed_dim)
    else:
        make(options.folder, options.pictures, options.texts, options.count, options.embed_dim)


if __name__ == "__main__":
    main()
