"""``clip duplicates``: the clusters of an index in each form."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clip.cli.main import run

EXAMPLES = Path(__file__).parents[3] / "examples" / "emoji"

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four pictures; of the fox two copies, and of the fish one that is larger and one that is compressed."""
    folder = tmp_path_factory.mktemp("pictures")
    for place, name in enumerate(("fox", "fish", "broom", "desert")):
        shutil.copy(EXAMPLES / f"{name}.png", folder)
        os.utime(folder / f"{name}.png", (1_600_000_000 + place, 1_600_000_000 + place))
    for name in ("copy.png", os.fsdecode(b"copy\n\xff.png")):
        shutil.copy(EXAMPLES / "fox.png", folder / name)
        os.utime(folder / name, (1_700_000_000, 1_700_000_000))
    with Image.open(EXAMPLES / "fish.png") as image:
        image.resize((200, 200)).save(folder / "large fish.png")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.convert("RGBA").getchannel("A"))
        flat.save(folder / "fish.jpg", quality=60)
    for number in range(3):  # blank pictures are not compared, but one is a copy of another
        Image.new("RGB", (20, 20 + number // 2), "red").save(folder / f"red {number}.png")
    return folder


@pytest.fixture(scope="module")
def index(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    address = str(tmp_path_factory.mktemp("index") / "index")
    assert run(["index", str(folder), "--into", address, "--quiet"]) == 0
    return address


def _names(*paths: str) -> list[str]:
    return [os.path.basename(path) for path in paths]  # noqa: PTH119  # as the command gives it, whatever it is


def test_clusters_with_the_picture_to_keep(clip_run: Run, index: str, folder: Path) -> None:
    outcome = clip_run("duplicates", "--in", index)
    assert outcome.status == 0
    fox_bytes = (EXAMPLES / "fox.png").stat().st_size
    lines = outcome.lines
    assert [line.partition(";")[0] for line in lines if not line.startswith(" ")] == [
        *("3 pictures, the same file", "3 pictures, nearly the same", "2 pictures, the same file")
    ]
    assert f"to keep one frees {2 * fox_bytes / 1000:.0f} kB" in lines[0] or fox_bytes < 5000
    assert lines[1].startswith(f"  keep  {folder / 'fox.png'}  96 × 96, PNG, ")
    assert lines[2].startswith(f"        {folder}/copy")
    assert f"{folder}/copy\\n\\xff.png" in outcome.out  # harmless on a terminal
    assert lines[5].startswith(f"  keep  {folder / 'large fish.png'}  200 × 200")
    assert outcome.err.startswith(f"clip: {index}: 3 clusters, 5 beside the pictures to keep, with ")
    assert clip_run("duplicates", "--in", index, "--quiet").err == ""


def test_json(clip_run: Run, index: str, folder: Path) -> None:
    clusters = [json.loads(line) for line in clip_run("duplicates", "--in", index, "--json").lines]
    assert [_names(cluster["keep"])[0] for cluster in clusters] == ["fox.png", "large fish.png", "red 0.png"]
    assert _names(*clusters[0]["others"]) == [os.fsdecode(b"copy\n\xff.png"), "copy.png"]
    assert _names(*clusters[1]["others"]) == ["fish.png", "fish.jpg"]  # of the same size, the oldest first
    assert [cluster["same_file"] for cluster in clusters] == [True, False, True]
    assert clusters[0]["freed_bytes"] == 2 * (folder / "fox.png").stat().st_size


def test_equal_files_alone_and_conditions(clip_run: Run, index: str) -> None:
    outcome = clip_run("duplicates", "--in", index, "--same-file", "--json")
    assert [_names(json.loads(line)["keep"])[0] for line in outcome.lines] == ["fox.png", "red 0.png"]
    outcome = clip_run("duplicates", "--in", index, "--path", "*/red*", "--json")
    assert len(outcome.lines) == 1
    outcome = clip_run("duplicates", "--in", index, "--path", "*/broom*", "--check")
    assert (outcome.status, outcome.out) == (0, "")
    assert outcome.err == f"clip: {index}: no two pictures are alike\n"
    assert clip_run("duplicates", "--in", index, "--check").status == 3


def test_paths_are_those_to_spare_in_their_bytes(index: str, folder: Path) -> None:
    for option, end in (("-0", b"\0"), ("--paths", b"\n")):
        command = [sys.executable, "-m", "clip", "duplicates", "--in", index, "--same-file", option]
        done = subprocess.run(command, check=True, capture_output=True)
        names = (b"copy\n\xff.png", b"copy.png", b"red 1.png")
        assert done.stdout == b"".join(os.fsencode(folder) + b"/" + name + end for name in names)


def test_a_page(clip_run: Run, index: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    outcome = clip_run("duplicates", "--in", index, "--html", page)
    assert len(outcome.lines) == 11 and f"clip: {page}: written" in outcome.err
    text = page.read_text(encoding="utf-8")
    assert text.count("data:image/jpeg") == 8 and text.count("<b>keep</b>") == 3


def test_what_is_refused(clip_run: Run, index: str, tmp_path: Path) -> None:
    assert clip_run("duplicates", "--in", index, "--json", "--paths").status == 2
    assert clip_run("duplicates", "--in", index, "--html", tmp_path / "gone" / "x.html").status == 2
    outcome = clip_run("duplicates", "--in", tmp_path / "nothing")
    assert outcome.status == 1 and "make one with 'clip index FOLDER" in outcome.err
