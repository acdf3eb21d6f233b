"""Pages of hits and of clusters: complete in themselves, bounded, and inert whatever files are called."""

from __future__ import annotations

import html.parser
import io
import os
import tarfile
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image

from clip.search import contact_sheet
from clip.search.alike import Cluster
from clip.search.contact_sheet import duplicates_page, facts, search_page, size_text
from clip.search.index import Hit, Results
from clip.search.store import Row

HOSTILE = '"><script>alert(1)<script><img src=x onerror=alert(1)>\u202egpj.exe'


class Page(html.parser.HTMLParser):
    """What a browser would find in a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.source = text
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _picture(path: Path, seed: int = 0, size: tuple[int, int] = (360, 240)) -> str:
    noise = np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size).save(path, "PNG")
    return str(path)


def _hit(path: str, *, match: float = 0.5, alike: tuple[str, ...] = (), **row: object) -> Hit:
    return Hit(path=path, match=match, similarity=0.25, score=1.0, alike=alike, row=Row(path=path, **row))  # type: ignore[arg-type]


def _results(*hits: Hit, query: str = "dog", reason: str | None = None, considered: int = 1234) -> Results:
    return Results(query=query, hits=hits, reason=reason, considered=considered, total=1234)


def test_hits_with_their_pictures(tmp_path: Path) -> None:
    one, two, three = (_picture(tmp_path / f"{name}.png", seed) for seed, name in enumerate(("one", "two", "three")))
    noon = int(datetime(2001, 9, 9, 12).timestamp()) * 10**9
    known = {"width": 600, "height": 400, "format": "PNG", "size_bytes": 22_400, "modified_ns": noon}
    hits = (_hit(one, match=0.934, alike=(two, three), **known), _hit(three, match=0.0001))
    page = Page(search_page(_results(*hits, query=f'"red car" AND "+{two}"'), address="/an/index"))
    images = page.all("img")
    assert [image["alt"] for image in images] == ["one.png", "two.png", "three.png", "three.png"]
    for image in images:
        assert str(image["src"]).startswith("data:image/jpeg;base64,")
    assert [link["href"] for link in page.all("a")] == [Path(path).as_uri() for path in (one, two, three, three)]
    assert len(page.all("details")) == 1 and "2 alike" in page.text
    assert "600 × 400 · PNG · 22 kB · 2001-09-09" in page.text
    for text in ("93 %", "< 1 %", "similarity 0.250", "2 hits among 1\u202f234 pictures", "/an/index", str(tmp_path)):
        assert text in page.text, text
    assert "conditions" not in page.text
    bars = [attributes["style"] for attributes in page.all("i")]
    assert bars == ["width:93.4%", "width:0.0%"]


def test_pictures_that_were_asked_for_stand_above(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = (_picture(tmp_path / f"{seed}.png", seed) for seed in range(2))
    monkeypatch.chdir(tmp_path)
    page = Page(search_page(_results(_hit(one), query='sunset AND +1.png AND +"image 3"'), address="x"))
    assert [image["alt"] for image in page.all("img")] == ["1.png", "0.png"]
    assert page.all("a")[0]["href"] == Path(two).as_uri()
    assert "not there" not in page.text  # what came as bytes has no file


def test_names_are_text_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    names = [HOSTILE.replace("/", ""), "line\nbreak\x1b[2J.png", "{{ 7 * 7 }}.png", os.fsdecode(b"\xff\xfe.png")]
    paths = [_picture(tmp_path / "a" / name) for name in names]
    hits = [_hit(path, alike=(paths[0],), format=HOSTILE) for path in paths]
    page = Page(search_page(_results(*hits, query="x <b>y</b>"), address=HOSTILE))
    assert {tag for tag, _ in page.tags} <= {
        *("html", "head", "meta", "title", "style", "body", "main", "h1", "p", "code", "ol", "ul", "li", "a", "img"),
        *("span", "i", "b", "bdi", "div", "details", "summary", "footer"),
    }
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    links = [str(link["href"]) for link in page.all("a")]
    assert {unquote_to_bytes(link.removeprefix("file://")) for link in links} == {os.fsencode(path) for path in paths}
    for shown in ("x <b>y</b>", "\\xff\\xfe.png", "line\\nbreak\\x1b[2J.png", "{{ 7 * 7 }}.png", "\\u202egpj.exe"):
        assert shown in page.text, shown
    assert "\u202e" not in page.source and "\x1b" not in page.source
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in str(policy) and "script" not in str(policy)


def test_what_cannot_be_shown_is_told(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    names = ["gone.png", "broken.jpg", "pipe.png", "folder.png", "a\0b.png", "gone.tar/x.png"]
    hits = [_hit(str(tmp_path / name)) for name in names]
    page = Page(search_page(_results(*hits, _hit("imported-7")), address="x"))
    assert page.all("img") == page.all("a") == []
    assert page.text.count("not there any more") == 3
    assert page.text.count("cannot be read") == 4
    assert "imported-7" in page.text


def test_a_picture_within_a_shard(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    with tarfile.open(tmp_path / "0.tar", "w") as shard:
        for name in ("first.png", "folder/second.png"):
            member = tarfile.TarInfo(name)
            member.size = len(file.getvalue())
            shard.addfile(member, io.BytesIO(file.getvalue()))
    names = ["first.png", "folder/second.png", "third.png", "first.jpg", ""]
    page = Page(search_page(_results(*[_hit(f"{tmp_path}/0.tar/{name}") for name in names]), address="x"))
    assert [image["alt"] for image in page.all("img")] == ["first.png", "second.png"]
    assert page.all("a") == []  # no browser opens what is in an archive
    assert page.text.count("not there any more") == 3


def test_copies_are_small_and_few(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "MAX_COPIES", 3)
    monkeypatch.setattr(contact_sheet, "_MAX_SMALL", 2)
    monkeypatch.setattr(contact_sheet, "_MAX_NAMES", 4)
    paths = [_picture(tmp_path / f"{seed}.png", seed, (900, 600)) for seed in range(6)]
    text = search_page(_results(_hit(paths[0], alike=tuple(paths[1:])), _hit(paths[1])), address="x")
    page = Page(text)
    assert [image["alt"] for image in page.all("img")] == ["0.png", "1.png", "1.png"]  # hits before what is like them
    assert page.text.count("not copied") == 1
    assert len(page.all("li")) == 4
    assert "5 alike" in page.text and paths[4] in page.text and "and 1 more" in page.text
    assert len(text) < 60_000


def test_an_empty_answer_says_why() -> None:
    page = Page(search_page(_results(reason="none fulfils <it>", considered=0), address="x"))
    assert "none fulfils <it>" in page.text
    assert "0 hits among 0 pictures that fulfil the conditions, of 1 234" in " ".join(page.text.split())
    assert "probability" not in page.text and page.all("li") == []


def test_clusters_with_the_one_to_keep(tmp_path: Path) -> None:
    paths = [_picture(tmp_path / f"{seed}.png", seed) for seed in range(5)]
    rows = [Row(path=path, size_bytes=1_000_000, digest=bytes(16)) for path in paths]
    clusters = [Cluster(rows[0], (rows[1], rows[2])), Cluster(Row(path=paths[3]), (Row(path=paths[4]),))]
    page = Page(duplicates_page(iter(clusters), address="/an/index"))
    flat = " ".join(page.text.split())
    assert "2 groups of pictures that are the same, or nearly, in /an/index" in flat
    assert "free 2.0 MB of 3 other pictures" in flat and "Nothing was deleted" in flat
    assert "3 pictures the same file; to keep one frees 2.0 MB" in flat
    assert "2 pictures nearly the same; to keep one frees 0 bytes" in flat
    assert [image["alt"] for image in page.all("img")] == [f"{seed}.png" for seed in range(5)]
    assert [item.get("class") for item in page.all("li")] == ["kept", None, None, "kept", None]
    few = Page(duplicates_page(iter(clusters), address="x", most_clusters=1))
    assert len(few.all("img")) == 3 and "Shown are the 1 largest groups" in few.text and "2 groups" in few.text
    assert "No two pictures" in Page(duplicates_page([], address="x")).text


def test_pages_do_not_change_by_themselves(tmp_path: Path) -> None:
    results = _results(*[_hit(_picture(tmp_path / f"{seed}.png", seed)) for seed in range(12)])
    assert search_page(results, address="x") == search_page(results, address="x")


def test_facts_and_sizes() -> None:
    sizes = {0: "0 bytes", 999: "999 bytes", 1000: "1.0 kB", 9_940: "9.9 kB", 9_960: "10 kB", 999_499: "999 kB"}
    sizes |= {999_600: "1.0 MB", 2_500_000_000: "2.5 GB", 10**13: "10.0 TB"}
    assert {count: size_text(count) for count in sizes} == sizes
    assert facts(Row(path="x")) == []
    assert facts(Row(path="x", modified_ns=2**63 - 1, size_bytes=5))[0] == "5 bytes"
