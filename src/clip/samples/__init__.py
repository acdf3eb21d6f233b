"""Twenty photographs and sixteen emoji with labels and captions: real pictures for measurements, offline.

None of them ever trains a model, so what one makes of them is no memory. The emoji and eight of the photographs are in
``examples/`` of the repository, too. Sources and licences: ``samples.csv`` and ``LICENSES.md`` in this folder.
"""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path

__all__ = ["Sample", "pictures"]


@dataclasses.dataclass(frozen=True, slots=True)
class Sample:
    """One picture."""

    name: str
    """``photos/cat.jpg``, ``emoji/fox.png``."""
    label: str
    """What is to be seen, in a word or two; two of the photographs share the label "flower"."""
    caption: str
    """A sentence that is true of no other of the pictures."""
    image: bytes = dataclasses.field(repr=False)
    """The file, as ``features.encode_images`` and ``images.read_pixels`` take it: JPEG with a shorter side of 256
    pixels, or PNG of 96 × 96."""


def pictures() -> list[Sample]:
    """All of them, the photographs first; 0.7 MB."""
    folder = Path(__file__).parent
    rows = csv.DictReader((folder / "samples.csv").read_text(encoding="utf-8").splitlines())
    return [Sample(row["file"], row["label"], row["caption"], (folder / row["file"]).read_bytes()) for row in rows]
