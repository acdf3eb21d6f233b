"""Tables of pairs: CSV, TSV and JSON lines, whose images are files beside them.

A table is read once, when it is opened; what is kept are the paths and captions as two blocks of bytes. Rows of the
same image are one record with several captions. A row that cannot be used keeps its place and says why when it is read.
"""

from __future__ import annotations

import csv
import json
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TextIO

import numpy as np

from clip.data.records import Sample
from clip.data.strings import Strings
from clip.errors import DataError, choices

__all__ = [
    "CAPTION_COLUMNS",
    "IMAGE_COLUMNS",
    "Row",
    "TableSource",
    "bounded_lines",
    "choose_columns",
    "csv_records",
    "flat",
    "open_table",
    "required_columns",
    "row",
]

IMAGE_COLUMNS = (
    *("image", "image_path", "filepath", "file_path", "filename", "file_name", "path", "file"),
    *("img", "img_path", "image_file", "images", "url", "image_url"),
)
"""Usual names, the preferred ones first; ``filepath`` is OpenCLIP's, ``file_name`` that of Hugging Face's folders."""

CAPTION_COLUMNS = (
    *("caption", "captions", "text", "texts", "title", "titles", "sentence", "sentences"),
    *("description", "alt_text", "raw", "prompt"),
)
"""Usual names, the preferred ones first; ``title`` is OpenCLIP's. With a number behind (``caption_2``) they add up."""

_DELIMITERS = (",", "\t", ";", "|")
_MAX_LINE = 1 << 24
"""Characters; what bounds the memory that a file without line breaks can take."""
_MAX_RECORD_LINES = 200
"""Lines of one record of a CSV file; more mean that a quote was not closed."""
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_IMAGE_FILE = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif|ppm|pgm)$", re.IGNORECASE)


class Row(NamedTuple):
    """One row as it was found."""

    line: int
    """Where it begins, counted from 1."""
    image: str
    captions: tuple[str, ...]
    problem: str = ""
    """Why it cannot be used; then the rest is empty."""


class TableSource:
    """Images named by a table; a relative path starts at the table's folder."""

    class_names: tuple[str, ...] = ()

    def __init__(self, name: str, rows: Iterable[Row]) -> None:
        self.name = name
        self._root = Path(name).parent
        self._problems: dict[int, str] = {}
        self._lines = array("q")
        places: dict[str, int] = {}
        owners = array("q")  # the record that each caption belongs to

        def images() -> Iterator[str]:
            """Paths of the records, in the order of their first rows; captions go aside on the way."""
            for row in rows:
                place = places.get(row.image) if row.image else None
                if place is None:
                    place = len(self._lines)
                    if row.problem:
                        self._problems[place] = row.problem
                    else:
                        places[row.image] = place
                    self._lines.append(row.line)
                    yield row.image
                captions.extend(row.captions)
                owners.extend([place] * len(row.captions))

        captions: list[str] = []
        self._images = Strings(images())
        if not len(self._images):
            raise DataError(f"{name}: has no rows; write one row for each pair")
        if not places:
            line, problem = self._lines[0], self._problems[0]
            raise DataError(f"{name}: none of its {len(self)} rows can be used; the first, line {line}: {problem}")
        self._captions = Strings(captions)
        # Captions of one record need not stand together: they are found by a list sorted by record.
        record_of_caption = np.frombuffer(owners, dtype=np.int64)
        self._caption_order = np.argsort(record_of_caption, kind="stable")
        self._caption_starts = np.searchsorted(record_of_caption[self._caption_order], np.arange(len(self) + 1))

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        key = f"{Path(self.name).name}:{self._lines[index]}"
        if index in self._problems:
            raise DataError(f"{key}: {self._problems[index]}")
        first, last = self._caption_starts[index : index + 2].tolist()
        captions = tuple(self._captions[int(place)] for place in self._caption_order[first:last])
        return Sample(key=key, image=self._root / self._images[index], captions=captions)


def open_table(
    address: str | os.PathLike[str],
    *,
    kind: Literal["csv", "tsv", "jsonl"],
    image_column: str | None = None,
    caption_column: str | None = None,
) -> TableSource:
    """The pairs of a table. Raises DataError, with file and line, if the table as a whole cannot be read."""
    name = os.fspath(address)
    try:
        with Path(name).open("rb") as file:
            start = file.read(4)
        encoding = "utf-16" if start[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
        errors = "strict" if encoding == "utf-16" else "surrogateescape"  # bad bytes are their row's problem
        with Path(name).open(encoding=encoding, errors=errors, newline="") as text:
            if kind == "jsonl":
                return TableSource(name, _json_rows(name, text, image_column, caption_column))
            return TableSource(name, _csv_rows(name, text, kind, image_column, caption_column))
    except UnicodeError as error:
        raise DataError(f"{name}: is not valid {encoding} ({error}); save it as UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise DataError(f"{name}: cannot be read ({error}); check the path") from error


# --- Columns ----------------------------------------------------------------------------------------------------------


def choose_columns(
    columns: Sequence[str], image_column: str | None, caption_column: str | None
) -> tuple[str | None, list[str]]:
    """The image's column and those of the captions, as asked for or by usual names; None and empty if not there."""
    by_name: dict[str, str] = {}
    for column in columns:
        by_name.setdefault(column.strip().lower(), column)
    if image_column is not None:
        image = image_column if image_column in columns else None
    else:
        image = next((by_name[name] for name in IMAGE_COLUMNS if name in by_name), None)
    if caption_column is not None:
        return image, [caption_column] if caption_column in columns else []
    for name in CAPTION_COLUMNS:
        if name in by_name:
            return image, [by_name[name]]
        numbered = re.compile(re.escape(name) + r"[ _-]?[0-9]{1,3}")
        if several := [column for folded, column in by_name.items() if numbered.fullmatch(folded)]:
            return image, several
    return image, []


def required_columns(
    name: str, columns: Sequence[str], image_column: str | None, caption_column: str | None
) -> tuple[str, list[str]]:
    image, captions = choose_columns(columns, image_column, caption_column)
    for what, found, asked, option in (
        ("image", image, image_column, "image_column"),
        ("caption", captions, caption_column, "caption_column"),
    ):
        if not found:
            known = choices(asked or what, columns) or "none"
            missing = f"no column {asked!r}" if asked is not None else f"no column of {what}s by a usual name"
            raise DataError(f"{name}: has {missing}; its columns are: {known}; pass {option}= with one of them")
    assert image is not None
    return image, captions


def row(line: int, image: object, captions: Iterable[object]) -> Row:
    """A row, or what is wrong with it."""
    if not isinstance(image, str) or not image.strip():
        return Row(line, "", (), f"the image is {image!r}; a path is expected")
    if _ADDRESS.match(image):
        return Row(line, "", (), _address_problem(image))
    if "\0" in image:
        return Row(line, "", (), f"the path {image!r} has a null character; check the table")
    kept = []
    for caption in captions:
        if not isinstance(caption, str):
            return Row(line, "", (), f"the caption is {caption!r}; a text or a list of texts is expected")
        if caption := caption.strip():
            kept.append(caption)
    if not kept:
        return Row(line, "", (), "the caption is empty; write one, or remove the row")
    try:
        "".join(kept).encode()
    except UnicodeEncodeError:
        return Row(line, "", (), "the caption is not UTF-8; save the table as UTF-8")
    return Row(line, image.strip(), tuple(kept))


def _address_problem(image: str) -> str:
    return (
        f"the image {image[:80]!r} is an address, and training fetches none; fetch them first (img2dataset writes "
        "shards that can be opened), or write paths of files"
    )


def bounded_lines(name: str, text: TextIO) -> Iterator[str]:
    """The lines of a file with their ends. Raises DataError for one so long that the file is no table."""
    while line := text.readline(_MAX_LINE + 1):
        if len(line) > _MAX_LINE:
            raise DataError(f"{name}: a line is longer than {_MAX_LINE} characters; it is no table of pairs")
        yield line


# --- CSV --------------------------------------------------------------------------------------------------------------


class _Layout(NamedTuple):
    delimiter: str
    image: int
    """Index of the column."""
    captions: list[int]
    has_header: bool


def _csv_rows(
    name: str, text: TextIO, kind: str, image_column: str | None, caption_column: str | None
) -> Iterator[Row]:
    lines = bounded_lines(name, text)
    first = next((line for line in lines if line.strip()), None)
    if first is None:
        raise DataError(f"{name}: is empty; write a header, such as image,caption, and one row for each pair")
    layout = _layout(name, first, kind, image_column, caption_column)
    text.seek(0)
    last_column = max(layout.image, *layout.captions)
    to_skip = layout.has_header
    for line, cells in csv_records(name, bounded_lines(name, text), layout.delimiter):
        if not cells:  # an empty line
            continue
        if to_skip:
            to_skip = False
        elif len(cells) <= last_column:
            yield Row(line, "", (), f"has {len(cells)} columns, {last_column + 1} are needed; quote texts with commas")
        else:
            yield row(line, cells[layout.image], [cells[i] for i in layout.captions])


def _layout(name: str, first: str, kind: str, image_column: str | None, caption_column: str | None) -> _Layout:
    """The delimiter and columns: those for which the first line makes most sense."""
    delimiters = sorted(_DELIMITERS, key=lambda delimiter: (kind == "tsv") != (delimiter == "\t"))
    headers = {delimiter: next(csv_records(name, [first], delimiter), (1, []))[1] for delimiter in delimiters}

    def sense(delimiter: str) -> tuple[int, int]:
        image, captions = choose_columns(headers[delimiter], image_column, caption_column)
        return bool(image) + bool(captions), len(headers[delimiter])

    delimiter = max(delimiters, key=sense)
    header = headers[delimiter]
    if image_column is None and caption_column is None and sense(delimiter)[0] == 0:
        pictures = [i for i, cell in enumerate(header) if _IMAGE_FILE.search(cell.strip())]
        if len(pictures) == 1 and len(header) == 2:  # no header, but nothing else it could mean
            return _Layout(delimiter, pictures[0], [1 - pictures[0]], has_header=False)
    image, captions = required_columns(name, header, image_column, caption_column)
    return _Layout(delimiter, header.index(image), [header.index(column) for column in captions], has_header=True)


def csv_records(name: str, lines: Iterable[str], delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Line and cells of each record. Raises DataError for a quote without an end, which swallows what follows it."""
    number = 1
    parts: list[str] = []  # the lines of the record at hand

    def noted() -> Iterator[str]:
        for line in lines:
            parts.append(line)
            yield line
            if len(parts) >= _MAX_RECORD_LINES:
                raise DataError(_open_quote(name, number))

    try:
        for cells in csv.reader(noted(), delimiter=delimiter):
            if not _is_closed(parts, delimiter):
                raise DataError(_open_quote(name, number))
            yield number, cells
            number += len(parts)
            parts.clear()
    except csv.Error as error:
        raise DataError(f"{name}: the record that begins in line {number} cannot be read: {error}") from error


def _open_quote(name: str, number: int) -> str:
    return f"{name}: the quote opened in line {number} is not closed; double the quotes inside a text"


def _is_closed(parts: list[str], delimiter: str) -> bool:
    """False for the last record of a file if its quote is still open, which the reader passes over in silence."""
    if '"' not in parts[-1] and len(parts) == 1:
        return True
    if sum(part.count('"') for part in parts) % 2 == 0:
        return True
    try:
        list(csv.reader(parts, delimiter=delimiter, strict=True))
    except csv.Error as error:
        return "unexpected end of data" not in str(error)
    return True


# --- JSON lines -------------------------------------------------------------------------------------------------------


def _json_rows(name: str, text: TextIO, image_column: str | None, caption_column: str | None) -> Iterator[Row]:
    columns: tuple[str, list[str]] | None = None
    for number, line in enumerate(bounded_lines(name, text), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Row(number, "", (), f"is not JSON ({error}); write one object a line")
            continue
        if not isinstance(record, dict):
            yield Row(number, "", (), f"is a {type(record).__name__}; an object such as {_EXAMPLE} is expected")
            continue
        if columns is None:  # the first object stands for all
            columns = required_columns(name, list(record), image_column, caption_column)
        image_key, caption_keys = columns
        if image_key not in record:
            yield Row(number, "", (), f"has no {image_key!r}; each line needs the same names")
            continue
        yield row(number, record[image_key], flat(record.get(key) for key in caption_keys))


_EXAMPLE = '{"image": "a.jpg", "caption": "a cat"}'


def flat(values: Iterable[Any]) -> Iterator[object]:
    """Captions of a field, which may be one text, a list of them, or missing."""
    for value in values:
        if isinstance(value, list):
            yield from value
        elif value is not None:
            yield value
