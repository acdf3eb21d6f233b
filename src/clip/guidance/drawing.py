"""The loop that draws: a generator follows the gradient of an objective, several candidates at a time.

What is drawn is a function of the generator, the objective and the seed. A run that is stopped, however, and goes on
from its checkpoint ends with the bits that it would have ended with.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from clip.errors import CheckpointError, ClipError, ConfigError
from clip.guidance.generators import Generator
from clip.guidance.vector import Vector

__all__ = ["Drawing", "DrawingDivergedError", "Step", "Target", "draw"]

MOST_FRAMES = 64
_TRIES = 3
"""How often a run that diverges goes back, each time to half the learning rate."""
_HELD_OUT = 4
"""Looks at the candidates at the end, with cut-outs that no step saw."""


class DrawingDivergedError(ClipError, RuntimeError):
    """Values that are not finite, at every learning rate that was tried."""


class Target(Protocol):
    """``Objective``, ``Recognition``, or a sum of them."""

    def __call__(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor: ...

    def value_and_gradient(
        self, images: Tensor, *, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]: ...


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """What ``on_step`` is told."""

    number: int
    """From 1."""
    steps: int
    values: tuple[float, ...]
    """Of the candidates that are left."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Drawing:
    """What came of it. The generator that was handed in holds the best candidate alone."""

    value: float
    """Of the best, over cut-outs that no step saw; lower is better."""
    steps: int
    seconds: float
    """Since the first step of this process."""
    frames: list[NDArray[np.uint8]]
    """(H, W, 3) each: the way there, the last one being the result; empty unless asked for."""
    stopped: Literal["done", "time", "interrupted"]


def draw(
    generator: Generator,
    objective: Target,
    *,
    steps: int = 200,
    learning_rate: float = 0.012,
    keep: Sequence[tuple[float, int]] = (),
    seed: int = 0,
    seconds: float | None = None,
    frames: int = 0,
    frame_size: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 25,
    on_step: Callable[[Step], None] | None = None,
) -> Drawing:
    """Moves the parameters of ``generator`` by Adam, the rate warming up and falling along a cosine from the middle on.

    generator: a batch of B candidates; at the end the best one is left in it.
    learning_rate: of the points of shapes, in units of the side; other parameters have theirs in proportion.
    keep: ``(share of the steps, candidates)``: after so much of the way only so many go on, the best ones so far.
    seconds: after that time the rest of the way is cut: what there is by then is the result.
    frames: pictures to keep of the way, at most 64.
    checkpoint: a file written every ``checkpoint_every`` steps; where it is there already, the run goes on from it.
    on_step: may raise KeyboardInterrupt, which ends the run with what there is.
    Raises CheckpointError for a checkpoint of another run, and DrawingDivergedError.
    """
    _check(steps, learning_rate, keep, frames)
    run = _Run(generator, objective, steps, learning_rate, tuple(keep), seed)
    path = None if checkpoint is None else Path(checkpoint)
    if path is not None and path.exists():
        run.restore(path)
    began = time.monotonic()
    every = max(math.ceil(steps / frames), 1) if frames else 0
    stopped: Literal["done", "time", "interrupted"] = "done"
    try:
        while run.step < steps:
            values = run.advance()
            if every and run.step % every == 0 and run.step < steps:
                run.frames.append(run.frame(frame_size))
            if path is not None and (run.step % checkpoint_every == 0 or run.step == steps):
                run.save(path)
            if on_step is not None:
                on_step(Step(run.step, steps, tuple(values.tolist())))
            if seconds is not None and time.monotonic() - began >= seconds and run.step < steps:
                stopped = "time"
                break
    except KeyboardInterrupt:
        stopped = "interrupted"
    value = run.finish()
    if every:
        run.frames.append(run.frame(frame_size))
    return Drawing(value, run.step, time.monotonic() - began, run.frames, stopped)


def _check(steps: int, learning_rate: float, keep: Sequence[tuple[float, int]], frames: int) -> None:
    if steps < 1:
        raise ConfigError(f"steps is {steps}; it must be at least 1")
    if not (learning_rate > 0 and math.isfinite(learning_rate)):
        raise ConfigError(f"learning_rate is {learning_rate}; it must be above 0")
    if not 0 <= frames <= MOST_FRAMES:
        raise ConfigError(f"frames is {frames}; it must be from 0 to {MOST_FRAMES}")
    if any(not 0 <= share < 1 or count < 1 for share, count in keep):
        raise ConfigError(f"keep is {keep!r}; it must be pairs of a share from 0 to 1 and a number of candidates")


class _Run:
    """The state of a run; all that it depends on is in ``save``."""

    def __init__(
        self,
        generator: Generator,
        objective: Target,
        steps: int,
        learning_rate: float,
        keep: tuple[tuple[float, int], ...],
        seed: int,
    ) -> None:
        self.generator, self.objective, self.steps = generator, objective, steps
        self.keep, self.seed, self.learning_rate = keep, seed, learning_rate
        self.random = torch.Generator().manual_seed(seed)
        self.step, self.tries = 0, 0
        self.scores: Tensor | None = None
        self.first = {name: value.detach().clone() for name, value in generator.named_parameters()}
        self.moments = {name: torch.zeros(2, *value.shape) for name, value in generator.named_parameters()}
        self.frames: list[NDArray[np.uint8]] = []
        self.settings = json.dumps([steps, learning_rate, keep, seed, type(generator).__name__])
        self.good = self._state()

    def images(self) -> Tensor:
        """(B, 3, H, W), or (B, 4, H, W) of what is transparent."""
        if isinstance(self.generator, Vector) and self.generator.background is None:
            return self.generator.layers()
        images: Tensor = self.generator()
        return images

    def advance(self) -> Tensor:
        """One step; the values (B,) before it."""
        for share, count in self.keep:
            if self.step == int(share * self.steps) and self.scores is not None and len(self.scores) > count:
                self._take(self.scores.argsort(stable=True)[:count])
        images = self.images()
        values, gradient = self.objective.value_and_gradient(images, generator=self.random)
        self.generator.zero_grad()
        torch.autograd.backward(images, gradient)
        is_finite = bool(values.isfinite().all()) and all(
            parameter.grad is None or bool(parameter.grad.isfinite().all()) for parameter in self.generator.parameters()
        )
        if not is_finite:
            return self._back(values)
        values = values.detach().cpu()
        self.scores = values if self.scores is None else 0.9 * self.scores + 0.1 * values
        self._adam()
        self.step += 1
        if self.step % 10 == 0:
            self.good = self._state()
        return values

    def _back(self, values: Tensor) -> Tensor:
        self.tries += 1
        if self.tries > _TRIES:
            raise DrawingDivergedError(
                f"values stay not finite at step {self.step + 1} after {_TRIES} times half the learning rate; start "
                "with a smaller one"
            )
        tries, generator_state = self.tries, self.random.get_state()
        self._load(self.good)
        self.tries = tries
        self.random.set_state(generator_state)  # other cut-outs than those that led there
        return values

    @torch.no_grad()
    def _adam(self) -> None:
        """Adam (Kingma & Ba 2015), written out: its state is cut to the candidates that are left, and is saved."""
        done = self.step / self.steps
        rate = self.learning_rate * 0.5**self.tries * min(1.0, (self.step + 1) / 10)
        rate *= 1.0 if done < 0.5 else 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * (done - 0.5) / 0.5))
        first, second = 0.9, 0.99
        rates = self.generator.rates if isinstance(self.generator, Vector) else {}
        for name, parameter in self.generator.named_parameters():
            if parameter.grad is None:
                continue
            mean, square = self.moments[name]
            mean.mul_(first).add_(parameter.grad, alpha=1 - first)
            square.mul_(second).addcmul_(parameter.grad, parameter.grad, value=1 - second)
            direction = mean / (1 - first ** (self.step + 1))
            size = (square / (1 - second ** (self.step + 1))).sqrt() + 1e-8
            parameter.sub_(direction / size, alpha=rate * rates.get(name, 1.0))
        if isinstance(self.generator, Vector):
            self.generator.constrain_()

    def _take(self, rows: Tensor) -> None:
        """Only these candidates are left."""
        _set_tensors(self.generator, {name: value[rows] for name, value in self.generator.state_dict().items()})
        self.moments = {name: value[:, rows].contiguous() for name, value in self.moments.items()}
        self.scores = None if self.scores is None else self.scores[rows]
        self.good = self._state()

    @torch.no_grad()
    def finish(self) -> float:
        """The best candidate alone is left; its value over cut-outs that no step saw."""
        held_out = torch.Generator().manual_seed(self.seed + 1_000_003)
        images = self.images()
        values = torch.stack([self.objective(images, generator=held_out) for _ in range(_HELD_OUT)]).mean(dim=0)
        best = int(torch.nan_to_num(values, nan=math.inf).argmin())
        if len(values) > 1:
            self._take(torch.tensor([best]))
        return float(values[best])

    def frame(self, size: int | None) -> NDArray[np.uint8]:
        """The best candidate so far, as pixels."""
        best = 0 if self.scores is None else int(self.scores.argmin())
        with torch.no_grad():
            image = self.generator(size)[best] if isinstance(self.generator, Vector) else self.generator()[best]
        pixels: NDArray[np.uint8] = (image.permute(1, 2, 0) * 255).round().byte().cpu().numpy()
        return pixels

    def _state(self) -> dict[str, Tensor]:
        state = {f"generator.{name}": value for name, value in self.generator.state_dict().items()}
        state |= {f"moments.{name}": value for name, value in self.moments.items()}
        state["random"] = self.random.get_state()
        state["counts"] = torch.tensor([self.step, self.tries])
        if self.scores is not None:
            state["scores"] = self.scores
        return {name: value.detach().clone() for name, value in state.items()}

    def _load(self, state: dict[str, Tensor]) -> None:
        def part(prefix: str) -> dict[str, Tensor]:
            return {
                name.removeprefix(prefix): value.clone() for name, value in state.items() if name.startswith(prefix)
            }

        _set_tensors(self.generator, part("generator."))
        self.moments = part("moments.")
        self.random.set_state(state["random"].clone())
        self.step, self.tries = state["counts"].tolist()
        self.scores = state["scores"].clone() if "scores" in state else None

    def save(self, path: Path) -> None:
        state = self._state()
        state |= {f"good.{name}": value for name, value in self.good.items()}
        state |= {f"first.{name}": value for name, value in self.first.items()}
        state |= {f"frames.{i:04}": torch.from_numpy(frame) for i, frame in enumerate(self.frames)}
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        try:
            save_file({name: value.contiguous() for name, value in state.items()}, partial, {"drawing": self.settings})
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)

    def restore(self, path: Path) -> None:
        try:
            with safe_open(path, "pt") as file:
                settings = (file.metadata() or {}).get("drawing")
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # it is no mapping
        except (OSError, SafetensorError) as error:
            raise CheckpointError(
                f"{path}: is no checkpoint of a drawing ({error}); remove it to start anew"
            ) from error
        begun = {name.removeprefix("first."): value for name, value in state.items() if name.startswith("first.")}
        is_same = settings == self.settings and begun.keys() == self.first.keys()
        if not is_same or not all(torch.equal(begun[name], value) for name, value in self.first.items()):
            raise CheckpointError(
                f"{path}: was written by a drawing with other settings, {settings}, where these are {self.settings}; "
                "draw with the same ones, or remove it to start anew"
            )
        names = sorted(name for name in state if name.startswith("frames."))
        self.frames = [state.pop(name).numpy() for name in names]
        self.good = {name.removeprefix("good."): value for name, value in state.items() if name.startswith("good.")}
        self._load({name: value for name, value in state.items() if not name.startswith(("good.", "first."))})


def _set_tensors(module: nn.Module, tensors: dict[str, Tensor]) -> None:
    """Parameters and buffers by name, whose batch may have another size than those of the module."""
    for name, value in tensors.items():
        owner, _, own = name.rpartition(".")
        place = module.get_submodule(owner)
        setattr(place, own, nn.Parameter(value.clone()) if own in place._parameters else value.clone())
