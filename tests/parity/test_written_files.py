"""Files that we write are those that OpenAI's code, OpenCLIP and transformers loaded when the record was made."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

GOLDEN = Path(__file__).parents[1] / "golden" / "checkpoints"
RECORD: dict[str, Any] = json.loads((GOLDEN / "peers.json").read_text())


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("check_with_peers", GOLDEN / "check_with_peers.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def written(script: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    script.write(folder)
    return folder


def test_peers_gave_our_features() -> None:
    assert len(RECORD["differences"]) == 8
    assert max(RECORD["differences"].values()) <= 2e-6


@pytest.mark.parametrize("name", RECORD["digests"])
def test_what_is_written_is_what_peers_loaded(script: ModuleType, written: Path, name: str) -> None:
    assert script.digest(written / name) == RECORD["digests"][name]
