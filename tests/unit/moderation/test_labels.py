from __future__ import annotations

import io
import os
import sys
from pathlib import Path

import pytest

from clip.errors import DataError
from clip.moderation.labels import Labels, read_labels
from clip.moderation.policy import Category, Policy

POLICY = Policy(
    name="test",
    categories=tuple(
        Category(name=name, prompts=("x",), threshold=0.5) for name in ("weapons", "alcohol", "fire-arms")
    ),
)


def read(data: str | bytes) -> Labels:
    return read_labels(io.BytesIO(data.encode() if isinstance(data, str) else data), POLICY, name="labels.csv")


def known(labels: Labels) -> dict[str, dict[str, bool]]:
    return {picture.path: picture.known for picture in labels.pictures}


def test_a_row_for_each_picture_and_category() -> None:
    labels = read("path,category,label\na.png,weapons,yes\na.png,alcohol,FALSE\nb.png,weapons,0\nc.png,alcohol,1\n")
    assert known(labels) == {
        "a.png": {"weapons": True, "alcohol": False},
        "b.png": {"weapons": False},
        "c.png": {"alcohol": True},
    }
    assert (labels.rows, labels.repeated, labels.counts("weapons"), labels.counts("fire-arms")) == (
        4,
        0,
        (1, 1),
        (0, 0),
    )
    assert [picture.line for picture in labels.pictures] == [2, 4, 5]


def test_a_row_for_each_picture_says_no_of_all_that_it_does_not_name() -> None:
    labels = read("categories,path,note\nweapons; alcohol,a.png,hm\n,b.png,\n;,c.png,\n")
    assert known(labels)["a.png"] == {"weapons": True, "alcohol": True, "fire-arms": False}
    assert known(labels)["b.png"] == known(labels)["c.png"] == dict.fromkeys(("weapons", "alcohol", "fire-arms"), False)


def test_what_spreadsheets_write() -> None:
    text = 'Path,Category,Label\r\n"a, b ""c"".png",weapons,Yes\r\n\r\n"two\nlines.png",weapons,no\r\n'
    expected = {'a, b "c".png': {"weapons": True}, "two\nlines.png": {"weapons": False}}
    for data in (text.encode(), text.encode("utf-8-sig"), text.encode("utf-16")):
        assert known(read(data)) == expected


def test_paths_that_are_not_utf_8_find_their_files(tmp_path: Path) -> None:
    if sys.platform != "linux":
        pytest.skip("file names are not bytes here")
    name = b"gr\xfcn.png"
    (tmp_path / os.fsdecode(name)).write_bytes(b"there")
    table = tmp_path / "labels.csv"
    table.write_bytes(b"path,categories\n" + name + b",weapons\n")
    (picture,) = read_labels(table, POLICY).pictures
    assert Path(picture.path).read_bytes() == b"there"


def test_relative_paths_start_at_the_table(tmp_path: Path) -> None:
    table = tmp_path / "labels.csv"
    table.write_text(f"path,categories\nin/a.png,\n{tmp_path}/b.png,\n")
    assert [picture.path for picture in read_labels(table, POLICY).pictures] == [
        f"{tmp_path}/in/a.png",
        f"{tmp_path}/b.png",
    ]
    with table.open("rb") as stream:
        assert [picture.path for picture in read_labels(stream, POLICY).pictures] == ["in/a.png", f"{tmp_path}/b.png"]
        assert not stream.closed


def test_rows_that_say_the_same_are_counted() -> None:
    labels = read("path,category,label\na.png,weapons,yes\n./a.png,weapons,true\n")
    assert (len(labels.pictures), labels.rows, labels.repeated) == (1, 2, 1)


def test_rows_that_contradict_each_other_are_both_named() -> None:
    with pytest.raises(
        DataError, match=r"labels.csv: lines 2 and 4 contradict each other: 'x/a.png'.*yes and no for weap"
    ):
        read("path,category,label\nx/a.png,weapons,yes\nb.png,weapons,yes\nx/./a.png,weapons,no\n")
    with pytest.raises(DataError, match="lines 2 and 3 contradict"):
        read("path,categories\na.png,weapons\na.png,\n")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "path,category,label\na.png,weapon,yes\n",
            r"line 2: the policy has no category 'weapon'; known are weapons, ",
        ),
        ("path,categories\na.png,alcohol;firearms\n", "line 2: .* 'firearms'; known are fire-arms, weapons, alcohol"),
        (
            "path,category,label\na.png,weapons,perhaps\n",
            "line 2: the label is 'perhaps'; known are yes, true, 1, no, fal",
        ),
        ("path,category,label\na.png,weapons,\n", "line 2: the label is ''"),
        ("path,category,label\na.png,weapons\n", "line 2: has 2 columns, 3 are needed"),
        ('path,categories\n"a\nb.png",weapons\n,weapons\n', "line 4: the path is ''"),
        ("path,categories\na\0b.png,\n", "line 2: the path is"),
        ("path,category,label,categories\n", "columns of both forms"),
        ("path,path,categories\n", "has column 'path' 2 times"),
        (
            "picture,categories\n",
            "no column 'path'; its columns are picture, categories; expected: path,category,label or",
        ),
        ("path,category\n", "no column 'label'"),
        ("a.png,weapons,yes\n", "no column 'path'"),
        ("", "is empty"),
        ("\n\n", "is empty"),
        ("path,categories\n", "has no rows"),
        ('path,categories\n"a.png,weapons\nb.png,\n', "quote opened in line 2 is not closed"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(text: str, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read(text)
    assert str(caught.value).startswith("labels.csv: ")


def test_what_is_no_text_and_what_is_not_there(tmp_path: Path) -> None:
    for data in (b"\xff\xfea", os.urandom(1) + bytes(range(256)) * 4, b"\x89PNG\r\n\x1a\n" + bytes(100)):
        with pytest.raises(DataError, match=r"^labels.csv: "):
            read(data)
    for path in (tmp_path / "missing.csv", tmp_path):
        with pytest.raises(DataError, match="cannot be read"):
            read_labels(path, POLICY)
