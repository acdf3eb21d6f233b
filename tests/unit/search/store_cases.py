"""What every store does alike, as functions of something that opens one: ``CASES``.

``index()`` opens an index of E numbers, making it first if it is not there; what it has opened is closed afterwards.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import pytest
from numpy.typing import NDArray

from clip.errors import ConfigError, DataError, ShapeError
from clip.search.store import Condition, Row, Store

E = 8


class Index(Protocol):
    def __call__(self, embed_dim: int | None = E) -> Store: ...


CASES: list[Callable[[Index], None]] = []


def case(function: Callable[[Index], None]) -> Callable[[Index], None]:
    CASES.append(function)
    return function


def unit(count: int, seed: int = 0) -> NDArray[np.float32]:
    """(N, E) that float16 holds without rounding."""
    values = np.random.default_rng(seed).normal(size=(count, E))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float16).astype(np.float32)


def rows(count: int, folder: str = "/p", start: int = 0) -> list[Row]:
    return [Row(path=f"{folder}/{number:04}.jpg", size_bytes=number) for number in range(start, start + count)]


def paths(store: Store, ids: NDArray[np.int64]) -> list[str]:
    return [row.path for row in store.find(ids).rows]


def all_paths(store: Store) -> list[str]:
    return [one.path for one in store.known()]


def brute_force(
    store: Store, query: NDArray[np.float32], k: int, holds: Callable[[Row], bool] = lambda row: True
) -> list[str]:
    """Paths of the k nearest, ties by id."""
    ranked = [
        (-float(embedding @ query), int(number), row.path)
        for found in store.scan()
        for number, row, embedding in zip(*found, strict=True)
        if holds(row)
    ]
    return [path for _, _, path in sorted(ranked)[:k]]


HOSTILE = ["/p/a\nb.jpg", "/p/日本.png", "/p/caf\udce9.jpg", "/p/\udcff\udcfe", "/p/'\"; DROP TABLE rows; --",
           "/p/%_*?[x]", "/p/ \t", "/p/\U0001f436.gif", "/p/é", "/p/e\u0301", "/p/\\", "/p/${x}",
           "shard.tar/member.jpg"]  # fmt: skip


# Documents


@case
def documents_are_kept_replaced_and_may_be_large(index: Index) -> None:
    store, other = index(), index()
    assert store.read_document("about") is None
    large = np.random.default_rng(0).bytes(2_000_000)
    for value in (b"", b"one", large, b"\x00\xff"):
        store.write_document("about", value)
        store.write_document("a name 'with' é", value[::-1])
        assert store.read_document("about") == other.read_document("about") == value
        assert other.read_document("a name 'with' é") == value[::-1]
    assert store.read_document("About") is None


# Rows


@case
def a_row_comes_back_as_it_was(index: Index) -> None:
    store = index()
    whole = Row(
        path="/a/b.jpg",
        size_bytes=2**40,
        modified_ns=1_700_000_000_123_456_789,
        digest=bytes(range(16)),
        width=4000,
        height=3000,
        format="JPEG",
        signature=bytes(range(56)),
        metadata={"text": 'é"\n', "number": -3, "real": 0.1, "yes": True, "none": None, "list": [1, {"a": "b"}],
                  "": "empty", "key.with $\"'\\ é %41": 1, "half": "\udcff"},
    )  # fmt: skip
    bare = Row(path="name")
    embeddings = unit(2)
    store.add([whole, bare], embeddings)
    [found] = index().scan()
    order = [row.path for row in found.rows].index("/a/b.jpg")
    assert found.rows[order] == whole
    assert type(found.rows[order].metadata["yes"]) is bool
    assert found.rows[1 - order] == bare
    np.testing.assert_array_equal(found.embeddings[order], embeddings[0])
    assert found.embeddings.dtype == np.float32
    assert found.ids.dtype == np.int64


@case
def paths_may_have_any_bytes(index: Index) -> None:
    store = index()
    store.add([Row(path=path) for path in HOSTILE], unit(len(HOSTILE)))
    in_order = sorted(HOSTILE, key=lambda path: path.encode("utf-8", "surrogateescape"))
    assert all_paths(store) == in_order
    for place, path in enumerate(HOSTILE):
        assert store.count([Condition("path", "=", path)]) == 1, path
        [nearest] = store.nearest(unit(len(HOSTILE))[place : place + 1], 1, [Condition("path", "=", path)])
        assert paths(store, nearest.ids) == [path]
    assert store.remove(HOSTILE[1:]) == len(HOSTILE) - 1
    assert all_paths(store) == HOSTILE[:1]


@case
def a_row_with_the_same_path_is_replaced(index: Index) -> None:
    store = index()
    store.add(rows(3), unit(3))
    before = next(store.scan())
    changed = dataclasses.replace(rows(3)[1], size_bytes=77)
    store.add([changed], unit(1, seed=5))
    assert store.count() == 3
    assert paths(store, before.ids).count(changed.path) <= 1
    [nearest] = store.nearest(unit(1, seed=5), 1)
    assert store.find(nearest.ids).rows == [changed]
    np.testing.assert_array_equal(store.find(nearest.ids).embeddings, unit(1, seed=5))
    store.add([Row(path="/twice", size_bytes=1), Row(path="/twice", size_bytes=2)], unit(2))  # the last one stays
    assert [one.size_bytes for one in store.known("/twice")] == [2]
    [nearest] = store.nearest(unit(2)[1:], 1, [Condition("path", "=", "/twice")])
    assert nearest.cosines[0] == pytest.approx(1, abs=2e-3)


@case
def nothing_of_a_refused_call_is_stored(index: Index) -> None:
    store = index()
    store.add(rows(1), unit(1))
    bad = unit(3)
    bad[2, 4] = np.nan
    with pytest.raises(ShapeError, match=r"0002\.jpg"):
        store.add(rows(3), bad)
    bad[2, 4] = np.inf
    with pytest.raises(ShapeError):
        store.add(rows(3), bad)
    bad[2, 4] = 1e6  # more than float16 holds
    with pytest.raises(ShapeError):
        store.add(rows(3), bad)
    for shape in ((3, E + 1), (2, E), (3,), (3, E, 1)):
        with pytest.raises(ShapeError, match="expected"):
            store.add(rows(3), np.zeros(shape, np.float32))
    with pytest.raises(ConfigError):
        store.add([*rows(2), Row(path="/x", metadata={"a": object()})], unit(3))
    with pytest.raises(ConfigError):
        store.add([*rows(2), Row(path="/x", metadata={"a": float("nan")})], unit(3))
    assert all_paths(store) == ["/p/0000.jpg"]
    store.add([], np.zeros((0, E), np.float32))
    assert store.count() == 1


@case
def remove_says_how_many_there_were(index: Index) -> None:
    store = index()
    store.add(rows(5), unit(5))
    assert store.remove([]) == 0
    assert store.remove(["/p/0001.jpg", "/p/0004.jpg", "/p/0009.jpg", ""]) == 2
    assert store.remove({"/p/0001.jpg"}) == 0
    assert store.count() == sum(len(found.ids) for found in store.scan()) == 3
    assert len(store.nearest(unit(1), 10)[0].ids) == 3


@case
def known_of_a_folder(index: Index) -> None:
    names = ["/a", "/a/", "/a/1", "/a/2/3", "/a.jpg", "/a0", "/b", "/a/\udcff\udcff", "/a/\U0010ffff", "/A/1"]
    store = index()
    store.add([Row(path=name, size_bytes=3, modified_ns=4, digest=b"d" * 16) for name in names], unit(len(names)))
    for under in ("/a/", "/a", "/", "", "/a/\udcff", "/c/", "/a/2/"):
        expected = sorted(
            (name for name in names if name.startswith(under)), key=lambda name: name.encode("utf-8", "surrogateescape")
        )
        assert [one.path for one in store.known(under)] == expected, under
    assert next(store.known())[1:] == (3, 4, b"d" * 16)


# Conditions

FILTERED = [
    Row(
        path="/a/one.JPG",
        size_bytes=10,
        width=100,
        format="JPEG",
        metadata={"n": 1, "s": "abc", "b": True, "é\"'.$": 1},
    ),
    Row(path="/a/two.jpg", size_bytes=20, width=200, format="PNG", metadata={"n": 2.5, "s": "abd", "b": False}),
    Row(path="/a/b/three\nlines.jpg", size_bytes=30, metadata={"n": "1", "s": "é", "b": 1, "x": None}),
    Row(path="/b/caf\udce9", metadata={"n": True, "s": "\U0001f436", "l": [1], "half": "a\udcff"}),
    Row(path="/b/[x]*", size_bytes=2**50, metadata={"n": -(2**40), "s": "", "l": {"n": 1}, "s2": "line\nend"}),
]


def holds(row: Row, condition: Condition) -> bool:
    """The docstring of Condition, as plainly as can be."""
    column, operator, value = condition
    if column in ("path", "size_bytes", "modified_ns", "width", "height", "format"):
        found = getattr(row, column)
    else:
        found = row.metadata.get(column)

    def kind(one: object) -> str:
        return "bool" if isinstance(one, bool) else "text" if isinstance(one, str) else "number"

    if found is None or isinstance(found, list | dict) or kind(found) != kind(value):
        return False
    if operator == "glob":
        return fnmatch.fnmatchcase(found, str(value))
    if column == "path":
        found, value = (str(one).encode("utf-8", "surrogateescape") for one in (found, value))
    compare = {"=": "__eq__", "!=": "__ne__", "<": "__lt__", "<=": "__le__", ">": "__gt__", ">=": "__ge__"}
    left, right = (float(one) if isinstance(one, int | float) else one for one in (found, value))
    return bool(getattr(left, compare[operator])(right))


@case
def conditions_hold_as_they_say(index: Index) -> None:
    store = index()
    embeddings = unit(len(FILTERED))
    store.add(FILTERED, embeddings)
    values: dict[str, Sequence[str | float]] = {
        "path": ["/a/two.jpg", "/b", "", "/b/caf\udce9"],
        "size_bytes": [20, 20.5, -1, 2**50, 1e300],
        "width": [100, 0],
        "modified_ns": [0],
        "format": ["JPEG", "jpeg", "K"],
        "n": [1, 1.0, 2.5, -(2**40), "1", True, False, "", 10**30],
        "s": ["abc", "", "é", "\U0001f436", "\uffff", 0, True],
        "b": [True, False, 1, 0, "true"],
        "x": ["", 0, False, "null"],
        "l": [1, "[1]", ""],
        "é\"'.$": [1, 2],
        "half": ["a\udcff", "a"],
        "missing": [0, "", False],
        "s') OR 1 --": [1, "1"],
        "metadata": ["", 1],
        "id": [1],
    }  # fmt: skip
    patterns = ["*", "", "?", "/a/*", "/a/*.jpg", "*.JPG", "/?/*", "*\n*", "/b/caf?", "/b/caf\udce9", "/b/[[]x][*]",
                "ab[cd]", "ab[!c]", "[!a]*", "A*", "é", "e*", "*%*", "ab_", "\U0001f436", "a?", "l*d", "[", "*[",
                "/a/[a-z]*"]  # fmt: skip
    asked = 0
    for column, some in values.items():
        tried: list[Condition] = []
        for value in some:
            tried += [Condition(column, operator, value) for operator in ("=", "!=", "<", "<=", ">", ">=")]
        if column in ("path", "s", "format", "n", "half", "s2"):
            tried += [Condition(column, "glob", pattern) for pattern in patterns]
        for condition in tried:
            if isinstance(condition.value, bool) and condition.operator not in ("=", "!="):
                continue  # a boolean only equals a boolean
            expected = sorted(row.path for row in FILTERED if holds(row, condition))
            assert store.count([condition]) == len(expected), condition
            asked += 1
            if asked % 5 == 0:  # the other methods have the same conditions
                found = [row.path for batch in store.scan([condition]) for row in batch.rows]
                assert sorted(found) == expected, condition
                [nearest] = store.nearest(embeddings[:1], 9, [condition])
                assert sorted(paths(store, nearest.ids)) == expected, condition


@case
def all_conditions_must_hold(index: Index) -> None:
    store = index()
    store.add(FILTERED, unit(len(FILTERED)))
    both = [Condition("path", "glob", "/a/*"), Condition("size_bytes", ">=", 20)]
    assert store.count(both) == 2
    assert store.count([*both, Condition("b", "=", True)]) == 0
    assert {row.path for found in store.scan(both) for row in found.rows} == {row.path for row in FILTERED[1:3]}


@case
def conditions_that_cannot_hold_are_refused(index: Index) -> None:
    store = index()
    store.add(FILTERED, unit(len(FILTERED)))
    bad = [Condition("width", "=", "100"), Condition("path", "<", 3), Condition("format", "=", True),
           Condition("width", "=", True), Condition("n", "glob", 3), Condition("n", "=", float("nan")),
           Condition("n", "= 1 OR 1 =", 1)]  # type: ignore[arg-type]  # fmt: skip
    for condition in bad:
        with pytest.raises(ConfigError):
            store.count([condition])
        with pytest.raises(ConfigError):
            store.nearest(unit(1), 1, [condition])
        with pytest.raises(ConfigError):
            next(iter(store.scan([condition])), None)


# Nearest


@case
def nearest_is_as_brute_force(index: Index) -> None:
    store = index()
    store.add([dataclasses.replace(row, metadata={"m": number % 7}) for number, row in enumerate(rows(300))], unit(300))
    queries = unit(5, seed=1)
    for k in (1, 10, 299, 300, 1000):
        for query, found in zip(queries, store.nearest(queries, k), strict=True):
            assert found.ids.shape == found.cosines.shape == (min(k, 300),)
            assert (found.ids.dtype, found.cosines.dtype) == (np.int64, np.float32)
            assert (np.diff(found.cosines) <= 0).all()
            assert paths(store, found.ids) == brute_force(store, query, k)
            np.testing.assert_allclose(found.cosines, store.find(found.ids).embeddings @ query, atol=3e-3)
    one_by_one = [store.nearest(query[None], 10)[0] for query in queries]
    for alone, together in zip(one_by_one, store.nearest(queries, 10), strict=True):
        np.testing.assert_array_equal(alone.ids, together.ids)
    assert store.nearest(np.zeros((0, E), np.float32), 3) == []


@case
def conditions_come_before_the_nearest(index: Index) -> None:
    """The row that fulfils them is the farthest of all: whoever filters the k nearest afterwards finds nothing."""
    store = index()
    query = unit(1)
    embeddings = np.repeat(query, 200, axis=0) + 0.01 * unit(200, seed=2)
    embeddings[150] = -query[0]
    embeddings[20] = -query[0] + 0.05 * unit(1, seed=3)[0]
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    store.add(
        [dataclasses.replace(row, metadata={"rare": number in (20, 150)}) for number, row in enumerate(rows(200))],
        embeddings,
    )
    for exact in (False, True):
        [found] = store.nearest(query, 5, [Condition("rare", "=", True)], exact=exact)
        assert paths(store, found.ids) == ["/p/0020.jpg", "/p/0150.jpg"]
        [found] = store.nearest(query, 1, [Condition("path", "=", "/p/0150.jpg")], exact=exact)
        assert paths(store, found.ids) == ["/p/0150.jpg"]
        [found] = store.nearest(query, 1, [Condition("path", "=", "/p/9999.jpg")], exact=exact)
        assert found.ids.shape == (0,)


@case
def ties_stand_in_order_of_their_ids(index: Index) -> None:
    store = index()
    one = unit(1)
    store.add(rows(60), np.repeat(one, 60, axis=0))
    store.add(rows(5, "/q"), unit(5, seed=9))
    [first] = store.nearest(one, 7)
    [more] = store.nearest(one, 60)
    assert (np.diff(more.ids) > 0).all()
    assert len(set(more.cosines.tolist())) == 1
    np.testing.assert_array_equal(first.ids, more.ids[:7])


@case
def a_query_need_not_have_unit_norm(index: Index) -> None:
    store = index()
    store.add(rows(10), unit(10))
    [plain], [long] = store.nearest(unit(1, seed=1), 3), store.nearest(100 * unit(1, seed=1), 3)
    np.testing.assert_array_equal(plain.ids, long.ids)
    np.testing.assert_allclose(plain.cosines, long.cosines, atol=1e-6)
    [zero] = store.nearest(np.zeros((1, E), np.float32), 3)
    assert zero.cosines.tolist() == [0, 0, 0]


@case
def what_cannot_be_asked_is_refused(index: Index) -> None:
    store = index()
    for shape in ((1, E + 1), (E,), (1, 1, E)):
        with pytest.raises(ShapeError, match="expected"):
            store.nearest(np.zeros(shape, np.float32), 3)
    with pytest.raises(ShapeError, match="finite"):
        store.nearest(np.full((1, E), np.nan, np.float32), 3)
    with pytest.raises(ConfigError, match="at least 1"):
        store.nearest(unit(1), 0)


@case
def an_empty_index_answers(index: Index) -> None:
    store = index()
    [found] = store.nearest(unit(1), 3)
    assert found.ids.shape == found.cosines.shape == (0,)
    assert list(store.known()) == list(store.scan()) == []
    assert store.count() == 0
    assert store.find([]).embeddings.shape == (0, E)
    store.optimize()


# Finding and scanning


@case
def find_keeps_the_order_and_leaves_out_what_has_gone(index: Index) -> None:
    store = index()
    store.add(rows(5), unit(5))
    [found] = store.scan()
    names = [row.path for row in found.rows]
    store.remove([names[2]])
    again = store.find([int(found.ids[4]), int(found.ids[2]), int(found.ids[0]), 2**62])
    assert [row.path for row in again.rows] == [names[4], names[0]]
    np.testing.assert_array_equal(again.ids, found.ids[[4, 0]])
    np.testing.assert_array_equal(again.embeddings, found.embeddings[[4, 0]])


@case
def an_id_is_not_used_again(index: Index) -> None:
    store = index()
    store.add(rows(3), unit(3))
    [before] = store.scan()
    store.remove(all_paths(store))
    store.add(rows(3, "/other"), unit(3))
    assert paths(store, before.ids) == []


@case
def scan_sees_each_row_once_while_others_write(index: Index) -> None:
    store, writer = index(), index()
    store.add(rows(100), unit(100))
    seen: list[str] = []
    last = -1
    for number, found in enumerate(store.scan(batch_size=7)):
        assert len(found.ids) <= 7
        assert found.ids[0] > last
        last = int(found.ids[-1])
        seen += [row.path for row in found.rows]
        writer.add(rows(2, start=3 * number), unit(2))  # some replaced, some of them already seen
        writer.add([Row(path=f"/new/{number}")], unit(1))
        writer.remove([f"/p/{99 - number:04}.jpg"])
    assert len(seen) == len(set(seen))
    untouched = {row.path for row in rows(100)} - {f"/p/{n:04}.jpg" for n in (*range(60), *range(70, 100))}
    assert untouched <= set(seen)


@case
def known_goes_on_while_others_write(index: Index) -> None:
    store, writer = index(), index()
    store.add(rows(50), unit(50))
    seen = []
    for one in store.known():
        seen.append(one.path)
        if len(seen) % 10 == 1:
            store.add([Row(path=one.path, size_bytes=-1)], unit(1))
            writer.write_document("note", one.path.encode())
    assert seen == [row.path for row in rows(50)]


# The whole index


@case
def two_open_at_once_see_each_other(index: Index) -> None:
    first, second = index(), index()
    first.add(rows(3), unit(3))
    assert len(second.nearest(unit(1), 5)[0].ids) == second.count() == 3
    second.add(rows(2, start=2), unit(2, seed=4))
    second.remove(["/p/0000.jpg"])
    assert all_paths(first) == ["/p/0001.jpg", "/p/0002.jpg", "/p/0003.jpg"]
    assert len(first.nearest(unit(1), 5)[0].ids) == 3
    [found] = first.nearest(unit(2, seed=4)[:1], 1)
    assert paths(first, found.ids) == ["/p/0002.jpg"]


@case
def optimize_changes_no_answer(index: Index) -> None:
    store = index()
    store.add(rows(200), unit(200))
    before = store.nearest(unit(3, seed=1), 10)
    store.optimize()
    store.optimize()
    for one, other in zip(before, store.nearest(unit(3, seed=1), 10), strict=True):
        np.testing.assert_array_equal(one.ids, other.ids)


@case
def an_index_of_another_width_is_refused(index: Index) -> None:
    index()
    with pytest.raises(DataError, match=f"{E}"):
        index(E + 1)
    assert index(None).embed_dim == E


@case
def a_replacement_takes_over_when_it_is_whole(index: Index) -> None:
    store = index()
    store.add(rows(3), unit(3))
    store.write_document("about", b"old")
    with store.replacement(embed_dim=5) as new:
        assert (new.embed_dim, new.count(), new.read_document("about")) == (5, 0, None)
        new.add(rows(2), np.eye(2, 5, dtype=np.float32))
        new.write_document("about", b"new")
        assert index(None).read_document("about") == b"old"
    with store.replacement(embed_dim=5) as new:  # as an ended process left it
        assert (new.count(), new.read_document("about")) == (2, b"new")
        new.add(rows(1, start=2), np.eye(1, 5, dtype=np.float32))
        reader = index(None)
        new.take_over()
        new.take_over()
        assert new.count() == 3
    after = index(None)
    assert (after.embed_dim, after.count(), after.read_document("about")) == (5, 3, b"new")
    assert reader.embed_dim == E  # who has the old one open goes on with it
    assert len(reader.nearest(unit(1), 5)[0].ids) == reader.count() == 3
    for change in (lambda: store.add(rows(1), unit(1)), lambda: store.remove(["/p/0000.jpg"])):
        with pytest.raises(ConfigError, match="replaced"):  # and loses nothing without a word
            change()


@case
def a_replacement_is_begun_anew(index: Index) -> None:
    store = index()
    with store.replacement(embed_dim=E) as left:
        left.add(rows(2), unit(2))
    with store.replacement(embed_dim=5) as other:  # for another width
        assert (other.embed_dim, other.count()) == (5, 0)
        other.add(rows(1), np.eye(1, 5, dtype=np.float32))
    with store.replacement(embed_dim=5, restart=True) as other:
        assert other.count() == 0
        other.add(rows(1, "/again"), np.eye(1, 5, dtype=np.float32))
        other.take_over()
    with index(None) as now, now.replacement(embed_dim=E) as next_one:  # and once more
        next_one.add(rows(4), unit(4))
        next_one.take_over()
    assert index(None).count() == 4
