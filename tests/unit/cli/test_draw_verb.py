"""``clip draw``, with pocket and few steps."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from clip.cli.console import Session
from clip.cli.draw import command
from clip.errors import CheckpointError, ConfigError, DataError

QUICK = ("--steps", "3", "--candidates", "2", "--shapes", "2", "--size", "64", "--quiet")


@pytest.fixture
def draw() -> Callable[..., Result]:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(command, arguments, obj=Session(), standalone_mode=False, catch_exceptions=True)

    return invoke


def test_it_writes_all_that_is_asked_for_and_says_what_it_is(draw: Callable[..., Result], tmp_path: Path) -> None:
    outputs = [str(tmp_path / f"heart.{suffix}") for suffix in ("svg", "png", "gif")]
    frames = tmp_path / "frames"
    result = draw("a red heart", *(part for path in outputs for part in ("-o", path)), "--frames", str(frames), *QUICK)
    assert result.exception is None
    assert result.return_value == 0
    assert ET.parse(outputs[0]).getroot()[0].text == "a red heart"
    with Image.open(outputs[1]) as image:
        assert image.size == (64, 64)
    with Image.open(outputs[2]) as image:
        assert getattr(image, "n_frames", 1) == 3
    assert len(list(frames.iterdir())) == 3
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert all("%" in line for line in lines)


def test_the_same_seed_gives_the_same_file(draw: Callable[..., Result], tmp_path: Path) -> None:
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        assert draw("a fish", "-o", str(tmp_path / f"{name}.svg"), "--seed", seed, *QUICK).return_value == 0
    a, b, c = (Path(tmp_path / f"{name}.svg").read_bytes() for name in "abc")
    assert a == b
    assert a != c


@pytest.mark.parametrize("style", ["strokes", "pixels", "fourier"])
def test_every_style_draws(draw: Callable[..., Result], style: str, tmp_path: Path) -> None:
    result = draw("a fish", "-o", str(tmp_path / "fish.png"), "--style", style, *QUICK)
    assert result.exception is None
    assert (tmp_path / "fish.png").exists()


def test_it_goes_on_from_a_checkpoint_and_refuses_another(draw: Callable[..., Result], tmp_path: Path) -> None:
    state, svg = str(tmp_path / "state"), tmp_path / "sun.svg"
    assert draw("the sun", "-o", str(svg), "--resume", state, *QUICK).return_value == 0
    first = svg.read_bytes()
    assert draw("the sun", "-o", str(svg), "--resume", state, *QUICK).return_value == 0
    assert svg.read_bytes() == first
    assert isinstance(
        draw("the sun", "-o", str(svg), "--resume", state, *QUICK, "--seed", "5").exception, CheckpointError
    )


@pytest.mark.parametrize(
    ("output", "style", "words"),
    [("a.jpg", "shapes", ".svg"), ("a", "shapes", "ends with none"), ("a.svg", "pixels", "no paths")],
)
def test_a_file_that_cannot_be_is_wrong_usage(
    draw: Callable[..., Result], output: str, style: str, words: str, tmp_path: Path
) -> None:
    result = draw("a fish", "-o", str(tmp_path / output), "--style", style)
    assert getattr(result.exception, "exit_code", None) == 2
    assert words in str(getattr(result.exception, "message", ""))


def test_what_cannot_be_drawn_is_told_before_the_work(draw: Callable[..., Result], tmp_path: Path) -> None:
    assert isinstance(draw("a fish", "-o", str(tmp_path / "none" / "a.svg")).exception, DataError)
    assert isinstance(draw(" ", "-o", str(tmp_path / "a.svg"), *QUICK).exception, ConfigError)
