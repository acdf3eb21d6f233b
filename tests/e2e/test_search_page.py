"""Pages of hits in a browser: they fit a phone, follow the dark, and run nothing that a file name holds."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clip.cli.main import run

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
EXAMPLES = Path(__file__).parents[2] / "examples" / "emoji"
HOSTILE = "\"><img src=x onerror=document.title='hacked'><script>document.title='hacked'<!--.png".replace("/", "")

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: install chromium to look at the page")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``search.html`` and ``duplicates.html``, made by the commands."""
    folder = tmp_path_factory.mktemp("pages")
    pictures = folder / "pictures"
    shutil.copytree(EXAMPLES, pictures)
    shutil.copy(EXAMPLES / "fox.png", pictures / HOSTILE)
    shutil.copy(EXAMPLES / "fox.png", pictures / ("a_long_name_without_a_blank" * 8 + ".png"))
    index = str(folder / "index")
    assert run(["index", str(pictures), "--into", index, "--quiet"]) == 0
    (pictures / "fish.png").unlink()
    (pictures / "broom.png").write_bytes(b"no picture any more")
    for verb in (["search", HOSTILE.replace('"', "")], ["duplicates"]):
        assert run([*verb, "--in", index, "--html", str(folder / f"{verb[0]}.html"), "--quiet"]) == 0
    return folder


def _chromium(page: Path, profile: Path, *options: str) -> str:
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={profile}", *options, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, timeout=120, text=True).stdout


def _screenshot(page: Path, folder: Path, width: int, *options: str) -> NDArray[np.uint8]:
    shot = folder / "shot.png"
    _chromium(page, folder / "profile", f"--screenshot={shot}", f"--window-size={width},1600", *options)
    with Image.open(shot) as picture:
        return np.asarray(picture.convert("RGB"))


@pytest.mark.parametrize(
    ("name", "options"), [("search", ()), ("duplicates", ("--blink-settings=preferredColorScheme=0",))]
)
def test_it_fits_a_phone_in_light_and_dark(name: str, options: tuple[str, ...], pages: Path, tmp_path: Path) -> None:
    pixels = _screenshot(pages / f"{name}.html", tmp_path, 390, *options)
    assert pixels.shape == (1600, 390, 3)
    assert (pixels[0, 0] < 128).all() == bool(options)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100  # pictures, not an empty page
    assert (pixels[:, -8:] == pixels[0, -1]).all()  # the margin is free: nothing runs out at the right


def test_names_do_nothing_and_pictures_are_there(pages: Path, tmp_path: Path) -> None:
    dom = _chromium(pages / "search.html", tmp_path / "profile", "--dump-dom")
    assert "hacked" in re.findall(r"<h1>.*?</h1>", dom, re.S)[0]  # as text, in the query
    assert "<title>hacked" not in dom and "<script" not in dom
    assert not re.findall(r"<[^>]*\sonerror=[^>]*>", re.sub(r'"[^"]*"', '""', dom))
    assert dom.count('src="data:image/jpeg;base64,') >= 15
    assert "not there any more" in dom and "cannot be read" in dom
    assert "2 alike" in dom
