"""AdamW with the paper's exclusions, its schedule, the length of the gradient, and the running average of weights."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import AdamW

from clip.model import CLIP
from clip.training.config import LONGEST_WARMUP, TrainConfig

__all__ = ["adamw", "average_weights_", "clip_gradients_", "is_decayed", "learning_rate", "local", "lock_tower"]

MAX_LOGIT_SCALE = math.log(100)
"""Logits are never scaled by more than 100 (Radford et al. 2021, section 2.5)."""

SCALARS = ("logit_scale", "logit_bias")
"""Parameters of the loss and not of a tower: they belong to every process whole."""

TEXT_TOWER = ("transformer.", "token_embedding.", "positional_embedding", "ln_final.", "text_projection")


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Whether weight decay applies: to "all weights that are not gains or biases" (section 2.5). Those, the class token
    and ``logit_scale`` are what has fewer than two dimensions."""
    return parameter.ndim >= 2 and not name.endswith("bias")


def lock_tower(model: CLIP, lock: str) -> None:
    """No gradients for a tower, in place; ``lock`` is as in ``TrainConfig``."""
    prefixes = {"none": (), "image": ("visual.",), "text": TEXT_TOWER}[lock]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes) if prefixes else True)


def adamw(model: CLIP, config: TrainConfig) -> AdamW:
    """AdamW over what is not locked. The parameters of the loss are a group of their own, because the others may be
    sharded."""
    groups: dict[str, list[nn.Parameter]] = {"decayed": [], "gains and biases": [], "scalars": []}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kind = "decayed" if is_decayed(name, parameter) else "gains and biases"
            groups["scalars" if name in SCALARS else kind].append(parameter)
    is_resnet = model.config.is_resnet
    return AdamW(
        [
            {"params": parameters, "weight_decay": config.weight_decay if kind == "decayed" else 0.0}
            for kind, parameters in groups.items()
            if parameters
        ],
        lr=config.learning_rate,
        betas=(config.beta1, _given(config.beta2, 0.999 if is_resnet else 0.98)),
        eps=_given(config.epsilon, 1e-8 if is_resnet else 1e-6),
        fused=model.logit_scale.device.type in ("cpu", "cuda"),  # a quarter of the time of the loop over tensors
    )


def learning_rate(step: int, config: TrainConfig, total_steps: int) -> float:
    """For step ``step``, counted from 0: linear warm-up, then half a cosine that reaches 0 after the last."""
    warmup = config.warmup_steps
    if warmup is None:
        warmup = min(LONGEST_WARMUP, total_steps // 10)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, total_steps - warmup)
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def _given(value: float | None, default: float) -> float:
    return default if value is None else value


# Gradients ------------------------------------------------------------------------------------------------------------


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor, sharded or not."""
    to_local: Any = getattr(tensor, "to_local", None)
    return tensor if to_local is None else to_local()


def clip_gradients_(parameters: Iterable[nn.Parameter], longest: float | None, group: Any = None) -> float:
    """Scales the gradients down so that all together are no longer than ``longest``; gives their length before.

    Of sharded parameters each process adds the squares of its own part. The same for any sharding, up to rounding.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    whole = [gradient for gradient in gradients if local(gradient) is gradient]
    parts = [local(gradient) for gradient in gradients if local(gradient) is not gradient]
    squares = _squares(whole, gradients[0].device)
    if parts:
        own = _squares(parts, gradients[0].device)
        torch.distributed.all_reduce(own, group=group)
        squares = squares + own
    norm = math.sqrt(float(squares))
    if longest and norm > longest:
        torch._foreach_mul_([local(gradient) for gradient in gradients], longest / norm)
    return norm


def _squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Sum of squares, in double precision so that the order of summation does not show."""
    if not tensors:
        return torch.zeros((), dtype=torch.float64, device=device)
    return torch.stack(torch._foreach_norm(tensors)).double().square().sum()


# The running average --------------------------------------------------------------------------------------------------


def average_weights_(average: Mapping[str, Tensor], model: nn.Module, decay: float, step: int) -> None:
    """Moves the average towards the weights after step ``step``, counted from 0.

    Early steps count more, or the average would remember the random start: decay is at most (1 + t) / (10 + t), as in
    TensorFlow's ``ExponentialMovingAverage``.
    """
    decay = min(decay, (1 + step) / (10 + step))
    with torch.no_grad():
        weights = dict(model.named_parameters())
        torch._foreach_lerp_(
            [local(value) for value in average.values()], [local(weights[name]) for name in average], 1 - decay
        )
