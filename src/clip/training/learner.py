"""A model and all that moves its weights: one step, from a batch to the next weights.

What a step computes is a function of the weights, the seed and the number of the step, and of nothing else: the random
generators are set anew before each.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from clip.data.loading import Batch
from clip.errors import ClipError
from clip.model import CLIP, ModifiedResNet
from clip.training import gradient_cache
from clip.training.config import TrainConfig
from clip.training.distributed import (
    FailedElsewhereError,
    Processes,
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
from clip.training.report import StepReport
from clip.training.state import Stored, like, restore_moments_
from clip.training.teacher import Teacher

__all__ = ["Learner", "NotFiniteError"]


class NotFiniteError(ClipError):
    """The loss or the gradient of a step is NaN or infinite; the weights are those of before the step."""


class Learner:
    """A model, its optimizer, the wrappers that share it among processes, and the running average of its weights."""

    def __init__(
        self, model: CLIP, config: TrainConfig, these: Processes, *, total_steps: int, teacher: Teacher | None
    ) -> None:
        """Makes ``model`` ready for training, in place."""
        self.model = model
        self._config = config
        self._these = these
        self._total_steps = total_steps
        self._teacher = teacher
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
        self._shared = share(Towers(model, is_bf16=config.precision == "bf16"), these, fsdp=config.fsdp)
        self.optimizer = adamw(model, config)
        self._trained: list[nn.Parameter] = [p for p in model.parameters() if p.requires_grad]
        self.average: dict[str, Tensor] = {}
        """Of the weights that are trained, by name; empty where none was asked for."""
        if config.ema is not None:
            self.average = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}

    def restore_(self, stored: Stored) -> None:
        """Goes on where a checkpoint was written, of which the model has the weights already."""
        restore_moments_(self.model, self.optimizer, stored)
        weights = dict(self.model.named_parameters())
        for name in self.average:
            self.average[name] = like(weights[name], stored.average[name])

    def step(self, batch: Batch) -> StepReport:
        """Moves the weights by this process's part of one batch, together with the other processes.

        A step of fewer than two pairs in all leaves them as they are. Raises NotFiniteError on the first process,
        FailedElsewhereError on the others.
        """
        config, these, model = self._config, self._these, self.model
        rate = learning_rate(batch.step, config, self._total_steps)
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
                self._shared.encode,
                batch.images,
                batch.texts,
                # The wrappers average gradients over the processes; those of the loss are parts of a sum.
                lambda images, texts: loss(images, texts) * these.world_size,
                micro_batch_size=micro_batch_size,
                model=model,
                synchronize=self._shared.synchronize,
                at_least=these.most(-(-len(batch.keys) // micro_batch_size)),
            )
        average_scalars_(model, these)
        average_statistics_(model, these)
        loss_value = float(value) / these.world_size
        norm = clip_gradients_(self._trained, config.max_gradient_norm, these.group)
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
        config, these, model = self._config, self._these, self.model
        equal = _equal(batch).to(these.device) if config.mask_equal else None
        targets = (None, None) if self._teacher is None else self._teacher(batch)
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
        return StepReport(
            step=batch.step + 1,
            total_steps=self._total_steps,
            samples=samples,
            loss=loss,
            logit_scale=float(self.model.logit_scale.detach().exp()),
            learning_rate=rate,
            gradient_norm=norm,
            seconds=0.0,
            wait_seconds=batch.wait_seconds,
        )

    def _fail(self, batch: Batch, loss: float, seen: list[Tensor]) -> None:
        """Raises an error that names the step, the tower and the samples, on all processes alike."""
        bad = {}
        for tower, embeddings in zip(("image", "text"), seen, strict=True):
            rows = (~embeddings.isfinite().all(dim=1)).nonzero().flatten().tolist()
            bad[tower] = [batch.keys[row] for row in rows]
        everywhere = self._these.gathered(bad)
        if not self._these.is_first:
            raise FailedElsewhereError("the loss is not finite, and the first process says where")
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
        raise NotFiniteError(f"step {batch.step + 1}: the loss is {loss:g}; {'; '.join(culprits)}")


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


def _equal(batch: Batch) -> Tensor:
    """(B,) int64: equal for pairs of one class where there are classes, and else for captions of the same tokens."""
    if batch.labels is not None:
        return batch.labels
    ids = [
        int.from_bytes(hashlib.blake2b(row.numpy().tobytes(), digest_size=8).digest(), "little", signed=True)
        for row in batch.texts
    ]
    return torch.tensor(ids, dtype=torch.int64)
