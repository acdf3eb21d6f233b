"""What is wanted of pictures, as data: categories in words, thresholds, and what follows. Files: ``policy_file``."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any, Literal

__all__ = ["ACTIONS", "SEVERITIES", "Action", "Category", "Exemption", "Policy", "Severity", "Target"]

Action = Literal["allow", "flag", "block"]
ACTIONS: tuple[Action, ...] = ("allow", "flag", "block")
"""From the mildest: of several categories that a picture falls into, the strictest decides."""

Severity = Literal["low", "medium", "high", "critical"]
SEVERITIES: tuple[Severity, ...] = ("low", "medium", "high", "critical")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a threshold is chosen for, where no number is given."""

    measure: Literal["precision", "recall"]
    value: float
    """Above 0 and below 1."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Exemption:
    """Pictures of a category to which something milder happens. Exactly one of the three says which."""

    prompts: tuple[str, ...] = ()
    """Words that fit the picture better than those of the category do."""
    path: str | None = None
    """Pattern (``fnmatch``) of the whole path, as it was given."""
    sha256: str | None = None
    """Of the file, in lower-case hexadecimal digits."""
    action: Action = "allow"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Category:
    """One thing that is looked for."""

    name: str
    """Lower-case words joined by hyphens."""
    prompts: tuple[str, ...]
    """What such pictures show, each in words of its own; at least one."""
    counter_prompts: tuple[str, ...] = ()
    """What looks or sounds like it and is none: a water pistol, a pillow fight."""
    examples: tuple[str, ...] = ()
    """Paths of such pictures, absolute."""
    counter_examples: tuple[str, ...] = ()
    """Paths of pictures that are none."""
    threshold: float | None = None
    """The score (0 to 1) from which on a picture belongs to it; exactly one of this and ``target`` is given."""
    target: Target | None = None
    action: Action = "flag"
    severity: Severity = "medium"
    exemptions: tuple[Exemption, ...] = ()
    description: str = ""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """All that pictures are held against."""

    name: str
    categories: tuple[Category, ...]
    background: tuple[str, ...] = ()
    """Prompts for pictures that are nobody's concern, beside those that every policy has."""
    templates: tuple[str, ...] = ()
    """Strings with ``{}`` around each prompt; those of ``clip.prompts`` where there are none."""
    unreadable: Action = "flag"
    """For a file that is no picture, or is too large: nobody knows what it shows."""
    description: str = ""

    @property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides: equal exactly if two policies are; example pictures count by their contents."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON."""
        return dataclasses.asdict(self)
