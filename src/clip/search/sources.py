"""What can be indexed beside folders: tables of paths, tar shards, and embeddings that were computed elsewhere.

    open_source("photos.csv")              Pictures: CSV, TSV, JSON lines or Parquet; paths start at the table's folder
    open_source("shards/{000..123}.tar")   Pictures: WebDataset shards; a picture is shard.tar/member
    open_source("photos.npy")              Embedded: what ``clip encode`` wrote, as .npy or .parquet
    open_source("photos/")                 None: a folder or a picture, which need no list

Everything streams: memory does not grow with the number of rows. The other columns of a table, and the .json and .txt
beside a picture in a shard, become its metadata.
"""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import io
import itertools
import json
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TextIO

from clip.data.parquet import arrow_library, open_file, records_of
from clip.data.shards import expand, fetch_once, index_of, is_compressed, is_url, read_member
from clip.data.tables import CAPTION_COLUMNS, bounded_lines, choose_columns, csv_records
from clip.data.tar_index import ShardIndex
from clip.errors import ClipError, DataError, choices
from clip.images import MAX_BYTES
from clip.search.items import Item

if TYPE_CHECKING:
    from clip.search.embedded import Embedded
    from clip.search.seen import Seen

__all__ = ["OnProblem", "Part", "Pictures", "absolute", "in_parts", "json_value", "open_source", "path_of"]

OnProblem = Callable[[ClipError], None]
"""Told of each record that cannot be used, by file and record."""

_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_MAX_TEXT = 1 << 20
"""Bytes of a text or JSON member of a shard."""
_PART_ITEMS = 512
"""Pictures of a part of a table."""
_PART_BYTES = 1 << 26
"""Of a shard, in one part: some hundreds of photographs."""


class Part(Protocol):
    """Some pictures of a source, for another process: small, picklable, and able to read them itself."""

    def items(self, on_problem: OnProblem) -> Iterator[Item]: ...


class Pictures(Protocol):
    """Pictures that are to be read and embedded."""

    @property
    def name(self) -> str:
        """For messages: how it was asked for."""

    def total(self) -> int | None:
        """How many records there are, known ones included; None if telling would take long."""

    def items(self, on_problem: OnProblem, seen: Callable[[str], Seen] | None = None) -> Iterator[Item]:
        """The pictures in the order of the source.

        seen: what the index has under a path; those pictures are left out, and those in shards are not even read.
        Raises DataError if the whole cannot be read; what is wrong with one record goes to ``on_problem``.
        """

    def parts(self, on_problem: OnProblem, seen: Callable[[str], Seen] | None = None) -> Iterator[Part]:
        """The same pictures, to be read by others."""


def open_source(
    argument: str, *, image_column: str | None = None, embedding_column: str | None = None
) -> Pictures | Embedded | None:
    """The pictures or embeddings that an argument means, or None if it is neither a table, nor shards, nor embeddings.

    argument: a file, or several: ``{000..123}`` and ``{a,b}`` as in a shell, ``*``, and ``::`` between addresses.
    image_column: of the paths, in a table; None takes the usual names.
    embedding_column: a Parquet table that has such a column is one of embeddings; None takes the usual names.
    Raises DataError for what is not there or cannot be read, MissingDependencyError for Parquet without pyarrow.
    """
    suffix = Path(argument.split("?")[0]).suffix.lower()
    is_packed = is_compressed(argument) and not argument.endswith((".tar.jpg", ".tar.png"))
    if not (is_packed or suffix in (*_TABLES, ".npy", ".tar")) or Path(argument).is_dir():
        return None
    files = [file if is_url(file) else absolute(file) for file in expand(argument)]
    for file in files:
        if is_compressed(file):
            raise DataError(f"{file}: pictures in a compressed archive cannot be found; decompress it to .tar")
        if is_url(file) and suffix != ".tar":
            raise DataError(f"{file}: only shards are fetched; download the table first")
        if not is_url(file) and not Path(file).is_file():
            raise DataError(f"{file}: no such file; check the address")
    if suffix == ".tar":
        return _Shards(argument, files)
    if suffix in (".npy", ".parquet"):
        from clip.search.embedded import open_embedded

        if (embedded := open_embedded(argument, files, image_column, embedding_column)) is not None:
            return embedded
    return _Tables(argument, files, image_column)


def absolute(path: str, folder: str = "") -> str:
    """A path that starts at a folder, in full. Links stay: a picture is called as it was named."""
    return os.path.abspath(os.path.join(folder, path))  # noqa: PTH100, PTH118  # pathlib keeps ".."


# Tables ---------------------------------------------------------------------------------------------------------------


class _Record(NamedTuple):
    place: str
    """``photos.csv:17``, for messages; rows and lines count from 1."""
    image: object
    metadata: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class _Chunk:
    pictures: tuple[Item, ...]

    def items(self, on_problem: OnProblem) -> Iterator[Item]:
        return iter(self.pictures)


@dataclasses.dataclass(frozen=True)
class _Tables:
    """Tables whose rows name pictures, or hold their files."""

    name: str
    files: Sequence[str]
    image_column: str | None

    def total(self) -> int | None:
        if not all(file.lower().endswith(".parquet") for file in self.files):
            return None
        return sum(int(open_file(Path(file)).metadata.num_rows) for file in self.files)

    def items(self, on_problem: OnProblem, seen: Callable[[str], Seen] | None = None) -> Iterator[Item]:
        known = seen("") if seen else None
        for file in self.files:
            modified_ns = Path(file).stat().st_mtime_ns
            records = _parquet_records if file.lower().endswith(".parquet") else _text_records
            for record in records(file, self.image_column, on_problem):
                try:
                    item = _item_of(record, file, modified_ns)
                except DataError as error:
                    on_problem(error)
                    continue
                if known is None or not known.has(item):
                    yield item

    def parts(self, on_problem: OnProblem, seen: Callable[[str], Seen] | None = None) -> Iterator[Part]:
        return in_parts(self.items(on_problem, seen))


def in_parts(items: Iterator[Item]) -> Iterator[Part]:
    """Pictures that are told one by one, in parts."""
    while chunk := tuple(itertools.islice(items, _PART_ITEMS)):
        yield _Chunk(chunk)


def _item_of(record: _Record, file: str, table_modified_ns: int) -> Item:
    """Raises DataError if the record has neither a path nor the bytes of a file."""
    image = record.image
    if isinstance(image, dict):  # as Hugging Face's data sets have them
        image = image.get("bytes") or image.get("path")
    if isinstance(image, bytes):
        path = f"{file}/{record.place.rpartition(':')[2]}"
        return Item(
            path=path, image=image, size_bytes=len(image), modified_ns=table_modified_ns, metadata=record.metadata
        )
    path = path_of(image, record.place, str(Path(file).parent))
    size_bytes = modified_ns = None
    try:
        state = os.stat(path)  # noqa: PTH116  # twice as fast, for each of millions
        size_bytes, modified_ns = state.st_size, state.st_mtime_ns
    except OSError:
        pass  # reading it will say why
    return Item(path=path, image=path, size_bytes=size_bytes, modified_ns=modified_ns, metadata=record.metadata)


def path_of(image: object, place: str, folder: str) -> str:
    """The path that a table names. Raises DataError if it is none."""
    if not isinstance(image, str) or not image.strip() or "\0" in image:
        raise DataError(f"{place}: the picture is {image!r}; a path is expected")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", image):
        raise DataError(
            f"{place}: the picture {image[:80]!r} is an address, and pictures are not fetched one by one; download "
            "them first (img2dataset writes shards that can be indexed)"
        )
    return absolute(image.strip(), folder)


def json_value(value: object) -> Any:
    """What JSON can hold of a value, else None."""
    if isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, (float, decimal.Decimal)):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, (datetime.date, datetime.time)):  # a datetime is a date
        return value.isoformat()
    if isinstance(value, (list, tuple)):
        return [json_value(element) for element in value]
    if isinstance(value, dict):
        return {str(key): json_value(element) for key, element in value.items()}
    return None


def _known(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Without what a record says nothing of."""
    return {key: kept for key, value in metadata.items() if (kept := json_value(value)) not in (None, "")}


def _image_column(name: str, columns: Sequence[str], asked: str | None) -> str:
    found, _ = choose_columns(columns, asked, None)
    if found is None:
        missing = f"no column {asked!r}" if asked else "no column of pictures by a usual name"
        raise DataError(
            f"{name}: has {missing}; its columns are: {choices(asked or 'image', columns) or 'none'}; name that of the "
            "paths with --image-column"
        )
    return found


def _text_records(file: str, image_column: str | None, on_problem: OnProblem) -> Iterator[_Record]:
    try:
        with Path(file).open("rb") as start:
            is_utf16 = start.read(2) in (b"\xff\xfe", b"\xfe\xff")
        # A path need not be UTF-8; what else is not is its record's problem.
        encoding, errors = ("utf-16", "strict") if is_utf16 else ("utf-8-sig", "surrogateescape")
        with Path(file).open(encoding=encoding, errors=errors, newline="") as text:
            records = _csv_records if file.lower().endswith((".csv", ".tsv")) else _json_records
            for record in records(file, text, image_column, on_problem):
                if _is_unicode(record.metadata):
                    yield record
                else:
                    on_problem(DataError(f"{record.place}: is not UTF-8; save the table as UTF-8"))
    except UnicodeError as error:
        raise DataError(f"{file}: is not valid UTF-16 ({error}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check it") from error


def _is_unicode(metadata: Mapping[str, Any]) -> bool:
    try:
        json.dumps(metadata, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


# CSV ------------------------------------------------------------------------------------------------------------------

_IMAGE_FILE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif|ppm|pgm)$", re.IGNORECASE)
_NUMBER = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]+)?([eE][+-]?[0-9]{1,3})?")


def _csv_records(file: str, text: TextIO, image_column: str | None, on_problem: OnProblem) -> Iterator[_Record]:
    first = next((line for line in bounded_lines(file, text) if line.strip()), None)
    if first is None:
        raise DataError(f"{file}: is empty; write a header, such as path,year, and one row for each picture")
    text.seek(0)
    delimiter = max("\t,;|" if file.lower().endswith(".tsv") else ",\t;|", key=lambda one: _sense(first, one))
    columns: list[str] | None = None
    for line, cells in csv_records(file, bounded_lines(file, text), delimiter):
        if not cells:
            continue
        if columns is None:
            if image_column is None and len(cells) == 1 and _IMAGE_FILE.search(cells[0].strip()):
                columns, image = [""], ""  # a mere list of files
            else:
                columns, image = cells, _image_column(file, cells, image_column)
                continue
        place = f"{file}:{line}"
        if len(cells) != len(columns):
            on_problem(DataError(f"{place}: has {len(cells)} columns, not {len(columns)}; quote texts with commas"))
            continue
        values = dict(zip(columns, cells, strict=True))
        path = values.pop(image)
        yield _Record(place, path, _known({key: _cell(key, value) for key, value in values.items()}))


def _sense(first: str, delimiter: str) -> tuple[bool, int]:
    """How much sense a first line makes with a delimiter."""
    header = next(csv_records("", [first], delimiter), (1, []))[1]
    return choose_columns(header, None, None)[0] is not None, len(header)


def _cell(column: str, value: str) -> str | int | float:
    """Numbers become such, so that they can be compared; "007" is none, and a caption never is."""
    if column.strip().lower() in CAPTION_COLUMNS or not (match := _NUMBER.fullmatch(value.strip())):
        return value.strip()
    return float(value) if match[2] or match[3] else int(value)


def _json_records(file: str, text: TextIO, image_column: str | None, on_problem: OnProblem) -> Iterator[_Record]:
    image: str | None = None
    for line, content in enumerate(bounded_lines(file, text), start=1):
        if not content.strip():
            continue
        place = f"{file}:{line}"
        try:
            record = json.loads(content)
        except (ValueError, RecursionError) as error:
            on_problem(DataError(f"{place}: is not JSON ({error}); write one object a line"))
            continue
        if not isinstance(record, dict):
            on_problem(DataError(f'{place}: is a {type(record).__name__}; an object such as {{"path": …}} is expected'))
            continue
        if image is None:  # the first object stands for all
            image = _image_column(file, list(record), image_column)
        yield _Record(place, record.pop(image, None), _known(record))


# Parquet --------------------------------------------------------------------------------------------------------------


def _parquet_records(file: str, image_column: str | None, on_problem: OnProblem) -> Iterator[_Record]:
    table = open_file(Path(file))
    image = _image_column(file, table.schema_arrow.names, image_column)
    number = 0
    try:
        for batch in table.iter_batches(batch_size=_PART_ITEMS):
            for record in records_of(batch):
                number += 1
                place = f"{file}:{number}"
                if record is None:
                    on_problem(DataError(f"{place}: has a text that is not UTF-8; write the file again"))
                else:
                    yield _Record(place, record.pop(image), _known(record))
    except (OSError, arrow_library().ArrowException) as error:
        raise DataError(f"{file}: row {number + 1} cannot be read ({error}); write the file again") from error


# Tar shards -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Slice:
    """The records of a shard from ``part / parts`` of them on: how many there are need not be known to cut it."""

    shard: str
    part: int
    parts: int
    seen: Seen | None

    def items(self, on_problem: OnProblem) -> Iterator[Item]:
        """A shard that cannot be read, or only so far, is a problem of its own."""
        try:
            yield from self._items(on_problem)
        except DataError as error:
            on_problem(error)
        except OSError as error:
            on_problem(DataError(f"{self.shard}: cannot be read ({error.strerror}); check it"))

    def _items(self, on_problem: OnProblem) -> Iterator[Item]:
        path = fetch_once(self.shard) if is_url(self.shard) else Path(self.shard)
        index = index_of(path)
        modified_ns = path.stat().st_mtime_ns
        first, last = (len(index) * part // self.parts for part in (self.part, self.part + 1))
        with path.open("rb", buffering=0) as file:
            for record in range(first, last):
                place = f"{self.shard}:{index.keys[record]}"
                image = index.member(record, "image")
                if image is None:
                    continue  # a shard may have other files beside pictures
                name = f"{self.shard}/{index.keys[record]}.{index.image_extensions[record]}"
                if self.seen and self.seen(name, image.size, modified_ns):
                    continue
                try:
                    metadata = _beside(index, record, file)
                    content = read_member(file, image, MAX_BYTES)
                except DataError as error:
                    on_problem(DataError(f"{place}: {error}"))
                    continue
                yield Item(path=name, image=content, size_bytes=image.size, modified_ns=modified_ns, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class _Shards:
    """WebDataset shards."""

    name: str
    files: Sequence[str]

    def total(self) -> int | None:
        return None

    def items(self, on_problem: OnProblem, seen: Callable[[str], Seen] | None = None) -> Iterator[Item]:
        for shard in self.files:
            yield from _Slice(shard, 0, 1, seen(f"{shard}/") if seen else None).items(on_problem)

    def parts(self, on_problem: OnProblem, seen: Callable[[str], Seen] | None = None) -> Iterator[Part]:
        for shard in self.files:
            known = seen(f"{shard}/") if seen else None
            try:
                count = 1 if is_url(shard) else -(-Path(shard).stat().st_size // _PART_BYTES)
            except OSError as error:
                on_problem(DataError(f"{shard}: cannot be read ({error.strerror}); check it"))
                continue
            for part in range(count):
                yield _Slice(shard, part, count, known)


def _beside(index: ShardIndex, record: int, file: io.FileIO) -> dict[str, Any]:
    """What the members beside a picture say of it: all of its .json, and .txt as the caption."""
    metadata: dict[str, Any] = {}
    if (member := index.member(record, "json")) is not None:
        try:
            content = json.loads(read_member(file, member, _MAX_TEXT))
        except (ValueError, RecursionError) as error:
            raise DataError(f"its .json is not JSON ({error}); write the shard again") from error
        if not isinstance(content, dict) or not _is_unicode(content):
            raise DataError("its .json is no object of texts and numbers; write the shard again")
        metadata = _known(content)
    if (member := index.member(record, "txt")) is not None:
        try:
            metadata["caption"] = read_member(file, member, _MAX_TEXT).decode().strip()
        except UnicodeDecodeError as error:
            raise DataError(f"its .txt is not UTF-8 at byte {error.start}; write the shard again") from error
    if (member := index.member(record, "cls")) is not None and (
        label := read_member(file, member, _MAX_TEXT).strip()
    ).isdigit():
        metadata["class"] = int(label)
    return metadata
