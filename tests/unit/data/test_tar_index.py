"""Tar files of every dialect give their records; damaged and hostile ones give an error that says where."""

from __future__ import annotations

import contextlib
import gzip
import io
import tarfile
from pathlib import Path

import pytest

from clip.data.tar_index import ShardIndex, read_index
from clip.errors import DataError

FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}


def write(path: Path, members: list[tuple[str, bytes]], dialect: str = "ustar") -> Path:
    with tarfile.open(path, "w", format=FORMATS[dialect]) as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def contents(path: Path, index: ShardIndex, role: str) -> list[bytes | None]:
    data = path.read_bytes()
    places = [index.member(i, role) for i in range(len(index))]
    return [place and data[place.offset : place.offset + place.size] for place in places]


@pytest.mark.parametrize("dialect", FORMATS)
def test_records_are_members_in_a_row_with_one_key(tmp_path: Path, dialect: str) -> None:
    members = [("a/000.jpg", b"J0"), ("a/000.txt", b"T0"), ("a/000.json", b"{}"), ("001.PNG", b"P1"), ("001.cls", b"7")]
    path = write(tmp_path / "0.tar", members, dialect)
    index = read_index(path)
    assert list(index.keys) == ["a/000", "001"] and list(index.image_extensions) == ["jpg", "png"]
    assert contents(path, index, "image") == [b"J0", b"P1"]
    assert contents(path, index, "txt") == [b"T0", None]
    assert contents(path, index, "cls") == [None, b"7"]
    assert (index.count("image"), index.count("json"), index.count("captions.json")) == (2, 1, 0)


@pytest.mark.parametrize("dialect", ["gnu", "pax"])
def test_long_and_foreign_names(tmp_path: Path, dialect: str) -> None:
    names = ["x" * 150, "café/" + "ü" * 120, "d/" * 120 + "k"]
    path = write(
        tmp_path / "0.tar", [(name + ext, ext.encode()) for name in names for ext in (".jpg", ".txt")], dialect
    )
    index = read_index(path)
    assert list(index.keys) == names
    assert contents(path, index, "txt") == [b".txt"] * 3


def test_a_key_ends_at_the_first_dot_of_the_last_element(tmp_path: Path) -> None:
    names = ["v1.0/cat.1.jpg", "v1.0/cat.jpg", "v1.0/cat.seg.png", "v1.0/cat.captions.json", "./dog.webp"]
    index = read_index(write(tmp_path / "0.tar", [(name, b"x") for name in names]))
    assert list(index.keys) == ["v1.0/cat", "./dog"]  # cat.1.jpg has the extension 1.jpg, which is none of ours
    assert index.count("captions.json") == 1


def test_what_is_no_record_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    with tarfile.open(path, "w") as tar:
        for name, kind in [("folder", tarfile.DIRTYPE), ("l.jpg", tarfile.SYMTYPE), ("h.jpg", tarfile.LNKTYPE)]:
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, "/etc/passwd"
            tar.addfile(info)
        for name in ("README", ".hidden.jpg", "a.mp4", "a.jpg", "a.txt"):
            info = tarfile.TarInfo(name)
            info.size = 1
            tar.addfile(info, io.BytesIO(b"x"))
    assert list(read_index(path).keys) == ["a"]


def test_the_first_of_several_images_by_preference(tmp_path: Path) -> None:
    path = write(tmp_path / "0.tar", [("a.webp", b"W"), ("a.jpg", b"J"), ("a.png", b"P")])
    assert contents(path, read_index(path), "image") == [b"J"]


def test_a_record_written_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"two members 'a\.JPG' in one record"):
        read_index(write(tmp_path / "0.tar", [("a.jpg", b"J"), ("a.JPG", b"J")]))


def test_an_empty_archive_and_an_empty_file(tmp_path: Path) -> None:
    assert len(read_index(write(tmp_path / "0.tar", []))) == 0
    (tmp_path / "1.tar").touch()
    assert len(read_index(tmp_path / "1.tar")) == 0


def test_compressed_archives_are_named(tmp_path: Path) -> None:
    path = tmp_path / "0.tar"
    path.write_bytes(gzip.compress(write(tmp_path / "1.tar", [("a.jpg", b"J")]).read_bytes()))
    with pytest.raises(DataError, match=r"is compressed with gzip.*decompress the shards"):
        read_index(path)


def _header(name: str = "a.jpg", size: bytes = b"00000000001\0", kind: bytes = b"0") -> bytes:
    header = bytearray(512)
    header[: len(name)] = name.encode()
    header[124:136] = size
    header[148:156] = b" " * 8
    header[156:157] = kind
    header[257:265] = b"ustar\x0000"
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header)


def _pax(body: bytes) -> bytes:
    return _header("pax", b"%011o\0" % len(body), b"x") + body.ljust(512, b"\0") + _header() + bytes(512)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "cut off in the header at byte 0"),
        (b"x" * 512, "no tar header at byte 0"),
        (_header() + b"J".ljust(512, b"\0") + b"b.jpg", "is cut off in the header at byte 1024"),
        (_header(size=b"77777777777\0"), "is cut off at byte 512, in the member at byte 0"),
        (_header(size=b"\xff" * 12), "is cut off|no tar header"),
        (_header(size=b"-0000000001\0"), "no tar header at byte 0 .*is not an octal number"),
        (_header()[:100] + b"9" + _header()[101:], "its checksum is wrong"),
        (_header(size=b"00001000000\0", kind=b"L") + bytes(1 << 18), "the name at byte 0 has 262144 bytes"),
        (_pax(b"99 path=x\n"), "the extended header at byte 0 is malformed"),
        (_pax(b"5 a=\n"), "|"),
        (_pax(b"0 a=b\n"), "malformed"),
        (_pax(b"nonsense"), "malformed"),
        (_pax(b"11 size=-5\n"), "is cut off"),
        (_pax(b"12 size=xyz\n"), "no tar header at byte 1024"),
    ],
)
def test_damaged_archives(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "0.tar").write_bytes(content)
    if message == "|":
        read_index(tmp_path / "0.tar")
        return
    with pytest.raises(DataError, match=message):
        read_index(tmp_path / "0.tar")


def test_every_cut_of_an_archive_is_read_or_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "0.tar", [("a.jpg", b"J" * 700), ("a.txt", b"T"), ("b.jpg", b"J")], "pax").read_bytes()
    for length in range(0, len(whole), 64):
        (tmp_path / "1.tar").write_bytes(whole[:length])
        with contextlib.suppress(DataError):
            assert len(read_index(tmp_path / "1.tar")) <= 2


def test_a_size_beyond_the_octal_field(tmp_path: Path) -> None:
    (tmp_path / "0.tar").write_bytes(_header(size=b"\x80" + bytes(10) + b"\x03") + b"abc".ljust(512, b"\0"))
    index = read_index(tmp_path / "0.tar")
    assert contents(tmp_path / "0.tar", index, "image") == [b"abc"]


def test_an_index_comes_back_from_its_file_until_the_shard_changes(tmp_path: Path) -> None:
    index = read_index(write(tmp_path / "0.tar", [("a.jpg", b"J"), ("a.txt", b"T"), ("b.png", b"P")]))
    file = tmp_path / "folder" / "index.npz"
    index.save(file, (1, 2))
    again = ShardIndex.load(file, (1, 2))
    assert again is not None and list(again.keys) == ["a", "b"] and list(again.image_extensions) == ["jpg", "png"]
    assert [again.member(i, "image") for i in range(2)] == [index.member(i, "image") for i in range(2)]
    assert ShardIndex.load(file, (1, 3)) is None
    file.write_bytes(file.read_bytes()[:-200])
    assert ShardIndex.load(file, (1, 2)) is None
    assert ShardIndex.load(tmp_path / "nowhere", (1, 2)) is None
    assert [path.name for path in file.parent.iterdir()] == ["index.npz"]
