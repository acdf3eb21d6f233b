"""``clip bench``: what it asks the library for, and what it prints of the answer."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip.bench import measure as measuring
from clip.bench.measure import Report

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def real_report(model_file: str) -> Report:
    """Of one configuration, which is two processes and one for the ceilings."""
    return measuring.measure([model_file], batch_sizes=(1, 2), precisions=["bf16"], rounds=1, seconds=0.001)


@pytest.fixture
def asked(real_report: Report, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the library was asked for; the answer is that of one real run."""
    arguments: dict[str, Any] = {}

    def measure(models: Any, **keywords: Any) -> Report:
        arguments.update(models=list(models), **keywords)
        keywords["on_round"]()
        return dataclasses.replace(real_report, notes=["x: left out: why"])

    monkeypatch.setattr(measuring, "measure", measure)
    return arguments


def test_tables_in_a_pipe(clip_run: Run, asked: dict[str, Any], model_file: str) -> None:
    outcome = clip_run("bench", model_file)
    assert outcome.status == 0
    assert (asked["models"], asked["batch_sizes"], asked["precisions"]) == ([model_file], [1, 8, 32], ["fp32", "auto"])
    machine, peaks, _, head, first, second, _, about, _, costs, row = outcome.lines
    assert "torch" in machine
    assert re.fullmatch(r"fastest matrix products, GFLOP/s: fp32 [\d,]+, bf16 [\d,]+.*", peaks)
    assert head.split()[:5] == ["model", "engine", "in", "batch", "images/s"]
    assert [line.split()[:4] for line in (first, second)] == [[model_file, "torch", "bf16", n] for n in ("1", "2")]
    assert about == "to the exact model, on 36 pictures and 36 texts:"
    assert costs.split()[-2:] == ["similarity", "answers"]
    assert float(row.split()[3]) > 0.999
    assert row.endswith("%")
    assert outcome.err == "clip: x: left out: why\n"
    assert clip_run("bench", "--quiet").err == ""


def test_tables_on_a_terminal(
    clip_run: Run, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, model_file: str
) -> None:
    monkeypatch.setattr("clip.cli.bench.sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "250")
    outcome = clip_run("bench", model_file)
    assert outcome.status == 0
    rows = [line.split() for line in outcome.lines if line.startswith(model_file)]
    assert [row[:4] for row in rows[:2]] == [[model_file, "torch", "bf16", n] for n in ("1", "2")]
    assert len(rows) == 3


def test_json_and_a_plot(clip_run: Run, asked: dict[str, Any], real_report: Report, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    plot = tmp_path / "speed.svg"
    outcome = clip_run("bench", "--json", "--plot", plot)
    assert outcome.status == 0
    assert json.loads(outcome.out) == {**real_report.to_dict(), "notes": ["x: left out: why"]}
    assert plot.read_bytes().startswith(b"<?xml")


def test_options_reach_the_library(clip_run: Run, asked: dict[str, Any], pictures: Path) -> None:
    call = ("--batch-size", "4, 16", "--precision", "bf16", "--rounds", 2, "--seconds", 0.25, "--threads", 1)
    outcome = clip_run("bench", "a", "b", "--random", "ViT-B/32", *call, "--pictures", pictures, "--labels", "cat,dog")
    assert outcome.status == 0
    assert (asked["models"], asked["random"], asked["batch_sizes"]) == (["a", "b"], ("ViT-B/32",), [4, 16])
    assert (asked["precisions"], asked["rounds"], asked["seconds"], asked["threads"]) == (["bf16"], 2, 0.25, 1)
    assert asked["probe"].texts == ["a photo of a cat", "a photo of a dog"]
    assert len(asked["probe"].pictures) == 4
    assert clip_run("bench", "--random", "RN50").status == 0
    assert asked["models"] == []
    assert asked["probe"] is None
    clip_run("bench")
    assert asked["models"] == ["pocket"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--batch-size", "1,two"), "--batch-size '1,two' is no list of numbers"),
        (("--labels", "cat,dog"), "--labels are for --pictures"),
        (("--pictures", "."), "no labels"),
        (("--plot", "speed.jpg"), "--plot 'speed.jpg' must end in .png, .svg, .pdf"),
        (("--precision", "bf61"), "precision is 'bf61'; it must be one of bf16"),
        (("--rounds", "0"), "0 is not in the range"),
    ],
)
def test_wrong_usage(
    clip_run: Run, arguments: tuple[str, ...], message: str, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    outcome = clip_run("bench", *arguments)
    assert outcome.status == 2
    assert message in outcome.err
    assert outcome.out == ""


def test_a_folder_without_pictures_is_told(clip_run: Run, tmp_path: Path) -> None:
    outcome = clip_run("bench", "--pictures", tmp_path, "--labels", "cat,dog")
    assert outcome.status == 2
    assert "has no pictures" in outcome.err
    assert "there are no pictures to compare precisions on" in outcome.err
