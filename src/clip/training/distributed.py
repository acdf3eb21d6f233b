"""One process or many: who they are, how they sum, and how the towers are shared among them.

At world size one every sum is the identity and nothing is wrapped, so the loop has one path. Processes are started by
``torchrun``, by a cluster that sets the same variables, or by ``clip train --nproc``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import inspect
import logging
import os
import signal
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from clip.errors import ClipError, ConfigError
from clip.features import normalized
from clip.model import CLIP, Bottleneck, ResidualAttentionBlock
from clip.training.optimizer import SCALARS

__all__ = [
    "FailedElsewhereError",
    "Processes",
    "SharedTowers",
    "Towers",
    "average_scalars_",
    "average_statistics_",
    "launch",
    "processes",
    "share",
]


_PATIENCE = datetime.timedelta(hours=2)
"""How long a process waits for the others, of which the first may be writing a checkpoint or validating."""


_SHUTDOWN_SECONDS = 600
"""How long processes may take to finish their step and save, once told to stop; torch before 2.10 gives them 30."""


class FailedElsewhereError(ClipError):
    """Another process has failed, and says why."""


@dataclasses.dataclass(frozen=True, slots=True)
class Processes:
    """This process among those that train together."""

    rank: int
    world_size: int
    device: torch.device
    group: Any = None
    """torch's process group; None for a process alone."""

    @property
    def is_first(self) -> bool:
        """Whether this one writes files and shows progress."""
        return self.rank == 0

    def sum_(self, tensor: Tensor) -> Tensor:
        """The tensor, summed in place over all processes."""
        if self.world_size > 1:
            dist.all_reduce(tensor, group=self.group)
        return tensor

    def most(self, value: int) -> int:
        """The largest of all processes' values."""
        if self.world_size == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self.group)
        return int(tensor)

    def gathered(self, value: Any) -> list[Any]:
        """Every process's value, by rank."""
        if self.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What ``make`` gives on rank 0, on every rank. If it raises there, the others raise FailedElsewhereError."""
        if self.world_size == 1:
            return make()
        outcome: list[Any] = [None, False]
        failure: BaseException | None = None
        if self.is_first:
            try:
                outcome[0] = make()
            except BaseException as error:  # noqa: BLE001  # raised below, when the others know
                outcome[1], failure = True, error
        dist.broadcast_object_list(outcome, src=0, group=self.group, device=self.device)
        if failure is not None:
            raise failure
        if outcome[1]:
            raise FailedElsewhereError("the first process has failed, and says why")
        return outcome[0]


@contextlib.contextmanager
def processes(device: str | None = None) -> Iterator[Processes]:
    """The processes that a launcher has started together (``RANK``, ``WORLD_SIZE``, ``LOCAL_RANK``), or this one alone.

    device: "cuda" means the one of this process's local rank; by default cuda where there is one, else cpu.
    """
    try:
        kind = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is no device; use cpu, cuda, cuda:1 or mps") from error
    if kind.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {device!r}: no CUDA device can be used here; use cpu")
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        yield Processes(0, 1, kind)
        return
    if kind.type == "cuda":
        local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if local_rank >= torch.cuda.device_count():
            raise ConfigError(
                f"local rank {local_rank} has no GPU of its own: there are {torch.cuda.device_count()}; start as many "
                "processes as GPUs, or use --device cpu"
            )
        kind = torch.device("cuda", local_rank)
        torch.cuda.set_device(kind)
    dist.init_process_group("nccl" if kind.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Processes(dist.get_rank(), dist.get_world_size(), kind, dist.group.WORLD)
    finally:
        dist.destroy_process_group()


def launch(arguments: Sequence[str], count: int) -> int:
    """Runs ``python`` with these arguments in ``count`` processes of this machine, as ``torchrun`` does, and gives the
    exit status: that of the first that failed. SIGINT and SIGTERM are passed on."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    patience: dict[str, Any] = {"shutdown_timeout": _SHUTDOWN_SECONDS}
    if "shutdown_timeout" not in inspect.signature(LaunchConfig).parameters:
        patience = {}
    logging.disable()  # in this process only; the others speak for themselves
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // count)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=count,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
        **patience,
    )
    try:
        elastic_launch(config, sys.executable)(*arguments)
    except ChildFailedError as error:
        return error.get_first_failure()[1].exitcode
    except SignalException as error:
        return 128 + signal.Signals(error.sigval).value
    return 0


_DDP_OPTIONS = inspect.signature(DistributedDataParallel.__init__).parameters
_WITHOUT_BUFFERS: dict[str, Any] = {
    # Renamed in torch 2.13, which warns of the old name.
    "forward_sync_buffers" if "forward_sync_buffers" in _DDP_OPTIONS else "broadcast_buffers": False
}


class Towers(nn.Module):
    """Both towers as one module, which is what DDP and FSDP can wrap: pixels and token ids → embeddings."""

    def __init__(self, model: CLIP, *, is_bf16: bool) -> None:
        super().__init__()
        self.model = model
        self.is_bf16 = is_bf16

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
        """images: (B, 3, S, S); texts: (B, T). Returns image and text embeddings (B, E), fp32, unit norm.

        Inputs may lie in main memory: they are moved to the model's device here, so that of a large batch only the
        micro-batch under way is there.
        """
        device = self.model.logit_scale.device
        with torch.autocast(device.type, torch.bfloat16, enabled=self.is_bf16):
            image_features = self.model.encode_image(images.to(device, non_blocking=True))
            text_features = self.model.encode_text(texts.to(device, non_blocking=True))
        return normalized(image_features), normalized(text_features)


@dataclasses.dataclass(frozen=True, slots=True)
class SharedTowers:
    """Towers whose gradients are averaged over the processes in the backward pass."""

    encode: nn.Module
    """``Towers``, wrapped."""
    synchronize: Callable[[bool], contextlib.AbstractContextManager[None]]
    """Encloses the forward and backward pass of one micro-batch; False leaves its gradients on this process."""


def share(towers: Towers, these: Processes, *, fsdp: bool = False) -> SharedTowers:
    """Wraps the towers for these processes. With ``fsdp`` their weights become shards, in place.

    ``logit_scale`` is left to ``average_scalars_``: it is used outside of the towers, where no wrapper would see it.
    """
    if fsdp:
        return _fully_sharded(towers, these)
    if these.world_size == 1:
        return SharedTowers(towers, lambda is_last: contextlib.nullcontext())
    ignored = [f"model.{name}" for name in SCALARS]
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(towers, ignored)  # type: ignore[no-untyped-call]
    wrapped = DistributedDataParallel(
        towers,
        device_ids=[these.device] if these.device.type == "cuda" else None,
        process_group=these.group,
        **_WITHOUT_BUFFERS,  # attention masks never change; average_statistics_ sees to BatchNorm
        gradient_as_bucket_view=True,
    )
    return SharedTowers(wrapped, lambda is_last: contextlib.nullcontext() if is_last else wrapped.no_sync())


def _fully_sharded(towers: Towers, these: Processes) -> SharedTowers:
    try:
        from torch.distributed.fsdp import fully_shard
    except ImportError as error:
        raise ConfigError(f"fsdp needs torch 2.6 or later; this is torch {torch.__version__}") from error
    if these.world_size == 1:
        raise ConfigError("fsdp is given and there is one process; start more with --nproc or torchrun")
    scalars = {parameter for name, parameter in towers.model.named_parameters() if name in SCALARS}
    for module in towers.modules():
        if isinstance(module, ResidualAttentionBlock | Bottleneck):
            fully_shard(module)
    sharded: Any = fully_shard(towers, ignored_params=scalars)

    @contextlib.contextmanager
    def synchronize(is_last: bool) -> Iterator[None]:
        sharded.set_requires_gradient_sync(is_last)
        yield

    return SharedTowers(sharded, synchronize)


def average_scalars_(model: CLIP, these: Processes) -> None:
    """Averages the gradients of the parameters that the wrappers leave alone, as those do with all others."""
    for name in SCALARS:
        parameter = getattr(model, name, None)
        if isinstance(parameter, nn.Parameter) and parameter.grad is not None:
            these.sum_(parameter.grad).div_(these.world_size)


def average_statistics_(model: CLIP, these: Processes) -> None:
    """Averages the running statistics of BatchNorm, to which each process has added those of its own pictures."""
    if these.world_size == 1:
        return
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d) and module.training:
            assert module.running_mean is not None
            assert module.running_var is not None
            these.sum_(module.running_mean).div_(these.world_size)
            these.sum_(module.running_var).div_(these.world_size)
