"""The Python of docs/data.md runs as it stands."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_the_python_of_the_page_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "data.md").read_text(encoding="utf-8"), re.M | re.S)
    assert len(blocks) == 3
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, "data.md", "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    count = int(lines[0].split()[0])
    assert lines[1].split()[1] == lines[2] == str(count)
    assert len(lines) == 6 and lines[3].startswith("0 0 (8, 3, 32, 32) (8, 16)")
