"""``clip moderate``: verdicts in three formats, moves, log, and what does not go together. Most need no model."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip.cli import moderate, moderate_modes
from clip.moderation.audit import verify_log
from clip.moderation.policy import Category, Policy
from clip.moderation.verdict import Finding, Verdict

Run = Callable[..., Any]

POLICY = Policy(
    name="test",
    categories=(
        Category(name="knives", prompts=("a knife",), threshold=0.5, action="block"),
        Category(name="beer", prompts=("beer",), threshold=0.6),
    ),
    unreadable="block",
)


def finding(category: str, score: float, action: str) -> Finding:
    values: dict[str, Any] = {"category": category, "score": score, "action": action, "threshold": 0.5}
    values |= {"prompt": f'"a {category}", shown', "view": "whole", "severity": "high", "threshold_origin": "stated"}
    return Finding(**values)


class StandIn:
    """Blocks what is red, flags what is green, allows what is blue; the score is how strong the colour is."""

    policy = POLICY

    def moderate(self, paths: Iterable[str], *, batch_size: int = 32) -> Iterator[Verdict]:
        for path in paths:
            sha256 = None
            try:
                sha256 = hashlib.sha256(Path(path).read_bytes()).hexdigest()
                red, green, _ = Image.open(path).convert("RGB").getpixel((0, 0))  # type: ignore[misc]
            except OSError:
                reason = "no such file" if not os.path.lexists(path) else "not a picture"
                error = f"{path}: {reason}"
                facts: dict[str, Any] = {"policy": "p", "model": "m", "sha256": sha256, "error": error}
                yield Verdict(path=path, action="block", findings=(), **facts)
                continue
            knives = finding("knives", red / 255, "block" if red > 127 else "allow")
            beer = finding("beer", green / 255, "flag" if green > 127 else "allow")
            ordered = (beer, knives) if green > red else (knives, beer)
            action = "block" if red > 127 else "flag" if green > 127 else "allow"
            yield Verdict(path=path, action=action, findings=ordered, policy="p", model="m", sha256=sha256)


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    about = {"model": {"name": "none", "runtime": "none"}}
    monkeypatch.setattr(moderate_modes, "policy_of", lambda name: POLICY)
    monkeypatch.setattr(moderate_modes, "open_moderator", lambda session, rules, **given: (StandIn(), about))


@pytest.fixture
def uploads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory has a folder of a picture to block, one to flag, and one to allow."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "uploads"
    (folder / "inside").mkdir(parents=True)
    for name, colour in (("a.png", (230, 0, 0)), ("b.png", (0, 200, 0)), ("inside/c.png", (0, 0, 255))):
        Image.new("RGB", (4, 4), colour).save(folder / name)
    return folder


def moderated(clip_run: Run, *words: object, stdin: bytes = b"") -> Any:
    return clip_run("moderate", *words, "--policy", "x", stdin=stdin)


# Verdicts -------------------------------------------------------------------------------------------------------------


def test_json_has_the_verdicts_of_the_library(clip_run: Run, stand_in: None, uploads: Path) -> None:
    outcome = moderated(clip_run, "uploads", "--json")
    paths = ["uploads/a.png", "uploads/b.png", "uploads/inside/c.png"]
    assert [json.loads(line) for line in outcome.lines] == [one.to_dict() for one in StandIn().moderate(paths)]
    assert outcome.status == 0
    assert outcome.err == (
        f"clip: 3 pictures: 1 blocked, 1 flagged, 1 allowed; by policy test ({POLICY.fingerprint[:12]})\n"
    )
    assert moderated(clip_run, "uploads", "--quiet").err == ""


def test_csv_has_a_row_for_each_picture(clip_run: Run, stand_in: None, uploads: Path) -> None:
    (uploads / 'z, "quoted".png').write_bytes(b"no picture")
    rows = list(csv.DictReader(io.StringIO(moderated(clip_run, "uploads", "--csv").out)))
    assert list(rows[0]) == [
        *("path", "action", "category", "score", "threshold", "severity", "prompt", "view", "exemption", "notes"),
        *("error", "sha256", "moved_to"),
    ]
    assert [(row["path"], row["action"], row["category"], row["score"]) for row in rows] == [
        ("uploads/a.png", "block", "knives", "0.901961"),
        ("uploads/b.png", "flag", "beer", "0.784314"),
        ("uploads/inside/c.png", "allow", "knives", "0.0"),
        ('uploads/z, "quoted".png', "block", "", ""),
    ]
    assert rows[0]["prompt"] == '"a knives", shown'
    assert rows[0]["sha256"] == hashlib.sha256((uploads / "a.png").read_bytes()).hexdigest()
    assert rows[3]["error"] == 'uploads/z, "quoted".png: not a picture'
    assert rows[3]["sha256"] == hashlib.sha256(b"no picture").hexdigest()


def test_the_table_is_aligned_and_obeys_nobody(clip_run: Run, stand_in: None, uploads: Path) -> None:
    (uploads / "b.png").rename(uploads / "b\x1b[31m\n.png")
    outcome = moderated(clip_run, "uploads")
    assert outcome.lines == [
        "block  knives  0.90 >= 0.50  uploads/a.png",
        "flag   beer    0.78 >= 0.50  uploads/b\\x1b[31m\\n.png",
        "allow  knives  0.00 <  0.50  uploads/inside/c.png",
    ]
    (uploads / "a.png").write_bytes(b"no picture")
    outcome = moderated(clip_run, uploads / "a.png")
    assert outcome.lines == [f"block                        {uploads}/a.png"]
    assert outcome.err.startswith(f"clip: {uploads}/a.png: not a picture\nclip: 1 picture: 1 blocked")


def test_paths_on_stdin_need_not_be_utf_8(clip_run: Run, stand_in: None, uploads: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    (uploads / "a.png").rename(uploads / name)
    outcome = moderated(clip_run, "-", "--json", stdin=b"uploads/caf\xe9.png\r\n\nuploads/b.png")
    assert [json.loads(line)["path"] for line in outcome.lines] == [f"uploads/{name}", "uploads/b.png"]


def test_each_path_on_stdin_is_answered_before_the_next_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb") as stdin, os.fdopen(writing, "wb", buffering=0) as writer:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(stdin))
        groups = moderate._groups(("-",), print)
        for sent, received in ((b"a.png\n", ["a.png"]), (b"b.png\n\nc.p", ["b.png"]), (b"ng\nd.png", ["c.png"])):
            writer.write(sent)
            assert next(groups) == received  # or this would wait for ever
        writer.close()
        assert list(groups) == [["d.png"]]


# What follows ---------------------------------------------------------------------------------------------------------


def test_exit_statuses(clip_run: Run, stand_in: None, uploads: Path) -> None:
    for words, status in (
        (["uploads"], 0),
        (["uploads", "--check"], 3),
        (["uploads/b.png", "uploads/inside", "--check"], 0),  # what is flagged is for a person
        (["uploads", "missing.png"], 1),
        (["uploads", "missing.png", "--check"], 1),
        (["-", "--check"], 0),
    ):
        assert moderated(clip_run, *words).status == status, words
    (uploads / "a.png").write_bytes(b"no picture")
    assert moderated(clip_run, "uploads").status == 0  # the policy says what such files get
    assert moderated(clip_run, "uploads", "--check").status == 3
    empty = uploads / "empty"
    empty.mkdir()
    outcome = moderated(clip_run, empty)
    assert (outcome.status, outcome.err.splitlines()[0]) == (1, f"clip: {empty}: has no pictures")


def test_what_is_blocked_is_moved_and_comes_back(clip_run: Run, stand_in: None, uploads: Path) -> None:
    (uploads / "broken.png").write_bytes(b"no picture")
    before = {path: path.read_bytes() for path in uploads.rglob("*.png")}
    blocked = Path.cwd() / "blocked"
    outcome = moderated(clip_run, "uploads", "--move-blocked", "blocked", "--json")
    assert outcome.status == 0
    assert {json.loads(line)["path"]: json.loads(line)["moved_to"] for line in outcome.lines} == {
        "uploads/a.png": f"{blocked}/uploads/a.png",
        "uploads/b.png": None,
        "uploads/broken.png": f"{blocked}/uploads/broken.png",
        "uploads/inside/c.png": None,
    }
    assert f"clip: 2 moved to {blocked}; clip moderate --undo takes them back\n" in outcome.err
    assert not (uploads / "a.png").exists() and not (uploads / "broken.png").exists()
    outcome = clip_run("moderate", "--undo", "blocked")
    assert outcome.lines == [f"restored  {uploads}/broken.png", f"restored  {uploads}/a.png"]
    assert (outcome.status, outcome.err) == (0, "clip: blocked: 2 restored, 0 not\n")
    assert {path: path.read_bytes() for path in uploads.rglob("*.png")} == before


def test_undo_says_what_stays(clip_run: Run, stand_in: None, uploads: Path) -> None:
    moderated(clip_run, "uploads", "--move-blocked", "blocked")
    (uploads / "a.png").write_bytes(b"another")
    outcome = clip_run("moderate", "--undo", "blocked/moves.jsonl", "--json")
    assert outcome.status == 1
    value = json.loads(outcome.out)
    assert (value["result"], value["source"]) == ("not restored", f"{uploads}/a.png")
    assert "not restored: another file has its place" in outcome.err
    outcome = clip_run("moderate", "--undo", "uploads")
    assert (outcome.status, outcome.out) == (1, "")
    assert "has no moves.jsonl" in outcome.err


def test_a_folder_for_blocked_pictures_may_lie_among_the_others(clip_run: Run, stand_in: None, uploads: Path) -> None:
    for _ in range(2):
        outcome = moderated(clip_run, "uploads", "--move-blocked", "uploads/blocked")
        assert outcome.status == 0
    assert [line.split()[-1] for line in outcome.lines] == ["uploads/b.png", "uploads/inside/c.png"]
    assert (uploads / "blocked" / "uploads" / "a.png").exists()


def test_a_picture_that_cannot_be_moved_is_told(clip_run: Run, stand_in: None, uploads: Path) -> None:
    (uploads / "a.png").rename(Path.cwd() / "kept.png")
    (uploads / "a.png").symlink_to("../kept.png")
    outcome = moderated(clip_run, "uploads", "--move-blocked", "blocked")
    assert outcome.status == 1
    assert "clip: uploads/a.png: is not moved: it is a symbolic link; move what it leads to\n" in outcome.err
    assert stat.S_ISLNK((uploads / "a.png").lstat().st_mode)


def test_a_page_shows_pictures_where_they_are_now(clip_run: Run, stand_in: None, uploads: Path) -> None:
    outcome = moderated(clip_run, "uploads", "--move-blocked", "blocked", "--html", "page.html")
    assert outcome.status == 0
    assert len(outcome.lines) == 3
    page = Path("page.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg;base64,") == 3
    assert "clip: page.html: written" in outcome.err


# The log --------------------------------------------------------------------------------------------------------------


def test_the_log_tells_the_whole_story(clip_run: Run, stand_in: None, uploads: Path) -> None:
    outcome = moderated(clip_run, "uploads", "--move-blocked", "blocked", "--log", "log.jsonl")
    assert clip_run("moderate", "--undo", "blocked", "--log", "log.jsonl").status == 0
    records = [json.loads(line) for line in Path("log.jsonl").read_text().splitlines()]
    events = [record["event"] for record in records]
    assert events == ["start", "verdict", "move", "verdict", "verdict", "end", "undo"]
    assert records[1]["contents"] == json.loads(moderated(clip_run, "uploads/a.png", "--json").out)
    assert records[2]["contents"]["result"] == "moved"
    assert records[5]["contents"] == {
        **{"allow": 1, "flag": 1, "block": 1, "moved": 1, "failed": 0, "interrupted": False},
    }
    assert len({record["run"] for record in records}) == 2
    assert f"clip: log.jsonl: its last record is {records[5]['hash']}\n" in outcome.err

    outcome = clip_run("moderate", "--verify-log", "log.jsonl", "--expect", records[5]["hash"])
    assert outcome.status == 0
    assert outcome.out == (
        f"log.jsonl: whole, 7 records (1 start, 3 verdict, 1 move, 1 end, 1 undo); the last is {records[6]['hash']}\n"
    )


def test_a_log_that_was_changed_is_a_negative_verdict(clip_run: Run, stand_in: None, uploads: Path) -> None:
    moderated(clip_run, "uploads", "--log", "log.jsonl")
    log = Path("log.jsonl")
    data = log.read_bytes()
    head = verify_log(log).head
    log.write_bytes(data.replace(b'"action": "block"', b'"action": "allow"', 1))
    outcome = clip_run("moderate", "--verify-log", "log.jsonl")
    assert (outcome.status, outcome.out) == (3, "log.jsonl, line 2: it was changed: its hash is another\n")
    value = json.loads(clip_run("moderate", "--verify-log", "log.jsonl", "--json").out)
    assert (value["whole"], value["line"], value["records"]) == (False, 2, 1)
    log.write_bytes(b"".join(data.splitlines(keepends=True)[:2]))
    assert clip_run("moderate", "--verify-log", "log.jsonl").status == 0
    outcome = clip_run("moderate", "--verify-log", "log.jsonl", "--expect", head)
    assert outcome.status == 3
    assert "the end was cut off, or the log was written anew" in outcome.out
    assert clip_run("moderate", "--verify-log", "missing").status == 1
    log.write_bytes(data[:-9])
    outcome = clip_run("moderate", "--verify-log", "log.jsonl")
    assert outcome.status == 0
    assert outcome.err == "clip: log.jsonl: its last line is half written, by a run that was killed, or that goes on\n"


def test_an_interrupted_run_is_told_in_the_log(
    clip_run: Run, stand_in: None, uploads: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(self: StandIn, paths: Iterable[str], **_: Any) -> Iterator[Verdict]:
        yield from list(every(self, paths))[:1]
        raise KeyboardInterrupt

    every = StandIn.moderate
    monkeypatch.setattr(StandIn, "moderate", interrupted)
    assert moderated(clip_run, "uploads", "--log", "log.jsonl").status == 130
    last = json.loads(Path("log.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["contents"]["interrupted"], last["contents"]["block"]) == ("end", True, 1)


# Wrong usage, policies ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["x.png"], "there is no policy; pass --policy FILE, or one of "),
        (["--policy", "restricted-goods"], "there is nothing to moderate; name pictures"),
        (["x.png", "--policy", "p", "--json", "--csv"], "--json and --csv exclude each other"),
        (["--undo", "a", "--verify-log", "b"], "--undo and --verify-log exclude each other"),
        (["--fit", "a", "--red-team"], "--fit and --red-team exclude each other"),
        (["--undo", "a", "--check"], "--check means nothing with --undo; leave it out"),
        (["x.png", "--undo", "a"], "PICTURES means nothing with --undo; leave it out"),
        (["--verify-log", "a", "--policy", "p"], "--policy means nothing with --verify-log"),
        (["--fit", "a", "--policy", "p", "--fitted", "b"], "--fitted means nothing with --fit"),
        (["x.png", "--policy", "p", "--expect", "a"], "--expect means nothing without --verify-log"),
        (["x.png", "--policy", "p", "--plot", "a"], "--plot means nothing without --fit"),
        (["x.png", "--policy", "p", "--seed", "1"], "--seed means nothing without --fit or --red-team"),
        (["--policies", "--show-policy", "x"], "--policies and --show-policy exclude each other"),
        (["--show-policy", "nothing"], "there is no packaged policy 'nothing'; there are "),
        (["x.png", "--policy", "nothing"], "nothing"),
        (["--verify-log", "a", "--expect", "12"], "'12' is no hash of a record"),
        (["--red-team", "x.png", "--policy", "restricted-goods", "--attack", "smal"], "no attack is called 'smal'"),
    ],
)
def test_what_does_not_go_together_is_wrong_usage(clip_run: Run, words: list[str], message: str) -> None:
    outcome = clip_run("moderate", *words)
    assert (outcome.status, outcome.out) == (2, "")
    assert message in " ".join(outcome.err.split())


def test_packaged_policies_are_listed_and_shown(clip_run: Run, tmp_path: Path) -> None:
    outcome = clip_run("moderate", "--policies")
    names = [line.partition(":")[0] for line in outcome.lines]
    assert "restricted-goods" in names
    as_json = [json.loads(line) for line in clip_run("moderate", "--policies", "--json").lines]
    assert [value["name"] for value in as_json] == names
    shown = clip_run("moderate", "--show-policy", names[0]).out
    (tmp_path / "ours.yaml").write_text(shown)
    from clip.moderation.policy_file import read_policy

    assert read_policy(tmp_path / "ours.yaml").fingerprint == as_json[0]["fingerprint"]


# With a model ---------------------------------------------------------------------------------------------------------

RULES = """
policy: everything
version: 1
categories:
  thing:
    prompts: [a thing]
    threshold: 0.001
    action: block
"""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    """A policy that blocks whatever there is."""
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return path


def test_the_whole_way_with_a_model(
    clip_run: Run, model_file: str, pictures: Path, rules: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(rules.parent)
    words = ["--policy", rules, "--model", model_file, "--views", "fast"]
    before = {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()}
    outcome = clip_run("moderate", pictures, *words, "--move-blocked", "blocked", "--log", "log.jsonl", "--check")
    assert (outcome.status, len(outcome.lines)) == (3, 4)
    start = json.loads(Path("log.jsonl").read_text().splitlines()[0])["contents"]
    assert start["policy"]["rules"]["categories"][0]["prompts"] == ["a thing"]
    assert (start["views"], start["model"]["name"]) == ("fast", model_file)
    assert len(start["model"]["fingerprint"]) == 64
    assert clip_run("moderate", "--undo", "blocked").status == 0
    assert {path: path.read_bytes() for path in pictures.rglob("*") if path.is_file()} == before


def test_labels_are_learned_from(clip_run: Run, model_file: str, pictures: Path, rules: Path, tmp_path: Path) -> None:
    labels = f"path,category,label\n{pictures}/a.JPG,thing,yes\n{pictures}/b.png,thing,no\n"
    (tmp_path / "labels.csv").write_text(labels)
    words = ["--policy", rules, "--model", model_file]
    fitted, plot = tmp_path / "ours.fit.json", tmp_path / "ours.svg"
    outcome = clip_run("moderate", "--fit", tmp_path / "labels.csv", *words, "-o", fitted)
    assert outcome.status == 0, outcome.err
    assert "thing: not fitted: 1 labelled picture" in outcome.out
    assert outcome.err.splitlines()[-1] == f"clip: {fitted}: written"
    outcome = clip_run("moderate", "--fit", tmp_path / "labels.csv", *words, "--plot", plot)
    assert "thing: not fitted" in outcome.out  # what was found is told, even if it cannot be plotted
    assert (outcome.status, plot.exists()) == (2, False)
    assert "no category was fitted, so there is nothing to plot" in outcome.err
    outcome = clip_run("moderate", "--fit", "-", *words, "--json", stdin=labels.encode())
    assert json.loads(outcome.out)["policy_name"] == "everything"
    assert "nothing is kept of it; pass --output FILE" in outcome.err

    assert clip_run("moderate", pictures, *words, "--fitted", fitted).status == 0
    rules.write_text(RULES.replace("a thing", "another thing"))
    outcome = clip_run("moderate", pictures, *words, "--fitted", fitted)
    assert (outcome.status, outcome.out) == (2, "")
    assert outcome.err.startswith(f"clip: error: {fitted}: was fitted for policy ")
    outcome = clip_run("moderate", "--fit", tmp_path / "labels.csv", *words, "--plot", "plot.pdf")
    assert (outcome.status, outcome.out) == (2, "")


def test_what_was_learned_is_plotted(clip_run: Run, model_file: str, rules: Path, tmp_path: Path) -> None:
    rows = []
    for number in range(100):
        pixels = np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        pixels[..., 0] = 255 * (number % 2)  # what a head on the embeddings can tell apart
        Image.fromarray(pixels).resize((32, 32), Image.Resampling.NEAREST).save(tmp_path / f"{number}.png")
        rows.append(f"{number}.png,{'thing' if number % 2 else ''}\n")
    (tmp_path / "labels.csv").write_text("path,categories\n" + "".join(rows))
    plot = tmp_path / "ours.svg"
    words = ["--policy", rules, "--model", model_file, "--views", "fast", "--heads", "always"]
    outcome = clip_run("moderate", "--fit", tmp_path / "labels.csv", *words, "--plot", plot)
    assert outcome.status == 0, outcome.err
    assert "100 pictures read" in outcome.out
    assert plot.read_text().startswith("<?xml")
    absent = tmp_path / "absent" / "ours.svg"
    outcome = clip_run("moderate", "--fit", tmp_path / "labels.csv", *words, "--plot", absent)
    assert outcome.status != 0 and str(absent) in outcome.err
    assert "100 pictures read" in outcome.out  # minutes of work are not lost with the figure


def test_pictures_are_attacked(clip_run: Run, model_file: str, pictures: Path, rules: Path) -> None:
    words = ["--policy", rules, "--model", model_file, "--views", "fast", "--attack", "upside down", "--limit", 2]
    outcome = clip_run("moderate", "--red-team", pictures, *words)
    assert outcome.status == 0, outcome.err
    assert "upside down" in outcome.out and "4 pictures that are caught" in outcome.out
    value = json.loads(clip_run("moderate", "--red-team", pictures, *words, "--json").out)
    assert [attack["attack"] for attack in value["attacks"]] == ["upside down"]
    assert value["attacks"][0]["bypassed"]["n"] == 2
