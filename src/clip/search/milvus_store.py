"""An index on a server or a cluster of Milvus, ``milvus+http://host:19530/name``: beyond what one machine holds.

    name                      an alias: which collection is the index at present
    name__g1                  a row for each picture, keyed by its path, with the embedding
    name__g1__documents       the small documents, in pieces
    name__g2, …               what is to take the place of the first one

Milvus has no transactions. A request is all or nothing and the next reader sees it (consistency "Strong"); what takes
several requests is done in an order in which nothing is lost if the process ends between them, and says so.

Needs pymilvus (``pip install 'everyclip[milvus]'``). docs/milvus.md says how to run a server, and what was tested.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import secrets
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar
from urllib.parse import urlsplit

import numpy as np
from numpy.typing import NDArray

from clip.errors import ConfigError, DataError, IndexNotFoundError, MissingDependencyError
from clip.search.milvus_expressions import Filter, facets, filter_of, fulfils, path_of, spelled, spelled_path, text_of
from clip.search.nearest import nearest_in_chunks
from clip.search.store import (
    Condition,
    Found,
    Known,
    Neighbours,
    Row,
    checked_conditions,
    checked_embeddings,
    checked_queries,
)

__all__ = ["MilvusStore"]

_Thing = TypeVar("_Thing")

_CONNECT_SECONDS = 10.0
_PATIENCE_SECONDS = 30.0
"""For the answer to one request, its repetitions included."""
_BUILD_SECONDS = 24 * 3600.0
"""For an index of vectors, which the server builds while the client waits."""

_MOST = 16384
"""Rows of one answer, and nearest neighbours of one query: a limit of Milvus."""
_TEXT_BYTES = 65535
"""Of a VARCHAR: a limit of Milvus."""
_REQUEST_BYTES = 16 << 20
"""Of one ``add``; a proxy takes 64 MiB by default."""
_KEYS = 1000
"""Rows that one filter names."""
_IDS = 2**63

_EXACT_UP_TO = 100_000
"""Rows that are compared with all of them: 0.2 GB at 512 numbers. Beyond, ``optimize`` makes an index (IVF_SQ8)."""
_LISTS, _PROBED = 1024, 64
"""Clusters of a segment (of some 500,000 rows at 512 numbers), and those that a search looks into."""
_ALL = 65536
"""More clusters than there can be; no server looks into one twice."""
_MARGIN = 32
"""Neighbours asked for beyond k: the server ranks them by 8 bits, and not in our order where cosines are equal."""

_REMEDIES = {
    100: "the index was removed, or replaced by another; open it again",
    101: "another process makes an index of its vectors; try again when that has ended",
}
"""By Milvus's codes of errors: a collection that is not there, and one that is not loaded."""

_KNOWN = ("path", "size_bytes", "modified_ns", "digest")
_ROW = (*_KNOWN, "width", "height", "format", "signature", "metadata")
_FIELDS = {*_ROW, "row_id", "facets", "embedding"}


class _Address(NamedTuple):
    uri: str
    name: str


class MilvusStore:
    """An open index. Threads may share it."""

    def __init__(self, address: str, client: Any, generation: int) -> None:
        """client: a ``pymilvus.MilvusClient``, which this closes. ``open`` makes it."""
        self.address = address
        self._client = client
        self._name = _parsed(address).name
        self._generation = generation
        self._rows = f"{self._name}__g{generation}"
        self._documents = f"{self._rows}__documents"
        self.embed_dim = self._read_width()

    @classmethod
    def open(cls, address: str, *, embed_dim: int | None = None) -> Self:
        """An index of a server. Its token or ``user:password`` is the environment's MILVUS_TOKEN.

        embed_dim: as in ``open_store``.
        """
        client = _connected(address)
        try:
            name = _parsed(address).name
            generation = _current(address, client, name)
            if generation is None:
                if embed_dim is None:
                    raise IndexNotFoundError(
                        f"{address}: no index is there; make one with 'clip index FOLDER --into {address}'"
                    )
                generation = 1
                _make(address, client, f"{name}__g1", embed_dim)
                point = functools.partial(client.create_alias, f"{name}__g1", name, timeout=_PATIENCE_SECONDS)
                _make_once(address, client, name, point)
            store = cls(address, client, generation)
            if embed_dim not in (None, store.embed_dim):
                raise DataError(f"{address} holds embeddings of {store.embed_dim} numbers, not of {embed_dim}")
            return store
        except BaseException:
            client.close()
            raise

    def _read_width(self) -> int:
        fields = {field["name"]: field for field in self._ask("describe_collection", self._rows)["fields"]}
        if set(fields) != _FIELDS:
            raise DataError(f"{self.address}: is a collection of another program or version; take another name")
        if "embedding" not in self._ask("list_indexes", self._rows):  # a process ended while it made another
            _make_index(self.address, self._client, self._rows, "embedding", "FLAT", metric_type="IP")
        self._ask("load_collection", self._rows)
        return int(fields["embedding"]["params"]["dim"])

    # Documents: "name x" holds a version and a number of pieces, "piece version i" each of these

    def read_document(self, name: str) -> bytes | None:
        for _ in range(10):  # between two answers another process may replace it
            pointer = self._pointer(name)
            if pointer is None:
                return None
            version, count = pointer
            keys = [f"piece {version} {number}" for number in range(count)]
            pieces = {
                record["key"]: record["value"]
                for some in _batches(keys, 64)
                for record in self._query(self._documents, _among("key", some), ["key", "value"])
            }
            if len(pieces) == count:
                return base64.b64decode("".join(pieces[key] for key in keys))
        raise DataError(f"{self.address}: the document {name!r} is incomplete; make the index anew")

    def write_document(self, name: str, value: bytes) -> None:
        self._check_not_replaced()
        before = self._pointer(name)
        text = base64.b64encode(value).decode("ascii")
        version = secrets.token_hex(8)
        pieces = [text[start : start + _TEXT_BYTES // 4 * 4] for start in range(0, len(text), _TEXT_BYTES // 4 * 4)]
        for some in _batches(list(enumerate(pieces)), 64):
            self._write_pieces({f"piece {version} {number}": piece for number, piece in some})
        self._write_pieces({f"name {spelled(name)}": f"{version} {len(pieces)}"})
        if before is not None:
            self._ask("delete", self._documents, filter=f'key like "piece {before[0]} %"')

    def _pointer(self, name: str) -> tuple[str, int] | None:
        found = self._query(self._documents, _among("key", [f"name {spelled(name)}"]), ["value"])
        if not found:
            return None
        version, count = found[0]["value"].split()
        return version, int(count)

    def _write_pieces(self, pieces: dict[str, str]) -> None:
        records = [{"key": key, "value": value, "nothing": [0.0, 1.0]} for key, value in pieces.items()]
        self._ask("upsert", self._documents, data=records)

    # Rows

    def add(self, rows: Sequence[Row], embeddings: NDArray[np.float32]) -> None:
        """One request, all or nothing, for up to some 16 MB (8,000 rows of 512 numbers); more rows take several."""
        halves = checked_embeddings(rows, embeddings, self.embed_dim)
        last = {row.path: place for place, row in enumerate(rows)}  # of rows with one path the last stays
        records = [_record(rows[place], halves[place]) for place in last.values()]
        self._check_not_replaced()
        self._write(records)

    def _write(self, records: Sequence[dict[str, Any]]) -> None:
        request: list[dict[str, Any]] = []
        size = 0
        for record in records:
            # a spelling is at most twice as long in UTF-8, and facets repeat the metadata
            cost = 4 * self.embed_dim + 2 * len(record["path"]) + 4 * len(record["metadata"]) + 512
            if request and size + cost > _REQUEST_BYTES:
                self._ask("upsert", self._rows, data=request)
                request, size = [], 0
            request.append(record)
            size += cost
        if request:
            self._ask("upsert", self._rows, data=request)

    def remove(self, paths: Collection[str]) -> int:
        self._check_not_replaced()
        removed = 0
        for some in _batches(list({spelled_path(path) for path in paths}), _KEYS):
            found = [record["path"] for record in self._query(self._rows, _among("path", some), ["path"])]
            if found:
                self._ask("delete", self._rows, filter=_among("path", found))
            removed += len(found)
        return removed

    def known(self, under: str | None = None) -> Iterator[Known]:
        where = f'path like "{spelled_path(under)}%"' if under else ""
        for record in self._in_order_of_paths(where, _KNOWN):
            yield Known(
                path_of(record["path"]), record["size_bytes"], record["modified_ns"], _from_hex(record["digest"])
            )

    def count(self, conditions: Sequence[Condition] = ()) -> int:
        where = filter_of(checked_conditions(conditions))
        if where is None:
            return 0
        if not where.rest:
            return self._count(where.expression)
        columns = [column for column in _ROW if column != "signature"]
        records = self._in_order_of_paths(where.expression, columns)
        return sum(fulfils(_row(record), where.rest) for record in records)

    def _count(self, expression: str) -> int:
        answer = self._ask("query", self._rows, filter=expression, output_fields=["count(*)"])
        return int(answer[0]["count(*)"])

    # Searching

    def nearest(
        self, queries: NDArray[np.float32], k: int, conditions: Sequence[Condition] = (), *, exact: bool = False
    ) -> list[Neighbours]:
        """As the protocol says. Cosines are of the stored embeddings, whatever the server ranked them by.

        More than 16,000 neighbours, a pattern with ``?`` or ``[…]`` that few rows fulfil, and ``exact`` with an index
        other than FLAT or IVF, are compared here with all rows that the conditions leave: exact, but slow.
        """
        queries = checked_queries(queries, k, self.embed_dim)
        where = filter_of(checked_conditions(conditions))
        if where is None:
            return [Neighbours(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
        found: dict[int, Neighbours] = {}
        limit, probed = k + _MARGIN, _PROBED
        if exact:
            limit, probed = 4 * k + _MARGIN, _ALL
            if not self._index_kind().startswith(("FLAT", "IVF")):
                limit = _MOST + 1
        while limit <= _MOST and len(found) < len(queries):
            for some in _batches([number for number in range(len(queries)) if number not in found], _MOST // limit):
                for number, hits in zip(some, self._search(queries[some], limit, where, probed), strict=True):
                    best = self._ranked(hits, queries[number], k, where)
                    if len(hits) < limit:  # there are no more, unless in a cluster that was not looked into
                        settled = len(best.ids) == k or probed == _ALL
                    else:
                        settled = len(best.ids) == k and hits[-1]["distance"] < best.cosines[-1]
                    if settled:
                        found[number] = best
            limit, probed = 4 * limit, _ALL
        rest = [number for number in range(len(queries)) if number not in found]
        if rest:
            chunks = ((batch.ids, batch.embeddings) for batch in self.scan(conditions))
            found.update(zip(rest, nearest_in_chunks(chunks, queries[rest], k), strict=True))
        return [found[number] for number in range(len(queries))]

    def _search(self, queries: NDArray[np.float32], limit: int, where: Filter, probed: int) -> list[Any]:
        """The hits of each query, the best first."""
        columns = [column for column in _ROW if column != "signature"] if where.rest else []
        answer = self._ask(
            "search",
            self._rows,
            data=list(queries),
            anns_field="embedding",
            limit=limit,
            filter=where.expression,
            output_fields=["row_id", "embedding", *columns],
            search_params={"metric_type": "IP", "params": {"nprobe": probed}},
        )
        return list(answer)

    def _ranked(self, hits: Sequence[Any], query: NDArray[np.float32], k: int, where: Filter) -> Neighbours:
        entities = [hit["entity"] for hit in hits]
        if where.rest:
            entities = [entity for entity in entities if fulfils(_row(entity), where.rest)]
        entities.sort(key=lambda entity: int(entity["row_id"]))
        ids = np.array([entity["row_id"] for entity in entities], np.int64)
        return nearest_in_chunks([(ids, self._embeddings(entities))], query[None], k)[0]

    def find(self, ids: NDArray[np.int64] | Sequence[int]) -> Found:
        wanted = [int(one) for one in ids]
        records = {
            record["row_id"]: record
            for some in _batches(wanted, _KEYS)
            for record in self._query(self._rows, f"row_id in {some}", ["row_id", *_ROW, "embedding"])
        }
        return self._found([records[one] for one in wanted if one in records])

    def scan(self, conditions: Sequence[Condition] = (), *, batch_size: int = 4096) -> Iterator[Found]:
        where = filter_of(checked_conditions(conditions))
        if where is None:
            return
        # Milvus sorts by nothing but the key. Ids are spread evenly, so ranges of them hold about equally many rows.
        step = max(1, _IDS * min(batch_size, _MOST) // (2 * max(1, self._count(where.expression))))
        start = 0
        waiting: list[dict[str, Any]] = []
        while start < _IDS:
            end = start + step
            ranged = f"row_id >= {start} and row_id < {end}" if end < _IDS else f"row_id >= {start}"
            if where.expression:
                ranged = f"{ranged} and {where.expression}"
            records = self._query(self._rows, ranged, ["row_id", *_ROW, "embedding"])
            if len(records) == _MOST:
                step = step // 2
                continue
            records.sort(key=lambda record: int(record["row_id"]))
            waiting += [record for record in records if not where.rest or fulfils(_row(record), where.rest)]
            while len(waiting) >= batch_size or (waiting and end >= _IDS):
                yield self._found(waiting[:batch_size])
                del waiting[:batch_size]
            start = end

    def _found(self, records: Sequence[dict[str, Any]]) -> Found:
        ids = np.array([record["row_id"] for record in records], np.int64)
        return Found(ids, [_row(record) for record in records], self._embeddings(records))

    def _embeddings(self, records: Sequence[dict[str, Any]]) -> NDArray[np.float32]:
        return np.array([record["embedding"] for record in records], np.float32).reshape(-1, self.embed_dim)

    # The whole index

    def optimize(self) -> None:
        """Gives a large index of exact search a faster one; searches of others fail meanwhile. Once in its life.

        An index of vectors that someone has made with the tools of Milvus stays as it is.
        """
        if _current(self.address, self._client, self._name) == self._generation:  # not of one that is to take over
            for generation in self._generations():
                if generation < self._generation:  # who opened it before it was replaced has had time to end
                    self._drop(generation)
        if self._index_kind() == "FLAT" and self._count("") >= _EXACT_UP_TO:
            self._ask("flush", self._rows, timeout=_BUILD_SECONDS)
            self._ask("release_collection", self._rows)
            self._ask("drop_index", self._rows, index_name="embedding")
            lists = {"nlist": _LISTS}
            _make_index(self.address, self._client, self._rows, "embedding", "IVF_SQ8", metric_type="IP", params=lists)
            self._ask("load_collection", self._rows, timeout=_BUILD_SECONDS)

    def _index_kind(self) -> str:
        return str(self._ask("describe_index", self._rows, index_name="embedding")["index_type"])

    def replacement(self, *, embed_dim: int, restart: bool = False) -> MilvusStore:
        client = _connected(self.address)
        try:
            generation = self._generation + 1
            if generation in self._generations():
                left = None
                with contextlib.suppress(DataError):  # half made
                    left = type(self)(self.address, client, generation)
                if left is not None and left.embed_dim == embed_dim and not restart:
                    return left
                self._drop(generation)
            _make(self.address, client, f"{self._name}__g{generation}", embed_dim)
            return type(self)(self.address, client, generation)
        except BaseException:
            client.close()
            raise

    def take_over(self) -> None:
        """The replaced collections stay, for those who read them, until the next ``optimize``."""
        current = _current(self.address, self._client, self._name)
        if current is None or current < self._generation:
            with _translated(self.address):
                self._client.alter_alias(self._rows, self._name, timeout=_PATIENCE_SECONDS)

    def _generations(self) -> list[int]:
        with _translated(self.address):
            names = self._client.list_collections(timeout=_PATIENCE_SECONDS)
        found = (re.fullmatch(rf"{self._name}__g([1-9][0-9]*)", name) for name in names)
        return [int(one[1]) for one in found if one]

    def _drop(self, generation: int) -> None:
        self._ask("drop_collection", f"{self._name}__g{generation}")
        self._ask("drop_collection", f"{self._name}__g{generation}__documents")

    def _check_not_replaced(self) -> None:
        """What is written into a collection that is about to be dropped would be lost without a word."""
        current = _current(self.address, self._client, self._name)
        if current is None or current > self._generation:
            raise ConfigError(f"{self.address}: the index has been replaced by another process; open it again")

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # Requests

    def _ask(self, method: str, collection: str, *, timeout: float = _PATIENCE_SECONDS, **arguments: Any) -> Any:
        with _translated(self.address):
            return getattr(self._client, method)(collection, timeout=timeout, **arguments)

    def _query(self, collection: str, expression: str, fields: Sequence[str]) -> list[dict[str, Any]]:
        return list(self._ask("query", collection, filter=expression, output_fields=list(fields), limit=_MOST))

    def _in_order_of_paths(self, expression: str, fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        with _translated(self.address):
            pages = self._client.query_iterator(
                self._rows,
                batch_size=4096,
                filter=expression,
                output_fields=list(fields),
                timeout=_PATIENCE_SECONDS,
            )
        try:
            while True:
                with _translated(self.address):
                    page = pages.next()
                if not page:
                    return
                yield from page
        finally:
            pages.close()


# Servers


def _parsed(address: str) -> _Address:
    """Raises ConfigError for an address that is not ``milvus+http://host:port/name``."""
    parts = urlsplit(address)
    if parts.username is not None or parts.password is not None:
        raise ConfigError(
            "an address with a password is seen by every user of the machine; give user:password, or a token, as the "
            "environment's MILVUS_TOKEN"
        )
    try:
        port = parts.port or 19530
    except ValueError as error:
        raise ConfigError(f"{address}: {error}; use milvus+http://host:19530/name") from error
    name = parts.path.strip("/")
    if not parts.hostname or parts.query or parts.fragment:
        raise ConfigError(f"{address}: is no address of an index; use milvus+http://host:19530/name")
    if not re.fullmatch(r"(?!.*__)[A-Za-z_][A-Za-z0-9_]{0,199}", name):
        raise ConfigError(
            f"{address}: the index's name {name!r} must be of letters, digits and single underscores, and begin with "
            "a letter: milvus+http://host:19530/photos"
        )
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    return _Address(f"{parts.scheme.removeprefix('milvus+')}://{host}:{port}", name)


def _connected(address: str) -> Any:
    """A ``pymilvus.MilvusClient``."""
    uri = _parsed(address).uri
    try:
        import pymilvus
    except ImportError as error:
        raise MissingDependencyError(
            f"{address}: pymilvus is not installed; install it with: pip install 'everyclip[milvus]'"
        ) from error
    # It prints what it also raises, with its traceback, through a handler of its own.
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
    try:
        return pymilvus.MilvusClient(uri=uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=_CONNECT_SECONDS)
    except pymilvus.MilvusException as error:
        raise DataError(
            f"{address}: no Milvus answers at {uri} ({error.message}); check the address, that the server runs, and "
            "MILVUS_TOKEN (docs/milvus.md)"
        ) from error


@contextlib.contextmanager
def _translated(address: str) -> Iterator[None]:
    """Errors of Milvus as ours."""
    import grpc  # type: ignore[import-untyped]  # it has no stubs
    import pymilvus

    try:
        yield
    except pymilvus.MilvusException as error:
        remedy = _REMEDIES.get(error.code, "check that the server runs, and its logs")
        raise DataError(f"{address}: {error.message}; {remedy}") from error
    except grpc.RpcError as error:
        detail = error.details() if isinstance(error, grpc.Call) else error
        raise DataError(f"{address}: Milvus does not answer ({detail}); check that the server runs") from error


def _current(address: str, client: Any, name: str) -> int | None:
    """The generation that is the index; None if there is no index."""
    with _translated(address):
        if not client.has_collection(name, timeout=_PATIENCE_SECONDS):
            return None
        collection = client.describe_collection(name, timeout=_PATIENCE_SECONDS)["collection_name"]
        if collection == name:  # some servers give the name that they were asked for
            aliases = client.list_aliases(timeout=_PATIENCE_SECONDS).get("aliases", [])
            if name not in aliases:
                raise DataError(f"{address}: is a collection that everyclip did not make; take another name")
            collection = client.describe_alias(name, timeout=_PATIENCE_SECONDS)["collection_name"]
    found = re.fullmatch(rf"{name}__g([1-9][0-9]*)", collection)
    if not found:
        raise DataError(f"{address}: is a collection that everyclip did not make; take another name")
    return int(found[1])


def _make(address: str, client: Any, collection: str, embed_dim: int) -> None:
    """An empty index without an alias, or the rest of one that another process began."""
    from pymilvus import DataType

    if not 2 <= embed_dim <= 32768:
        raise ConfigError(f"embed_dim {embed_dim}: Milvus keeps vectors of 2 to 32768 numbers")
    rows = client.create_schema(auto_id=False, enable_dynamic_field=False)
    rows.add_field("path", DataType.VARCHAR, max_length=_TEXT_BYTES, is_primary=True)
    rows.add_field("row_id", DataType.INT64)
    for name in ("size_bytes", "modified_ns", "width", "height"):
        rows.add_field(name, DataType.INT64, nullable=True)
    for name in ("digest", "format", "signature"):
        rows.add_field(name, DataType.VARCHAR, max_length=1024, nullable=True)
    rows.add_field("metadata", DataType.VARCHAR, max_length=_TEXT_BYTES)
    rows.add_field("facets", DataType.JSON)
    rows.add_field("embedding", DataType.FLOAT_VECTOR, dim=embed_dim)
    documents = client.create_schema(auto_id=False, enable_dynamic_field=False)
    documents.add_field("key", DataType.VARCHAR, max_length=_TEXT_BYTES, is_primary=True)
    documents.add_field("value", DataType.VARCHAR, max_length=_TEXT_BYTES)
    documents.add_field("nothing", DataType.FLOAT_VECTOR, dim=2)  # a collection must have vectors
    for name, schema, vectors in ((collection, rows, "embedding"), (f"{collection}__documents", documents, "nothing")):
        create = functools.partial(client.create_collection, name, schema=schema, consistency_level="Strong")
        _make_once(address, client, name, functools.partial(create, timeout=_PATIENCE_SECONDS))
        with _translated(address):
            there = client.list_indexes(name, timeout=_PATIENCE_SECONDS)
        if vectors not in there:
            _make_index(address, client, name, vectors, "FLAT", metric_type="IP")
        if name == collection and "row_id" not in there:
            _make_index(address, client, name, "row_id", "INVERTED")
        with _translated(address):
            client.load_collection(name, timeout=_PATIENCE_SECONDS)


def _make_once(address: str, client: Any, name: str, make: Callable[[], object]) -> None:
    """Makes a collection or an alias unless it is there, which it may be by another process at any moment."""
    with _translated(address):
        if client.has_collection(name, timeout=_PATIENCE_SECONDS):
            return
    try:
        with _translated(address):
            make()
    except DataError:
        with _translated(address):
            if not client.has_collection(name, timeout=_PATIENCE_SECONDS):
                raise


def _make_index(
    address: str, client: Any, collection: str, field: str, kind: str, *, wait: bool = False, **parameters: Any
) -> None:
    """wait: until it is made of the rows that are there; of an empty collection there are none."""
    with _translated(address):
        index = client.prepare_index_params()
        index.add_index(field, index_type=kind, index_name=field, **parameters)
        client.create_index(collection, index, timeout=_BUILD_SECONDS, sync=wait)


# Rows and their records


def _record(row: Row, embedding: NDArray[np.float16]) -> dict[str, Any]:
    try:
        metadata = json.dumps(dict(row.metadata), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{row.path}: its metadata cannot be kept as JSON: {error}") from error
    record = {
        "path": spelled_path(row.path),
        "row_id": _id(row.path),
        "size_bytes": row.size_bytes,
        "modified_ns": row.modified_ns,
        "digest": _to_hex(row.digest),
        "width": row.width,
        "height": row.height,
        "format": None if row.format is None else spelled(row.format),
        "signature": _to_hex(row.signature),
        "metadata": metadata,
        "facets": facets(row.metadata),
        "embedding": embedding.astype(np.float32),
    }
    for name, value in record.items():
        text = json.dumps(value, ensure_ascii=False) if name == "facets" else value
        if isinstance(text, str) and len(text.encode()) > _TEXT_BYTES:
            raise ConfigError(
                f"{row.path[:200]}: its {name} has {len(text.encode())} bytes, Milvus keeps {_TEXT_BYTES}"
            )
    return record


def _row(record: dict[str, Any]) -> Row:
    values = {name: record[name] for name in _ROW if name in record}
    values["path"] = path_of(record["path"])
    values["metadata"] = json.loads(record["metadata"])
    if record["format"] is not None:
        values["format"] = text_of(record["format"])
    for name in ("digest", "signature"):
        if name in values:
            values[name] = _from_hex(values[name])
    return Row(**values)


def _id(path: str) -> int:
    """63 bits of a hash, so that processes that know nothing of each other give a path one id.

    Of 100 million paths, two have one id with a probability of 0.0005; of 10 billion, some five pairs do. Rows are
    keyed by their paths and stay apart; ``find`` then gives one of the two for either.
    """
    digest = hashlib.blake2b(path.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


def _to_hex(data: bytes | None) -> str | None:
    return None if data is None else data.hex()


def _from_hex(text: str | None) -> bytes | None:
    return None if text is None else bytes.fromhex(text)


def _among(field: str, values: Iterable[str]) -> str:
    """Of values that are spelled."""
    literals = ", ".join(f'"{value}"' for value in values)
    return f"{field} in [{literals}]"


def _batches(items: Sequence[_Thing], size: int) -> Iterator[list[_Thing]]:
    for start in range(0, len(items), max(1, size)):
        yield list(items[start : start + max(1, size)])
