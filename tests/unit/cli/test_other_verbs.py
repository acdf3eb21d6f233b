"""``clip models``, ``clip convert`` and ``clip download``."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

import clip
from clip.checkpoints.registry import OPENAI_MODELS
from clip.cli.models import FACTS
from clip.model import ARCHITECTURES, CLIP

Run = Callable[..., Any]


# models ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OPENAI_MODELS)
def test_the_facts_are_those_of_the_architecture(name: str) -> None:
    with torch.device("meta"):
        model = CLIP.from_config(ARCHITECTURES[name])
    facts = FACTS[name]
    assert facts.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert (facts.resolution, facts.embed_dim) == (model.visual.input_resolution, model.config.embed_dim)


def test_models_lists_what_load_takes(clip_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    (tmp_path / ".cache" / "clip").mkdir(parents=True)
    (tmp_path / ".cache" / "clip" / "ViT-B-32.pt").touch()
    outcome = clip_run("models", "--json")
    assert (outcome.status, outcome.err) == (0, "")
    models = {model["name"]: model for model in map(json.loads, outcome.lines)}
    assert [name for name in clip.available_models() if name != "pocket"] == [
        name for name in models if name != "pocket"
    ]
    for model in models.values():
        keys = ["name", "resolution", "embed_dim", "parameters", "size_mb", "licence", "path"]
        assert list(model) == keys
    assert models["ViT-B/32"]["path"] == str(tmp_path / ".cache" / "clip" / "ViT-B-32.pt")
    assert models["RN50"]["path"] is None
    header, *rows = clip_run("models").lines
    assert header.split()[0] == "NAME"
    assert [row.split()[0] for row in rows] == list(models)
    assert {row.split()[0] for row in rows if row.endswith("yes")} - {"pocket"} == {"ViT-B/32"}


def test_the_bundled_model_is_described_by_its_own_file(
    clip_run: Run, model_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pocket.safetensors").write_bytes(Path(model_file).read_bytes())
    monkeypatch.setattr("clip.cli.models.package_files", lambda package: tmp_path)
    found = json.loads(clip_run("models", "--json").lines[-1])
    model, _ = clip.load(model_file)
    assert (found["name"], found["resolution"], found["embed_dim"]) == ("pocket", 32, 16)
    assert found["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    assert found["path"] == str(tmp_path / "pocket.safetensors")


# convert --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("to", ["openai", "openclip", "transformers", "everyclip"])
def test_what_is_converted_gives_the_same_features(clip_run: Run, model_file: str, tmp_path: Path, to: str) -> None:
    destination = tmp_path / ("out.safetensors" if to == "everyclip" else "out.pt" if to == "openai" else "out")
    outcome = clip_run("convert", model_file, destination, "--to", to, "--json")
    assert outcome.status == 0, outcome.err
    assert json.loads(outcome.out)["config"]["embed_dim"] == 16
    tokens = clip.tokenize(["an owl"])
    with torch.no_grad():
        expected = clip.load(model_file)[0].encode_text(tokens)
        found = clip.load(destination, activation="quick_gelu" if to == "openai" else None)[0].encode_text(tokens)
    torch.testing.assert_close(found, expected)


def test_convert_says_what_it_did_and_fails_in_one_line(clip_run: Run, model_file: str, tmp_path: Path) -> None:
    outcome = clip_run("convert", model_file, tmp_path / "out", "--to", "openclip")
    assert (outcome.status, outcome.out) == (0, "")
    assert outcome.err.startswith(f"clip: {model_file} (")
    outcome = clip_run("convert", model_file, tmp_path / "out", "--to", "openclip")
    assert (outcome.status, outcome.out, len(outcome.err.splitlines())) == (1, "", 1)
    outcome = clip_run("convert", __file__, tmp_path / "other", "--to", "openclip")
    assert (outcome.status, outcome.out, len(outcome.err.splitlines())) == (1, "", 1)


# download -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A mirror that has no model at all."""

    class Empty(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server calls
            self.send_error(404)

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Empty) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        monkeypatch.setenv("EVERYCLIP_MIRROR", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield
        server.shutdown()
        thread.join()


@pytest.mark.usefixtures("mirror")
def test_a_download_that_fails_is_one_line(clip_run: Run, tmp_path: Path) -> None:
    outcome = clip_run("download", "RN50", "--download-root", tmp_path)
    assert (outcome.status, outcome.out, len(outcome.err.splitlines())) == (1, "", 1)
    assert "404" in outcome.err
    assert not (tmp_path / "RN50.pt").exists()


def test_what_is_here_is_printed(clip_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "RN50.pt"
    path.touch()
    monkeypatch.setattr("clip.checkpoints.download.is_verified", lambda *_: True)
    assert clip_run("download", "RN50", "--download-root", tmp_path).out == f"{path}\n"
    outcome = clip_run("download", "RN50", "pocket", "--download-root", tmp_path, "--json")
    assert [json.loads(line)["name"] for line in outcome.lines] == ["RN50", "pocket"]


def test_an_unknown_name_stops_before_the_first_byte(clip_run: Run) -> None:
    outcome = clip_run("download", "RN50", "ViT-B-32")
    assert (outcome.status, outcome.out) == (1, "")
    assert "'ViT-B-32' not found; known are ViT-B/32" in outcome.err
