"""2,000 mutated inputs: tables, shards, IDX, Parquet, pictures and recipes give records, counted skips or a ClipError.

Each is opened, read whole and examined as ``clip data check`` does it, within seconds: no crash, no hang, no other
exception. Mutations are of bytes, and of what stands in the format: numbers of headers, quotes, nesting, encodings.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import io
import json
import random
import signal
import struct
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from clip.cli import train as train_verb
from clip.data.doctor import examine
from clip.data.doctor_page import report_lines
from clip.data.records import Sample, Source
from clip.data.sources import open_source
from clip.errors import ClipError, DataError
from clip.training.config import TrainConfig, read_toml

SECONDS = 60.0  # for one input, on a busy machine; the usual one takes milliseconds
Outcome = Counter[str]


@pytest.fixture(autouse=True, scope="module")
def _no_cache_outside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def fail(*_: object) -> None:
        raise AssertionError(f"took longer than {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, fail)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _picture(seed: int, image_format: str = "PNG", side: int = 9) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, image_format)
    return file.getvalue()


# --- mutations --------------------------------------------------------------------------------------------------------


def _mutated(data: bytes, rng: random.Random) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 20])):
        size = len(changed)
        at = rng.randrange(size)
        kind = rng.randrange(8)
        if kind == 0:
            changed[at] = rng.randrange(256)
        elif kind == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 2:
            del changed[at : at + rng.choice([1, 4, 100, 10_000])]
        elif kind == 3:
            changed[at:at] = rng.randbytes(rng.choice([1, 4, 40]))
        elif kind == 4:
            length, other = rng.choice([1, 8, 64, 512]), rng.randrange(size)
            changed[at : at + length] = changed[other : other + length]
        elif kind == 5:
            changed[at : at + 4] = rng.choice([b"\xff" * 4, b"\0" * 4, b"\xff\xff\xff\x7f", b"\0\0\xc0\x7f"])
        elif kind == 6:
            changed = changed[:at]
        else:
            changed += changed[at:]
        changed = changed or bytearray(b"x")
    return bytes(changed)


def _encodings(text: str) -> list[bytes]:
    return [
        text.encode("utf-8-sig"),
        text.encode("utf-16"),
        text.encode("utf-16-be"),
        text.encode("utf-32"),
        text.encode("latin-1", "replace"),
        text.replace("\n", "\r\n").encode(),
        text.replace("\n", "\r").encode(),
        text.replace("\n", "\0").encode(),
        text.replace("\n", "\x85").encode(),
        text.encode() * 40,
        b"\x1f\x8b" + text.encode(),
        gzip.compress(text.encode()),
        b"",
        b"\n" * 1000,
        b"\xff\xfe",
        b"\xef\xbb\xbf",
    ]


_WORDS = (
    *(
        '"',
        '""',
        "'",
        ",",
        "\t",
        ";",
        "|",
        "\n",
        "\r",
        "\0",
        "\\",
        "\u2028",
        "\ufeff",
        "\ufffd",
        "\U0010ffff",
        "a" * 5000,
    ),
    *(
        "../" * 50 + "etc/passwd",
        "/dev/null",
        "/dev/stdin",
        "/",
        "",
        " ",
        ".",
        "file:///etc/passwd",
        "https://x.test/a.png",
    ),
    *(
        "[" * 3000,
        "{" * 3000,
        '{"a":' * 3000,
        "1e999",
        "NaN",
        "-0",
        "null",
        "true",
        "[]",
        "{}",
        "9" * 5000,
        '"\\ud800"',
    ),
    *("\\ud83d", '"\\u0000"', "image", "caption", "=cmd()", "<|endoftext|>", "%s%n", "{}", "{0.__class__}", "{{ 1 }}"),
)


def _mutated_text(text: str, rng: random.Random) -> bytes:
    """Whole tokens inserted or exchanged, or cells, lines and encodings."""
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(_encodings(text))
    if kind == 1:
        lines = text.splitlines(keepends=True)
        rng.shuffle(lines)
        return "".join(lines[: rng.randrange(1, len(lines) + 1)]).encode()
    if kind <= 3:
        return _mutated(text.encode(), rng)
    for _ in range(rng.choice([1, 2, 4])):
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(_WORDS) + text[at + rng.choice([0, 0, 1, 7]) :]
    return text.encode("utf-8", "replace")


# --- what every input goes through ------------------------------------------------------------------------------------


def _use(open_it: Callable[[], Source], outcome: Outcome) -> None:
    with _time_limit():
        try:
            source = open_it()
            assert len(source) >= 1
            for index in range(min(len(source), 500)):
                try:
                    _check_sample(source[index])
                except DataError as error:
                    assert len(str(error)) > 10
            report = examine(source, workers=1)
        except ClipError as error:
            assert len(str(error)) > 10
            str(error).encode("utf-8", "surrogateescape")
            outcome["refused"] += 1
            return
    assert report.pairs <= report.records == len(source)
    assert report_lines(report)
    json.dumps(dataclasses.asdict(report))
    outcome["good" if report.pairs == report.records else "skipped"] += 1


def _check_sample(sample: Sample) -> None:
    assert sample.key
    assert isinstance(sample.image, Path | bytes)
    assert all(isinstance(caption, str) for caption in sample.captions)
    "".join(sample.captions).encode()  # what a tokenizer can take


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(_picture(number))
    return tmp_path


def _csv(delimiter: str) -> str:
    rows = [
        "image,caption,other",
        '0.png,"a cat, sleeping",1',
        "1.png,ein Käfer,2",
        '2.png,"two\nlines",3',
        "3.png,猫,4",
    ]
    return "\n".join(rows).replace(",", delimiter) + "\n"


_JSONL = "".join(
    json.dumps({"image": f"{number}.png", "caption": caption, "other": [1, {"a": None}]}) + "\n"
    for number, caption in enumerate(["a cat", ["ein Käfer", "a beetle"], "two\nlines", "猫"])
)


_TABLES = {"pairs.csv": _csv(","), "pairs.tsv": _csv("\t"), "pairs.jsonl": _JSONL}


@pytest.mark.parametrize("name", _TABLES)
def test_tables(folder: Path, name: str) -> None:
    rng, outcome, text = random.Random(name), Outcome(), _TABLES[name]
    path = folder / name
    _use(lambda: _written(path, text.encode()), outcome)
    assert outcome == {"good": 1}
    for _ in range(200):
        data = _mutated_text(text, rng)
        _use(lambda data=data: _written(path, data), outcome)  # type: ignore[misc]
    assert min(outcome["refused"], outcome["skipped"], outcome["good"]) > 10, outcome


def _written(path: Path, data: bytes) -> Source:
    path.write_bytes(data)
    return open_source(path)


def test_texts_beside_pictures(folder: Path) -> None:
    rng, outcome = random.Random(1), Outcome()
    for number in range(4):
        (folder / f"{number}.txt").write_text(f"caption {number}\nanother\n")
    for _ in range(60):
        (folder / "2.txt").write_bytes(_mutated_text("a caption\nanother ä\n", rng))
        _use(lambda: open_source(folder), outcome)
    assert outcome["good"] > 10, outcome


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_pictures(tmp_path: Path, image_format: str) -> None:
    rng, outcome = random.Random(image_format), Outcome()
    picture = _picture(0, image_format, side=24)
    (tmp_path / "a.png").write_bytes(_picture(1))
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text("a caption")
    for _ in range(50):
        (tmp_path / "b.png").write_bytes(_mutated(picture, rng))
        _use(lambda: open_source(tmp_path), outcome)
    assert not outcome["refused"]  # one bad picture never stops the others
    assert outcome["skipped"] > 5, outcome


# --- shards -----------------------------------------------------------------------------------------------------------


def _tar(tar_format: int = tarfile.USTAR_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tar_format) as tar:
        for number in range(4):
            key = f"part/{number:04d}" + ("ü" * 90 if number == 3 else "")
            for extension, data in (
                ("png", _picture(number)),
                ("txt", f"caption {number}".encode()),
                ("json", json.dumps({"caption": "from json", "status": "success"}).encode()),
            ):
                member = tarfile.TarInfo(f"{key}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


_FIELDS = ((0, 100), (100, 8), (124, 12), (136, 12), (148, 8), (156, 1), (157, 100), (257, 8), (345, 155))
_VALUES = (
    *(b"77777777777\0", b"00000000000\0", b"-0000000001\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"\x80" + b"\0" * 11),
    *(
        b"1",
        b"2",
        b"5",
        b"x",
        b"g",
        b"L",
        b"S",
        b"K",
        b"\0",
        b"../../../etc/passwd",
        b"/etc/passwd",
        b"a" * 100,
        b".png",
    ),
    *(b"part/0000.png", b"part/0001.txt", b"\xff\xfe.txt", b"C:\\x.png", b"x" * 100 + b".png"),
)


def _mutated_tar(data: bytes, rng: random.Random) -> bytes:
    """Fields of headers changed, with a checksum that is right again: otherwise every change ends there."""
    if rng.random() < 0.4:
        return _mutated(data, rng)
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 4])):
        headers = [at for at in range(0, len(changed) - 511, 512) if changed[at + 257 : at + 262] == b"ustar"]
        at = rng.choice(headers)
        start, length = rng.choice(_FIELDS)
        value = rng.choice(_VALUES) if rng.random() < 0.7 else rng.randbytes(length)
        changed[at + start : at + start + length] = value[:length].ljust(length, b"\0")
        if start != 148:
            changed[at + 148 : at + 156] = b" " * 8
            changed[at + 148 : at + 156] = b"%06o\0 " % sum(changed[at : at + 512])
    return bytes(changed)


@pytest.mark.parametrize("tar_format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_shards(tmp_path: Path, tar_format: int) -> None:
    rng, outcome = random.Random(tar_format), Outcome()
    data = _tar(tar_format) if tar_format != tarfile.USTAR_FORMAT else _tar_of_short_names()
    for number in range(120):
        path = tmp_path / f"{number}.tar"  # a new name each time: indices of shards are remembered
        path.write_bytes(_mutated_tar(data, rng))
        _use(lambda path=path: open_source(path), outcome)  # type: ignore[misc]
        path.unlink()
    assert min(outcome["refused"], outcome["skipped"]) > 10, outcome


def _tar_of_short_names() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for number in range(3):
            for extension, data in (("png", _picture(number)), ("txt", b"a caption"), ("cls", b"1")):
                member = tarfile.TarInfo(f"{number:04d}.{extension}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return file.getvalue()


@pytest.mark.parametrize("extension", ["txt", "json", "cls", "captions.json"])
def test_texts_in_shards(tmp_path: Path, extension: str) -> None:
    rng, outcome = random.Random(extension), Outcome()
    text = {"txt": "a caption ä", "json": '{"caption": "from json", "a": [1, 2]}', "cls": "1"}.get(
        extension, '["a", "b"]'
    )
    for number in range(40):
        path = tmp_path / f"{number}.tar"
        with tarfile.open(path, "w") as tar:
            for name, data in (
                ("0.png", _picture(0)),
                ("0.txt", b"a caption"),
                ("1.png", _picture(1)),
                (f"1.{extension}", _mutated_text(text, rng)),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        _use(lambda path=path: open_source(path), outcome)  # type: ignore[misc]
        path.unlink()
    assert outcome["skipped"] + outcome["good"] > 10, outcome


@pytest.mark.parametrize(
    "address", ["{0..9999999999}.tar", "{" * 50 + ".tar", "{a,{b,{c,d}}}.tar", "[.tar", "*" * 40 + ".tar"]
)
def test_addresses(tmp_path: Path, address: str) -> None:
    outcome = Outcome()
    _use(lambda: open_source(f"{tmp_path}/{address}"), outcome)
    assert outcome == {"refused": 1}


# --- IDX and Parquet --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("is_compressed", [False, True])
def test_idx(tmp_path: Path, is_compressed: bool) -> None:
    rng, outcome = random.Random(int(is_compressed)), Outcome()
    pixels = np.random.default_rng(0).integers(0, 256, (5, 6, 6), dtype=np.uint8)
    images = struct.pack(">4B3I", 0, 0, 8, 3, 5, 6, 6) + pixels.tobytes()
    labels = struct.pack(">4BI", 0, 0, 8, 1, 5) + bytes([0, 1, 2, 1, 0])
    pack = gzip.compress if is_compressed else bytes
    suffix = ".gz" if is_compressed else ""
    for _ in range(120):
        both = [pack(images), pack(labels)]
        which = rng.randrange(2)
        both[which] = _mutated_idx(images if which == 0 else labels, pack, rng)
        (tmp_path / f"train-images-idx3-ubyte{suffix}").write_bytes(both[0])
        (tmp_path / f"train-labels-idx1-ubyte{suffix}").write_bytes(both[1])
        _use(lambda: open_source(tmp_path, kind="idx", split="train"), outcome)
    assert min(outcome["refused"], outcome["good"]) > 10, outcome


def _mutated_idx(data: bytes, pack: Callable[[bytes], bytes], rng: random.Random) -> bytes:
    if rng.random() < 0.4:
        return _mutated(pack(data), rng)
    changed = bytearray(data)
    at = rng.randrange(min(16, len(changed)))
    changed[at] = rng.choice([0, 1, 0x7F, 0x80, 0xFF])
    return pack(bytes(changed))


def test_parquet(folder: Path) -> None:
    rng, outcome = random.Random(5), Outcome()
    path = folder / "pairs.parquet"
    names = [f"{number}.png" for number in range(4)]
    files = [{"bytes": _picture(number), "path": None} for number in range(4)]
    for column in (names, files):
        table = pyarrow.table({"image": column, "caption": ["a", "b", "c", "d"]})
        pyarrow.parquet.write_table(table, path, row_group_size=2)
        data = path.read_bytes()
        for _ in range(60):
            changed = _mutated(data, rng)
            _use(lambda changed=changed: _written(path, changed), outcome)  # type: ignore[misc]
    assert outcome["refused"] > 10, outcome


# --- recipes ----------------------------------------------------------------------------------------------------------


_TOML = """
data = ["pairs.csv"]
architecture = "tiny"
steps = 100
batch_size = 64
learning_rate = 1e-3
seed = 0
flip = 0.5
crop_scale = [0.8, 1.0]
"""


def test_recipes(tmp_path: Path) -> None:
    rng, outcome = random.Random(6), Outcome()
    path = tmp_path / "recipe.toml"
    parts: list[type[Any]] = [train_verb.Inputs, TrainConfig]
    known = [field.name for part in parts for field in dataclasses.fields(part)]
    for number in range(300):
        path.write_bytes(_mutated_recipe(rng, known) if number else _TOML.encode())
        with _time_limit():
            try:
                values = read_toml(path, known)
                for part in parts:
                    names = {field.name for field in dataclasses.fields(part)}
                    part(**{name: value for name, value in values.items() if name in names})
            except ClipError as error:
                assert len(str(error)) > 10
                outcome["refused"] += 1
            else:
                outcome["good"] += 1
    assert min(outcome["refused"], outcome["good"]) > 5, outcome


def _mutated_recipe(rng: random.Random, known: list[str]) -> bytes:
    if rng.random() < 0.5:
        return _mutated_text(_TOML, rng)
    values = [
        "0",
        "-1",
        "1e309",
        "nan",
        "inf",
        "9" * 400,
        "9" * 5000,
        "true",
        '""',
        '"x"',
        "[]",
        "[[1]]",
        "{}",
        "1979-05-27",
    ]
    lines = [f"{name} = {rng.choice(values)}" for name in rng.sample(known, rng.randrange(1, 5))]
    return ("\n".join(lines) + "\n").encode()
