"""Pages of reports: hostile values stay text, nothing is loaded, files are whole or not there."""

from __future__ import annotations

import base64
import hashlib
import html.parser
import io
import json
import re
import sys
from pathlib import Path

import jinja2
import numpy as np
import pytest
from PIL import Image

from clip.errors import ClipError, ConfigError, MissingDependencyError
from clip.html_page import figure_svg, new_figure, page, page_with_script, readable, thumbnail, write_atomically

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onload='alert(1)",
    "</style></title><iframe src=//example.org>",
    "{{ 7 * 7 }}{% raw %}",
    "&lt;b&gt; &amp; <!-- -->",
    "]]></svg><svg onload=alert(1)>",
]
GRID = """
<div class="grid">{% for name in names %}{{ picture(uri, name) }}{% endfor %}</div>
<p>{{ bar(0.25) }} {{ bar(7) }} {{ share|percent }} {{ count|thousands }} {{ nan|percent }}</p>
"""


class _Tags(html.parser.HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def _page(names: list[str]) -> str:
    uri = thumbnail(np.zeros((300, 200, 3), np.uint8))
    return page(names[0], GRID, names=names, uri=uri, share=0.1234, count=1234567, nan=float("nan"))


def test_hostile_names_stay_text() -> None:
    tags = _Tags(_page(HOSTILE))
    assert {tag for tag, _ in tags.found} <= {
        *("html", "head", "meta", "title", "style", "body", "main", "h1", "div", "figure", "img", "figcaption"),
        *("p", "span", "i", "footer"),
    }
    for _, attributes in tags.found:
        assert not [name for name in attributes if name.startswith("on")]
    captions = [attributes["alt"] for tag, attributes in tags.found if tag == "img"]
    assert captions == HOSTILE
    assert all(name in tags.texts for name in HOSTILE)


def test_a_page_loads_nothing_and_its_policy_forbids_it() -> None:
    text = _page(["plain"])
    tags = _Tags(text).found
    policy = next(a["content"] for t, a in tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    assert "script" not in policy
    assert not re.search(r"https?:|@import|url\(", text)
    assert all((attributes["src"] or "").startswith("data:") for tag, attributes in tags if tag == "img")
    assert "prefers-color-scheme: dark" in text
    assert text.startswith("<!doctype html>")


def test_a_script_of_ours_is_known_by_its_hash_and_hostile_data_are_data() -> None:
    script = "const s = 'é < 3 && \\u003c';"
    text = page_with_script(HOSTILE[0], "<p>{{ name }}</p>", script=script, data=HOSTILE, values={"name": HOSTILE[1]})
    assert text.count("<script") == text.count("</script") == 2
    assert f"<script>{script}</script>" in text
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'; require-trusted-types-for 'script'" in text
    data = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[0]
    assert json.loads(data) == HOSTILE and not re.search("[<>&]", data)
    assert "runs no script" not in text and "runs no script" in _page(["plain"])


@pytest.mark.parametrize("script", ["'</script>'", "'</SCRIPT '", "<!-- -->"])
def test_a_script_that_would_end_its_element_is_refused(script: str) -> None:
    with pytest.raises(ConfigError, match="its element would end"):
        page_with_script("t", "", script=script, data={}, values={})


def test_file_names_for_people() -> None:
    assert readable("fox 🦊.png") == "fox 🦊.png"
    assert readable("a\udcff\n\u202e\x00") == "a\\xff\\n\\u202e\\x00"


def test_filters_and_bars() -> None:
    text = _page(["plain"])
    assert "12.3 % 1\u202f234\u202f567 –" in text
    assert "width:25.0%" in text
    assert "width:100.0%" in text


def test_a_missing_value_is_an_error() -> None:
    with pytest.raises(jinja2.UndefinedError):
        page("title", "{{ typo }}")


def test_names_that_are_not_utf8_can_be_written(tmp_path: Path) -> None:
    write_atomically(tmp_path / "page.html", _page(["a\udcff.jpg"]))
    assert "a?.jpg" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "P", "1", "CMYK"])
def test_thumbnails_are_small_pictures_and_leave_theirs_alone(mode: str) -> None:
    image = Image.new(mode, (300, 150))
    uri = thumbnail(image, side=40)
    assert image.size == (300, 150)
    head, data = uri.split(",")
    assert head == "data:image/jpeg;base64"
    with Image.open(io.BytesIO(base64.b64decode(data))) as small:
        assert small.size == (40, 20)


def test_small_and_thin_pictures() -> None:
    for size, expected in [((3, 5), (3, 5)), ((1000, 1), (96, 1))]:
        with Image.open(io.BytesIO(base64.b64decode(thumbnail(Image.new("RGB", size)).split(",")[1]))) as small:
            assert small.size == expected


def test_a_figure_is_inline_svg_without_addresses_or_ids_that_clash() -> None:
    def drawn() -> str:
        figure = new_figure()
        axes = figure.subplots()
        axes.plot([1, 2, 3], [3, 1, 2], marker="o")
        axes.set_title("<script>alert(1)</script> 猫", parse_math=False)
        svg = figure_svg(figure)
        assert not figure.axes  # closed
        return svg

    svg = drawn()
    assert svg == drawn()
    assert svg.startswith("<svg")
    assert "<script" not in svg
    assert "&lt;script" in svg
    assert "currentColor" in svg
    assert "http" not in svg
    assert "<style" not in svg
    used = set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', svg))
    known = set(re.findall(r' id="([^"]+)"', svg))
    assert {left or right for left, right in used} == known
    assert str(svg) in page("plot", "{{ svg }}", svg=svg)


def test_a_figure_of_pyplot_is_closed() -> None:
    from matplotlib import pyplot

    figure = pyplot.figure()
    figure_svg(figure)
    assert figure.number not in pyplot.get_fignums()


def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingDependencyError, match=r"everyclip\[plots\]"):
        new_figure()


def test_files_are_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "page.html"
    write_atomically(target, "one")
    write_atomically(target, "zwei é")
    write_atomically(tmp_path / "b", b"\xff")
    assert target.read_text(encoding="utf-8") == "zwei é"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b", "page.html"]


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ClipError, match="cannot be written"):
        write_atomically(tmp_path / "missing" / "page.html", "text")
    target = tmp_path / "page.html"
    write_atomically(target, "old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("clip.html_page.os.fsync", full)
    with pytest.raises(ClipError, match="No space left"):
        write_atomically(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]
