"""``clip draw`` draws what was asked for: a judge that it knows nothing of says so."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from drawing_judge import Judge
from PIL import Image

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge.load(ROOT / "tests/golden/draw/judge.safetensors")


def _pixels(path: Path) -> torch.Tensor:
    """(3, H, W) in [0, 1]"""
    with Image.open(path) as image:
        picture = image.convert("RGBA")
    page = Image.new("RGBA", picture.size, "white")
    page.alpha_composite(picture)
    return torch.from_numpy(np.asarray(page.convert("RGB")).copy()).permute(2, 0, 1).float() / 255


def test_the_judge_knows_pictures_that_it_did_not_learn_from(judge: Judge) -> None:
    folder = ROOT / "src/clip/samples/emoji"  # Noto
    assert judge.ranked(_pixels(folder / "fox.png"))[0] == "fox"
    assert "fish" in judge.ranked(_pixels(folder / "fish.png"))[:5]


@pytest.mark.parametrize(("prompt", "noun"), [("a yellow star", "star")])
def test_a_judge_names_the_drawing_right(judge: Judge, tmp_path: Path, prompt: str, noun: str) -> None:
    command = [sys.executable, "-m", "clip", "draw", prompt, "-o", str(tmp_path / "drawing.png")]
    began = time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
    print(f"{time.monotonic() - began:.0f} s\n{done.stdout}")
    assert done.stdout.splitlines()[0].endswith(prompt)
    assert noun in judge.ranked(_pixels(tmp_path / "drawing.png"))[:3]
    assert len(judge.names) > 200
