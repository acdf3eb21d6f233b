"""The figures of a report: results → matplotlib figures, in colours that hold on white and on black."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from clip.evaluation.results import CalibrationResult, FewShotResult, LinearProbeResult
from clip.html_page import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["confusion_figure", "few_shot_figure", "most_confused", "penalty_figure", "reliability_figure"]

_RIGHT, _WRONG, _OTHER = "#3b82d9", "#e07b2e", "#8a8f98"
_LONGEST_NAME = 22


def most_confused(confusion: Tensor, limit: int) -> list[int]:
    """Up to ``limit`` classes, in their order: those that are most often confused with any other, either way.

    All if they are no more than that. Where no class is confused, the first ones.
    """
    if len(confusion) <= limit:
        return list(range(len(confusion)))
    wrong = confusion - confusion.diag().diag()
    mistakes = wrong.sum(dim=0) + wrong.sum(dim=1)
    order: list[int] = mistakes.sort(descending=True, stable=True).indices[:limit].tolist()
    return sorted([i for i in order if mistakes[i]] or order)


def confusion_figure(confusion: Tensor, class_names: Sequence[str], *, limit: int = 24) -> Figure:
    """Rows: true classes; columns: what they were taken for; the stronger a cell, the larger its share of the row.

    Of more than ``limit`` classes the most confused ones are shown, and what else they were taken for as one column.
    """
    shown = most_confused(confusion, limit)
    rows = confusion[shown]
    cells = rows[:, shown]
    names = [_short(class_names[i]) for i in shown]
    columns = list(names)
    if len(shown) < len(confusion):
        cells = torch.cat([cells, (rows.sum(dim=1) - cells.sum(dim=1))[:, None]], dim=1)
        columns.append("any other")
    shares = cells.double() / rows.sum(dim=1, keepdim=True).clamp(min=1)
    side = 0.27 * len(shown) + 1.9
    figure = new_figure(max(side + 0.3, 3.6), max(side, 3.2))
    axes = figure.subplots()
    for i, row in enumerate(shares.tolist()):
        for j, share in enumerate(row):
            if share > 0:
                colour = _RIGHT if i == j else _WRONG
                axes.add_patch(_square(j, i, colour, 0.12 + 0.88 * share))
                if len(columns) <= 12:
                    axes.text(j, i, f"{100 * share:.0f}", ha="center", va="center", fontsize=8)
    axes.set_xlim(-0.5, len(columns) - 0.5)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_aspect("equal")
    axes.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8, parse_math=False)
    axes.set_yticks(range(len(shown)), names, fontsize=8, parse_math=False)
    axes.tick_params(length=0)
    axes.set_xlabel("taken for")
    axes.set_ylabel("is")
    for spine in axes.spines.values():
        spine.set_alpha(0.3)
    return figure


def _square(x: int, y: int, colour: str, alpha: float) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle((x - 0.46, y - 0.46), 0.92, 0.92, facecolor=colour, alpha=alpha, linewidth=0)


def reliability_figure(calibration: CalibrationResult) -> Figure:
    """Accuracy against confidence, before and after temperature scaling, above how many pictures have which."""
    figure = new_figure(4.6, 4.4)
    axes, counts = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    axes.plot((0, 1), (0, 1), color=_OTHER, linewidth=1, linestyle="--", label="what it should be")
    after = f"temperature {calibration.temperature:.2g}"
    for part, colour, marker, label in (
        (calibration.before, _WRONG, "o", "as it is"),
        (calibration.after, _RIGHT, "s", after),
    ):
        full = part.count > 0
        sizes = 15 + 120 * part.count[full] / part.count.sum()
        x, y = part.confidence[full].tolist(), part.accuracy[full].tolist()
        axes.plot(x, y, color=colour, linewidth=0.8, alpha=0.5)
        axes.scatter(x, y, s=sizes.tolist(), color=colour, marker=marker, label=label, zorder=3)
        widths = (part.edges[1:] - part.edges[:-1]).tolist()
        counts.bar(
            part.edges[:-1].tolist(), part.count.tolist(), widths, align="edge", color=colour, alpha=0.55, linewidth=0
        )
    axes.set_ylabel("accuracy")
    axes.set_ylim(-0.02, 1.02)
    axes.legend(frameon=False, fontsize=8, loc="upper left")
    counts.set_xlabel("confidence")
    counts.set_ylabel("pictures")
    counts.set_xlim(-0.01, 1.01)
    _plain(axes)
    _plain(counts)
    return figure


def penalty_figure(probe: LinearProbeResult) -> Figure:
    """Accuracy on the validation split against the strength of the penalty; the chosen one is marked."""
    figure = new_figure(4.6, 3.2)
    axes = figure.subplots()
    axes.plot([p.l2 for p in probe.sweep], [p.accuracy for p in probe.sweep], color=_RIGHT, marker="o", markersize=4)
    axes.axvline(probe.l2, color=_WRONG, linewidth=1, linestyle="--", label=f"chosen: {probe.l2:.3g}")
    axes.set_xscale("log")
    axes.set_xlabel("L2 penalty")
    axes.set_ylabel("validation accuracy")
    axes.legend(frameon=False, fontsize=8)
    _plain(axes)
    return figure


def few_shot_figure(result: FewShotResult) -> Figure:
    """Accuracy against pictures a class, with the interval, and zero-shot accuracy as a line."""
    figure = new_figure(4.6, 3.4)
    axes = figure.subplots()
    shots = [point.shots for point in result.points]
    values = [point.top1.value for point in result.points]
    axes.fill_between(
        shots, [p.top1.low for p in result.points], [p.top1.high for p in result.points], color=_RIGHT, alpha=0.2,
        linewidth=0,
    )  # fmt: skip
    axes.plot(shots, values, color=_RIGHT, marker="o", markersize=4, label="logistic regression")
    for point in result.points:
        axes.scatter([point.shots] * len(point.accuracies), point.accuracies, color=_RIGHT, alpha=0.4, s=8)
    if result.zero_shot is not None:
        axes.axhline(result.zero_shot.value, color=_WRONG, linewidth=1.2, linestyle="--", label="by name, zero-shot")
    axes.set_xscale("log", base=2)
    axes.set_xticks(shots, [str(number) for number in shots])
    axes.set_xlabel("pictures a class")
    axes.set_ylabel("top-1 accuracy")
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    _plain(axes)
    return figure


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(color=_OTHER, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
