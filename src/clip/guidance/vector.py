"""Pictures of a few flat shapes, differentiable in their outlines and colours, and the same that ``svg`` writes.

Few shapes with smooth outlines hold no grain: what a gradient can change about them is what a person would see.

The renderer needs no distances and no ray casting. The part of a pixel that a closed outline covers is a sum over the
pieces of the outline (Green's theorem): each adds its height to all pixels right of it, and of the pixel that it lies
in the share right of it. So all pieces are added to one array, whose running sums along the rows are the coverage; the
gradient follows the outline, where it is exact. Fonts have been drawn so since Raph Levien's font-rs.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import ClassVar, Self

import torch
from torch import Tensor, nn

from clip.errors import ConfigError, ShapeError
from clip.guidance.generators import Generator

__all__ = ["Outlines", "Shapes", "Strokes", "Vector", "coverage"]


_MARGIN = 0.04
"""Of a picture, in units of the side: no point lies in it."""

_SMOOTHING = 0.005
"""How far each step draws a point to the middle of its neighbours: what is to stay a spike must be pulled."""

_MOST_PIECES = 1024
"""Of one curve, whatever becomes of it."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Outlines:
    """One picture as paths, the lowest first, in units of its side: what a file of SVG holds."""

    curves: list[Tensor]
    """Each (C, K, 4, 2): C closed outlines of K cubic Bézier curves; in all of them a pixel is inside whose winding
    number is not zero."""
    colours: Tensor
    """(N, 3) in [0, 1]."""
    background: tuple[float, float, float] | None
    """None: transparent."""


class Vector(Generator):
    """Layers of one colour each, over a background."""

    colours: nn.Parameter
    """(B, N, 3), before the sigmoid."""
    points: nn.Parameter
    """(B, N, K, 2), in units of the side."""

    rates: ClassVar[dict[str, float]] = {"colours": 3.0, "roundness": 6.0, "widths": 3.0}
    """How fast parameters are moved, in proportion to the points."""

    def __init__(self, size: int, background: tuple[float, float, float] | None) -> None:
        super().__init__()
        if size < 8:
            raise ConfigError(f"size is {size}; it must be at least 8 pixels")
        self.size, self.background = size, background

    @torch.no_grad()
    def constrain_(self) -> None:
        """Brings back into the picture what a step has moved out of it, and colours from where they no longer move."""
        self.points.clamp_(_MARGIN, 1 - _MARGIN)
        self.colours.clamp_(-5, 5)

    def curves(self) -> Tensor:
        """(B, N, C, K, 4, 2): C closed outlines of each layer, of K cubic Bézier curves, in units of the side."""
        raise NotImplementedError

    def outlines(self, row: int = 0) -> Outlines:
        """Picture ``row`` of the batch as paths."""
        with torch.no_grad():
            return Outlines(list(self.curves()[row]), torch.sigmoid(self.colours[row]), self.background)

    def layers(self, size: int | None = None) -> Tensor:
        """(B, 4, H, W): the picture without its background; alpha last, colours not multiplied by it."""
        size = size or self.size
        curves = self.curves()
        batch, count, parts = curves.shape[:3]
        # Pieces shorter than a pixel: no point of a curve moves faster than three times its longest handle.
        longest = float(curves.detach().diff(dim=-2).norm(dim=-1).max()) * size
        lines = _flattened(curves.flatten(0, 2), min(max(math.ceil(3 * longest), 2), _MOST_PIECES))
        covers = coverage(lines * size, size, size).view(batch, count, parts, size, size)
        # Parts of a layer are united: of two edges in one pixel the larger cover counts.
        alphas = covers.amax(dim=2) if parts > 1 else covers[:, :, 0]
        # What is seen of a layer is what those above it let through.
        through = torch.cumprod((1 - alphas).flip(1), dim=1).flip(1)  # of this layer and all above it
        above = torch.cat([through[:, 1:], torch.ones_like(through[:, :1])], dim=1)
        colours = torch.einsum("bnhw,bnc->bchw", alphas * above, torch.sigmoid(self.colours))
        alpha = 1 - through[:, :1]
        return torch.cat([(colours / alpha.clamp(min=1e-6)).clamp(max=1), alpha], dim=1)  # rounding

    def kept(self, row: int, shapes: Tensor) -> Self:
        """Picture ``row`` alone, with these shapes (N,) of it."""
        twin = copy.deepcopy(self)
        for name, parameter in self.named_parameters():
            setattr(twin, name, nn.Parameter(parameter.detach()[row : row + 1, shapes].clone()))
        for name, buffer in self.named_buffers():
            setattr(twin, name, buffer[row : row + 1].clone())
        return twin

    def forward(self, size: int | None = None) -> Tensor:
        """(B, 3, H, W), over the background, or over white where that is transparent."""
        layers = self.layers(size)
        background = layers.new_tensor(self.background or (1.0, 1.0, 1.0))[:, None, None]
        alpha = layers[:, 3:]
        return (layers[:, :3] * alpha + background * (1 - alpha)).clamp(0, 1)


class Shapes(Vector):
    """Closed shapes of one colour, each over those before it.

    An outline runs smoothly through its points (Catmull–Rom), and has a corner where its ``roundness`` is zero.

    points: (B, N, K, 2) in units of the side, x to the right and y down.
    colours: (B, N, 3) in [0, 1].
    is_mirrored: (B,): whether all shapes of a picture have a twin on the other side of its middle.
    size: pixels of a side of what ``forward`` gives.
    """

    is_mirrored: Tensor

    def __init__(
        self,
        points: Tensor,
        colours: Tensor,
        *,
        is_mirrored: Tensor | None = None,
        size: int = 64,
        background: tuple[float, float, float] | None = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__(size, background)
        if points.ndim != 4 or points.shape[2] < 3 or points.shape[3] != 2 or 0 in points.shape:
            raise ShapeError(
                f"points have shape {tuple(points.shape)}; (batch, shapes, points, 2) is expected, of 3 points or more"
            )
        if colours.shape != (*points.shape[:2], 3):
            raise ShapeError(f"colours have shape {tuple(colours.shape)}; {(*points.shape[:2], 3)} is expected")
        self.points = nn.Parameter(points.detach().clone().float())
        self.colours = nn.Parameter(torch.logit(colours.detach().float(), eps=0.01))
        self.roundness = nn.Parameter(torch.full(points.shape[:3], 1.5))  # before the sigmoid
        mirrored = torch.zeros(len(points), dtype=torch.bool) if is_mirrored is None else is_mirrored.clone()
        self.register_buffer("is_mirrored", mirrored)

    @classmethod
    def random(
        cls,
        count: int,
        *,
        points: int = 8,
        batch: int = 1,
        mirrored: int = 0,
        size: int = 64,
        background: tuple[float, float, float] | None = (1.0, 1.0, 1.0),
        generator: torch.Generator | None = None,
    ) -> Shapes:
        """Ellipses at random places in random colours, large ones below small ones.

        mirrored: how many of the batch, the first ones, are symmetric.
        """
        if count < 1 or points < 3 or batch < 1:
            raise ConfigError(
                f"{count} shapes of {points} points in {batch} pictures; there must be 1, 3 and 1 or more"
            )

        def uniform(*shape: int, low: float, high: float) -> Tensor:
            return low + (high - low) * torch.rand(shape, generator=generator)

        angles = torch.arange(points) * (2 * math.pi / points) + uniform(batch, count, 1, low=0, high=2 * math.pi)
        circles = torch.stack([angles.cos(), angles.sin()], dim=-1)  # (B, N, K, 2)
        sizes = torch.linspace(0.28, 0.1, count).view(1, count, 1, 1) * uniform(batch, count, 1, 1, low=0.8, high=1.2)
        centres = uniform(batch, count, 1, 2, low=0.25, high=0.75)
        outlines = centres + circles * sizes * uniform(batch, count, 1, 2, low=0.7, high=1.3)
        colours = uniform(batch, count, 3, low=0.1, high=0.9)
        return cls(outlines, colours, is_mirrored=torch.arange(batch) < mirrored, size=size, background=background)

    @torch.no_grad()
    def constrain_(self) -> None:
        neighbours = (self.points.roll(1, dims=2) + self.points.roll(-1, dims=2)) / 2
        self.points.lerp_(neighbours, _SMOOTHING)
        super().constrain_()

    def curves(self) -> Tensor:
        own = _through(self.points, torch.sigmoid(self.roundness), is_closed=True)  # (B, N, K, 4, 2)
        if not self.is_mirrored.any():
            return own[:, :, None]
        # Backwards, so that it winds as the other does and the two are united. A picture without has its own twice.
        twin = torch.stack([1 - own[..., 0], own[..., 1]], dim=-1).flip(2, 3)
        return torch.stack([own, torch.where(self.is_mirrored.view(-1, 1, 1, 1, 1), twin, own)], dim=2)


class Strokes(Vector):
    """Lines with round ends, each of one width and colour, each over those before it.

    A line runs smoothly through its points; what is drawn is its outline: the circles of its width around it.

    points: (B, N, K, 2) in units of the side. widths: (B, N) in the same unit. colours: (B, N, 3) in [0, 1].
    """

    def __init__(
        self,
        points: Tensor,
        widths: Tensor,
        colours: Tensor,
        *,
        size: int = 64,
        background: tuple[float, float, float] | None = (1.0, 1.0, 1.0),
    ) -> None:
        super().__init__(size, background)
        if points.ndim != 4 or points.shape[2] < 2 or points.shape[3] != 2 or 0 in points.shape:
            raise ShapeError(
                f"points have shape {tuple(points.shape)}; (batch, strokes, points, 2) is expected, of 2 points or more"
            )
        for name, value, expected in (
            ("widths", widths, points.shape[:2]),
            ("colours", colours, (*points.shape[:2], 3)),
        ):
            if value.shape != expected:
                raise ShapeError(f"{name} have shape {tuple(value.shape)}; {tuple(expected)} is expected")
        self.points = nn.Parameter(points.detach().clone().float())
        self.widths = nn.Parameter(widths.detach().clone().float().clamp(min=_THINNEST).log())
        self.colours = nn.Parameter(torch.logit(colours.detach().float(), eps=0.01))

    @classmethod
    def random(
        cls,
        count: int,
        *,
        points: int = 4,
        batch: int = 1,
        size: int = 64,
        background: tuple[float, float, float] | None = (1.0, 1.0, 1.0),
        generator: torch.Generator | None = None,
    ) -> Strokes:
        """Gently bent lines at random places in random colours."""
        if count < 1 or points < 2 or batch < 1:
            raise ConfigError(
                f"{count} strokes of {points} points in {batch} pictures; there must be 1, 2 and 1 or more"
            )
        middles = 0.25 + 0.5 * torch.rand(batch, count, 1, 2, generator=generator)
        angles = 2 * math.pi * torch.rand(batch, count, 1, generator=generator)
        along = torch.linspace(-0.15, 0.15, points).view(1, 1, points, 1)
        lines = middles + along * torch.stack([angles.cos(), angles.sin()], dim=-1)
        lines = lines + 0.03 * torch.randn(lines.shape, generator=generator)
        colours = 0.1 + 0.8 * torch.rand(batch, count, 3, generator=generator)
        return cls(lines, torch.full((batch, count), 0.05), colours, size=size, background=background)

    def curves(self) -> Tensor:
        lines = _through(self.points, torch.ones_like(self.points[..., 0]), is_closed=False)  # (B, N, K - 1, 4, 2)
        return _outlined(lines, self.widths.exp().clamp(_THINNEST, 0.5))[:, :, None]


_THINNEST = 0.01
"""Of a stroke, in units of the side."""


def coverage(lines: Tensor, height: int, width: int) -> Tensor:
    """How much of each pixel is inside: (N, height, width) in [0, 1].

    lines: (N, M, 2), closed, in pixels: x to the right, y down. Pieces should be shorter than a pixel. Where an outline
    winds twice, it is inside; where it winds forth and back, outside.
    """
    x, y = lines[..., 0], lines[..., 1]
    next_x, next_y = x.roll(-1, dims=1), y.roll(-1, dims=1)
    column = ((x + next_x) / 2).clamp(-1, width)
    first_column = column.detach().floor()
    right = column - first_column
    first_row = torch.minimum(y, next_y).detach().floor()
    # A column more at either side, and a row, take what lies outside.
    stride = width + 3
    places, shares = [], []
    for row in (first_row, first_row + 1):
        # Exactly what lies within the row: around a closed outline it sums to zero, or a row would end in a streak.
        rise = (next_y - row).clamp(0, 1) - (y - row).clamp(0, 1)
        place = (row.clamp(-1, height) + 1) * stride + first_column + 1
        places += [place, place + 1]
        shares += [rise * (1 - right), rise * right]
    sums = lines.new_zeros(len(lines), (height + 2) * stride)
    sums = sums.scatter_add(1, torch.cat(places, dim=1).long(), torch.cat(shares, dim=1))
    inside = sums.view(-1, height + 2, stride).cumsum(dim=2)[:, 1:-1, 1 : width + 1]
    return inside.abs().clamp(max=1)


def _through(points: Tensor, roundness: Tensor, *, is_closed: bool) -> Tensor:
    """points: (…, K, 2), roundness: (…, K) → (…, K, 4, 2) cubic Bézier curves from each point to the next; K - 1 of
    them if it is not closed. Roundness 1 gives Catmull–Rom, 0 a corner."""
    if is_closed:
        before, after = points.roll(1, dims=-2), points.roll(-1, dims=-2)
    else:
        before = torch.cat([points[..., :1, :], points[..., :-1, :]], dim=-2)
        after = torch.cat([points[..., 1:, :], points[..., -1:, :]], dim=-2)
    handles = (after - before) * roundness[..., None] / 6
    starts, ends = points, points.roll(-1, dims=-2)
    curves = torch.stack([starts, starts + handles, ends - handles.roll(-1, dims=-2), ends], dim=-2)
    return curves if is_closed else curves[..., :-1, :, :]


def _flattened(curves: Tensor, pieces: int) -> Tensor:
    """(N, K, 4, 2) → (N, K · pieces, 2): points along the curves."""
    t = torch.arange(pieces, device=curves.device, dtype=curves.dtype) / pieces
    weights = torch.stack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])  # (4, pieces)
    return torch.einsum("nkfc,fp->nkpc", curves, weights).flatten(1, 2)


def _outlined(lines: Tensor, widths: Tensor) -> Tensor:
    """(B, N, K, 4, 2) open lines and their widths (B, N) → (B, N, K', 4, 2) closed outlines.

    Each side is the line moved by half the width along its normal, curve by curve; the ends are half circles.
    """
    half = widths[..., None, None] / 2
    starts, ends = lines[..., 0, :], lines[..., 3, :]
    first, last = _unit(ends - starts), _unit(ends - starts)
    tangents = torch.cat([first[..., :1, :], _unit(first[..., 1:, :] + last[..., :-1, :]), last[..., -1:, :]], dim=-2)
    normals = torch.stack([-tangents[..., 1], tangents[..., 0]], dim=-1) * half  # (B, N, K + 1, 2)
    begin, end = normals[..., :-1, None, :], normals[..., 1:, None, :]
    shift = torch.cat([begin, begin, end, end], dim=-2)  # (B, N, K, 4, 2)
    left, right = lines + shift, (lines - shift).flip(-3, -2)
    caps = [
        _half_circle(lines[..., -1, 3, :], normals[..., -1, :]),
        _half_circle(lines[..., 0, 0, :], -normals[..., 0, :]),
    ]
    return torch.cat([left, caps[0], right, caps[1]], dim=-3)


def _half_circle(centre: Tensor, radius: Tensor) -> Tensor:
    """(…, 2), (…, 2) → (…, 2, 4, 2): from centre + radius, by way of the direction that radius has turned from, to
    centre - radius, as two quarter circles."""
    forward = torch.stack([radius[..., 1], -radius[..., 0]], dim=-1)
    k = 4 / 3 * (math.sqrt(2) - 1)
    top = [radius, radius + k * forward, forward + k * radius, forward]
    bottom = [forward, forward - k * radius, -radius + k * forward, -radius]
    quarters = torch.stack([torch.stack(top, dim=-2), torch.stack(bottom, dim=-2)], dim=-3)
    return centre[..., None, None, :] + quarters


def _unit(vectors: Tensor) -> Tensor:
    unit: Tensor = vectors / vectors.norm(dim=-1, keepdim=True).clamp(min=1e-6)
    return unit
