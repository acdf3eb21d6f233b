"""What an index needs of the engine that keeps it. ``open_store`` chooses one by the address.

A store keeps rows (one for each picture: where it is, what its file was like, an embedding) and a few small documents
by name. It knows nothing of models, queries or pictures.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Literal, NamedTuple, Protocol, Self, get_args

import numpy as np
from numpy.typing import NDArray

from clip.errors import ConfigError, ShapeError, choices

__all__ = [
    "COLUMNS",
    "Condition",
    "Found",
    "Known",
    "Neighbours",
    "Operator",
    "Row",
    "Store",
    "checked_conditions",
    "checked_embeddings",
    "checked_queries",
    "glob_matches",
    "open_store",
]

Operator = Literal["=", "!=", "<", "<=", ">", ">=", "glob"]

COLUMNS: Mapping[str, type] = {
    "path": str, "size_bytes": int, "modified_ns": int, "width": int, "height": int, "format": str
}  # fmt: skip
"""Columns of a row that a condition may name; any other name is a key of its metadata."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A picture of an index. What is not known of a picture that came without its file is None."""

    path: str
    """Which picture it is; no two rows have the same. An absolute path, whose bytes need not be UTF-8 (they come with
    ``surrogateescape``), or ``shard.tar/member``, or whatever name came with an embedding."""
    size_bytes: int | None = None
    modified_ns: int | None = None
    digest: bytes | None = None
    """16 bytes, BLAKE2b of the file: a renamed file is known by it."""
    width: int | None = None
    height: int | None = None
    """In pixels, as the picture is seen (turned upright)."""
    format: str | None = None
    """As Pillow names it: "JPEG"."""
    signature: bytes | None = None
    """56 bytes: what near-duplicates are told by (``clip.search.alike``)."""
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    """JSON values by name; those that are a string, a number, a boolean or null can be filtered by."""


class Known(NamedTuple):
    """What a store remembers of a file: enough to see whether it has changed."""

    path: str
    size_bytes: int | None
    modified_ns: int | None
    digest: bytes | None


class Condition(NamedTuple):
    """``column operator value``. It holds for no row whose column is missing or of another type, "!=" included."""

    column: str
    operator: Operator
    value: str | int | float | bool
    """"glob" takes a pattern with ``*``, ``?`` and ``[...]`` for the whole of a string (``glob_matches``).
    Strings are compared by code point, paths by their bytes; a boolean only equals a boolean."""


class Neighbours(NamedTuple):
    """The nearest rows to one query, nearest first; equal cosines in order of their ids."""

    ids: NDArray[np.int64]
    """(k,), or fewer if there are no more rows."""
    cosines: NDArray[np.float32]
    """(k,)"""


class Found(NamedTuple):
    """Rows in the order that they were asked for, or in that of their ids."""

    ids: NDArray[np.int64]
    """(N,)"""
    rows: list[Row]
    embeddings: NDArray[np.float32]
    """(N, E), unit norm but for the rounding of how they are stored (float16)."""


class Store(Protocol):
    """An open index. What a method has returned from survives the end of the process, and no reader sees half of it.

    Several processes may use one index at the same time, to read and to write. Methods raise DataError for an index
    that cannot be read, and ConfigError for what cannot be done.
    """

    address: str

    @property
    def embed_dim(self) -> int:
        """E."""

    def read_document(self, name: str) -> bytes | None:
        """A small document (up to some MB), or None."""

    def write_document(self, name: str, value: bytes) -> None:
        """Replaces the document."""

    def add(self, rows: Sequence[Row], embeddings: NDArray[np.float32]) -> None:
        """Stores rows and their embeddings (N, E), all or none; a row with the same path is replaced.

        Raises ShapeError unless there is an embedding of E finite numbers for each row.
        """

    def remove(self, paths: Collection[str]) -> int:
        """How many of them there were."""

    def known(self, under: str | None = None) -> Iterator[Known]:
        """All rows in order of the bytes of their paths, or those whose path begins with ``under``: a folder ends
        in a slash."""

    def count(self, conditions: Sequence[Condition] = ()) -> int:
        """Rows that fulfil all conditions."""

    def nearest(
        self, queries: NDArray[np.float32], k: int, conditions: Sequence[Condition] = (), *, exact: bool = False
    ) -> list[Neighbours]:
        """The k nearest rows to each of the queries (Q, E), by cosine, **among those that fulfil all conditions**.

        exact: compare with every row. Otherwise a large index may miss some (docs/search.md says how many).
        """

    def find(self, ids: NDArray[np.int64] | Sequence[int]) -> Found:
        """Rows by id, in this order; those that have gone meanwhile are left out."""

    def scan(self, conditions: Sequence[Condition] = (), *, batch_size: int = 4096) -> Iterator[Found]:
        """All rows that fulfil all conditions, in order of their ids. Rows that others write meanwhile may be missing,
        never twice."""

    def optimize(self) -> None:
        """Makes later searches fast; called once after many changes. Does nothing if it would not help."""

    def replacement(self, *, embed_dim: int, restart: bool = False) -> Store:
        """An empty index of this width that is to take the place of this one, or what an ended process left of it.

        Readers see this one until ``take_over`` is called on the other. Nothing is copied, documents neither.
        restart: empty in any case.
        """

    def take_over(self) -> None:
        """Puts a replacement in the place of the index that it replaces, at once for all readers who open it."""

    def close(self) -> None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


def open_store(address: str, *, embed_dim: int | None = None) -> Store:
    """The store of an address: a folder, or ``milvus+http://host:19530/name``.

    embed_dim: create the index if there is none, for embeddings of this many numbers; with None that is an
    IndexNotFoundError. An index of another width is a DataError.
    """
    if address.startswith(("milvus+http://", "milvus+https://")):
        from clip.search.milvus_store import MilvusStore

        return MilvusStore.open(address, embed_dim=embed_dim)
    if "://" in address:
        raise ConfigError(f"{address}: no store of this kind; use a folder or milvus+http://host:port/name")
    from clip.search.sqlite_store import SQLiteStore

    return SQLiteStore.open(address, embed_dim=embed_dim)


def checked_conditions(conditions: Sequence[Condition]) -> Sequence[Condition]:
    """The conditions. Raises ConfigError for one that can never hold, because its value is of another type."""
    for column, operator, value in conditions:
        if operator not in get_args(Operator):
            raise ConfigError(
                f"{column} {operator} {value!r}: the operators are {choices(operator, get_args(Operator))}"
            )
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{column} {operator} {value!r}: no number to compare with")
        kind = COLUMNS.get(column)
        is_text = isinstance(value, str)
        if kind is not None and (is_text != (kind is str) or isinstance(value, bool)):
            raise ConfigError(f"{column} {operator} {value!r}: {column} is {'text' if kind is str else 'a number'}")
        if operator == "glob" and not is_text:
            raise ConfigError(f"{column} glob {value!r}: a pattern is text")
    return conditions


def checked_embeddings(rows: Sequence[Row], embeddings: NDArray[np.float32], embed_dim: int) -> NDArray[np.float16]:
    """The embeddings as they are stored. Raises ShapeError unless there are E finite numbers for each row."""
    if embeddings.shape != (len(rows), embed_dim):
        raise ShapeError(
            f"embeddings of shape {embeddings.shape} for {len(rows)} rows; expected ({len(rows)}, {embed_dim})"
        )
    with np.errstate(over="ignore"):
        stored = np.asarray(embeddings).astype(np.float16)
    finite = np.isfinite(stored).all(axis=1)
    if not finite.all():
        raise ShapeError(f"the embedding of {rows[int(np.argmin(finite))].path!r} has numbers that are not finite")
    return stored


def checked_queries(queries: NDArray[np.float32], k: int, embed_dim: int) -> NDArray[np.float32]:
    """(Q, E) at unit norm. Raises ShapeError unless they are finite and of this width, and ConfigError for k < 1."""
    if k < 1:
        raise ConfigError(f"k {k}: must be at least 1")
    if queries.ndim != 2 or queries.shape[1] != embed_dim:
        raise ShapeError(f"queries of shape {queries.shape}; expected (Q, {embed_dim})")
    queries = np.ascontiguousarray(queries, np.float32)
    if not np.isfinite(queries).all():
        raise ShapeError("a query has numbers that are not finite")
    norms = np.linalg.norm(queries, axis=1, keepdims=True)
    return (queries / np.where(norms > 0, norms, 1)).astype(np.float32)


def glob_matches(text: str, pattern: str) -> bool:
    """Whether all of the text fits the pattern: ``*`` is anything, ``/`` and line ends included, ``?`` one character,
    ``[a-z]`` and ``[!a-z]`` one of or none of these, ``[*]`` a star. Case counts, on every system."""
    return _compiled(pattern)(text) is not None


@functools.lru_cache
def _compiled(pattern: str) -> Callable[[str], re.Match[str] | None]:
    return re.compile(fnmatch.translate(pattern)).match
