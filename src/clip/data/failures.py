"""Records that cannot be used: named, counted, and from some share on an error."""

from __future__ import annotations

from typing import NamedTuple

from clip.errors import ConfigError, DataError

__all__ = ["BadRecord", "Tolerance"]

_ALWAYS_TOLERATED = 10
"""Bad records that are never an error, unless none are allowed: one in the first batch says nothing about a share."""


class BadRecord(NamedTuple):
    """A record that could not be read."""

    row: int
    """Its index in the source."""
    message: str
    """Its key, what is wrong and what to do."""

    @classmethod
    def of(cls, row: int, key: str, error: Exception) -> BadRecord:
        """The key is put in front of the error unless that names it already."""
        text = str(error).removeprefix("<bytes>: ")
        return cls(row, text if not key or key in text else f"{key}: {text}")


class Tolerance:
    """Counts what was read and what failed."""

    def __init__(self, max_failures: float) -> None:
        """max_failures: the share of bad records that may be passed over, 0 to 1; 0 allows none at all."""
        if not 0 <= max_failures <= 1:
            raise ConfigError(f"max_failures is {max_failures}; it must be a share from 0 to 1")
        self._max_failures = max_failures
        self._read = self._failed = 0

    def count(self, read: int, failures: list[BadRecord]) -> None:
        """Raises DataError, with the last failure, when they have become too many."""
        self._read += read
        self._failed += len(failures)
        allowed = max(self._max_failures * self._read, _ALWAYS_TOLERATED) if self._max_failures else 0
        if failures and self._failed > allowed:
            raise DataError(
                f"{self._failed} of {self._read} records could not be read, more than the share of "
                f"{self._max_failures:g} that max_failures allows; the last: {failures[-1].message}"
            )
