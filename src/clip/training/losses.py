"""Contrastive losses over all pairs of a batch, without ever holding the matrix of all pairs.

Logits exist one tile at a time, in the forward pass and again for the gradients, so memory grows with the batch and not
with its square, while the numbers are those of the whole matrix. Gradients are computed along with the value, and a
loss that nobody asks gradients of does without them.

**Over a process group** the batch is the union of all ranks' rows, of which each rank may have a different number, also
none. Every rank holds its own images and gathers the texts of all, so it computes N_local × N logits. The value is the
loss of the whole batch, the same on every rank. The gradients of a rank's embeddings are complete, those of
``logit_scale`` and ``logit_bias`` the part that its rows contribute: **summed over ranks**, parameter gradients are
those of one process with the whole batch. (DistributedDataParallel averages: multiply the loss by the world size.)

**Equal captions.** Two pairs with the same caption make each other false negatives. Where ids of equal pairs are given,
such pairs, off the diagonal, take no part: neither in a denominator nor as a further positive. The alternative, several
positives per row (Khosla et al. 2020, "Supervised contrastive learning"; Yang et al. 2022, UniCL), asks that all images
of one caption have the same similarity to it, which is right for class labels and too much for captions, and changes
the loss even of a perfect model; leaving the pairs out changes nothing but what is wrong.

Letters in shapes: B rows of this rank, N of all ranks, E ``embed_dim``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from clip.errors import ConfigError, ShapeError

__all__ = ["clip_loss", "distillation_loss", "sigmoid_loss"]


def clip_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor,
    *,
    equal: Tensor | None = None,
    tile_size: int = 1024,
    group: dist.ProcessGroup | None = None,
    gradient_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Symmetric cross-entropy over all pairs of the batch (Radford et al. 2021, figure 3): a scalar in nats.

    image_embeddings, text_embeddings: (B, E), unit norm; row i of one belongs to row i of the other.
    logit_scale: scalar, already exponentiated.
    equal: (B,) int64, equal numbers for pairs that are not each other's negatives; compared over all ranks.
    tile_size: logits that exist at once are its square, a few times over. A GPU wants more of them than a CPU.
    group: the processes that share the batch; None is this process alone.
    gradient_dtype: of the two matrix products that make the gradients. With bfloat16 these have the precision of a
    tower under autocast. Autocast itself has no influence, and logits are computed in float32 in any case: near 100
    those of bfloat16 have steps of 1/2. ``torch.set_float32_matmul_precision`` governs them as any other product.
    Raises ShapeError if shapes do not fit each other or no rank has a row.
    """
    pairs = _gathered_pairs(image_embeddings, text_embeddings, equal, tile_size, group, gradient_dtype)
    logit_scale = _scalar("logit_scale", logit_scale)
    inputs = image_embeddings, text_embeddings, logit_scale
    needs = _needs_gradients(inputs, group)
    with torch.no_grad(), torch.autocast(pairs.images.device.type, enabled=False):
        value, gradients = _softmax(pairs, logit_scale.float(), needs)
    return _with_gradients(value, gradients, inputs)


def sigmoid_loss(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    logit_scale: Tensor,
    logit_bias: Tensor,
    *,
    equal: Tensor | None = None,
    tile_size: int = 1024,
    group: dist.ProcessGroup | None = None,
    gradient_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Each pair on its own: does this text belong to this image? (Zhai et al. 2023, "Sigmoid loss for language image
    pre-training", algorithm 1.) The sum over all N² pairs divided by N, a scalar in nats.

    logit_bias: scalar, added to the scaled cosines; it begins near minus the logarithm of the batch size, so that the
    many negatives are not all wrong at first (-10 suits batches of 32,768). The other arguments are ``clip_loss``'s.
    """
    pairs = _gathered_pairs(image_embeddings, text_embeddings, equal, tile_size, group, gradient_dtype)
    logit_scale, logit_bias = _scalar("logit_scale", logit_scale), _scalar("logit_bias", logit_bias)
    inputs = image_embeddings, text_embeddings, logit_scale, logit_bias
    needs = _needs_gradients(inputs, group)
    with torch.no_grad(), torch.autocast(pairs.images.device.type, enabled=False):
        value, gradients = _sigmoid(pairs, logit_scale.float(), logit_bias.float(), needs)
    return _with_gradients(value, gradients, inputs)


def distillation_loss(student: Tensor, teacher: Tensor, *, group: dist.ProcessGroup | None = None) -> Tensor:
    """1 - cosine of a student's and its teacher's embeddings, the mean over the batch: in [0, 2], 0 where they agree.

    student, teacher: (B, E), unit norm, of images or of texts; no gradient reaches the teacher. On unit vectors it is
    half the squared distance: the "feature distillation" of Yang et al. 2024 ("CLIP-KD"), who compare it with matching
    similarities, gradients and masked features and find it surprisingly strong. A teacher of another width needs a
    projection of the student's embeddings to that width, trained along and thrown away afterwards.
    Over a group the mean is that of all ranks' rows, and gradients are parts of a sum as in ``clip_loss``.
    """
    if student.ndim != 2 or student.shape != teacher.shape:
        raise ShapeError(
            f"the student's embeddings have shape {tuple(student.shape)}, the teacher's {tuple(teacher.shape)}; "
            "both must be (batch, embed_dim), one row for each pair"
        )
    count = _count(_gathered_numbers(student.shape[0], group, student.device))
    needs_gradient = torch.is_grad_enabled() and student.requires_grad
    with torch.no_grad(), torch.autocast(student.device.type, enabled=False):
        value = (1 - (student.float() * teacher.float()).sum(dim=-1)).sum() / count
        gradients = (teacher.float() / -count,) if needs_gradient else ()
    return _with_gradients(_sum_over_ranks(value, group), gradients, (student,))


# The pairs, tile by tile ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class _Pairs:
    """This rank's images beside the texts of all ranks."""

    images: Tensor
    """(B, E) float32."""
    texts: Tensor
    """(N, E) float32, ordered by rank."""
    first: int
    """Row of ``texts`` that belongs to the first image; the others follow."""
    ids: Tensor | None
    """(N,) of ``equal``, or None where no two are equal."""
    tile_size: int
    group: dist.ProcessGroup | None
    gradient_dtype: torch.dtype

    @property
    def own(self) -> slice:
        """The rows of ``texts`` that are this rank's."""
        return slice(self.first, self.first + len(self.images))

    def tiles(self, logit_scale: Tensor, logit_bias: Tensor | None = None) -> Iterator[_Tile]:
        """All logits, one tile after another; pairs that take no part are minus infinity."""
        for rows in _slices(len(self.images), self.tile_size):
            scaled = self.images[rows] * logit_scale
            for columns in _slices(len(self.texts), self.tile_size):
                logits = scaled @ self.texts[columns].T
                if logit_bias is not None:
                    logits += logit_bias
                tile = _Tile(rows, columns, logits, self.first + rows.start - columns.start)
                if self.ids is not None:
                    is_equal = self.ids[self.own][rows, None] == self.ids[columns]
                    is_equal.diagonal(tile.offset).fill_(False)
                    logits.masked_fill_(is_equal, -torch.inf)
                yield tile


class _Tile(NamedTuple):
    """Logits of some images (``rows``) and some texts (``columns``)."""

    rows: slice
    columns: slice
    logits: Tensor
    offset: int
    """The diagonal on which images meet their own texts; it may lie outside."""

    def own_rows(self) -> slice:
        """The rows whose own text is in this tile."""
        start = max(self.rows.start, self.rows.start - self.offset)
        return slice(start, start + self.logits.diagonal(self.offset).shape[0])


def _slices(length: int, size: int) -> Iterator[slice]:
    for start in range(0, length, size):
        yield slice(start, min(start + size, length))


class _Needs(NamedTuple):
    """Which gradients some rank asks for."""

    images: bool
    texts: bool
    scalars: bool


class _Gradients:
    """Sums of logit gradients times embeddings: what the gradients of embeddings and of the scale are made of."""

    def __init__(self, pairs: _Pairs, needs: _Needs) -> None:
        self.pairs = pairs
        dtype = pairs.gradient_dtype
        self._image_operand, self._text_operand = pairs.images.to(dtype), pairs.texts.to(dtype)
        # Either side gives the gradient of the scale.
        self.images = torch.zeros_like(pairs.images) if needs.images or not needs.texts else None
        self.texts = torch.zeros_like(pairs.texts) if needs.texts else None

    def add(self, tile: _Tile, gradient: Tensor) -> None:
        """gradient: of the tile's logits."""
        gradient = gradient.to(self.pairs.gradient_dtype)
        for total, own, others, product in (
            (self.images, tile.rows, self._text_operand[tile.columns], gradient),
            (self.texts, tile.columns, self._image_operand[tile.rows], gradient.T),
        ):
            if total is None:
                continue
            if product.dtype == total.dtype:
                total[own].addmm_(product, others)
            else:
                total[own] += product @ others

    def finish(self, logit_scale: Tensor, weight: float) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Gradients of the images, of this rank's texts, and this rank's part of that of the scale."""
        if self.images is not None:
            of_scale = (self.images * self.pairs.images).sum() * weight
        else:
            assert self.texts is not None
            of_scale = (self.texts * self.pairs.texts).sum() * weight
        of_texts = None
        if self.texts is not None:
            of_texts = _sum_over_ranks(self.texts, self.pairs.group)[self.pairs.own] * (logit_scale * weight)
        of_images = None if self.images is None else self.images.mul_(logit_scale * weight)
        return of_images, of_texts, of_scale


# The two losses -------------------------------------------------------------------------------------------------------


def _softmax(pairs: _Pairs, logit_scale: Tensor, needs: _Needs) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    # Logits are in bits here: on a CPU exp2 takes a quarter of the time of exp, and a thirtieth where the result is
    # nearly too small for a float32, as it is for many pairs at scale 100.
    bits = logit_scale / math.log(2)
    # A total is kept as a logarithm beside its tile's own largest logit, so nothing underflows however far below the
    # largest possible logit all of a row may lie.
    image_totals = pairs.images.new_full((len(pairs.images),), -torch.inf)  # log2 of the sum over texts
    text_totals = pairs.images.new_full((len(pairs.texts),), -torch.inf)  # log2 of the sum over images
    positives = torch.empty_like(image_totals)
    for tile in pairs.tiles(bits):
        rows, columns = tile.rows, tile.columns
        image_totals[rows] = torch.logaddexp2(image_totals[rows], _log2_sum_exp2(tile.logits, dim=1))
        text_totals[columns] = torch.logaddexp2(text_totals[columns], _log2_sum_exp2(tile.logits, dim=0))
        positives[tile.own_rows()] = tile.logits.diagonal(tile.offset)
    text_totals = _log2_sum_exp2_over_ranks(text_totals, pairs.group)
    weight = 1 / (2 * len(pairs.texts))
    value = (image_totals - positives).sum() + (text_totals[pairs.own] - positives).sum()
    value = _sum_over_ranks(value * (math.log(2) * weight), pairs.group)
    if not any(needs):
        return value, ()
    gradients = _Gradients(pairs, needs)
    for tile in pairs.tiles(bits):
        gradient = (tile.logits - image_totals[tile.rows, None]).exp2_()
        gradient += tile.logits.sub_(text_totals[tile.columns]).exp2_()
        gradient.diagonal(tile.offset).sub_(2)
        gradients.add(tile, gradient)
    return value, gradients.finish(logit_scale, weight)


def _log2_sum_exp2(logits: Tensor, dim: int) -> Tensor:
    largest = logits.amax(dim=dim, keepdim=True).clamp_(min=torch.finfo(logits.dtype).min)  # all may be minus infinity
    return (logits - largest).exp2_().sum(dim=dim).log2_() + largest.squeeze(dim)


def _sigmoid(
    pairs: _Pairs, logit_scale: Tensor, logit_bias: Tensor, needs: _Needs
) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    weight = 1 / len(pairs.texts)
    value, of_bias = torch.zeros_like(logit_scale), torch.zeros_like(logit_bias)
    gradients = _Gradients(pairs, needs) if any(needs) else None
    for tile in pairs.tiles(logit_scale, logit_bias):
        tile.logits.diagonal(tile.offset).neg_()
        value += F.softplus(tile.logits).sum() * weight
        if gradients is not None:
            gradient = tile.logits.sigmoid_()
            gradient.diagonal(tile.offset).neg_()
            of_bias += gradient.sum() * weight
            gradients.add(tile, gradient)
    value = _sum_over_ranks(value, pairs.group)
    return value, () if gradients is None else (*gradients.finish(logit_scale, weight), of_bias)


class _WithGradients(torch.autograd.Function):
    """A value whose gradients are known already."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, gradients: tuple[Tensor | None, ...], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*gradients)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, None, *(None if known is None else known * gradient for known in ctx.saved_tensors)


def _with_gradients(value: Tensor, gradients: tuple[Tensor | None, ...], inputs: tuple[Tensor, ...]) -> Tensor:
    if not gradients:
        return value
    gradients = tuple(None if g is None else g.to(x.dtype) for g, x in zip(gradients, inputs, strict=True))
    result: Tensor = _WithGradients.apply(value, gradients, *inputs)  # type: ignore[no-untyped-call]
    return result


# Arguments ------------------------------------------------------------------------------------------------------------


def _gathered_pairs(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    equal: Tensor | None,
    tile_size: int,
    group: dist.ProcessGroup | None,
    gradient_dtype: torch.dtype,
) -> _Pairs:
    """What a loss walks over, checked, with the texts of all ranks."""
    if image_embeddings.ndim != 2 or image_embeddings.shape != text_embeddings.shape:
        raise ShapeError(
            f"image embeddings have shape {tuple(image_embeddings.shape)}, text embeddings "
            f"{tuple(text_embeddings.shape)}; both must be (batch, embed_dim), one row for each pair"
        )
    rows = image_embeddings.shape[0]
    if equal is not None and equal.shape != (rows,):
        raise ShapeError(f"equal has shape {tuple(equal.shape)}; the batch has {rows} rows, so it must be ({rows},)")
    if tile_size < 1:
        raise ConfigError(f"tile_size is {tile_size}; it must be at least 1")
    if gradient_dtype not in (torch.float32, torch.bfloat16):
        raise ConfigError(f"gradient_dtype is {gradient_dtype}; it must be torch.float32 or torch.bfloat16")
    counts = _gathered_numbers(rows, group, image_embeddings.device)
    _count(counts)
    ids = None if equal is None else _gathered_rows(equal.detach(), counts, group)
    return _Pairs(
        images=image_embeddings.detach().float().contiguous(),
        texts=_gathered_rows(text_embeddings.detach().float().contiguous(), counts, group),
        first=sum(counts[: _rank(group)]),
        ids=None if ids is None or _are_distinct(ids) else ids,
        tile_size=tile_size,
        group=group,
        gradient_dtype=gradient_dtype,
    )


def _count(counts: list[int]) -> int:
    if sum(counts) == 0:
        raise ShapeError("the batch has no rows on any rank; skip a step without data")
    return sum(counts)


def _are_distinct(ids: Tensor) -> bool:
    ordered = ids.sort().values
    return not bool((ordered[1:] == ordered[:-1]).any())


def _scalar(name: str, value: Tensor) -> Tensor:
    if value.numel() != 1:
        raise ShapeError(f"{name} has shape {tuple(value.shape)}; it must be a single number")
    return value.reshape(())


def _needs_gradients(inputs: tuple[Tensor, ...], group: dist.ProcessGroup | None) -> _Needs:
    """Ranks agree, since gradients of texts are summed over them, and one without rows may have nothing to train."""
    image_embeddings, text_embeddings, *scalars = (torch.is_grad_enabled() and x.requires_grad for x in inputs)
    asked = image_embeddings + 2 * text_embeddings + 4 * any(scalars)
    every = _gathered_numbers(asked, group, inputs[0].device)
    return _Needs(*(any(number & bit for number in every) for bit in (1, 2, 4)))


# Between ranks; without a group each is the identity ------------------------------------------------------------------


def _rank(group: dist.ProcessGroup | None) -> int:
    return 0 if group is None else dist.get_rank(group)


def _sum_over_ranks(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    """The sum, in place."""
    if group is not None:
        dist.all_reduce(values, dist.ReduceOp.SUM, group)
    return values


def _log2_sum_exp2_over_ranks(values: Tensor, group: dist.ProcessGroup | None) -> Tensor:
    if group is None:
        return values
    largest = values.clone()
    dist.all_reduce(largest, dist.ReduceOp.MAX, group)
    return largest + _sum_over_ranks((values - largest).exp2(), group).log2()


def _gathered_numbers(number: int, group: dist.ProcessGroup | None, device: torch.device) -> list[int]:
    """The integers of all ranks."""
    if group is None:
        return [number]
    numbers = torch.empty(dist.get_world_size(group), dtype=torch.int64, device=device)
    dist.all_gather(list(numbers.unbind()), torch.tensor(number, device=device), group)
    return [int(value) for value in numbers.tolist()]


def _gathered_rows(rows: Tensor, counts: list[int], group: dist.ProcessGroup | None) -> Tensor:
    """rows: (B, ...) of this rank → (N, ...) of all, in the order of ranks, which have ``counts`` rows."""
    if group is None:
        return rows
    most = max(counts)  # collectives want the same shape of each
    padded = rows if len(rows) == most else torch.cat([rows, rows.new_zeros((most - len(rows), *rows.shape[1:]))])
    every = rows.new_empty((len(counts), most, *rows.shape[1:]))
    dist.all_gather(list(every.unbind()), padded, group)
    if min(counts) == most:
        return every.flatten(0, 1)
    return torch.cat([part[:count] for part, count in zip(every, counts, strict=True)])
