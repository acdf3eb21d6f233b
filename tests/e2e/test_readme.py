"""What the README says is what happens: its program, its commands with their output, and what CI runs."""

from __future__ import annotations

import itertools
import re
import shutil
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


def test_the_search_finds_what_it_says(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    lines = next(block for block in _blocks("console") if "$ clip search" in block).splitlines()
    made, *searches = [place for place, line in enumerate(lines) if re.match(r"\$ clip (index|search)", line)]
    hit = re.compile(r"(\d+) +([\d.]+)%.* ([\d.]+) +\S*?(\S+)")
    assert "24 added" in lines[made + 1]
    hits = 0
    for place in (made, *searches):
        command = lines[place].removeprefix("$ clip ").partition("  ")[0]
        ran = subprocess.run(
            [sys.executable, "-m", "clip", *command.split()], cwd=tmp_path, check=True, capture_output=True, text=True
        )
        said = [match.groups() for line in lines[place + 1 : place + 4] if (match := hit.match(line))]
        found = [match.groups() for line in ran.stdout.splitlines() if (match := hit.match(line))]
        assert len(found) == len(said)
        hits += len(said)
        for (rank, share, _, path), (said_rank, said_share, _, said_path) in zip(found, said, strict=True):
            assert rank == said_rank
            assert path.endswith(said_path)
            assert abs(float(share) - float(said_share)) < 5  # bf16 or fp32
        if not said and place != made:
            assert "no picture is likely enough to match" in ran.stderr
    assert (len(searches), hits) == (2, 2)


def _said_of(verb: str) -> tuple[str, list[str]]:
    """The command of the README, and the lines below it."""
    lines = next(block for block in _blocks("console") if f"$ clip {verb}" in block).splitlines()
    [place] = [place for place, line in enumerate(lines) if line.startswith(f"$ clip {verb} ")]
    below = itertools.takewhile(lambda line: not line.startswith("$"), lines[place + 1 :])
    return re.split(r" {2,}#", lines[place].removeprefix("$ "))[0], list(below)


def _ran(command: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """By bash, as a reader would; ``clip`` is the one of this interpreter."""
    script = f'clip() {{ "{sys.executable}" -m clip "$@"; }}; {command}'
    return subprocess.run(["bash", "-c", script], cwd=folder, check=True, capture_output=True, text=True)


def test_the_policy_finds_what_it_says() -> None:
    command, said = _said_of("moderate")
    ran = _ran(command)
    printed = [*ran.stdout.splitlines(), *ran.stderr.splitlines()]
    for line, said_line in zip(printed, said, strict=True):
        score = re.compile(r"\d\.\d\d")
        assert score.sub("", line, count=1) == score.sub("", said_line, count=1)
        for one, other in zip(score.findall(line)[:1], score.findall(said_line)[:1], strict=True):
            assert abs(float(one) - float(other)) < 0.03  # bf16 or fp32


def test_the_best_pictures_are_what_it_says() -> None:
    command, said = _said_of("score")
    for line, said_line in zip(_ran(command).stdout.splitlines(), said, strict=True):
        assert line.split()[-1] == said_line.split()[-1]
        if line.split()[0][0].isdigit():
            assert abs(float(line.split()[0]) - float(said_line.split()[0])) < 0.01
