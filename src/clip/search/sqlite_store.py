"""An index in a folder: one SQLite database, and beside it a file of faiss that makes large ones fast.

The database (``catalogue-1.db``; ``CURRENT`` names it) is the whole truth: rows, documents, embeddings as float16. It
is in WAL mode with full synchronisation: what a method has returned from survives kill -9 and a power cut, readers go
on while another process writes, and writers wait for each other. A network file system cannot give that: an index
belongs on a local disk.

Needs the standard library and NumPy, and starts in a few milliseconds.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sqlite3
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from clip.errors import ConfigError, DataError, IndexNotFoundError
from clip.search.nearest import nearest_in_chunks
from clip.search.store import (
    COLUMNS,
    Condition,
    Found,
    Known,
    Neighbours,
    Row,
    checked_conditions,
    checked_embeddings,
    checked_queries,
    glob_matches,
)

__all__ = ["SQLiteStore"]

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
    "CREATE TRIGGER removed AFTER DELETE ON rows BEGIN DELETE FROM embeddings WHERE id = OLD.id; END",
)
_PAGE_BYTES = 16384
"""100,000 embeddings of 512 numbers are read in 0.14 s; with the usual 4096, three to a page, in twice that."""

_CHUNK_ROWS = 8192
"""Embeddings that an exact search has in memory at once: 16 MB of float32 at 512 numbers."""

_PATIENCE_SECONDS = 60.0
"""How long a writer waits for another. Each holds the lock for one batch, a fraction of a second."""

_COLUMNS = ("path", "size_bytes", "modified_ns", "digest", "width", "height", "format", "signature", "metadata")
_ROW = ", ".join(f"rows.{name}" for name in _COLUMNS)


class SQLiteStore:
    """An open index of a folder. Threads may share it; a forked process opens its own."""

    def __init__(self, folder: Path, number: int) -> None:
        self.address = str(folder)
        self._folder = folder
        self._number = number
        self._path = folder / f"catalogue-{number}.db"
        self._lock = threading.RLock()
        self._connect()

    @classmethod
    def open(cls, address: str, *, embed_dim: int | None = None) -> Self:
        folder = Path(address)
        number = _current(folder)
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
                number, before = _current(folder), number
                if number is None or number == before:
                    raise DataError(f"{address}: catalogue-{before}.db is missing; make the index anew") from error
        if embed_dim not in (None, store.embed_dim):
            store.close()
            raise DataError(f"{address} holds embeddings of {store.embed_dim} numbers, not of {embed_dim}")
        return store

    def _connect(self) -> None:
        inode = self._path.stat().st_ino
        can_write = os.access(self._path, os.W_OK) and os.access(self._folder, os.W_OK)
        if can_write:
            mode = "mode=rw"
        elif Path(f"{self._path}-wal").exists():
            mode = "mode=ro"
        else:  # SQLite cannot make the files that it coordinates by
            mode = "mode=ro&immutable=1"
        self._inode = inode
        with self._translated():
            self._connection = sqlite3.connect(
                f"{self._path.absolute().as_uri()}?{mode}",
                uri=True,
                timeout=_PATIENCE_SECONDS,
                isolation_level=None,
                check_same_thread=False,  # _lock lets in one at a time
            )
            try:
                self._connection.create_function("path_matches", 2, _path_matches, deterministic=True)
                self._connection.create_function("text_matches", 2, _text_matches, deterministic=True)
                self._connection.execute("PRAGMA synchronous = FULL")
                self.embed_dim = self._read_header()
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
        return int(self._connection.execute("SELECT embed_dim FROM width").fetchone()[0])

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

    def rename(self, old: str, new: Row) -> bool:
        record, old_path = _record(new), _path_bytes(old)
        with self._writing() as connection:
            found = connection.execute("SELECT id FROM rows WHERE path = ?", (old_path,)).fetchone()
            if found is None:
                return False
            connection.execute("DELETE FROM rows WHERE path = ? AND id != ?", (record[0], *found))
            assignments = ", ".join(f"{name} = ?" for name in _COLUMNS)
            connection.execute(f"UPDATE rows SET {assignments} WHERE id = ?", (*record, *found))
        return True

    def copy(self, old: str, new: Row) -> bool:
        if old == new.path:
            return self.rename(old, new)
        record, old_path = _record(new), _path_bytes(old)
        with self._writing() as connection:
            found = connection.execute("SELECT id FROM rows WHERE path = ?", (old_path,)).fetchone()
            if found is None:
                return False
            connection.execute("DELETE FROM rows WHERE path = ?", (record[0],))
            cursor = connection.execute("INSERT INTO rows VALUES (NULL, ?, ?, ?, ?, ?, ?, ?, ?, ?)", record)
            connection.execute(
                "INSERT INTO embeddings SELECT ?, embedding FROM embeddings WHERE id = ?", (cursor.lastrowid, *found)
            )
        return True

    def remove(self, paths: Collection[str]) -> int:
        wanted = [(_path_bytes(path),) for path in paths]
        if not wanted:
            return 0
        with self._writing() as connection:
            return connection.executemany("DELETE FROM rows WHERE path = ?", wanted).rowcount

    def known(self, under: str | None = None) -> Iterator[Known]:
        prefix = _path_bytes(under or "")
        where, limits = _prefix_range(prefix)
        last, size = None, 4096
        while True:  # a page at a time, so that nobody waits for whoever reads this
            with self._reading() as connection:
                start = "path > ?" if last is not None else "path >= ?"
                query = f"SELECT path, size_bytes, modified_ns, digest FROM rows WHERE {start} AND {where}"
                values = (prefix if last is None else last, *limits, size)
                page = connection.execute(f"{query} ORDER BY path LIMIT ?", values).fetchall()
            for path, *others in page:
                yield Known(_path_text(path), *others)
            if len(page) < size:
                return
            last = page[-1][0]

    def count(self, conditions: Sequence[Condition] = ()) -> int:
        where, values = _where(conditions)
        with self._reading() as connection:
            return int(connection.execute(f"SELECT count(*) FROM rows WHERE {where}", values).fetchone()[0])

    # Searching

    def nearest(
        self, queries: NDArray[np.float32], k: int, conditions: Sequence[Condition] = (), *, exact: bool = False
    ) -> list[Neighbours]:
        queries = checked_queries(queries, k, self.embed_dim)
        where, values = _where(conditions)
        with self._reading() as connection:
            table = f"embeddings JOIN rows USING (id) WHERE {where}" if conditions else "embeddings"
            cursor = connection.execute(f"SELECT id, embedding FROM {table} ORDER BY id", values)
            return nearest_in_chunks(self._chunks(cursor), queries, k)

    def _chunks(self, cursor: sqlite3.Cursor) -> Iterator[tuple[NDArray[np.int64], NDArray[np.float32]]]:
        while records := cursor.fetchmany(_CHUNK_ROWS):
            yield np.array([record[0] for record in records], np.int64), self._embeddings(records)

    def _embeddings(self, records: Iterable[Sequence[Any]]) -> NDArray[np.float32]:
        """(N, E), of records that end in one."""
        data = b"".join([record[-1] for record in records])
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
        where, values = _where(conditions)
        query = (
            f"SELECT id, {_ROW}, embedding FROM rows JOIN embeddings USING (id) "
            f"WHERE id > ? AND id <= ? AND {where} ORDER BY id LIMIT ?"
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
        return Found(ids, [_row(record[1:-1]) for record in records], self._embeddings(records))

    # The whole index

    def optimize(self) -> None:
        """Nothing yet."""

    def replacement(self, *, embed_dim: int, restart: bool = False) -> SQLiteStore:
        import filelock

        with filelock.FileLock(self._folder / "lock", timeout=_PATIENCE_SECONDS):
            number = max(_catalogues(self._folder))
            if number > self._number and not restart:
                with contextlib.suppress(DataError):  # half made, or damaged
                    left = type(self)(self._folder, number)
                    if left.embed_dim == embed_dim:
                        return left
                    left.close()
            if number > self._number:
                _remove(self._folder, number)
            _make(self._folder, self._number + 1, embed_dim)
            return type(self)(self._folder, self._number + 1)

    def take_over(self) -> None:
        import filelock

        with filelock.FileLock(self._folder / "lock", timeout=_PATIENCE_SECONDS):
            old = _current(self._folder)
            if old is None or old >= self._number:
                return
            with type(self)(self._folder, old) as before, before._writing():  # whoever waits to write then sees it
                _write_current(self._folder, self._number)
            _remove(self._folder, old)

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
        current = _current(self._folder)
        try:
            is_there = self._path.stat().st_ino == self._inode
        except FileNotFoundError:
            is_there = False
        if current is None or current > self._number or not is_there:
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


def _translation(error: sqlite3.Error, path: Path) -> Exception:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return ConfigError(
            f"{path}: another process has been writing for {_PATIENCE_SECONDS:.0f} s; wait for it, then try again"
        )
    if code == sqlite3.SQLITE_FULL:
        return DataError(f"{path}: the disk is full; make room and run it again: nothing that was stored is lost")
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_CANTOPEN):
        return ConfigError(f"{path}: cannot be written or opened here ({error}); check its permissions")
    if code == sqlite3.SQLITE_IOERR:
        return DataError(f"{path}: {error}; check the disk, its quota and its limits: what was stored is kept")
    return DataError(f"{path}: cannot be read ({error}); put a copy back, or remove the folder and index again")


# Files of the folder


def _current(folder: Path) -> int | None:
    """The number of the catalogue that ``CURRENT`` names; None if there is no index."""
    try:
        name = (folder / "CURRENT").read_bytes()[:100].strip()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DataError(f"{folder}: is no index that can be read ({error.strerror})") from error
    found = re.fullmatch(rb"catalogue-([1-9][0-9]{0,17})\.db", name)
    if not found:
        raise DataError(f"{folder / 'CURRENT'}: names no catalogue but {name!r}; make the index anew")
    return int(found[1])


def _catalogues(folder: Path) -> list[int]:
    names = (re.fullmatch(r"catalogue-([1-9][0-9]*)\.db", path.name) for path in folder.iterdir())
    return [int(name[1]) for name in names if name]


def _create(folder: Path, embed_dim: int) -> int:
    import filelock

    if not 0 < embed_dim <= 65536:
        raise ConfigError(f"embed_dim {embed_dim}: must be between 1 and 65536")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        others = [
            path.name for path in folder.iterdir() if not re.fullmatch(r"\..*|lock|.*\.lock|catalogue-.*", path.name)
        ]
    except OSError as error:
        raise ConfigError(f"{folder}: no index can be made here ({error.strerror}); choose another folder") from error
    if others and "CURRENT" not in others:
        raise ConfigError(
            f"{folder}: holds other files ({sorted(others)[0]!r}), no index; choose an empty or new folder"
        )
    with filelock.FileLock(folder / "lock", timeout=_PATIENCE_SECONDS):
        number = _current(folder)
        if number is None:
            for left in _catalogues(folder):  # of a process that ended before CURRENT was written
                _remove(folder, left)
            number = 1
            _make(folder, number, embed_dim)
            _write_current(folder, number)
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


def _write_current(folder: Path, number: int) -> None:
    beside = folder / ".CURRENT"
    with beside.open("wb") as file:
        file.write(f"catalogue-{number}.db\n".encode())
        file.flush()
        os.fsync(file.fileno())
    beside.replace(folder / "CURRENT")
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(folder: Path, number: int) -> None:
    """Removes a catalogue; whoever has it open goes on reading it."""
    for name in (f"catalogue-{number}.db", f"catalogue-{number}.db-wal", f"catalogue-{number}.db-shm"):
        with contextlib.suppress(OSError):  # on Windows not while it is open
            (folder / name).unlink()


# Rows and their records


def _path_bytes(path: str) -> bytes:
    try:
        return path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError as error:
        raise ConfigError(f"{path!r}: a name with half a character ({error.reason}) cannot be kept") from error


def _path_text(path: bytes) -> str:
    return path.decode("utf-8", "surrogateescape")


def _record(row: Row) -> tuple[Any, ...]:
    return (
        _path_bytes(row.path),
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
        return json.dumps({_key(name): value for name, value in row.metadata.items()}, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{row.path}: its metadata cannot be kept as JSON: {error}") from error


def _key(name: str) -> str:
    """A name as it stands in the JSON: without quotes, escapes and what else SQLite's versions take differently."""
    return quote(name, safe=" ", errors="surrogatepass")


def _row(record: Sequence[Any]) -> Row:
    path, size_bytes, modified_ns, digest, width, height, kind, signature, text = record
    metadata = json.loads(text) if text else {}
    return Row(
        path=_path_text(path),
        size_bytes=size_bytes,
        modified_ns=modified_ns,
        digest=digest,
        width=width,
        height=height,
        format=kind,
        signature=signature,
        metadata={unquote(name, errors="surrogatepass"): value for name, value in metadata.items()},
    )


# Conditions as SQL; all that comes from outside is bound, never part of the text


class _SQL(NamedTuple):
    text: str
    values: list[Any]


def _where(conditions: Sequence[Condition]) -> _SQL:
    parts = [_condition(condition) for condition in checked_conditions(conditions)]
    text = " AND ".join(f"({part.text})" for part in parts) or "1"
    return _SQL(text, [value for part in parts for value in part.values])


def _condition(condition: Condition) -> _SQL:
    column, operator, value = condition
    if column == "path":
        assert isinstance(value, str)
        if operator == "glob":
            literal = re.match(r"[^*?\[]*", value)
            assert literal
            within = _prefix_range(_path_bytes(literal[0]))
            return _SQL(f"path >= ? AND {within.text} AND path_matches(path, ?)", [
                _path_bytes(literal[0]), *within.values, _path_bytes(value)
            ])  # fmt: skip
        return _SQL(f"path {operator} ?", [_path_bytes(value)])
    if column in COLUMNS:
        kind, place, found = "1", column, []
    else:
        kinds = (
            "'true', 'false'"
            if isinstance(value, bool)
            else "'text'"
            if isinstance(value, str)
            else "'integer', 'real'"
        )
        at = f'$."{_key(column)}"'
        kind, place, found = f"json_type(metadata, ?) IN ({kinds})", "json_extract(metadata, ?)", [at]
    if operator == "glob":
        assert isinstance(value, str)
        return _SQL(f"{kind} AND text_matches(CAST({place} AS BLOB), ?)", [*found, *found, _text_bytes(value)])
    if isinstance(value, str):
        return _SQL(f"{kind} AND {place} {operator} CAST(? AS TEXT)", [*found, *found, _text_bytes(value)])
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = float(value) if abs(value) < 10**300 else float("inf") * (1 if value > 0 else -1)
    return _SQL(f"{kind} AND {place} {operator} ?", [*found, *found, value])


def _prefix_range(prefix: bytes) -> _SQL:
    """An upper end of what begins with it."""
    stem = prefix.rstrip(b"\xff")
    if not stem:
        return _SQL("1", [])
    return _SQL("path < ?", [stem[:-1] + bytes([stem[-1] + 1])])


def _text_bytes(text: str) -> bytes:
    """As SQLite has the text of a JSON string, halves of surrogate pairs included."""
    return text.encode("utf-8", "surrogatepass")


def _path_matches(path: bytes, pattern: bytes) -> bool:
    return glob_matches(_path_text(path), _path_text(pattern))


def _text_matches(text: bytes | None, pattern: bytes) -> bool:
    if text is None:
        return False
    return glob_matches(text.decode("utf-8", "surrogatepass"), pattern.decode("utf-8", "surrogatepass"))
