from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from colours import PREPROCESS, Trainer, new_model

import clip
from clip.checkpoints.files import Checkpoint
from clip.errors import CheckpointError, ConfigError
from clip.training import state
from clip.training.state import RunFolder, Stored


def checkpoint(step: int) -> tuple[Checkpoint, Stored]:
    weights = new_model().state_dict()
    stored = Stored(
        step=step,
        weights=dict(weights),
        moments={"exp_avg.logit_scale": torch.tensor(float(step))},
        average={"logit_scale": torch.tensor(2.0)},
        metrics_bytes=7,
    )
    model = Checkpoint(config=new_model().config, state_dict=dict(weights), preprocess=PREPROCESS, source="a test")
    return model, stored


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    folder = RunFolder(tmp_path / "run")
    folder.checkpoints.mkdir(parents=True)
    return folder


def save(run: RunFolder, step: int, keep: int = 3) -> None:
    run.save(*checkpoint(step), keep=keep, about={})


def test_what_is_saved_comes_back(run: RunFolder) -> None:
    save(run, 5)
    newest = run.newest()
    assert newest is not None
    model, stored = newest
    assert (stored.step, stored.metrics_bytes) == (5, 7)
    assert stored.moments == {"exp_avg.logit_scale": torch.tensor(5.0)}
    assert stored.average == {"logit_scale": torch.tensor(2.0)}
    assert all(torch.equal(value, new_model().state_dict()[name]) for name, value in stored.weights.items())
    assert model.preprocess == PREPROCESS
    loaded, _ = clip.load(run.place(5) / "model.safetensors", device="cpu")
    assert loaded.config == new_model().config


def test_the_last_ones_are_kept(run: RunFolder) -> None:
    for step in (1, 2, 10, 9):
        save(run, step, keep=2)
    assert run.steps() == [9, 10]
    assert RunFolder(run.path / "nowhere").newest() is None


def test_a_full_disk_leaves_what_was_there(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    save(run, 1)

    def full(tensors: Any, path: Path, *_: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(state, "save_file", full)
    with pytest.raises(CheckpointError, match=r"step 2 cannot be written .*: no space left; .* MB\. The checkpoint of"):
        save(run, 2, keep=1)
    assert [path.name for path in run.checkpoints.iterdir()] == ["step_00000001"]
    newest = run.newest()
    assert newest is not None
    assert newest[1].step == 1


def test_a_full_disk_ends_a_run_which_goes_on_when_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = Trainer(tmp_path)
    whole = trainer(steps=6, checkpoint_every=2, output=tmp_path / "whole")
    real = state.save_file

    def full_at_four(tensors: Any, path: Path, *_: Any) -> None:
        if "step_00000004" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        real(tensors, path)

    monkeypatch.setattr(state, "save_file", full_at_four)
    with pytest.raises(CheckpointError, match="The checkpoint of step 2 is untouched; make room, and repeat the co"):
        trainer(steps=6, checkpoint_every=2)
    monkeypatch.setattr(state, "save_file", real)
    result = trainer(steps=6, checkpoint_every=2)
    assert result.resumed_from == 2
    expected, found = (clip.load(path, device="cpu")[0].state_dict() for path in (whole.model, result.model))
    assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize("file", ["model.safetensors", "training.safetensors", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "gone", "noise"])
def test_a_damaged_checkpoint_is_named_with_its_remedy(run: RunFolder, file: str, damage: str) -> None:
    save(run, 1)
    save(run, 2)
    path = run.place(2) / file
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-9] if damage == "cut" else b"\x93" * 64)
    with pytest.raises(CheckpointError, match=r"step_00000002 is damaged .*; remove this folder, and the run goes on"):
        run.newest()
    shutil.rmtree(run.place(2))
    newest = run.newest()
    assert newest is not None
    assert newest[1].step == 1


def test_what_a_kill_has_left_is_removed(run: RunFolder) -> None:
    save(run, 1)
    for name in (".step_00000002.partial", ".step_00000000.removed"):
        (run.checkpoints / name).mkdir()
        (run.checkpoints / name / "model.safetensors").write_bytes(b"half")
    (run.path / ".config.json.partial").write_text("{")
    with run.locked():
        assert [path.name for path in run.checkpoints.iterdir()] == ["step_00000001"]
        assert not (run.path / ".config.json.partial").exists()


def test_two_at_once_are_refused(run: RunFolder) -> None:
    with run.locked(), pytest.raises(ConfigError, match="another process is training in this folder"), run.locked():
        pass
    with run.locked():  # let go of
        pass


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="holds other files and no run"), RunFolder(tmp_path).locked():
        pass
    file = RunFolder(tmp_path / "thesis.tex")
    with pytest.raises(ConfigError, match=r"thesis\.tex is a file; a run needs a folder"), file.locked():
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_settings_that_differ_are_all_named(run: RunFolder) -> None:
    record = {"train": {"seed": 0, "keep": 3, "beta2": None}, "data": {"name": "a", "records": 5}}
    run.begin(record)
    run.begin({**record, "data": None})  # nothing is trained yet
    run.begin(record)
    save(run, 1)
    run.begin({**record, "train": {"seed": 0, "keep": 9, "beta2": None}})
    with pytest.raises(ConfigError) as error:
        run.begin({"train": {"seed": 1, "keep": 3, "beta2": 0.9}, "data": {"name": "b", "records": 5}})
    assert 'seed was 0 and is 1; beta2 was null and is 0.9; data.name was "a" and is "b";' in str(error.value)
    assert json.loads((run.path / "config.json").read_text())["train"]["keep"] == 9


def test_a_config_that_cannot_be_read(run: RunFolder) -> None:
    save(run, 1)
    (run.path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"config\.json holds a list; an object is expected"):
        run.begin({})


def test_the_result_replaces_an_earlier_one(run: RunFolder) -> None:
    model, _ = checkpoint(1)
    run.write_model(model)
    first = run.model.stat().st_ino
    run.write_model(model)
    assert run.model.stat().st_ino != first
    clip.load(run.model, device="cpu")
