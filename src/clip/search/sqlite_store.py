"""An index in a folder: one SQLite database, and beside it a file of faiss that makes large ones fast.

The database (``catalogue-1.db``; ``CURRENT`` names it) is the whole truth: rows, documents, embeddings as float16. It
is in WAL mode with full synchronisation: what a method has returned from survives kill -9 and a power cut, readers go
on while another process writes, and writers wait for each other. A network file system cannot give that: an index
belongs on a local disk.

Needs the standard library and NumPy, and starts in a few milliseconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import re
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from clip.errors import ConfigError, DataError, IndexNotFoundError
from clip.search.index_folder import (
    PATIENCE_SECONDS,
    catalogues,
    current_catalogue,
    identity,
    locked,
    make_current,
    remove_catalogue,
    state_of,
    unlink_matching,
    wal_of,
)
from clip.search.nearest import (
    Chunk,
    FaissFile,
    FaissRecord,
    can_be_compressed,
    imported_faiss,
    is_for_all,
    merged,
    nearest_in_chunks,
    proposals_for,
    random_part,
)
from clip.search.sql_conditions import add_functions, beginning_with, key_of, name_of, path_bytes, path_text, where
from clip.search.store import Condition, Found, Known, Neighbours, Row, checked_embeddings, checked_queries

__all__ = ["SQLiteStore"]

_log = logging.getLogger(__name__)

_APPLICATION_ID = int.from_bytes(b"CLIP", "big")
_VERSION = 1
_SCHEMA = (
    "CREATE TABLE width (embed_dim INTEGER NOT NULL)",
    "CREATE TABLE documents (name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    # AUTOINCREMENT: an id is never used again, so that what a file of faiss knows by an id stays true or is gone.
    """CREATE TABLE rows (
        id INTEGER PRIMARY KEY AUTOINCREMENT, path BLOB NOT NULL UNIQUE, size_bytes INTEGER, modified_ns INTEGER,
        digest BLOB, width INTEGER, height INTEGER, format TEXT, signature BLOB, metadata TEXT)""",
    # Apart from the rows, so that a search reads embeddings alone, and a walk over the rows none.
    "CREATE TABLE embeddings (id INTEGER PRIMARY KEY, embedding BLOB NOT NULL)",
    """CREATE TABLE faiss_file (
        name TEXT NOT NULL, covered_id INTEGER NOT NULL, rows INTEGER NOT NULL, trained_rows INTEGER NOT NULL,
        size_bytes INTEGER NOT NULL, checksum INTEGER NOT NULL)""",
    "CREATE TRIGGER removed AFTER DELETE ON rows BEGIN DELETE FROM embeddings WHERE id = OLD.id; END",
)
_PAGE_BYTES = 16384
"""100,000 embeddings of 512 numbers are read in 0.14 s; with the usual 4096, three to a page, in twice that."""

_MAPPED_BYTES = 2**31 - 65536
"""SQLite's limit. Embeddings are read in two thirds of the time from pages that are mapped."""

_CHUNK_ROWS = 8192
"""Embeddings that a search has in memory at once: 16 MB of float32 at 512 numbers."""

_QUERIES = 32
"""Whose candidates are looked up at once."""

_COLUMNS = ("path", "size_bytes", "modified_ns", "digest", "width", "height", "format", "signature", "metadata")
_ROW = ", ".join(f"rows.{name}" for name in _COLUMNS)


class SQLiteStore:
    """An open index of a folder. Threads may share it; a forked process opens its own."""

    exact_rows = 20_000
    """Up to so many rows are compared one by one: about where a process that answers one query is as fast with faiss.
    Measured from its start: 20,000 × 512 exactly 0.16 s, 30,000 × 512 by faiss 0.13 s (``benchmarks/nearest.py``)."""

    def __init__(self, folder: Path, number: int) -> None:
        self.address = str(folder)
        self._folder = folder
        self._number = number
        self._path = folder / f"catalogue-{number}.db"
        self._lock = threading.RLock()
        self._kept: tuple[tuple[int, ...], list[Chunk]] | None = None
        self._faiss: tuple[FaissRecord, FaissFile] | None = None
        self._has_said_why_exact = False
        self._connect()

    @classmethod
    def open(cls, address: str, *, embed_dim: int | None = None) -> Self:
        folder = Path(address)
        number = current_catalogue(folder)
        if number is None:
            if embed_dim is None:
                raise IndexNotFoundError(
                    f"{address}: no index is there; make one with 'clip index FOLDER --into {address}'"
                )
            number = _create(folder, embed_dim)
        while True:
            try:
                store = cls(folder, number)
                break
            except FileNotFoundError as error:  # another process has just replaced the index
                number, before = current_catalogue(folder), number
                if number is None or number == before:
                    raise DataError(f"{address}: catalogue-{before}.db is missing; make the index anew") from error
        if embed_dim not in (None, store.embed_dim):
            store.close()
            raise DataError(f"{address} holds embeddings of {store.embed_dim} numbers, not of {embed_dim}")
        return store

    def _connect(self) -> None:
        """Raises FileNotFoundError if the catalogue has gone."""
        self._identity = identity(self._path)
        self._seen: tuple[int, ...] | None = None
        if self._identity is None:
            raise FileNotFoundError(self._path)
        if os.access(self._path, os.W_OK) and os.access(self._folder, os.W_OK):
            mode = "mode=rw"
        elif wal_of(self._path).exists():
            mode = "mode=ro"
        else:  # SQLite cannot make the files that it coordinates by; _reading looks whether there is anybody else
            mode = "mode=ro&immutable=1"
            self._seen = state_of(self._path)
        with self._translated():
            self._connection = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?{mode}",
                uri=True,
                timeout=PATIENCE_SECONDS,
                isolation_level=None,
                check_same_thread=False,  # _lock lets in one at a time
            )
            try:
                add_functions(self._connection)
                self._connection.execute("PRAGMA synchronous = FULL")
                self._connection.execute(f"PRAGMA mmap_size = {_MAPPED_BYTES}")
                self.embed_dim = self._read_header()
            except sqlite3.OperationalError as error:
                self._connection.close()
                if identity(self._path) is None:  # since a moment ago
                    raise FileNotFoundError(self._path) from error
                raise
            except BaseException:
                self._connection.close()
                raise

    def _read_header(self) -> int:
        kind = self._connection.execute("PRAGMA application_id").fetchone()[0]
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if kind != _APPLICATION_ID:
            raise DataError(f"{self._path}: is a database of another program; make the index anew in another folder")
        if version != _VERSION:
            raise DataError(f"{self._path}: is of version {version}, this everyclip reads {_VERSION}; update everyclip")
        found = self._connection.execute("SELECT embed_dim FROM width").fetchone()
        if found is None or not isinstance(found[0], int):
            raise _damage(self._path, "no width of embeddings")
        return found[0]

    # Documents

    def read_document(self, name: str) -> bytes | None:
        with self._reading() as connection:
            found = connection.execute("SELECT value FROM documents WHERE name = ?", (name,)).fetchone()
        return None if found is None else found[0]

    def write_document(self, name: str, value: bytes) -> None:
        with self._writing() as connection:
            connection.execute("INSERT OR REPLACE INTO documents VALUES (?, ?)", (name, value))

    # Rows

    def add(self, rows: Sequence[Row], embeddings: NDArray[np.float32]) -> None:
        halves = checked_embeddings(rows, embeddings, self.embed_dim)
        last = {row.path: place for place, row in enumerate(rows)}  # of rows with one path the last stays
        places = list(last.values())
        records = [_record(rows[place]) for place in places]
        with self._writing() as connection:
            connection.executemany("DELETE FROM rows WHERE path = ?", ((record[0],) for record in records))
            found = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'rows'").fetchone()
            first = found[0] + 1 if found else 1
            connection.executemany(
                "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ((first + place, *record) for place, record in enumerate(records)),
            )
            connection.executemany(
                "INSERT INTO embeddings VALUES (?, ?)",
                ((first + number, halves[place].tobytes()) for number, place in enumerate(places)),
            )

    def remove(self, paths: Collection[str]) -> int:
        wanted = [(path_bytes(path),) for path in paths]
        if not wanted:
            return 0
        with self._writing() as connection:
            return connection.executemany("DELETE FROM rows WHERE path = ?", wanted).rowcount

    def known(self, under: str | None = None) -> Iterator[Known]:
        prefix, last, size = path_bytes(under or ""), None, 4096
        while True:  # a page at a time, so that nobody waits for whoever reads this
            text, values = beginning_with(prefix, after=last)
            query = f"SELECT path, size_bytes, modified_ns, digest FROM rows WHERE {text} ORDER BY path LIMIT ?"
            with self._reading() as connection:
                page = connection.execute(query, (*values, size)).fetchall()
            for path, *others in page:
                if not isinstance(path, bytes):
                    raise _damage(self._path, "a path of another type")
                yield Known(path_text(path), *others)
            if len(page) < size:
                return
            last = page[-1][0]

    def count(self, conditions: Sequence[Condition] = ()) -> int:
        text, values = where(conditions)
        with self._reading() as connection:
            return int(connection.execute(f"SELECT count(*) FROM rows WHERE {text}", values).fetchone()[0])

    # Searching

    def nearest(
        self, queries: NDArray[np.float32], k: int, conditions: Sequence[Condition] = (), *, exact: bool = False
    ) -> list[Neighbours]:
        queries = checked_queries(queries, k, self.embed_dim)
        text, values = where(conditions)
        missing: FaissRecord | None = None
        while True:
            with self._reading() as connection:
                allowed = None
                if conditions:
                    found = connection.execute(f"SELECT id FROM rows WHERE {text}", values)
                    allowed = np.sort(np.fromiter((record[0] for record in found), np.int64))
                record = None if exact else self._faiss_record(connection)
                file = None
                if record is not None and record != missing and not is_for_all(k, allowed, record, self.exact_rows):
                    try:
                        file = self._faiss_file(record)
                    except FileNotFoundError:
                        missing = record  # unless another process has just made a newer one
                        continue
                if record is not None and record == missing:
                    self._say_why_exact(f"{record.name} is missing; 'clip index' makes it anew")
                if record is None or file is None:
                    return nearest_in_chunks(self._chunks(connection, allowed), queries, k)
                near = self._nearest_by_file(connection, file, queries, k, allowed)
                later = nearest_in_chunks(self._chunks(connection, allowed, record.covered_id), queries, k)
                return [merged(one, other, k) for one, other in zip(near, later, strict=True)]

    def _nearest_by_file(
        self,
        connection: sqlite3.Connection,
        file: FaissFile,
        queries: NDArray[np.float32],
        k: int,
        allowed: NDArray[np.int64] | None,
    ) -> list[Neighbours]:
        best: list[Neighbours] = []
        wanted = proposals_for(k)
        while len(best) < len(queries):
            block = queries[len(best) : len(best) + _QUERIES]
            proposed = list(file.candidates(block, wanted, allowed))
            unique = _distinct(np.concatenate(proposed))
            ids, embeddings = self._embeddings_of(connection, unique)
            if len(ids) < 0.8 * len(unique) and wanted < file.rows:  # the others have been removed or replaced
                wanted *= 2
                continue
            for query, near in zip(block, proposed, strict=True):
                chosen = np.isin(ids, near, assume_unique=True)
                best += nearest_in_chunks([(ids[chosen], embeddings[chosen])], query[None], k)
        return best

    def _chunks(
        self, connection: sqlite3.Connection, allowed: NDArray[np.int64] | None = None, after: int = 0
    ) -> Iterator[Chunk]:
        """The rows behind an id, or those of them that are allowed, in order. Not too many are kept for the next
        query, as long as nobody writes."""
        version = connection.execute("PRAGMA data_version").fetchone()[0]
        key = (after, version, connection.total_changes)
        if self._kept is not None and self._kept[0] == key:
            for ids, embeddings in self._kept[1]:
                chosen = slice(None) if allowed is None else np.isin(ids, allowed, assume_unique=True)
                yield ids[chosen], embeddings[chosen]
        elif allowed is not None:
            allowed = allowed[np.searchsorted(allowed, after, "right") :]
            for start in range(0, len(allowed), _CHUNK_ROWS):
                yield self._embeddings_of(connection, allowed[start : start + _CHUNK_ROWS])
        else:
            yield from self._all_chunks(connection, key)

    def _all_chunks(self, connection: sqlite3.Connection, key: tuple[int, ...]) -> Iterator[Chunk]:
        cursor = connection.execute("SELECT id, embedding FROM embeddings WHERE id > ? ORDER BY id", (key[0],))
        self._kept, read, kept = None, 0, list[Chunk]()
        while records := cursor.fetchmany(_CHUNK_ROWS):
            chunk = self._chunk(records)
            read += len(records)
            if read <= self.exact_rows:
                kept.append(chunk)
            else:
                kept.clear()
            yield chunk
        if kept:
            self._kept = key, kept

    def _embeddings_of(self, connection: sqlite3.Connection, ids: NDArray[np.int64]) -> Chunk:
        """Those that are there, in order of their ids."""
        records = []
        for start in range(0, len(ids), 500):
            some = ids[start : start + 500].tolist()
            places = ",".join("?" * len(some))
            query = f"SELECT id, embedding FROM embeddings WHERE id IN ({places}) ORDER BY id"
            records += connection.execute(query, some).fetchall()
        return self._chunk(records)

    def _chunk(self, records: Sequence[tuple[int, bytes]]) -> Chunk:
        return np.array([record[0] for record in records], np.int64), self._embeddings(records)

    def _embeddings(self, records: Sequence[Sequence[Any]]) -> NDArray[np.float32]:
        """(N, E), of records that end in one."""
        try:
            data = b"".join([record[-1] for record in records])
        except TypeError as error:
            raise _damage(self._path, error) from error
        if len(data) != 2 * self.embed_dim * len(records):
            raise _damage(self._path, "an embedding of another length")
        return np.frombuffer(data, "<f2").reshape(-1, self.embed_dim).astype(np.float32)

    def find(self, ids: NDArray[np.int64] | Sequence[int]) -> Found:
        wanted = [int(one) for one in ids]
        query = (
            f"SELECT id, {_ROW}, embedding FROM rows JOIN embeddings USING (id) "
            "WHERE id IN (SELECT value FROM json_each(?))"
        )
        with self._reading() as connection:
            records = {record[0]: record for record in connection.execute(query, (json.dumps(wanted),))}
        return self._found([records[one] for one in wanted if one in records])

    def scan(self, conditions: Sequence[Condition] = (), *, batch_size: int = 4096) -> Iterator[Found]:
        text, values = where(conditions)
        query = (
            f"SELECT id, {_ROW}, embedding FROM rows JOIN embeddings USING (id) "
            f"WHERE id > ? AND id <= ? AND {text} ORDER BY id LIMIT ?"
        )
        with self._reading() as connection:
            end = connection.execute("SELECT max(id) FROM rows").fetchone()[0] or 0
        last = 0
        while True:  # a row that is replaced meanwhile gets an id behind the end
            with self._reading() as connection:
                records = connection.execute(query, (last, end, *values, batch_size)).fetchall()
            if records:
                last = records[-1][0]
                yield self._found(records)
            if len(records) < batch_size:
                return

    def _found(self, records: Sequence[Sequence[Any]]) -> Found:
        ids = np.array([record[0] for record in records], np.int64)
        try:
            rows = [_row(record[1:-1]) for record in records]
        except (ValueError, TypeError, AttributeError) as error:
            raise _damage(self._path, error) from error
        return Found(ids, rows, self._embeddings(records))

    # The file of faiss

    def _faiss_record(self, connection: sqlite3.Connection) -> FaissRecord | None:
        names = [field.name for field in dataclasses.fields(FaissRecord)]
        found = connection.execute(f"SELECT {', '.join(names)} FROM faiss_file").fetchone()
        return None if found is None else FaissRecord(**dict(zip(names, found, strict=True)))

    def _faiss_file(self, record: FaissRecord) -> FaissFile | None:
        """None if it cannot be used: then the search is exact. Raises FileNotFoundError."""
        if self._faiss is None or self._faiss[0] != record:
            if imported_faiss() is None:
                self._say_why_exact("faiss is not installed; pip install 'everyclip[search]' makes large indexes fast")
                return None
            try:
                self._faiss = (record, FaissFile.read(self._folder / record.name, record, self.embed_dim))
            except DataError as error:
                self._say_why_exact(f"{error}; 'clip index' makes it anew")
                return None
        return self._faiss[1]

    def _say_why_exact(self, reason: str) -> None:
        if not self._has_said_why_exact:
            _log.info("%s: every row is compared: %s", self.address, reason)
            self._has_said_why_exact = True

    def optimize(self) -> None:
        if imported_faiss() is None or not can_be_compressed(self.embed_dim):
            return
        import filelock

        try:
            held = filelock.FileLock(self._folder / f"nearest-{self._number}.lock").acquire(timeout=0)
        except filelock.Timeout:  # another process is at it
            return
        except OSError as error:
            raise ConfigError(f"{self.address}: cannot be written ({error.strerror}); check its permissions") from error
        with held:
            self._optimize()

    def _optimize(self) -> None:
        with self._reading() as connection:
            record = self._faiss_record(connection)
            ids = np.sort(np.fromiter((found[0] for found in connection.execute("SELECT id FROM rows")), np.int64))
        if len(ids) <= self.exact_rows:
            if record is not None:
                self._replace_faiss(None)
            return
        file = None if record is None else self._lasting_faiss(record, ids)
        if record is None or file is None:
            with self._reading() as connection:
                _, sample = self._embeddings_of(connection, random_part(ids, FaissFile.sample_size(len(ids))))
            file, covered_id, trained_rows = FaissFile.trained(sample, len(ids)), 0, len(ids)
        else:
            covered_id, trained_rows = record.covered_id, record.trained_rows
        later = ids[np.searchsorted(ids, covered_id, "right") :]
        if len(later) <= self.exact_rows // 25:  # compared in 5 ms
            return
        file.add(self._pages(later))
        name = self._next_faiss_name()
        size_bytes, checksum = file.write(self._folder / name)
        _log.info("%s: %d rows in %s, %d bytes", self.address, file.rows, name, size_bytes)
        self._replace_faiss(
            FaissRecord(
                name=name,
                covered_id=int(ids[-1]),
                rows=file.rows,
                trained_rows=trained_rows,
                size_bytes=size_bytes,
                checksum=checksum,
            )
        )

    def _lasting_faiss(self, record: FaissRecord, ids: NDArray[np.int64]) -> FaissFile | None:
        """The file, if it is whole and its lists still suit the rows, so that later rows can be added to it."""
        covered = np.searchsorted(ids, record.covered_id, "right")
        if len(ids) > 2 * record.trained_rows or covered < 0.75 * record.rows:
            return None
        with contextlib.suppress(DataError, FileNotFoundError):
            return FaissFile.read(self._folder / record.name, record, self.embed_dim, to_change=True)
        return None

    def _pages(self, ids: NDArray[np.int64]) -> Iterator[Chunk]:
        """Each of a later instant; what is removed meanwhile is missing."""
        for start in range(0, len(ids), _CHUNK_ROWS):
            with self._reading() as connection:
                page = self._embeddings_of(connection, ids[start : start + _CHUNK_ROWS])
            yield page

    def _next_faiss_name(self) -> str:
        pattern = re.compile(rf"nearest-{self._number}-([0-9]+)\.faiss")
        numbers = [int(found[1]) for path in self._folder.iterdir() if (found := pattern.fullmatch(path.name))]
        return f"nearest-{self._number}-{max(numbers, default=0) + 1}.faiss"

    def _replace_faiss(self, record: FaissRecord | None) -> None:
        with self._writing() as connection:
            connection.execute("DELETE FROM faiss_file")
            if record is not None:
                connection.execute("INSERT INTO faiss_file VALUES (?, ?, ?, ?, ?, ?)", dataclasses.astuple(record))
        unlink_matching(self._folder, rf"\.?nearest-{self._number}-.*", but=None if record is None else record.name)

    # The whole index

    def replacement(self, *, embed_dim: int, restart: bool = False) -> SQLiteStore:
        with locked(self._folder):
            last = max(self._number, *catalogues(self._folder))
            if last > self._number and not restart:
                with contextlib.suppress(DataError):  # half made, or damaged
                    left = type(self)(self._folder, last)
                    if left.embed_dim == embed_dim:
                        return left
                    left.close()
            for number in catalogues(self._folder):
                if number != self._number:
                    remove_catalogue(self._folder, number)
            _make(self._folder, last + 1, embed_dim)  # a new number: who has a removed one open shall notice
            return type(self)(self._folder, last + 1)

    def take_over(self) -> None:
        with locked(self._folder):
            current = current_catalogue(self._folder)
            if current is None or current >= self._number:
                return
            with type(self)(self._folder, current) as old, old._writing():  # whoever waits to write then sees it
                self._check_not_replaced()
                make_current(self._folder, self._number)
            for number in catalogues(self._folder):
                if number < self._number:
                    remove_catalogue(self._folder, number)

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Transactions

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """All that is read inside is of one instant."""
        with self._lock, self._translated():
            if self._seen is not None and state_of(self._path) not in (None, self._seen):
                self._connection.close()
                self._connect()
            self._connection.execute("BEGIN")
            try:
                yield self._connection
            finally:
                self._connection.rollback()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        """All that is written inside is there when it ends, or nothing if it raises."""
        with self._lock, self._translated():
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                self._check_not_replaced()
                yield self._connection
                self._connection.commit()
            except BaseException:
                self._connection.rollback()
                raise

    def _check_not_replaced(self) -> None:
        """A transaction in a database that is about to be removed would be lost without a word."""
        current = current_catalogue(self._folder)
        if current is None or current > self._number or identity(self._path) != self._identity:
            raise ConfigError(f"{self.address}: the index has been replaced by another process; open it again")

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Errors of SQLite as ours, with a remedy."""
        try:
            yield
        except sqlite3.ProgrammingError:
            raise
        except sqlite3.Error as error:
            raise _translation(error, self._path) from error
        except UnicodeDecodeError as error:  # of a message that quotes a damaged database
            raise _damage(self._path, error) from error


def _damage(path: Path, reason: object) -> DataError:
    return DataError(f"{path}: is damaged ({reason}); put a copy back, or remove the folder and index again")


def _translation(error: sqlite3.Error, path: Path) -> Exception:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ConfigError(
            f"{path}: another process has been writing for {PATIENCE_SECONDS:.0f} s; wait for it, then try again"
        )
    if code == sqlite3.SQLITE_FULL:
        return DataError(f"{path}: the disk is full; make room and run it again: nothing that was stored is lost")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return ConfigError(f"{path}: cannot be written or opened here ({error}); check its permissions")
    if code == sqlite3.SQLITE_IOERR:
        return DataError(f"{path}: {error}; check the disk, its quota and its limits: what was stored is kept")
    return _damage(path, error)


# Files of the folder


def _create(folder: Path, embed_dim: int) -> int:
    if not 0 < embed_dim <= 65536:
        raise ConfigError(f"embed_dim {embed_dim}: must be between 1 and 65536")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(path.name for path in folder.iterdir())
    except OSError as error:
        raise ConfigError(f"{folder}: no index can be made here ({error.strerror}); choose another folder") from error
    others = [name for name in names if not re.fullmatch(r"\..*|lock|.*\.lock|catalogue-.*", name)]
    if others and "CURRENT" not in others:
        raise ConfigError(f"{folder}: holds other files ({others[0]!r}) and no index; choose a new or an empty folder")
    with locked(folder):
        number = current_catalogue(folder)
        if number is None:
            for left in catalogues(folder):  # of a process that ended before CURRENT was written
                remove_catalogue(folder, left)
            number = 1
            _make(folder, number, embed_dim)
            make_current(folder, number)
    return number


def _make(folder: Path, number: int, embed_dim: int) -> None:
    """An empty catalogue; whoever calls this holds the lock."""
    connection = sqlite3.connect(folder / f"catalogue-{number}.db", isolation_level=None)
    try:
        connection.execute(f"PRAGMA page_size = {_PAGE_BYTES}")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {_VERSION}")
        for statement in _SCHEMA:
            connection.execute(statement)
        connection.execute("INSERT INTO width VALUES (?)", (embed_dim,))
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise _translation(error, folder) from error
    finally:
        connection.close()


# Rows and their records


def _distinct(ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """In order. ``np.unique`` would import ``numpy.ma``, 5 ms of a search."""
    ids = np.sort(ids)
    return ids[np.append(True, ids[1:] != ids[:-1])] if len(ids) else ids


def _record(row: Row) -> tuple[Any, ...]:
    return (
        path_bytes(row.path),
        row.size_bytes,
        row.modified_ns,
        row.digest,
        row.width,
        row.height,
        row.format,
        row.signature,
        _metadata_text(row) if row.metadata else None,
    )


def _metadata_text(row: Row) -> str:
    try:
        return json.dumps({key_of(name): value for name, value in row.metadata.items()}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{row.path}: its metadata cannot be kept as JSON: {error}") from error


def _row(record: Sequence[Any]) -> Row:
    path, size_bytes, modified_ns, digest, width, height, kind, signature, text = record
    metadata = json.loads(text) if text else {}
    return Row(
        path=path_text(path),
        size_bytes=size_bytes,
        modified_ns=modified_ns,
        digest=digest,
        width=width,
        height=height,
        format=kind,
        signature=signature,
        metadata={name_of(name): value for name, value in metadata.items()},
    )
