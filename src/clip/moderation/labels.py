"""Labels that people gave, from a CSV file in either of two forms:

    path,category,label            one row for each picture and category that is known; yes, no, true, false, 1 or 0
    path,categories                one row for each picture; names between semicolons, all others of the policy are no

The first is what the review page exports. Other columns are passed over.
"""

from __future__ import annotations

import dataclasses
import io
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from clip.data.tables import bounded_lines, csv_records
from clip.errors import DataError, choices
from clip.moderation.policy import Policy

__all__ = ["LabelledPicture", "Labels", "read_labels"]

_YES, _NO = ("yes", "true", "1"), ("no", "false", "0")
_FORMS = "path,category,label or path,categories"


@dataclasses.dataclass(frozen=True, slots=True)
class LabelledPicture:
    """One path and what is known of it."""

    path: str
    """Absolute, or relative to the working directory; never to the table."""
    known: dict[str, bool]
    """Names of categories, and whether the picture belongs to them."""
    line: int
    """Of the table, where the picture comes first, counted from 1."""


@dataclasses.dataclass(frozen=True, slots=True)
class Labels:
    """A table of labels. Rows of one path are one picture."""

    name: str
    """Where they come from, for messages."""
    pictures: tuple[LabelledPicture, ...]
    """In the order in which they come first."""
    rows: int
    repeated: int
    """Rows that say what another row has said."""

    def counts(self, category: str) -> tuple[int, int]:
        """How many paths are labelled yes, and how many no."""
        known = [picture.known[category] for picture in self.pictures if category in picture.known]
        return sum(known), len(known) - sum(known)


class _Said(NamedTuple):
    line: int
    path: str
    category: str
    belongs: bool


def read_labels(source: str | os.PathLike[str] | BinaryIO, policy: Policy, *, name: str | None = None) -> Labels:
    """The labels of a file, or of a stream of bytes such as ``sys.stdin.buffer``.

    Relative paths start at the file's folder; for a stream at the working directory. They need not be UTF-8.
    Raises DataError, with file and line, for a table without the columns, an unknown category, a label that is none of
    the six words, and rows that contradict each other.
    """
    if isinstance(source, str | os.PathLike):
        name, folder = name or os.fspath(source), Path(source).parent
        try:
            with Path(source).open("rb") as file:
                return _read(file, name, folder, policy)
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{name}: cannot be read ({reason}); check the path") from error
    return _read(source, name or "<stdin>", Path(), policy)


def _read(file: BinaryIO, name: str, folder: Path, policy: Policy) -> Labels:
    said: dict[tuple[str, str], _Said] = {}
    pictures: dict[str, LabelledPicture] = {}
    rows = repeated = 0
    try:
        for row in _rows(file, name, folder, [category.name for category in policy.categories]):
            rows += 1
            is_new = False
            for one in row:
                before = said.setdefault((one.path, one.category), one)
                if before.belongs != one.belongs:
                    raise DataError(
                        f"{name}: lines {before.line} and {one.line} contradict each other: {one.path!r} is labelled "
                        f"both {_word(before.belongs)} and {_word(one.belongs)} for {one.category}; remove one"
                    )
                is_new |= before is one
                picture = pictures.setdefault(one.path, LabelledPicture(one.path, {}, one.line))
                picture.known[one.category] = one.belongs
            repeated += not is_new
    except UnicodeError as error:
        raise DataError(f"{name}: is not valid UTF-16 ({error}); save it as UTF-8") from error
    if not rows:
        raise DataError(f"{name}: has no rows; write a header, {_FORMS}, and one row for each label")
    return Labels(name, tuple(pictures.values()), rows, repeated)


def _word(belongs: bool) -> str:
    return "yes" if belongs else "no"


def _rows(file: BinaryIO, name: str, folder: Path, categories: Sequence[str]) -> Iterator[list[_Said]]:
    """What each row says, one entry for each category."""
    buffered = file if isinstance(file, io.BufferedReader) else io.BufferedReader(io.BytesIO(file.read()))
    is_wide = buffered.peek(2)[:2] in (b"\xff\xfe", b"\xfe\xff")
    # A path is whatever the file system has: bytes that are not UTF-8 become what ``os.fsencode`` gives back.
    encoding, errors = ("utf-16", "strict") if is_wide else ("utf-8-sig", "surrogateescape")
    text = io.TextIOWrapper(buffered, encoding=encoding, errors=errors, newline="")
    try:
        records = csv_records(name, bounded_lines(name, text), ",")
        header = next((cells for _, cells in records if any(cell.strip() for cell in cells)), None)
        if header is None:
            raise DataError(f"{name}: is empty; write a header, {_FORMS}, and one row for each label")
        columns = [cell.strip().lower() for cell in header]
        wanted = _columns(name, columns)
        places = [columns.index(column) for column in wanted]
        for line, cells in records:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{name}: line {line}"
            if len(cells) <= max(places):
                raise DataError(
                    f"{where}: has {len(cells)} columns, {max(places) + 1} are needed; quote paths with commas"
                )
            path, *rest = (cells[place] for place in places)
            if not path.strip() or "\0" in path:
                raise DataError(f"{where}: the path is {path!r}; write the path of a picture")
            path = os.path.normpath(folder / path)
            yield [_Said(line, path, *label) for label in _labels(where, rest, categories)]
    finally:
        text.detach()  # whoever opened the file closes it


def _columns(name: str, columns: Sequence[str]) -> tuple[str, ...]:
    """Those of the form at hand."""
    for column in ("path", "category", "label", "categories"):
        if columns.count(column) > 1:
            raise DataError(f"{name}: has column {column!r} {columns.count(column)} times; one is expected")
    is_long, is_short = "category" in columns or "label" in columns, "categories" in columns
    if is_long and is_short:
        raise DataError(f"{name}: has columns of both forms, {_FORMS}; remove those of one")
    wanted = ("path", "categories") if is_short else ("path", "category", "label")
    if missing := [column for column in wanted if column not in columns]:
        found = ", ".join(column[:40] for column in columns)
        raise DataError(f"{name}: has no column {missing[0]!r}; its columns are {found}; expected: {_FORMS}")
    return wanted


def _labels(where: str, cells: Sequence[str], categories: Sequence[str]) -> Iterator[tuple[str, bool]]:
    if len(cells) == 1:
        named = [cell.strip() for cell in cells[0].split(";")]
        belongs = {_known(where, category, categories) for category in named if category}
        yield from ((category, category in belongs) for category in categories)
        return
    category, label = (cell.strip() for cell in cells)
    word = label.lower()
    if word not in _YES + _NO:
        raise DataError(f"{where}: the label is {label!r}; known are {', '.join(_YES + _NO)}")
    yield _known(where, category, categories), word in _YES


def _known(where: str, category: str, categories: Sequence[str]) -> str:
    if category not in categories:
        raise DataError(f"{where}: the policy has no category {category!r}; known are {choices(category, categories)}")
    return category
