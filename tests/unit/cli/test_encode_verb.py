"""``clip encode``: rows as the library gives them, whatever happens on the way."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from clip.embedding_files import read_embeddings
from clip.features import encode_images, encode_texts
from clip.inference.loading import fingerprint_of, load_for_inference
from clip.inference.precision import resolved

Run = Callable[..., Any]


def test_pictures_become_rows_in_their_order(clip_run: Run, model_file: str, pictures: Path, tmp_path: Path) -> None:
    (pictures / "c.png").write_bytes(b"no picture")
    output = tmp_path / "out.npy"
    outcome = clip_run("encode", pictures, "-o", output, "--model", model_file, "--batch-size", 3, "--json")
    assert outcome.status == 1  # a picture failed; all others are there
    about = json.loads(outcome.out)
    runtime = {"engine": "torch", "precision": resolved("auto")}
    assert about == {"output": str(output), "rows": 4, "embed_dim": 16, "failed": 1, "resumed": 0, **runtime}
    assert "c.png" in outcome.err
    stored = read_embeddings(output)
    names = [str(pictures / name) for name in ("a.JPG", "b.png", "d.gif", "inside/c.webp")]
    assert stored.sources == names
    assert list(stored.failures) == [str(pictures / "c.png")]
    assert stored.about.items() >= {**runtime, "fingerprint": fingerprint_of(model_file)}.items()
    model, preprocess = load_for_inference(model_file)
    expected = np.concatenate([batch.embeddings for batch in encode_images(model, preprocess, names)])
    np.testing.assert_allclose(stored.embeddings, expected, atol=1e-6)


@pytest.mark.parametrize("suffix", ["npy", "parquet"])
def test_texts_become_rows(clip_run: Run, model_file: str, tmp_path: Path, suffix: str) -> None:
    texts = ["owl", "", "a long text of some words", "Käuzchen", "cat <|endoftext|> dog"]
    source, output = tmp_path / "texts.txt", tmp_path / f"out.{suffix}"
    source.write_text("\r\n".join(texts), encoding="utf-8-sig", newline="")
    outcome = clip_run("encode", "--texts", source, "-o", output, "--model", model_file)
    assert (outcome.status, outcome.out) == (0, "")
    assert outcome.err == f"clip: {output}: 5 rows of 16; 0 failed; {resolved('auto')} by torch on cpu\n"
    model, _ = load_for_inference(model_file)
    expected = np.concatenate([batch.embeddings for batch in encode_texts(model, texts)])
    if suffix == "npy":
        found, sources = np.load(output), read_embeddings(output).sources
    else:
        table = pyarrow.parquet.read_table(output)
        found, sources = np.array(table.column("embedding").to_pylist()), table.column("source").to_pylist()
    assert sources == texts
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_long_text_is_left_out_or_cut(clip_run: Run, model_file: str, tmp_path: Path) -> None:
    texts = b"owl\n" + b"word " * 100 + b"\ncat"
    call = ("encode", "--texts", "-", "-o", tmp_path / "out.npy", "--model", model_file, "--json")
    outcome = clip_run(*call, stdin=texts)
    assert outcome.status == 1
    assert outcome.err.startswith("clip: line 2 ('word word")
    assert "pass --truncate to cut it" in outcome.err
    outcome = clip_run(*call, "--truncate", "--overwrite", stdin=texts)
    assert outcome.status == 0
    assert json.loads(outcome.out)["rows"] == 3


def test_what_is_not_utf8_is_told_with_its_line(clip_run: Run, model_file: str, tmp_path: Path) -> None:
    outcome = clip_run("encode", "--texts", "-", "-o", tmp_path / "a.npy", "--model", model_file, stdin=b"owl\n\xff\n")
    assert outcome.status == 1
    assert outcome.err == "clip: error: -: line 2 is not UTF-8; save the file as UTF-8\n"
    outcome = clip_run("encode", "--texts", tmp_path / "gone", "-o", tmp_path / "b.npy", "--model", model_file)
    assert outcome.status == 1
    assert "gone: cannot be read (No such file or directory)" in outcome.err


def test_a_finished_file_is_kept(clip_run: Run, model_file: str, pictures: Path, tmp_path: Path) -> None:
    call = ("encode", pictures, "-o", tmp_path / "out.npy", "--model", model_file, "--quiet")
    assert clip_run(*call).status == 0
    outcome = clip_run(*call)
    assert outcome.status == 2
    assert "pass --overwrite" in outcome.err
    outcome = clip_run(*call, "--overwrite")
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "")


def test_what_was_begun_in_another_precision_is_not_continued(
    clip_run: Run, model_file: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ("encode", pictures, "-o", tmp_path / "out.npy", "--model", model_file, "--precision")
    with monkeypatch.context() as patch:
        patch.setattr("clip.embedding_files.EmbeddingWriter.finish", _interrupt)
        assert clip_run(*call, "fp32").status == 130
    outcome = clip_run(*call, "bf16")
    assert outcome.status == 1
    assert "begun with another precision" in outcome.err
    assert clip_run(*call, "fp32").status == 0
    assert read_embeddings(tmp_path / "out.npy").about["precision"] == "fp32"


def test_a_changed_list_is_told_and_restart_begins_anew(
    clip_run: Run, model_file: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = ("encode", pictures, "-o", tmp_path / "out.npy", "--model", model_file, "--batch-size", 1, "--json")
    with monkeypatch.context() as patch:
        patch.setattr("clip.embedding_files.EmbeddingWriter.finish", _interrupt)
        assert clip_run(*call).status == 130
    (pictures / "0.png").write_bytes((pictures / "b.png").read_bytes())
    outcome = clip_run(*call)
    assert outcome.status == 1
    assert "the list has changed" in outcome.err
    outcome = clip_run(*call, "--restart")
    assert outcome.status == 0
    assert json.loads(outcome.out)["rows"] == 5


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
