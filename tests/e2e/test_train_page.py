"""The first command and the Python of docs/train.md run as they stand, but for the number of steps."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from clip.cli.main import run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "train.md").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def _beside_the_examples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, re.M | re.S)


def test_the_first_command_prints_these_lines(capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(blocks("sh")[0].replace("\\\n", " ").replace("--epochs 150", "--epochs 2"))
    assert words[:2] == ["clip", "train"]
    assert run(words[1:]) == 0
    printed = capsys.readouterr().out.splitlines()
    said = blocks("text")[0].splitlines()
    assert [line.split()[0] for line in printed] == [line.split()[0] for line in said]
    assert printed[0] == said[0]


def test_the_python_runs(capsys: pytest.CaptureFixture[str]) -> None:
    (block,) = blocks("python")
    exec(compile(block, "train.md", "exec"), {})
    assert capsys.readouterr().out.startswith("runs/python/model.safetensors ")


def test_what_may_change_is_all_named() -> None:
    from clip.training.config import MAY_CHANGE

    paragraph = re.search(r"These may differ: (.*?), the number of processes", PAGE, re.S)
    assert paragraph is not None
    assert set(re.findall(r"`(\w+)`", paragraph[1])) == MAY_CHANGE
