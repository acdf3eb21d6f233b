"""Folders → files, and nothing that is none."""

from __future__ import annotations

import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from clip.search.walk import PictureFile, is_gone, walk


def walked(root: Path | str) -> tuple[list[str], list[str]]:
    """Paths in their order, and what could not be looked at."""
    unreadable: list[str] = []
    files = list(walk(str(root), on_unreadable=lambda path, error: unreadable.append(path)))
    return [file.path for file in files], unreadable


def touch(path: Path | str) -> str:
    with open(path, "wb") as file:  # noqa: PTH123
        file.write(b"12345")
    return str(path)


def test_a_file_comes_with_its_size_and_time(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.jpg")
    os.utime(path, ns=(7, 1_234_567_890_123_456_789))
    expected = PictureFile(path, 5, 1_234_567_890_123_456_789)
    for root in (str(tmp_path), path):
        assert list(walk(root, on_unreadable=lambda path, error: pytest.fail(path))) == [expected]


def test_the_order_is_that_of_the_bytes_of_the_paths(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a.b").mkdir()
    names = ["a.jpg", "a/z.jpg", "a.b/c.png", "a0.gif", "Z.PNG", "ü.webp", os.fsdecode(b"\xff.jpg"), "\U0001f600.jpg"]
    paths = [touch(f"{tmp_path}/{name}") for name in names]
    assert walked(tmp_path) == (sorted(paths, key=os.fsencode), [])


def test_what_is_no_picture_is_passed_over_unopened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = [touch(tmp_path / "a\nb.jpg"), touch(tmp_path / f"{'x' * 251}.jpg")]
    for name in ("notes.txt", ".hidden.jpg", "jpg", ".jpg"):
        touch(tmp_path / name)
    (tmp_path / ".folder").mkdir()
    touch(tmp_path / ".folder" / "inside.jpg")
    (tmp_path / "folder.jpg").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    monkeypatch.chdir(tmp_path)  # the name of a socket may have 108 bytes only
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("socket.jpg")
        (tmp_path / "null.jpg").symlink_to("/dev/null")
        (tmp_path / "to-pipe.jpg").symlink_to("pipe.jpg")
        (tmp_path / "broken.jpg").symlink_to("nowhere")
        assert walked(tmp_path) == (sorted(good), [])  # opening a pipe would never return
        assert walked(tmp_path / "pipe.jpg") == ([], [str(tmp_path / "pipe.jpg")])


def test_links_lead_to_files_but_not_to_folders(tmp_path: Path) -> None:
    (tmp_path / "inside").mkdir()
    real = touch(tmp_path / "inside" / "real.jpg")
    (tmp_path / "link.jpg").symlink_to(real)
    (tmp_path / "inside" / "up").symlink_to(tmp_path)
    (tmp_path / "self.jpg").symlink_to("self.jpg")
    assert walked(tmp_path) == ([real, str(tmp_path / "link.jpg")], [str(tmp_path / "self.jpg")])
    assert walked(tmp_path / "inside" / "up" / "inside")[0] == [str(tmp_path / "inside" / "up" / "inside" / "real.jpg")]


def test_folders_as_deep_as_the_system_allows_and_deeper(tmp_path: Path) -> None:
    here = os.getcwd()  # noqa: PTH109
    try:
        os.chdir(tmp_path)
        for depth in range(1400):  # beyond Python's limit of recursion, and beyond 4096 bytes
            if depth in (1050, 1390):
                touch("deep.jpg")
            os.mkdir("dd")  # noqa: PTH102
            os.chdir("dd")
        paths, unreadable = walked(tmp_path)
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-r", tmp_path / "dd"], check=True)  # pytest's own cleaning recurses
    assert [path.removeprefix(str(tmp_path)) for path in paths] == ["/dd" * 1050 + "/deep.jpg"]
    assert len(unreadable) == 1 and len(unreadable[0]) >= 4090


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closed").mkdir()
    touch(tmp_path / "closed" / "a.jpg")
    good = touch(tmp_path / "b.jpg")
    scandir = os.scandir

    def guarded(folder: str) -> Any:  # root may read every folder, so permissions would not do
        if folder.endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    assert walked(tmp_path) == ([good], [str(tmp_path / "closed")])
    assert walked(tmp_path / "nowhere") == ([], [str(tmp_path / "nowhere")])


def test_what_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = touch(tmp_path / "there.jpg")
    touch(tmp_path / "shard.tar")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "broken.jpg").symlink_to("nowhere")
    assert not is_gone(there)
    assert not is_gone(str(tmp_path / "broken.jpg"))  # what it leads to may come back
    assert is_gone(str(tmp_path / "nowhere" / "a.jpg"))
    assert is_gone(str(tmp_path / "folder.jpg"))
    assert is_gone(f"{there}/was-a-folder.jpg")
    assert not is_gone(str(tmp_path / "shard.tar" / "member.jpg"))
    assert is_gone(str(tmp_path / "other.tar" / "member.jpg"))

    def fails(path: str) -> Any:
        raise OSError(5, "Input/output error", path)

    monkeypatch.setattr(os, "lstat", fails)
    assert not is_gone(there)
