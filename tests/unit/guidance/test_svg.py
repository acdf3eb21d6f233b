"""SVG files of outlines: valid, small, and without anything but paths."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest
import torch

from clip.errors import ConfigError
from clip.guidance.svg import svg_text
from clip.guidance.vector import Outlines, Shapes

SVG = "{http://www.w3.org/2000/svg}"


def _outlines(background: tuple[float, float, float] | None = None) -> Outlines:
    square = torch.tensor([[[0.1, 0.1], [0.9, 0.1], [0.5, 0.9]]])
    return Shapes(square[None], torch.tensor([[[1.0, 0.0, 0.5]]]), background=background).outlines()


def test_it_is_xml_with_paths_only() -> None:
    root = ET.fromstring(svg_text(_outlines((1.0, 1.0, 1.0)), title="a heart", size=64))
    assert root.tag == f"{SVG}svg"
    assert root.get("viewBox") == "0 0 1000 1000"
    assert root.get("width") == root.get("height") == "64"
    assert [child.tag for child in root] == [f"{SVG}title", f"{SVG}path", f"{SVG}path"]
    assert root[1].get("fill") == "#ffffff"
    assert set(root[2].attrib) == {"fill", "d"}


def test_without_a_background_or_size_it_is_transparent_and_scales() -> None:
    root = ET.fromstring(svg_text(_outlines()))
    assert root.get("width") is None
    assert len(root) == 1


@pytest.mark.parametrize("title", ['<script>alert(1)</script> & "quoted"', "a\x00b\x1bc\ud800d￾e", "]]>", "ハート ❤"])
def test_no_title_breaks_out(title: str) -> None:
    text = svg_text(_outlines(), title=title)
    root = ET.fromstring(text.encode())
    assert [child.tag for child in root] == [f"{SVG}title", f"{SVG}path"]
    expected = "".join(c for c in title if c >= " " and c not in "\ud800￾")
    assert root[0].text == expected


def test_a_shape_without_extent_is_left_out() -> None:
    outlines = Shapes(torch.full((1, 1, 4, 2), 0.5), torch.zeros(1, 1, 3)).outlines()
    assert svg_text(outlines).count("<path") == 1  # the background


def test_what_is_not_finite_is_refused() -> None:
    shapes = Shapes(torch.rand(1, 1, 4, 2), torch.zeros(1, 1, 3))
    with torch.no_grad():
        shapes.points[0, 0, 0, 0] = float("nan")
    with pytest.raises(ConfigError, match="not finite"):
        svg_text(shapes.outlines())


def test_it_is_small() -> None:
    shapes = Shapes.random(4, points=10, mirrored=1, generator=torch.Generator().manual_seed(0))
    assert len(svg_text(shapes.outlines())) < 4000
