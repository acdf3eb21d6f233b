"""Pictures and the texts that they are held against, from a file: a CSV table, or JSON objects a line.

    path,caption,references
    1.png,a dog on a beach,a dog runs at the sea|a brown dog

    {"path": "1.png", "caption": "a dog on a beach", "references": ["a dog runs at the sea", "a brown dog"]}

Paths are relative to the folder of the file. References may be left out, for all or for some.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from clip.errors import DataError, choices
from clip.guidance.scores import Candidate

__all__ = ["read_captions"]

COLUMNS = ("path", "caption", "references")
SEPARATOR = "|"
"""Between references in a cell of a table."""


def read_captions(path: str | os.PathLike[str]) -> list[Candidate]:
    """All of a file, its paths joined to its folder. Raises DataError with the file, the line and the reason."""
    file = os.fspath(path)
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is not UTF-8 at byte {error.start}; save it as UTF-8") from error
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise DataError(f"{file}: cannot be read ({error})") from error
    folder = os.path.dirname(file)  # noqa: PTH120  # Path would drop the ./ that a user wrote
    rows = _json_rows(text, file) if text.lstrip().startswith("{") else _table_rows(text, file)
    candidates = [_candidate(row, folder, f"{file}, line {line}") for line, row in rows]
    if not candidates:
        raise DataError(f"{file}: has no pictures; write a line for each, after path,caption")
    return candidates


def _table_rows(text: str, file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    try:
        header = next(reader, [])
        for name in header:
            if name not in COLUMNS:
                known = choices(name, COLUMNS)
                raise DataError(f"{file}, line 1: there is no column {name!r}; the columns are {known}")
        if len(set(header)) != len(header) or not {"path", "caption"} <= set(header):
            raise DataError(
                f"{file}, line 1: the header is {','.join(header)!r}; write path,caption or path,caption,references"
            )
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"{file}, line {reader.line_num}: has {len(cells)} cells, and the header {len(header)}; quote a "
                    "text with a comma"
                )
            row: dict[str, Any] = dict(zip(header, cells, strict=True))
            references = row.get("references", "")
            row["references"] = references.split(SEPARATOR) if references.strip() else []
            yield reader.line_num, row
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: is no CSV ({error})") from error


def _json_rows(text: str, file: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, part in enumerate(text.split("\n"), start=1):
        if not part.strip():
            continue
        try:
            row = json.loads(part)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}, line {line}: is no JSON ({error})") from error
        if not isinstance(row, dict):
            raise DataError(f"{file}, line {line}: is {part[:40]!r}; an object with path and caption is expected")
        if unknown := [key for key in row if key not in COLUMNS]:
            raise DataError(
                f"{file}, line {line}: there is no key {unknown[0]!r}; the keys are {choices(unknown[0], COLUMNS)}"
            )
        yield line, row


def _candidate(row: dict[str, Any], folder: str, where: str) -> Candidate:
    for key in ("path", "caption"):
        if not isinstance(row.get(key), str) or not row[key].strip():
            raise DataError(f"{where}: {key} is {row.get(key)!r}; a text that is not empty is expected")
    references = row.get("references") or []
    if isinstance(references, str):
        references = [references]
    if not isinstance(references, list) or not all(isinstance(one, str) and one.strip() for one in references):
        raise DataError(f"{where}: references is {references!r}; texts that are not empty are expected")
    path = os.path.join(folder, row["path"])  # noqa: PTH118
    return Candidate(path, row["caption"].strip(), tuple(one.strip() for one in references))
