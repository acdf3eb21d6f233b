"""``clip index``, run in this process with a tiny model."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import clip
from clip.search.index import Index

Indexed = Callable[..., dict[str, Any]]


@pytest.fixture
def index(tmp_path: Path) -> Path:
    return tmp_path / "index"


@pytest.fixture
def indexed(clip_run: Any, index: Path, model_file: str) -> Indexed:
    """What ``clip index --json`` says, and the exit status as ``status``; the first call has to make the index."""

    def call(*arguments: object) -> dict[str, Any]:
        model = () if index.exists() or "--model" in arguments else ("--model", model_file)
        outcome = clip_run("index", *arguments, "--into", index, "--json", *model)
        assert outcome.out, outcome.err
        return {"status": outcome.status, "err": outcome.err, **json.loads(outcome.out)}

    return call


def paths(index: Path) -> list[str]:
    with Index.open(index) as opened:
        return [row.path for row in opened.store.known()]


def told(report: dict[str, Any]) -> dict[str, int]:
    """Counts that are not zero."""
    names = ("added", "changed", "touched", "renamed", "copied", "removed", "unchanged", "embedded", "failed")
    return {name: report[name] for name in names if report[name]}


def test_a_folder_is_indexed_and_looked_at_again(
    pictures: Path, index: Path, indexed: Indexed, model_file: str
) -> None:
    report = indexed(pictures)
    assert report["status"] == 0 and told(report) == {"added": 4, "embedded": 4}
    assert (report["index"], report["model"], report["pictures"]) == (str(index), model_file, 4)
    assert report["seconds"].keys() == {"total", "walking", "decoding", "model", "storing"}
    assert paths(index) == [str(pictures / name) for name in ("a.JPG", "b.png", "d.gif", "inside/c.webp")]
    (pictures / "b.png").rename(pictures / "e.png")
    (pictures / "d.gif").unlink()
    report = indexed()
    assert report["status"] == 0 and told(report) == {"renamed": 1, "removed": 1, "unchanged": 2}


def test_embeddings_are_those_of_clip_encode(
    pictures: Path, index: Path, indexed: Indexed, clip_run: Any, model_file: str, tmp_path: Path
) -> None:
    indexed(pictures)
    clip_run("encode", pictures, "--output", tmp_path / "e.npy", "--model", model_file)
    with Index.open(index) as opened:
        (found,) = opened.store.scan()
    order = np.argsort([row.path for row in found.rows])
    assert np.abs(found.embeddings[order] - np.load(tmp_path / "e.npy")).max() < 1e-3  # half precision


def test_the_summary_says_what_was_done(pictures: Path, index: Path, clip_run: Any, model_file: str) -> None:
    outcome = clip_run("index", pictures, "--into", index, "--model", model_file)
    assert outcome.status == 0 and not outcome.out
    assert outcome.err.startswith(f"clip: {index}: 4 pictures: 4 added; ")
    assert clip_run("index", "--into", index, "--quiet").err == ""


def test_bad_files_are_listed_everywhere(pictures: Path, indexed: Indexed, tmp_path: Path) -> None:
    bad = pictures / "bad\n.png"
    bad.write_bytes(b"no picture")
    odd = os.fsdecode(bytes(pictures) + b"/odd\xff.jpg")
    shutil.copy(pictures / "a.JPG", odd)
    report = indexed(pictures, pictures / "nowhere", "--failures", tmp_path / "failures.jsonl")
    assert report["status"] == 1 and told(report) == {"added": 5, "embedded": 5, "failed": 2}
    assert {failure["path"] for failure in report["failures"]} == {str(bad), str(pictures / "nowhere")}
    assert f"clip: {pictures}/bad\\n.png: not a picture in one of the formats" in report["err"]
    lines = (tmp_path / "failures.jsonl").read_text().splitlines()
    assert sorted(map(json.loads, lines), key=str) == sorted(report["failures"], key=str)


def test_a_disk_that_is_away(pictures: Path, indexed: Indexed, tmp_path: Path) -> None:
    indexed(pictures)
    pictures.rename(tmp_path / "away")
    report = indexed()
    assert report["status"] == 0 and report["pictures"] == 4
    assert report["kept"] == [{"root": str(pictures), "pictures": 4, "reason": "is not there"}]
    assert f"to forget them: clip index --remove-missing {pictures} --into" in report["err"]
    assert told(indexed("--remove-missing", pictures)) == {"removed": 4}


def test_another_model_is_refused_and_re_embedding_changes_it(
    pictures: Path, index: Path, indexed: Indexed, clip_run: Any, model_file: str, tmp_path: Path
) -> None:
    indexed(pictures)
    model, _ = clip.load(model_file, device="cpu")
    with torch.no_grad():
        next(model.visual.parameters()).mul_(-1)
    other = tmp_path / "other.safetensors"
    clip.save(model, other)
    outcome = clip_run("index", pictures, "--into", index, "--model", other)
    assert outcome.status == 2 and "clip index --re-embed --model" in outcome.err
    (pictures / "b.png").rename(tmp_path / "b.png")
    outcome = clip_run("index", "--re-embed", "--into", index, "--model", other)
    assert outcome.status == 1 and "1 of 4 pictures cannot be read, so the index stays as it was" in outcome.err
    assert indexed()["model"] == model_file
    (tmp_path / "b.png").rename(pictures / "b.png")
    indexed()
    report = indexed("--re-embed", "--model", other)
    assert told(report) == {"added": 1, "unchanged": 3, "embedded": 1}  # the rest was kept
    assert report["model"] == str(other) and told(indexed()) == {"unchanged": 4}
    with Index.open(index) as opened:
        assert not opened.encoder.is_loaded
        (found,) = opened.store.scan()
        assert np.abs(opened.encoder.images([found.rows[0].path]) - found.embeddings[0]).max() < 1e-3


def test_tables_shards_and_embeddings_are_sources(
    pictures: Path, index: Path, indexed: Indexed, clip_run: Any, model_file: str, tmp_path: Path
) -> None:
    table = tmp_path / "table.csv"
    table.write_text("path,year\npictures/b.png,2001\npictures/gone.png,2002\n")
    report = indexed(table)
    assert report["status"] == 1 and told(report) == {"added": 1, "embedded": 1, "failed": 1}
    embeddings = tmp_path / "e.npy"
    clip_run("encode", pictures / "a.JPG", "--output", embeddings, "--model", model_file)
    assert told(indexed(embeddings)) == {"added": 1}
    assert paths(index) == [str(pictures / "a.JPG"), str(pictures / "b.png")]
    assert told(indexed(pictures / "d.gif")) == {"added": 1, "embedded": 1}
    outcome = clip_run("index", "--into", index)
    assert outcome.status == 2 and "no folder was indexed yet" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--re-embed", "folder"], "leave the folders out"),
        (["folder", "--workers", "2"], "are for --engine ray"),
        (["--re-embed", "--engine", "ray"], "leave --engine out"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str, clip_run: Any) -> None:
    outcome = clip_run("index", *arguments)
    assert outcome.status == 2 and message in outcome.err


def test_an_index_is_not_made_of_nothing(index: Path, clip_run: Any) -> None:
    outcome = clip_run("index", "--into", index)
    assert outcome.status == 1 and "no index is there" in outcome.err and not index.exists()


def test_embeddings_say_what_model_a_new_index_is_of(
    pictures: Path, index: Path, clip_run: Any, model_file: str, tmp_path: Path
) -> None:
    clip_run("encode", pictures, "--output", tmp_path / "e.npy", "--model", model_file)
    outcome = clip_run("index", tmp_path / "e.npy", "--into", index, "--json")
    assert outcome.status == 0, outcome.err
    assert (json.loads(outcome.out)["model"], len(paths(index))) == (model_file, 4)
