"""The figure of a report: rates against batch size, a line for each configuration."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import TYPE_CHECKING

from clip.bench.measure import Measurement, Report, cosine_text
from clip.errors import ConfigError, choices
from clip.html_page import new_figure, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["FORMATS", "speed_figure", "write_plot"]

FORMATS = ("png", "svg", "pdf")
_MARKERS = "osD^vPX*"


def speed_figure(report: Report) -> Figure:
    """Images a second to the left, texts a second to the right, against the batch size; both axes are logarithms."""
    figure = new_figure(9.6, 4.6)
    axes = figure.subplots(1, 2)
    lines = dict.fromkeys(_name(measurement) for measurement in report.measurements)
    sizes = sorted({measurement.batch_size for measurement in report.measurements})
    for ax, kind in zip(axes, ("images", "texts"), strict=True):
        for i, line in enumerate(lines):
            rows = sorted((m for m in report.measurements if _name(m) == line), key=lambda m: m.batch_size)
            rates = [getattr(row, kind).per_second for row in rows]
            ax.plot([row.batch_size for row in rows], rates, marker=_MARKERS[i % len(_MARKERS)], label=line)
        ax.set_xscale("log", base=2)
        ax.set_yscale("log")
        ax.set_xticks(sizes, [str(size) for size in sizes])
        ax.set_xlabel("batch size")
        ax.set_title(f"{kind} a second", fontsize=10, loc="left")
        ax.yaxis.set_major_formatter(lambda value, _: f"{value:,g}")
        ax.yaxis.set_minor_formatter(lambda value, _: f"{value:,g}" if str(value)[0] in "25" else "")
        ax.grid(which="both", color="#8a8f98", alpha=0.25, linewidth=0.6)
        ax.spines[["top", "right"]].set_visible(False)
        ax.tick_params(which="both", labelsize=8)
    handles, labels = axes[0].get_legend_handles_labels()
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    for text in legend.get_texts():
        text.set_parse_math(False)  # the name of a file may hold a dollar
    figure.suptitle(str(report.machine), fontsize=8, parse_math=False)
    return figure


def _name(row: Measurement) -> str:
    name = f"{row.model}, {row.precision} by {row.engine}"
    if row.fidelity is None or row.fidelity.image_centred_cosine is None:
        return name
    return f"{name}: centred cosine {cosine_text(row.fidelity.image_centred_cosine)}"


def write_plot(report: Report, path: str | os.PathLike[str]) -> None:
    """Writes the figure as its suffix says: png, svg or pdf. Raises ConfigError for another."""
    suffix = Path(path).suffix.lower().removeprefix(".")
    if suffix not in FORMATS:
        raise ConfigError(f"{path}: a plot cannot be written as {suffix!r}; use one of {choices(suffix, FORMATS)}")
    file = io.BytesIO()
    speed_figure(report).savefig(file, format=suffix, dpi=150)
    write_atomically(path, file.getvalue())
