"""Shards as webdataset's own writer makes them (tests/golden/data), their addresses, and what can be wrong."""

from __future__ import annotations

import http.server
import json
import pickle
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from test_tar_index import write

from clip.data import shards
from clip.data.shards import ShardSource, expand
from clip.data.sources import open_source
from clip.errors import DataError, DownloadError
from clip.images import read_pixels

GOLDEN = Path(__file__).parents[2] / "golden" / "data"
COLOURS = ("red", "green", "blue", "white")


def test_output_of_img2dataset(tmp_path: Path) -> None:
    for name in ("00000", "00001"):
        shutil.copy(GOLDEN / "img2dataset.tar", tmp_path / f"{name}.tar")
        (tmp_path / f"{name}.parquet").write_bytes(b"a table that is not read")
        (tmp_path / f"{name}_stats.json").write_text("{}")
    source = open_source(tmp_path)
    assert isinstance(source, ShardSource)
    assert source.shard_sizes == (4, 4) and len(source) == 8
    assert source[5].key == "00001.tar:000000001"
    assert [source[i].captions for i in range(4)] == [(f"a {colour} card",) for colour in COLOURS]
    assert isinstance(source[0].image, bytes) and read_pixels(source[0].image)[0, 0].tolist() == [254, 0, 0]
    assert source[0].label is None and source.class_names == ()
    assert open_source(tmp_path, caption_column="alt")[6].captions == ("blue!",)
    assert pickle.loads(pickle.dumps(source))[7] == source[7]


def _clip_benchmark(root: Path, kind: str = "clip_benchmark") -> Path:
    (root / "test").mkdir(parents=True)
    (root / "test" / "nshards.txt").write_text("2\n")
    for number in range(2):
        shutil.copy(GOLDEN / f"{kind}.tar", root / "test" / f"{number}.tar")
    (root / "classnames.txt").write_text("cat\ndog\ncow\n")
    (root / "zeroshot_classification_templates.txt").write_text("a {c}\nthe {c}\n")
    return root


def test_the_layout_of_clip_benchmark(tmp_path: Path) -> None:
    source = open_source(_clip_benchmark(tmp_path / "wds"), split="test")
    assert len(source) == 8 and source.class_names == ("cat", "dog", "cow")
    assert [source[i].label for i in range(4)] == [0, 1, 2, 0]
    assert source[5].captions == ("a dog", "the dog")
    own = open_source(tmp_path / "wds", split="test", templates=["one {}"])
    assert own[5].captions == ("one dog",)


def test_retrieval_in_the_layout_of_clip_benchmark(tmp_path: Path) -> None:
    root = _clip_benchmark(tmp_path / "wds", "retrieval")
    assert open_source(root, split="test")[2].captions == ("a blue card\nall blue",)
    (root / "dataset_type.txt").write_text("retrieval\n")
    assert open_source(root, split="test")[2].captions == ("a blue card", "all blue")


def test_addresses(tmp_path: Path) -> None:
    assert expand("a.tar") == ["a.tar"]
    assert expand("{08..11}.tar") == ["08.tar", "09.tar", "10.tar", "11.tar"]
    assert expand("{8..11}") == ["8", "9", "10", "11"] and expand("{2..0}") == ["2", "1", "0"]
    assert expand("{a,b}/{0..1}.tar::c.tar") == ["a/0.tar", "a/1.tar", "b/0.tar", "b/1.tar", "c.tar"]
    assert expand("x{a,{0..1},{b,c}d}") == ["xa", "x0", "x1", "xbd", "xcd"]
    assert expand("a{b{0..1}") == ["a{b0", "a{b1"]
    assert expand("http://h.example/{0..1}.tar?k=*") == ["http://h.example/0.tar?k=*", "http://h.example/1.tar?k=*"]
    assert expand("{name}.tar") == ["{name}.tar"]
    for name in ("b.tar", "a.tar"):
        (tmp_path / name).touch()
    assert expand(f"{tmp_path}/*.tar") == [str(tmp_path / "a.tar"), str(tmp_path / "b.tar")]
    with pytest.raises(DataError, match="no file fits this pattern"):
        expand(f"{tmp_path}/*.zip")
    with pytest.raises(DataError, match="means more than"):
        expand("{0..999999}{0..999999}")


def test_patterns_open(tmp_path: Path) -> None:
    for number in range(3):
        shutil.copy(GOLDEN / "img2dataset.tar", tmp_path / f"{number}.tar")
    for address in (f"{tmp_path}/{{0..2}}.tar", f"{tmp_path}/*.tar", f"{tmp_path}/0.tar::{tmp_path}/{{1,2}}.tar"):
        assert len(open_source(address)) == 12
    assert len(open_source(tmp_path / "1.tar")) == 4
    with pytest.raises(DataError, match=r"3\.tar: no such file"):
        open_source(f"{tmp_path}/{{0..3}}.tar")


@pytest.mark.parametrize(
    ("members", "options", "message"),
    [
        ([], {}, "has no records"),
        ([("a.txt", b"x")], {}, "no record has an image"),
        ([("a.jpg", b"x")], {}, "no record has a member 'txt'; write captions"),
        ([("a.jpg", b"x"), ("a.json", b"{}")], {}, "no record has a member 'txt'; pass caption_column="),
        ([("a.jpg", b"x"), ("a.cls", b"0")], {}, "put classnames.txt beside the shards"),
        ([("a.jpg", b"x"), ("a.txt", b"x")], {"caption_column": "c"}, "no record has a member 'json'"),
    ],
)
def test_shards_that_cannot_train(
    tmp_path: Path, members: list[tuple[str, bytes]], options: dict[str, str], message: str
) -> None:
    write(tmp_path / "0.tar", members)
    with pytest.raises(DataError, match=message):
        open_source(tmp_path, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("b.txt", b"x")], "has no image"),
        ([("b.jpg", b"J")], "has no caption"),
        ([("b.jpg", b"J"), ("b.txt", b" \n")], "its .txt is empty"),
        ([("b.jpg", b"J"), ("b.txt", b"caf\xe9")], "its caption is not UTF-8 at byte 3"),
        ([("b.jpg", b"J"), ("b.txt", b"x"), ("b.cls", b"one")], "its class is b'one'; a number"),
        ([("b.jpg", b"J"), ("b.captions.json", b"[1]")], "a text or a list of texts is expected"),
        ([("b.jpg", b"J"), ("b.captions.json", b"[" * 99_999)], "its .captions.json is not JSON"),
        ([("b.jpg", b"J"), ("b.captions.json", b'["\\ud800"]')], "half a character"),
        ([("b.jpg", b"J"), ("b.txt", b"x" * ((1 << 20) + 1))], "has 1048577 bytes; the limit is 1048576"),
    ],
)
def test_a_bad_record_leaves_the_others(tmp_path: Path, members: list[tuple[str, bytes]], message: str) -> None:
    good = [("a.jpg", b"J"), ("a.txt", b"one"), *members, ("c.jpg", b"J"), ("c.txt", b"three")]
    source = open_source(write(tmp_path / "0.tar", good))
    assert len(source) == 3 and source[2].captions == ("three",)
    with pytest.raises(DataError, match=rf"0\.tar:b: .*{message}"):
        source[1]


def test_a_class_beyond_the_names(tmp_path: Path) -> None:
    root = _clip_benchmark(tmp_path / "wds")
    (root / "classnames.txt").write_text("cat\ndog\n")
    source = open_source(root, split="test")
    with pytest.raises(DataError, match=r"its class is 2, but classnames\.txt has 2 names"):
        source[2]


def test_sizes_spare_reading_the_headers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        shutil.copy(GOLDEN / "img2dataset.tar", tmp_path / f"{number}.tar")
    (tmp_path / "sizes.json").write_text(json.dumps({"0.tar": 4, "1.tar": 4, "2.tar": 5, "9.tar": 1}))
    read: list[str] = []
    original = shards.read_index
    monkeypatch.setattr(shards, "read_index", lambda path: read.append(path.name) or original(path))
    source = open_source(tmp_path)
    assert source[7].key == "1.tar:000000003" and len(source) == 13
    assert read == ["0.tar", "1.tar"]
    with pytest.raises(DataError, match=r"2\.tar: has 4 records, 5 are expected by sizes\.json"):
        source[12]
    (tmp_path / "sizes.json").write_text("[")
    with pytest.raises(DataError, match=r"sizes\.json: is not JSON"):
        open_source(tmp_path)
    (tmp_path / "sizes.json").write_text('{"0.tar": -1}')
    with pytest.raises(DataError, match=r"sizes\.json: maps not all names"):
        open_source(tmp_path)


def test_few_indexes_stay_in_memory_and_large_ones_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_KEPT_INDEXES", 2)
    monkeypatch.setattr(shards, "_SAVED_FROM", 1)
    for number in range(4):
        shutil.copy(GOLDEN / "img2dataset.tar", tmp_path / f"{number}.tar")
    assert len(open_source(tmp_path)) == 16
    monkeypatch.setattr(shards, "read_index", lambda path: pytest.fail("was read again"))
    source = open_source(tmp_path)
    assert [source[i].captions for i in range(0, 16, 5)] == [(f"a {colour} card",) for colour in COLOURS]
    assert len(source._indexes) == 2  # type: ignore[attr-defined]


def test_shards_that_shrink_or_vanish_while_they_are_used(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    shutil.copy(GOLDEN / "img2dataset.tar", path)
    source = open_source(path)
    path.write_bytes(path.read_bytes()[:4096])
    with pytest.raises(DataError, match="shorter than when it was opened"):
        source[3]
    path.unlink()
    with pytest.raises(DataError, match=r"0\.tar:000000003: .*cannot be read"):
        source[3]


@pytest.mark.parametrize("name", ["0.tar.gz", "0.tgz", "0.tar.zst"])
def test_compressed_shards_have_a_remedy(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(DataError, match="decompress it to"):
        open_source(tmp_path / name)
    with pytest.raises(DataError, match=r"has no shards.*decompress it"):
        open_source(tmp_path, kind="webdataset")


# --- Over http --------------------------------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, list[str]]]:
    """The address of a server of ``tmp_path``/web, and the paths that it was asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path / "web"))  # type: ignore[arg-type]

        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as served:
        thread = threading.Thread(target=served.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}", asked
        served.shutdown()
        thread.join()


def test_shards_on_the_web_are_fetched_once(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    address, asked = server
    root = _clip_benchmark(tmp_path / "web" / "data")
    source = open_source(f"{address}/data", split="test")
    assert [source[i].captions[0] for i in (1, 5)] == ["a dog"] * 2
    fetched = [path for path in asked if path.endswith(".tar")]
    assert sorted(fetched) == ["/data/test/0.tar", "/data/test/1.tar"]
    shutil.rmtree(root)
    assert open_source(f"{address}/data", split="test")[5] == source[5]


def test_with_sizes_a_shard_is_fetched_when_it_is_needed(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    address, asked = server
    (tmp_path / "web").mkdir()
    for number in range(3):
        shutil.copy(GOLDEN / "img2dataset.tar", tmp_path / "web" / f"{number}.tar")
    (tmp_path / "web" / "sizes.json").write_text(json.dumps({f"{number}.tar": 4 for number in range(3)}))
    for where in (f"{address}/{{0..2}}.tar", address):
        source = open_source(where)
        assert len(source) == 12
    assert [path for path in asked if path.endswith(".tar")] == ["/0.tar"]
    assert source[9].key == "2.tar:000000001"
    assert [path for path in asked if path.endswith(".tar")] == ["/0.tar", "/2.tar"]


def test_what_is_not_on_the_server(tmp_path: Path, server: tuple[str, list[str]]) -> None:
    address, _ = server
    (tmp_path / "web").mkdir()
    with pytest.raises(DataError, match="a web server lists no files; name the shards"):
        open_source(f"{address}/folder")
    with pytest.raises(DownloadError, match="404"):
        open_source(f"{address}/folder/0.tar")
