"""A source → WebDataset shards, as webdataset, OpenCLIP, img2dataset's readers and this package read them.

Worth it where pictures are many and small, or lie on a disk or a network that is slow to open files. The bytes of the
shards depend on the source and the options alone: packing twice gives the same files.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

from clip.data.failures import BadRecord, Tolerance
from clip.data.order import Order
from clip.data.records import Sample, Source
from clip.errors import ClipError, ConfigError, DataError, ImageError
from clip.image_headers import read_header
from clip.images import MAX_BYTES, read_image

__all__ = ["Packed", "pack"]

_EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
"""Formats that every reader of shards takes; others are written as PNG."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """What ``pack`` wrote."""

    shards: int
    samples: int
    size_bytes: int
    failures: tuple[BadRecord, ...]
    """Records that were left out."""


def pack(
    source: Source,
    folder: str | os.PathLike[str],
    *,
    samples_per_shard: int = 10_000,
    shard_bytes: int = 1 << 30,
    seed: int | None = 0,
    max_failures: float = 0.01,
    overwrite: bool = False,
    on_sample: Callable[[int], None] | None = None,
) -> Packed:
    """Writes the records of a source into ``folder``.

    A record is ``KEY.jpg`` (or png, webp: the bytes of its file; other formats become PNG), ``KEY.txt`` with its first
    caption, ``KEY.captions.json`` if there are several, and ``KEY.cls`` if it has a class. Beside the shards lie
    ``sizes.json``, by which they are opened without being read, and ``classnames.txt``.

    samples_per_shard, shard_bytes: a shard ends at whichever it reaches first.
    seed: of the shuffling, for readers that shuffle neighbours only; None keeps the order of the source.
    max_failures: share of records that may be left out because their caption or image header cannot be read.
    on_sample: called with the number of records done so far.
    A shard has its name when it is whole, and ``sizes.json`` appears when all are.
    Raises DataError if the folder has shards already and ``overwrite`` is False, or if too many records are bad.
    """
    for name, value in (("samples_per_shard", samples_per_shard), ("shard_bytes", shard_bytes)):
        if value < 1:
            raise ConfigError(f"{name} is {value}; it must be at least 1")
    folder = Path(folder)
    order = Order(source, seed=seed or 0, shuffle=seed is not None)
    tolerance = Tolerance(max_failures)
    try:
        _make_room(folder, overwrite)
        failures: list[BadRecord] = []
        records = _records(source, order, tolerance, failures, on_sample or (lambda done: None))
        sizes: dict[str, int] = {}
        size_bytes = 0
        for number in itertools.count():
            first = next(records, None)
            if first is None:
                break
            path = folder / f"{number:05d}.tar"
            sizes[path.name] = _write_shard(path, first, records, samples_per_shard, shard_bytes, f"{number:05d}")
            size_bytes += path.stat().st_size
        if not sizes:
            raise DataError(f"{source.name}: none of its {len(source)} records can be read: {failures[0].message}")
        if source.class_names:
            _write(folder / "classnames.txt", "".join(f"{name}\n" for name in source.class_names))
        _write(folder / "sizes.json", json.dumps(sizes, indent=1) + "\n")
    except OSError as error:
        raise DataError(
            f"{folder}: cannot be written ({error.strerror}); choose another folder, or free some"
        ) from error
    return Packed(shards=len(sizes), samples=sum(sizes.values()), size_bytes=size_bytes, failures=tuple(failures))


def _make_room(folder: Path, overwrite: bool) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    old = sorted(path for path in folder.iterdir() if path.name.endswith((".tar", ".tar.partial")))
    finished = [path.name for path in old if path.suffix == ".tar"]
    if finished and not overwrite:
        raise DataError(
            f"{folder}: has shards already, such as {finished[0]}; choose another folder, or overwrite them"
        )
    # The list goes first: it must never describe shards that are being replaced.
    for path in (folder / "sizes.json", folder / "classnames.txt", *old):
        path.unlink(missing_ok=True)


_Members = list[tuple[str, bytes]]
"""Extension and content of each file of a record."""


def _records(
    source: Source,
    order: Order,
    tolerance: Tolerance,
    failures: list[BadRecord],
    on_sample: Callable[[int], None],
) -> Iterator[_Members]:
    """What to write for each record that can be read."""
    for position in range(len(source)):
        row = int(order.draw(position, position + 1).rows[0])
        key, failed = "", []
        try:
            sample = source[row]
            key = sample.key
            yield _members(sample)
        except ClipError as error:
            failed = [BadRecord.of(row, key, error)]
        failures += failed
        tolerance.count(1, failed)
        on_sample(position + 1)


def _members(sample: Sample) -> _Members:
    image = _file_bytes(sample.image) if isinstance(sample.image, Path) else sample.image
    if len(image) > MAX_BYTES:
        raise ImageError(f"has more than {MAX_BYTES} bytes; re-encode the picture as JPEG or PNG")
    extension = _EXTENSIONS.get(read_header(image).format)
    if extension is None:
        buffer = io.BytesIO()
        read_image(image).save(buffer, "PNG")
        extension, image = "png", buffer.getvalue()
    members = [(extension, image), ("txt", sample.captions[0].encode())]
    if len(sample.captions) > 1:
        members.append(("captions.json", json.dumps(sample.captions, ensure_ascii=False).encode()))
    if sample.label is not None:
        members.append(("cls", str(sample.label).encode()))
    return members


def _file_bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise ImageError(f"{path}: cannot be read ({error}); check the path") from error


def _write_shard(
    path: Path, first: _Members, records: Iterator[_Members], most_samples: int, most_bytes: int, prefix: str
) -> int:
    """Writes ``first`` and what follows until the shard is full; the number of records."""
    partial = path.with_name(path.name + ".partial")
    with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
        members: _Members | None = first
        for count in itertools.count(1):  # used after the loop
            assert members is not None
            for extension, content in members:
                info = tarfile.TarInfo(f"{prefix}{count - 1:06d}.{extension}")
                info.size, info.mode = len(content), 0o444  # owner 0 and time 0, as TarInfo has them
                tar.addfile(info, io.BytesIO(content))
            if count == most_samples or tar.offset >= most_bytes:
                break
            members = next(records, None)
            if members is None:
                break
    with partial.open("rb") as file:
        os.fsync(file.fileno())
    partial.replace(path)
    return count


def _write(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)
