"""Films of frames, read back."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clip.errors import ConfigError, MissingDependencyError, ShapeError
from clip.guidance.film import write_frames, write_gif, write_mp4


def _frames(count: int = 6, side: int = 33) -> list[NDArray[np.uint8]]:
    frames = []
    for i in range(count):
        frame = np.full((side, side, 3), 255, np.uint8)
        frame[: 4 + 4 * i, :10] = (200, 30, 30 + 20 * i)
        frames.append(frame)
    return frames


def test_a_gif_runs_for_ever_and_keeps_its_colours(tmp_path: Path) -> None:
    write_gif(tmp_path / "a.gif", _frames(), seconds=1.2, last=1.0)
    with Image.open(tmp_path / "a.gif") as image:
        assert (getattr(image, "n_frames", 1), image.info["loop"], image.size) == (6, 0, (33, 33))
        assert image.info["duration"] == 200
        for i, frame in enumerate(_frames()):
            image.seek(i)
            assert np.abs(np.asarray(image.convert("RGB")).astype(int) - frame).max() <= 8
        assert image.info["duration"] == 1200
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_a_film_has_even_sides_and_all_frames(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    write_mp4(tmp_path / "a.mp4", _frames(), seconds=1.0, last=0.5)
    with av.open(str(tmp_path / "a.mp4")) as container:
        shown = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(shown) == 9
    assert shown[0].shape == (32, 32, 3)
    assert np.abs(shown[-1].astype(int) - _frames()[-1][:32, :32]).mean() < 12


def test_without_pyav_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MissingDependencyError, match=r"everyclip\[video\]"):
        write_mp4(tmp_path / "a.mp4", _frames())
    assert not list(tmp_path.iterdir())


def test_frames_are_numbered_files(tmp_path: Path) -> None:
    write_frames(tmp_path / "way", _frames(3))
    assert sorted(path.name for path in (tmp_path / "way").iterdir()) == ["0000.png", "0001.png", "0002.png"]
    with Image.open(tmp_path / "way" / "0002.png") as image:
        assert (np.asarray(image) == _frames(3)[2]).all()


def test_what_is_no_film_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no frames"):
        write_gif(tmp_path / "a.gif", [])
    with pytest.raises(ShapeError, match="frame 1"):
        write_gif(tmp_path / "a.gif", [_frames()[0], _frames(side=20)[0]])
    with pytest.raises(ConfigError, match="at most"):
        write_gif(tmp_path / "a.gif", [np.broadcast_to(np.uint8(0), (1 << 14, 1 << 14, 3))] * 2)
