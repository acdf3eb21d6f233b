"""CSV, TSV and JSON lines as people write them, and what is said about those that cannot be read."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from clip.data.sources import open_source
from clip.data.tables import TableSource
from clip.errors import DataError


def _open(path: Path, content: str | bytes, **options: str) -> TableSource:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    source = open_source(path, **options)  # type: ignore[arg-type]
    assert isinstance(source, TableSource)
    return source


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "image,caption\na.jpg,a cat\nsub/b.jpg,a dog\n"),
        ("a.csv", "image,caption\r\na.jpg,a cat\r\nsub/b.jpg,a dog"),
        ("a.csv", "image,caption\ra.jpg,a cat\rsub/b.jpg,a dog\r"),
        ("a.csv", "\ufeffid;Caption ;IMAGE\n1;a cat;a.jpg\n2; a dog;sub/b.jpg\n"),
        ("a.csv", "filepath\ttitle\na.jpg\ta cat\nsub/b.jpg\ta dog\n"),  # OpenCLIP's defaults, also in .csv
        ("a.tsv", "path\ttext\n\na.jpg\ta cat\n\nsub/b.jpg\ta dog\n"),
        ("a.tsv", "caption\tfile_name\na cat\ta.jpg\na dog\tsub/b.jpg\n"),
        (
            "a.csv",
            "url,path|text\nx,a.jpg|a cat\ny,sub/b.jpg|a dog\n".replace("path|", "path,").replace("jpg|", "jpg,"),
        ),
        ("a.csv", "a.jpg,a cat\nsub/b.jpg,a dog\n"),  # no header
        ("a.csv", 'image,caption\n"a.jpg","a cat"\n"sub/b.jpg","a dog"\n'),
        ("a.jsonl", '{"image": "a.jpg", "caption": "a cat"}\n\n{"image": "sub/b.jpg", "caption": "a dog"}\n'),
        ("a.jsonl", '\ufeff{"file_name": "a.jpg", "text": " a cat"}\n{"text": "a dog", "file_name": "sub/b.jpg"}'),
    ],
)
def test_two_pairs(tmp_path: Path, name: str, content: str) -> None:
    source = _open(tmp_path / name, content)
    assert [source[i].captions for i in range(len(source))] == [("a cat",), ("a dog",)]
    assert [source[i].image for i in range(2)] == [tmp_path / "a.jpg", tmp_path / "sub" / "b.jpg"]


def test_utf_16_as_spreadsheets_save_it(tmp_path: Path) -> None:
    source = _open(tmp_path / "a.csv", "image\tcaption\na.jpg\tein Kätzchen\n".encode("utf-16"))
    assert source[0].captions == ("ein Kätzchen",)
    with pytest.raises(DataError, match="is not valid utf-16"):
        _open(tmp_path / "a.csv", "image\tcaption\na.jpg\tein\n".encode("utf-16") + b"x")


def test_quotes_hold_delimiters_quotes_and_lines(tmp_path: Path) -> None:
    source = _open(tmp_path / "a.csv", 'image,caption\na.jpg,"a ""big"" cat,\nasleep"\nb.jpg,a 5" nail\n')
    assert [source[i].captions[0] for i in range(2)] == ['a "big" cat,\nasleep', 'a 5" nail']
    assert [source[i].key for i in range(2)] == ["a.csv:2", "a.csv:4"]


def test_columns_are_those_asked_for(tmp_path: Path) -> None:
    content = "image,thumb,caption,alt\na.jpg,t.jpg,a cat,cat\n"
    source = _open(tmp_path / "a.csv", content, image_column="thumb", caption_column="alt")
    assert (source[0].image, source[0].captions) == (tmp_path / "t.jpg", ("cat",))


@pytest.mark.parametrize(
    ("name", "content", "captions"),
    [
        ("a.csv", "image,caption\na.jpg,one\nb.jpg,other\na.jpg,two\n", ("one", "two")),
        ("a.csv", "image,caption_0,caption_1,caption_2\na.jpg,one,two,\nb.jpg,other,,\n", ("one", "two")),
        ("a.jsonl", '{"image": "a.jpg", "captions": ["one", " ", "two"]}\n{"image": "b.jpg", "captions": "other"}', 2),
        ("a.jsonl", '{"image": "a.jpg", "text1": "one", "text2": "two"}\n{"image": "b.jpg", "text1": "other"}', 2),
    ],
)
def test_several_captions_of_an_image(tmp_path: Path, name: str, content: str, captions: object) -> None:
    source = _open(tmp_path / name, content)
    assert len(source) == 2
    assert source[0].captions == ("one", "two")
    assert source[1].captions == ("other",)
    assert pickle.loads(pickle.dumps(source))[0] == source[0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (b"b.jpg", "has 1 columns, 2 are needed"),
        (b"b.jpg,", "the caption is empty"),
        (b"b.jpg,  ", "the caption is empty"),
        (b",a dog", "the image is ''"),
        (b"b.jpg,caf\xe9", "the caption is not UTF-8; save the table as UTF-8"),
        (b"https://example.org/b.jpg,a dog", "is an address, and training fetches none; fetch them first"),
        (b"b\x00.jpg,a dog", "null character"),
    ],
)
def test_a_bad_row_keeps_its_place_and_says_why(tmp_path: Path, row: bytes, message: str) -> None:
    source = _open(tmp_path / "a.csv", b"image,caption\na.jpg,a cat\n" + row + b"\nc.jpg,a cow\n")
    assert len(source) == 3 and source[2].captions == ("a cow",)
    with pytest.raises(DataError, match=rf"a\.csv:3: .*{message}"):
        source[1]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "is a list; an object"),
        ('{"caption": "a dog"}', "has no 'image'"),
        ('{"image": 3, "caption": "a dog"}', "the image is 3; a path"),
        ('{"image": "b.jpg"}', "the caption is empty"),
        ('{"image": "b.jpg", "caption": null}', "the caption is empty"),
        ('{"image": "b.jpg", "caption": 7}', "the caption is 7; a text or a list of texts"),
        ('{"image": "b.jpg", "caption": ["a", 7]}', "the caption is 7"),
        ('{"image": "b.jpg", "caption": "\\ud800"}', "the caption is not UTF-8"),
    ],
)
def test_a_bad_line_of_json(tmp_path: Path, line: str, message: str) -> None:
    good = json.dumps({"image": "a.jpg", "caption": "a cat"})
    source = _open(tmp_path / "a.jsonl", f"{good}\n{line}\n{good.replace('a.jpg', 'c.jpg')}\n")
    assert len(source) == 3 and source[2].captions == ("a cat",)
    with pytest.raises(DataError, match=rf"a\.jsonl:2: .*{message}"):
        source[1]


@pytest.mark.parametrize(
    ("name", "content", "options", "message"),
    [
        ("a.csv", "", {}, "is empty; write a header"),
        ("a.csv", "image,caption\n", {}, "has no rows"),
        (
            "a.csv",
            "image,words\na.jpg,a cat\n",
            {},
            "no column of captions by a usual name; its columns are: image, words",
        ),
        ("a.csv", "what,caption\na.jpg,a cat\n", {}, "no column of images by a usual name"),
        (
            "a.csv",
            "image,caption\na.jpg,x\n",
            {"caption_column": "captoin"},
            "no column 'captoin'; its columns are: caption",
        ),
        (
            "a.csv",
            "image,caption\nhttp://x.org/a.jpg,x\n",
            {},
            "none of its 1 rows can be used; the first, line 2: .*img2data",
        ),
        ("a.csv", "a.jpg,b.jpg,a cat\n", {}, "no column of images"),
        ("a.csv", 'image,caption\na.jpg,"x' + "\n" * 300, {}, "the quote opened in line 2 is not closed"),
        ("a.csv", "image,caption\na.jpg," + "x" * 200_000, {}, "line 2 cannot be read: field larger"),
        ("a.jsonl", "", {}, "has no rows"),
        ("a.jsonl", "{}\n", {}, "no column of images by a usual name; its columns are: none"),
        ("a.jsonl", "1\n2\n", {}, "none of its 2 rows can be used"),
    ],
)
def test_a_table_that_cannot_be_read(
    tmp_path: Path, name: str, content: str, options: dict[str, str], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        _open(tmp_path / name, content, **options)


def test_files_that_are_not_there_or_no_tables(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        open_source(tmp_path / "nowhere.csv")
    with pytest.raises(DataError, match="cannot be read"):
        open_source("a\0.csv")
    with pytest.raises(DataError, match="a line is longer than"):
        _open(tmp_path / "a.csv", b"x" * (1 << 24) + b"xx")
    with pytest.raises(DataError, match=r"a\.csv"):
        _open(tmp_path / "a.csv", bytes(range(256)) * 50)


def test_an_open_quote_at_the_end_of_a_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="the quote opened in line 3 is not closed"):
        _open(tmp_path / "a.csv", 'image,caption\na.jpg,a cat\nb.jpg,"a dog\nc.jpg,a cow\nd.jpg,a fox\n')
