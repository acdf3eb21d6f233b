"""``clip evaluate``: the library's numbers in a table and as JSON, and what is refused before a model is loaded."""

from __future__ import annotations

import functools
import io
import json
import re
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clip.data.sources import open_source
from clip.evaluation import probe as generated
from clip.evaluation.evaluate import evaluate
from clip.inference.loading import load_for_inference, runtime_of

Run = Callable[..., Any]


@pytest.fixture
def table(pictures: Path) -> Path:
    """Captions of the four pictures, two of them of one."""
    path = pictures / "pairs.csv"
    rows = ["b.png,an owl", "b.png,a bird", "a.JPG,a cat", "inside/c.webp,a dog", "d.gif,a fox"]
    path.write_text("image,caption\n" + "\n".join(rows))
    return path


@pytest.fixture
def classes(tmp_path: Path) -> Path:
    """Four pictures of each of seven classes in their folders, in two splits."""
    for split, seed in (("train", 0), ("test", 1)):
        generator = np.random.default_rng(seed)
        for label, name in enumerate(("ant", "bee", "cow", "dog", "elk", "fox", "gnu")):
            folder = tmp_path / "classes" / split / name
            folder.mkdir(parents=True)
            for i in range(4):
                noise = generator.integers(0, 30, (32, 32, 3))
                Image.fromarray((30 * label + noise).astype(np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "classes"


def without_time(value: dict[str, Any]) -> dict[str, Any]:
    return {key: part for key, part in value.items() if key != "seconds"}


def same(ours: Any, theirs: Any) -> None:
    """Equal up to the digits that are printed."""
    if isinstance(theirs, dict):
        assert list(ours) == list(theirs)
        for key in theirs:
            same(ours[key], theirs[key])
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs, strict=True):
            same(one, other)
    elif isinstance(theirs, float):
        assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-9)
    else:
        assert ours == theirs


def test_json_of_pairs_has_the_librarys_numbers(clip_run: Run, model_file: str, table: Path) -> None:
    outcome = clip_run("evaluate", model_file, "--data", table, "--json", "--bootstrap", 100, "--seed", 3)
    assert (outcome.status, outcome.err) == (0, "")
    model, preprocess = load_for_inference(model_file)
    expected = evaluate(model, preprocess, open_source(str(table)), resamples=100, seed=3, name=model_file)
    same(without_time(json.loads(outcome.out)), without_time(expected.to_dict()))
    assert json.loads(outcome.out)["retrieval"]["captions"] == 5


def test_json_of_classes_has_every_part(clip_run: Run, model_file: str, classes: Path) -> None:
    arguments = ("--data", classes, "--split", "test", "--train", classes, "--train-split", "train")
    outcome = clip_run(
        "evaluate", model_file, *arguments, "--precision", "fp32", "--json", "--bootstrap", 100, "--template", "{}"
    )
    assert (outcome.status, outcome.err) == (0, "")
    value = json.loads(outcome.out)
    model, preprocess = load_for_inference(model_file, precision="fp32")
    expected = evaluate(
        model,
        preprocess,
        open_source(classes, split="test"),
        train=open_source(classes, split="train"),
        templates=["{}"],
        resamples=100,
        name=model_file,
    )
    same(without_time(value), without_time(expected.to_dict()))
    assert [point["shots"] for point in value["few_shot"]["points"]] == [1, 2, 4]
    assert value["linear_probe"]["top1"]["value"] > 0.5  # brightness tells these classes apart


def test_the_table_shows_each_number_with_interval_chance_and_count(
    clip_run: Run, model_file: str, classes: Path
) -> None:
    arguments = ("--data", classes, "--split", "test", "--train", classes, "--train-split", "train")
    outcome = clip_run("evaluate", model_file, *arguments, "--bootstrap", 100)
    assert (outcome.status, outcome.err) == (0, "")
    assert outcome.lines[0].endswith("test: 28 images, 7 classes")
    sections = [line.partition("  ")[0] for line in outcome.lines if "95 % interval" in line]
    assert sections == [
        "zero-shot classification",
        "zero-shot classification, by template",
        "zero-shot classification, calibration",
        "linear probe",
        "linear probe, calibration",
        "few-shot, top-1 accuracy",
    ]
    measured = re.compile(r"-?[\d.]+( %)?  +-?[\d.]+ to -?[\d.]+( %)?  +([\d.]+ %  )?(28|14) images$")
    assert sum(bool(measured.search(line)) for line in outcome.lines) == 3 + 6 + 6 + 3 + 6 + 4
    assert not any(line.endswith(" ") for line in outcome.lines)
    assert "\x1b" not in outcome.out
    assert any(line.startswith("always the most frequent class: 14.3 %") for line in outcome.lines)


def test_a_picture_that_cannot_be_read_is_told_and_costs_the_status(
    clip_run: Run, model_file: str, classes: Path
) -> None:
    (classes / "test" / "bee" / "2.png").write_bytes(b"torn")
    outcome = clip_run("evaluate", model_file, "--data", classes, "--split", "test", "--bootstrap", 100)
    assert outcome.status == 1
    assert "27 images, 7 classes, 1 left out" in outcome.lines[0]
    first, last = outcome.err.splitlines()
    assert str(Path("bee") / "2.png") in first
    assert last == "clip: error: could not be used, and in none of the numbers: 1"


def test_another_model_is_subtracted(clip_run: Run, model_file: str, table: Path) -> None:
    outcome = clip_run("evaluate", model_file, "--data", table, "--against", model_file, "--bootstrap", 100, "--json")
    difference = json.loads(outcome.out)["comparison"]
    assert difference["other"] == model_file
    assert difference["image_to_text/recall@1"]["value"] == 0
    assert difference["image_to_text/recall@1"]["low"] < 0 < difference["image_to_text/recall@1"]["high"]


def test_precisions_are_compared_and_shown(clip_run: Run, model_file: str, table: Path) -> None:
    arguments = ("--data", table, "--bootstrap", 100, "--against", model_file)
    precisions = ("--precision", "bf16", "--against-precision", "fp32")
    value = json.loads(clip_run("evaluate", model_file, *arguments, *precisions, "--json").out)
    assert value["runtime"] == {"engine": "torch", "precision": "bf16", "device": "cpu"}
    assert value["comparison"]["other_runtime"] == {"engine": "torch", "precision": "fp32", "device": "cpu"}
    lines = clip_run("evaluate", model_file, *arguments, *precisions).lines
    assert lines[1] == "bf16 by torch on cpu"
    assert lines[-2] == f"{model_file}: fp32 by torch on cpu"
    value = json.loads(clip_run("evaluate", model_file, *arguments, "--precision", "fp32", "--json").out)
    assert value["runtime"] == value["comparison"]["other_runtime"]  # by default the two run alike
    assert value["runtime"]["precision"] == "fp32"


def test_what_ran_is_the_second_line(clip_run: Run, model_file: str) -> None:
    lines = clip_run("evaluate", model_file, "--probe", "--probe-count", 1).lines
    assert lines[:2] == [model_file, str(runtime_of(load_for_inference(model_file)[0]))]


def test_class_names_of_a_file_compete(clip_run: Run, model_file: str, table: Path, tmp_path: Path) -> None:
    names = tmp_path / "names.json"
    names.write_text(json.dumps([["an owl", "a bird"], "a cat", "a dog", "a fox", "an elk"]))
    outcome = clip_run("evaluate", model_file, "--data", table, "--class-names", names, "--json", "--bootstrap", 100)
    value = json.loads(outcome.out)["classification"]
    assert value["classes"] == 5
    assert [row["n"] for row in value["per_class"]] == [1, 1, 1, 1, 0]
    assert value["per_class"][4] == {"class": "an elk", "recall": None, "n": 0}


def test_the_page_is_written(clip_run: Run, model_file: str, classes: Path, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    arguments = ("--data", classes, "--split", "test", "--bootstrap", 100)
    outcome = clip_run("evaluate", model_file, *arguments, "--html", page)
    assert (outcome.status, outcome.err) == (0, f"clip: {page}: written\n")
    assert page.read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html")


def test_without_matplotlib_a_page_is_refused_before_a_model_is_loaded(
    clip_run: Run, table: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    outcome = clip_run("evaluate", "no such model", "--data", table, "--html", tmp_path / "report.html")
    assert outcome.status == 1
    assert "pip install 'everyclip[plots]'" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "pass --data ADDRESS, or --probe"),
        (("--probe", "--train", "x"), "need --data"),
        (("--data", "{table}", "--against-precision", "fp32"), "--against-precision is about --against"),
        (("--data", "{table}", "--things", "x"), "--things and --probe-count are about --probe"),
        (("--data", "{table}", "--probe-count", "3"), "--things and --probe-count are about --probe"),
        (("--data", "{table}", "--html", "nowhere/x.html"), "its folder does not exist"),
        (("--data", "{table}", "--template", "a photo"), "has no {}"),
        (("--data", "{table}", "--task", "linear-probe"), "needs training pictures"),
        (("--data", "{table}", "--train", "{table}"), "training pictures are for"),
        (("--data", "{table}", "--bootstrap", "5"), "5"),
        (("--data", "{table}", "--data-kind", "cvs"), "must be one of csv"),
    ],
)
def test_wrong_usage_is_told_before_a_model_is_loaded(
    clip_run: Run, table: Path, arguments: tuple[str, ...], message: str
) -> None:
    outcome = clip_run("evaluate", "no such model", *(part.replace("{table}", str(table)) for part in arguments))
    assert outcome.status == 2
    assert message in outcome.err.replace("\n", " ")


def test_what_is_wrong_with_the_data_is_told_in_the_words_of_the_command(
    clip_run: Run, model_file: str, pictures: Path
) -> None:
    table = pictures / "odd.csv"
    table.write_text("image,what\nb.png,an owl\n")
    outcome = clip_run("evaluate", model_file, "--data", table)
    assert outcome.status == 1
    assert "pass --caption-column" in outcome.err
    outcome = clip_run("evaluate", model_file, "--data", table, "--caption-column", "what")
    assert outcome.status == 1
    assert "1 images with 1 distinct captions" in outcome.err


def test_the_probe_needs_no_data_and_joins_it(
    clip_run: Run, model_file: str, table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated, "run", functools.partial(generated.run, kinds=("counting", "colour")))
    outcome = clip_run("evaluate", model_file, "--probe", "--probe-count", 3, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    alone = json.loads(outcome.out)
    assert (alone["task"], alone["images"]) == ("probe", 0)
    assert list(alone["probe"]["kinds"]) == ["counting", "colour"]
    outcome = clip_run("evaluate", model_file, "--data", table, "--probe", "--probe-count", 3, "--bootstrap", 100)
    assert outcome.status == 0
    assert sum("95 % interval" in line for line in outcome.lines) == 3  # two ways of retrieval, and the probe
    verdicts = [line for line in outcome.lines if "count to six" in line or "which thing has which colour" in line]
    assert outcome.lines[-2:] == verdicts  # below the numbers
    assert all(line.startswith("it ") for line in verdicts)


def test_the_probe_takes_things_of_your_own(clip_run: Run, model_file: str, tmp_path: Path) -> None:
    for name in ("ant", "bee", "cow", "dog", "elk", "fox", "gnu", "hen"):
        Image.new("RGB", (16, 16), "white").save(tmp_path / f"{name}.png")
    outcome = clip_run("evaluate", model_file, "--probe", "--probe-count", 2, "--things", tmp_path, "--json")
    assert (outcome.status, outcome.err) == (0, "")
    value = json.loads(outcome.out)["probe"]
    assert (value["things"], value["count"], value["omitted"]) == (str(tmp_path), 2, ["fine"])
    outcome = clip_run("evaluate", "no such model", "--probe", "--things", tmp_path / "nowhere")
    assert outcome.status == 1
    assert "nowhere is no folder" in outcome.err


def test_shards_in_the_layout_of_clip_benchmark(clip_run: Run, model_file: str, classes: Path, tmp_path: Path) -> None:
    for split in ("train", "test"):
        folder = tmp_path / "benchmark" / split
        folder.mkdir(parents=True)
        pictures = sorted((classes / split).glob("*/*.png"))
        for shard in range(2):
            with tarfile.open(folder / f"{shard}.tar", "w") as tar:
                for i in range(shard, len(pictures), 2):
                    tar.add(pictures[i], f"s{i:07}.png")
                    label = tarfile.TarInfo(f"s{i:07}.cls")
                    label.size = 1
                    tar.addfile(label, io.BytesIO(str(i // 4).encode()))
        (folder / "nshards.txt").write_text("2")
    (tmp_path / "benchmark" / "classnames.txt").write_text("ant\nbee\ncow\ndog\nelk\nfox\ngnu\n")
    options = ("--split", "test", "--json", "--bootstrap", 100)
    shards, folders = (
        json.loads(clip_run("evaluate", model_file, "--data", address, *options).out)["classification"]
        for address in (tmp_path / "benchmark", classes)
    )
    assert shards["per_class"] == folders["per_class"]
    assert shards["top1"] == folders["top1"]
