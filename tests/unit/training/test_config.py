from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from clip.errors import ConfigError
from clip.training.config import MAY_CHANGE, TrainConfig, field_docs, read_toml

NAMES = {field.name for field in dataclasses.fields(TrainConfig)}


def test_every_field_says_what_it_is() -> None:
    docs = field_docs(TrainConfig)
    assert set(docs) == NAMES
    assert all(text.endswith((".", ")")) and "\n" not in text for text in docs.values())


def test_what_may_change_exists() -> None:
    assert MAY_CHANGE < NAMES


def test_there_and_back() -> None:
    config = TrainConfig(steps=10, ema=0.99, loss="sigmoid")
    assert TrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "steps and epochs: neither is given; give one of them"),
        ({"steps": 1, "epochs": 1}, "steps and epochs: both are given; give one of them"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"steps": 1.5}, "steps is 1.5; it must be a whole number"),
        ({"steps": True}, "steps is True; it must be a whole number"),
        ({"steps": 1, "batch_size": 1}, "batch_size is 1; a pair needs at least one other to be compared with"),
        ({"steps": 1, "learning_rate": -1}, "learning_rate is -1; it must be at least 0"),
        ({"steps": 1, "learning_rate": float("nan")}, "learning_rate is nan; it must be a finite number"),
        ({"steps": 1, "learning_rate": "1e-3"}, "learning_rate is '1e-3'; it must be a finite number"),
        ({"steps": 1, "beta1": 1.0}, "beta1 is 1; it must be below 1"),
        ({"steps": 1, "patch_dropout": 1.0}, "patch_dropout is 1; it must be below 1"),
        ({"steps": 1, "ema": 1.5}, "ema is 1.5; it must be from 0 to 1"),
        ({"steps": 1, "keep": 0}, "keep is 0; it must be at least 1"),
        ({"steps": 1, "loss": "sofmax"}, "loss is 'sofmax'; it must be one of softmax, sigmoid"),
        ({"steps": 1, "precision": "fp16"}, "precision is 'fp16'; it must be one of bf16, fp32"),
        ({"steps": 1, "compile": 1}, "compile is 1; it must be true or false"),
        ({"steps": 1, "lock": "image", "patch_dropout": 0.5}, "a locked tower drops no patches"),
    ],
)
def test_wrong_values(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        TrainConfig(**values)
    assert message in str(error.value)


def test_an_unknown_key_lists_the_known_ones_closest_first() -> None:
    with pytest.raises(ConfigError, match=r"unknown training option 'learning_rte'; known are learning_rate, "):
        TrainConfig.from_dict({"steps": 1, "learning_rte": 1.0})


def test_whole_numbers_are_floats_where_floats_are_meant() -> None:
    config = TrainConfig(steps=1, learning_rate=1)
    assert isinstance(config.learning_rate, float)


def test_steps_of_epochs() -> None:
    assert TrainConfig(epochs=3).total_steps(7) == 21
    assert TrainConfig(steps=5).total_steps(7) == 5


def test_a_toml_file(tmp_path: Path) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("steps = 5\nlearning_rate = 1e-3\n")
    assert read_toml(file, NAMES) == {"steps": 5, "learning_rate": 1e-3}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"stepz = 5", r"recipe.toml: unknown key 'stepz'; known are steps, "),
        (b"steps = ", "recipe.toml: not valid TOML: "),
        (b"\xff\xfe", "recipe.toml: not valid TOML: "),
        (b"[train]\nsteps = 5", "recipe.toml: unknown key 'train'; known are "),
    ],
)
def test_wrong_toml(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "recipe.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        read_toml(file, NAMES)


def test_a_toml_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere.toml: cannot be read \(No such file"):
        read_toml(tmp_path / "nowhere.toml", NAMES)
