"""``clip train`` in one, two and four processes comes to the same curve, and goes on with another number of them.

Float32 sums of four parts differ from those of one in the last bits; after thirty steps the losses have drifted apart
by less than 2e-5 (measured: 1e-6).
"""

from __future__ import annotations

import os
import signal
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_runs import arguments, losses, make_pairs, start, start_together

TOLERANCE = 2e-5
RECIPE = ("--steps", 30, "--batch-size", 8, "--log-every", 1, "--checkpoint-every", 15, "--ema", 0.9)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """26 pairs: the last batch of an epoch has 2, so that of four processes two have none."""
    return make_pairs(tmp_path_factory.mktemp("processes") / "pairs")


@pytest.fixture(scope="module")
def alone(pairs: Path) -> Path:
    run = pairs.parent / "alone"
    finish([start(arguments(pairs, run, *RECIPE), pairs.parent / "alone.log")], pairs.parent)
    return run


def finish(processes: list[BaseProcess], logs: Path) -> None:
    for process in processes:
        process.join(300)
    words = "\n".join(path.read_text() for path in sorted(logs.glob("*.log*")) + sorted(logs.glob("together.*")))
    assert [process.exitcode for process in processes] == [0] * len(processes), words


def assert_same_curve(run: Path, expected: Path) -> None:
    found, wanted = losses(run), losses(expected)
    assert found.keys() == wanted.keys()
    for step, loss in wanted.items():
        assert found[step] == pytest.approx(loss, abs=TOLERANCE), step
    one, other = load_file(run / "model.safetensors"), load_file(expected / "model.safetensors")
    for name, value in other.items():
        torch.testing.assert_close(one[name], value, atol=1e-3, rtol=0, msg=name)


@pytest.mark.parametrize(
    ("count", "more"),
    [
        (2, ()),
        (4, ()),
        (2, ("--micro-batch-size", 3)),
        (2, ("--fsdp",)),
        (2, ("--fsdp", "--micro-batch-size", 3)),
    ],
    ids=["2", "4", "2-micro-batches", "2-fsdp", "2-fsdp-micro-batches"],
)
def test_many_processes_make_the_curve_of_one(
    count: int, more: tuple[object, ...], pairs: Path, alone: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    finish(start_together(arguments(pairs, run, *RECIPE, *more), tmp_path / "together", count), tmp_path)
    assert_same_curve(run, alone)


def test_a_run_goes_on_with_another_number_of_processes(pairs: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = arguments(pairs, run, *RECIPE)
    two = start_together([*words, "--fsdp"], tmp_path / "together", 2)
    while all(process.is_alive() for process in two) and not (run / "checkpoints" / "step_00000015").exists():
        time.sleep(0.001)
    for process in two:
        process.kill()
        process.join()
    assert not (run / "model.safetensors").exists()
    finish([start(words, tmp_path / "one.log")], tmp_path)
    assert "the first 15 of them by an earlier run" in (tmp_path / "one.log").read_text()
    assert_same_curve(run, alone)


def test_a_signal_stops_all_and_saves(pairs: Path, alone: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = arguments(pairs, run, *RECIPE)
    two = start_together(words, tmp_path / "together", 2)
    while all(process.is_alive() for process in two) and len(losses_so_far(run)) < 3:
        time.sleep(0.001)
    assert two[1].pid is not None
    os.kill(two[1].pid, signal.SIGTERM)  # one of them is enough
    for process in two:
        process.join(300)
    logs = "".join(path.read_text() for path in tmp_path.glob("together.*"))
    assert [process.exitcode for process in two] == [143, 143], logs
    assert logs.count("stopped by SIGTERM after step") == 1
    finish([start(words, tmp_path / "one.log")], tmp_path)
    assert_same_curve(run, alone)


def losses_so_far(run: Path) -> list[bytes]:
    path = run / "metrics.jsonl"
    return path.read_bytes().splitlines() if path.exists() else []


def test_an_error_is_told_once(pairs: Path, alone: Path, tmp_path: Path) -> None:
    before = sorted((path, path.stat().st_mtime_ns) for path in alone.rglob("*") if path.is_file())
    two = start_together(arguments(pairs, alone, *RECIPE, "--seed", 5), tmp_path / "together", 2)
    for process in two:
        process.join(300)
    logs = "".join(path.read_text() for path in tmp_path.glob("together.*"))
    assert logs.count("holds a run with other settings: ") == 1, logs
    assert "seed was 0 and is 5" in logs
    assert all(process.exitcode for process in two)
    after = sorted((path, path.stat().st_mtime_ns) for path in alone.rglob("*") if path.is_file())
    assert [entry for entry in after if entry[0].name != ".lock"] == [e for e in before if e[0].name != ".lock"]
