"""Parquet tables, whose image column holds paths, or the files themselves as Hugging Face's datasets have them.

Needs the extra ``parquet``.
"""

from __future__ import annotations

import bisect
import itertools
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip.data.records import Sample
from clip.data.tables import Row, TableSource, flat, required_columns, row
from clip.errors import DataError, MissingDependencyError

if TYPE_CHECKING:
    from clip.data.records import Source

__all__ = ["ParquetSource", "arrow_library", "open_file", "open_parquet", "records_of"]

_WINDOW_BYTES = 1 << 28
"""Of the row groups whose records the order mixes; twice as many groups are kept, for the change of windows."""

_MAX_GROUP_BYTES = 1 << 30


def open_parquet(address: str, *, image_column: str | None = None, caption_column: str | None = None) -> Source:
    """The pairs of one file, of a folder of them, or of a pattern with ``*``; all with the columns of the first.

    Raises DataError if the files cannot be read, MissingDependencyError without pyarrow.
    """
    arrow = arrow_library()
    paths = _paths(address)
    file = open_file(paths[0])
    image, captions = required_columns(str(paths[0]), file.schema_arrow.names, image_column, caption_column)
    kind = file.schema_arrow.field(image).type
    is_text = arrow.types.is_string(kind) or arrow.types.is_large_string(kind)
    if is_text and len(paths) == 1:
        return TableSource(str(paths[0]), _path_rows(paths[0], image, captions))
    if is_text:
        raise DataError(f"{address}: several tables of paths; open one at a time, and mix the sources")
    is_file = arrow.types.is_struct(kind) and any(kind.field(i).name == "bytes" for i in range(kind.num_fields))
    if not (is_file or arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind)):
        raise DataError(f"{paths[0]}: the column {image!r} is of type {kind}; paths or the bytes of files are expected")
    return ParquetSource(address, paths, image, captions)


def _paths(address: str) -> list[Path]:
    path = Path(address)
    if path.is_dir():
        found = sorted(path.glob("*.parquet"))
    elif "*" in address:
        found = sorted(path.parent.glob(path.name))
    else:
        return [path]
    if not found:
        raise DataError(f"{address}: no Parquet file fits; check the address")
    return found


def arrow_library() -> Any:
    """pyarrow with its Parquet part. Raises MissingDependencyError, which says how to get it."""
    try:
        import pyarrow
        import pyarrow.parquet  # a module of its own
    except ImportError as error:
        raise MissingDependencyError(
            "Parquet needs pyarrow, which is not installed; install it with: pip install 'everyclip[parquet]'"
        ) from error
    return pyarrow


def open_file(path: Path) -> Any:
    """A ``pyarrow.parquet.ParquetFile``. Raises DataError if it is none."""
    arrow = arrow_library()
    try:
        return arrow.parquet.ParquetFile(path)
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet ({error}); check it, or write it again") from error


def _path_rows(path: Path, image: str, captions: list[str]) -> Iterator[Row]:
    import pyarrow as arrow

    number = 0
    try:
        for batch in open_file(path).iter_batches(columns=[image, *captions]):
            for record in records_of(batch):
                number += 1
                if record is None:
                    yield Row(number, "", (), _NOT_UTF8)
                else:
                    yield row(number, record[image], flat(record[name] for name in captions))
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{path}: row {number + 1} cannot be read ({error}); write the file again") from error


_NOT_UTF8 = "has a text that is not UTF-8; write the file again"


def records_of(table: Any) -> list[dict[str, Any] | None]:
    """Rows of a table or a batch as Python's values; None for one with a text that is not UTF-8."""
    try:
        return list(table.to_pylist())
    except UnicodeDecodeError:  # rare: look for the culprits one by one
        records: list[dict[str, Any] | None] = []
        for number in range(table.num_rows):
            try:
                records += table.slice(number, 1).to_pylist()
            except UnicodeDecodeError:
                records.append(None)
        return records


class ParquetSource:
    """Images inside the table. Only whole row groups can be read: the last are kept, and the order walks by them.

    With small row groups (Hugging Face writes 100 to 1,000 rows) few records are mixed at a time. ``pack`` makes shards
    of them, in which any record can be read alone.
    """

    class_names: tuple[str, ...] = ()

    def __init__(self, name: str, paths: list[Path], image: str, captions: list[str]) -> None:
        self.name = name
        self._image, self._captions = image, captions
        self._groups: list[tuple[Path, int]] = []
        self._first_rows: list[int] = []  # of each group, in its file
        sizes: list[int] = []
        largest = 1
        for path in paths:
            metadata = open_file(path).metadata
            before = len(sizes)
            for number in range(metadata.num_row_groups):
                group = metadata.row_group(number)
                if group.total_byte_size > _MAX_GROUP_BYTES:
                    raise DataError(
                        f"{path}: row group {number} has {group.total_byte_size} bytes, the limit is "
                        f"{_MAX_GROUP_BYTES}; write it with row_group_size=1000"
                    )
                self._groups.append((path, number))
                self._first_rows.append(sum(sizes[before:]))
                sizes.append(group.num_rows)
                largest = max(largest, group.total_byte_size)
        groups_in_window = max(_WINDOW_BYTES // largest, 2)
        self.shard_sizes = tuple(sizes)
        self.window_records = groups_in_window * max(sizes, default=0)
        self._kept_groups = 2 * groups_in_window
        self._starts = list(itertools.accumulate(sizes, initial=0))
        if not len(self):
            raise DataError(f"{name}: has no rows; write one row for each pair")
        self._cache: OrderedDict[int, list[dict[str, Any] | None]] = OrderedDict()
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which reads what it needs itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_cache", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _cache=OrderedDict(), _lock=threading.Lock())

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        group = bisect.bisect_right(self._starts, index) - 1
        path, _ = self._groups[group]
        place = index - self._starts[group]
        key = f"{path.name}:{self._first_rows[group] + place + 1}"
        record = self._rows(group)[place]
        if record is None:
            raise DataError(f"{key}: {_NOT_UTF8}")
        image = record[self._image]
        data = image.get("bytes") if isinstance(image, dict) else image
        if not data:
            raise DataError(f"{key}: has no image; the column {self._image!r} must hold the bytes of a file")
        checked = row(1, "in the table", flat(record[name] for name in self._captions))
        if checked.problem:
            raise DataError(f"{key}: {checked.problem}")
        return Sample(key=key, image=data, captions=checked.captions)

    def _rows(self, group: int) -> list[dict[str, Any] | None]:
        """The rows of a row group, from memory if it was read a short while ago."""
        import pyarrow as arrow

        # Under the lock: threads that want the same group wait for one reading of it.
        with self._lock:
            if (rows := self._cache.get(group)) is not None:
                self._cache.move_to_end(group)
                return rows
            path, number = self._groups[group]
            try:
                table = open_file(path).read_row_group(number, columns=[self._image, *self._captions])
                rows = records_of(table)
            except (OSError, arrow.ArrowException) as error:
                name = os.fspath(path)
                raise DataError(f"{name}: row group {number} cannot be read ({error}); write it again") from error
            self._cache[group] = rows
            while len(self._cache) > self._kept_groups:
                self._cache.popitem(last=False)
            return rows
