"""The Python of the pages on tasks runs as it stands, each block by itself."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest

import clip

ROOT = Path(__file__).parents[2]
PAGES = (
    *("classify", "encode", "evaluate", "inference", "probe", "queries", "search", "policies", "score"),
    *("guidance", "guidance-objective", "guidance-diffusion", "moderation"),
)
POCKET = Path(clip.__path__[0]) / "pocket.safetensors"


@pytest.mark.skipif(not POCKET.exists(), reason="pocket is not in this checkout")
@pytest.mark.parametrize("page", PAGES)
def test_the_python_of_the_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.M | re.S)
    assert blocks
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(compile(block, page, "exec"), {})
