"""A drawing of a few shapes from nothing: many random starts, the loop with fewer and fewer of them, and what is left
over taken away."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import torch

from clip.guidance.drawing import Drawing, Step, Target, draw
from clip.guidance.vector import Shapes

__all__ = ["COLOURS", "simplified", "sketch"]

COLOURS = {
    "red": (0.86, 0.13, 0.15),
    "orange": (0.96, 0.55, 0.12),
    "yellow": (0.99, 0.8, 0.2),
    "green": (0.3, 0.65, 0.25),
    "blue": (0.2, 0.5, 0.85),
    "purple": (0.55, 0.3, 0.7),
    "pink": (0.95, 0.55, 0.7),
    "brown": (0.55, 0.35, 0.2),
    "black": (0.12, 0.12, 0.12),
    "white": (0.97, 0.97, 0.97),
    "grey": (0.55, 0.55, 0.55),
}
"""Where shapes begin that are drawn for a prompt with the word."""

_STARTS = 24
"""Random pictures for each candidate that sets out."""
_WORTH = 0.05
"""What a shape must do for the value, in nats, to stay."""


def sketch(
    objective: Target,
    *,
    colours: Sequence[tuple[float, float, float]] = (),
    shapes: int = 5,
    points: int = 10,
    candidates: int = 12,
    mirrored: float = 0.6,
    steps: int = 160,
    learning_rate: float = 0.012,
    size: int = 64,
    background: tuple[float, float, float] | None = None,
    seed: int = 0,
    seconds: float | None = None,
    frames: int = 0,
    frame_size: int | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
    on_step: Callable[[Step], None] | None = None,
) -> tuple[Shapes, Drawing]:
    """The best of several drawings, one in the batch, and how it went.

    colours: that the lower half of the shapes begin with; the others begin with any.
    candidates: that set out; after a quarter of the way half of them go on, after half of it a quarter.
    mirrored: share of the candidates that are symmetric. What one knows things by often is.
    See ``draw`` for the rest.
    """
    generator = _start(objective, colours, shapes, points, candidates, mirrored, size, background, seed)
    drawing = draw(
        generator,
        objective,
        steps=steps,
        learning_rate=learning_rate,
        keep=((0.25, math.ceil(candidates / 2)), (0.5, math.ceil(candidates / 4))),
        seed=seed,
        seconds=seconds,
        frames=frames,
        frame_size=frame_size,
        checkpoint=checkpoint,
        on_step=on_step,
    )
    return simplified(generator, objective, seed=seed), drawing


@torch.no_grad()
def simplified(shapes: Shapes, objective: Target, *, worth: float = _WORTH, seed: int = 0) -> Shapes:
    """A picture, one in the batch, without the shapes that it does as well without."""

    def value(picture: Shapes) -> float:
        random = torch.Generator().manual_seed(seed + 2_000_003)
        images = picture.layers() if picture.background is None else picture()
        return float(torch.stack([objective(images, generator=random) for _ in range(3)]).mean())

    now = value(shapes)
    while (count := shapes.points.shape[1]) > 1:
        fewer = [shapes.kept(0, torch.tensor([i for i in range(count) if i != left_out])) for left_out in range(count)]
        values = [value(picture) for picture in fewer]
        best = min(range(count), key=values.__getitem__)
        if values[best] > now + worth:
            break
        shapes, now = fewer[best], min(values[best], now)
    return shapes


@torch.no_grad()
def _start(
    objective: Target,
    colours: Sequence[tuple[float, float, float]],
    shapes: int,
    points: int,
    candidates: int,
    mirrored: float,
    size: int,
    background: tuple[float, float, float] | None,
    seed: int,
) -> Shapes:
    """The best of many random pictures, of the symmetric ones and of the others so many."""
    random = torch.Generator().manual_seed(seed)
    symmetric = round(mirrored * candidates)
    chosen: list[Shapes] = []
    for wanted, is_symmetric in ((symmetric, True), (candidates - symmetric, False)):
        if not wanted:
            continue
        many = Shapes.random(
            shapes,
            points=points,
            batch=wanted * _STARTS,
            mirrored=wanted * _STARTS if is_symmetric else 0,
            size=size,
            background=background,
            generator=random,
        )
        for i, colour in enumerate((list(colours) * shapes)[: -(-shapes // 2)]):
            near = torch.tensor(colour) + 0.05 * torch.randn(len(many.colours), 3, generator=random)
            many.colours[:, i] = torch.logit(near, eps=0.03)
        values: list[torch.Tensor] = []
        images = many.layers() if background is None else many()
        for some in images.split(32):
            values.append(objective(some, generator=torch.Generator().manual_seed(seed)))
        best = torch.cat(values).argsort(stable=True)[:wanted]
        chosen += [many.kept(int(row), torch.arange(shapes)) for row in best]
    start = chosen[0]
    return Shapes(
        torch.cat([picture.points for picture in chosen]),
        torch.sigmoid(torch.cat([picture.colours for picture in chosen])),
        is_mirrored=torch.cat([picture.is_mirrored for picture in chosen]),
        size=size,
        background=start.background,
    )
