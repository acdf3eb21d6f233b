"""What the name of a published model tells that its weights do not: activation and pixel statistics.

Facts from OpenCLIP's list of pretrained weights (``open_clip/pretrained.py``) and from the model cards.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

from clip.config import Activation

__all__ = ["Tag", "find_tag"]


@dataclasses.dataclass(frozen=True, slots=True)
class Tag:
    """A family of published models."""

    pattern: str
    """Found in the lower-case name of a repository, folder or file, with underscores as dashes."""
    activation: Activation
    preprocess: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Fields of Preprocess that differ from OpenAI's."""


_HALF = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}

# The first that matches counts, so exceptions stand before their rule.
_TAGS = [
    Tag(r"quickgelu", "quick_gelu"),
    Tag(r"metaclip.*(v1\.2|altogether)|h14-v1\.2-altogether", "gelu"),
    Tag(r"metaclip|[bl](16|32|14)-(400m|fullcc)|h14-fullcc", "quick_gelu"),
    Tag(r"dfn5b", "quick_gelu", {"resize": "squash"}),
    Tag(r"dfn2b.*39b", "gelu"),
    Tag(r"dfn2b", "quick_gelu"),
    Tag(r"laion400m", "gelu"),  # B/32, the exception, says quickgelu in its file's name
    Tag(r"l-14-laion2b|l-14.*laion2b", "gelu", _HALF),
    Tag(r"laion2b|datacomp|commonpool", "gelu"),
    Tag(r"yfcc15m|cc12m", "quick_gelu"),
    Tag(r"openai", "quick_gelu"),
]


def find_tag(name: str) -> Tag | None:
    """The family that a repository id, folder or file name belongs to, or None."""
    folded = name.lower().replace("_", "-")
    return next((tag for tag in _TAGS if re.search(tag.pattern, folded)), None)
