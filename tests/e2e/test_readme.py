"""What the README says is what happens: its program, its commands with their output, and what CI runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def _blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def _clip(command: str) -> str:
    words = [sys.executable, "-m", "clip", *command.split()]
    return subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout


def test_ci_runs_the_second_command() -> None:
    _, develop = _blocks("sh")
    assert develop.strip() in (ROOT / ".ci/run").read_text(encoding="utf-8").splitlines()


def test_the_program_prints_what_its_last_line_says() -> None:
    program = _blocks("python")[0]
    said = program.rstrip().rpartition("# ")[2]
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True, capture_output=True, text=True)
    assert ran.stdout.strip() == said


def test_the_first_command_prints_the_table() -> None:
    start, _ = _blocks("sh")
    printed = _clip(start.rpartition(".venv/bin/clip ")[2]).splitlines()
    # Another processor rounds otherwise: names, and shares to a point.
    pattern = re.compile(r"(\S+) +(.+?) +([\d.]+)%")
    for line, said in zip(printed, _blocks("text")[0].splitlines(), strict=True):
        (file, label, share), (said_file, said_label, said_share) = (pattern.match(x).groups() for x in (line, said))
        assert (file, label) == (said_file, said_label)
        assert abs(float(share) - float(said_share)) < 1
