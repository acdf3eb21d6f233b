"""What comes to be indexed: one picture, from wherever it comes, before it is decoded."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

__all__ = ["Item"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A picture that is to be decoded and embedded."""

    path: str
    """What it is called in the index (``Row.path``)."""
    image: str | bytes
    """The file to read, or the bytes of one."""
    size_bytes: int | None = None
    modified_ns: int | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)
