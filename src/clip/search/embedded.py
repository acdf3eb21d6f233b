"""Embeddings that were computed elsewhere → an index: files of ``clip encode``, and Parquet tables that have a column
of them.

An index holds embeddings of one model. A file of ``clip encode`` says which it was; of any other file the user has to
claim it, because no number in it can tell.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip.data.parquet import arrow_library, open_file, records_of
from clip.data.tables import choose_columns
from clip.embedding_files import how_embedded, read_in_batches
from clip.errors import ConfigError, DataError, choices
from clip.search.about import About
from clip.search.sources import OnProblem, absolute, json_value
from clip.search.store import Row, Store

__all__ = ["Batch", "Embedded", "Imported", "import_embeddings", "open_embedded"]

_EMBEDDING_COLUMNS = (
    *("embedding", "embeddings", "image_embedding", "image_embeddings", "clip_embedding"),
    *("vector", "emb", "image_emb", "features", "image_features"),
)
_BATCH_ROWS = 8192
"""A transaction of the store; with 768 dimensions 24 MB."""
_ROW_COLUMNS = {
    "size_bytes": int, "modified_ns": int, "digest": bytes, "width": int, "height": int, "format": str,
    "signature": bytes,
}  # fmt: skip


class Batch(NamedTuple):
    """Some rows of a file, those left out that cannot be used."""

    rows: list[Row]
    embeddings: NDArray[np.float32]
    """(N, E), unit norm."""
    records: int
    """How many there were in the file."""


@dataclasses.dataclass(frozen=True)
class Embedded:
    """Embeddings of pictures in files."""

    name: str
    """For messages: how they were asked for."""
    files: Sequence[str]
    origin: About | None
    """What made them, if the files say it."""
    embed_dim: int
    columns: tuple[str, str] | None
    """Of a Parquet table: of the paths, and of the embeddings."""

    def total(self) -> int:
        """Embeddings in all files."""
        return sum(_length(file) for file in self.files)

    def check(self, about: About, address: str, *, is_claimed: bool) -> None:
        """Raises ConfigError if these do not belong into an index.

        is_claimed: the user says that the model of the index made them.
        """
        if self.origin is not None:
            about.check(self.origin, address)
        elif not is_claimed:
            raise ConfigError(
                f"{self.name}: does not say which model its embeddings are of; if it was {about.model}, the model of "
                f"{address}, say so with --model {about.model}"
            )
        if self.embed_dim != about.embed_dim:
            raise ConfigError(
                f"{self.name}: embeddings have {self.embed_dim} dimensions, those of {about.model} in {address} have "
                f"{about.embed_dim}; import those of the same model"
            )

    def batches(self, on_problem: OnProblem, *, skip: int = 0) -> Iterator[Batch]:
        """All embeddings but the first ``skip`` records; records that cannot be used go to ``on_problem``."""
        for file in self.files:
            length = _length(file)
            if skip >= length:
                skip -= length
                continue
            raw = _npy_batches(file, skip) if self.columns is None else _parquet_batches(file, *self.columns, skip)
            skip = 0
            yield from _checked(raw, self.embed_dim, on_problem)


class Imported(NamedTuple):
    """What ``import_embeddings`` did."""

    rows: int
    """Stored by this call; rows of the same paths were replaced."""
    resumed: int
    """Records that an earlier, ended process had done."""
    failed: int


def import_embeddings(
    store: Store, embedded: Embedded, *, on_problem: OnProblem, on_batch: Callable[[int], None] = lambda records: None
) -> Imported:
    """Stores all embeddings, which ``embedded.check`` has found to belong there. A killed import goes on where it was;
    one that is whole is done again from its beginning when it is asked for, and changes nothing.

    on_batch: told how many records are done.
    """
    files = [(file, (state := Path(file).stat()).st_size, state.st_mtime_ns) for file in embedded.files]
    note = f"import {embedded.name}"
    done = resumed = _noted(store.read_document(note), files)
    on_batch(resumed)
    stored = failed = 0

    def count(error: Exception) -> None:
        nonlocal failed
        failed += 1
        on_problem(error)  # type: ignore[arg-type]

    for batch in embedded.batches(count, skip=resumed):
        if batch.rows:
            store.add(batch.rows, batch.embeddings)
        done += batch.records
        stored += len(batch.rows)
        store.write_document(note, json.dumps({"files": files, "records": done}).encode())
        on_batch(batch.records)
    store.write_document(note, b"")
    return Imported(stored, resumed, failed)


def _noted(document: bytes | None, files: list[tuple[str, int, int]]) -> int:
    """Records of the same files that an earlier process has stored."""
    if not document:
        return 0
    noted = json.loads(document)
    return int(noted["records"]) if noted["files"] == [list(file) for file in files] else 0


# Opening --------------------------------------------------------------------------------------------------------------


def open_embedded(
    name: str, files: Sequence[str], path_column: str | None, embedding_column: str | None
) -> Embedded | None:
    """The embeddings of files, all with the columns and the origin of the first; None for a Parquet table without."""
    columns: tuple[str, str] | None = None
    if files[0].lower().endswith(".parquet"):
        found = _columns(files[0], path_column, embedding_column)
        if found is None:
            return None
        *columns_of_both, embed_dim = found
        columns = (columns_of_both[0], columns_of_both[1])
    origins = []
    for file in files:
        if Path(file).suffix.lower() != Path(files[0]).suffix.lower():
            raise DataError(f"{name}: means files of several kinds; import one kind at a time")
        how = how_embedded(file)
        origins.append(_origin(how, file) if how else None)
        if origins[-1] != origins[0]:
            raise DataError(f"{file}: its embeddings are made in another way than those of {files[0]}; import it alone")
    if columns is None:
        embed_dim = int(how_embedded(files[0])["embed_dim"])
    return Embedded(name, files, origins[0], embed_dim, columns)


def _origin(how: Mapping[str, Any], file: str) -> About:
    if "preprocess" not in how:
        raise DataError(f"{file}: holds embeddings of texts; an index is one of pictures")
    model = how["model"]
    try:
        return About(
            model=absolute(model) if Path(model).exists() else model,
            **{field: how[field] for field in ("fingerprint", "embed_dim", "preprocess", "engine", "precision")},
        )
    except KeyError as error:
        raise DataError(f"{file}: does not say its {error}; encode it again with 'clip encode'") from error


def _columns(file: str, path_column: str | None, embedding_column: str | None) -> tuple[str, str, int] | None:
    """Of paths and of embeddings, and how wide those are; None if there are no embeddings."""
    schema = open_file(Path(file)).schema_arrow
    known = {name.strip().lower(): name for name in schema.names}
    if embedding_column is not None and embedding_column not in schema.names:
        raise DataError(
            f"{file}: has no column {embedding_column!r}; its columns are: {choices(embedding_column, schema.names)}"
        )
    found = embedding_column or next((known[name] for name in _EMBEDDING_COLUMNS if name in known), None)
    if found is None:
        return None
    types, kind = arrow_library().types, schema.field(found).type
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not (is_list and types.is_floating(kind.value_type)):
        if embedding_column is None:
            return None
        raise DataError(f"{file}: the column {found!r} is of type {kind}; lists of floating-point numbers are expected")
    path = path_column if path_column in schema.names else None
    if path_column is None:
        path = known.get("source") or choose_columns(schema.names, None, None)[0]
    if path is None:
        raise DataError(
            f"{file}: has no column {path_column or 'of paths by a usual name'}; its columns are: "
            f"{choices(path_column or 'path', schema.names)}; name that of the paths with --image-column"
        )
    if types.is_fixed_size_list(kind):
        return path, found, int(kind.list_size)
    for batch in open_file(Path(file)).iter_batches(batch_size=1, columns=[found]):
        values = batch.column(0)[0].as_py()
        if values:
            return path, found, len(values)
    raise DataError(f"{file}: has no embeddings in the column {found!r}")


# Reading --------------------------------------------------------------------------------------------------------------


class _Raw(NamedTuple):
    """Records as they stand in a file."""

    file: str
    first: int
    """Number of the first, from 1."""
    rows: list[Row | None]
    """None: one that has no usable path."""
    embeddings: list[NDArray[np.float32] | None] | NDArray[np.float32]


def _length(file: str) -> int:
    if file.lower().endswith(".parquet"):
        return int(open_file(Path(file)).metadata.num_rows)
    try:
        return len(np.load(file, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError, TypeError) as error:
        raise DataError(f"{file}: cannot be read ({error}); check it") from error


def _checked(batches: Iterator[_Raw], embed_dim: int, on_problem: OnProblem) -> Iterator[Batch]:
    """Without records that have no path, or whose embedding has no direction; the others at unit norm."""
    for file, first, rows, embeddings in batches:
        kept: list[Row] = []
        vectors: list[NDArray[np.float32]] = []
        for number, (row, vector) in enumerate(zip(rows, embeddings, strict=True), start=first):
            problem = _problem(row, vector, embed_dim)
            if problem or row is None or vector is None:
                on_problem(DataError(f"{file}:{number}: {problem}"))
                continue
            kept.append(row)
            vectors.append(vector)
        matrix = np.array(vectors, np.float32).reshape(len(kept), embed_dim)
        if kept:
            matrix /= np.linalg.norm(matrix, axis=1, keepdims=True)
        yield Batch(kept, matrix, len(rows))


def _problem(row: Row | None, vector: NDArray[np.float32] | None, embed_dim: int) -> str:
    if row is None:
        return "names no picture; a path is expected"
    if vector is None or vector.shape != (embed_dim,):
        found = "no embedding" if vector is None else f"an embedding of {len(vector)} numbers"
        return f"has {found}, {embed_dim} are expected"
    length = float(np.dot(vector, vector))
    if not np.isfinite(length) or length < 1e-12:
        return "its embedding is zero or not finite, and so has no direction"
    return ""


def _npy_batches(file: str, skip: int) -> Iterator[_Raw]:
    base: str | None = None
    first = 1
    for sources, embeddings in read_in_batches(file, batch_size=_BATCH_ROWS):
        if first == 1 and sources:
            base = _base(sources[0], file)
        last = first + len(sources)
        if last > skip + 1:
            drop = max(skip + 1 - first, 0)
            rows: list[Row | None] = [Row(path=_path(source, base)) for source in sources[drop:]]
            yield _Raw(file, first + drop, rows, embeddings[drop:])
        first = last


def _parquet_batches(file: str, path_column: str, embedding_column: str, skip: int) -> Iterator[_Raw]:
    arrow = arrow_library()
    is_ours = bool(how_embedded(file))
    table = open_file(Path(file))
    others = [name for name in table.schema_arrow.names if name not in (path_column, embedding_column)]
    base: str | None = None
    first = 1
    try:
        for batch in table.iter_batches(batch_size=_BATCH_ROWS):
            last = first + batch.num_rows
            records = records_of(batch.select([path_column, *others]))
            if first == 1:
                base = _base(next((record[path_column] for record in records if record), ""), file)
            if last > skip + 1:
                drop = max(skip + 1 - first, 0)
                rows = [_row(record, path_column, base, is_ours=is_ours) for record in records[drop:]]
                yield _Raw(file, first + drop, rows, _vectors(batch.column(embedding_column))[drop:])
            first = last
    except (OSError, arrow.ArrowException) as error:
        raise DataError(f"{file}: row {first} cannot be read ({error}); write the file again") from error


def _vectors(column: Any) -> NDArray[np.float32] | list[NDArray[np.float32] | None]:
    """Of a column of lists: as one matrix if all have the same length."""
    if arrow_library().types.is_fixed_size_list(column.type) and not column.null_count:
        values = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
        matrix: NDArray[np.float32] = values.reshape(len(column), column.type.list_size)
        return matrix
    return [None if not scalar.is_valid else np.array(scalar.values, np.float32) for scalar in column]


def _row(record: Mapping[str, Any] | None, path_column: str, base: str | None, *, is_ours: bool) -> Row | None:
    path = record[path_column] if record else None
    if isinstance(path, bytes):  # the name of a file need not be UTF-8, and a text must be
        path = os.fsdecode(path)
    if record is None or not isinstance(path, str) or not path.strip() or "\0" in path:
        return None
    fields: dict[str, Any] = {}
    metadata: dict[str, Any] = {}
    for name, value in record.items():
        if name == path_column or value is None:
            continue
        if is_ours and name == "metadata":
            metadata |= json.loads(value)
        elif type(value) is _ROW_COLUMNS.get(name) and (is_ours or not isinstance(value, bytes)):
            fields[name] = value
        elif (kept := json_value(value)) not in (None, ""):
            metadata[name] = kept
    return Row(path=_path(path, base), metadata=metadata, **fields)


def _base(source: object, file: str) -> str | None:
    """The folder at which relative paths start: that of the file, else the current one, where the first picture lies
    there; None where it does not, and paths are mere names."""
    if not isinstance(source, str):
        return None
    for folder in (str(Path(file).parent), str(Path.cwd())):
        if Path(folder, source).exists():
            return folder
    return None


def _path(source: str, base: str | None) -> str:
    return source if base is None else absolute(source, base)
