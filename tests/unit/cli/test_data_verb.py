"""``clip data check``: what is printed, written and returned."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., Any]


@pytest.fixture
def table(pictures: Path) -> Path:
    """Four pairs, one of them with a caption that is a file name."""
    rows = [("b.png", "a bee"), ("a.JPG", "an ant"), ("inside/c.webp", "a cat"), ("d.gif", "d.gif")]
    path = pictures / "pairs.csv"
    path.write_text("file,caption\n" + "".join(f"{file},{caption}\n" for file, caption in rows))
    return path


def test_a_report_as_lines(clip_run: Run, table: Path) -> None:
    outcome = clip_run("data", "check", table)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.lines[0] == f"{table}: 4 records, 4 usable pairs, 4 captions"
    assert "25.0 %  captions that are an address or a file name, or have no letters: 1 of 4" in outcome.out
    assert "e.g. pairs.csv:5: d.gif" in outcome.out


def test_a_report_as_json_and_as_a_page(clip_run: Run, table: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    outcome = clip_run("data", "check", table, "--json", "--html", page, "--batch-size", 3, "--context-length", 4)
    assert outcome.status == 0
    about = json.loads(outcome.out)
    assert (about["records"], about["batches_per_epoch"], about["last_batch"]) == (4, 2, 1)
    findings = {finding["name"]: finding for finding in about["findings"]}
    assert findings["no-text"]["share"] == 0.25
    assert findings["no-text"]["examples"][0]["places"] == [{"source": str(table), "index": 3, "key": "pairs.csv:5"}]
    assert (findings["long-captions"]["count"], findings["same-file"]["count"]) == (1, 0)
    assert f"Data check of {table}" in page.read_text(encoding="utf-8")
    assert outcome.err == f"clip: {page}: written; open it in a browser\n"


def test_an_evaluation_set_is_compared(clip_run: Run, table: Path) -> None:
    outcome = clip_run("data", "check", table, "--against", table, "--quiet")
    assert "100.0 %  pictures of the evaluation set that are, or nearly are, in this data: 4 of 4" in outcome.out


def test_one_part_is_compared_with_another(clip_run: Run, pictures: Path) -> None:
    for part, name in (("train", "a.JPG"), ("train", "b.png"), ("test", "b.png")):
        folder = pictures / "parts" / part / "animal"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{part}_{name}").write_bytes((pictures / name).read_bytes())
    arguments = (pictures / "parts", "--split", "train", "--against", pictures / "parts", "--against-split", "test")
    outcome = clip_run("data", "check", *arguments)
    assert outcome.status == 0, outcome.err
    assert "are, or nearly are, in this data: 1 of 1" in outcome.out


@pytest.mark.parametrize(("limit", "status"), [("0.2", 3), ("0.25", 0)])
def test_a_limit_decides_the_exit_status(clip_run: Run, table: Path, limit: str, status: int) -> None:
    outcome = clip_run("data", "check", table, "--check", "--limit", limit)
    assert outcome.status == status
    assert ("no-text: 25.0 % is above the limit of 20 %" in outcome.err) == (status == 3)


def test_without_check_the_status_is_good(clip_run: Run, table: Path) -> None:
    assert clip_run("data", "check", table, "--limit", "0").status == 0


def test_messages_name_the_options_of_the_command(clip_run: Run, tmp_path: Path) -> None:
    (tmp_path / "pairs.csv").write_text("file,words\na.png,cat\n")
    outcome = clip_run("data", "check", tmp_path / "pairs.csv")
    assert outcome.status == 1
    assert "its columns are: file, words; pass --caption-column with one of them" in outcome.err


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("nonsense",),
        ("check",),
        ("check", "a.csv", "--html", "no/such/folder/page.html"),
        ("check", "a.csv", "--limit", "2"),
        ("pack", "a.csv"),
    ],
)
def test_wrong_usage(clip_run: Run, arguments: tuple[str, ...]) -> None:
    outcome = clip_run("data", *arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert "Error: " in outcome.err


def test_missing_data_is_an_error_in_one_line(clip_run: Run, tmp_path: Path) -> None:
    outcome = clip_run("data", "check", tmp_path / "none")
    assert (outcome.status, outcome.out) == (1, "")
    assert outcome.err.startswith(f"clip: error: {tmp_path / 'none'}: no such file or folder")
