"""The folder of a run: its lock, its configuration, its metrics and its checkpoints, which a kill at any instant leaves
whole.

    RUN/config.json                      what was asked for; a repeated command must ask for the same
    RUN/metrics.jsonl                    one line of numbers every few steps
    RUN/checkpoints/step_00001000/       model.safetensors (``clip.load`` reads it), training.safetensors, state.json
    RUN/model.safetensors                the result
    RUN/result.json                      written last: the run is finished

A checkpoint is written beside its place, forced to the disk, and renamed: under its final name it is complete. Nothing
in it is ever executed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from clip.checkpoints.files import Checkpoint, read_checkpoint, write_checkpoint
from clip.errors import CheckpointError, ConfigError
from clip.model import CLIP
from clip.training.config import MAY_CHANGE

__all__ = ["RunFolder", "Stored", "gathered", "moments", "restore_moments_"]

VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """A checkpoint of a run, whole tensors on the CPU."""

    step: int
    """Steps done."""
    weights: dict[str, Tensor]
    """The state dict of the model."""
    moments: dict[str, Tensor]
    """AdamW's two averages, as ``exp_avg.NAME`` and ``exp_avg_sq.NAME``."""
    average: dict[str, Tensor]
    """The running average of the weights by name; empty without one."""
    metrics_bytes: int
    """Length of ``metrics.jsonl`` at that moment."""


class RunFolder:
    """The folder of one run, used by one training at a time."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.model = self.path / "model.safetensors"
        self._config = self.path / "config.json"
        self._result = self.path / "result.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds it; a kill lets go of it. Raises ConfigError if another process holds it."""
        if self.path.exists() and not self.path.is_dir():
            raise ConfigError(f"{self.path} is a file; a run needs a folder, choose another --output")
        if self.path.is_dir() and any(self.path.iterdir()) and not self._is_run():
            raise ConfigError(f"{self.path} holds other files and no run; choose a new or an empty folder as --output")
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            with lock:
                self._tidy()
                yield
        except Timeout as error:
            raise ConfigError(
                f"{self.path}: another process is training in this folder; wait for it, or choose another --output"
            ) from error

    def _is_run(self) -> bool:
        return self._config.exists() or self.checkpoints.exists()

    def _tidy(self) -> None:
        """Removes what a kill has left half-written or half-removed."""
        for folder in self.checkpoints.iterdir():
            if folder.name.startswith("."):
                shutil.rmtree(folder)
        for file in self.path.glob(".*.partial"):
            file.unlink()

    # Configuration and result -----------------------------------------------------------------------------------------

    def begin(self, record: Mapping[str, Any]) -> None:
        """Stores what was asked for. Raises ConfigError naming what differs from the run that is to go on.

        record: sections of plain JSON values; of ``train`` the fields ``MAY_CHANGE`` may differ. A run that has no
        checkpoint yet begins anew.
        """
        if self.steps():
            before = _read_json(self._config)
            if differences := list(_differences(before, json.loads(json.dumps(record)))):
                raise ConfigError(
                    f"{self.path} holds a run with other settings: {'; '.join(differences)}; repeat its command, or "
                    "choose another --output"
                )
        write_json(self._config, record)

    def result(self) -> dict[str, Any] | None:
        """What ``finish`` has stored, or None."""
        return _read_json(self._result) if self._result.exists() else None

    def finish(self, result: Mapping[str, Any]) -> None:
        """Marks the run as finished."""
        write_json(self._result, result)

    # Checkpoints ------------------------------------------------------------------------------------------------------

    def steps(self) -> list[int]:
        """The steps at which there are checkpoints, ascending."""
        if not self.checkpoints.is_dir():
            return []
        names = (re.fullmatch(r"step_(\d+)", folder.name) for folder in self.checkpoints.iterdir())
        return sorted(int(name[1]) for name in names if name)

    def place(self, step: int) -> Path:
        """The folder of a checkpoint."""
        return self.checkpoints / f"step_{step:08}"

    def save(self, model: Checkpoint, stored: Stored, *, keep: int, about: Mapping[str, Any]) -> None:
        """Writes a checkpoint and then removes all but the last ``keep``.

        model: with the weights of ``stored``, and what else a model file says.
        Raises CheckpointError if the disk is full; what was there before is untouched.
        """
        place = self.place(stored.step)
        if place.exists():
            return  # the run was stopped again before it made another step
        partial = self.checkpoints / f".{place.name}.partial"
        tensors = {**stored.moments, **{f"average.{name}": value for name, value in stored.average.items()}}
        state = {"version": VERSION, "step": stored.step, "metrics_bytes": stored.metrics_bytes, **about}
        try:
            partial.mkdir()
            write_checkpoint(model, partial / "model.safetensors")
            save_file({name: value.contiguous() for name, value in tensors.items()}, partial / "training.safetensors")
            write_json(partial / "state.json", state)
            _force_to_disk(partial / "training.safetensors")
            _force_to_disk(partial)
            partial.rename(place)
            _force_to_disk(self.checkpoints)
        except (OSError, SafetensorError, CheckpointError) as error:
            shutil.rmtree(partial, ignore_errors=True)
            raise CheckpointError(self._not_saved(stored.step, tensors, error)) from error
        for step in self.steps()[:-keep]:
            removed = self.checkpoints / f".{self.place(step).name}.removed"
            self.place(step).rename(removed)  # a folder with its final name is whole, also while it goes
            shutil.rmtree(removed)

    def _not_saved(self, step: int, tensors: Mapping[str, Tensor], error: Exception) -> str:
        reason: object = error
        if isinstance(error, OSError):
            reason = error.strerror or error
        last = self.steps()
        kept = f"the checkpoint of step {last[-1]} is untouched" if last else "there is none from before"
        if getattr(error, "errno", None) == errno.ENOSPC or "os error 28" in str(error) or "No space" in str(error):
            size = 1.5 * sum(value.nbytes for value in tensors.values()) / 1e6
            return (
                f"the checkpoint of step {step} cannot be written to {self.checkpoints}: no space left; it takes about "
                f"{size:,.0f} MB. {kept[0].upper()}{kept[1:]}; make room, and repeat the command"
            )
        return f"the checkpoint of step {step} cannot be written to {self.checkpoints}: {reason}; {kept}"

    def newest(self, device: torch.device | str = "cpu") -> tuple[Checkpoint, Stored] | None:
        """The newest checkpoint, or None. Raises CheckpointError if it is damaged, and says which to remove."""
        steps = self.steps()
        if not steps:
            return None
        place = self.place(steps[-1])
        try:
            state = _read_json(place / "state.json")
            if state.get("version") != VERSION:
                raise CheckpointError(f"version {state.get('version')!r}; this everyclip reads version {VERSION}")
            model = read_checkpoint(place / "model.safetensors")
            tensors = load_file(place / "training.safetensors")
            step, metrics_bytes = int(state["step"]), int(state["metrics_bytes"])
        except (OSError, SafetensorError, CheckpointError, KeyError, TypeError, ValueError) as error:
            remedy = "remove this folder, and the run goes on from the checkpoint before it"
            if len(steps) == 1:
                remedy = "remove this folder, and the run begins anew"
            raise CheckpointError(f"{place} is damaged ({error}); {remedy}") from error
        average = {
            name.removeprefix("average."): value for name, value in tensors.items() if name.startswith("average.")
        }
        own = {name: value for name, value in tensors.items() if not name.startswith("average.")}
        return model, Stored(
            step=step, weights=model.state_dict, moments=own, average=average, metrics_bytes=metrics_bytes
        )

    def write_model(self, model: Checkpoint) -> None:
        """Writes the result, over an earlier one if there is one."""
        partial = self.path / f".{self.model.name}.partial"
        try:
            write_checkpoint(model, partial)
            partial.replace(self.model)
            _force_to_disk(self.path)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise CheckpointError(
                f"{self.model} cannot be written: {error}; repeat the command to try again"
            ) from error


def _differences(before: Any, now: Any, path: str = "") -> Iterator[str]:
    if isinstance(before, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*before, *now]):
            if not (path == "train" and key in MAY_CHANGE):
                yield from _differences(before.get(key), now.get(key), f"{path}.{key}" if path else key)
    elif before != now:
        yield f"{path.removeprefix('train.')} was {json.dumps(before)} and is {json.dumps(now)}"


# Files ----------------------------------------------------------------------------------------------------------------


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Writes JSON beside ``path``, forces it to the disk, and moves it there."""
    partial = path.parent / f".{path.name}.partial"
    partial.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    _force_to_disk(partial)
    partial.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds a {type(value).__name__}; an object is expected")
    return value


def _force_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# Tensors of one process or of all -------------------------------------------------------------------------------------


def gathered(tensors: Mapping[str, Tensor], *, is_first: bool) -> dict[str, Tensor]:
    """Whole tensors on the CPU, on the first process; the others take part where tensors are sharded, and get none."""
    whole = {}
    for name, value in tensors.items():
        full: Any = getattr(value, "full_tensor", None)
        value = value.detach() if full is None else full().detach()
        if is_first:
            whole[name] = value.cpu()
    return whole


def moments(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """AdamW's averages by the names of the parameters."""
    return {
        f"{kind}.{name}": optimizer.state[parameter][kind]
        for name, parameter in model.named_parameters()
        for kind in ("exp_avg", "exp_avg_sq")
        if parameter in optimizer.state
    }


def restore_moments_(model: CLIP, optimizer: Optimizer, stored: Stored) -> None:
    """Puts the averages back where ``moments`` took them from, sharded as the parameters are now."""
    is_fused = bool(optimizer.defaults.get("fused"))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and f"exp_avg.{name}" in stored.moments:
            optimizer.state[parameter] = {
                "step": torch.tensor(float(stored.step), device=parameter.device if is_fused else "cpu"),
                **{kind: like(parameter, stored.moments[f"{kind}.{name}"]) for kind in ("exp_avg", "exp_avg_sq")},
            }


def like(parameter: Tensor, value: Tensor) -> Tensor:
    """A copy of a whole tensor, on the device and in the shards of a parameter."""
    value = value.to(parameter.device, copy=True)
    placements = getattr(parameter, "placements", None)
    if placements is None:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    return distribute_tensor(value, cast(DTensor, parameter).device_mesh, placements)
