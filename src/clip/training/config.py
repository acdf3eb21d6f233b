"""How to train: every dial with its default and its meaning, in one place.

The command line makes its options and their help from these fields, a TOML file has their names as keys, and a run
keeps them in ``config.json``.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
import sys
import tomllib
from collections.abc import Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from clip.errors import ConfigError, choices

__all__ = ["MAY_CHANGE", "TrainConfig", "checked_fields", "field_docs", "read_toml"]

Loss = Literal["softmax", "sigmoid"]
Lock = Literal["none", "image", "text"]
Precision = Literal["fp32", "bf16"]

LONGEST_WARMUP = 2000
"""Steps (Radford et al. 2021, table 18)."""


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """The recipe of a run. Defaults are those of the paper (Radford et al. 2021, tables 18 to 20) where it has one."""

    steps: int | None = None
    """Steps in all; give these or epochs."""
    epochs: int | None = None
    """Passes over the data in all; give these or steps."""
    batch_size: int = 256
    """Pairs in one step, over all processes; each is compared with all others."""
    micro_batch_size: int | None = None
    """Pairs of one process that go through the towers at once; the gradient stays that of the whole batch, the memory
    is that of so many pairs, and each passes forward twice. By default all."""
    seed: int = 0
    """Of the weights, the order, the captions drawn, augmentation and dropout."""

    learning_rate: float = 5e-4
    """Highest learning rate, reached after the warm-up, then falling to 0 by half a cosine."""
    warmup_steps: int | None = None
    """Steps of linearly growing learning rate; by default a tenth of all, at most 2000."""
    weight_decay: float = 0.2
    """Decoupled, of everything but gains, biases and logit_scale."""
    beta1: float = 0.9
    """Decay of AdamW's mean of gradients."""
    beta2: float | None = None
    """Decay of AdamW's mean of squares; by default 0.98 for a ViT and 0.999 for a ResNet."""
    epsilon: float | None = None
    """AdamW's smallest denominator; by default 1e-6 for a ViT and 1e-8 for a ResNet."""
    max_gradient_norm: float | None = 1.0
    """The gradient of all weights together is scaled down to this length; 0 leaves it as it is."""

    loss: Loss = "softmax"
    """softmax: the paper's symmetric cross-entropy; sigmoid: each pair for itself (SigLIP), with a learned bias."""
    mask_equal: bool = False
    """Do not push a picture away from another one's caption that is the same, or is of the same class."""
    distillation: float | None = None
    """Weight of the teacher's loss beside the contrastive one; by default 1 with a teacher."""

    precision: Precision = "fp32"
    """Of matrix products; weights, loss and optimizer are fp32 always."""
    gradient_checkpointing: bool = False
    """Compute activations twice instead of keeping them."""
    patch_dropout: float = 0.0
    """Share of a ViT's patches left out in training (FLIP)."""
    compile: bool = False
    """Compile both towers with torch.compile; needs a C++ compiler on a CPU."""
    lock: Lock = "none"
    """A tower that keeps its weights; image: locked-image tuning (LiT)."""
    ema: float | None = None
    """Decay of a running average of the weights, for example 0.999; that average is then the result."""
    wise_ft: float | None = None
    """Share of the trained weights in the result, the rest being those of the start (WiSE-FT), for example 0.5."""
    fsdp: bool = False
    """Shard weights and optimizer over the processes (FSDP2), for models that do not fit one device."""

    workers: int | None = None
    """How many decode and augment pictures for each process that trains: threads, or from 5 on processes; by default
    one for each processor it may use. 0: it does so itself."""
    max_failures: float = 0.01
    """Largest share of records that cannot be read."""
    log_every: int = 10
    """Steps between two lines of metrics.jsonl."""
    checkpoint_every: int = 1000
    """Steps between two checkpoints."""
    keep: int = 3
    """Checkpoints that are kept, the newest ones."""
    validate_every: int | None = None
    """Steps between two validations; by default there is one at the end."""

    def __post_init__(self) -> None:
        checked_fields(self)
        if (self.steps is None) == (self.epochs is None):
            given = "both are given" if self.steps is not None else "neither is given"
            raise ConfigError(f"steps and epochs: {given}; give one of them")
        for name, least, most in _RANGES:
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                limit = f"at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
                raise ConfigError(f"{name} is {value:g}; it must be {limit}")
        for name in ("beta1", "beta2", "ema", "patch_dropout"):
            if getattr(self, name) == 1:
                raise ConfigError(f"{name} is 1; it must be below 1")
        if self.batch_size < 2:
            raise ConfigError(f"batch_size is {self.batch_size}; a pair needs at least one other to be compared with")
        if self.lock == "image" and self.patch_dropout:
            raise ConfigError(
                f"patch_dropout is {self.patch_dropout:g} and lock is 'image': a locked tower drops no patches; "
                "leave one of them out"
            )

    def total_steps(self, steps_per_epoch: int) -> int:
        """Steps of the whole run."""
        return self.steps if self.steps is not None else (self.epochs or 0) * steps_per_epoch

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values, as stored beside each checkpoint."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> TrainConfig:
        """Reads what ``to_dict`` wrote. Raises ConfigError for an unknown key, with the known ones."""
        known = [field.name for field in dataclasses.fields(cls)]
        for key in values:
            if key not in known:
                raise ConfigError(f"unknown training option {key!r}; known are {choices(str(key), known)}")
        return cls(**values)


_RANGES: list[tuple[str, float, float]] = [
    *((name, 1, math.inf) for name in ("steps", "epochs", "batch_size", "micro_batch_size", "log_every")),
    *((name, 1, math.inf) for name in ("checkpoint_every", "keep", "validate_every")),
    *((name, 0, math.inf) for name in ("seed", "warmup_steps", "learning_rate", "weight_decay", "epsilon", "workers")),
    *((name, 0, math.inf) for name in ("max_gradient_norm", "distillation")),
    *((name, 0, 1) for name in ("beta1", "beta2", "patch_dropout", "ema", "wise_ft", "max_failures")),
]

MAY_CHANGE = frozenset(
    {
        "steps",
        "epochs",
        "workers",
        "max_failures",
        "log_every",
        "checkpoint_every",
        "keep",
        "validate_every",
        "micro_batch_size",
        "gradient_checkpointing",
        "compile",
        "fsdp",
        "wise_ft",
    }
)
"""Fields that may differ when a run goes on: how long, how fast and how often, but not what is computed."""


# Dataclasses as options -----------------------------------------------------------------------------------------------


def checked_fields(config: Any) -> None:
    """Raises ConfigError for a field of a frozen dataclass whose value is not of its type; whole floats become ints
    nowhere, ints become floats where a float is meant, lists become tuples."""
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        is_optional = type(None) in get_args(kind)
        if value is None and is_optional:
            continue
        plain = next(part for part in get_args(kind) if part is not type(None)) if is_optional else kind
        if get_origin(plain) is Literal:
            if value not in get_args(plain):
                raise ConfigError(f"{name} is {value!r}; it must be one of {choices(str(value), get_args(plain))}")
        elif get_origin(plain) is tuple:
            inner = get_args(plain)[0]
            if not isinstance(value, list | tuple) or not all(_is(item, inner) for item in value):
                raise ConfigError(f"{name} is {value!r}; it must be a list of {_KINDS[inner]}")
            object.__setattr__(config, name, tuple(inner(item) for item in value))
        elif not _is(value, plain):
            raise ConfigError(f"{name} is {value!r}; it must be {_KINDS[plain]}")
        elif plain is float:
            object.__setattr__(config, name, float(value))


_KINDS = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}


def _is(value: object, kind: type) -> bool:
    if kind is float:
        # Also False for NaN, and for whole numbers that no float can hold.
        return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, kind) and (kind is bool or not isinstance(value, bool))


@lru_cache
def field_docs(cls: type) -> dict[str, str]:
    """The docstrings below the fields of a dataclass, each as one line; Python itself does not keep them."""
    tree = ast.parse(inspect.getsource(cls)).body[0]
    assert isinstance(tree, ast.ClassDef)
    docs = {}
    for field, below in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name) and isinstance(below, ast.Expr):
            docs[field.target.id] = " ".join(ast.literal_eval(below.value).split())
    return docs


def read_toml(path: str | Path, known: Iterable[str]) -> dict[str, Any]:
    """The keys of a TOML file. Raises ConfigError for one that is not among ``known``, naming these."""
    try:
        with Path(path).open("rb") as file:
            values = tomllib.load(file)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    except (ValueError, RecursionError) as error:  # ValueError: also numbers of thousands of digits
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    known = list(known)
    for key in values:
        if key not in known:
            raise ConfigError(f"{path}: unknown key {key!r}; known are {choices(key, known)}")
    return values
