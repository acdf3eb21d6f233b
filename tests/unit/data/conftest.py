"""Small pictures with captions, as files; and a home of its own, so that no test fills the user's cache."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    home = str(tmp_path_factory.mktemp("home"))
    monkeypatch.setenv("HOME", home)
    monkeypatch.setenv("USERPROFILE", home)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Twelve pictures with one caption each; grey level and caption tell their number. Two are a folder deeper."""
    root = tmp_path / "pictures"
    (root / "deeper").mkdir(parents=True)
    for i in range(12):
        path = root / ("deeper" if i >= 10 else "") / f"{i:02}.png"
        Image.fromarray(np.full((10, 12, 3), 20 * i, dtype=np.uint8)).save(path)
        path.with_suffix(".txt").write_text(f"picture number {i}\n", encoding="utf-8")
    return root
