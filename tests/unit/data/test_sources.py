"""Folders and class folders, what an address is taken for, and mixtures."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import pytest

from clip.data.sources import ClassFolders, FolderSource, Mixture, detect_kind, open_source
from clip.errors import ConfigError, DataError


@pytest.fixture
def classes(tmp_path: Path, pictures: Path) -> Path:
    root = tmp_path / "classes"
    for i, name in enumerate(["hot_dog", "Apple", "zebra"]):
        (root / name / "more").mkdir(parents=True)
        shutil.copy(pictures / f"0{i}.png", root / name / "more" / f"{i}.png")
        shutil.copy(pictures / f"0{i + 3}.png", root / name / f"{i + 3}.png")
    (root / ".hidden").mkdir()
    return root


def test_a_folder_of_pictures_and_texts(pictures: Path) -> None:
    (pictures / "notes.md").write_text("not a picture")
    (pictures / ".thumb.png").write_bytes(b"hidden")
    (pictures / "03.txt").write_text("\ufefffirst\r\n\r\n  second \n", encoding="utf-8")
    source = open_source(pictures)
    assert isinstance(source, FolderSource) and len(source) == 12 and source.class_names == ()
    assert source[0].key == "00.png" and source[0].image == pictures / "00.png"
    assert source[3].captions == ("first", "second")
    assert source[11].key == "deeper/11.png" and source[11].captions == ("picture number 11",)
    assert pickle.loads(pickle.dumps(source))[11] == source[11]


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "no such file"), (b"", "is empty"), (b" \n\n", "is empty"), (b"caf\xe9", "is not UTF-8 at byte 3")],
)
def test_a_picture_whose_caption_cannot_be_read(pictures: Path, text: bytes | None, reason: str) -> None:
    (pictures / "05.txt").unlink()
    if text is not None:
        (pictures / "05.txt").write_bytes(text)
    source = open_source(pictures)
    with pytest.raises(DataError, match=rf"05\.txt: {reason}"):
        source[5]
    assert source[6].captions == ("picture number 6",)


def test_class_folders(classes: Path) -> None:
    source = open_source(classes, templates=["a {c}", "the {}"])
    assert isinstance(source, ClassFolders) and len(source) == 6
    assert source.class_names == ("Apple", "hot dog", "zebra")
    assert [source[i].label for i in range(6)] == [0, 0, 1, 1, 2, 2]
    assert source[2].captions == ("a hot dog", "the hot dog")
    assert source[2].key == "hot_dog/3.png"


def test_names_of_classes_from_a_file(classes: Path) -> None:
    (classes / "classnames.txt").write_text("fruit\nsausage\nhorse\n")
    assert open_source(classes).class_names == ("fruit", "sausage", "horse")
    (classes / "classnames.txt").write_text("fruit\n")
    with pytest.raises(DataError, match="has 1 names for 3 folders"):
        open_source(classes)


def test_splits_are_not_classes(tmp_path: Path, classes: Path) -> None:
    root = tmp_path / "dataset"
    root.mkdir()
    classes.rename(root / "train")
    shutil.copytree(root / "train", root / "val")
    with pytest.raises(DataError, match=r"are splits, not classes; pass split="):
        open_source(root)
    assert open_source(root, split="val").class_names == ("Apple", "hot dog", "zebra")
    with pytest.raises(DataError, match="no such folder; check the split"):
        open_source(root, split="test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "cvs"}, "kind is 'cvs'; it must be one of csv"),
        ({"image_column": "path"}, "image_column is 'path', but data of kind 'folder' has none"),
        ({"templates": ["a {}"]}, "templates is"),
        ({"kind": "classes", "templates": []}, "give a list of at least one string"),
        ({"kind": "classes", "templates": "a {}"}, "give a list of at least one string"),
        ({"kind": "classes", "templates": ["a"]}, r"template 'a' has no \{\}"),
        ({"kind": "classes", "templates": ["a(n) {}"]}, "leaves the article open"),
    ],
)
def test_options_that_do_not_fit(pictures: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_source(pictures, **options)  # type: ignore[arg-type]


def test_what_lies_at_an_address(tmp_path: Path, pictures: Path, classes: Path) -> None:
    for name, kind in [("a.csv", "csv"), ("a.TSV", "tsv"), ("a.jsonl", "jsonl"), ("a.ndjson", "jsonl")]:
        assert detect_kind(str(tmp_path / name)) == kind
    for name in ("a.tar", "a.tgz", "a.tar.gz", "a{0..3}.tar", "*.tar", "https://example.org/x", "a.tar::b.tar"):
        assert detect_kind(name) == "webdataset"
    assert detect_kind("a.parquet") == detect_kind("folder/*.parquet") == "parquet"
    assert detect_kind(str(pictures)) == "folder"
    assert detect_kind(str(classes)) == "classes"
    (classes / "train-images-idx3-ubyte.gz").touch()
    assert detect_kind(str(classes)) == "idx"
    (pictures / "0.tar").touch()
    assert detect_kind(str(pictures)) == "webdataset"


def test_addresses_at_which_there_is_nothing_to_read(tmp_path: Path, pictures: Path) -> None:
    with pytest.raises(DataError, match="no such file or folder"):
        open_source(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="there is no picture in this folder"):
        open_source(tmp_path / "empty")
    (tmp_path / "what.bin").touch()
    with pytest.raises(DataError, match=r"its kind cannot be told from '\.bin'; pass kind="):
        open_source(tmp_path / "what.bin")
    for text in pictures.rglob("*.txt"):
        text.unlink()
    shutil.rmtree(pictures / "deeper")
    with pytest.raises(DataError, match="none of its pictures has a text of the same name"):
        open_source(pictures)


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="the superuser may read everything")
def test_a_folder_that_may_not_be_read(pictures: Path) -> None:
    (pictures / "deeper").chmod(0)
    try:
        with pytest.raises(DataError, match="cannot be read"):
            open_source(pictures)
    finally:
        (pictures / "deeper").chmod(0o700)


def test_a_mixture_counts_through_its_parts(pictures: Path, classes: Path) -> None:
    pairs, labelled = open_source(pictures), open_source(classes)
    mixture = Mixture((pairs, labelled))
    assert len(mixture) == 18 and mixture.name == f"{pictures} + {classes}"
    assert mixture[11] == pairs[11]
    assert mixture[12].captions == labelled[0].captions and mixture[12].label is None and mixture.class_names == ()
    same = Mixture((labelled, labelled))
    assert same.class_names == labelled.class_names and same[7] == labelled[1]
    with pytest.raises(IndexError):
        mixture[18]
