"""The numbers of a run: appended as JSON lines while it trains, read again, and drawn as curves."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip.errors import ConfigError, DataError, MissingDependencyError

__all__ = ["MetricsWriter", "StepReport", "Window", "plot", "read_metrics"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step did, over all processes; for a progress bar."""

    step: int
    """Steps done."""
    total_steps: int
    samples: int
    """Pairs in this step."""
    loss: float
    """NaN where a single pair was left of the epoch, which has nothing to be compared with and makes no step."""
    logit_scale: float
    """Already exponentiated."""
    learning_rate: float
    gradient_norm: float
    seconds: float
    wait_seconds: float
    """Of those, waiting for data on this process."""


class Window:
    """Sums over the steps between two lines of metrics."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def add(self, report: StepReport) -> None:
        self.reports.append(report)

    def metrics(self) -> dict[str, float]:
        last = self.reports[-1]
        seconds = sum(report.seconds for report in self.reports)
        losses = [report.loss for report in self.reports if math.isfinite(report.loss)]
        return {
            "step": last.step,
            **({"loss": sum(losses) / len(losses)} if losses else {}),
            "logit_scale": last.logit_scale,
            "learning_rate": last.learning_rate,
            "gradient_norm": last.gradient_norm,
            "seconds": seconds,
            "samples_per_second": sum(report.samples for report in self.reports) / seconds,
            "wait_share": sum(report.wait_seconds for report in self.reports) / seconds,
        }


class MetricsWriter(contextlib.AbstractContextManager["MetricsWriter"]):
    """Appends lines to ``metrics.jsonl``, on the first process only, and to TensorBoard where asked.

    The file is cut to ``length`` at first: what an interrupted run wrote after its last checkpoint comes again.
    """

    def __init__(self, folder: Path, length: int, *, is_first: bool, tensorboard: bool = False) -> None:
        self.last: dict[str, float] = {}
        """The newest value of each number."""
        self._path = folder / "metrics.jsonl"
        self._file: Any = None
        self._board: Any = None
        if not is_first:
            return
        if tensorboard:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError as error:
                raise MissingDependencyError(
                    "--tensorboard needs tensorboard; install everyclip[tensorboard]"
                ) from error
        self._file = self._path.open("a+b")
        self._file.truncate(min(length, self._file.seek(0, os.SEEK_END)))
        steps = [0]
        for line in read_metrics(folder):
            self.last |= {key: value for key, value in line.items() if key != "step"}
            steps.append(int(line["step"]))
        if tensorboard:
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=steps[-1] + 1)

    def write(self, line: Mapping[str, float]) -> None:
        """Appends one line. It has a ``step``; other names may hold a ``/`` after the name of what was measured."""
        self.last |= {key: value for key, value in line.items() if key != "step"}
        if self._file is None:
            return
        self._file.write((json.dumps(dict(line)) + "\n").encode())
        self._file.flush()
        if self._board is not None:
            for name, value in line.items():
                if name != "step":
                    self._board.add_scalar(name if "/" in name else f"train/{name}", value, int(line["step"]))

    def forced_to_disk(self) -> int:
        """The length of the file, all of which is on the disk."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return int(self._file.seek(0, os.SEEK_END))

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The lines of a run's ``metrics.jsonl``; the last one is left out if a kill has cut it."""
    path = Path(folder) / "metrics.jsonl"
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give the folder of a run") from error
    found = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            value = json.loads(line)
            found.append({"step": value["step"], **value})
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}, line {number}: not a JSON object with a step") from error
    return found


def plot(folder: str | os.PathLike[str], file: str | os.PathLike[str]) -> None:
    """Draws loss, scale, learning rate, gradient, speed and validation of a run over its steps, as PNG, SVG or PDF."""
    file = Path(file)
    if file.suffix.lower() not in (".png", ".svg", ".pdf"):
        raise ConfigError(f"{file}: a picture of curves ends in .png, .svg or .pdf")
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependencyError("drawing curves needs matplotlib; install everyclip[plots]") from error
    lines = read_metrics(folder)
    if not lines:
        raise DataError(f"{Path(folder) / 'metrics.jsonl'} has no lines yet; train some steps first")
    panels = _panels(lines)
    rows = -(-len(panels) // 2)
    figure = Figure(figsize=(11, 2.8 * rows + 0.5), layout="constrained")  # of its own: no window, no global state
    FigureCanvasAgg(figure)
    figure.suptitle(f"{Path(folder).resolve().name}: {int(lines[-1]['step'])} steps", fontsize=11)
    places = figure.subplots(rows, 2, squeeze=False).flat
    for axes, (title, curves) in zip(places, panels.items(), strict=False):
        axes.set_title(title, fontsize=10)
        for name in curves:
            points = [(line["step"], line[name]) for line in lines if name in line]
            mark = "o" if len(points) < 20 else None
            axes.plot(*zip(*points, strict=True), marker=mark, markersize=3, linewidth=1.2, label=_short(name))
        if len(curves) > 1:
            axes.legend(fontsize=8, frameon=False)
        axes.set_xlim(0, lines[-1]["step"])
        axes.set_xlabel("step", fontsize=8)
        axes.tick_params(labelsize=8)
        axes.grid(alpha=0.25, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        if title in _SHARES:
            axes.set_ylim(-0.02, 1.02)
    for axes in list(places):
        axes.set_visible(False)
    try:
        figure.savefig(file, dpi=130)
    except OSError as error:
        raise ConfigError(f"{file} cannot be written ({error.strerror}); check the folder") from error


_SHARES = ("share of time waiting for data", "validation")


def _panels(lines: list[dict[str, float]]) -> dict[str, list[str]]:
    """Title of each picture → the names of its curves."""
    names = dict.fromkeys(name for line in lines for name in line)
    validation = [name for name in names if "/" in name]
    shares = [name for name in validation if name.endswith(("top1", "mean_per_class")) or "recall@" in name]
    panels = {
        "loss": ["loss"],
        "logit scale": ["logit_scale"],
        "learning rate": ["learning_rate"],
        "gradient norm before clipping": ["gradient_norm"],
        "samples per second": ["samples_per_second"],
        "share of time waiting for data": ["wait_share"],
        "validation": shares,
        **{_short(name): [name] for name in validation if name not in shares and not name.endswith("/images")},
    }
    present = {title: [name for name in curves if name in names] for title, curves in panels.items()}
    return {title: curves for title, curves in present.items() if curves}


def _short(name: str) -> str:
    return name.removeprefix("validation/").replace("_", " ").replace("/", " ")
