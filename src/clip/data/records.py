"""What a source gives: one image with its captions, not yet decoded; and what a source is."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Protocol

__all__ = ["Sample", "Source"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One record of a source."""

    key: str
    """Names the record in messages: ``photos/a.jpg``, ``pairs.csv:17``, ``00003.tar:000031``."""
    image: Path | bytes
    """A file, or the bytes of one; not yet decoded."""
    captions: tuple[str, ...]
    """At least one; training draws one each time."""
    label: int | None = None
    """The place of its class in the source's ``class_names``; None where there are no classes."""


class Source(Protocol):
    """Records in a fixed order, read one at a time and in any order. Must be picklable: workers get a copy."""

    @property
    def name(self) -> str:
        """For messages and reports: the address it was opened by."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty where records have captions and no classes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Sample:
        """Reads one record. Raises DataError (with file and record) when it cannot be read; the stream goes on."""
