"""The figure of a fit: for each category precision against recall, who scores what, and whether scores are shares."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clip.errors import ConfigError
from clip.html_page import figure_svg, new_figure, write_atomically
from clip.intervals import wilson
from clip.moderation.fitted import CategoryFit, Fitted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["fit_figure", "save_fit_figure"]

_YES, _NO, _OTHER = "#3b82d9", "#e07b2e", "#8a8f98"
_BINS = 10


def fit_figure(fitted: Fitted) -> Figure:
    """One row for each category that was fitted; all of held-out pictures. Raises ConfigError if none was, and
    MissingDependencyError, with the extra, without matplotlib."""
    fits = [fit for fit in fitted.categories if fit.figures is not None]
    if not fits:
        raise ConfigError("no category was fitted, so there is nothing to plot; label more pictures")
    figure = new_figure(10.5, 3.1 * len(fits) + 0.2)
    rows = figure.subplots(len(fits), 3, squeeze=False)
    for (curve, histogram, reliability), fit in zip(rows, fits, strict=True):
        _precision_recall(curve, fit)
        _histogram(histogram, fit)
        _reliability(reliability, fit)
        for axes in (curve, histogram, reliability):
            _plain(axes)
    return figure


def save_fit_figure(fitted: Fitted, path: str | os.PathLike[str]) -> None:
    """As SVG or PNG, by the name's ending. Raises ConfigError for another, and what ``fit_figure`` raises."""
    ending = Path(path).suffix.lower()
    if ending not in (".svg", ".png"):
        raise ConfigError(f"{path}: ends in {ending or 'nothing'}; name it .svg or .png")
    figure = fit_figure(fitted)
    if ending == ".svg":
        # As a file of its own it needs its name space, and a background: what is black would vanish on black.
        svg = str(figure_svg(figure)).replace("currentColor", "#000000")
        opening = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        style = ' style="background: #ffffff; stroke-linejoin: round; stroke-linecap: butt"'
        write_atomically(
            path, '<?xml version="1.0" encoding="UTF-8"?>\n' + svg.replace("<svg", opening + style, 1) + "\n"
        )
        return
    import io

    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=150, facecolor="white", metadata={"Software": None})
    write_atomically(path, file.getvalue())


def _precision_recall(axes: Axes, fit: CategoryFit) -> None:
    assert fit.figures is not None and fit.threshold is not None
    scores, belongs = np.array(fit.scores), np.array(fit.belongs)
    last = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)
    hits, right = last + 1, np.cumsum(belongs)[last]
    recall, precision = right / belongs.sum(), right / hits
    bands = [wilson(k / n, n) for k, n in zip(right.tolist(), hits.tolist(), strict=True)]
    axes.fill_between(
        recall, [band.low for band in bands], [band.high for band in bands], color=_YES, alpha=0.15, linewidth=0
    )
    axes.plot(recall, precision, color=_YES, linewidth=1.5, label=f"fitted {fit.method}")
    found = fit.figures
    if found.precision is not None:
        axes.errorbar(
            [found.recall.value], [found.precision.value],
            xerr=[[found.recall.value - found.recall.low], [found.recall.high - found.recall.value]],
            yerr=[[found.precision.value - found.precision.low], [found.precision.high - found.precision.value]],
            color=_YES, marker="o", markersize=6, capsize=2, linewidth=1, label="at its threshold",
        )  # fmt: skip
    if fit.before is not None and fit.before.precision is not None:
        axes.plot(
            [fit.before.recall.value], [fit.before.precision.value], "s", color=_NO, markersize=6, label="policy alone"
        )
    if fit.claim is not None:
        at = axes.axhline if fit.claim.measure == "precision" else axes.axvline
        label = "target" if fit.claim.is_supported else "target, not claimed"
        at(fit.claim.target, color=_OTHER, linestyle="--", linewidth=1, label=label)
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.04)
    axes.set_xlabel("recall", fontsize=8)
    axes.set_ylabel("precision", fontsize=8)
    title = f"{fit.name}: {found.yes} of {found.pictures} held-out pictures"
    axes.set_title(title, fontsize=9, loc="left", parse_math=False)
    axes.legend(frameon=False, fontsize=7, loc="lower left")


def _histogram(axes: Axes, fit: CategoryFit) -> None:
    assert fit.threshold is not None
    scores, belongs = np.array(fit.scores), np.array(fit.belongs)
    edges = np.linspace(0, 1, 2 * _BINS + 1)
    yes, _ = np.histogram(scores[belongs], edges)
    no, _ = np.histogram(scores[~belongs], edges)
    widths = np.diff(edges)
    axes.bar(edges[:-1], yes, widths, align="edge", color=_YES, alpha=0.75, linewidth=0, label="belong")
    axes.bar(edges[:-1], -no, widths, align="edge", color=_NO, alpha=0.75, linewidth=0, label="do not")
    axes.axhline(0, color=_OTHER, linewidth=0.8)
    axes.axvline(fit.threshold, color=_OTHER, linestyle="--", linewidth=1, label="threshold")
    # Most pictures score next to nothing; on a straight scale their bar would be all there is to see.
    axes.set_yscale("symlog", linthresh=10)
    most = max(10, int(max(yes.max(), no.max())))
    ticks = [tick for tick in (10, 100, 1000, 10_000, 100_000) if tick <= most]
    axes.set_yticks([*(-tick for tick in reversed(ticks)), 0, *ticks])
    axes.set_yticklabels([str(tick) for tick in [*reversed(ticks), 0, *ticks]])
    axes.minorticks_off()
    axes.set_xlabel("score", fontsize=8)
    axes.set_ylabel("pictures", fontsize=8)
    axes.legend(frameon=False, fontsize=7, loc="upper center")


def _reliability(axes: Axes, fit: CategoryFit) -> None:
    scores, belongs = np.array(fit.scores), np.array(fit.belongs)
    axes.plot((0, 1), (0, 1), color=_OTHER, linewidth=1, linestyle="--", label="what it should be")
    # Bins of equal width: where a category is rare, nine of ten with equally many pictures would lie at nought.
    place = np.minimum((scores * _BINS).astype(int), _BINS - 1)
    bins = [part for each in range(_BINS) if len(part := np.flatnonzero(place == each))]
    shares = [float(belongs[part].mean()) for part in bins]
    bands = [wilson(share, len(part)) for share, part in zip(shares, bins, strict=True)]
    below = [share - band.low for share, band in zip(shares, bands, strict=True)]
    above = [band.high - share for share, band in zip(shares, bands, strict=True)]
    means = [float(scores[part].mean()) for part in bins]
    axes.errorbar(
        means, shares, yerr=[below, above], fmt="o", color=_YES, markersize=4, capsize=2, linewidth=1,
        label="found",
    )  # fmt: skip
    axes.set_xlim(-0.03, 1.03)
    axes.set_ylim(-0.03, 1.03)
    axes.set_xlabel("score", fontsize=8)
    axes.set_ylabel("share that belongs", fontsize=8)
    axes.legend(frameon=False, fontsize=7, loc="upper left")


def _plain(axes: Axes) -> None:
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    axes.grid(color=_OTHER, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8)
