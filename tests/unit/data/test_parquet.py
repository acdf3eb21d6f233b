"""Parquet tables of paths and of files, read by row group."""

from __future__ import annotations

import pickle
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet
import pytest

from clip.data import parquet
from clip.data.loading import batches
from clip.data.parquet import ParquetSource
from clip.data.sources import open_source
from clip.data.tables import TableSource
from clip.errors import DataError, MissingDependencyError
from clip.preprocess import Preprocess


@pytest.fixture
def table(tmp_path: Path, pictures: Path) -> Path:
    """Two files in the layout of Hugging Face's image datasets, with row groups of three."""
    folder = tmp_path / "table"
    folder.mkdir()
    source = open_source(pictures)
    rows = [
        {"image": {"bytes": Path(str(source[i].image)).read_bytes(), "path": None}, "text": source[i].captions[0]}
        for i in range(12)
    ]
    for number in range(2):
        part = arrow.Table.from_pylist(rows[number * 6 : number * 6 + 6])
        arrow.parquet.write_table(part, folder / f"train-{number}.parquet", row_group_size=3)
    return folder


def test_files_in_the_table(table: Path, pictures: Path) -> None:
    expected = open_source(pictures)
    for address in (table, f"{table}/train-*.parquet"):
        source = open_source(address)
        assert isinstance(source, ParquetSource) and source.shard_sizes == (3, 3, 3, 3)
        assert source[7].key == "train-1.parquet:2"
        assert all(source[i].captions == expected[i].captions for i in range(12))
        assert source[4].image == Path(str(expected[4].image)).read_bytes()
        assert pickle.loads(pickle.dumps(source))[4] == source[4]
    run = batches(source, transform=Preprocess(size=8), context_length=8, global_batch_size=12, seed=0, steps=1)
    assert sorted(next(run).rows.tolist()) == list(range(12))


def test_few_row_groups_are_kept_and_mixed(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parquet, "_WINDOW_BYTES", 1)
    source = open_source(table)
    assert isinstance(source, ParquetSource) and source.window_records == 6
    for i in range(12):
        source[i]
    assert len(source._cache) == 4
    monkeypatch.setattr(parquet, "_MAX_GROUP_BYTES", 10)
    with pytest.raises(DataError, match=r"row group 0 has \d+ bytes.*row_group_size=1000"):
        open_source(table)


def test_paths_in_the_table(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    columns = {"filepath": ["a.jpg", "b.jpg", "a.jpg", None], "caption": [["one", "two"], ["other"], ["three"], ["x"]]}
    arrow.parquet.write_table(arrow.table(columns), path)
    source = open_source(path)
    assert isinstance(source, TableSource) and len(source) == 3
    assert source[0].captions == ("one", "two", "three") and source[0].image == tmp_path / "a.jpg"
    with pytest.raises(DataError, match=r"a\.parquet:4: the image is None"):
        source[2]


def test_rows_without_image_or_caption(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    arrow.parquet.write_table(arrow.table({"image": [b"x", None, b"y"], "text": ["one", "two", " "]}), path)
    source = open_source(path)
    assert source[0].image == b"x"
    with pytest.raises(DataError, match=r"a\.parquet:2: has no image"):
        source[1]
    with pytest.raises(DataError, match=r"a\.parquet:3: the caption is empty"):
        source[2]


@pytest.mark.parametrize("image", ["a.jpg", b"x"])
def test_a_text_that_is_not_utf8_is_one_bad_record(tmp_path: Path, image: str | bytes) -> None:
    path = tmp_path / "a.parquet"
    images = [image, image * 2, image * 3]
    texts = arrow.array([b"one", b"caf\xe9", b"three"]).view(arrow.string())  # which does not check
    arrow.parquet.write_table(arrow.table({"image": images, "text": texts}), path)
    source = open_source(path)
    assert source[2].captions == ("three",)
    with pytest.raises(DataError, match=r"a\.parquet:2: has a text that is not UTF-8"):
        source[1]


def test_tables_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_source(path)
    path.write_bytes(b"PAR1 nonsense")
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        open_source(path)
    arrow.parquet.write_table(arrow.table({"image": [1], "text": ["x"]}), path)
    with pytest.raises(DataError, match="the column 'image' is of type int64"):
        open_source(path)
    arrow.parquet.write_table(arrow.table({"image": ["x"], "words": ["x"]}), path)
    with pytest.raises(DataError, match="no column of captions by a usual name; its columns are: image, words"):
        open_source(path)
    with pytest.raises(DataError, match="no Parquet file fits"):
        open_source(f"{tmp_path}/b*.parquet")
    arrow.parquet.write_table(
        arrow.table({"image": arrow.array([], arrow.binary()), "text": arrow.array([], arrow.string())}), path
    )
    with pytest.raises(DataError, match="has no rows"):
        open_source(path)


def test_damage_inside_a_row_group_is_a_bad_record(table: Path) -> None:
    path = table / "train-0.parquet"
    data = bytearray(path.read_bytes())
    source = open_source(table)
    data[4:200] = bytes(196)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"row group 0 cannot be read|has no image"):
        source[0]
    assert source[6].captions == ("picture number 6",)


def test_without_pyarrow_the_extra_is_named(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(MissingDependencyError, match=r"everyclip\[parquet\]"):
        open_source(table)
