"""``clip search``: the hits of an index in each form, chosen and grouped as the options say."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clip.cli import search as verb
from clip.cli.main import run
from clip.search.index import Hit, Index, Results
from clip.search.store import Row

EXAMPLES = Path(__file__).parents[3] / "examples" / "emoji"

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The emoji, of which the doughnut is there in two sizes, and a fox whose name is no text."""
    folder = tmp_path_factory.mktemp("pictures")
    for path in EXAMPLES.glob("*.png"):
        shutil.copy(path, folder)
        os.utime(folder / path.name, (1_600_000_000, 1_600_000_000))  # 2020
    (folder / "new").mkdir()
    with Image.open(EXAMPLES / "doughnut.png") as image:
        image.resize((70, 70)).save(folder / "new" / "small.png")
    with Image.open(EXAMPLES / "fox.png") as image:
        image.resize((300, 300)).save(folder / "new" / os.fsdecode(b"\xff\n.png"))
    return folder


@pytest.fixture(scope="module")
def index(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    address = str(tmp_path_factory.mktemp("index") / "index")
    assert run(["index", str(folder), "--into", address, "--quiet"]) == 0
    return address


def test_words_find_pictures(clip_run: Run, index: str, folder: Path) -> None:
    outcome = clip_run("search", "fire", "engine", "--in", index, "-k", 3)
    assert (outcome.status, outcome.err) == (0, "")
    assert len(outcome.lines) == 3
    rank, match, similarity, path = outcome.lines[0].split()
    assert (rank, path) == ("1", str(folder / "fire_engine.png"))
    assert float(match.rstrip("%")) > 50 and 0.4 < float(similarity) < 1
    assert clip_run("search", "fire engine", "--in", index, "-k", 3).out == outcome.out


def test_the_index_of_the_environment(clip_run: Run, index: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_INDEX", index)
    assert clip_run("search", "birthday cake", "-k", 1, "--paths").out == f"{folder / 'birthday_cake.png'}\n"


def test_json_says_what_python_gives(clip_run: Run, index: str) -> None:
    outcome = clip_run("search", "a doughnut", "--in", index, "-k", 4, "--json")
    with Index.open(index) as opened:
        results = opened.search("a doughnut", k=4)
    values = [json.loads(line) for line in outcome.lines]
    assert [value["path"] for value in values] == [hit.path for hit in results.hits]
    for rank, (value, hit) in enumerate(zip(values, results.hits, strict=True), start=1):
        assert value["rank"] == rank
        assert value["match"] == pytest.approx(hit.match, rel=1e-5)
        assert value["similarity"] == pytest.approx(hit.similarity, rel=1e-5)
        assert value["alike"] == list(hit.alike)
    best = results.hits[0].row
    assert {key: values[0][key] for key in ("width", "height", "format", "metadata")} == {
        **{"width": best.width, "height": best.height, "format": "PNG", "metadata": {}}
    }
    status = Path(best.path).stat()
    assert (values[0]["size_bytes"], values[0]["modified_ns"]) == (status.st_size, status.st_mtime_ns)


def test_near_duplicates_are_folded(clip_run: Run, index: str, folder: Path) -> None:
    first = clip_run("search", "a doughnut", "--in", index).lines[0]
    assert re.fullmatch(r" 1 +\d+\.\d% +0\.\d+  .*\.png  \+1 alike", first), first
    paths = clip_run("search", "a doughnut", "--in", index, "--no-group", "--paths", "-k", 2).lines
    assert set(paths) == {str(folder / "doughnut.png"), str(folder / "new" / "small.png")}


def test_conditions_come_before_the_best_are_taken(clip_run: Run, index: str, folder: Path) -> None:
    def paths(*options: object) -> set[str]:
        found = clip_run("search", "a doughnut", "--in", index, "--no-group", "--json", *options)
        assert found.status == 0
        return {os.path.relpath(json.loads(line)["path"], folder) for line in found.lines}

    fox = "new/" + os.fsdecode(b"\xff\n.png")
    assert paths("-k", 1, "--where", "width=300") == {fox}
    assert paths("-k", 1, "--path", "*/fire*") == {"fire_engine.png"}
    assert paths("--after", "2021") == {"new/small.png", fox}
    assert len(paths("--before", "2021", "-k", 50)) == 16
    assert paths("--where", "width<90") == {"new/small.png"}
    assert paths("--where", "width>96", "--where", "format=PNG", "--path", "*/new/*") == {fox}
    sizes = {path.name: path.stat().st_size for path in folder.glob("*.png")}
    largest, limit = max(sizes, key=lambda name: sizes[name]), max(sizes.values())
    assert largest in paths("--min-size", limit, "-k", 50)
    assert largest not in paths("--max-size", f"{(limit - 1) / 1000}KB", "-k", 50)


def test_a_picture_is_looked_for(clip_run: Run, index: str, folder: Path) -> None:
    fish = folder / "fish.png"
    best = json.loads(clip_run("search", "--image", fish, "--in", index, "-k", 1, "--json").out)
    assert best["path"] == str(fish) and best["similarity"] > 0.99
    in_words = clip_run("search", f'+"{fish}"', "--in", index, "--json").out
    assert clip_run("search", "--image", fish, "--in", index, "--json").out == in_words
    both = clip_run("search", "necktie", "--image", fish, "--in", index, "--paths", "-k", 1)
    assert both.status == 0 and both.out
    outcome = clip_run("search", "--image", folder / "gone.png", "--in", index)
    assert outcome.status == 1 and "gone.png: no such file" in outcome.err


def test_an_empty_answer_says_why(clip_run: Run, index: str) -> None:
    outcome = clip_run("search", "a fox", "--in", index, "--path", "/nowhere/*")
    assert (outcome.status, outcome.out) == (0, "")
    assert outcome.err == "clip: none of the 18 pictures fulfils the conditions\n"
    outcome = clip_run("search", "a fox", "--in", index, "--min-match", 1, "--check", "--json")
    assert (outcome.status, outcome.out) == (3, "")
    assert "no picture is likely enough" in outcome.err
    assert clip_run("search", "a fox", "--in", index, "--min-match", 1, "--quiet").err == ""
    assert clip_run("search", "a fox", "--in", index, "--check").status == 0


def test_what_is_refused(clip_run: Run, index: str, tmp_path: Path, model_file: str) -> None:
    wrong = {
        ("search",): "there is no query; pass words, or --image FILE",
        ("search", "  "): "there is no query",
        ("search", "fox", "--json", "-0"): "--json and --paths exclude each other",
        ("search", "fox", "--html", tmp_path / "gone" / "x.html"): "does not exist; create it",
        ("search", "fox", "--after", "soon"): "'--after': 'soon' is no date",
        ("search", "fox", "--where", "width"): "'--where': 'width' is no condition",
        ("search", "fox", "--where", "width=wide"): "width is a number",
        ("search", "fox", "-k", 0): "-k",
        ("search", "fox AND", "--in", index): "column",
        ("search", "fox", "--in", index, "--model", model_file): "clip index --re-embed",
    }
    for arguments, message in wrong.items():
        outcome = clip_run(*arguments)
        assert (outcome.status, outcome.out) == (2, ""), arguments
        assert message in " ".join(outcome.err.split()), arguments
    nothing = tmp_path / "nothing"
    outcome = clip_run("search", "fox", "--in", nothing)
    assert (outcome.status, nothing.exists()) == (1, False)
    assert f"make one with 'clip index FOLDER --into {nothing}'" in outcome.err


def test_a_page_is_written_beside_the_table(clip_run: Run, index: str, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    outcome = clip_run("search", "a fox", "--in", index, "-k", 2, "--html", page)
    assert (outcome.status, len(outcome.lines)) == (0, 2)
    assert outcome.err == f"clip: {page}: written; open it in a browser\n"
    text = page.read_text(encoding="utf-8")
    assert "<h1>a fox</h1>" in text and text.count("data:image/jpeg") >= 2
    outcome = clip_run("search", "a fox", "--in", index, "--path", "no", "--html", page, "--quiet")
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "")
    assert "none of the 18 pictures" in page.read_text(encoding="utf-8")


def test_names_are_given_to_pipes_in_their_bytes_and_torch_is_not_imported(index: str, folder: Path) -> None:
    code = """
import sys
from clip.cli.main import run
status = run(sys.argv[1:])
heavy = {"torch", "rich", "jinja2", "faiss", "pymilvus", "ray", "pyarrow"} & set(sys.modules)
print(status, sorted(heavy), file=sys.stderr)
"""
    for option, end in (("-0", b"\0"), ("--paths", b"\n")):
        command = [sys.executable, "-c", code, "search", "fox", "--in", index, "--path", "*/new/*", option]
        done = subprocess.run(command, check=True, capture_output=True)
        assert done.stderr == b"0 []\n"
        names = [b"\xff\n.png", b"small.png"]
        assert done.stdout == b"".join(os.fsencode(folder / "new") + b"/" + name + end for name in names)


@pytest.mark.parametrize("columns", [20, 40, 71, 72, 120])
def test_a_terminal_gets_a_table_that_fits(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.chdir(tmp_path)
    paths = [str(tmp_path / "near" / "a\x1b[2J\n.jpg"), "/far/away/" + "x" * 200 + "/last.jpg", "/写真/猫猫猫猫.jpg"]
    paths.append(str(Path.home() / "home.jpg"))
    hits = tuple(
        Hit(
            path=path,
            match=0.9 / (place + 1),
            similarity=0.2,
            score=0,
            alike=("a", "b") if place else (),
            row=Row(path=path),
        )
        for place, path in enumerate(paths * 3)
    )
    verb._terminal_table(Results(query="x", hits=hits, reason=None, considered=4, total=4))
    out = capsys.readouterr().out
    lines = out.splitlines()
    assert len(lines) == 13 and "\x1b[2J" not in out
    if columns >= 40:
        from rich.cells import cell_len

        assert max(cell_len(line) for line in lines) <= columns
        assert "90.0%" in lines[1] and "+2 alike" in lines[2] and lines[2].split()[-3].endswith("last.jpg")
    if columns >= 72:
        assert "near/a\\x1b[2J\\n.jpg" in lines[1] and "█████████" in lines[1]
        assert " ~/home.jpg" in lines[4]
