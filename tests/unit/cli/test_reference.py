"""The reference in docs is what the command says."""

from __future__ import annotations

import runpy
from pathlib import Path

from clip.cli.main import VERBS

ROOT = Path(__file__).parents[3]


def test_the_reference_is_current() -> None:
    reference = runpy.run_path(str(ROOT / "scripts" / "cli_reference.py"))["reference"]()
    stored = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert stored == reference, "run: python scripts/cli_reference.py > docs/cli.md"
    for verb in VERBS:
        assert f"## `clip {verb}`" in stored
