"""Tables, shards and embeddings as sources of an index."""

from __future__ import annotations

import dataclasses
import functools
import io
import json
import os
import pickle
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clip.embedding_files import EmbeddingWriter
from clip.errors import ClipError, ConfigError, DataError
from clip.features import Encoded, Failure
from clip.search.about import About
from clip.search.embedded import Embedded, import_embeddings
from clip.search.items import Item
from clip.search.seen import Seen
from clip.search.sources import Pictures, open_source
from clip.search.store import Row, Store, open_store

ABOUT = About(
    model="tiny", fingerprint="f" * 64, embed_dim=3, preprocess={"size": 8}, engine="torch", precision="fp32"
)  # fmt: skip


def _pictures(address: Path | str, **how: Any) -> Pictures:
    source = open_source(str(address), **how)
    assert source is not None and not isinstance(source, Embedded)
    return source


def _embedded(address: Path | str, **how: Any) -> Embedded:
    source = open_source(str(address), **how)
    assert isinstance(source, Embedded)
    return source


def _read(source: Pictures, store: Store | None = None) -> tuple[list[Item], list[str]]:
    """The pictures, and the problems; the parts of a source must come to the same."""
    seen = functools.partial(Seen, store) if store else None
    problems: list[str] = []
    items = list(source.items(lambda error: problems.append(str(error)), seen))
    by_parts: list[Item] = []
    others: list[str] = []
    for part in source.parts(lambda error: others.append(str(error)), seen):
        by_parts += pickle.loads(pickle.dumps(part)).items(lambda error: others.append(str(error)))
    assert by_parts == items and others == problems
    return items, problems


def _fail(error: ClipError) -> None:
    raise error


def _jpeg(shade: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8 + shade, 8), (shade, 0, 0)).save(file, "JPEG")
    return file.getvalue()


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        (folder / f"{i}.jpg").write_bytes(_jpeg(i))
    return folder


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with open_store(str(tmp_path / "index"), embed_dim=3) as store:
        yield store


def test_folders_and_pictures_are_no_lists(photos: Path) -> None:
    assert open_source(str(photos)) is None
    assert open_source(str(photos / "0.jpg")) is None
    (photos / "odd.tar").mkdir()
    assert open_source(str(photos / "odd.tar")) is None


# Tables ---------------------------------------------------------------------------------------------------------------


def test_a_table_gives_paths_from_its_folder_and_its_other_columns(photos: Path) -> None:
    table = photos / "table.csv"
    table.write_text(
        'image,year,code,caption,score\n0.jpg,2019,007,1984,1.5\n../photos/./1.jpg,,x,"a, b",\n', encoding="utf-8"
    )
    items, problems = _read(_pictures(table))
    assert not problems
    state = (photos / "0.jpg").stat()
    assert items[0] == Item(
        path=str(photos / "0.jpg"),
        image=str(photos / "0.jpg"),
        size_bytes=state.st_size,
        modified_ns=state.st_mtime_ns,
        metadata={"year": 2019, "code": "007", "caption": "1984", "score": 1.5},
    )
    assert items[1].path == str(photos / "1.jpg")
    assert items[1].metadata == {"code": "x", "caption": "a, b"}


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.tsv", "path\tn\n0.jpg\t1\n1.jpg\t2\n"),
        ("t.csv", "path;n\n0.jpg;1\n1.jpg;2\n"),
        ("t.csv", "\ufeffPath,n\r\n0.jpg,1\r\n\r\n1.jpg,2\r\n"),
        ("t.jsonl", '{"path": "0.jpg", "n": 1}\n\n{"path": "1.jpg", "n": 2}\n'),
    ],
)
def test_kinds_of_tables(photos: Path, name: str, content: str) -> None:
    (photos / name).write_text(content, encoding="utf-8", newline="")
    items, problems = _read(_pictures(photos / name))
    assert [(item.path, item.metadata) for item in items] == [
        (str(photos / "0.jpg"), {"n": 1}), (str(photos / "1.jpg"), {"n": 2})
    ]  # fmt: skip
    assert not problems


def test_a_mere_list_of_pictures_needs_no_header(photos: Path) -> None:
    (photos / "list.csv").write_text("0.jpg\n2.jpg\n")
    items, _ = _read(_pictures(photos / "list.csv"))
    assert [item.path for item in items] == [str(photos / "0.jpg"), str(photos / "2.jpg")]


def test_a_bad_record_is_told_by_file_and_line_and_the_others_are_read(photos: Path) -> None:
    table = photos / "t.csv"
    table.write_bytes(b"path,word\n,a\nhttps://x/y.jpg,a\n0.jpg,\xff\nonly\n1.jpg,b\n")
    items, problems = _read(_pictures(table))
    assert [item.path for item in items] == [str(photos / "1.jpg")]
    assert [problem.removeprefix(f"{table}:")[:2] for problem in problems] == ["2:", "3:", "4:", "5:"]
    lines = photos / "t.jsonl"
    lines.write_text('{"path": "0.jpg", "x": NaN, "deep": {"a": [1]}}\n{\n[]\n{"path": 3}\n')
    items, problems = _read(_pictures(lines))
    assert [item.metadata for item in items] == [{"deep": {"a": [1]}}]
    assert [problem.removeprefix(f"{lines}:")[:2] for problem in problems] == ["2:", "3:", "4:"]


def test_a_path_need_not_be_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    try:
        (tmp_path / name).write_bytes(_jpeg(1))
    except OSError:
        pytest.skip("this file system has Unicode names only")
    (tmp_path / "t.csv").write_bytes(b"path,n\ncaf\xe9.jpg,1\n")
    [item], problems = _read(_pictures(tmp_path / "t.csv"))
    assert item.path == str(tmp_path / name) and item.size_bytes and not problems


def test_what_is_known_and_has_not_changed_is_left_out(photos: Path, store: Store) -> None:
    (photos / "t.csv").write_text("path\n0.jpg\n1.jpg\n2.jpg\n")
    items, _ = _read(_pictures(photos / "t.csv"))
    rows = [Row(path=item.path, size_bytes=item.size_bytes, modified_ns=item.modified_ns) for item in items[:2]]
    store.add(rows, np.eye(3, dtype=np.float32)[:2])
    os.utime(photos / "1.jpg", ns=(1, 1))
    items, _ = _read(_pictures(photos / "t.csv"), store)
    assert [Path(item.path).name for item in items] == ["1.jpg", "2.jpg"]


def test_what_is_no_table_is_said_at_once(photos: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.csv: no such file"):
        open_source(str(photos / "gone.csv"))
    (photos / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"no column of pictures by a usual name; its columns are: .*--image-column"):
        _read(_pictures(photos / "t.csv"))
    (photos / "t.csv").write_text("a,path\n0.jpg,9\n")
    assert _read(_pictures(photos / "t.csv", image_column="a"))[0][0].path == str(photos / "0.jpg")
    (photos / "t.csv").write_text("")
    with pytest.raises(DataError, match="is empty"):
        _read(_pictures(photos / "t.csv"))


def test_parquet_of_paths_and_of_files(photos: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"image": ["0.jpg", None, "2.jpg"], "n": [1, 2, 3], "x": [float("nan"), 0.5, 1.0]})
    parquet.write_table(table, photos / "paths.parquet")
    source = _pictures(photos / "paths.parquet")
    assert source.total() == 3
    items, problems = _read(source)
    assert [item.metadata for item in items] == [{"n": 1}, {"n": 3, "x": 1.0}]
    assert len(problems) == 1 and "paths.parquet:2:" in problems[0]

    files = [{"bytes": _jpeg(i), "path": None} for i in range(2)]
    parquet.write_table(arrow.table({"image": files}), photos / "files.parquet")
    items, problems = _read(_pictures(photos / "files.parquet"))
    assert [(item.path, item.image) for item in items] == [
        (f"{photos}/files.parquet/1", _jpeg(0)), (f"{photos}/files.parquet/2", _jpeg(1))
    ]  # fmt: skip
    assert not problems


# Shards ---------------------------------------------------------------------------------------------------------------


def _shard(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


def _write_shards(folder: Path) -> None:
    for number in range(2):
        members = []
        for i in range(3):
            members += [
                (f"d/{i}.jpg", _jpeg(i)),
                (f"d/{i}.txt", b" a cat \n"),
                (f"d/{i}.json", b'{"w": 1.5, "n": null}'),
            ]
        _shard(folder / f"{number:02}.tar", members)


def test_a_picture_of_a_shard_has_what_lies_beside_it(tmp_path: Path) -> None:
    _write_shards(tmp_path)
    items, problems = _read(_pictures(f"{tmp_path}/{{00..01}}.tar"))
    assert not problems
    assert [item.path for item in items] == [f"{tmp_path}/0{shard}.tar/d/{i}.jpg" for shard in (0, 1) for i in range(3)]
    assert items[1] == Item(
        path=f"{tmp_path}/00.tar/d/1.jpg",
        image=_jpeg(1),
        size_bytes=len(_jpeg(1)),
        modified_ns=(tmp_path / "00.tar").stat().st_mtime_ns,
        metadata={"w": 1.5, "caption": "a cat"},
    )
    assert _read(_pictures(f"{tmp_path}/*.tar"))[0] == items


def test_a_damaged_shard_does_not_stop_the_others(tmp_path: Path) -> None:
    _write_shards(tmp_path)
    content = (tmp_path / "00.tar").read_bytes()
    (tmp_path / "00.tar").write_bytes(content[:700])
    _shard(tmp_path / "02.tar", [("a.jpg", _jpeg(0)), ("a.json", b"{"), ("b.jpg", _jpeg(1)), ("readme.txt", b"x")])
    items, problems = _read(_pictures(f"{tmp_path}/*.tar"))
    assert [item.path.removeprefix(str(tmp_path)) for item in items] == [
        *(f"/01.tar/d/{i}.jpg" for i in range(3)), "/02.tar/b.jpg"
    ]  # fmt: skip
    assert "00.tar: is cut off" in problems[0]
    assert problems[1].startswith(f"{tmp_path}/02.tar:a: its .json is not JSON")
    with pytest.raises(DataError, match="decompress"):
        (tmp_path / "03.tar.gz").write_bytes(b"")
        open_source(str(tmp_path / "03.tar.gz"))


def test_known_members_are_left_out_until_the_shard_changes(tmp_path: Path, store: Store) -> None:
    _write_shards(tmp_path)
    items, _ = _read(_pictures(tmp_path / "00.tar"))
    rows = [Row(path=item.path, size_bytes=item.size_bytes, modified_ns=item.modified_ns) for item in items[1:]]
    store.add(rows, np.eye(3, dtype=np.float32)[:2])
    assert _read(_pictures(tmp_path / "00.tar"), store)[0] == items[:1]
    os.utime(tmp_path / "00.tar", ns=(1, 1))
    assert len(_read(_pictures(tmp_path / "00.tar"), store)[0]) == 3


def test_parts_of_a_shard_are_its_pictures_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _write_shards(tmp_path)
    monkeypatch.setattr("clip.search.sources._PART_BYTES", 2048)
    source = _pictures(tmp_path / "00.tar")
    parts = list(source.parts(_fail))
    assert len(parts) > 3
    assert [item for part in parts for item in part.items(_fail)] == list(source.items(_fail))


# Embeddings -----------------------------------------------------------------------------------------------------------


def _write_npy(path: Path, sources: Sequence[str], embeddings: NDArray[np.float32], **about: Any) -> None:
    fields = {key: value for key, value in dataclasses.asdict(ABOUT).items() if key not in ("model", "embed_dim")}
    with EmbeddingWriter(path, embed_dim=3, about={**fields, **about}, model="tiny") as writer:
        writer.fail(Failure(0, "bad.jpg", ClipError("unreadable")))
        writer.add(Encoded(list(range(1, len(sources) + 1)), list(sources), embeddings))
        writer.finish()


def _rows(store: Store) -> dict[str, tuple[Row, list[float]]]:
    return {
        row.path: (row, [round(x, 2) for x in embedding.tolist()])
        for found in store.scan()
        for row, embedding in zip(found.rows, found.embeddings, strict=True)
    }


@pytest.mark.parametrize("suffix", [".npy", ".parquet"])
def test_what_clip_encode_wrote_comes_with_its_origin(photos: Path, store: Store, suffix: str) -> None:
    if suffix == ".parquet":
        pytest.importorskip("pyarrow")
    eye = np.eye(3, dtype=np.float32)
    _write_npy(photos / f"e{suffix}", ["0.jpg", "1.jpg", "2.jpg"], eye)
    embedded = _embedded(photos / f"e{suffix}")
    assert (embedded.origin, embedded.embed_dim, embedded.total()) == (ABOUT, 3, 3)
    embedded.check(ABOUT, "there", is_claimed=False)
    with pytest.raises(ConfigError, match=r"there holds embeddings of other"):
        embedded.check(dataclasses.replace(ABOUT, model="other", fingerprint="0" * 64), "there", is_claimed=True)
    with pytest.raises(ConfigError, match="preprocessed in another way"):
        embedded.check(dataclasses.replace(ABOUT, preprocess={"size": 9}), "there", is_claimed=True)
    for _ in range(2):  # the second time changes nothing
        done = import_embeddings(store, embedded, on_problem=_fail)
        assert done == (3, 0, 0)
        assert {path: vector for path, (_, vector) in _rows(store).items()} == {
            str(photos / f"{i}.jpg"): eye[i].tolist() for i in range(3)
        }


def test_paths_that_lie_nowhere_here_are_names(tmp_path: Path) -> None:
    _write_npy(tmp_path / "e.npy", ["elsewhere/0.jpg"], np.eye(3, dtype=np.float32)[:1])
    [batch] = _embedded(tmp_path / "e.npy").batches(_fail)
    assert [row.path for row in batch.rows] == ["elsewhere/0.jpg"]


def test_files_that_are_no_embeddings_of_pictures(tmp_path: Path) -> None:
    np.save(tmp_path / "alone.npy", np.eye(3, dtype=np.float32))
    with pytest.raises(DataError, match=r"no alone\.npy\.jsonl beside it"):
        open_source(str(tmp_path / "alone.npy"))
    _write_npy(tmp_path / "short.npy", ["0", "1"], np.eye(3, dtype=np.float32)[:2])
    np.save(tmp_path / "short.npy", np.eye(3, dtype=np.float32))
    with pytest.raises(DataError, match=r"has 3 rows, short\.npy\.jsonl has 2"):
        list(_embedded(tmp_path / "short.npy").batches(_fail))
    lines = (tmp_path / "short.npy.jsonl").read_text().splitlines()
    about = json.loads(lines[0])
    del about["preprocess"]
    (tmp_path / "short.npy.jsonl").write_text("\n".join([json.dumps(about), *lines[1:]]))
    with pytest.raises(DataError, match="embeddings of texts"):
        open_source(str(tmp_path / "short.npy"))
    _write_npy(tmp_path / "a.npy", ["0"], np.eye(3, dtype=np.float32)[:1])
    _write_npy(tmp_path / "b.npy", ["1"], np.eye(3, dtype=np.float32)[:1], fingerprint="0" * 64)
    with pytest.raises(DataError, match="made in another way"):
        open_source(f"{tmp_path}/{{a,b}}.npy")


def test_embeddings_of_unknown_origin_must_be_claimed(photos: Path, store: Store) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    vectors = [[3.0, 4.0, 0.0], [0.0, 0.0, 0.0], [1.0, 2.0], None, [float("nan"), 0.0, 0.0], [0.0, 0.0, 2.0]]
    names = ["0.jpg", "1.jpg", "2.jpg", "3.jpg", "4.jpg", None]
    table = arrow.table({"path": names, "vector": vectors, "width": [5] * 6, "tag": ["x"] * 6})
    parquet.write_table(table, photos / "t.parquet")
    embedded = _embedded(photos / "t.parquet")
    assert embedded.origin is None
    with pytest.raises(ConfigError, match=r"does not say which model .* --model tiny"):
        embedded.check(ABOUT, "there", is_claimed=False)
    with pytest.raises(ConfigError, match="have 3 dimensions, those of tiny in there have 4"):
        embedded.check(dataclasses.replace(ABOUT, embed_dim=4), "there", is_claimed=True)
    embedded.check(ABOUT, "there", is_claimed=True)
    problems: list[str] = []
    done = import_embeddings(store, embedded, on_problem=lambda error: problems.append(str(error)))
    assert done == (1, 0, 5)
    assert [problem.removeprefix(f"{photos}/t.parquet:")[:2] for problem in problems] == ["2:", "3:", "4:", "5:", "6:"]
    assert _rows(store) == {
        str(photos / "0.jpg"): (Row(path=str(photos / "0.jpg"), width=5, metadata={"tag": "x"}), [0.6, 0.8, 0.0])
    }
    with pytest.raises(DataError, match=r"no column 'vektor'; its columns are: vector"):
        open_source(str(photos / "t.parquet"), embedding_column="vektor")


class _KilledError(Exception):
    pass


def test_an_import_goes_on_where_it_was_killed(tmp_path: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clip.search.embedded._BATCH_ROWS", 4)
    rng = np.random.default_rng(0)
    for name, count in (("a", 10), ("b", 7)):
        vectors = rng.normal(size=(count, 3)).astype(np.float32)
        _write_npy(tmp_path / f"{name}.npy", [f"{name}{i}" for i in range(count)], vectors)
    embedded = _embedded(f"{tmp_path}/{{a,b}}.npy")

    def die_after_14(records: int) -> None:
        if store.count() >= 14:
            raise _KilledError

    with pytest.raises(_KilledError):
        import_embeddings(store, embedded, on_problem=_fail, on_batch=die_after_14)
    told: list[int] = []
    done = import_embeddings(store, embedded, on_problem=_fail, on_batch=told.append)
    assert done == (3, 14, 0) and told == [14, 3]
    whole = {path: vector for path, (_, vector) in _rows(store).items()}
    assert import_embeddings(store, embedded, on_problem=_fail) == (17, 0, 0)
    assert {path: vector for path, (_, vector) in _rows(store).items()} == whole
    assert len(whole) == 17


def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """A million rows would take seconds; that batches come before the end has been read says the same."""
    path = tmp_path / "t.jsonl"
    lines = b"".join(b'{"path": "%d.jpg"}\n' % i for i in range(20_000))
    path.write_bytes(lines)
    items = _pictures(path).items(_fail)
    assert next(items).path == f"{tmp_path}/0.jpg"
    with path.open("r+b") as file:  # what has not been read yet
        file.truncate(lines.rindex(b"{"))
        assert sum(1 for _ in items) == 19_998
