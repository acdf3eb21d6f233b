"""What an examination of data finds, as records."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

import numpy as np

__all__ = ["EXAMPLES", "Example", "Finding", "Histogram", "Place", "Report", "histogram"]

EXAMPLES = 8
"""Shown of each finding."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where a record is."""

    source: str
    """Its name: the address it was opened by."""
    index: int
    key: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Example:
    """One record, or several that belong together."""

    places: tuple[Place, ...]
    text: str
    """The reason, or the caption."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    name: str
    """Stable: for programs."""
    about: str
    """What was looked for."""
    count: int
    of: int
    """How many things were looked at."""
    remedy: str
    examples: tuple[Example, ...] = ()

    @property
    def share(self) -> float:
        return self.count / self.of if self.of else 0.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """How many values lie in each range; all zero where there are none."""

    ranges: dict[str, int]
    minimum: float
    median: float
    maximum: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What an examination gave."""

    source: str
    against: tuple[str, ...]
    """Evaluation sets that were compared."""
    records: int
    pairs: int
    """Records with a readable picture and a caption: what training gets."""
    captions: int
    findings: tuple[Finding, ...]
    """All checks in a fixed order, those that found nothing too."""
    formats: dict[str, int]
    grey_pictures: int
    sides: Histogram
    """Shorter sides of the pictures in pixels."""
    aspects: Histogram
    """Longer side by shorter side."""
    context_length: int
    tokens: Histogram
    """Tokens of a caption with start and end."""
    scripts: dict[str, int]
    """Captions by the Unicode script that most of their letters have. This is no language: Latin has hundreds."""
    ascii_captions: int
    classes: dict[str, int]
    """Records of each class; empty where there are none."""
    batch_size: int
    batches_per_epoch: int
    last_batch: int
    """Pairs in the last batch of an epoch."""
    equal_captions_per_batch: float
    """Expected pairs of different records in a batch that have the same caption: each is a false negative."""

    def above(self, limit: float) -> tuple[Finding, ...]:
        """Findings whose share is larger than ``limit``."""
        return tuple(finding for finding in self.findings if finding.share > limit)


def histogram(counts: Counter[float], edges: Iterable[float]) -> Histogram:
    """Ranges up to each edge, the edge included, and one for what is above."""
    edges = list(edges)
    values = np.array(sorted(counts), np.float64)
    weights = np.array([counts[value] for value in values.tolist()], np.int64)
    names = [f"up to {edge:g}" for edge in edges] + [f"over {edges[-1]:g}"]
    places = np.searchsorted(np.array(edges), values, side="left")
    ranges = dict(zip(names, np.bincount(places, weights, minlength=len(names)).astype(int).tolist(), strict=True))
    if not len(values):
        return Histogram(ranges=ranges, minimum=0.0, median=0.0, maximum=0.0)
    cumulative = np.cumsum(weights)
    median = float(values[np.searchsorted(cumulative, cumulative[-1] / 2)])
    return Histogram(ranges=ranges, minimum=float(values[0]), median=median, maximum=float(values[-1]))
