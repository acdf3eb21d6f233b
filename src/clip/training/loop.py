"""The training loop: one story from the first step, or from the last checkpoint, to the finished model.

The order of the data is a function of the seed and the number of the step (``clip.data.order``), and so is all that a
step draws at random (``learner``). So a run that was killed goes on as if nothing had happened, on any number of
processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch
from torch import Tensor

import clip
from clip.checkpoints.files import Checkpoint, fingerprint
from clip.data.loading import Batch, batches
from clip.data.order import steps_per_epoch
from clip.data.records import Source
from clip.errors import ClipError, ConfigError
from clip.model import CLIP, ModifiedResNet
from clip.preprocess import Preprocess
from clip.training.config import TrainConfig
from clip.training.distributed import Processes
from clip.training.learner import Learner, NotFiniteError
from clip.training.report import MetricsWriter, StepReport, Window
from clip.training.state import RunFolder, Stored, gathered, moments
from clip.training.stopping import Stop, StoppedError
from clip.training.teacher import Teacher

__all__ = ["Evaluator", "TrainResult", "train"]

logger = logging.getLogger(__name__)

_SHOWN_FAILURES = 10
"""Records that cannot be read of which each process tells; of the others it tells the number."""

Evaluator = Callable[[CLIP], dict[str, float]]
"""A model in eval mode → numbers by name, such as ``validation/top1``; see ``evaluation.validation``."""


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
        these.from_first(lambda: stack.enter_context(run.locked()))
        training = _Training(
            model=model,
            config=config,
            source=source,
            run=run,
            preprocess=preprocess,
            transform=transform,
            teacher=teacher,
            these=these,
            about=about or {},
            licence=licence,
        )
        return training.tell(evaluators, on_step or (lambda report: None), tensorboard=tensorboard)


@dataclasses.dataclass(kw_only=True, eq=False)
class _Training:
    """The state of one call of ``train``, whose arguments these are."""

    model: CLIP
    config: TrainConfig
    source: Source
    run: RunFolder
    preprocess: Preprocess
    transform: Any
    teacher: Teacher | None
    these: Processes
    about: Mapping[str, Any]
    licence: str
    failures: int = 0
    """Records of this process that could not be read, since it began."""

    def __post_init__(self) -> None:
        self._check()
        self.total_steps = self.config.total_steps(steps_per_epoch(len(self.source), self.config.batch_size))
        self.record = self._record()
        self.start: dict[str, Tensor] = {}
        if self.config.wise_ft is not None:
            self.start = {name: value.cpu().clone() for name, value in self.model.state_dict().items()}

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
        these.from_first(lambda: run.begin(self.record))
        result = run.result()
        if result is not None and (result["step"], result.get("wise_ft")) == (self.total_steps, config.wise_ft):
            return self._result(result["step"], was_finished=True, metrics=result["metrics"])
        stored = self._restore()
        if self.resumed_from > self.total_steps:
            raise ConfigError(f"{run.path} is at step {self.resumed_from}, beyond the {self.total_steps} asked for")
        self._log_beginning()
        first = self.resumed_from
        metrics_bytes = stored.metrics_bytes if stored else 0
        with (
            MetricsWriter(run.path, metrics_bytes, is_first=these.is_first, tensorboard=tensorboard) as self.metrics,
            Stop() as stop,
        ):
            if first < self.total_steps:
                with contextlib.closing(self._batches(first)) as stream:
                    self._steps(stream, evaluators, on_step, stop)
            self._evaluate(evaluators, self.total_steps)
            self._finish()
            return self._result(self.total_steps, was_finished=False, metrics=self.metrics.last)

    def _steps(
        self,
        stream: Iterator[Batch],
        evaluators: Sequence[Evaluator],
        on_step: Callable[[StepReport], None],
        stop: Stop,
    ) -> None:
        config, these = self.config, self.these
        window = Window()
        for batch in stream:
            began = time.perf_counter()
            report = self._step(batch)
            done = report.step
            report = dataclasses.replace(report, seconds=time.perf_counter() - began + batch.wait_seconds)
            self._tell_failures(batch)
            window.add(report)
            on_step(report)
            is_last = done == self.total_steps
            if done % config.log_every == 0 or is_last:
                self._log(window, batch)
                window = Window()
            signal_number = these.most(stop.signal)
            if done % config.checkpoint_every == 0 or is_last or signal_number:
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
            del batch  # its memory is free before the next one is put together

    def _step(self, batch: Batch) -> StepReport:
        try:
            return self.learner.step(batch)
        except NotFiniteError as error:
            steps = self.run.steps()
            kept = f"the checkpoint of step {steps[-1]} is kept" if steps else "there is no checkpoint yet"
            raise ClipError(
                f"{error}. Nothing of this step was kept, and {kept}; lower the learning rate or max_gradient_norm, or "
                "use precision fp32"
            ) from error

    def _tell_failures(self, batch: Batch) -> None:
        for failure in batch.failures:
            if self.failures < _SHOWN_FAILURES:
                logger.warning("step %d: left out: %s", batch.step + 1, failure.message)
            self.failures += 1

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
        """Makes the learner, from the newest checkpoint if there is one."""
        newest = self.run.newest()
        self.resumed_from = newest[1].step if newest else 0
        if newest:
            self.model.load_state_dict(newest[1].weights)
        self.learner = Learner(self.model, self.config, self.these, total_steps=self.total_steps, teacher=self.teacher)
        if newest:
            self.learner.restore_(newest[1])
        return newest[1] if newest else None

    def _save(self, step: int) -> None:
        first = self.these.is_first
        stored = Stored(
            step=step,
            weights=gathered(self.model.state_dict(), is_first=first),
            moments=gathered(moments(self.model, self.learner.optimizer), is_first=first),
            average=gathered(self.learner.average, is_first=first),
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
        weights |= gathered(self.learner.average, is_first=first)
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
            self.run.finish({"step": self.total_steps, "wise_ft": self.config.wise_ft, "metrics": self.metrics.last})

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

    def _log(self, window: Window, batch: Batch) -> None:
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


def _end_of_address(address: str) -> str:
    """The last two parts: a model is handed on, and whose disk or signed link the data came from is private."""
    return "/".join(PurePath(address.partition("?")[0]).parts[-2:])
