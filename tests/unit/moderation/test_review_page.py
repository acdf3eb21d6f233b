"""The review page as a file: what is in it, what is not, and that nothing in it can run but its own script."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import html.parser
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip.errors import ConfigError
from clip.moderation.policy import Category, Exemption, Policy
from clip.moderation.review_page import outcome, review_page
from clip.moderation.verdict import Finding, Verdict

POLICY = Policy(
    name="goods",
    categories=(
        Category(name="weapons", prompts=("a gun",), threshold=0.5, action="block", severity="high"),
        Category(name="alcohol", prompts=("a beer",), threshold=0.6, action="flag"),
    ),
)
HOSTILE = [
    "<script><script>alert(1)<_script>.png",
    "<!--<script>.png",
    '"><img src=x onerror=alert(1)>.png',
    "{{ 7 * 7 }}.png",
    "line\nfeed\u2028\u202e.png",
]


def verdict(path: str, weapons: float, alcohol: float, **others: Any) -> Verdict:
    findings = [
        Finding(
            category=category.name,
            score=score,
            threshold=category.threshold or 0.5,
            prompt=category.prompts[0],
            view="whole",
            action=category.action if score >= (category.threshold or 0.5) else "allow",
            severity=category.severity,
        )
        for category, score in zip(POLICY.categories, (weapons, alcohol), strict=True)
    ]
    findings.sort(key=lambda finding: (not finding.is_hit, finding.action != "block", -finding.margin))
    known: dict[str, Any] = {"action": findings[0].action, "policy": POLICY.fingerprint, "model": "m" * 64}
    return Verdict(path=path, findings=tuple(findings), **{**known, **others})


def unreadable(path: str) -> Verdict:
    return Verdict(path=path, action="flag", findings=(), policy=POLICY.fingerprint, model="m" * 64, error="no picture")


class _Page(html.parser.HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._in_script = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in_script = tag == "script"

    def handle_data(self, data: str) -> None:
        if self._in_script:
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False

    @property
    def data(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.fromarray(np.full((60, 40, 3), 200, np.uint8)).save(tmp_path / "one.png")
    return str(tmp_path / "one.png")


def test_names_and_words_are_data_and_only_the_own_script_may_run() -> None:
    cunning = [dataclasses.replace(verdict(name, 0.9, 0.1), notes=(name,), error=None) for name in HOSTILE]
    weapons = dataclasses.replace(POLICY.categories[0], description="</script><script>alert(2)</script>")
    text = review_page(cunning, dataclasses.replace(POLICY, categories=(weapons, POLICY.categories[1])))
    page = _Page(text)
    assert len(page.scripts) == 2
    assert [picture["path"] for picture in page.data["pictures"]] == [f"{Path.cwd()}/{name}" for name in HOSTILE]
    assert all(not name.startswith("on") for _, attributes in page.tags for name in attributes)
    policy = next(a["content"] for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    digest = base64.b64encode(hashlib.sha256(page.scripts[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and "default-src 'none'" in policy
    assert "require-trusted-types-for 'script'" in policy
    assert not re.search(r"(src|href)=[\"']?https?:|@import|url\(|innerHTML|eval\(|fetch\(", text)


def test_what_is_known_of_a_picture_is_in_the_data(picture: str, tmp_path: Path) -> None:
    found = verdict(picture, 0.7, 0.2, sha256="a" * 64, notes=("writing over it",), frames=3)
    gone, broken = str(tmp_path / "gone.png"), tmp_path / "broken.png"
    broken.write_bytes(b"none")
    data = _Page(
        review_page([found, verdict(gone, 0.1, 0.1), unreadable(str(broken)), verdict(str(broken), 0, 0)], POLICY)
    ).data
    assert data["total"] == 4 and data["complete_above"] is None
    assert [category["name"] for category in data["categories"]] == ["weapons", "alcohol"]
    first, second, third, fourth = data["pictures"]
    assert first["path"] == picture and first["name"] == "one.png" and first["link"] == Path(picture).as_uri()
    assert first["copy"].startswith("data:image/jpeg;base64,") and first["notes"] == ["writing over it"]
    assert first["findings"][0]["score"] == 0.7 and first["findings"][0]["category"] == 0
    assert (second["copy"], second["problem"], second["link"]) == (None, "not there any more", None)
    assert third["error"] == "no picture" and third["findings"] == [] and third["problem"] == "cannot be read"
    assert fourth["problem"] == "cannot be read any more"


def test_a_moved_picture_is_shown_and_labelled_where_it_is(picture: str) -> None:
    data = _Page(review_page([verdict("was/here.png", 0.7, 0)], POLICY, contents=lambda path: picture)).data
    assert data["pictures"][0]["path"] == picture and data["pictures"][0]["copy"]
    bytes_of = Path(picture).read_bytes()
    data = _Page(review_page([verdict("shard/7", 0.7, 0)], POLICY, contents=lambda path: bytes_of)).data
    assert data["pictures"][0]["path"] == "shard/7" and data["pictures"][0]["copy"]


def test_of_too_many_the_most_pressing_are_shown_in_their_order() -> None:
    scores = [0.1, 0.9, 0.2, 0.45, 0.55, 0.0]
    stream = (verdict(f"/{i}.png", score, 0.0) for i, score in enumerate(scores))
    text = review_page(stream, POLICY, most=3)
    data = _Page(text).data
    assert [picture["name"] for picture in data["pictures"]] == ["1.png", "3.png", "4.png"]
    assert data["total"] == 6 and data["complete_above"] == pytest.approx(-0.05)
    assert "3 of 6 pictures are on this page" in text
    data = _Page(review_page([verdict("/a.png", 0.9, 0), unreadable("/b.png")], POLICY, most=1)).data
    assert data["pictures"][0]["name"] == "b.png"


def test_without_pictures_and_with_wrong_ones() -> None:
    assert _Page(review_page([], POLICY)).data["pictures"] == []
    with pytest.raises(ConfigError, match="at least 1"):
        review_page([], POLICY, most=0)
    other = dataclasses.replace(POLICY, categories=POLICY.categories[:1])
    with pytest.raises(ConfigError, match="'alcohol'"):
        review_page([verdict("/a.png", 0.9, 0.9)], other)


def test_the_outcome_of_thresholds_that_nobody_moved_is_the_verdict() -> None:
    rng = random.Random(0)
    for _ in range(200):
        one = verdict("/a.png", rng.random(), rng.random())
        assert outcome(one, POLICY, {}) == one.action
    assert outcome(unreadable("/a.png"), POLICY, {"weapons": 0.0}) == "flag"


def test_the_outcome_of_other_thresholds() -> None:
    one = verdict("/a/b.png", 0.4, 0.7, sha256="a" * 64)
    assert one.action == "flag"
    assert outcome(one, POLICY, {"weapons": 0.4}) == "block"
    assert outcome(one, POLICY, {"alcohol": 0.8}) == "allow"
    for exemption in (Exemption(path="/a/*", action="flag"), Exemption(sha256="a" * 64)):
        weapons = dataclasses.replace(POLICY.categories[0], exemptions=(exemption,))
        spared = dataclasses.replace(POLICY, categories=(weapons, POLICY.categories[1]))
        assert outcome(one, spared, {"weapons": 0.4}) == "flag"
        assert outcome(one, spared, {"weapons": 0.4, "alcohol": 0.9}) == exemption.action
    spared_hit = dataclasses.replace(one.findings[0], action="allow", exemption="words")
    assert outcome(dataclasses.replace(one, findings=(spared_hit,)), POLICY, {}) == "allow"


def test_names_that_are_not_utf8_keep_their_bytes() -> None:
    page = review_page([verdict("/a\udcff.png", 0.9, 0)], POLICY)
    one = _Page(page.encode().decode()).data["pictures"][0]
    assert one["path"] == "/a\udcff.png" and one["name"] == "a\\xff.png"
