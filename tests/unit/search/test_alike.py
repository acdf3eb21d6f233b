"""Pictures of an index that are alike: groups among hits, clusters of a whole store."""

from __future__ import annotations

import dataclasses
import io
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from clip.errors import DataError
from clip.images import read_image
from clip.preprocess import Preprocess
from clip.search import alike
from clip.search.alike import SIGNATURE_BYTES, clusters, groups
from clip.search.items import Item
from clip.search.prepare import prepare
from clip.search.store import Condition, Found, Row

EXAMPLES = Path(__file__).parents[3] / "examples"


class Rows:
    """What of a store is used here: ids from 10 on, in steps of 3; some rows are gone when they are asked for."""

    def __init__(self, rows: Sequence[Row], gone: Sequence[str] = ()) -> None:
        self.rows = {10 + 3 * place: row for place, row in enumerate(rows)}
        self.gone = set(gone)
        self.asked: list[int] = []

    def scan(self, conditions: Sequence[Condition] = (), *, batch_size: int = 4096) -> Iterator[Found]:
        assert conditions == ()
        ids = list(self.rows)
        for start in range(0, len(ids), batch_size):
            yield self._found(ids[start : start + batch_size])

    def find(self, ids: Sequence[int]) -> Found:
        self.asked.append(len(ids))
        return self._found([number for number in map(int, ids) if self.rows[number].path not in self.gone])

    def _found(self, ids: list[int]) -> Found:
        rows = [self.rows[number] for number in ids]
        return Found(np.array(ids, np.int64), rows, np.zeros((len(ids), 2), np.float32))


def _row(path: str, image: Image.Image | None, *, digest: int | None = None, **values: int) -> Row:
    signature = None
    if image is not None:
        file = io.BytesIO()
        image.save(file, "PNG")
        signature = prepare(Item(path=path, image=file.getvalue()), Preprocess(size=32)).row.signature
    return Row(path=path, signature=signature, digest=None if digest is None else digest.to_bytes(16, "big"), **values)


@pytest.fixture(scope="module")
def photos() -> dict[str, Image.Image]:
    return {path.stem: read_image(path) for path in sorted(EXAMPLES.glob("photos/*.jpg"))}


def _jpeg(image: Image.Image) -> Image.Image:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=40)
    return Image.open(file)


def test_hits_are_grouped_in_their_order(photos: dict[str, Image.Image]) -> None:
    cat, sheep = photos["cat"], photos["sheep"]
    rows = [
        _row("sheep", sheep),
        _row("cat", cat),
        _row("no signature", None),
        _row("cat.jpg", _jpeg(cat)),
        _row("rocket", photos["rocket"]),
        _row("brighter sheep", ImageEnhance.Brightness(sheep).enhance(1.05)),
        _row("small cat", cat.resize((cat.width // 2, cat.height // 2))),
        _row("also without", None),
    ]
    assert groups(rows) == [[0, 5], [1, 3, 6], [2], [4], [7]]
    assert groups([]) == []
    assert groups(rows[:1]) == [[0]]


def test_equal_files_belong_together_whatever_else(photos: dict[str, Image.Image]) -> None:
    blank = Image.new("RGB", (9, 9), "red")
    assert _row("blank", blank).signature is None
    cat = photos["cat"]
    rows = [
        _row("copy without signature", None, digest=1),
        _row("blank", blank, digest=2),
        _row("other blank", blank, digest=3),  # blank pictures are not compared
        _row("copy of blank", blank, digest=2),
        _row("cat", cat, digest=4),
        _row("sheep", photos["sheep"], digest=1 << 127),
        _row("cat.jpg", _jpeg(cat), digest=1),  # joins the first row with the cat
        _row("nothing", None),
    ]
    assert groups(rows) == [[0, 4, 6], [1, 3], [2], [5], [7]]


def test_digests_are_compared_as_a_whole() -> None:
    """The halves of 16 bytes alone, and trailing zeros, make no difference disappear."""
    digests = [b"\1" * 8 + b"\2" * 8, b"\1" * 8 + b"\3" * 8, b"\4" * 8 + b"\2" * 8, b"\1" * 8 + b"\2" * 8]
    digests += [b"\1".ljust(16, b"\0"), b"\1\0\1".ljust(16, b"\0"), bytes(16), bytes(16)]
    rows = [Row(path=str(place), digest=digest) for place, digest in enumerate(digests)]
    assert groups(rows) == [[0, 3], [1], [2], [4], [5], [6, 7]]


def test_groups_are_those_of_all_pairs() -> None:
    """The look at gradients that saves an import changes nothing, nor does the number above which it is left out."""
    rng = np.random.default_rng(2)
    base = rng.integers(0, 256, (8, SIGNATURE_BYTES), dtype=np.uint8)
    rows = []
    for place in range(300):
        changed = base[place % 8].copy()
        for bit in rng.choice(64, rng.integers(0, 12), replace=False):
            changed[bit // 8] ^= 1 << (bit % 8)
        rows.append(Row(path=str(place), signature=changed.tobytes()))
    remembered = alike._Remembered()
    for row in rows[: alike._FEW]:
        remembered.add(row)
    assert remembered.labels(only_if_near=True).tolist() == remembered.labels().tolist()
    assert len(groups(rows)) < 300
    few = [rows[0], rows[9], rows[18]]
    assert groups(few) == [[0], [1], [2]]


def test_the_limit_of_bits_is_that_of_likeness() -> None:
    from clip.data import likeness

    assert alike._NEAR_BITS >= likeness._MOST_BITS
    assert SIGNATURE_BYTES == 8 + likeness.COLOURS == 56


def test_hits_that_are_not_near_import_nothing() -> None:
    code = """
import sys
from clip.search.alike import groups
from clip.search.store import Row
print(groups([Row(path="a", signature=bytes(56)), Row(path="b", signature=b"\\xff" * 56)]))
print(sorted({"torch", "PIL", "faiss", "pymilvus", "ray", "pyarrow"} & set(sys.modules)))
"""
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert printed == "[[0], [1]]\n[]\n"


@pytest.mark.parametrize("batch", [1, 3, 4096])
def test_clusters_of_a_store(photos: dict[str, Image.Image], batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alike, "_AT_ONCE", batch)
    cat, sheep = photos["cat"], photos["sheep"]
    rows = [
        _row("sheep, small", sheep.resize((96, 96)), width=96, height=96, modified_ns=1),
        _row("cat, new", cat, width=300, height=200, modified_ns=9),
        _row("sheep", sheep, width=384, height=256, modified_ns=7),
        _row("rocket", photos["rocket"]),
        _row("cat, unknown age", _jpeg(cat), width=300, height=200),
        _row("cat, old", _jpeg(cat), width=300, height=200, modified_ns=3),
        _row("coffee", photos["coffee"]),
        *(_row(f"imported {number}", None) for number in range(5)),
    ]
    store = Rows(rows)
    found = [(cluster.keep.path, [row.path for row in cluster.others]) for cluster in clusters(store)]
    assert found == [("cat, old", ["cat, new", "cat, unknown age"]), ("sheep", ["sheep, small"])]
    assert max(store.asked) <= batch and sum(store.asked) == 5


def test_clusters_of_the_same_size_come_in_the_order_of_ids_and_the_gone_are_left_out() -> None:
    rows = [_row(f"{digest}/{turn}", None, digest=digest) for turn in range(3) for digest in (5, 6, 7)]
    store = Rows(rows, gone=["5/0", "6/1", "6/2"])
    found = [(cluster.keep.path, [row.path for row in cluster.others]) for cluster in clusters(store)]
    assert found == [("5/1", ["5/2"]), ("7/0", ["7/1", "7/2"])]
    assert list(clusters(Rows([]))) == []
    assert list(clusters(Rows([dataclasses.replace(row, digest=None) for row in rows]))) == []


def test_a_signature_of_another_length_is_told() -> None:
    with pytest.raises(DataError, match=r"a\.png: its signature has 3 bytes instead of 56; index it again"):
        groups([Row(path="a.png", signature=b"abc")])
    with pytest.raises(DataError, match=r"a\.png: its digest has 8 bytes instead of 16"):
        groups([Row(path="a.png", digest=bytes(8))])
