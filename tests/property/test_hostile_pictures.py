"""A folder of 500 hostile files: each is indexed or reported, and nothing is opened that never ends."""

from __future__ import annotations

import io
import os
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip.errors import ImageError
from clip.images import read_pixels
from clip.search.changes import Report
from clip.search.index import Index
from clip.search.indexing import update_folders

SEEDS = 72
"""Mutations of each kind of file."""
FORMATS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif", "PPM": "ppm"}


def picture(number: int, image_format: str) -> bytes:
    pixels = np.random.default_rng(number).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).resize((49, 35), Image.Resampling.NEAREST).save(file, image_format)
    return file.getvalue()


def mutated(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    kind = rng.randrange(5)
    if kind == 0:  # cut off
        return bytes(damaged[: rng.randrange(len(damaged))])
    if kind == 1:  # a hole
        start = rng.randrange(len(damaged))
        del damaged[start : start + rng.randrange(1, 40)]
    elif kind == 2:  # repeated
        start = rng.randrange(len(damaged))
        damaged[start:start] = damaged[start : start + rng.randrange(1, 200)]
    else:
        for _ in range(rng.choice((1, 3, 30))):
            place = rng.randrange(len(damaged) if kind == 3 else min(64, len(damaged)))  # often in the header
            damaged[place] = rng.choice((0, 255, rng.randrange(256)))
    return bytes(damaged)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def bombs() -> dict[str, bytes]:
    """Files of a few kilobytes that ask for gigabytes."""
    png = b"\x89PNG\r\n\x1a\n"
    zeros = zlib.compress(bytes(1 << 22), 9)
    huge = png + _chunk(b"IHDR", struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)) + _chunk(b"IDAT", zeros)
    text = _chunk(b"zTXt", b"comment\0\0" + zlib.compress(bytes(1 << 26), 9))
    small = picture(1, "PNG")
    return {
        "huge.png": huge + _chunk(b"IEND", b""),
        "huge.bmp": b"BM"
        + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 1 << 30, 1 << 30, 1, 24, 0, 0, 0, 0, 0, 0),
        "huge.gif": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b",\0\0\0\0\xff\xff\xff\xff\0\x02\0;",
        "huge.ppm": b"P6 99999999 99999999 255\n",
        "text.png": small[:33] + text * 8 + small[33:],  # half a gigabyte of comment; the picture itself is good
        "empty.jpg": b"",
        "zeros.webp": bytes(4096),
        "page.jpg": b"<html><script>alert(1)</script>",
    }


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile") / "pictures"
    folder.mkdir()
    rng = random.Random(0)
    for seed in range(SEEDS):
        for image_format, extension in FORMATS.items():
            (folder / f"{extension}{seed:03}.{extension}").write_bytes(mutated(picture(seed, image_format), rng))
    for name, data in bombs().items():
        (folder / name).write_bytes(data)
    extensions = [*FORMATS.values()]
    for place, image_format in enumerate(FORMATS):  # pictures under the name of another format
        (folder / f"wrong{place}.{extensions[place - 1]}").write_bytes(picture(900 + place, image_format))
    names = [
        "a\nb.jpg",
        "\x1b[31mred.jpg",
        "'; rm -rf ~ #.jpg",
        "-rf.jpg",
        "%s{0}$HOME.jpg",
        "*.jpg",
        f"{'n' * 251}.jpg",
    ]
    paths = [os.fsencode(folder / name) for name in names]
    paths += [
        bytes(folder) + b"/" + name + b".jpg" for name in (b"\xff\xfe", b"\x80", "ü".encode("latin1"), b"\xed\xa0\x80")
    ]
    for number, path in enumerate(paths):
        Path(os.fsdecode(path)).write_bytes(picture(1000 + number, "JPEG"))
    (folder / "loop").symlink_to(folder)
    (folder / "sub").mkdir()
    (folder / "sub" / "up").symlink_to("..")
    (folder / "one.jpg").symlink_to("two.jpg")
    (folder / "two.jpg").symlink_to("one.jpg")
    (folder / "broken.jpg").symlink_to("nowhere")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "zero.jpg").symlink_to("/dev/zero")
    (folder / "memory.png").symlink_to("/proc/self/mem")
    (folder / "folder.jpg").mkdir()
    (folder / "closed").mkdir()
    (folder / "closed" / "good.jpg").write_bytes(picture(2000, "JPEG"))
    return folder


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """One folder cannot be read; root may read every folder, so permissions would not do."""
    scandir = os.scandir

    def guarded(folder: str) -> Any:
        if os.fspath(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[Index]:
    with Index.open(tmp_path / "index", model="pocket", create=True) as index:
        yield index


def _is_good(path: Path) -> bool:
    try:
        read_pixels(path)
    except ImageError:
        return False
    return True


def test_each_of_500_hostile_files_is_indexed_or_reported(hostile: Path, closed: None, index: Index) -> None:
    files = [path for path in hostile.iterdir() if path.is_file() and not str(path.resolve()).startswith("/proc")]
    assert len(files) >= 500
    report = update_folders(index.store, index.encoder, [str(hostile)])
    stored = {row.path for row in index.store.known()}
    failed = {failed.path: failed.reason for failed in report.failed}
    good = {str(path) for path in files if _is_good(path)}
    assert stored == good and report.added == len(good) == report.embedded >= 100
    not_files = {str(hostile / name) for name in ("closed", "one.jpg", "two.jpg")}
    assert failed.keys() - {str(hostile / "memory.png")} == {str(path) for path in files} - good | not_files
    assert len(failed) == len(report.failed) >= 200
    assert failed[str(hostile / "closed")] == "cannot be read (Permission denied)"
    assert "limit" in failed[str(hostile / "huge.png")]
    assert str(hostile / "text.png") in stored
    for reason in failed.values():
        assert 10 < len(reason) < 500 and "Traceback" not in reason
    assert len([path for path in good if "\n" in path or not path.isprintable()]) >= 5
    _everything_can_be_found(index, good)

    again = update_folders(index.store, index.encoder)
    assert again.unchanged == len(good) and again.embedded == 0 and len(again.failed) == len(report.failed)


def _everything_can_be_found(index: Index, good: set[str]) -> None:
    for path in sorted(good, key=os.fsencode)[::25]:
        (embedding,) = index.encoder.images([path])
        (nearest,) = index.store.nearest(embedding[None], 3, exact=True)
        assert path in [row.path for row in index.store.find(nearest.ids).rows]


def test_files_that_change_while_they_are_read(tmp_path: Path, index: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    """Removed, shortened, or turned into a pipe between the walk and the reading."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    names = ("stays", "removed", "shortened", "pipe", "folder")
    for number, name in enumerate(names):
        (folder / f"{name}.jpg").write_bytes(picture(number, "JPEG"))
    from clip.search.changes import find_changes
    from clip.search.indexing import apply_changes

    found = find_changes(index.store, [str(folder)])
    for name in ("removed", "pipe", "folder"):
        (folder / f"{name}.jpg").unlink()
    (folder / "shortened.jpg").write_bytes(b"\xff\xd8\xff")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "folder.jpg").mkdir()
    report: Report = apply_changes(index.store, index.encoder, found)
    assert report.added == 1 and len(report.failed) == 4
    assert [Path(row.path).stem for row in index.store.known()] == ["stays"]
