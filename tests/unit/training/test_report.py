from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from clip.errors import ConfigError, DataError, MissingDependencyError
from clip.training.report import MetricsWriter, plot, read_metrics


def write(folder: Path, *lines: dict[str, float], length: int = 0, tensorboard: bool = False) -> int:
    with MetricsWriter(folder, length, is_first=True, tensorboard=tensorboard) as metrics:
        for line in lines:
            metrics.write(line)
        return metrics.forced_to_disk()


def test_lines_come_back_in_order(tmp_path: Path) -> None:
    length = write(tmp_path, {"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0})
    assert length == (tmp_path / "metrics.jsonl").stat().st_size
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}]


def test_what_came_after_the_checkpoint_is_cut(tmp_path: Path) -> None:
    length = write(tmp_path, {"step": 1, "loss": 2.5})
    write(tmp_path, {"step": 2, "loss": 9.0}, length=length)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 3, "lo')
    write(tmp_path, {"step": 2, "loss": 2.0}, length=length)
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.5}, {"step": 2, "loss": 2.0}]


def test_the_newest_values_are_known(tmp_path: Path) -> None:
    length = write(tmp_path, {"step": 1, "loss": 2.5, "validation/top1": 0.5})
    with MetricsWriter(tmp_path, length, is_first=True) as metrics:
        assert metrics.last == {"loss": 2.5, "validation/top1": 0.5}
        metrics.write({"step": 2, "loss": 1.0})
        assert metrics.last == {"loss": 1.0, "validation/top1": 0.5}


def test_other_processes_write_nothing(tmp_path: Path) -> None:
    with MetricsWriter(tmp_path, 0, is_first=False) as metrics:
        metrics.write({"step": 1, "loss": 1.0})
        assert metrics.forced_to_disk() == 0
    assert not list(tmp_path.iterdir())


def test_a_cut_last_line_is_left_out_and_a_bad_one_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"st')
    assert read_metrics(tmp_path) == [{"step": 1}]
    path.write_text('{"step": 1}\nnonsense\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: not a JSON object with a step"):
        read_metrics(tmp_path)
    with pytest.raises(DataError, match="give the folder of a run"):
        read_metrics(tmp_path / "nowhere")


def lines(count: int) -> list[dict[str, float]]:
    numbers = [
        {
            "step": step,
            "loss": 5 / step,
            "logit_scale": 14.0 + step,
            "learning_rate": 1e-3,
            "gradient_norm": 1.0,
            "samples_per_second": 100.0,
            "wait_share": 0.1,
        }
        for step in range(1, count)
    ]
    return [*numbers, {"step": count, "validation/top1": 0.5, "validation/nll": 1.5, "validation/images": 9.0}]


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_curves_are_drawn(tmp_path: Path, suffix: str) -> None:
    write(tmp_path, *lines(30))
    file = tmp_path / f"curves.{suffix}"
    plot(tmp_path, file)
    if suffix == "png":
        with Image.open(file) as image:
            assert image.width > 1000
            assert len(image.convert("RGB").getcolors(1 << 24) or []) > 10  # not an empty page
    if suffix == "svg":
        content = file.read_text()
        assert content.count('<g id="axes_') == 8
        assert "validation" in content or "axes_8" in content


@pytest.mark.parametrize(
    ("file", "error", "message"),
    [
        ("curves.gif", ConfigError, r"a picture of curves ends in \.png, \.svg or \.pdf"),
        ("nowhere/curves.png", ConfigError, "cannot be written .* check the folder"),
    ],
)
def test_pictures_that_cannot_be(tmp_path: Path, file: str, error: type[Exception], message: str) -> None:
    write(tmp_path, *lines(3))
    with pytest.raises(error, match=message):
        plot(tmp_path, tmp_path / file)


def test_a_run_without_lines(tmp_path: Path) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match="has no lines yet"):
        plot(tmp_path, tmp_path / "curves.png")


def test_missing_libraries_name_their_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, *lines(3))
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name.startswith(("matplotlib", "torch.utils.tensorboard")):
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingDependencyError, match=r"install everyclip\[plots\]"):
        plot(tmp_path, tmp_path / "curves.png")
    with pytest.raises(MissingDependencyError, match=r"install everyclip\[tensorboard\]"):
        write(tmp_path, tensorboard=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside tensorboard
def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    write(tmp_path, {"step": 1, "loss": 2.5}, {"step": 2, "validation/top1": 0.5}, tensorboard=True)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(tmp_path / "tensorboard"))
    board.Reload()
    assert [(event.step, event.value) for event in board.Scalars("train/loss")] == [(1, 2.5)]
    assert [(event.step, event.value) for event in board.Scalars("validation/top1")] == [(2, 0.5)]
    assert json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[0]) == {"step": 1, "loss": 2.5}
