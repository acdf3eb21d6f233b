"""Searching by the file of faiss is searching exactly, but for the few that it may miss."""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from clip.search.nearest import FaissFile, nearest_in_chunks
from clip.search.sqlite_store import SQLiteStore
from clip.search.store import Condition, Neighbours, Row, Store, checked_queries

E = 32
EXACT_ROWS = 400

Array = NDArray[np.float32]


class SmallStore(SQLiteStore):
    """Takes an index of a few hundred rows for a large one."""

    exact_rows = EXACT_ROWS


def clustered(count: int, seed: int) -> Array:
    """As embeddings of pictures are: many near each other, the whole in a cone."""
    centres = np.random.default_rng(0).normal(size=(60, E)) + 0.7
    rng = np.random.default_rng(seed)
    values = centres[rng.integers(0, 60, count)] + 0.6 * rng.normal(size=(count, E))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def rows(count: int, folder: str = "/p") -> list[Row]:
    return [
        Row(path=f"{folder}/{number:05}.jpg", size_bytes=number, metadata={"m": number % 10}) for number in range(count)
    ]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SQLiteStore]:
    pytest.importorskip("faiss")
    with SmallStore.open(str(tmp_path / "index"), embed_dim=E) as store:
        store.add(rows(4000), clustered(4000, seed=1))
        yield store


def files(store: Store) -> list[str]:
    return sorted(path.name for path in Path(store.address).glob("*nearest-*") if path.suffix != ".lock")


def recall(found: list[Neighbours], expected: list[Neighbours]) -> float:
    return float(
        np.mean([len(np.intersect1d(a.ids, b.ids)) / len(b.ids) for a, b in zip(found, expected, strict=True)])
    )


def check(store: Store, conditions: list[Condition], least: float, k: int = 10) -> None:
    """Against brute force over all that the store says it has."""
    queries = clustered(40, seed=99)
    everything = [
        np.concatenate(parts) for parts in zip(*((f.ids, f.embeddings) for f in store.scan(conditions)), strict=True)
    ]
    expected = nearest_in_chunks([(everything[0], everything[1])], checked_queries(queries, k, E), k)
    for alone, brute in zip(store.nearest(queries, k, conditions, exact=True), expected, strict=True):
        np.testing.assert_array_equal(alone.ids, brute.ids)
        np.testing.assert_array_equal(alone.cosines, brute.cosines)
    found = store.nearest(queries, k, conditions)
    for near, brute in zip(found, expected, strict=True):
        assert len(near.ids) == len(np.unique(near.ids)) == len(brute.ids)  # conditions never cost an answer
        assert np.isin(near.ids, everything[0]).all()
        _, here, there = np.intersect1d(near.ids, brute.ids, return_indices=True)
        np.testing.assert_array_equal(near.cosines[here], brute.cosines[there])  # compared with what is stored
        assert (np.diff(near.cosines) <= 0).all()
    assert recall(found, expected) >= least


# Exact


def test_the_exact_search_is_brute_force_however_it_is_cut() -> None:
    rng = np.random.default_rng(0)
    embeddings = clustered(500, seed=3)
    embeddings[rng.integers(0, 500, 200)] = embeddings[7]  # many ties
    ids = np.sort(rng.choice(10**12, 500, replace=False))
    queries = np.concatenate((clustered(300, seed=4), embeddings[7:8]))
    for k in (1, 10, 250, 600):
        whole = nearest_in_chunks([(ids, embeddings)], queries, k)
        for query, found in zip(queries[:5], whole, strict=False):
            cosines = np.einsum("ne,e->n", embeddings, query)
            order = np.lexsort((ids, -cosines))[:k]
            np.testing.assert_array_equal(found.ids, ids[order])
            np.testing.assert_array_equal(found.cosines, cosines[order])
        for size in (1, 33, 499):
            cut = [(ids[start : start + size], embeddings[start : start + size]) for start in range(0, 500, size)]
            for one, other in zip(nearest_in_chunks(cut, queries[-9:], k), whole[-9:], strict=True):
                np.testing.assert_array_equal(one.ids, other.ids)
                np.testing.assert_array_equal(one.cosines, other.cosines)


def test_few_rows_have_no_file(tmp_path: Path) -> None:
    with SmallStore.open(str(tmp_path / "index"), embed_dim=E) as store:
        store.add(rows(EXACT_ROWS), clustered(EXACT_ROWS, seed=1))
        store.optimize()
        assert files(store) == []


# By the file


def test_with_later_rows_and_removed_ones_and_conditions(store: SQLiteStore) -> None:
    store.optimize()
    assert files(store) == ["nearest-1-1.faiss"]
    everything: list[list[Condition]] = [
        [],
        [Condition("m", "<", 5)],
        [Condition("m", "=", 3), Condition("path", "glob", "/p/*")],  # few: compared one by one
        [Condition("path", ">=", "/p/02")],
    ]
    for conditions in everything:
        check(store, conditions, 0.95)
    check(store, [], 0.9, k=50)
    store.remove([row.path for row in rows(4000)[::4]])
    store.add(
        [dataclasses.replace(row, metadata={"m": 1}) for row in rows(300)[1:]], clustered(299, seed=5)
    )  # replaced
    store.add(rows(200, "/new"), clustered(200, seed=6))
    for conditions in everything:
        check(store, conditions, 0.95)
    assert files(store) == ["nearest-1-1.faiss"]


def test_what_is_allowed_is_far_from_the_query(store: SQLiteStore) -> None:
    """More than are compared one by one, but none of them in the lists that the query would look into."""
    away = -clustered(600, seed=8)
    store.add([Row(path=f"/away/{number}", metadata={"away": True}) for number in range(600)], away)
    store.optimize()
    check(store, [Condition("away", "=", True)], 0.95)


def test_when_nearly_all_that_was_in_the_file_has_gone(store: SQLiteStore) -> None:
    store.optimize()
    store.remove([row.path for row in rows(4000) if row.metadata["m"] != 3])
    check(store, [], 0.95)
    store.optimize()  # few enough to be compared one by one
    assert files(store) == []
    check(store, [], 1)


def test_the_file_is_brought_up_to_date_and_made_anew(store: SQLiteStore) -> None:
    store.optimize()
    store.optimize()
    assert files(store) == ["nearest-1-1.faiss"]
    store.add(rows(EXACT_ROWS // 25, "/few"), clustered(EXACT_ROWS // 25, seed=5))
    store.optimize()
    assert files(store) == ["nearest-1-1.faiss"]
    store.add(rows(100, "/more"), clustered(100, seed=6))
    store.optimize()
    assert files(store) == ["nearest-1-2.faiss"]
    check(store, [], 0.95)
    store.remove([row.path for row in rows(1500)])
    store.optimize()
    assert files(store) == ["nearest-1-3.faiss"]
    check(store, [], 0.95)
    with SmallStore.open(store.address) as other:
        check(other, [], 0.95)


def test_a_reader_goes_on_when_the_file_is_replaced(store: SQLiteStore) -> None:
    store.optimize()
    with SmallStore.open(store.address) as reader, SmallStore.open(store.address) as late:
        check(reader, [], 0.95)
        store.add(rows(100, "/more"), clustered(100, seed=6))
        store.optimize()
        check(reader, [], 0.95)
        check(late, [], 0.95)


def test_large_answers_and_many_queries(store: SQLiteStore) -> None:
    store.optimize()
    queries = clustered(100, seed=9)
    for alone, together in zip([store.nearest(q[None], 5)[0] for q in queries], store.nearest(queries, 5), strict=True):
        assert len(np.intersect1d(alone.ids, together.ids)) >= 4  # faiss adds up batches in another way
    [most] = store.nearest(queries[:1], 3900)
    np.testing.assert_array_equal(most.ids, store.nearest(queries[:1], 3900, exact=True)[0].ids)


def test_a_replacement_has_a_file_of_its_own(store: SQLiteStore) -> None:
    store.optimize()
    with store.replacement(embed_dim=E) as new:
        new.add(rows(1000), clustered(1000, seed=7))
        new.optimize()
        assert files(store) == ["nearest-1-1.faiss", "nearest-2-1.faiss"]
        check(store, [], 0.95)
        new.take_over()
        assert files(store) == ["nearest-2-1.faiss"]
        check(new, [], 0.95)
    check(store, [], 0.95)  # open since before


@pytest.mark.parametrize("damage", ["missing", "short", "empty", "long", "head", "middle", "end"])
def test_a_damaged_file_is_never_given_to_faiss(
    store: SQLiteStore, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    store.optimize()
    path = Path(store.address) / "nearest-1-1.faiss"
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    else:
        place = {"head": 4, "middle": len(content) // 2, "end": -1}.get(damage)
        if place is not None:
            content[place] ^= 0x80
        lengths = {"short": content[:-100], "empty": b"", "long": content + b"x"}
        path.write_bytes(lengths.get(damage, content))
    with SmallStore.open(store.address) as reader, caplog.at_level(logging.INFO, "clip"):
        check(reader, [], 1)
        check(reader, [Condition("m", "<", 5)], 1)
        assert caplog.text.count("every row is compared") == 1
        reader.optimize()
        assert len(files(store)) == 1
        check(reader, [], 0.95)
        assert recall_of_file(reader) > 0.9


def recall_of_file(store: SQLiteStore) -> float:
    """Of what the file itself proposes, so that this fails if nothing asks it."""
    with store._reading() as connection:
        record = store._faiss_record(connection)
        assert record is not None
        file = store._faiss_file(record)
    assert file is not None
    queries = clustered(20, seed=10)
    exact = store.nearest(queries, 10, exact=True)
    return float(
        np.mean([np.isin(b.ids, ids).mean() for ids, b in zip(file.candidates(queries, 200), exact, strict=True)])
    )


def test_without_faiss_everything_is_compared_and_one_line_says_so(
    store: SQLiteStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.optimize()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with SmallStore.open(store.address) as other, caplog.at_level(logging.INFO, "clip"):
        check(other, [], 1)
        other.optimize()
        check(other, [], 1)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "everyclip[search]" in caplog.text


def test_a_width_that_cannot_be_compressed_is_searched_exactly(tmp_path: Path) -> None:
    with SmallStore.open(str(tmp_path / "index"), embed_dim=5) as store:
        embeddings = np.random.default_rng(0).normal(size=(1000, 5)).astype(np.float32)
        store.add(rows(1000), embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True))
        store.optimize()
        assert files(store) == []
        assert len(store.nearest(embeddings[:1], 10)[0].ids) == 10


def test_candidates_are_only_allowed_ones() -> None:
    pytest.importorskip("faiss")
    embeddings = clustered(2000, seed=1)
    file = FaissFile.trained(embeddings, 2000)
    file.add([(np.arange(2000) * 1000 + 5, embeddings)])
    assert file.rows == 2000
    allowed = (np.arange(0, 2000, 3) * 1000 + 5).astype(np.int64)
    for ids in file.candidates(clustered(5, seed=2), 50, allowed):
        assert len(ids) == 50
        assert np.isin(ids, allowed).all()
        assert (np.diff(ids) > 0).all()
    for ids in file.candidates(clustered(5, seed=2), 50, allowed[:7]):
        np.testing.assert_array_equal(ids, allowed[:7])
    for ids in file.candidates(clustered(2, seed=2), 50, np.empty(0, np.int64)):
        assert len(ids) == 0
