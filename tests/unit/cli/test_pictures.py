"""Arguments → paths."""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clip.cli.pictures import count, find


def found(*arguments: object) -> tuple[list[str], list[str]]:
    """Paths, and what was said."""
    problems: list[str] = []
    return list(find([str(argument) for argument in arguments], on_problem=problems.append)), problems


def test_a_folder_gives_its_pictures_sorted_with_those_inside(pictures: Path) -> None:
    names = ["a.JPG", "b.png", "d.gif", "inside/c.webp"]
    assert found(pictures) == ([str(pictures / name) for name in names], [])
    assert count([str(pictures)]) == 4


def test_links_to_folders_are_not_followed(pictures: Path) -> None:
    (pictures / "loop").symlink_to(pictures)
    (pictures / "link.png").symlink_to(pictures / "b.png")
    assert len(found(pictures)[0]) == 5


def test_named_files_are_given_as_they_are_in_the_order_of_the_arguments(pictures: Path) -> None:
    names = [pictures / "notes.txt", "gone.png", pictures / "b.png", pictures / "b.png"]
    assert found(*names) == ([str(name) for name in names], [])


def test_patterns(pictures: Path) -> None:
    assert found(pictures / "*.png") == ([str(pictures / "b.png")], [])
    assert found(f"{pictures}/**/*.webp") == ([str(pictures / "inside" / "c.webp")], [])
    assert found(pictures / "*.bmp") == ([], [f"{pictures}/*.bmp: has no pictures"])


def test_a_file_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    path = tmp_path / "a[1].png"
    path.touch()
    assert found(path) == ([str(path)], [])


def test_a_folder_without_pictures_is_told(tmp_path: Path) -> None:
    assert found(tmp_path) == ([], [f"{tmp_path}: has no pictures"])


def test_stdin_is_a_list_in_any_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"a b.png\r\n\nc\xff.png\n-\nlast")))
    assert found("first", "-") == (["first", "a b.png", os.fsdecode(b"c\xff.png"), "-", "last"], [])
    assert count(["-", "x"]) is None


def test_stdin_is_read_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stdin:
        buffer: Iterator[bytes] = (b"%d.png\n" % i for i in itertools.count())

    monkeypatch.setattr("sys.stdin", Stdin())
    assert list(itertools.islice(find(["-"], on_problem=str), 2)) == ["0.png", "1.png"]


def test_a_folder_that_cannot_be_read_is_told_and_passed_over(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def guarded(folder: str) -> Any:  # root may read every folder, so permissions would not do
        if folder.endswith("inside"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", guarded)
    paths, problems = found(pictures)
    assert [Path(path).name for path in paths] == ["a.JPG", "b.png", "d.gif"]
    assert problems == [f"{pictures}/inside: cannot be read (Permission denied)"]
