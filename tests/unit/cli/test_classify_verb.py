"""``clip classify``: the same answers as the library's, in three formats."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import pytest

from clip.cli.options import PRECISIONS
from clip.evaluation.zero_shot import ZeroShotClassifier
from clip.inference.loading import load_for_inference
from clip.inference.precision import Precision, resolved

Run = Callable[..., Any]
LABELS = ("owl", "big, old tree", "日本")
OPTION = 'owl,"big, old tree",日本'


def answers(model_file: str, pictures: Path, **options: Any) -> list[Any]:
    """What the library says about the pictures in their order."""
    model, preprocess = load_for_inference(model_file)
    classifier = ZeroShotClassifier(model, LABELS, preprocess=preprocess)
    names = ("a.JPG", "b.png", "d.gif", "inside/c.webp")
    return list(classifier.classify([str(pictures / name) for name in names], **options))


def test_json_has_the_librarys_answers(clip_run: Run, model_file: str, pictures: Path) -> None:
    outcome = clip_run("classify", pictures, "--labels", OPTION, "--model", model_file, "--json", "--batch-size", 3)
    assert (outcome.status, outcome.err) == (0, "")
    for line, answer in zip(outcome.lines, answers(model_file, pictures), strict=True):
        value = json.loads(line)
        assert list(value) == ["file", "label", "rejected", "background", "scores", "engine", "precision"]
        assert (value["engine"], value["precision"]) == ("torch", resolved("auto"))
        assert (value["file"], value["label"], value["rejected"]) == (answer.source, answer.label, False)
        assert [score["label"] for score in value["scores"]] == list(answer.labels)
        for key, expected in (("probability", answer.probabilities), ("cosine", answer.cosines)):
            assert [score[key] for score in value["scores"]] == pytest.approx(expected, abs=1e-5)


def test_csv_has_a_row_for_each_rank(clip_run: Run, model_file: str, pictures: Path) -> None:
    outcome = clip_run("classify", pictures, "--labels", OPTION, "--model", model_file, "--csv", "--top-k", 2)
    rows = list(csv.DictReader(io.StringIO(outcome.out)))
    expected = answers(model_file, pictures, top_k=2)
    assert [(row["file"], row["rank"], row["label"]) for row in rows] == [
        (answer.source, str(rank), label) for answer in expected for rank, label in enumerate(answer.labels, start=1)
    ]
    assert {row["rejected"] for row in rows} == {"false"}
    assert float(rows[0]["probability"]) == pytest.approx(expected[0].probabilities[0], abs=1e-5)


def test_the_table_is_aligned_and_whole_in_a_pipe(clip_run: Run, model_file: str, pictures: Path) -> None:
    outcome = clip_run("classify", pictures, "--labels", "owl,cat", "--model", model_file)
    assert len(outcome.lines) == 4
    assert {line.index("%") for line in outcome.lines} == {outcome.lines[0].index("%")}
    assert outcome.lines[3].startswith(str(pictures / "inside" / "c.webp"))
    assert "\x1b" not in outcome.out


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize("columns", [20, 40, 63, 64, 100, 200])
def test_the_table_fits_any_terminal(
    clip_run: Run, model_file: str, pictures: Path, monkeypatch: pytest.MonkeyPatch, columns: int
) -> None:
    from rich.cells import cell_len
    from rich.text import Text

    terminal = Terminal()
    monkeypatch.setattr(sys, "stdout", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm-256color")
    assert clip_run("classify", pictures, "--labels", OPTION, "--model", model_file).status == 0
    lines = [Text.from_ansi(line).plain for line in terminal.getvalue().splitlines()]
    assert len(lines) == 4
    assert all(cell_len(line) <= columns for line in lines)
    assert all("%" in line for line in lines)
    assert ("█" in lines[0]) == (columns >= 64)
    if columns <= 64:
        assert lines[1].startswith("…")  # the end of a path tells pictures apart


def test_bad_pictures_are_told_counted_and_left_out(clip_run: Run, model_file: str, pictures: Path) -> None:
    (pictures / "c.png").write_bytes(b"no picture")
    outcome = clip_run("classify", pictures, "gone.png", "--labels", OPTION, "--model", model_file, "--json")
    assert outcome.status == 1
    assert [Path(json.loads(line)["file"]).name for line in outcome.lines] == ["a.JPG", "b.png", "d.gif", "c.webp"]
    first, second, total = outcome.err.splitlines()
    assert first.startswith(f"clip: {pictures / 'c.png'}: not a picture")
    assert second == "clip: gone.png: no such file; check the path"
    assert total == "clip: error: 2 of the pictures could not be classified"


def test_a_folder_without_pictures_is_a_failure(clip_run: Run, model_file: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    outcome = clip_run("classify", tmp_path / "empty", "--labels", OPTION, "--model", model_file)
    assert (outcome.status, outcome.out) == (1, "")
    assert "empty: has no pictures" in outcome.err


def test_an_empty_list_on_stdin_is_done(clip_run: Run, model_file: str) -> None:
    outcome = clip_run("classify", "-", "--labels", OPTION, "--model", model_file)
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "")


def test_paths_come_from_stdin(clip_run: Run, model_file: str, pictures: Path) -> None:
    paths = b"%s/b.png\n%s/d.gif\n" % (bytes(pictures), bytes(pictures))
    outcome = clip_run("classify", "-", "--labels", OPTION, "--model", model_file, "--json", stdin=paths)
    assert [Path(json.loads(line)["file"]).name for line in outcome.lines] == ["b.png", "d.gif"]


def test_names_that_no_terminal_should_see_are_escaped(clip_run: Run, model_file: str, pictures: Path) -> None:
    odd = pictures / "two\nlines \x1b[2J.png"
    (pictures / "b.png").rename(odd)
    outcome = clip_run("classify", odd, "--labels", OPTION, "--model", model_file)
    assert outcome.lines[0].startswith(f"{pictures}/two\\nlines \\x1b[2J.png")
    assert len(outcome.lines) == 1
    outcome = clip_run("classify", odd, "--labels", OPTION, "--model", model_file, "--json")
    assert json.loads(outcome.out)["file"] == str(odd)
    outcome = clip_run("classify", odd, "--labels", OPTION, "--model", model_file, "--csv", "--top-k", 1)
    assert list(csv.reader(io.StringIO(outcome.out)))[1][0] == str(odd)


def test_rejection_and_check(clip_run: Run, model_file: str, pictures: Path) -> None:
    call = ("classify", pictures / "b.png", "--labels", OPTION, "--model", model_file, "--check")
    assert clip_run(*call, "--reject-below", 0.01).status == 0
    table = clip_run(*call, "--reject-below", 1)
    assert table.status == 3
    assert "(none)" in table.out
    value = json.loads(clip_run(*call, "--reject-below", 1, "--json").out)
    assert (value["label"], value["rejected"], len(value["scores"])) == (None, True, 3)
    assert clip_run(*call, "--reject-below", 1, "--csv").lines[1].endswith(",true")


def test_background_lets_a_lone_label_be_asked_for(clip_run: Run, model_file: str, pictures: Path) -> None:
    outcome = clip_run(
        "classify", pictures / "b.png", "--labels", "owl", "--background", "--model", model_file, "--json"
    )
    value = json.loads(outcome.out)
    assert outcome.status == 0
    assert value["background"] + value["scores"][0]["probability"] == pytest.approx(1, abs=1e-4)
    assert value["rejected"] == (value["background"] > value["scores"][0]["probability"])


def test_labels_and_templates_from_files(clip_run: Run, model_file: str, pictures: Path, tmp_path: Path) -> None:
    labels, templates = tmp_path / "labels.json", tmp_path / "templates.txt"
    labels.write_text('["owl", ["tree", "bush"]]', encoding="utf-8-sig")
    templates.write_text("# two\na {}\nthe {}\n")
    options = ("--labels-file", labels, "--templates-file", templates, "--template", "{}")
    outcome = clip_run("classify", pictures / "b.png", *options, "--labels", "cat", "--model", model_file, "--json")
    model, preprocess = load_for_inference(model_file)
    classifier = ZeroShotClassifier(
        model, ["cat", "owl", ["tree", "bush"]], ["{}", "a {}", "the {}"], preprocess=preprocess
    )
    expected = classifier(str(pictures / "b.png"))
    scores = json.loads(outcome.out)["scores"]
    assert [score["label"] for score in scores] == list(expected.labels)
    assert [score["cosine"] for score in scores] == pytest.approx(expected.cosines, abs=1e-5)


def test_precisions_are_those_of_the_library() -> None:
    assert get_args(Precision) == PRECISIONS


@pytest.mark.parametrize("asked", ["fp32", "bf16"])
def test_a_person_who_watches_is_told_what_ran(
    clip_run: Run, model_file: str, pictures: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    call = ("classify", pictures / "b.png", "--labels", OPTION, "--model", model_file, "--precision", asked)
    assert clip_run(*call).err == ""  # in a pipe
    terminal = Terminal()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", terminal)
        assert clip_run(*call, "--device", "cpu").status == 0
        first = terminal.getvalue().splitlines()[0]
        clip_run(*call, "--quiet")
    assert first == f"clip: {model_file}: {asked} by torch on cpu"
    assert terminal.getvalue().count("by torch") == 1


def test_a_precision_that_does_not_exist_is_refused_with_those_that_do(clip_run: Run, model_file: str) -> None:
    outcome = clip_run("classify", "b.png", "--labels", OPTION, "--model", model_file, "--precision", "fp8")
    assert (outcome.status, outcome.out) == (2, "")
    assert "'fp8' is not one of 'auto', 'fp32', 'bf16', 'int8'" in outcome.err


def test_an_unknown_model_or_device_is_one_line(clip_run: Run, pictures: Path, model_file: str) -> None:
    call = ("classify", pictures, "--labels", OPTION)
    outcome = clip_run(*call, "--model", "ViT-B-32")
    assert (outcome.status, outcome.out, len(outcome.err.splitlines())) == (1, "", 1)
    assert "'ViT-B-32' not found" in outcome.err
    for device in ("toaster", "cuda:99"):
        outcome = clip_run(*call, "--model", model_file, "--device", device)
        assert (outcome.status, outcome.out, len(outcome.err.splitlines())) == (2, "", 1)
        assert device in outcome.err
