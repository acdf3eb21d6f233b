"""How far a share that was counted may be trusted; for everything that is no plain share, ``evaluation.intervals``."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

from clip.errors import ShapeError

__all__ = ["LEVEL", "Interval", "wilson"]

LEVEL = 0.95
"""Of all intervals: how many of a hundred hold what they are about."""


class Interval(NamedTuple):
    """From ``low`` to ``high``."""

    low: float
    high: float


def wilson(share: float, n: int, *, level: float = LEVEL) -> Interval:
    """Of a share of ``n`` independent items (Wilson 1927). Holds for few items, and where all or none are right.

    The usual interval, share ± 1.96 standard errors, has no width there.
    """
    if n < 1 or not 0 <= share <= 1:
        raise ShapeError(f"a share of {share} of {n} items; from 0 to 1 of at least one is expected")
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * (share * (1 - share) + z2 / (4 * n)) / n) / (1 + z2 / n)
    return Interval(min(max(centre - half, 0.0), share), max(min(centre + half, 1.0), share))
