"""The files of MNIST and Fashion-MNIST, whole, cut and wrong."""

from __future__ import annotations

import gzip
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from clip.data.idx import FASHION_MNIST
from clip.data.sources import open_source
from clip.errors import ConfigError, DataError
from clip.images import read_pixels


def _idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "fashion"
    root.mkdir()
    images = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5)
    (root / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(_idx(images)))
    (root / "t10k-labels-idx1-ubyte").write_bytes(_idx(np.array([9, 0, 3], dtype=np.uint8)))
    return root


def test_pictures_and_classes(folder: Path) -> None:
    source = open_source(folder, templates=["a {}"])
    assert len(source) == 3 and source.class_names == FASHION_MNIST
    assert (source[0].label, source[0].captions, source[0].key) == (9, ("a ankle boot",), "fashion:0")
    pixels = read_pixels(source[1].image)  # type: ignore[arg-type]
    assert pixels.shape == (4, 5, 3) and (pixels[..., 0] == np.arange(20, 40).reshape(4, 5)).all()
    assert pickle.loads(pickle.dumps(source))[2] == source[2]
    with pytest.raises(IndexError):
        source[3]


def test_splits_and_names(folder: Path) -> None:
    assert len(open_source(folder, split="test")) == 3
    with pytest.raises(ConfigError, match="split is 'val'; pass one of"):
        open_source(folder, split="val")
    with pytest.raises(DataError, match="has no train-images"):
        open_source(folder, split="train")
    (folder / "train-images-idx3-ubyte").touch()
    with pytest.raises(ConfigError, match="split is None; pass one of"):
        open_source(folder)
    (folder / "train-images-idx3-ubyte").unlink()
    (folder / "classnames.txt").write_text("a\nb\nc\n")
    with pytest.raises(DataError, match="has the label 9 and 3 class names"):
        open_source(folder)
    (folder / "classnames.txt").unlink()
    folder.rename(folder.with_name("digits"))
    assert open_source(folder.with_name("digits")).class_names == tuple("0123456789")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is no IDX file of 1 dimensions"),
        (b"\0\0\x0d\x01\0\0\0\x03abc", "is no IDX file"),
        (b"\0\0\x08\x01\0\0\0\x03ab", "ends 1 bytes too early"),
        (b"\0\0\x08\x01\xff\xff\xff\xffab", r"announces 4294967295 bytes, the limit is"),
        (_idx(np.zeros(2, dtype=np.uint8)), "3 pictures and 2 labels"),
    ],
)
def test_labels_that_cannot_be(folder: Path, content: bytes, message: str) -> None:
    (folder / "t10k-labels-idx1-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=message):
        open_source(folder)


def test_files_that_are_damaged_or_missing(folder: Path) -> None:
    path = folder / "t10k-images-idx3-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataError, match="cannot be read"):
        open_source(folder)
    path.write_bytes(b"not gzip")
    with pytest.raises(DataError, match="cannot be read"):
        open_source(folder)
    (folder / "t10k-labels-idx1-ubyte").unlink()
    path.write_bytes(gzip.compress(_idx(np.zeros((0, 4, 4), dtype=np.uint8))))
    with pytest.raises(DataError, match=r"no such file, nor with \.gz"):
        open_source(folder)
