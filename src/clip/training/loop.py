"""The training loop: one story from the first step, or from the last checkpoint, to the finished model.

What a step computes is a function of the weights, the seed and the number of the step, and of nothing else: the order
of the data is (``clip.data.order``), and the random generators are set anew before each step. So a run that was killed
goes on as if nothing had happened, on any number of processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import math
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from types import FrameType
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import clip
from clip.checkpoints.files import Checkpoint, fingerprint
from clip.data.loading import Batch, batches
from clip.data.order import steps_per_epoch
from clip.data.records import Source
from clip.errors import ClipError, ConfigError
from clip.model import CLIP, ModifiedResNet
from clip.preprocess import Preprocess
from clip.training import gradient_cache
from clip.training.config import TrainConfig
from clip.training.distributed import (
    FailedElsewhereError,
    Processes,
    SharedTowers,
    Towers,
    average_scalars_,
    average_statistics_,
    share,
)
from clip.training.losses import clip_loss, distillation_loss, sigmoid_loss
from clip.training.optimizer import (
    MAX_LOGIT_SCALE,
    adamw,
    average_weights_,
    clip_gradients_,
    learning_rate,
    lock_tower,
)
from clip.training.report import MetricsWriter
from clip.training.state import RunFolder, Stored, gathered, like, moments, restore_moments_
from clip.training.teacher import Targets

__all__ = ["Evaluator", "StepReport", "StoppedError", "Teacher", "TrainResult", "train"]

logger = logging.getLogger(__name__)

_SHOWN_FAILURES = 10
"""Records that cannot be read of which each process tells; of the others it tells the number."""

Evaluator = Callable[[CLIP], dict[str, float]]
"""A model in eval mode → numbers by name, such as ``validation/top1``; see ``evaluation.validation``."""

Teacher = Callable[[Batch], Targets]
"""A batch → what its embeddings should be; see ``training.teacher``."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepReport:
    """What one step did, over all processes; for a progress bar."""

    step: int
    """Steps done."""
    total_steps: int
    samples: int
    """Pairs in this step."""
    loss: float
    """NaN where a single pair was left of the epoch, which has nothing to be compared with and makes no step."""
    logit_scale: float
    """Already exponentiated."""
    learning_rate: float
    gradient_norm: float
    seconds: float
    wait_seconds: float
    """Of those, waiting for data on this process."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What a run has come to."""

    model: Path
    """The file of the model; ``clip.load`` reads it."""
    steps: int
    resumed_from: int
    """The step of the checkpoint that the run went on from; 0 for a fresh one."""
    was_finished: bool
    """Whether the run was finished already and nothing was done."""
    metrics: dict[str, float]
    """Of the last line of ``metrics.jsonl`` and of the last validation."""


class StoppedError(ClipError):
    """Training has stopped at a signal, after a checkpoint."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        """The exit status that shells expect: 128 and the number of the signal."""


def train(
    model: CLIP,
    config: TrainConfig,
    source: Source,
    *,
    output: str | os.PathLike[str],
    preprocess: Preprocess,
    transform: Any,
    evaluators: Sequence[Evaluator] = (),
    teacher: Teacher | None = None,
    these: Processes | None = None,
    about: Mapping[str, Any] | None = None,
    licence: str = "",
    on_step: Callable[[StepReport], None] | None = None,
    tensorboard: bool = False,
) -> TrainResult:
    """Trains ``model`` in place, or goes on with the run in ``output``, and writes the result there.

    model: the start, in fp32, the same on each process and each time the run goes on.
    transform: what training does to a picture; its ``augmentation`` is recorded.
    evaluators: run on rank 0 with the model that would be the result.
    these: from ``processes()``; by default this process alone, on the model's device.
    about: whatever else tells this run from another, as plain JSON values; may not change when it goes on.
    licence: terms of the start's weights, which the files of the run carry on.
    Raises ConfigError if ``output`` holds another run or is in use, StoppedError after SIGINT or SIGTERM, ClipError if
    the loss is not finite.
    """
    these = these or Processes(0, 1, model.logit_scale.device)
    run = RunFolder(output)
    with contextlib.ExitStack() as stack:
        if these.is_first:
            these.from_first(lambda: stack.enter_context(run.locked()))
        else:
            these.from_first(lambda: None)
        story = _Training(model, config, source, run, preprocess, transform, teacher, these, about or {}, licence)
        return story.tell(evaluators, on_step or (lambda report: None), tensorboard=tensorboard)


class _Training:
    """The state of one call of ``train``."""

    def __init__(
        self,
        model: CLIP,
        config: TrainConfig,
        source: Source,
        run: RunFolder,
        preprocess: Preprocess,
        transform: Any,
        teacher: Teacher | None,
        these: Processes,
        about: Mapping[str, Any],
        licence: str,
    ) -> None:
        self.model = model
        self.config = config
        self.source = source
        self.run = run
        self.preprocess = preprocess
        self.transform = transform
        self.teacher = teacher
        self.these = these
        self.about = about
        self.licence = licence
        self.total_steps = config.total_steps(steps_per_epoch(len(source), config.batch_size))
        self.average: dict[str, Tensor] = {}
        self.failures = 0
        self._check()

    def _check(self) -> None:
        if not len(self.source):
            raise ConfigError(f"{self.source.name} has no records; there is nothing to train on")
        if any(parameter.dtype != torch.float32 for parameter in self.model.parameters()):
            raise ConfigError(
                "the model is not in fp32; load it with precision='fp32' and set precision in TrainConfig"
            )
        if self.config.loss == "sigmoid" and self.model.logit_bias is None:
            raise ConfigError("the sigmoid loss needs a logit_bias and the model has none; see with_logit_bias")
        if self.config.distillation is not None and self.teacher is None:
            raise ConfigError("distillation is given and there is no teacher; pass one")
        if self.config.patch_dropout and isinstance(self.model.visual, ModifiedResNet):
            raise ConfigError("patch_dropout is given and the image tower is a ResNet, which has no patches")

    # The whole run ----------------------------------------------------------------------------------------------------

    def tell(
        self, evaluators: Sequence[Evaluator], on_step: Callable[[StepReport], None], *, tensorboard: bool
    ) -> TrainResult:
        config, these, run = self.config, self.these, self.run
        self.start = gathered(self.model.state_dict(), is_first=True) if config.wise_ft is not None else {}
        self.start = {name: value.clone() for name, value in self.start.items()}
        self.record = self._record()
        these.from_first(lambda: run.begin(self.record))
        result = run.result()
        if result is not None and result["step"] == self.total_steps:
            return self._result(result["step"], was_finished=True, metrics=result["metrics"])
        stored = self._restore()
        if self.resumed_from > self.total_steps:
            raise ConfigError(f"{run.path} is at step {self.resumed_from}, beyond the {self.total_steps} asked for")
        self._log_beginning()
        first = self.resumed_from
        metrics_bytes = stored.metrics_bytes if stored else 0
        with (
            MetricsWriter(run.path, metrics_bytes, is_first=these.is_first, tensorboard=tensorboard) as self.metrics,
            _Stop() as stop,
        ):
            if first < self.total_steps:
                with contextlib.closing(self._batches(first)) as stream:
                    self._steps(stream, evaluators, on_step, stop)
            if first < self.total_steps or self.config.validate_every is None:
                self._evaluate(evaluators, self.total_steps)
            self._finish()
            return self._result(self.total_steps, was_finished=False, metrics=self.metrics.last)

    def _steps(
        self,
        stream: Iterator[Batch],
        evaluators: Sequence[Evaluator],
        on_step: Callable[[StepReport], None],
        stop: _Stop,
    ) -> None:
        config, these = self.config, self.these
        window = _Window()
        for batch in stream:
            step = batch.step
            began = time.perf_counter()
            report = self._step(batch)
            done = step + 1
            seconds = time.perf_counter() - began + batch.wait_seconds
            report = dataclasses.replace(report, seconds=seconds)
            window.add(report)
            on_step(report)
            is_last = done == self.total_steps
            if done % config.log_every == 0 or is_last:
                self._log(window, batch)
                window = _Window()
            signal_number = these.most(stop.signal)
            is_saved = done % config.checkpoint_every == 0 or is_last
            if is_saved or signal_number:
                self._save(done)
            if signal_number and not is_last:
                name = signal.Signals(signal_number).name
                raise StoppedError(
                    f"stopped by {name} after step {done} of {self.total_steps}, which is saved; repeat the command "
                    "to go on",
                    128 + signal_number,
                )
            if config.validate_every and done % config.validate_every == 0 and not is_last:
                self._evaluate(evaluators, done)

    # One step ---------------------------------------------------------------------------------------------------------

    def _step(self, batch: Batch) -> StepReport:
        config, these, model = self.config, self.these, self.model
        rate = learning_rate(batch.step, config, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        torch.manual_seed(_step_seed(config.seed, batch.step, these.rank))
        samples = int(these.sum_(torch.tensor(len(batch.keys), device=these.device)))
        if samples < 2:
            return self._report(batch, samples, math.nan, 0.0, rate)  # nothing to compare a pair with
        seen: list[Tensor] = []
        loss = self._loss(batch, seen)
        micro_batch_size = config.micro_batch_size or max(1, len(batch.keys))
        with _compiler_errors():
            value = gradient_cache.backward(
                self.shared.encode,
                batch.images,
                batch.texts,
                # The wrappers average gradients over the processes; those of the loss are parts of a sum.
                lambda images, texts: loss(images, texts) * these.world_size,
                micro_batch_size=micro_batch_size,
                model=model,
                synchronize=self.shared.synchronize,
                at_least=these.most(-(-len(batch.keys) // micro_batch_size)),
            )
        average_scalars_(model, these)
        average_statistics_(model, these)
        loss_value = float(value) / these.world_size
        norm = clip_gradients_(self.trained, config.max_gradient_norm, these.group)
        if not math.isfinite(loss_value) or not math.isfinite(norm):
            self._fail(batch, loss_value, seen)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            if config.loss == "softmax":
                model.logit_scale.clamp_(max=MAX_LOGIT_SCALE)
        if config.ema is not None:
            average_weights_(self.average, model, config.ema, batch.step)
        return self._report(batch, samples, loss_value, norm, rate)

    def _loss(self, batch: Batch, seen: list[Tensor]) -> Callable[[Tensor, Tensor], Tensor]:
        """The loss of embeddings, which it leaves in ``seen``."""
        config, these, model = self.config, self.these, self.model
        equal = _equal(batch).to(these.device) if config.mask_equal else None
        targets = (None, None) if self.teacher is None else self.teacher(batch)
        options: dict[str, Any] = {"equal": equal, "group": these.group}
        if config.precision == "bf16":
            options["gradient_dtype"] = torch.bfloat16

        def loss(images: Tensor, texts: Tensor) -> Tensor:
            seen[:] = images.detach(), texts.detach()
            scale = model.logit_scale.exp()
            if config.loss == "sigmoid":
                assert model.logit_bias is not None
                value = sigmoid_loss(images, texts, scale, model.logit_bias, **options)
            else:
                value = clip_loss(images, texts, scale, **options)
            for student, target in zip((images, texts), targets, strict=True):
                if target is not None:
                    weight = 1.0 if config.distillation is None else config.distillation
                    value = value + weight * distillation_loss(student, target.to(these.device), group=these.group)
            return value

        return loss

    def _report(self, batch: Batch, samples: int, loss: float, norm: float, rate: float) -> StepReport:
        for failure in batch.failures:
            if self.failures < _SHOWN_FAILURES:
                logger.warning("step %d: left out: %s", batch.step + 1, failure.message)
            self.failures += 1
        return StepReport(
            step=batch.step + 1,
            total_steps=self.total_steps,
            samples=samples,
            loss=loss,
            logit_scale=float(self.model.logit_scale.detach().exp()),
            learning_rate=rate,
            gradient_norm=norm,
            seconds=0.0,
            wait_seconds=batch.wait_seconds,
        )

    def _fail(self, batch: Batch, loss: float, seen: list[Tensor]) -> None:
        """Raises ClipError that names the step, the tower and the samples, on all processes alike."""
        bad = {}
        for tower, embeddings in zip(("image", "text"), seen, strict=True):
            rows = (~embeddings.isfinite().all(dim=1)).nonzero().flatten().tolist()
            bad[tower] = [batch.keys[row] for row in rows]
        everywhere = self.these.gathered(bad)
        culprits = []
        for tower in ("image", "text"):
            keys = [key for found in everywhere for key in found[tower]]
            if keys:
                shown = ", ".join(keys[:8]) + (" …" if len(keys) > 8 else "")
                culprits.append(
                    f"the {tower} tower gives features that are not finite for {len(keys)} samples: {shown}"
                )
        if not culprits:
            what = "the gradients are not" if math.isfinite(loss) else "the loss is not"
            culprits.append(f"the features of both towers are finite, {what}")
        steps = self.run.steps()
        kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no checkpoint yet"
        if not self.these.is_first:
            raise FailedElsewhereError("the loss is not finite, and the first process says where")
        raise ClipError(
            f"step {batch.step + 1}: the loss is {loss:g}; {'; '.join(culprits)}. Nothing of this step was kept, and "
            f"{kept}; lower the learning rate or max_gradient_norm, or use precision fp32"
        )

    # State ------------------------------------------------------------------------------------------------------------

    def _record(self) -> dict[str, Any]:
        model = self.model
        augmentation = getattr(self.transform, "augmentation", None)
        return {
            "train": self.config.to_dict(),
            "model": model.config.to_dict(),
            "start": fingerprint(model.config, model.state_dict()),
            "preprocess": self.preprocess.to_dict(),
            "augmentation": None if augmentation is None else augmentation.to_dict(),
            "data": {"name": self.source.name, "records": len(self.source)},
            **self.about,
        }

    def _restore(self) -> Stored | None:
        """Prepares model, wrappers and optimizer, from the newest checkpoint if there is one."""
        config, model, these = self.config, self.model, self.these
        newest = self.run.newest()
        self.resumed_from = newest[1].step if newest else 0
        if newest:
            model.load_state_dict(newest[1].weights)
        lock_tower(model, config.lock)
        model.train()
        if config.lock == "image":
            model.visual.eval()
        if config.patch_dropout:
            assert not isinstance(model.visual, ModifiedResNet)
            model.visual.patch_dropout = config.patch_dropout
        model.set_gradient_checkpointing(config.gradient_checkpointing)
        if config.compile:
            model.visual.compile()
            model.transformer.compile(dynamic=True)  # texts have another length in each batch
        towers = Towers(model, is_bf16=config.precision == "bf16")
        self.shared: SharedTowers = share(towers, these, fsdp=config.fsdp)
        self.optimizer: Optimizer = adamw(model, config)
        self.trained: list[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
        if config.ema is not None:
            self.average = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        if newest:
            restore_moments_(model, self.optimizer, newest[1])
            weights = dict(model.named_parameters())
            for name in self.average:
                self.average[name] = like(weights[name], newest[1].average[name])
        return newest[1] if newest else None

    def _save(self, step: int) -> None:
        first = self.these.is_first
        stored = Stored(
            step=step,
            weights=gathered(self.model.state_dict(), is_first=first),
            moments=gathered(moments(self.model, self.optimizer), is_first=first),
            average=gathered(self.average, is_first=first),
            metrics_bytes=self.metrics.forced_to_disk(),
        )
        about = {"world_size": self.these.world_size, "total_steps": self.total_steps, "run": self.record}
        checkpoint = self._checkpoint(stored.weights, step)
        self.these.from_first(lambda: self.run.save(checkpoint, stored, keep=self.config.keep, about=about))

    def _checkpoint(self, weights: dict[str, Tensor], step: int) -> Checkpoint:
        """Weights as a file that tells whoever gets it alone what they are and how they were made."""
        return Checkpoint(
            config=self.model.config,
            state_dict=weights,
            preprocess=self.preprocess,
            source="training",
            licence=self.licence,
            training={
                "everyclip": clip.__version__,
                "start": self.record["start"],
                "data": [_end_of_address(part.name) for part in getattr(self.source, "parts", (self.source,))],
                "augmentation": self.record["augmentation"],
                "steps": step,
                "batch_size": self.config.batch_size,
                "seed": self.config.seed,
            },
        )

    # The result -------------------------------------------------------------------------------------------------------

    def _outcome(self, step: int) -> Checkpoint:
        """What the run would give if it ended with this step: averaged, and mixed with the start, where asked for.

        On the first process; the others take part and get no weights.
        """
        first = self.these.is_first
        weights = gathered(self.model.state_dict(), is_first=first)
        weights |= gathered(self.average, is_first=first)
        if self.config.wise_ft is not None:
            weights = {
                name: torch.lerp(self.start[name], value, self.config.wise_ft) if value.is_floating_point() else value
                for name, value in weights.items()
            }
        return self._checkpoint(weights, step)

    def _evaluate(self, evaluators: Sequence[Evaluator], step: int) -> None:
        if not evaluators:
            return
        outcome = self._outcome(step)

        def evaluate() -> dict[str, float]:
            copy = {name: value.to(self.these.device, copy=True) for name, value in outcome.state_dict.items()}
            model = dataclasses.replace(outcome, state_dict=copy).build()
            with torch.random.fork_rng(devices=[]):
                return {name: value for evaluator in evaluators for name, value in evaluator(model).items()}

        self.metrics.write({"step": step, **self.these.from_first(evaluate)})

    def _finish(self) -> None:
        outcome = self._outcome(self.total_steps)

        def finish() -> None:
            self.run.write_model(outcome)
            self.run.finish({"step": self.total_steps, "metrics": self.metrics.last})

        self.these.from_first(finish)

    def _result(self, steps: int, *, was_finished: bool, metrics: dict[str, float]) -> TrainResult:
        return TrainResult(
            model=self.run.model,
            steps=steps,
            resumed_from=steps if was_finished else self.resumed_from,
            was_finished=was_finished,
            metrics=metrics,
        )

    # Data and words ---------------------------------------------------------------------------------------------------

    def _batches(self, first: int) -> Any:
        config, these = self.config, self.these
        return batches(
            self.source,
            transform=self.transform,
            context_length=self.model.context_length,
            global_batch_size=config.batch_size,
            seed=config.seed,
            first_step=first,
            steps=self.total_steps,
            rank=these.rank,
            world_size=these.world_size,
            workers=config.workers,
            max_failures=config.max_failures,
        )

    def _log(self, window: _Window, batch: Batch) -> None:
        failures = int(self.these.sum_(torch.tensor(self.failures, device=self.these.device)))
        self.metrics.write({**window.metrics(), "epoch": batch.epoch, "failures": failures})

    def _log_beginning(self) -> None:
        config, these = self.config, self.these
        logger.info(
            "%s: step %d of %d; %d pairs, %d a step; %d process(es) on %s; weights fp32, products %s; seed %d",
            self.run.path,
            self.resumed_from,
            self.total_steps,
            len(self.source),
            config.batch_size,
            these.world_size,
            these.device,
            config.precision,
            config.seed,
        )


class _Window:
    """Sums over the steps between two lines of metrics."""

    def __init__(self) -> None:
        self.reports: list[StepReport] = []

    def add(self, report: StepReport) -> None:
        self.reports.append(report)

    def metrics(self) -> dict[str, float]:
        last = self.reports[-1]
        seconds = sum(report.seconds for report in self.reports)
        losses = [report.loss for report in self.reports if math.isfinite(report.loss)]
        return {
            "step": last.step,
            **({"loss": sum(losses) / len(losses)} if losses else {}),
            "logit_scale": last.logit_scale,
            "learning_rate": last.learning_rate,
            "gradient_norm": last.gradient_norm,
            "seconds": seconds,
            "samples_per_second": sum(report.samples for report in self.reports) / seconds,
            "wait_share": sum(report.wait_seconds for report in self.reports) / seconds,
        }


class _Stop(contextlib.AbstractContextManager["_Stop"]):
    """Notes SIGINT and SIGTERM, so that the step under way can be finished and saved; a second one ends at once."""

    def __init__(self) -> None:
        self._noted = 0
        self._before: dict[int, Any] = {}
        # Torch's launchers cannot tell their processes when they are killed themselves, and those would go on alone.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    @property
    def signal(self) -> int:
        """The number of the signal, or 0."""
        if self._launcher is not None and os.getppid() != self._launcher:
            return signal.SIGTERM
        return self._noted

    def __enter__(self) -> _Stop:
        with contextlib.suppress(ValueError):  # in a thread of a larger program, which sees to its signals itself
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()


@contextlib.contextmanager
def _compiler_errors() -> Iterator[None]:
    """Puts the first line of what torch.compile says, which may be a megabyte, into a ClipError."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise
        first = str(error).strip().partition("\n")[0]
        raise ClipError(f"torch.compile has failed ({first[:200]}); train without --compile") from error


def _step_seed(seed: int, step: int, rank: int) -> int:
    """Of the generators in one step of one process; the same whenever that step is made."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def _end_of_address(address: str) -> str:
    """The last two parts: a model is handed on, and whose disk or signed link the data came from is private."""
    return "/".join(PurePath(address.partition("?")[0]).parts[-2:])


def _equal(batch: Batch) -> Tensor:
    """(B,) int64: equal for pairs of one class where there are classes, and else for captions of the same tokens."""
    if batch.labels is not None:
        return batch.labels
    ids = [
        int.from_bytes(hashlib.blake2b(row.numpy().tobytes(), digest_size=8).digest(), "little", signed=True)
        for row in batch.texts
    ]
    return torch.tensor(ids, dtype=torch.int64)
