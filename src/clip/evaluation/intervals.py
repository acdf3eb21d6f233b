"""How far a number may be trusted: intervals for a share, for any statistic, and for the difference of two models.

An interval answers: had we drawn other pictures from where these come from, where would the number lie? It says nothing
of pictures from elsewhere, nor of other class names, prompts or candidates, which stay as they are.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from clip.errors import ConfigError, ShapeError
from clip.evaluation.metrics import mean
from clip.evaluation.results import Measure
from clip.intervals import LEVEL, Interval, wilson

__all__ = ["Statistic", "bootstrap", "measured_share", "paired_difference"]

Statistic = Callable[[Tensor], Tensor]
"""Weights (R, N) float64 of the items → a number for each row, (R,); ``metrics.mean`` and others, with their values."""

_ELEMENTS_AT_ONCE = 1 << 22


def bootstrap(
    statistic: Statistic,
    n: int,
    *,
    clusters: Tensor | None = None,
    resamples: int = 1000,
    seed: int = 0,
    level: float = LEVEL,
) -> Interval:
    """Percentile interval of a statistic of ``n`` items (Efron 1979): it is computed again for samples drawn from them
    with replacement.

    clusters: (n,) int64, from 0 without gaps: items of one cluster, such as the captions of one image, are not
        independent, and are drawn together. None: each on its own.
    """
    if n < 1:
        raise ShapeError("there are no items to draw from")
    if resamples < 1:
        raise ConfigError(f"resamples is {resamples}; it must be at least 1")
    clusters = torch.arange(n) if clusters is None else clusters
    if clusters.shape != (n,):
        raise ShapeError(f"clusters have shape {tuple(clusters.shape)}; ({n},) is expected")
    groups = int(clusters.max()) + 1
    generator = torch.Generator().manual_seed(seed)
    rows = max(_ELEMENTS_AT_ONCE // n, 1)
    values = []
    for first in range(0, resamples, rows):
        count = min(rows, resamples - first)
        drawn = torch.randint(groups, (count, groups), generator=generator)
        times = torch.zeros(count, groups, dtype=torch.float64).scatter_add_(
            1, drawn, torch.ones(1, dtype=torch.float64).expand(count, groups)
        )
        values.append(statistic(times[:, clusters]))
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)
    low, high = torch.quantile(torch.cat(values).double(), tails).tolist()
    return Interval(low, high)


def paired_difference(
    values: Tensor, others: Tensor, *, clusters: Tensor | None = None, resamples: int = 1000, seed: int = 0
) -> tuple[float, Interval]:
    """Mean of ``values`` less mean of ``others``, both (N,) of the same items, and its interval.

    Because both are of the same items, what makes an item hard for both cancels: the interval is narrower than two
    separate ones suggest. If it does not hold 0, one is better. Where no item tells the two apart, every sample is the
    same; the interval is then as wide as the share of items that might (Wilson's upper bound for none).
    """
    if values.shape != others.shape:
        raise ShapeError(f"{len(values)} values and {len(others)} others; they must be of the same items")
    differences = values.double() - others.double()
    if not differences.any():
        groups = len(values) if clusters is None else int(clusters.max()) + 1
        most = wilson(0.0, groups).high
        return 0.0, Interval(-most, most)
    interval = bootstrap(
        functools.partial(mean, differences), len(values), clusters=clusters, resamples=resamples, seed=seed
    )
    return float(differences.mean()), interval


def measured_share(
    name: str,
    title: str,
    values: Tensor,
    *,
    of: str,
    chance: float | None = None,
    statistic: Callable[..., Tensor] = mean,
    clusters: Tensor | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> Measure:
    """A number from 0 to 1 made of ``values`` (N,), with its interval.

    statistic: called as ``statistic(values, weights=...)``.
    The mean of independent hits and misses has Wilson's interval. Everything else has that of the bootstrap, except
    where all or nothing is right: every sample is then the same, and Wilson's of as many items as there are clusters
    takes its place.
    """
    value = float(statistic(values))
    groups = len(values) if clusters is None else int(clusters.max()) + 1
    is_plain = statistic is mean and groups == len(values) and bool(((values == 0) | (values == 1)).all())
    if is_plain or value in (0.0, 1.0):
        low, high = wilson(value, groups)
    else:
        low, high = bootstrap(
            lambda weights: statistic(values, weights=weights),
            len(values),
            clusters=clusters,
            resamples=resamples,
            seed=seed,
        )
    return Measure(
        name=name,
        title=title,
        value=value,
        low=low,
        high=high,
        n=len(values),
        of=of,
        chance=chance,
        interval="wilson" if is_plain or value in (0.0, 1.0) else "bootstrap",
    )
