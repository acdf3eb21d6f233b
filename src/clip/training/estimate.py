"""What a run would take, before it is started: counted where it can be counted, measured where it cannot."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from clip.data.loading import batches
from clip.data.order import steps_per_epoch
from clip.data.records import Source
from clip.errors import DataError
from clip.model import CLIP
from clip.preprocess import Preprocess
from clip.training.config import TrainConfig
from clip.training.distributed import Towers
from clip.training.loop import train
from clip.training.optimizer import TEXT_TOWER, lock_tower
from clip.training.report import StepReport
from clip.training.teacher import Teacher

__all__ = ["Estimate", "estimate"]

_SAMPLE = 8
"""Pairs that one pass is counted on."""
_STEPS = 4
"""Steps that are measured; the first, in which memory is fetched and kernels are chosen, does not count."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What a run would take, on one of its processes where not said otherwise."""

    image_parameters: int
    text_parameters: int
    trained_parameters: int
    flops_per_sample: int
    """Forward and backward through both towers, on captions of this data."""
    state_bytes: int
    """Weights, gradients, and the optimizer's and the running averages."""
    activation_bytes: int
    """What one micro-batch keeps for the backward pass."""
    local_batch_size: int
    steps_per_epoch: int
    steps: int
    samples_per_second: float
    """Measured on this process."""
    hours: float
    """All steps at the measured speed, if all processes are as fast as this one."""

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def estimate(
    model: CLIP,
    config: TrainConfig,
    source: Source,
    *,
    preprocess: Preprocess,
    transform: Any,
    teacher: Teacher | None = None,
    world_size: int = 1,
) -> Estimate:
    """Counts one pass and measures a few steps of this process's part. ``model`` is trained a little by it: throw it
    away. Nothing is left on the disk."""
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    lock_tower(model, config.lock)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    flops, kept = _counted(model, config, source, transform)
    local_batch_size = -(-config.batch_size // world_size)
    micro_batch_size = min(config.micro_batch_size or local_batch_size, local_batch_size)
    state = 4 * sum(sizes.values()) + (12 + 4 * (config.ema is not None)) * trained
    steps = config.total_steps(steps_per_epoch(len(source), config.batch_size))
    seconds = _measured(model, config, source, preprocess, transform, teacher, local_batch_size)
    return Estimate(
        image_parameters=sum(size for name, size in sizes.items() if name.startswith("visual.")),
        text_parameters=sum(size for name, size in sizes.items() if name.startswith(TEXT_TOWER)),
        trained_parameters=trained,
        flops_per_sample=flops,
        state_bytes=state // (world_size if config.fsdp else 1),
        activation_bytes=kept * micro_batch_size,
        local_batch_size=local_batch_size,
        steps_per_epoch=steps_per_epoch(len(source), config.batch_size),
        steps=steps,
        samples_per_second=local_batch_size / seconds,
        hours=steps * seconds / 3600,
    )


def _counted(model: CLIP, config: TrainConfig, source: Source, transform: Any) -> tuple[int, int]:
    """FLOPs of a training step and bytes that the backward pass needs, per pair."""
    stream = batches(
        source,
        transform=transform,
        context_length=model.context_length,
        global_batch_size=_SAMPLE,
        seed=config.seed,
        steps=1,
        workers=0,
        max_failures=1.0,
    )
    batch = next(iter(stream))
    if not batch.keys:
        raise DataError(f"{source.name}: none of the first records can be read; {batch.failures[0].message}")
    towers = Towers(model, is_bf16=config.precision == "bf16")
    model.set_gradient_checkpointing(config.gradient_checkpointing)
    model.train()
    kept = _Kept(model)
    hooks = torch.autograd.graph.saved_tensors_hooks(kept.pack, kept.unpack)
    with FlopCounterMode(display=False) as counter, hooks:
        images, texts = towers(batch.images, batch.texts)
    del images, texts
    # Twice the forward pass again for the gradients of activations and of weights.
    return 3 * counter.get_total_flops() // len(batch.keys), kept.bytes // len(batch.keys)


class _Kept:
    """Counts what a forward pass keeps for the backward pass: each memory once, and not the weights."""

    def __init__(self, model: nn.Module) -> None:
        self.bytes = 0
        self._seen = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        self._tensors: list[Tensor] = []  # held, or the memory of one could be given to the next

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._seen:
            self._seen.add(storage.data_ptr())
            self._tensors.append(tensor)
            self.bytes += storage.nbytes()
        return tensor

    def unpack(self, tensor: Tensor) -> Tensor:
        return tensor


def _measured(
    model: CLIP,
    config: TrainConfig,
    source: Source,
    preprocess: Preprocess,
    transform: Any,
    teacher: Teacher | None,
    local_batch_size: int,
) -> float:
    """Seconds of a step, by the loop itself."""
    seconds: list[float] = []
    note: Callable[[StepReport], None] = lambda report: seconds.append(report.seconds)  # noqa: E731
    few = dataclasses.replace(
        config, steps=_STEPS, epochs=None, batch_size=max(2, local_batch_size), fsdp=False, max_failures=1.0
    )
    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            few,
            source,
            output=Path(folder) / "run",
            preprocess=preprocess,
            transform=transform,
            teacher=teacher,
            on_step=note,
        )
    return sum(seconds[1:]) / len(seconds[1:])
