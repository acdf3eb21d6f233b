"""``clip score``: the library's scores in three formats, the best of candidates, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clip.cli import main
from clip.guidance.scores import Candidate, Scored, score_images
from clip.inference.loading import load_for_inference

Run = Callable[..., Any]
NAMES = ("a.JPG", "b.png", "d.gif", "inside/c.webp")


@pytest.fixture(autouse=True)
def _among_the_verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    if "score" not in main.VERBS:
        monkeypatch.setattr(main, "VERBS", (*main.VERBS, "score"))


def scores(model_file: str, pictures: Path, text: str = "an owl", references: tuple[str, ...] = ()) -> list[Scored]:
    """What the library says, in fp32."""
    model, preprocess = load_for_inference(model_file, precision="fp32")
    candidates = [Candidate(str(pictures / name), text, references) for name in NAMES]
    return list(score_images(model, preprocess, candidates))


def test_the_table(clip_run: Run, model_file: str, pictures: Path) -> None:
    outcome = clip_run("score", pictures, "--text", "an owl", "--model", model_file, "--batch-size", 3)
    expected = scores(model_file, pictures)
    assert (outcome.status, outcome.err) == (0, "")
    mean = sum(one.clip_score for one in expected) / 4
    assert outcome.lines == [
        "CLIPScore  picture",
        *(f"{one.clip_score:>9.4f}  {one.image}" for one in expected),
        f"{mean:>9.4f}  mean of 4",
    ]


def test_json_with_references_and_the_mean(clip_run: Run, model_file: str, pictures: Path) -> None:
    outcome = clip_run(
        *("score", pictures, "--text", "an owl", "--reference", "a bird", "--reference", "owls"),
        *("--model", model_file, "--json"),
    )
    *values, last = [json.loads(line) for line in outcome.lines]
    expected = scores(model_file, pictures, references=("a bird", "owls"))
    for value, one in zip(values, expected, strict=True):
        assert list(value) == ["file", "text", "clip_score", "ref_clip_score", "rank", "cut", "engine", "precision"]
        assert (value["file"], value["text"], value["rank"], value["cut"]) == (one.image, "an owl", None, False)
        assert (value["engine"], value["precision"]) == ("torch", "fp32"), "whatever the processor could do faster"
        assert value["clip_score"] == pytest.approx(one.clip_score, abs=1e-5)
        assert value["ref_clip_score"] == pytest.approx(one.ref_clip_score, abs=1e-5)
    assert last["mean"]["pictures"] == last["mean"]["pictures_with_references"] == 4
    for key in ("clip_score", "ref_clip_score"):
        assert last["mean"][key] == pytest.approx(sum(value[key] for value in values) / 4, abs=1e-5)


def test_captions_for_each_picture(clip_run: Run, model_file: str, pictures: Path) -> None:
    file = pictures / "captions.csv"
    file.write_text("path,caption,references\nb.png,a cat,a kitten|two cats\na.JPG,an owl,\n")
    outcome = clip_run("score", "--captions", file, "--model", model_file)
    assert (outcome.status, outcome.err) == (0, "")
    header, first, second, mean = outcome.lines
    assert header == "CLIPScore  RefCLIPScore  picture  text"
    assert first.endswith(f"  {pictures / 'b.png'}  a cat")
    assert second.split()[1] == "-", "no reference, no RefCLIPScore"
    assert mean.endswith("mean of 2, 1 with references")
    assert mean.split()[1] == first.split()[1]


def test_the_best_of_candidates(clip_run: Run, model_file: str, pictures: Path) -> None:
    best = sorted(scores(model_file, pictures), key=lambda one: -one.clip_score)
    options = ("score", pictures, "--text", "an owl", "--model", model_file)
    outcome = clip_run(*options, "--best-of")
    assert outcome.lines == ["CLIPScore  picture", *(f"{one.clip_score:>9.4f}  {one.image}" for one in best)]
    assert clip_run(*options, "--best-of", 2, "--paths").lines == [str(one.image) for one in best[:2]]
    values = [json.loads(line) for line in clip_run(*options, "--best-of", 3, "--json").lines]
    assert [(value["rank"], value["file"]) for value in values] == [(i + 1, best[i].image) for i in range(3)]


def test_the_best_for_each_text(clip_run: Run, model_file: str, pictures: Path) -> None:
    file = pictures / "captions.csv"
    rows = [(name, text) for name in NAMES for text in ("an owl", "a cat")]
    file.write_text("path,caption\n" + "".join(f"{name},{text}\n" for name, text in rows))
    expected = [
        str(max(scores(model_file, pictures, text), key=lambda one: one.clip_score).image)
        for text in ("an owl", "a cat")
    ]
    outcome = clip_run("score", "--captions", file, "--best-of", 1, "--paths", "--model", model_file)
    assert outcome.lines == expected
    table = clip_run("score", "--captions", file, "--best-of", 1, "--model", model_file).lines
    assert [line.split("  ")[-1] for line in table if line] == ["text", "an owl", "a cat"]


def test_paths_from_stdin_and_a_picture_that_cannot_be_read(clip_run: Run, model_file: str, pictures: Path) -> None:
    listed = f"{pictures / 'b.png'}\n{pictures / 'notes.txt'}\n".encode()
    outcome = clip_run("score", "-", "--text", "an owl", "--model", model_file, stdin=listed)
    assert outcome.status == 1
    assert outcome.lines[-1].endswith("mean of 1")
    first, last = outcome.err.splitlines()
    assert "notes.txt" in first
    assert last == "clip: error: 1 of the pictures could not be scored"


def test_nothing_to_score_has_no_mean(clip_run: Run, model_file: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = clip_run("score", tmp_path / "empty", "--text", "an owl", "--model", model_file)
    assert (outcome.status, outcome.out) == (1, "")
    assert "has no pictures" in outcome.err


def test_a_text_that_was_cut_is_told(clip_run: Run, model_file: str, pictures: Path) -> None:
    outcome = clip_run("score", pictures / "b.png", "--text", "owl " * 100, "--model", model_file)
    assert outcome.status == 0
    assert "warning: 1 of the pictures have a text longer than the context" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("a.png",), "give either --text TEXT for all pictures, or --captions FILE"),
        (("a.png", "--text", "x", "--captions", "y.csv"), "give either --text"),
        (("--text", "x"), "there are no pictures; name files"),
        (("a.png", "--captions", "y.csv"), "PICTURES and --captions exclude each other"),
        (("--captions", "y.csv", "--reference", "x"), "--reference and --captions exclude each other"),
        (("a.png", "--text", "  "), "--text is empty"),
        (("a.png", "--text", "x", "--reference", ""), "a --reference is empty"),
        (("a.png", "--text", "x", "--paths"), "--paths goes with --best-of"),
        (("a.png", "--text", "x", "--best-of", "--paths", "--json"), "--paths goes with --best-of and without --json"),
        (("a.png", "--text", "x", "--best-of", "0"), "0 is not in the range x>=1"),
    ],
)
def test_wrong_usage(clip_run: Run, arguments: tuple[str, ...], message: str) -> None:
    outcome = clip_run("score", *arguments)
    assert (outcome.status, outcome.out) == (2, "")
    assert message in " ".join(outcome.err.split())


def test_a_wrong_file_of_captions_fails_before_the_model_is_loaded(clip_run: Run, tmp_path: Path) -> None:
    (tmp_path / "captions.csv").write_text("path,caption\na.png,\n")
    outcome = clip_run("score", "--captions", tmp_path / "captions.csv", "--model", "no-such-model")
    assert outcome.status == 1
    assert "captions.csv, line 2: caption is ''" in outcome.err
