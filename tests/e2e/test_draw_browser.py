"""A drawing as a browser shows it is the drawing as it was optimised."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip.guidance.svg import svg_text
from clip.guidance.vector import Shapes

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: install chromium to look at the drawing")


def test_the_browser_shows_what_was_drawn(tmp_path: Path) -> None:
    shapes = Shapes.random(5, points=10, mirrored=1, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        shapes.points += 0.03 * torch.randn(shapes.points.shape, generator=torch.Generator().manual_seed(1))
    page, shot = tmp_path / "drawing.svg", tmp_path / "shot.png"
    page.write_text(svg_text(shapes.outlines(), title="<a> & b", size=300), encoding="utf-8")
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [
        f"--user-data-dir={tmp_path / 'profile'}",
        f"--screenshot={shot}",
        "--window-size=300,300",
        page.as_uri(),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    with Image.open(shot) as image:
        found = np.asarray(image.convert("RGB")).astype(np.float32)[:300, :300] / 255
    expected = shapes(300)[0].detach().permute(1, 2, 0).numpy()
    # Browsers antialias with 16 samples or so of each pixel, and round the coordinates as the file does.
    assert np.abs(found - expected).mean() < 0.005
