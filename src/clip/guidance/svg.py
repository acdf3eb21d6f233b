"""Outlines → a small SVG file: paths and colours, nothing that runs, loads or refers to anything."""

from __future__ import annotations

import math
from html import escape

from torch import Tensor

from clip.errors import ConfigError
from clip.guidance.vector import Outlines

__all__ = ["svg_text"]

_UNITS = 1000
"""Of the viewBox along a side: whole numbers are then as fine as an eye can see on paper."""


def svg_text(outlines: Outlines, *, title: str = "", size: int | None = None) -> str:
    """The file, which ends with a line break; coordinates are whole thousandths of the side.

    title: what a browser shows as a tooltip and reads aloud; characters that XML has no place for are left out.
    size: width and height in pixels; without it the picture fills the place that it is put in.
    Raises ConfigError for coordinates or colours that are not finite.
    """
    sides = f' width="{size}" height="{size}"' if size else ""
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_UNITS} {_UNITS}"{sides}>']
    if title:
        lines.append(f"<title>{escape(_xml(title))}</title>")
    if outlines.background is not None:
        lines.append(f'<path fill="{_hex(outlines.background)}" d="M0 0h{_UNITS}v{_UNITS}H0z"/>')
    for curves, colour in zip(outlines.curves, outlines.colours.tolist(), strict=True):
        parts: list[str] = []
        for part in map(_path, curves):
            if part not in parts:  # a shape that has no twin is there twice
                parts.append(part)
        if d := "".join(parts):
            lines.append(f'<path fill="{_hex(colour)}" d="{d}"/>')
    return "\n".join([*lines, "</svg>\n"])


def _path(curves: Tensor) -> str:
    """(K, 4, 2) → path data relative to the last point, which is shortest; nothing for an outline without extent."""
    if not bool(curves.isfinite().all()):
        raise ConfigError("an outline holds coordinates that are not finite and cannot be drawn")
    points = [[(round(x * _UNITS), round(y * _UNITS)) for x, y in curve] for curve in curves.tolist()]
    if len({point for curve in points for point in curve}) < 3:
        return ""
    at_x, at_y = points[0][0]
    data = f"M{at_x} {at_y}c"
    numbers: list[int] = []
    for curve in points:
        for x, y in curve[1:]:
            numbers += [x - at_x, y - at_y]
        at_x, at_y = curve[3]
    # A minus sign separates numbers by itself.
    return data + "".join(f" {n}" if i and n >= 0 else f"{n}" for i, n in enumerate(numbers)) + "z"


def _hex(colour: tuple[float, float, float] | list[float]) -> str:
    if not all(math.isfinite(value) for value in colour):
        raise ConfigError("a colour is not finite and cannot be drawn")
    return "#" + "".join(f"{min(max(round(value * 255), 0), 255):02x}" for value in colour)


def _xml(text: str) -> str:
    """Without the characters that no XML may hold, even escaped."""
    kept = (c for c in text if c in "\t\n" or (c >= " " and not 0xD800 <= ord(c) <= 0xDFFF and c not in "\ufffe\uffff"))
    return " ".join("".join(kept).split())
