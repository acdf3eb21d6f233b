"""The IDX files of MNIST and Fashion-MNIST: all pictures in one file, all labels in another.

The format: two zero bytes, the type of the numbers (8: unsigned bytes), how many dimensions, the length of each as 32
bits big endian, then the numbers (LeCun, Cortes and Burges, "The MNIST database of handwritten digits").
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip.data.class_captions import DEFAULT_TEMPLATES, captions_of_class, checked_templates, read_lines
from clip.data.records import Sample
from clip.errors import ConfigError, DataError

__all__ = ["FASHION_MNIST", "IdxSource", "open_idx"]

FASHION_MNIST = (
    *("t-shirt", "trouser", "pullover", "dress", "coat"),
    *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
)
"""Names of the ten classes, in the words of its authors, without "/top"."""

_PREFIXES = {"train": "train", "test": "t10k"}
_MAX_NUMBERS = 1 << 31
_UNSIGNED_BYTES = 8


def open_idx(folder: str, *, templates: Sequence[str] | None = None, split: str | None = None) -> IdxSource:
    """The pictures of ``train-images-idx3-ubyte`` and its companions, plain or with ``.gz``.

    split: ``train`` or ``test``; may be left out where only one is there.
    Class names are the lines of ``classnames.txt``; without it, those of Fashion-MNIST if the folder's path says so, as
    the files do not, and else the numbers.
    """
    root = Path(folder)
    there = [name for name, prefix in _PREFIXES.items() if any(root.glob(f"{prefix}-images-idx3-ubyte*"))]
    if split is None and len(there) == 1:
        split = there[0]
    if split not in _PREFIXES:
        raise ConfigError(f"split is {split!r}; pass one of {there or list(_PREFIXES)}")
    if split not in there:
        raise DataError(f"{folder}: has no {_PREFIXES[split]}-images-idx3-ubyte; its splits are {there}")
    prefix = _PREFIXES[split]
    images = _read(_find(root, f"{prefix}-images-idx3-ubyte"), dimensions=3)
    labels = _read(_find(root, f"{prefix}-labels-idx1-ubyte"), dimensions=1)
    if len(images) != len(labels):
        raise DataError(f"{folder}: {len(images)} pictures and {len(labels)} labels; fetch the files again")
    if not len(images):
        raise DataError(f"{folder}: has no pictures; fetch the files again")
    if (root / "classnames.txt").is_file():
        names = read_lines(root / "classnames.txt")
    elif "fashion" in str(root.resolve()).lower():
        names = FASHION_MNIST
    else:
        names = tuple(str(label) for label in range(int(labels.max()) + 1))
    if int(labels.max()) >= len(names):
        raise DataError(f"{folder}: has the label {labels.max()} and {len(names)} class names; correct classnames.txt")
    templates = checked_templates(DEFAULT_TEMPLATES if templates is None else templates)
    return IdxSource(folder, images, labels, class_names=names, templates=templates)


class IdxSource:
    """Grey pictures in memory, each given as the bytes of a PGM file."""

    def __init__(
        self,
        name: str,
        images: NDArray[np.uint8],
        labels: NDArray[np.uint8],
        *,
        class_names: tuple[str, ...],
        templates: tuple[str, ...],
    ) -> None:
        """images: (N, H, W); labels: (N,)."""
        self.name = name
        self.class_names = class_names
        self._images = images
        self._labels = labels
        self._templates = templates

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        pixels, label = self._images[index], int(self._labels[index])
        height, width = pixels.shape
        return Sample(
            key=f"{Path(self.name).name}:{index}",
            image=b"P5 %d %d 255\n" % (width, height) + pixels.tobytes(),
            captions=captions_of_class(self.class_names[label], self._templates),
            label=label,
        )


def _find(root: Path, name: str) -> Path:
    for path in (root / name, root / f"{name}.gz"):
        if path.is_file():
            return path
    raise DataError(f"{root / name}: no such file, nor with .gz; fetch it too")


def _read(path: Path, *, dimensions: int) -> NDArray[np.uint8]:
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            if len(header) < 4 + 4 * dimensions or header[:4] != bytes([0, 0, _UNSIGNED_BYTES, dimensions]):
                raise DataError(f"{path}: is no IDX file of {dimensions} dimensions of bytes; fetch it again")
            shape = struct.unpack(f">{dimensions}I", header[4:])
            count = math.prod(shape)
            if count > _MAX_NUMBERS:
                raise DataError(f"{path}: announces {count} bytes, the limit is {_MAX_NUMBERS}; fetch it again")
            chunks: list[bytes] = []  # read as it comes: what is announced need not be there
            missing = count
            while missing and (chunk := file.read(min(missing, 1 << 24))):
                chunks.append(chunk)
                missing -= len(chunk)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error}); fetch it again") from error
    if missing:
        raise DataError(f"{path}: ends {missing} bytes too early; fetch it again")
    return np.frombuffer(b"".join(chunks), dtype=np.uint8).reshape(shape)
