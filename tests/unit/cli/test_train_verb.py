from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import clip
from clip.checkpoints.files import read_checkpoint
from clip.cli.train import Inputs, command
from clip.training.config import TrainConfig, field_docs

Run = Callable[..., Any]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    folder.mkdir()
    for i in range(6):
        colour = np.random.default_rng(i).integers(0, 256, 3, dtype=np.uint8)
        Image.fromarray(np.broadcast_to(colour, (40, 40, 3)).copy()).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(f"number {i}")
    return folder


@pytest.fixture
def words(pairs: Path, model_file: str, tmp_path: Path) -> list[object]:
    return [
        *("train", "--data", pairs, "--model", model_file, "--output", tmp_path / "run", "--steps", 2),
        *("--batch-size", 4, "--workers", 0, "--log-every", 1, "--device", "cpu"),
    ]


def test_a_run_its_repetition_and_its_curves(clip_run: Run, words: list[object], tmp_path: Path) -> None:
    done = clip_run(*words)
    model = tmp_path / "run" / "model.safetensors"
    assert (done.status, done.out) == (0, "")
    assert done.err.startswith(f"clip: {model}: trained 2 steps; loss ")
    assert clip.load(model, device="cpu")[0].config.embed_dim == 16
    again = clip_run(*words)
    assert again.err == f"clip: {model}: this run was finished already, after 2 steps; nothing was changed\n"
    drawn = clip_run("train", "--output", tmp_path / "run", "--plot", tmp_path / "curves.svg")
    assert (drawn.status, drawn.err) == (0, "")
    assert (tmp_path / "curves.svg").read_text().startswith("<?xml")
    other = clip_run(*words, "--seed", 1)
    assert other.status == 2
    assert "holds a run with other settings: seed was 0 and is 1; repeat its command" in other.err


def test_the_result_says_how_it_was_made_and_keeps_the_licence(
    clip_run: Run, words: list[object], model_file: str, tmp_path: Path
) -> None:
    model, preprocess = clip.load(model_file, device="cpu")
    clip.save(model, tmp_path / "start.safetensors", preprocess, licence="CC BY 4.0")
    assert clip_run(*words, "--model", tmp_path / "start.safetensors", "--flip", 0.5).status == 0
    checkpoint = read_checkpoint(tmp_path / "run" / "model.safetensors")
    assert checkpoint.licence == "CC BY 4.0"
    assert checkpoint.training["augmentation"]["flip"] == 0.5
    assert checkpoint.training["data"] == [f"{tmp_path.name}/pairs"]


def test_validation_is_printed(clip_run: Run, words: list[object], pairs: Path) -> None:
    done = clip_run(*words, "--validate", pairs, "--json")
    value = json.loads(done.out)
    assert value["steps"] == 2
    assert 0 <= value["metrics"]["validation/image_to_text/recall@1"] <= 1
    again = clip_run(*words, "--validate", pairs, "--quiet")
    assert again.err == ""
    assert "validation/images 6" in again.lines


def test_a_file_and_options_that_win(clip_run: Run, words: list[object], tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.toml"
    recipe.write_text('learning_rate = 0.5\nepochs = 7\nbeta1 = 0.8\narchitecture = "tiny"\nflip = 0.5\n')
    assert clip_run(*words, "--config", recipe, "--learning-rate", 0.01).status == 0
    record = json.loads((tmp_path / "run" / "config.json").read_text())
    train = record["train"]
    assert (train["learning_rate"], train["beta1"], train["steps"], train["epochs"]) == (0.01, 0.8, 2, None)
    assert record["augmentation"]["flip"] == 0.5
    assert record["model"]["embed_dim"] == 16  # --model, not the file's architecture


def test_a_dry_run_writes_nothing(clip_run: Run, words: list[object], tmp_path: Path) -> None:
    done = clip_run(*words, "--dry-run", "--json", "--nproc", 2)
    value = json.loads(done.out)
    model = clip.load(next(str(word) for word in words if str(word).endswith(".safetensors")), device="cpu")[0]
    count = sum(parameter.numel() for parameter in model.parameters())
    assert value["image_parameters"] + value["text_parameters"] + 1 == count
    assert value["state_bytes"] == 16 * count
    assert (value["steps"], value["steps_per_epoch"], value["local_batch_size"]) == (2, 2, 2)
    assert value["flops_per_sample"] > 0
    assert value["activation_bytes"] > 0
    assert not (tmp_path / "run").exists()
    people = clip_run(*words, "--dry-run")
    assert [line.split()[0] for line in people.lines] == [
        *("parameters", "data", "steps", "FLOPs", "memory", "speed", "time")
    ]


def test_a_teacher_from_a_file(clip_run: Run, words: list[object], tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.ones((6, 16), dtype=np.float32))
    assert clip_run(*words, "--teacher-images", tmp_path / "images.npy").status == 0
    other = clip_run(*words)
    assert "inputs.teacher_images was " in other.err


@pytest.mark.parametrize(
    ("more", "status", "message"),
    [
        (["--steps", "0"], 2, "steps is 0; it must be at least 1"),
        (["--loss", "hinge"], 2, "'hinge' is not one of"),
        (["--architecture", "tiny"], 2, "give --model to start from a checkpoint, or --architecture for random"),
        (["--data-kind", "cvs"], 2, "kind is 'cvs'; it must be one of csv, "),
        (["--crop-scale", "0.5"], 2, "crop_scale is (0.5,); it must be two shares"),
        (["--teacher", "a", "--teacher-texts", "b"], 2, "give --teacher, or files of a teacher's embeddings, and not"),
        (["--config", "nowhere.toml"], 2, "nowhere.toml: cannot be read"),
        (["--device", "gpu"], 2, "'gpu' is no device; use cpu, cuda, cuda:1 or mps"),
    ],
)
def test_wrong_usage(
    clip_run: Run, words: list[object], tmp_path: Path, more: list[str], status: int, message: str
) -> None:
    done = clip_run(*words, *more)
    assert done.status == status, done.err
    assert message in done.err
    assert "unexpected" not in done.err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "there is no --output; name a folder for the run"),
        (["--output", "run"], "there is no --data; give a folder, a table or shards of pairs"),
        (["--output", "run", "--data", "a"], "give --model to start from a checkpoint, or --architecture for random"),
        (["--output", "run", "--data", "a", "--architecture", "tiny"], "steps and epochs: neither is given"),
        (["--output", "run", "--plot", "c.png"], "cannot be read (No such file or directory); give the folder of a"),
    ],
)
def test_what_is_missing_is_named(clip_run: Run, arguments: list[str], message: str) -> None:
    done = clip_run("train", *arguments)
    assert done.status in (1, 2)
    assert message in done.err


def test_every_field_is_an_option_with_its_help() -> None:
    options = {parameter.name: parameter for parameter in command.params}
    for cls in (Inputs, TrainConfig):
        for field in dataclasses.fields(cls):
            text = getattr(options[field.name], "help", "")
            assert text.startswith(field_docs(cls)[field.name]), field.name
    assert "[default: 256]" in getattr(options["batch_size"], "help", "")
