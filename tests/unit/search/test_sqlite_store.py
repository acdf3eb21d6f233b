"""What is particular to an index in a folder; what holds for every store is in test_store_conformance.py."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clip.errors import ClipError, ConfigError, DataError, IndexNotFoundError
from clip.search.sqlite_store import SQLiteStore
from clip.search.store import Condition, Row, Store, open_store

E = 16


def unit(count: int, seed: int = 0) -> NDArray[np.float32]:
    values = np.random.default_rng(seed).normal(size=(count, E)).astype(np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def rows(count: int, folder: str = "/p") -> list[Row]:
    return [Row(path=f"{folder}/{number:05}.jpg", size_bytes=number) for number in range(count)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Holds an index of 300 rows that nobody has open."""
    with open_store(str(tmp_path / "index"), embed_dim=E) as store:
        store.add(rows(300), unit(300))
        store.write_document("about", b"a" * 100_000)
    return tmp_path / "index"


def exercise(store: Store) -> None:
    store.count([Condition("path", "glob", "/p/*1.jpg"), Condition("m", "=", 1)])
    store.read_document("about")
    list(store.known())
    for found in store.scan():
        store.find(found.ids)
    store.nearest(unit(2), 10)


# What is in the folder


def test_a_closed_index_is_two_files(folder: Path) -> None:
    assert (folder / "CURRENT").read_text() == "catalogue-1.db\n"
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".lock" and path.name != "lock") == [
        "CURRENT",
        "catalogue-1.db",
    ]


def test_opening_and_searching_imports_little(folder: Path) -> None:
    code = f"""
import sys, numpy
from clip.search.store import open_store
with open_store({str(folder)!r}) as store:
    assert len(store.nearest(numpy.ones((1, {E}), "float32"), 3)[0].ids) == 3
print(sorted({{"torch", "faiss", "pandas", "filelock", "PIL", "pymilvus", "ray", "pyarrow"}} & set(sys.modules)))
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "[]\n"


def test_where_no_index_is(tmp_path: Path) -> None:
    with pytest.raises(IndexNotFoundError, match="clip index FOLDER --into"):
        open_store(str(tmp_path / "nowhere"))
    assert not (tmp_path / "nowhere").exists()


def test_other_files_are_not_taken_for_an_index(tmp_path: Path) -> None:
    (tmp_path / "picture.jpg").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"picture\.jpg.*choose a new or an empty folder"):
        open_store(str(tmp_path), embed_dim=E)
    with pytest.raises(ClipError):
        open_store(str(tmp_path / "picture.jpg"), embed_dim=E)
    with pytest.raises(ClipError):
        open_store(str(tmp_path / "picture.jpg"))
    assert [path.name for path in tmp_path.iterdir()] == ["picture.jpg"]


def test_folders_of_any_name(tmp_path: Path) -> None:
    for name in ("a b", "caf\udce9", "100%?x=1#y", "é\n"):
        with open_store(str(tmp_path / name), embed_dim=E) as store:
            store.add(rows(1), unit(1))
        with open_store(str(tmp_path / name)) as store:
            assert store.count() == 1


def test_what_an_ended_process_left_before_the_index_was_one(tmp_path: Path) -> None:
    (tmp_path / "catalogue-1.db").write_bytes(b"half")
    (tmp_path / "catalogue-1.db-wal").write_bytes(b"half")
    with open_store(str(tmp_path), embed_dim=E) as store:
        store.add(rows(2), unit(2))
        assert store.count() == 2


def test_a_replacement_that_is_half_made_is_made_anew(folder: Path) -> None:
    (folder / "catalogue-2.db").write_bytes(b"half")
    with open_store(str(folder)) as store, store.replacement(embed_dim=E) as new:
        new.add(rows(2), unit(2))
        new.take_over()
    with open_store(str(folder)) as store:
        assert store.count() == 2
    assert [path.name for path in folder.glob("catalogue-*")] == [f"catalogue-{3}.db"]


def test_who_has_a_discarded_replacement_open_loses_nothing_without_a_word(folder: Path) -> None:
    with (
        open_store(str(folder)) as store,
        store.replacement(embed_dim=E) as one,
        store.replacement(embed_dim=E, restart=True) as other,
    ):
        other.add(rows(1), unit(1))
        with pytest.raises(ConfigError, match="replaced"):
            one.add(rows(2), unit(2))
        with pytest.raises(ConfigError, match="replaced"):
            one.take_over()
        assert open_count(folder) == 300
        other.take_over()
    assert open_count(folder) == 1


def open_count(folder: Path) -> int:
    with open_store(str(folder)) as store:
        return store.count()


# Damage


@pytest.mark.parametrize("length", [0, 10, 100, 5000, 16384, 40000, 60000])
def test_a_truncated_database_is_an_error_with_its_name(folder: Path, length: int) -> None:
    os.truncate(folder / "catalogue-1.db", length)
    with (
        pytest.raises(DataError, match=r"catalogue-1\.db.*(index again|make the index anew)"),
        open_store(str(folder)) as s,
    ):
        exercise(s)


def test_a_mutated_database_is_an_error_or_is_read(folder: Path) -> None:
    content = (folder / "catalogue-1.db").read_bytes()
    rng = np.random.default_rng(0)
    errors = 0
    for _ in range(60):
        changed = np.frombuffer(content, np.uint8).copy()
        places = rng.integers(0, len(changed), 200)
        places[:100] = rng.integers(0, 2000, 100) + 16384 * rng.integers(
            0, len(changed) // 16384, 100
        )  # heads of pages
        changed[places] = rng.integers(0, 256, 200)
        changed[:16] = np.frombuffer(content[:16], np.uint8)
        (folder / "catalogue-1.db").write_bytes(changed.tobytes())
        try:
            with open_store(str(folder)) as store:
                exercise(store)
        except ClipError as error:
            errors += 1
            assert "catalogue-1.db" in str(error)
    assert errors > 10


@pytest.mark.parametrize("content", [b"some text\n" * 1000, b"\x00" * 40000, b"SQLite format 3\x00" + b"\xff" * 5000])
def test_a_file_that_is_no_database(folder: Path, content: bytes) -> None:
    (folder / "catalogue-1.db").write_bytes(content)
    with pytest.raises(DataError, match=r"catalogue-1\.db"):
        open_store(str(folder))


def test_databases_of_others_and_of_later_versions(folder: Path) -> None:
    path = folder / "catalogue-1.db"
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA user_version = 2")
    connection.close()
    with pytest.raises(DataError, match="version 2, this everyclip reads 1; update everyclip"):
        open_store(str(folder))
    path.unlink()
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE rows (id INTEGER)")
    connection.close()
    with pytest.raises(DataError, match="another program"):
        open_store(str(folder))
    path.unlink()
    with pytest.raises(DataError, match="missing"):
        open_store(str(folder))


@pytest.mark.parametrize(
    "content", [b"", b"../../etc/passwd", b"catalogue-0.db", b"\xff" * 10**6, b"catalogue-1.db\x00"]
)
def test_a_damaged_current(folder: Path, content: bytes) -> None:
    (folder / "CURRENT").write_bytes(content)
    for embed_dim in (None, E):
        with pytest.raises(DataError, match="CURRENT"):
            open_store(str(folder), embed_dim=embed_dim)


def test_a_full_disk_is_said_and_nothing_is_lost(folder: Path) -> None:
    code = f"""
import resource, numpy
from clip.errors import DataError
from clip.search.store import Row, open_store
resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, 400_000))
with open_store({str(folder)!r}) as store:
    try:
        for n in range(1000):
            store.add([Row(path=f"/new/{{n}}/{{i}}") for i in range(50)], numpy.ones((50, {E}), "float32"))
            print(n, flush=True)
    except DataError as error:
        assert "disk" in str(error), error
        assert store.count() == 300 + 50 * n
        print("full")
"""
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert found[-1] == "full"
    assert len(found) > 2
    with SQLiteStore.open(str(folder)) as store:
        assert store.count() == 300 + 50 * (len(found) - 1)
        store.add(rows(1, "/more"), unit(1))
        with store._reading() as connection:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


# Reading where nothing can be written


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs to become another user")
@pytest.mark.parametrize("how", ["closed", "open elsewhere"])
def test_an_index_that_another_user_may_only_read(tmp_path_factory: pytest.TempPathFactory, how: str) -> None:
    place = Path("/tmp") / f"{tmp_path_factory.getbasetemp().name}-{os.getpid()}-{how.split()[0]}"
    code = f"""
import os, numpy
import clip.search.sqlite_store
from clip.errors import ConfigError
from clip.search.store import Row, open_store
os.setuid(65534)
with open_store({str(place)!r}) as store:
    print(store.count(), len(store.nearest(numpy.ones((1, {E}), "float32"), 3)[0].ids))
    try:
        store.add([Row(path="x")], numpy.ones((1, {E}), "float32"))
    except ConfigError as error:
        print("permissions" in str(error))
    input()
    print(store.count())
"""
    try:
        with open_store(str(place), embed_dim=E) as store:
            store.add(rows(20), unit(20))
            if how == "closed":
                store.close()
            place.chmod(0o555)
            for path in place.iterdir():
                path.chmod(0o444)
            command = [sys.executable, "-c", code]
            with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as reader:
                assert reader.stdin and reader.stdout
                assert reader.stdout.readline() == "20 3\n"
                assert reader.stdout.readline() == "True\n"
                with open_store(str(place)) as writer:  # the owner writes meanwhile
                    writer.add(rows(30), unit(30))
                reader.stdin.write("\n")
                reader.stdin.flush()
                assert reader.stdout.readline() == "30\n"
    finally:
        shutil.rmtree(place)


# Several at once


def test_threads_may_share_a_store(folder: Path) -> None:
    errors: list[Exception] = []

    def work(number: int) -> None:
        try:
            for round_ in range(8):
                store.add(rows(5, f"/t{number}/{round_}"), unit(5, seed=number))
                assert len(store.nearest(unit(1), 10)[0].ids) == 10
                assert store.remove([f"/t{number}/{round_}/00000.jpg"]) == 1
                assert len(list(store.known(f"/t{number}/"))) == 4 * (round_ + 1)
        except (AssertionError, ClipError, sqlite3.Error) as error:
            errors.append(error)

    with open_store(str(folder)) as store:
        threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not errors
        assert store.count() == 300 + 4 * 8 * 4


def test_the_next_query_knows_what_was_written_since(folder: Path) -> None:
    """Embeddings are kept between queries, until somebody writes."""
    with open_store(str(folder)) as store, open_store(str(folder)) as other:
        for number, writer in enumerate((store, other, store, other)):
            store.nearest(unit(1), 1)
            writer.add([Row(path=f"/{number}")], -unit(1, seed=number))
            [found] = store.nearest(-unit(1, seed=number), 1)
            assert next(row.path for row in store.find(found.ids).rows) == f"/{number}"
            few = store.nearest(unit(1), 400, [Condition("size_bytes", "<", 50)])[0]
            assert len(few.ids) == 50
        assert len(store.nearest(unit(1), 400)[0].ids) == 304
        store.remove([row.path for row in rows(300)])
        assert len(store.nearest(unit(1), 400)[0].ids) == 4
