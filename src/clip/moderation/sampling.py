"""Which of many frames are worth a look: the first, the last, and those that differ most."""

from __future__ import annotations

from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from clip.moderation.looks import difference

__all__ = ["MostDifferent", "evenly"]

_SAME = 3.0
"""Frames that differ by less are taken for one; noise of compression does more rarely."""

T = TypeVar("T")


class MostDifferent(Generic[T]):
    """Of frames that come one by one, a few that are as different from each other as can be.

    Whatever comes first is kept. Among the others a newcomer takes the place of one of the closest two, if it is
    farther from all that are kept than those two are from each other. So a single strange frame among many that are
    alike stays; among as many strange ones as there are places it may be lost.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._signatures: list[NDArray[np.float32]] = []
        self._apart = np.zeros((0, 0), np.float32)
        self.kept: list[T] = []

    def place_for(self, signature: NDArray[np.float32], *, is_last: bool = False) -> int | None:
        """Where to put it (``put``), or None: not wanted, for those that are kept show as much."""
        if not self.kept:
            return 0
        away = difference(np.stack(self._signatures), signature)
        if away.min() < _SAME:
            return None
        if len(self.kept) < self._limit:
            return len(self.kept)
        if self._limit == 1:
            return None
        if is_last:
            return 1 + int(away[1:].argmin())
        closest = np.unravel_index(self._apart.argmin(), self._apart.shape)
        return int(max(closest)) if away.min() > self._apart.min() else None

    def put(self, place: int, signature: NDArray[np.float32], item: T) -> None:
        """Keeps the item in that place, instead of whatever is there."""
        if place == len(self.kept):
            self.kept.append(item)
            self._signatures.append(signature)
            larger = np.full((place + 1, place + 1), np.inf, np.float32)
            larger[:-1, :-1] = self._apart
            self._apart = larger
        else:
            self.kept[place] = item
            self._signatures[place] = signature
        away = difference(np.stack(self._signatures), signature)
        self._apart[place] = self._apart[:, place] = away
        self._apart[place, place] = np.inf


def evenly(count: int, wanted: int) -> list[int]:
    """At most so many of ``range(count)``, the first and (where there is more than one) the last among them."""
    if wanted >= count:
        return list(range(count))
    return sorted({round(i * (count - 1) / max(wanted - 1, 1)) for i in range(max(wanted, 1))})
