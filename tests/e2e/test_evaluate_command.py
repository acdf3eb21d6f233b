"""``clip evaluate`` with pocket on the bundled emoji: what is known of them, and the answers of ``clip classify``."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import clip

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
POCKET = Path(clip.__path__[0]) / "pocket.safetensors"
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "error"}

pytestmark = pytest.mark.skipif(not POCKET.exists(), reason="pocket is not in this checkout")


def run(*arguments: object) -> str:
    command = [sys.executable, "-m", "clip", *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture(scope="module")
def truth() -> dict[str, str]:
    with (EXAMPLES / "emoji" / "labels.csv").open(encoding="utf-8", newline="") as file:
        return {row["file"]: row["label"] for row in csv.DictReader(file)}


@pytest.fixture(scope="module")
def evaluated() -> dict[str, Any]:
    names = ("--class-names", EXAMPLES / "labels.txt")
    data = ("--data", EXAMPLES / "emoji" / "labels.csv", "--caption-column", "label")
    value: dict[str, Any] = json.loads(run("evaluate", "pocket", *data, *names, "--json"))
    return value


def test_the_facts_of_the_examples(evaluated: dict[str, Any], truth: dict[str, str]) -> None:
    found = evaluated["classification"]
    assert (evaluated["images"], evaluated["failed"], found["classes"]) == (16, [], 50)
    assert found["top1"]["chance"] == 1 / 50
    assert found["majority"] == 1 / 16
    assert {row["class"] for row in found["per_class"] if row["n"]} == set(truth.values())
    assert {row["n"] for row in found["per_class"]} == {0, 1}
    assert found["calibration"] is None  # sixteen are too few to halve
    assert found["top1"]["value"] >= 9 / 16  # pocket has 10; 9 of 50 names by chance: below 1e-11
    assert found["top1"]["low"] > 0.3
    assert found["top1"]["value"] <= found["top5"]["value"] <= 1


def test_it_counts_what_classify_answers(evaluated: dict[str, Any], truth: dict[str, str]) -> None:
    lines = run("classify", EXAMPLES / "emoji", "--labels-file", EXAMPLES / "labels.txt", "--json").splitlines()
    answers = {Path(line["file"]).name: line["label"] for line in map(json.loads, lines)}
    right = {truth[file] for file, label in answers.items() if label == truth[file]}
    recalls = {row["class"]: row["recall"] for row in evaluated["classification"]["per_class"] if row["n"]}
    assert {name for name, recall in recalls.items() if recall == 1} == right
    assert evaluated["classification"]["top1"]["value"] == len(right) / 16


def test_the_page_shows_what_its_command_prints() -> None:
    page = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    match = re.search(r"```sh\nclip (.*)\n```\n\n```text\n(.*?)```", page, re.S)
    assert match is not None
    said, printed = match[2].splitlines(), run(*match[1].split()).splitlines()
    assert printed[0] == said[0]
    assert {said[1], printed[1]} <= {"bf16 by torch on cpu", "fp32 by torch on cpu"}  # as the processor has it
    number = re.compile(r" +-?[\d.]+")
    for ours, theirs in zip(printed[2:], said[2:], strict=True):
        if not theirs.startswith("found least: "):
            assert number.sub(" 0", ours) == number.sub(" 0", theirs)
        if " images" in theirs and " % " in theirs:  # another processor rounds otherwise: by one of sixteen at most
            value, said_value = (float(re.split(r" {2,}", line)[1].removesuffix(" %")) for line in (ours, theirs))
            assert value == pytest.approx(said_value, abs=100 / 16 + 0.1)
