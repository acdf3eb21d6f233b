"""What is searched for is found: the README's example, and real clip art through an index as by exact evaluation."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import clip
from clip.data.sources import open_source
from clip.evaluation.datasets import embed_source
from clip.evaluation.retrieval import evaluate_retrieval
from clip.search.indexing import add_items
from clip.search.sources import open_source as open_pictures

ROOT = Path(__file__).parents[2]
CLIPART = ROOT / "tests/golden/clipart/clipart.tar"


def _clip(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clip", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> str:
    address = str(tmp_path_factory.mktemp("search") / "examples.index")
    made = _clip("index", "examples", "--into", address)
    assert made.returncode == 0, made.stderr
    return address


@pytest.mark.parametrize(
    ("query", "name"),
    [
        ("a fox", "fox.png"),
        ("fire engine", "fire_engine.png"),
        ("a birthday cake with candles", "birthday_cake.png"),
        ("hot springs", "hot_springs.png"),
        ("a diving mask", "diving_mask.png"),
    ],
)
def test_pictures_of_the_examples_are_found_first(examples: str, query: str, name: str) -> None:
    found = _clip("search", query, "--in", examples, "-k", "3", "--json")
    first = json.loads(found.stdout.splitlines()[0])
    assert os.path.basename(first["path"]) == name  # noqa: PTH119


def test_what_no_picture_shows_is_not_found(examples: str) -> None:
    found = _clip("search", "an elephant", "--in", examples, "--min-match", "0.5", "--check")
    assert (found.returncode, found.stdout) == (3, "")
    assert "no picture is likely enough to match" in found.stderr


def test_recall_through_an_index_is_that_of_exact_evaluation(tmp_path: Path) -> None:
    address = tmp_path / "clipart.index"
    with clip.Index.open(address, create=True) as index:
        pictures = open_pictures(str(CLIPART))
        assert pictures is not None
        report = add_items(index.store, index.encoder, pictures.items(on_problem=pytest.fail))
        index.refresh()
        assert (report.added, len(index)) == (216, 216)

        source = open_source(str(CLIPART))
        titles = {row.path: row.metadata for found in index.store.scan() for row in found.rows}
        wanted: dict[str, set[str]] = {}
        for path, metadata in titles.items():
            wanted.setdefault(metadata["caption"], set()).add(path)
        hits = 0
        for title, paths in wanted.items():
            quoted = '"{}"'.format(title.replace("\\", "\\\\").replace('"', '\\"'))
            results = index.search(quoted, k=10, group=False)
            hits += any(hit.path in paths for hit in results.hits)

        model, preprocess = index.encoder.model, index.encoder.preprocess
        exact, left_out = evaluate_retrieval(model, embed_source(model, preprocess, source), resamples=10)
        assert not left_out
        recall = next(measure for measure in exact.text_to_image.measures if measure.name == "recall@10")
        assert recall.n == len(wanted) == 195
        assert abs(hits / len(wanted) - recall.value) <= 0.01
        assert recall.value > 0.5
