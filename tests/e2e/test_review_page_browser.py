"""The review page in a browser, by its keys: decisions, thresholds, what is taken away, and what may not run."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from devtools import CHROMIUM, Browser
from PIL import Image

from clip.html_page import write_atomically
from clip.moderation.labels import read_labels
from clip.moderation.policy import ACTIONS, Category, Policy
from clip.moderation.review_page import outcome, review_page
from clip.moderation.verdict import Finding, Verdict

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: install chromium to drive the page")

POLICY = Policy(
    name="goods",
    categories=(
        Category(name="weapons", prompts=("a gun",), threshold=0.5, action="block", severity="high"),
        Category(name="alcohol", prompts=("a beer",), threshold=0.6, action="flag"),
        Category(name="tobacco", prompts=("a cigar",), threshold=0.55, action="flag", severity="low"),
    ),
)
HOSTILE = "\"><img src=x onerror=document.title='hacked'><script>document.title='hacked'<!--.png".replace("/", "")
NAMES = [
    *(HOSTILE, 'with, comma and "quotes".png', "line\nfeed.png", " blank.png", "キツネ 🦊.png"),
    os.fsdecode(b"not \xff\xfe utf-8.png"),
    "a_long_name_without_a_blank" * 7 + ".png",
]


def verdict(path: str, scores: list[float], **others: Any) -> Verdict:
    findings = []
    for category, score in zip(POLICY.categories, scores, strict=True):
        assert category.threshold is not None
        action = category.action if score >= category.threshold else "allow"
        known: dict[str, Any] = {"threshold": category.threshold, "action": action, "severity": category.severity}
        findings.append(Finding(category=category.name, score=score, prompt=category.prompts[0], view="whole", **known))
    findings.sort(key=lambda finding: (not finding.is_hit, -ACTIONS.index(finding.action), -finding.margin))
    known = {"action": findings[0].action, "policy": POLICY.fingerprint, "model": "m" * 64}
    return Verdict(path=path, findings=tuple(findings), **{**known, **others})


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("browser") / "profile") as one:
        yield one


@pytest.fixture(scope="module")
def verdicts(tmp_path_factory: pytest.TempPathFactory) -> list[Verdict]:
    """Thirty pictures, some with names to be afraid of, one that cannot be read, and one that has gone."""
    folder, rng = tmp_path_factory.mktemp("pictures"), random.Random(5)
    found = []
    for i in range(30):
        path = folder / (NAMES[i] if i < len(NAMES) else f"picture {i:02d}.png")
        Image.fromarray(np.full((48, 48, 3), (8 * i, 255 - 8 * i, 120), np.uint8)).save(path)
        notes = ("<b>writing</b> over the picture",) if i % 7 == 0 else ()
        found.append(verdict(str(path), [round(rng.random() ** 2, 4) for _ in POLICY.categories], notes=notes))
    broken = Verdict(
        path=str(folder / "broken.png"), action="flag", findings=(), policy=POLICY.fingerprint, model="m" * 64,
        error="broken.png: is no picture <i>at all</i>",
    )  # fmt: skip
    return [*found, broken, verdict(str(folder / "gone.png"), [0.9, 0.1, 0.1])]


@pytest.fixture(scope="module")
def page(verdicts: list[Verdict], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "review.html"
    write_atomically(path, review_page(verdicts, POLICY))
    return path


@pytest.fixture(autouse=True)
def _fresh(browser: Browser, page: Path) -> Iterator[None]:
    """The page, as whoever has never seen it sees it; in the end, nothing has gone wrong in it."""
    browser.open(page)
    browser.js("localStorage.clear()")
    browser.errors.clear()
    browser.requests.clear()
    browser.open(page)
    yield
    assert browser.errors == []


def chosen(browser: Browser) -> int:
    """Which of the verdicts, by its number."""
    return int(browser.js("document.querySelector('[aria-selected=true]').id.split('-')[1]"))


def text(browser: Browser, selector: str) -> str:
    return str(browser.js(f"document.querySelector({json.dumps(selector)}).textContent"))


def listed(browser: Browser) -> list[int]:
    return list(browser.js("[...document.querySelectorAll('#pictures > li')].map(li => +li.id.split('-')[1])"))


def hits(verdict: Verdict) -> set[str]:
    return {finding.category for finding in verdict.findings if finding.is_hit}


def exported(browser: Browser, folder: Path) -> dict[str, set[str]]:
    """By path, the categories that the exported labels say yes to; each picture has all categories."""
    browser.click("#export-labels")
    browser.click("#download")
    (folder / "labels.csv").write_bytes(browser.downloaded("labels.csv"))
    browser.press("Escape")
    labels = read_labels(folder / "labels.csv", POLICY)
    assert all(len(picture.known) == len(POLICY.categories) for picture in labels.pictures)
    return {picture.path: {name for name, yes in picture.known.items() if yes} for picture in labels.pictures}


def test_decisions_by_keys_are_counted_undone_and_kept(
    browser: Browser, page: Path, verdicts: list[Verdict], tmp_path: Path
) -> None:
    expected: dict[str, set[str]] = {}
    assert "0 of 32 reviewed" in text(browser, "#progress-text")
    for key in "aarar":
        one = verdicts[chosen(browser)]
        if one.findings:  # of what cannot be read there is nothing to say
            expected[one.path] = hits(one) if key == "a" else set()
        browser.press(key)
    assert text(browser, "#progress-text") == "5 of 32 reviewed"
    last = chosen(browser)
    browser.press("2")  # whatever the verdict was: it is alcohol, or it is none
    browser.press("3", "3")
    expected[verdicts[last].path] = hits(verdicts[last]) ^ {"alcohol"}
    assert chosen(browser) == last
    assert exported(browser, tmp_path) == expected
    browser.open(page)  # nothing is lost
    assert text(browser, "#progress-text") == "6 of 32 reviewed"
    assert exported(browser, tmp_path) == expected
    assert text(browser, "#said") == ""
    browser.press("u")
    assert "nothing to undo" in text(browser, "#said")
    before = chosen(browser)
    browser.press("j", "a", "u")
    assert text(browser, "#progress-text") == "6 of 32 reviewed"
    browser.press("k")
    assert chosen(browser) == before


def test_undo_goes_back_step_by_step(browser: Browser) -> None:
    browser.press("j")
    start = chosen(browser)
    browser.press("a", "r", "2", "x")
    for _ in range(4):
        browser.press("u")
    assert text(browser, "#progress-text") == "0 of 32 reviewed"
    assert chosen(browser) == start


def test_arrows_move_in_the_grid(browser: Browser) -> None:
    order = listed(browser)
    columns = browser.js(
        "(cards => cards.filter(c => c.offsetTop === cards[0].offsetTop).length)"
        "([...document.querySelectorAll('#pictures > li')])"
    )
    browser.press("ArrowRight", "ArrowDown", "ArrowLeft")
    assert chosen(browser) == order[columns]
    browser.press("ArrowUp", "k", "ArrowUp")
    assert chosen(browser) == order[0]
    assert browser.js("document.activeElement.getAttribute('role')") == "option"


def test_thresholds_change_what_python_says_they_do(browser: Browser, verdicts: list[Verdict], tmp_path: Path) -> None:
    browser.js("document.getElementById('thresholds').open = true")
    rng = random.Random(1)
    for _ in range(5):
        tried = {}
        for c, category in enumerate(POLICY.categories):
            tried[category.name] = round(rng.randrange(0, 201) * 0.005, 3)
            browser.choose(f"#threshold-{c}", str(tried[category.name]))
        after = [outcome(one, POLICY, tried) for one in verdicts]
        before = [one.action for one in verdicts]
        said = text(browser, "#change")
        for action, word in (("flag", "flagged"), ("block", "blocked")):
            assert f"{before.count(action)} → {after.count(action)} {word}" in said
        changed = {i for i, (left, right) in enumerate(zip(before, after, strict=True)) if left != right}
        assert f"{len(changed)} picture" in said
        marked = browser.js("[...document.querySelectorAll('.card.changed')].map(c => +c.id.split('-')[1])")
        assert set(marked) == changed
        for c, category in enumerate(POLICY.categories):
            reached = sum(
                f.score >= tried[category.name] for v in verdicts for f in v.findings if f.category == category.name
            )
            assert f"→ {reached} picture" in text(browser, f".slider:nth-child({c + 1}) .head ~ p")
    browser.click("#export-thresholds")
    browser.click("#download")
    snippet = yaml.safe_load(browser.downloaded("thresholds.yaml"))
    browser.press("Escape")
    assert snippet == {"categories": {name: {"threshold": pytest.approx(value)} for name, value in tried.items()}}
    if changed:
        browser.click("#show-changed")
        assert set(listed(browser)) == changed
    browser.click("#reset-all")
    assert "as they were" in text(browser, "#change")
    assert not browser.js("document.querySelector('.card.changed')")


def test_what_was_reviewed_is_counted_at_each_threshold(browser: Browser, verdicts: list[Verdict]) -> None:
    browser.choose("#category", "0")
    browser.choose("#sort", "score")
    weapons = [{f.category: f.score for f in verdicts[i].findings}["weapons"] for i in listed(browser)[:4]]
    assert weapons == sorted(weapons, reverse=True) and weapons[1] > 0.5
    browser.press("a", "r")
    said = text(browser, ".slider:nth-child(1) .head ~ p ~ p")
    assert said == "of those reviewed: 1 right, 1 wrong, 0 missed"
    browser.choose("#threshold-0", "1")
    assert text(browser, ".slider:nth-child(1) .head ~ p ~ p") == "of those reviewed: 0 right, 0 wrong, 1 missed"


def test_labels_bring_every_name_back(browser: Browser, verdicts: list[Verdict], tmp_path: Path) -> None:
    browser.choose("#sort", "given")
    browser.press("Escape", "Home", *"a" * len(NAMES))
    assert sorted(exported(browser, tmp_path)) == sorted(one.path for one in verdicts[: len(NAMES)])
    assert "1 path is not UTF-8" in text(browser, "#export-about")


def test_filters(browser: Browser, verdicts: list[Verdict]) -> None:
    def matching(condition: Any) -> set[int]:
        return {i for i, one in enumerate(verdicts) if condition(one)}

    everything = listed(browser)
    assert len(everything) == 32
    for action in ("block", "flag", "allow"):
        browser.choose("#action", action)
        assert set(listed(browser)) == matching(lambda one, action=action: one.action == action)
    browser.choose("#action", "unreadable")
    assert set(listed(browser)) == {30}
    browser.choose("#action", "noted")
    assert set(listed(browser)) == matching(lambda one: one.notes)
    browser.choose("#action", "found")
    browser.choose("#category", "1")
    assert set(listed(browser)) == matching(lambda one: "alcohol" in hits(one))
    browser.choose("#action", "all")
    browser.choose("#from", "0.2")
    browser.choose("#to", "0.4")
    inside = matching(lambda one: any(f.category == "alcohol" and 0.2 <= f.score <= 0.4 for f in one.findings))
    assert set(listed(browser)) == inside and inside
    browser.press("a")
    browser.choose("#state", "no")
    assert len(listed(browser)) == len(inside) - 1
    browser.choose("#state", "yes")
    assert len(listed(browser)) == 1
    browser.choose("#from", "1")
    assert listed(browser) == [] and not browser.js("document.getElementById('nothing').hidden")
    browser.click("#clear")
    assert len(listed(browser)) == 32


def test_nothing_of_a_name_runs_and_nothing_is_loaded(browser: Browser) -> None:
    for _ in range(32):
        browser.press("j")
    assert browser.js("document.title") == "Review: goods"
    assert browser.js("document.querySelectorAll('script').length") == 2
    assert not browser.js("document.querySelector('[onerror], #panel b b, #panel i i')")
    assert {address.split(":")[0] for address in browser.requests} <= {"file", "data", "blob"}
    assert [address for address in browser.requests if address.startswith("file:")] == [browser.js("location.href")]


def test_should_an_escape_fail_the_browser_still_refuses(browser: Browser, page: Path, tmp_path: Path) -> None:
    hole = "<script>document.title = 'hacked'</script><img src=x onerror=\"document.title = 'hacked'\"><a onclick=''>"
    (tmp_path / "hole.html").write_text(page.read_text(encoding="utf-8").replace("<main>", f"<main>{hole}"), "utf-8")
    browser.open(tmp_path / "hole.html")
    assert browser.js("document.title") == "Review: goods" and "0 of 32" in text(browser, "#progress-text")
    for attempt in ("document.body.innerHTML = '<b>'", "document.body.setAttribute('onclick', '1')"):
        assert (
            browser.js(f"(() => {{ try {{ {attempt}; return ''; }} catch (e) {{ return e.name; }} }})()") == "TypeError"
        )
    assert len(browser.errors) >= 4
    assert all("Content Security Policy" in error or "Trusted" in error for error in browser.errors), browser.errors
    browser.errors.clear()


def test_what_may_disturb_is_blurred_until_it_is_asked_for(browser: Browser, verdicts: list[Verdict]) -> None:
    def is_blurred(i: int) -> bool:
        style = f"getComputedStyle(document.querySelector('#picture-{i} img')).filter"
        return "blur" in str(browser.js(style))

    browser.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-reduced-motion", "value": "reduce"}])
    for i in range(30):
        assert is_blurred(i) == ("weapons" in hits(verdicts[i]))
    browser.choose("#action", "block")
    first = next(i for i in listed(browser) if verdicts[i].findings and i < 30)
    browser.js(f"document.getElementById('picture-{first}').click()")
    assert is_blurred(first)
    browser.press(" ")
    assert not is_blurred(first)
    browser.press(" ")
    assert is_blurred(first)
    browser.choose("#blur", "none")
    assert not is_blurred(first)


def test_keys_do_nothing_while_one_types_or_has_turned_them_off(browser: Browser) -> None:
    browser.js("document.getElementById('from').focus()")
    browser.press("a", "r")
    assert text(browser, "#progress-text") == "0 of 32 reviewed"
    browser.press("Escape", "?")
    assert browser.js("document.getElementById('help').open")
    browser.press("a")
    browser.click("#keys-on")
    browser.press("Escape")
    browser.press("a")
    assert text(browser, "#progress-text") == "0 of 32 reviewed"
    browser.click("#panel .buttons button")  # by hand it goes on
    assert text(browser, "#progress-text") == "1 of 32 reviewed"


def test_it_fits_a_phone_and_the_dark(browser: Browser, page: Path, tmp_path: Path) -> None:
    for width, dark in ((390, True), (320, False)):
        browser.open(page, width=width, height=800, dark=dark)
        assert browser.js("document.documentElement.scrollWidth") <= width
        browser.js("for (const details of document.querySelectorAll('details')) details.open = true")
        browser.js("document.getElementById('panel').classList.add('open')")
        browser.press("j")
        assert browser.js("document.documentElement.scrollWidth") <= width
        browser.screenshot(tmp_path / "shot.png")
        with Image.open(tmp_path / "shot.png") as shot:
            assert (np.asarray(shot.convert("RGB"))[2, 2] < 128).all() == dark


def test_every_control_has_a_name(browser: Browser) -> None:
    nodes = browser.send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "combobox", "slider", "option", "checkbox", "textbox", "spinbutton", "listbox", "progressbar"}
    found = [node for node in nodes if not node.get("ignored") and node["role"]["value"] in roles]
    assert {node["role"]["value"] for node in found} >= {"button", "combobox", "option", "listbox"}
    assert [node["role"]["value"] for node in found if not node["name"]["value"].strip()] == []


@pytest.mark.parametrize("count", [0, 1])
def test_few_pictures(count: int, browser: Browser, verdicts: list[Verdict], tmp_path: Path) -> None:
    write_atomically(tmp_path / "few.html", review_page(verdicts[:count], POLICY))
    browser.open(tmp_path / "few.html")
    browser.press("j", "k", "a", "r", "u", "u", "ArrowDown", " ", "1", "x")
    assert f"of {count} reviewed" in text(browser, "#progress-text")
    browser.click("#export-labels")
    assert browser.js("document.getElementById('export-text').value") == "path,category,label\n"
