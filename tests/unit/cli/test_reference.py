"""The reference in docs is what the command says."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from clip.cli.main import VERBS

ROOT = Path(__file__).parents[3]


def test_the_reference_is_current() -> None:
    # In a process of its own: click keeps the first --help that a command was asked for, so a test that ran
    # a verb without its group would change what the verb says from then on.
    script = [sys.executable, str(ROOT / "scripts" / "cli_reference.py")]
    reference = subprocess.run(script, check=True, capture_output=True, timeout=120).stdout.decode()
    stored = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert stored == reference, "run: python scripts/cli_reference.py > docs/cli.md"
    for verb in VERBS:
        assert f"## `clip {verb}`" in stored
