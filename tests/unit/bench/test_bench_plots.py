"""The figure shows every configuration, and files are what their names say."""

from __future__ import annotations

from pathlib import Path

import pytest

from clip.bench.machine import this_machine
from clip.bench.measure import Measurement, Report, Speed
from clip.bench.plots import speed_figure, write_plot
from clip.errors import ConfigError
from clip.fidelity import Fidelity

pytest.importorskip("matplotlib")


def _report(*names: str) -> Report:
    def speed(rate: float) -> Speed:
        return Speed(
            per_second=rate,
            milliseconds=1.0,
            ratio=1.0,
            ratio_low=1.0,
            ratio_high=1.0,
            flops=1e9,
            ceiling_share=None,
            rounds=[rate],
        )

    fidelity = Fidelity(
        images=2,
        texts=2,
        image_cosine=1.0,
        image_centred_cosine=0.99963,
        text_cosine=1.0,
        text_centred_cosine=None,
        similarity_change=0.0,
        changed_answers=0,
        changed_finds=0,
    )
    rows = [
        Measurement(
            model=name,
            engine="torch",
            precision="bf16",
            device="cpu",
            batch_size=size,
            images=speed(100.0 * size + i),
            texts=speed(300.0 * size + i),
            memory_bytes=1,
            fidelity=fidelity if i else None,
        )
        for i, name in enumerate(names)
        for size in (8, 1)
    ]
    machine = this_machine(threads=1, torch="2.13.0")
    return Report(machine=machine, ceilings={}, measurements=rows, notes=[])


def test_a_line_for_each_configuration_in_order_of_batch_size() -> None:
    figure = speed_figure(_report("a$_b", "other"))
    images, texts = figure.axes
    assert [list(line.get_ydata()) for line in images.lines] == [[100, 800], [101, 801]]
    assert [list(line.get_xdata()) for line in texts.lines] == [[1, 8], [1, 8]]
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == ["a$_b, bf16 by torch", "other, bf16 by torch: centred cosine 0.9996"]


@pytest.mark.parametrize(("suffix", "magic"), [("png", b"\x89PNG"), ("SVG", b"<?xml"), ("pdf", b"%PDF")])
def test_files_are_what_their_names_say(tmp_path: Path, suffix: str, magic: bytes) -> None:
    path = tmp_path / f"speed.{suffix}"
    write_plot(_report("a$_b$"), path)
    assert path.read_bytes().startswith(magic)
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


def test_another_format_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"speed\.jpg: a plot cannot be written as 'jpg'; use one of png"):
        write_plot(_report("a"), tmp_path / "speed.jpg")
