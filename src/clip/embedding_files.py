"""Streams of embeddings → a ``.npy`` or ``.parquet`` file, and back; a killed process goes on where it was.

    photos.npy              (N, E) float32, unit norm; has its name only when it is whole
    photos.npy.jsonl        what each row is: a line about the model, then one for each item, in their order
    photos.npy.part         the rows so far
    photos.npy.part.jsonl   the lines so far; a row counts once its line is there
    photos.npy.lock         held by the process that writes; the system frees it when that process dies

An item that could not be encoded has a line with its error and no row.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import numpy as np
from numpy.typing import NDArray

from clip.errors import ConfigError, DataError, MissingDependencyError
from clip.features import Encoded, Failure

__all__ = ["EmbeddingWriter", "StoredEmbeddings", "how_embedded", "read_embeddings", "read_in_batches"]

FORMAT, VERSION = "everyclip-embeddings", 1
_HEADER_BYTES = 128
"""Of a .npy file: numpy leaves room for the number of rows to grow, so the header can be written last."""
_ROWS_AT_ONCE = 65_536


class EmbeddingWriter:
    """Writes one file of embeddings; a context manager.

        with EmbeddingWriter("photos.npy", embed_dim=512, about={"fingerprint": fingerprint}) as writer:
            for batch in encode_images(model, preprocess, writer.remaining(paths), on_error=writer.fail):
                writer.add(batch)
            writer.finish()

    about: JSON values that say how the embeddings are made. What was begun with others is not continued.
    model: name of the model, for people to read.
    overwrite: replace a file that has the final name. restart: drop what an earlier process left.
    Raises ConfigError for a name that ends otherwise or is taken, DataError if what is left does not belong to this.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        embed_dim: int,
        about: Mapping[str, Any],
        model: str = "",
        overwrite: bool = False,
        restart: bool = False,
    ) -> None:
        self.path = Path(path)
        if self.path.suffix not in (".npy", ".parquet"):
            raise ConfigError(f"{path}: the name must end in .npy or .parquet")
        if self.path.suffix == ".parquet":
            _pyarrow()  # before hours of work
        if not self.path.parent.is_dir():  # filelock would make it
            raise ConfigError(f"{path}: the folder {self.path.parent} does not exist; create it")
        if self.path.exists() and not overwrite:
            raise ConfigError(f"{path} is there already; choose another name, or overwrite it")
        self.rows = 0
        """Embeddings stored, those of earlier processes included."""
        self.failed = 0
        """Items without an embedding, those of earlier processes included."""
        self.resumed = 0
        """Items that earlier processes did."""
        self._embed_dim = embed_dim
        self._first_line = {"format": FORMAT, "version": VERSION, "embed_dim": embed_dim, "model": model, **about}
        self._restart = restart
        self._part = _beside(self.path, ".part")
        self._journal_path = _beside(self.path, ".part.jsonl")
        self._failures: list[Failure[Any]] = []

    def __enter__(self) -> Self:
        import filelock

        self._lock = filelock.FileLock(_beside(self.path, ".lock"))
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout as error:
            raise ConfigError(f"another process is writing {self.path}; wait for it, or choose another name") from error
        with contextlib.ExitStack() as stack:
            stack.callback(self._lock.release)
            if self._restart:
                self._journal_path.unlink(missing_ok=True)
            length = self._recover()
            self._data = stack.enter_context(self._part.open("r+b" if self.resumed else "w+b"))
            self._data.truncate(_HEADER_BYTES + self.rows * self._embed_dim * 4)
            self._data.seek(0, os.SEEK_END)
            self._journal = stack.enter_context(self._journal_path.open("r+b" if length else "w+b"))
            self._journal.truncate(length)
            self._journal.seek(0, os.SEEK_END)
            if not length:
                self._write_lines([self._first_line])
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def remaining(self, sources: Iterable[str]) -> Iterator[str]:
        """The items that are still to be encoded. Raises DataError if those stored are not the first of ``sources``."""
        iterator = iter(sources)
        for line in _entries(self._journal_path, self.resumed):
            source = next(iterator, None)
            if source != line["source"]:
                raise DataError(
                    f"{self._journal_path}: item {line['item'] + 1} was {line['source']!r}, now it is {source!r}; "
                    "the list has changed, so start again with restart"
                )
        yield from iterator

    def fail(self, failure: Failure[Any]) -> None:
        """Notes an item that has no embedding; to be passed as ``on_error=``."""
        self._failures.append(failure)

    def add(self, batch: Encoded[Any]) -> None:
        """Stores a batch; when it returns, the batch survives the end of this process."""
        self._data.write(batch.embeddings.astype("<f4", copy=False).tobytes())
        _sync(self._data)
        self._note(list(zip(batch.positions, batch.sources, strict=True)))

    def finish(self) -> None:
        """Gives the files their final names."""
        self._note([])
        self._data.seek(0)
        self._data.write(_npy_header(self.rows, self._embed_dim))
        _sync(self._data)
        sidecar = _beside(self.path, ".jsonl.new")
        with self._journal_path.open("rb") as journal, sidecar.open("wb") as copy:
            while chunk := journal.read(1 << 20):
                copy.write(chunk)
            _sync(copy)
        whole = self._part
        if self.path.suffix == ".parquet":
            whole = _beside(self.path, ".new")
            _write_parquet(self._part, self._journal_path, whole, self._first_line)
        # Lines before rows: killed between the two, the next process finds its own files and finishes.
        sidecar.replace(_beside(self.path, ".jsonl"))
        whole.replace(self.path)
        self._journal_path.unlink()
        self._part.unlink(missing_ok=True)
        _beside(self.path, ".lock").unlink(missing_ok=True)

    def _note(self, encoded: list[tuple[int, str]]) -> None:
        """Appends the lines of a batch and of the failures before it, in the order of the stream."""
        errors = {failure.position: str(failure.error) for failure in self._failures}
        items = sorted([*encoded, *((failure.position, failure.source) for failure in self._failures)])
        lines: list[dict[str, Any]] = []
        for position, source in items:
            if position in errors:
                lines.append({"row": None, "source": source, "error": errors[position]})
            else:
                lines.append({"row": self.rows, "source": source})
                self.rows += 1
        self.failed += len(self._failures)
        self._failures.clear()
        self._write_lines(lines)

    def _write_lines(self, lines: list[dict[str, Any]]) -> None:
        self._journal.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        _sync(self._journal)

    def _recover(self) -> int:
        """Counts what earlier processes left, and gives the length of the journal up to its last whole line."""
        if not self._journal_path.exists():
            return 0
        length = 0
        with self._journal_path.open("rb") as journal:
            for number, line in enumerate(journal):
                if not line.endswith(b"\n"):  # the process died while it wrote this
                    break
                if number == 0:
                    self._compare(line)
                elif _is_row(line):
                    self.rows += 1
                else:
                    self.failed += 1
                length += len(line)
        self.resumed = self.rows + self.failed
        stored = self._part.stat().st_size if self._part.exists() else 0
        if self.rows and stored < _HEADER_BYTES + self.rows * self._embed_dim * 4:
            raise DataError(
                f"{self._part} has {stored:,} bytes, fewer than the {self.rows:,} rows of {self._journal_path}; "
                "start again with restart"
            )
        return length

    def _compare(self, line: bytes) -> None:
        begun, now = json.loads(line), self._first_line
        differing = sorted(key for key in {*begun, *now} - {"model"} if begun.get(key) != now.get(key))
        if differing:
            raise DataError(
                f"{self._part} was begun with another {' and '.join(differing)}; "
                "use the same as then, or start again with restart"
            )


# Reading --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class StoredEmbeddings:
    """What ``EmbeddingWriter`` wrote as .npy."""

    embeddings: NDArray[np.float32]
    """(N, E), unit norm, mapped from the file."""
    sources: list[str]
    """What row i is of."""
    failures: dict[str, str]
    """Item without a row → why."""
    about: dict[str, Any]
    """How the embeddings were made: the model's fingerprint, among others."""


def read_embeddings(path: str | os.PathLike[str]) -> StoredEmbeddings:
    """The embeddings of a .npy file and what its rows are. Raises DataError if the two files do not belong together."""
    sidecar = _beside(Path(path), ".jsonl")
    try:
        embeddings = np.load(path, mmap_mode="r", allow_pickle=False)
        with sidecar.open(encoding="utf-8") as lines:
            about = json.loads(lines.readline())
            entries = [json.loads(line) for line in lines]
    except (OSError, ValueError) as error:
        raise DataError(f"{path} and {sidecar.name} cannot be read: {error}") from error
    sources = [entry["source"] for entry in entries if entry["row"] is not None]
    if embeddings.shape != (len(sources), about.get("embed_dim")):
        raise DataError(f"{path} has the shape {embeddings.shape}, {sidecar.name} has {len(sources)} rows")
    failures = {entry["source"]: entry["error"] for entry in entries if entry["row"] is None}
    return StoredEmbeddings(embeddings, sources, failures, about)


def how_embedded(path: str | os.PathLike[str]) -> dict[str, Any]:
    """How the embeddings of a .npy or .parquet file were made; empty for a Parquet file of others.

    Raises DataError if the file cannot be read, or is a .npy without its lines.
    """
    try:
        if Path(path).suffix == ".parquet":
            noted = (_pyarrow().parquet.read_schema(path).metadata or {}).get(FORMAT.encode())
            return dict(json.loads(noted)) if noted else {}
        with _beside(Path(path), ".jsonl").open(encoding="utf-8") as lines:
            about = json.loads(lines.readline())
        if not isinstance(about, dict) or about.get("format") != FORMAT:
            raise ValueError(f"its first line is no description of {FORMAT}")
        return about
    except FileNotFoundError as error:
        raise DataError(
            f"{path}: there is no {Path(path).name}.jsonl beside it, which says what its rows are; write it with "
            "'clip encode', or as a Parquet table with the columns path and embedding"
        ) from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path} and what lies beside it cannot be read: {error}") from error


def read_in_batches(
    path: str | os.PathLike[str], *, batch_size: int
) -> Iterator[tuple[list[str], NDArray[np.float32]]]:
    """What the rows of a .npy file are, and their embeddings (B, E), without ever having all of them in memory.

    Raises DataError if the two files do not belong together.
    """
    sidecar = _beside(Path(path), ".jsonl")
    try:
        embeddings = np.load(path, mmap_mode="r", allow_pickle=False)
        with sidecar.open(encoding="utf-8") as lines:
            about = json.loads(lines.readline())
            sources = (entry["source"] for line in lines if (entry := json.loads(line))["row"] is not None)
            if embeddings.ndim != 2 or embeddings.shape[1] != about.get("embed_dim"):
                raise DataError(f"{path} has the shape {embeddings.shape}, {sidecar.name} is of another")
            for first in range(0, len(embeddings), batch_size):
                rows = embeddings[first : first + batch_size]
                batch = list(itertools.islice(sources, len(rows)))
                if len(batch) < len(rows):
                    raise DataError(f"{path} has {len(embeddings)} rows, {sidecar.name} has {first + len(batch)}")
                yield batch, np.array(rows, np.float32)
            if next(sources, None) is not None:
                raise DataError(f"{path} has {len(embeddings)} rows, {sidecar.name} has more")
    except (OSError, ValueError) as error:
        raise DataError(f"{path} and {sidecar.name} cannot be read: {error}") from error


def _is_row(line: bytes) -> bool:
    return json.loads(line)["row"] is not None


def _entries(journal: Path, count: int) -> Iterator[dict[str, Any]]:
    """The first ``count`` items of a journal, numbered."""
    with journal.open("rb") as lines:
        next(lines)
        for item, line in zip(range(count), lines, strict=False):
            yield {"item": item, **json.loads(line)}


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


def _npy_header(rows: int, embed_dim: int) -> bytes:
    buffer = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (rows, embed_dim)}
    np.lib.format.write_array_header_1_0(buffer, header)
    assert len(buffer.getvalue()) == _HEADER_BYTES
    return buffer.getvalue()


# Parquet --------------------------------------------------------------------------------------------------------------


def _pyarrow() -> Any:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise MissingDependencyError(
            "Parquet files need pyarrow; run: pip install everyclip[parquet], or write a .npy file"
        ) from error
    return pyarrow


def _write_parquet(part: Path, journal: Path, destination: Path, about: Mapping[str, Any]) -> None:
    """Columns ``source`` and ``embedding``, a row for each embedding, ``about`` in the metadata of the schema."""
    arrow = _pyarrow()
    embeddings = np.load(part, mmap_mode="r", allow_pickle=False)
    embed_dim = embeddings.shape[1]
    schema = arrow.schema(
        [("source", arrow.string()), ("embedding", arrow.list_(arrow.float32(), embed_dim))],
        metadata={FORMAT: json.dumps(dict(about))},
    )
    with journal.open("rb") as lines, arrow.parquet.ParquetWriter(destination, schema) as writer:
        next(lines)
        entries = (entry for line in lines if (entry := json.loads(line))["row"] is not None)
        for first in range(0, len(embeddings), _ROWS_AT_ONCE):
            rows = embeddings[first : first + _ROWS_AT_ONCE]
            # A file name that is not UTF-8 cannot be a Parquet string; its bytes are written as escapes.
            names = [next(entries)["source"].encode("utf-8", "backslashreplace").decode() for _ in rows]
            values = arrow.FixedSizeListArray.from_arrays(arrow.array(rows.reshape(-1)), embed_dim)
            writer.write_table(arrow.table([arrow.array(names, arrow.string()), values], schema=schema))
    with destination.open("rb") as file:
        os.fsync(file.fileno())
