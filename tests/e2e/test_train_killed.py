"""``clip train`` is killed at random instants, twenty times and more, and comes to the same bits."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import arguments, losses, make_pairs, start

KILLS = 24
STEPS = 110
EVERY = 2
"""Steps between checkpoints."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pairs(tmp_path_factory.mktemp("killed") / "pairs")


def test_twenty_kills_at_random_instants_change_nothing(pairs: Path, tmp_path: Path) -> None:
    recipe = ("--steps", STEPS, "--batch-size", 8, "--log-every", 1, "--checkpoint-every", EVERY, "--keep", 2)
    recipe = (*recipe, "--ema", 0.9, "--learning-rate", 0.01, "--patch-dropout", 0.5)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    uninterrupted = start(arguments(pairs, whole, *recipe), tmp_path / "whole.log")
    uninterrupted.join()
    assert uninterrupted.exitcode == 0, (tmp_path / "whole.log").read_text()

    rng = random.Random(0)
    while_writing = 0
    for number in range(KILLS):
        process = start(arguments(pairs, killed, *recipe), tmp_path / "killed.log")
        if number % 2:  # in the middle of writing a checkpoint
            _wait(process, lambda: bool(_partial(killed)))
        else:  # after up to two new ones, and a part of a step
            enough = _newest(killed) + EVERY * rng.randrange(3)
            _wait(process, lambda enough=enough: _newest(killed) >= enough)  # type: ignore[misc]
            time.sleep(rng.uniform(0, 0.03))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL, f"kill {number}: {(tmp_path / 'killed.log').read_text()}"
        while_writing += bool(_partial(killed))
    assert while_writing >= 3  # or this would test less than it says

    last = start(arguments(pairs, killed, *recipe), tmp_path / "killed.log")
    last.join()
    log = (tmp_path / "killed.log").read_text()
    assert last.exitcode == 0, log
    assert "of them by an earlier run" in log
    expected, found = load_file(whole / "model.safetensors"), load_file(killed / "model.safetensors")
    assert all(torch.equal(expected[name], found[name]) for name in expected)
    assert losses(killed) == losses(whole)
    assert len(losses(whole)) == STEPS
    left = sorted(path.name for path in (killed / "checkpoints").iterdir())
    assert left == [f"step_{STEPS - EVERY:08}", f"step_{STEPS:08}"]
    assert not [path for path in killed.iterdir() if path.name.endswith(".partial")]


def _wait(process: BaseProcess, condition: Callable[[], bool]) -> None:
    while process.is_alive() and not condition():
        time.sleep(0.0005)


def _newest(run: Path) -> int:
    return max((int(path.name[5:]) for path in (run / "checkpoints").glob("step_*")), default=0)


def _partial(run: Path) -> list[Path]:
    return list((run / "checkpoints").glob(".*.partial"))
