"""The Transformer towers for inference alone: packed weights, no padding, and no token that nobody reads.

Against ``clip.model``: the factors of heads and QuickGELU are folded into the weights; the last block computes the
class or end token alone, and of the others not even keys and values; texts of all lengths go through the linear layers
as one list of their tokens. The residual stream and normalisations are fp32, and softmax is computed in it.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.inference.packed import Fused, PackedLinear
from clip.model import CLIP, MultiheadAttention, QuickGELU, ResidualAttentionBlock, Transformer, VisionTransformer

__all__ = ["PackedTextTransformer", "PackedVisionTransformer"]

_QUICK_GELU = 1.702

_SHORT = 64
"""Keys up to which torch's bf16 softmax takes twice as long as one in fp32 with conversions: its rows are shorter
than two vectors. Above, the conversions cost more."""


@dataclasses.dataclass(frozen=True, slots=True)
class _Norm:
    weight: Tensor
    bias: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.eps)


def _norm(layer: nn.LayerNorm) -> _Norm:
    weight, bias = (parameter.detach().to(torch.float32, copy=True) for parameter in (layer.weight, layer.bias))
    return _Norm(weight, bias, layer.eps)


@dataclasses.dataclass(frozen=True, slots=True)
class _Layout:
    """Where the tokens of a batch lie: all texts one behind another, or every row of the same length."""

    count: int
    """B, sequences."""
    longest: int
    """L."""
    readout: Tensor
    """(B,), rows of the one token of each sequence whose features are asked for."""
    gather: Tensor | None = None
    """(B · L,), the row at each place of a (B, L) table, any row behind the end; None if all are of one length."""
    scatter: Tensor | None = None
    """(rows,), the place in that table of each row."""
    mask: Tensor | None = None
    """(L, L), added to the scores."""
    is_padding: Tensor | None = None
    """(B, L), the places of that table behind the end of their sequence."""

    def table(self, x: Tensor) -> Tensor:
        """x: (rows, D) → (B · L, D)."""
        return x if self.gather is None else x.index_select(0, self.gather)

    def rows(self, table: Tensor) -> Tensor:
        """The way back."""
        return table if self.scatter is None else table.index_select(0, self.scatter)


class _Block:
    """A residual attention block over (rows, D) fp32."""

    def __init__(self, block: ResidualAttentionBlock, dtype: torch.dtype) -> None:
        self.dtype, self.heads, width = dtype, block.attn.num_heads, block.attn.embed_dim
        weight, bias = _in_projection(block.attn)
        weight[:width] *= (width // self.heads) ** -0.5
        bias[:width] *= (width // self.heads) ** -0.5
        self.norm = _norm(block.ln_1)
        self.projections = PackedLinear(weight, bias, dtype)
        self.out = PackedLinear(block.attn.out_proj.weight, block.attn.out_proj.bias, dtype)
        self.mlp_ = _MLP(block, dtype)

    def __call__(self, x: Tensor, layout: _Layout) -> Tensor:
        """x: (rows, D) fp32 → the same, changed in place."""
        y = layout.table(self.projections(self.norm(x).to(self.dtype)))
        y = y.view(layout.count, layout.longest, 3, self.heads, -1).permute(2, 0, 3, 1, 4).contiguous()
        q, k, v = y.flatten(1, 2)  # each (B · heads, L, D / heads)
        # For the lengths of CLIP two batched products beat the fused kernel, in bf16 by far (``clip.model``).
        scores = torch.bmm(q, k.transpose(1, 2))
        if layout.mask is not None:
            scores += layout.mask
        attended = torch.bmm(_softmax(scores), v).view(layout.count, self.heads, layout.longest, -1)
        attended = attended.transpose(1, 2).reshape(layout.count * layout.longest, -1)
        return self.mlp_(x.add_(self.out(layout.rows(attended))))


class _LastBlock:
    """The last block, at one token of each sequence, without keys and values.

    A head scores token y by q · (K y + k) = (Kᵀ q) · y + q · k, whose second term is the same for all tokens and leaves
    the softmax alone; and it gives Σ a (V y + v) = V (Σ a y) + v. So with one query K and V multiply one vector a
    sequence instead of every token, and fp32 costs nothing.
    """

    def __init__(self, block: ResidualAttentionBlock, dtype: torch.dtype) -> None:
        self.heads, width = block.attn.num_heads, block.attn.embed_dim
        weight, bias = _in_projection(block.attn)
        scale = (width // self.heads) ** -0.5
        self.norm = _norm(block.ln_1)
        self.query = PackedLinear(weight[:width] * scale, bias[:width] * scale, torch.float32)
        self.keys = weight[width : 2 * width].view(self.heads, -1, width).clone()  # (heads, D / heads, D)
        self.values = weight[2 * width :].view(self.heads, -1, width).transpose(1, 2).contiguous()
        out, out_bias = block.attn.out_proj.weight.detach().float(), block.attn.out_proj.bias.detach().float()
        self.out = PackedLinear(out, out_bias + out @ bias[2 * width :], torch.float32)
        self.mlp_ = _MLP(block, dtype)

    def __call__(self, x: Tensor, layout: _Layout) -> Tensor:
        """x: (rows, D) fp32 → (B, D) fp32."""
        y = self.norm(x)
        q = self.query(y.index_select(0, layout.readout)).view(layout.count, self.heads, -1)
        y = layout.table(y).view(layout.count, layout.longest, -1)  # (B, L, D)
        q = torch.bmm(q.transpose(0, 1), self.keys).transpose(0, 1)  # (B, heads, D)
        scores = torch.bmm(q, y.transpose(1, 2))  # (B, heads, L)
        if layout.is_padding is not None:
            scores.masked_fill_(layout.is_padding[:, None], float("-inf"))
        attended = torch.bmm(scores.softmax(dim=-1), y).transpose(0, 1)  # (heads, B, D)
        attended = torch.bmm(attended, self.values).transpose(0, 1).flatten(1)
        return self.mlp_(x.index_select(0, layout.readout).add_(self.out(attended)))


class _MLP:
    def __init__(self, block: ResidualAttentionBlock, dtype: torch.dtype) -> None:
        self.dtype, self.norm = dtype, _norm(block.ln_2)
        first, last = cast(nn.Linear, block.mlp.c_fc), cast(nn.Linear, block.mlp.c_proj)
        # QuickGELU is silu(1.702 x) / 1.702: with both factors in the weights a single fused operation is left.
        is_quick = isinstance(block.mlp.gelu, QuickGELU)
        factor, fused = (_QUICK_GELU, "swish") if is_quick else (1.0, "gelu")
        weight, bias = first.weight.detach().float() * factor, first.bias.detach().float() * factor
        self.widen = PackedLinear(weight, bias, dtype, cast(Fused, fused))
        self.narrow = PackedLinear(last.weight.detach().float() / factor, last.bias, dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (rows, D) fp32 → the same plus what the MLP gives, in place."""
        return x.add_(self.narrow(self.widen(self.norm(x).to(self.dtype))))


def _softmax(scores: Tensor) -> Tensor:
    """Over the last dimension, in the precision of the scores."""
    if scores.shape[-1] > _SHORT:
        return scores.softmax(dim=-1)
    return scores.float().softmax(dim=-1).to(scores.dtype)


def _in_projection(attention: MultiheadAttention) -> tuple[Tensor, Tensor]:
    """Weight (3 D, D) and bias (3 D,) of queries, keys and values, as fp32 copies."""
    assert attention.in_proj_weight is not None and attention.in_proj_bias is not None
    weight, bias = attention.in_proj_weight.detach(), attention.in_proj_bias.detach()
    return weight.to(torch.float32, copy=True), bias.to(torch.float32, copy=True)


class _Blocks:
    def __init__(self, transformer: Transformer, dtype: torch.dtype) -> None:
        *blocks, last = (cast(ResidualAttentionBlock, block) for block in transformer.resblocks)
        self.blocks = [_Block(block, dtype) for block in blocks]
        self.last = _LastBlock(last, dtype)

    def __call__(self, x: Tensor, layout: _Layout) -> Tensor:
        """x: (rows, D) fp32, overwritten → (B, D) fp32."""
        for block in self.blocks:
            x = block(x, layout)
        return self.last(x, layout)


class PackedVisionTransformer:
    """``VisionTransformer`` for inference on a CPU."""

    def __init__(self, tower: VisionTransformer, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.patch_size = tower.conv1.kernel_size[0]
        self.patches = PackedLinear(tower.conv1.weight.flatten(1), None, dtype)
        positions = tower.positional_embedding.detach().float()
        self.class_token = tower.class_embedding.detach().float() + positions[0]
        self.positions = positions[1:].clone()
        self.norm_pre, self.norm_post = _norm(tower.ln_pre), _norm(tower.ln_post)
        self.blocks = _Blocks(tower.transformer, dtype)
        self.projection = tower.proj.detach().to(torch.float32, copy=True)
        self.rows_per_image = positions.shape[0]

    def __call__(self, images: Tensor) -> Tensor:
        """images: (B, 3, S, S) → (B, E) fp32."""
        count, size = images.shape[0], self.patch_size
        grid = images.shape[2] // size
        images = images[..., : grid * size, : grid * size].to(self.dtype)
        x = images.reshape(count, 3, grid, size, grid, size).permute(0, 2, 4, 1, 3, 5)
        x = self.patches(x.reshape(count * grid * grid, -1))
        length, width = grid * grid + 1, x.shape[1]
        tokens = x.new_empty(count, length, width, dtype=torch.float32)
        torch.add(x.view(count, grid * grid, width), self.positions, out=tokens[:, 1:])
        tokens[:, 0] = self.class_token
        readout = torch.arange(0, count * length, length)
        x = self.blocks(self.norm_pre(tokens).view(count * length, width), _Layout(count, length, readout))
        return self.norm_post(x) @ self.projection


class PackedTextTransformer:
    """The text tower for inference on a CPU."""

    def __init__(self, model: CLIP, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self.token_embedding = model.token_embedding.weight.detach().clone()
        self.positions = model.positional_embedding.detach().to(torch.float32, copy=True)
        self.blocks = _Blocks(model.transformer, dtype)
        self.norm_final = _norm(model.ln_final)
        self.projection = model.text_projection.detach().to(torch.float32, copy=True)
        mask = torch.full((self.positions.shape[0],) * 2, float("-inf"))
        self.mask = mask.triu_(1).to(dtype)

    def __call__(self, text: Tensor, ends: Tensor) -> Tensor:
        """text: (B, L) token ids; ends: (B,), where each text ends → (B, E) fp32. Nothing behind an end is computed."""
        count, longest = text.shape[0], int(ends.max()) + 1
        lengths = ends + 1
        readout = lengths.cumsum(0) - 1
        gather = scatter = is_padding = None
        if int(lengths.min()) == longest:
            tokens, places = text[:, :longest].flatten(), torch.arange(longest).repeat(count)
        else:
            inside = torch.arange(longest) < lengths[:, None]  # (B, L)
            scatter, is_padding = inside.flatten().nonzero()[:, 0], ~inside
            gather = (inside.flatten().cumsum(0) - 1).clamp_(min=0)
            tokens, places = text[:, :longest][inside], scatter % longest
        x = self.token_embedding.index_select(0, tokens).float() + self.positions.index_select(0, places)
        layout = _Layout(count, longest, readout, gather, scatter, self.mask[:longest, :longest], is_padding)
        return self.norm_final(self.blocks(x, layout)) @ self.projection
