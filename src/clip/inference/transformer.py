"""The Transformer towers for inference alone: packed weights, no padding, and no token that nobody reads.

Against ``clip.model``: heads and QuickGELU have their factors folded into the weights, queries, keys and values are one
product, the last block computes the class or end token alone, and texts of all lengths go through the linear layers as
one list of their tokens. The residual stream, normalisations and softmax stay in fp32.
"""

from __future__ import annotations

import dataclasses
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.inference.packed import Fused, PackedLinear
from clip.model import CLIP, QuickGELU, ResidualAttentionBlock, Transformer, VisionTransformer

__all__ = ["PackedTextTransformer", "PackedVisionTransformer"]

_QUICK_GELU = 1.702


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

    def table(self, x: Tensor) -> Tensor:
        """x: (rows, D) → (B · L, D)."""
        return x if self.gather is None else x.index_select(0, self.gather)

    def rows(self, table: Tensor) -> Tensor:
        """The way back."""
        return table if self.scatter is None else table.index_select(0, self.scatter)


class _Block:
    """A residual attention block over (rows, D) fp32."""

    def __init__(self, block: ResidualAttentionBlock, dtype: torch.dtype, is_last: bool) -> None:
        attention, mlp = block.attn, block.mlp
        self.dtype, self.heads, width = dtype, attention.num_heads, attention.embed_dim
        assert attention.in_proj_weight is not None and attention.in_proj_bias is not None
        weight = attention.in_proj_weight.detach().to(torch.float32, copy=True)
        bias = attention.in_proj_bias.detach().to(torch.float32, copy=True)
        weight[:width] *= (width // self.heads) ** -0.5
        bias[:width] *= (width // self.heads) ** -0.5
        self.norm_1, self.norm_2 = _norm(block.ln_1), _norm(block.ln_2)
        if is_last:  # queries of one token a sequence, keys and values of all
            self.query = PackedLinear(weight[:width], bias[:width], dtype)
            weight, bias = weight[width:], bias[width:]
        self.projections = PackedLinear(weight, bias, dtype)
        self.out = PackedLinear(attention.out_proj.weight, attention.out_proj.bias, dtype)
        first, last = cast(nn.Linear, mlp.c_fc), cast(nn.Linear, mlp.c_proj)
        # QuickGELU is silu(1.702 x) / 1.702: with both factors in the weights a single fused operation is left.
        factor = _QUICK_GELU if isinstance(mlp.gelu, QuickGELU) else 1.0
        fused: Fused = "swish" if isinstance(mlp.gelu, QuickGELU) else "gelu"
        self.widen = PackedLinear(
            first.weight.detach().float() * factor, first.bias.detach().float() * factor, dtype, fused
        )
        self.narrow = PackedLinear(last.weight.detach().float() / factor, last.bias, dtype)

    def __call__(self, x: Tensor, layout: _Layout) -> Tensor:
        """x: (rows, D) fp32 → the same, changed in place."""
        y = layout.table(self.projections(self.norm_1(x).to(self.dtype)))
        q, k, v = self._heads(y, layout, 3)
        attended = self._attend(q, k, v, layout.mask)  # (B, heads, L, D / heads)
        attended = attended.transpose(1, 2).reshape(layout.count * layout.longest, -1)
        return self._mlp_(x.add_(self.out(layout.rows(attended))))

    def at_readout(self, x: Tensor, layout: _Layout) -> Tensor:
        """x: (rows, D) fp32 → (B, D) fp32, of the tokens that are read out."""
        y = self.norm_1(x).to(self.dtype)
        k, v = self._heads(layout.table(self.projections(y)), layout, 2)
        q = self.query(y.index_select(0, layout.readout)).view(layout.count, self.heads, 1, -1)
        mask = None
        if layout.gather is not None:  # the end token sees all that stands before it, and no padding
            places = torch.arange(layout.longest)
            ends = self._ends(layout)
            mask = torch.zeros(layout.count, 1, 1, layout.longest, dtype=self.dtype)
            mask.masked_fill_((places > ends[:, None])[:, None, None], float("-inf"))
        attended = self._attend(q, k, v, mask).view(layout.count, -1)
        return self._mlp_(x.index_select(0, layout.readout).add_(self.out(attended)))

    @staticmethod
    def _ends(layout: _Layout) -> Tensor:
        assert layout.scatter is not None
        return layout.scatter.index_select(0, layout.readout) % layout.longest

    def _heads(self, y: Tensor, layout: _Layout, parts: int) -> tuple[Tensor, ...]:
        """y: (B · L, parts · D) → for each part (B, heads, L, D / heads)."""
        y = y.view(layout.count, layout.longest, parts, self.heads, -1)
        return y.permute(2, 0, 3, 1, 4).contiguous().unbind()

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        # For the lengths of CLIP two batched products beat the fused kernel, in bf16 by far (``clip.model``).
        scores = torch.bmm(q.flatten(0, 1), k.flatten(0, 1).transpose(1, 2)).view(*q.shape[:3], k.shape[2])
        if mask is not None:
            scores += mask
        return torch.bmm(scores.softmax(dim=-1).flatten(0, 1), v.flatten(0, 1)).view_as(q)

    def _mlp_(self, x: Tensor) -> Tensor:
        return x.add_(self.narrow(self.widen(self.norm_2(x).to(self.dtype))))


class _Blocks:
    def __init__(self, transformer: Transformer, dtype: torch.dtype) -> None:
        blocks = [cast(ResidualAttentionBlock, block) for block in transformer.resblocks]
        self.blocks = [_Block(block, dtype, is_last=block is blocks[-1]) for block in blocks]

    def __call__(self, x: Tensor, layout: _Layout) -> Tensor:
        """x: (rows, D) fp32, overwritten → (B, D) fp32."""
        for block in self.blocks[:-1]:
            x = block(x, layout)
        return self.blocks[-1].at_readout(x, layout)


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
        gather = scatter = None
        if int(lengths.min()) == longest:
            tokens, places = text[:, :longest].flatten(), torch.arange(longest).repeat(count)
        else:
            inside = torch.arange(longest) < lengths[:, None]  # (B, L)
            scatter = inside.flatten().nonzero()[:, 0]
            gather = (inside.flatten().cumsum(0) - 1).clamp_(min=0)
            tokens, places = text[:, :longest][inside], scatter % longest
        x = self.token_embedding.index_select(0, tokens).float() + self.positions.index_select(0, places)
        layout = _Layout(count, longest, readout, gather, scatter, self.mask[:longest, :longest])
        return self.norm_final(self.blocks(x, layout)) @ self.projection
