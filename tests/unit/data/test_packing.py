"""What is packed comes back, in files that depend on nothing but the source and the options."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from clip.data import packing
from clip.data.packing import pack
from clip.data.shards import ShardSource
from clip.data.sources import open_source
from clip.errors import ConfigError, DataError
from clip.images import read_pixels


def _hashes(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


def test_pairs_come_back(tmp_path: Path, pictures: Path) -> None:
    (pictures / "03.txt").write_text("one\ntwo ü\n", encoding="utf-8")
    source = open_source(pictures)
    done: list[int] = []
    packed = pack(source, tmp_path / "shards", samples_per_shard=5, on_sample=done.append)
    assert (packed.shards, packed.samples, packed.failures) == (3, 12, ())
    assert packed.size_bytes == sum(path.stat().st_size for path in (tmp_path / "shards").glob("*.tar"))
    assert done == list(range(1, 13))
    again = open_source(tmp_path / "shards")
    assert isinstance(again, ShardSource) and again.shard_sizes == (5, 5, 2)
    expected = {source[i].captions: Path(str(source[i].image)).read_bytes() for i in range(12)}
    assert {again[i].captions: again[i].image for i in range(12)} == expected
    assert ("one", "two ü") in expected
    assert [again[i].captions for i in range(12)] != [source[i].captions for i in range(12)]  # shuffled
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [
        *("00000.tar", "00001.tar", "00002.tar", "sizes.json")
    ]
    assert json.loads((tmp_path / "shards" / "sizes.json").read_text()) == {
        "00000.tar": 5,
        "00001.tar": 5,
        "00002.tar": 2,
    }


def test_bytes_depend_on_source_and_options_alone(tmp_path: Path, pictures: Path) -> None:
    for name in ("one", "two"):
        pack(open_source(pictures), tmp_path / name, samples_per_shard=5)
    pack(open_source(pictures), tmp_path / "three", samples_per_shard=5, seed=1)
    assert _hashes(tmp_path / "one") == _hashes(tmp_path / "two") != _hashes(tmp_path / "three")
    with tarfile.open(tmp_path / "one" / "00000.tar") as tar:
        for member in tar:
            assert (member.mtime, member.uid, member.gid, member.uname, member.mode) == (0, 0, 0, "", 0o444)


def test_classes_come_back(tmp_path: Path, pictures: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "classes" / name).mkdir(parents=True)
        (pictures / ("00.png" if name == "cat" else "01.png")).rename(tmp_path / "classes" / name / "x.png")
    pack(open_source(tmp_path / "classes"), tmp_path / "shards", seed=None)
    again = open_source(tmp_path / "shards")
    assert again.class_names == ("cat", "dog")
    assert [(again[i].label, again[i].captions[1]) for i in range(2)] == [
        (0, "a photo of a cat"),
        (1, "a photo of a dog"),
    ]


def test_formats_that_others_do_not_read_become_png(tmp_path: Path, pictures: Path) -> None:
    with Image.open(pictures / "05.png") as image:
        image.save(pictures / "05.gif")
        image.save(pictures / "06.webp", lossless=True)
    for name in ("05.png", "06.png"):
        (pictures / name).unlink()
    pack(open_source(pictures), tmp_path / "shards", seed=None)
    with tarfile.open(tmp_path / "shards" / "00000.tar") as tar:
        images = [Path(name).suffix for name in tar.getnames() if not name.endswith(".txt")]
    assert images == [".png"] * 6 + [".webp"] + [".png"] * 5
    again = open_source(tmp_path / "shards")
    assert read_pixels(again[5].image)[0, 0].tolist() == [100, 100, 100]  # type: ignore[arg-type]


def test_shards_end_at_their_bytes(tmp_path: Path, pictures: Path) -> None:
    assert pack(open_source(pictures), tmp_path / "shards", shard_bytes=1).shards == 12
    assert pack(open_source(pictures), tmp_path / "more", shard_bytes=5000).shards == 4


def test_bad_records_are_left_out_and_named(tmp_path: Path, pictures: Path) -> None:
    (pictures / "02.png").write_bytes(b"no picture")
    (pictures / "04.txt").unlink()
    packed = pack(open_source(pictures), tmp_path / "shards", samples_per_shard=5, seed=None)
    assert packed.samples == 10 and [failure.row for failure in packed.failures] == [2, 4]
    assert packed.failures[0].message.startswith("02.png: not a picture")
    with pytest.raises(DataError, match="1 of 3 records could not be read"):
        pack(open_source(pictures), tmp_path / "strict", max_failures=0, seed=None)
    assert not (tmp_path / "strict" / "sizes.json").exists()
    for path in pictures.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"11 of 11 records could not be read"):
        pack(open_source(pictures), tmp_path / "none")


def test_shards_are_not_written_over_unless_asked(tmp_path: Path, pictures: Path) -> None:
    pack(open_source(pictures), tmp_path / "shards", samples_per_shard=4)
    before = _hashes(tmp_path / "shards")
    with pytest.raises(DataError, match=r"has shards already, such as 00000\.tar"):
        pack(open_source(pictures), tmp_path / "shards")
    assert _hashes(tmp_path / "shards") == before
    pack(open_source(pictures), tmp_path / "shards", overwrite=True)
    assert list(_hashes(tmp_path / "shards")) == ["00000.tar", "sizes.json"]


def test_an_interrupted_run_leaves_no_list(tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(done: int) -> None:
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(open_source(pictures), tmp_path / "shards", samples_per_shard=5, on_sample=stop)
    names = sorted(_hashes(tmp_path / "shards"))
    assert names == ["00000.tar", "00001.tar.partial"]
    pack(open_source(pictures), tmp_path / "shards", overwrite=True)
    assert sorted(_hashes(tmp_path / "shards")) == ["00000.tar", "sizes.json"]


def test_a_place_that_cannot_be_written(tmp_path: Path, pictures: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="cannot be written"):
        pack(open_source(pictures), tmp_path / "file")
    for options in ({"samples_per_shard": 0}, {"shard_bytes": 0}):
        with pytest.raises(ConfigError, match="must be at least 1"):
            pack(open_source(pictures), tmp_path / "x", **options)


def test_the_name_that_callers_use() -> None:
    from clip.data import shards

    assert shards.pack is packing.pack
