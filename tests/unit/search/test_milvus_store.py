"""What is particular to Milvus; what holds for every store is in test_store_conformance.py."""

from __future__ import annotations

import itertools
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from clip.errors import ConfigError, DataError, IndexNotFoundError, MissingDependencyError
from clip.search import milvus_store
from clip.search.milvus_store import MilvusStore
from clip.search.sqlite_store import SQLiteStore
from clip.search.store import Condition, Row, Store, open_store

E = 8
_numbers = itertools.count()


@pytest.fixture
def address(milvus_server: str) -> str:
    """Of an index that is not there yet."""
    return f"{milvus_server}/photos{next(_numbers)}"


@pytest.fixture
def store(address: str) -> Iterator[MilvusStore]:
    with MilvusStore.open(address, embed_dim=E) as made:
        yield made


def _embeddings(count: int, seed: int = 0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(size=(count, E)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def _rows(count: int) -> list[Row]:
    return [Row(path=f"/p/{number:04}.jpg", size_bytes=number) for number in range(count)]


def _paths(store: Store, ids: NDArray[np.int64]) -> list[str]:
    return [row.path for row in store.find(ids).rows]


# Addresses and servers


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("milvus+http://me:secret@host:19530/photos", "MILVUS_TOKEN"),
        ("milvus+http://host:99999999/photos", "host:19530/name"),
        ("milvus+http:///photos", "host:19530/name"),
        ("milvus+http://host:19530/photos?a=b", "host:19530/name"),
        ("milvus+http://host:19530", "letters, digits"),
        ("milvus+http://host:19530/my-photos", "letters, digits"),
        ("milvus+http://host:19530/photos__g1", "letters, digits"),
    ],
)
def test_an_address_that_cannot_be_is_refused_before_anything_is_asked(address: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as raised:
        open_store(address)
    assert "secret" not in str(raised.value)


def test_without_pymilvus_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(MissingDependencyError, match=r"everyclip\[milvus\]"):
        open_store("milvus+http://127.0.0.1:1/photos")


def test_the_token_comes_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    pymilvus = pytest.importorskip("pymilvus")
    given = {}

    def client(**arguments: Any) -> None:
        given.update(arguments)
        raise pymilvus.MilvusException(message="that is all")

    monkeypatch.setattr(pymilvus, "MilvusClient", client)
    monkeypatch.setenv("MILVUS_TOKEN", "root:Milvus")
    with pytest.raises(DataError, match="that is all"):
        open_store("milvus+https://[::1]/photos")
    assert (given["uri"], given["token"]) == ("https://[::1]:19530", "root:Milvus")


def test_where_no_server_is_that_is_said_soon_and_nothing_else_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pymilvus")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(DataError, match=f"no Milvus answers at http://127.0.0.1:{port}.*check the address"):
        open_store(f"milvus+http://127.0.0.1:{port}/photos")
    assert capfd.readouterr() == ("", "")


def test_a_server_that_is_silent_is_not_waited_for_without_end(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pymilvus")
    monkeypatch.setattr(milvus_store, "_CONNECT_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(DataError, match="no Milvus answers"):
        open_store(f"milvus+http://127.0.0.1:{silent.getsockname()[1]}/photos")


def test_a_server_that_ends_while_an_index_is_open(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("milvus_lite")
    serve = "from milvus_lite.adapter.grpc.server import start_server_in_thread as s; import sys\n"
    serve += "server, db, port = s(sys.argv[1]); print(port, flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", serve, str(tmp_path / "data")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout
        port = int(server.stdout.readline())
        store = open_store(f"milvus+http://127.0.0.1:{port}/photos", embed_dim=E)
        server.kill()
    with store, pytest.raises(DataError, match="check that the server runs"):
        store.count()
    assert "Traceback" not in capfd.readouterr().err


# Indexes


def test_an_index_is_made_once_and_found_again(address: str) -> None:
    with pytest.raises(IndexNotFoundError, match="clip index FOLDER --into"):
        open_store(address)
    with open_store(address, embed_dim=E) as store:
        store.add(_rows(3), _embeddings(3))
    with open_store(address) as store, open_store(address, embed_dim=E) as other:
        assert (store.embed_dim, store.count(), other.count()) == (E, 3, 3)
    with pytest.raises(DataError, match=f"embeddings of {E} numbers, not of 5"):
        open_store(address, embed_dim=5)


def test_a_collection_of_another_program_is_left_alone(address: str, milvus_server: str) -> None:
    from pymilvus import MilvusClient

    client = MilvusClient(milvus_server.removeprefix("milvus+"))
    name = address.rpartition("/")[2]
    client.create_collection(name, dimension=4)
    with pytest.raises(DataError, match="everyclip did not make"):
        open_store(address, embed_dim=E)
    client.create_collection(f"{name}x__g1", dimension=4)
    client.create_alias(f"{name}x__g1", f"{name}x")
    with pytest.raises(DataError, match="another program or version"):
        open_store(f"{address}x", embed_dim=E)
    client.close()


def test_a_server_that_describes_a_collection_by_its_alias() -> None:
    pytest.importorskip("pymilvus")

    class Client:
        def has_collection(self, name: str, **_: Any) -> bool:
            return True

        def describe_collection(self, name: str, **_: Any) -> dict[str, str]:
            return {"collection_name": name}

        def list_aliases(self, **_: Any) -> dict[str, list[str]]:
            return {"aliases": ["other", "photos"]}

        def describe_alias(self, name: str, **_: Any) -> dict[str, str]:
            return {"alias": name, "collection_name": f"{name}__g12"}

    assert milvus_store._current("address", Client(), "photos") == 12


@pytest.mark.parametrize("half", ["nothing", "collection", "index"])
def test_what_an_ended_process_made_of_an_index_is_finished(address: str, half: str, milvus_server: str) -> None:
    from pymilvus import MilvusClient

    client = MilvusClient(milvus_server.removeprefix("milvus+"))
    name = address.rpartition("/")[2]
    if half != "nothing":
        milvus_store._make(address, client, f"{name}__g1", E)
        client.drop_collection(f"{name}__g1__documents")
    if half == "collection":
        client.release_collection(f"{name}__g1")
        client.drop_index(f"{name}__g1", "embedding")
    client.close()
    with open_store(address, embed_dim=E) as store:
        store.add(_rows(1), _embeddings(1))
        store.write_document("about", b"a")
        assert len(store.nearest(_embeddings(1), 1)[0].ids) == 1


def test_two_processes_may_make_an_index_at_once(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from pymilvus import MilvusClient

    real = MilvusClient.has_collection
    with open_store(address, embed_dim=E) as first:
        first.add(_rows(1), _embeddings(1))
        asked: set[str] = set()

        def not_yet(client: Any, name: str, **arguments: Any) -> bool:
            """As whoever asks a moment before the other has made it."""
            asked.add(name) if (late := name not in asked) else None
            return not late and real(client, name, **arguments)

        monkeypatch.setattr(MilvusClient, "has_collection", not_yet)
        with open_store(address, embed_dim=E) as second:
            assert second.count() == 1


# Requests


def test_documents_of_any_size_are_kept_and_leave_nothing_behind(store: MilvusStore) -> None:
    big = np.random.default_rng(0).bytes(1_000_000)
    name = 'a "name"\n%_\\'
    assert store.read_document(name) is None
    for value in (big, b"", b"x" * 49148, b"x" * 49150, big[::-1], b"short"):
        store.write_document(name, value)
        assert store.read_document(name) == value
    assert len(store._query(store._documents, "", ["key"])) == 2


def test_a_document_that_is_replaced_while_it_is_read_is_read_again(
    store: MilvusStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write_document("about", b"old")
    real = store._pointer
    seen = []

    def replaced_behind(name: str) -> Any:
        seen.append(pointer := real(name))
        if len(seen) == 1:
            with MilvusStore.open(store.address) as other:
                other.write_document("about", b"new")
        return pointer

    monkeypatch.setattr(store, "_pointer", replaced_behind)
    assert store.read_document("about") == b"new"


def test_many_rows_are_added_in_several_requests(store: MilvusStore, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = []
    real = store._ask

    def counted(method: str, *arguments: Any, **named: Any) -> Any:
        requests.append(method)
        return real(method, *arguments, **named)

    monkeypatch.setattr(store, "_ask", counted)
    monkeypatch.setattr(milvus_store, "_REQUEST_BYTES", 6000)
    store.add(_rows(50), _embeddings(50))
    assert 2 <= requests.count("upsert") <= 10
    assert store.count() == 50
    assert store.remove([row.path for row in _rows(60)]) == 50


def test_what_does_not_fit_into_a_field_is_refused_by_name(store: MilvusStore) -> None:
    with pytest.raises(ConfigError, match=r"/p\.jpg: its metadata has .* bytes, Milvus keeps 65535"):
        store.add([Row(path="/p.jpg", metadata={"a": "x" * 70_000})], _embeddings(1))
    with pytest.raises(ConfigError, match="cannot be kept as JSON"):
        store.add([Row(path="/p.jpg", metadata={"a": float("nan")})], _embeddings(1))
    assert store.count() == 0


# Searching


def test_the_same_answers_as_of_a_folder_where_one_request_gives_few_rows(
    store: MilvusStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ranges are halved, hits are asked for again and at last all rows are read: nothing is lost on any of the ways."""
    monkeypatch.setattr(milvus_store, "_MOST", 40)
    monkeypatch.setattr(milvus_store, "_KEYS", 40)
    monkeypatch.setattr(milvus_store, "_MARGIN", 2)
    rows = [
        Row(path=f"/{'ab'[number % 2]}/{number:03}", metadata={"n": number, "t": f"t_{number % 7}"})
        for number in range(120)
    ]
    embeddings = _embeddings(120)
    embeddings[30:60] = embeddings[30]
    queries = np.stack([embeddings[30], *_embeddings(3, seed=1)])
    with SQLiteStore.open(str(tmp_path / "index"), embed_dim=E) as folder:
        for one in (folder, store):
            for start in range(0, 120, 30):
                one.add(rows[start : start + 30], embeddings[start : start + 30])
        for conditions in (
            [],
            [Condition("path", "glob", "/a/*")],
            [Condition("path", "glob", "/?/0[1-4][02468]")],
            [Condition("t", "glob", "t_[!12]"), Condition("n", ">", 20.5)],
            [Condition("t", "=", "t_3"), Condition("path", "!=", "/b/003")],
        ):
            expected = {row.path for found in folder.scan(conditions) for row in found.rows}
            scanned = list(store.scan(conditions, batch_size=16))
            assert {row.path for found in scanned for row in found.rows} == expected
            assert all(len(found.ids) == 16 for found in scanned[:-1])
            assert (np.diff(np.concatenate([found.ids for found in scanned])) > 0).all()
            assert store.count(conditions) == len(expected)
            for k, exact in ((1, False), (5, True), (25, False), (200, False)):
                for ours, theirs in zip(
                    store.nearest(queries, k, conditions, exact=exact), folder.nearest(queries, k, conditions)
                , strict=True):  # fmt: skip
                    assert np.array_equal(ours.cosines, theirs.cosines)
                    ties = np.flatnonzero(np.diff(ours.cosines) == 0)
                    assert (ours.ids[ties] < ours.ids[ties + 1]).all()
                    if k == 200:
                        assert set(_paths(store, ours.ids)) == expected


def test_a_large_index_is_given_an_index_of_vectors_once(
    store: MilvusStore, address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeddings, queries = _embeddings(2000), _embeddings(20, seed=1)
    rows = _rows(2000)
    store.add(rows, embeddings)
    store.optimize()
    assert store._index_kind() == "FLAT"
    exactly = store.nearest(queries, 10)
    monkeypatch.setattr(milvus_store, "_EXACT_UP_TO", 2000)
    monkeypatch.setattr(milvus_store, "_PROBED", 4)  # of 128, which milvus-lite makes whatever it is told
    with MilvusStore.open(address) as other:
        other.optimize()
    assert store._index_kind() == "IVF_SQ8"
    store.optimize()
    nearly = store.nearest(queries, 10)
    recall = np.mean([np.isin(a.ids, b.ids).mean() for a, b in zip(exactly, nearly, strict=True)])
    assert recall > 0.5  # uniform in all directions is the worst that clusters can meet
    for ours, theirs in zip(store.nearest(queries, 10, exact=True), exactly, strict=True):
        assert np.array_equal(ours.ids, theirs.ids)
        assert np.array_equal(ours.cosines, theirs.cosines)
    # those that the conditions leave are found wherever they are
    wanted = [Condition("path", "glob", "/p/000?.jpg")]
    assert all(len(found.ids) == 10 for found in store.nearest(queries, 10, wanted))
    store.add([Row(path="/later.jpg")], queries[:1])
    assert _paths(store, store.nearest(queries[:1], 1)[0].ids) == ["/later.jpg"]


def test_exact_with_an_index_that_someone_else_has_chosen(store: MilvusStore) -> None:
    store.add(_rows(300), _embeddings(300))
    queries = _embeddings(2, seed=1)
    before = store.nearest(queries, 5, exact=True)
    store._ask("flush", store._rows)
    store._ask("release_collection", store._rows)
    store._ask("drop_index", store._rows, index_name="embedding")
    milvus_store._make_index(
        store.address, store._client, store._rows, "embedding", "HNSW", metric_type="IP", params={"M": 4}
    )
    store._ask("load_collection", store._rows)
    store.optimize()
    assert store._index_kind() == "HNSW"
    for ours, theirs in zip(store.nearest(queries, 5, exact=True), before, strict=True):
        assert np.array_equal(ours.ids, theirs.ids)


# Replacements


def test_a_replacement_takes_over_at_once_and_readers_are_told_when_theirs_is_gone(
    store: MilvusStore, address: str
) -> None:
    store.add(_rows(3), _embeddings(3))
    with store.replacement(embed_dim=4) as half:
        half.add(_rows(1), np.eye(1, 4, dtype=np.float32))
    with store.replacement(embed_dim=4) as left:
        assert left.count() == 1
    with store.replacement(embed_dim=4, restart=True) as new:
        assert new.count() == 0
        new.add(_rows(2), np.eye(2, 4, dtype=np.float32))
        new.write_document("about", b"new")
        new.optimize()  # of what is not the index yet: the index stays
        with open_store(address) as reader:
            assert (reader.embed_dim, reader.read_document("about")) == (E, None)
        new.take_over()
        with open_store(address) as reader:
            assert (reader.embed_dim, reader.count(), reader.read_document("about")) == (4, 2, b"new")
        assert store.count() == 3
        for write in (
            lambda: store.add(_rows(1), _embeddings(1)),
            lambda: store.remove(["/p/0000.jpg"]),
            lambda: store.write_document("about", b"lost"),
        ):
            with pytest.raises(ConfigError, match="replaced by another process; open it again"):
                write()
        new.optimize()
        assert new.count() == 2
    with pytest.raises(DataError, match="open it again"):
        store.count()
