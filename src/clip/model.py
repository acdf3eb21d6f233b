"""The CLIP model: two towers into one space (Radford et al. 2021, "Learning Transferable Visual Models From Natural
Language Supervision"). Names, constructors and state-dict keys are those of OpenAI's code. No I/O.

Read from the bottom up: ``CLIP`` joins an image tower (``VisionTransformer`` or ``ModifiedResNet``) and a causal text
``Transformer``; ``CLIPConfig``, of ``config.py``, holds the sizes, which are recovered from any checkpoint's shapes.

Letters in shapes: B batch, L tokens, D tower width, E ``embed_dim``, H W pixels or grid cells.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from clip.config import (
    ARCHITECTURES,
    INITIAL_LOGIT_BIAS,
    SIZES_IN_ARCHIVES,
    Activation,
    CLIPConfig,
    architecture,
)
from clip.errors import ConfigError, ShapeError, StateDictError

__all__ = [
    "ARCHITECTURES",
    "CLIP",
    "SIZES_IN_ARCHIVES",
    "Activation",
    "AttentionPool2d",
    "Bottleneck",
    "CLIPConfig",
    "LayerNorm",
    "ModifiedResNet",
    "MultiheadAttention",
    "QuickGELU",
    "ResidualAttentionBlock",
    "Transformer",
    "VisionTransformer",
    "architecture",
    "build_model",
    "convert_weights",
    "load_weights",
]

INITIAL_LOGIT_SCALE = math.log(1 / 0.07)


# Parts shared by the towers -------------------------------------------------------------------------------------------


def _normal(*shape: int, std: float) -> nn.Parameter:
    return nn.Parameter(torch.empty(shape).normal_(std=std))


class LayerNorm(nn.LayerNorm):
    """Layer normalisation in fp32, whatever the dtype of the input, which the output keeps."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dtype == torch.bfloat16 and x.device.type == "cpu" and not _is_traced():
            # The CPU's kernel computes in fp32 inside and takes weights of either dtype: the same without two copies.
            return F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        weight = None if self.weight is None else self.weight.float()
        bias = None if self.bias is None else self.bias.float()
        return F.layer_norm(x.float(), self.normalized_shape, weight, bias, self.eps).to(x.dtype)


class QuickGELU(nn.Module):
    """x · sigmoid(1.702 x), the approximation of GELU that OpenAI's models were trained with."""

    def forward(self, x: Tensor) -> Tensor:
        if _is_traced():  # a compiler fuses all of it
            return x * (1.702 * x).sigmoid()
        if not torch.is_grad_enabled():
            return _quick_gelu(x)
        return cast(Tensor, _QuickGELU.apply(x))  # type: ignore[no-untyped-call]  # torch leaves it untyped


def _quick_gelu(x: Tensor) -> Tensor:
    # These are the largest tensors of the model. One fewer at a time leaves nothing for the allocator to give back
    # and fetch anew in each block, which costs a tenth of the time on a CPU.
    return (1.702 * x).sigmoid_().mul_(x)


class _QuickGELU(torch.autograd.Function):
    """Keeps x alone and has two operations in the backward pass, where autograd keeps two tensors and has five."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return _quick_gelu(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled():  # second derivatives are wanted, which torch's own function lacks
            gate = (1.702 * x).sigmoid()
            return cast(Tensor, gradient * gate * (1 + 1.702 * x * (1 - gate)))
        # x · sigmoid(a x) = silu(a x) / a, so its slope is that of silu at a x.
        return cast(Tensor, torch.ops.aten.silu_backward(gradient, 1.702 * x))


_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {"quick_gelu": QuickGELU, "gelu": nn.GELU}


class MultiheadAttention(nn.MultiheadAttention):
    """``nn.MultiheadAttention`` whose usual forms are two or three matrix products around an attention kernel.

    The general forward of torch transposes and copies on its way, under CPU autocast even once per token
    (open_clip measures 0.2 × its fp32 speed there). Anything but attention of tokens to themselves, or of other
    queries to them, goes to the parent.
    """

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """query: (L', B, D); key, value: (L, B, D). Returns (L', B, D) and, where asked for, the attention weights."""
        is_plain = key is value and key_padding_mask is None and not (need_weights or is_causal)
        is_plain = is_plain and query.ndim == key.ndim == 3
        is_usual = self.in_proj_weight is not None and self.bias_k is None
        if not is_plain or not is_usual or self.batch_first or self.add_zero_attn:
            return super().forward(
                query,
                key,
                value,
                key_padding_mask=key_padding_mask,
                need_weights=need_weights,
                attn_mask=attn_mask,
                average_attn_weights=average_attn_weights,
                is_causal=is_causal,
            )
        weight, bias, width = self.in_proj_weight, self.in_proj_bias, self.embed_dim
        if query is key:
            q, k, v = self._project(query, weight, bias)
        else:
            (q,) = self._project(query, weight[:width], None if bias is None else bias[:width])
            k, v = self._project(key, weight[width:], None if bias is None else bias[width:])
        mask = None if attn_mask is None or attn_mask.dtype == torch.bool else attn_mask.to(q.dtype)
        if attn_mask is not None and mask is None:
            mask = ~attn_mask  # True means "hide" in nn.MultiheadAttention and "show" in the kernel
        if mask is not None and mask.ndim == 3:
            mask = mask.view(*q.shape[:2], *mask.shape[1:])  # (B, heads, L', L)
        attend = _attend_in_memory if _is_faster_in_memory(q, k) else F.scaled_dot_product_attention
        x = attend(q, k, v, mask, self.dropout if self.training else 0.0)
        x = x.permute(2, 0, 1, 3).flatten(2)  # (L', B, D)
        return F.linear(x, self.out_proj.weight, self.out_proj.bias), None

    def _project(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, ...]:
        """x: (L, B, D) → those of queries, keys and values that the weight makes, each (B, heads, L, D / heads)."""
        y = F.linear(x, weight, bias)
        y = y.view(*y.shape[:2], weight.shape[0] // self.embed_dim, self.num_heads, self.head_dim)
        return y.permute(2, 1, 3, 0, 4).unbind()


_MOST_KEYS_IN_MEMORY = 1024
"""Above it the scores of all pairs would be the largest tensor by far. The largest CLIP has 577 tokens."""


def _is_faster_in_memory(q: Tensor, k: Tensor) -> bool:
    """Whether two batched products beat the fused kernel: torch's for bfloat16 on a CPU takes 2 to 3 times as long, and
    4 to 7 times with its backward pass. In fp32 they are equal."""
    return q.device.type == "cpu" and q.dtype == torch.bfloat16 and k.shape[2] <= _MOST_KEYS_IN_MEMORY


def _attend_in_memory(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, dropout_p: float) -> Tensor:
    """``F.scaled_dot_product_attention`` by two batched matrix products, with the scores of all pairs in memory."""
    scores = torch.bmm(q.flatten(0, 1) * q.shape[-1] ** -0.5, k.flatten(0, 1).transpose(1, 2))
    scores = scores.view(*q.shape[:-1], k.shape[2])  # (B, heads, L', L)
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf")) if mask.dtype == torch.bool else scores + mask
    weights = F.dropout(scores.softmax(dim=-1), dropout_p)
    return torch.bmm(weights.flatten(0, 1), v.flatten(0, 1)).view_as(q)


class ResidualAttentionBlock(nn.Module):
    """Pre-norm Transformer block: attention and MLP, each added to the stream."""

    attn_mask: Tensor | None

    def __init__(
        self,
        d_model: int,
        n_head: int,
        attn_mask: Tensor | None = None,
        *,
        mlp_width: int | None = None,
        activation: Activation = "quick_gelu",
    ) -> None:
        """attn_mask: (T, T), added to the attention scores of texts of up to T tokens."""
        super().__init__()
        mlp_width = mlp_width or 4 * d_model
        self.attn = MultiheadAttention(d_model, n_head)
        self.ln_1 = LayerNorm(d_model)
        self.mlp = nn.Sequential(
            OrderedDict(
                c_fc=nn.Linear(d_model, mlp_width),
                gelu=_ACTIVATIONS[activation](),
                c_proj=nn.Linear(mlp_width, d_model),
            )
        )
        self.ln_2 = LayerNorm(d_model)
        self.register_buffer("attn_mask", attn_mask, persistent=False)

    def attention(self, x: Tensor) -> Tensor:
        """x: (L, B, D) → (L, B, D)."""
        return cast(Tensor, self.attn(x, x, x, need_weights=False, attn_mask=self._mask(x))[0])

    def _mask(self, x: Tensor) -> Tensor | None:
        return None if self.attn_mask is None else self.attn_mask[..., : x.shape[0], : x.shape[0]]

    def forward(self, x: Tensor) -> Tensor:
        """x: (L, B, D) → (L, B, D)."""
        x = x + self.attention(self.ln_1(x))
        return cast(Tensor, x + self.mlp(self.ln_2(x)))

    def forward_at(self, x: Tensor, position: Tensor) -> Tensor:
        """x: (L, B, D); position: (B,) → (B, D), what ``forward`` gives at that token of each row, and no more work.

        Only keys and values are computed for all tokens: a sixth of the block.
        """
        rows = torch.arange(x.shape[1], device=x.device)
        y, mask = self.ln_1(x), self._mask(x)
        if mask is not None:  # (L, L) → (B heads, 1, L)
            mask = mask[position].repeat_interleave(self.attn.num_heads, dim=0).unsqueeze(1)
        query = y[position, rows].unsqueeze(0)  # (1, B, D)
        chosen = x[position, rows] + self.attn(query, y, y, need_weights=False, attn_mask=mask)[0][0]
        return cast(Tensor, chosen + self.mlp(self.ln_2(chosen)))


class Transformer(nn.Module):
    """A stack of residual attention blocks over (L, B, D)."""

    gradient_checkpointing = False
    """Whether the backward pass computes each block anew instead of keeping what is inside; see CLIP."""

    def __init__(
        self,
        width: int,
        layers: int,
        heads: int,
        attn_mask: Tensor | None = None,
        *,
        mlp_width: int | None = None,
        activation: Activation = "quick_gelu",
    ) -> None:
        super().__init__()
        self.width = width
        self.layers = layers
        self.resblocks = nn.Sequential(
            *(
                ResidualAttentionBlock(width, heads, attn_mask, mlp_width=mlp_width, activation=activation)
                for _ in range(layers)
            )
        )

    def forward(self, x: Tensor, position: Tensor | None = None) -> Tensor:
        """x: (L, B, D) → (L, B, D), or with position (B,) what comes out at that token of each row: (B, D)."""
        if position is None:
            return _checkpointed(self.resblocks, x) if self.gradient_checkpointing else cast(Tensor, self.resblocks(x))
        *blocks, last = self.resblocks
        for block in blocks:
            x = _checkpointed([block], x) if self.gradient_checkpointing else block(x)
        return cast(ResidualAttentionBlock, last).forward_at(x, position)


def _may_end_at_one_token(transformer: nn.Module) -> bool:
    """Whether nobody would miss the last block's other tokens: all is as made here, and no hook looks on."""
    if type(transformer) is not Transformer:
        return False
    last = transformer.resblocks[-1]
    if type(last) is not ResidualAttentionBlock or "forward" in vars(last) or "attention" in vars(last):
        return False
    return not any(m._forward_hooks or m._forward_pre_hooks for m in (transformer, transformer.resblocks, last))


# Image towers ---------------------------------------------------------------------------------------------------------


class VisionTransformer(nn.Module):
    """ViT with a class token, a normalisation before the blocks, and a projection of the class token (section 2.4)."""

    patch_dropout: float = 0.0
    """Share of the patches of each image that training leaves out, at random (FLIP, Li et al. 2023, section 3): 0.5
    makes a step almost twice as fast. The class token stays; in eval mode everything does."""

    def __init__(
        self,
        input_resolution: int,
        patch_size: int,
        width: int,
        layers: int,
        heads: int,
        output_dim: int,
        *,
        mlp_width: int | None = None,
        activation: Activation = "quick_gelu",
    ) -> None:
        super().__init__()
        self.input_resolution = input_resolution
        self.output_dim = output_dim
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch_size, stride=patch_size, bias=False)
        positions = (input_resolution // patch_size) ** 2 + 1
        self.class_embedding = _normal(width, std=width**-0.5)
        self.positional_embedding = _normal(positions, width, std=width**-0.5)
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, layers, heads, mlp_width=mlp_width, activation=activation)
        self.ln_post = LayerNorm(width)
        self.proj = _normal(width, output_dim, std=width**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, H, W), H = W = ``input_resolution`` → (B, E)."""
        _check_image(x)
        x = self.conv1(x).flatten(2).transpose(1, 2)  # (B, L - 1, D), one row a patch
        class_token = self.class_embedding.to(x.dtype).expand(x.shape[0], 1, -1)
        x = _add_positions(torch.cat([class_token, x], dim=1), self.positional_embedding)  # (B, L, D)
        if self.training and self.patch_dropout:
            x = _drop_patches(x, self.patch_dropout)
        # Contiguous once, or every block's additions and normalisations would copy a transposed stream.
        x = self.ln_pre(x).transpose(0, 1).contiguous()  # (L, B, D)
        if self.training and _may_end_at_one_token(self.transformer):
            x = self.transformer(x, torch.zeros(x.shape[1], dtype=torch.long, device=x.device))
        else:
            x = self.transformer(x)[0]
        return cast(Tensor, self.ln_post(x) @ self.proj)


class Bottleneck(nn.Module):
    """Residual bottleneck whose stride is an average pool after the 3×3 convolution and before the shortcut's 1×1."""

    expansion = 4

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        outplanes = planes * self.expansion
        self.conv1 = nn.Conv2d(inplanes, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu2 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3 = nn.Conv2d(planes, outplanes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outplanes)
        self.relu3 = nn.ReLU(inplace=True)
        self.stride = stride
        self.downsample: nn.Sequential | None = None
        if stride > 1 or inplanes != outplanes:
            self.downsample = nn.Sequential(
                OrderedDict(
                    [  # OpenAI compatibility: the odd names are keys of the published state dicts
                        ("-1", nn.AvgPool2d(stride)),
                        ("0", nn.Conv2d(inplanes, outplanes, 1, bias=False)),
                        ("1", nn.BatchNorm2d(outplanes)),
                    ]
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, inplanes, H, W) → (B, 4 planes, H / stride, W / stride)."""
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.bn3(self.conv3(self.avgpool(x)))
        return cast(Tensor, self.relu3(x + shortcut))


class AttentionPool2d(nn.Module):
    """Pools a feature map by one attention step whose query is the mean of all positions (section 2.4)."""

    def __init__(self, spacial_dim: int, embed_dim: int, num_heads: int, output_dim: int | None = None) -> None:
        super().__init__()
        self.positional_embedding = _normal(spacial_dim**2 + 1, embed_dim, std=embed_dim**-0.5)
        self.k_proj = nn.Linear(embed_dim, embed_dim)
        self.q_proj = nn.Linear(embed_dim, embed_dim)
        self.v_proj = nn.Linear(embed_dim, embed_dim)
        self.c_proj = nn.Linear(embed_dim, output_dim or embed_dim)
        self.num_heads = num_heads

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, D, H, W) → (B, E)."""
        x = x.flatten(2).transpose(1, 2)  # (B, H W, D)
        x = _add_positions(torch.cat([x.mean(dim=1, keepdim=True), x], dim=1), self.positional_embedding)  # (B, L, D)
        q, k, v = (
            y.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)  # (B, heads, 1 or L, D / heads)
            for y in (self.q_proj(x[:, :1]), self.k_proj(x), self.v_proj(x))
        )
        return cast(Tensor, self.c_proj(F.scaled_dot_product_attention(q, k, v).flatten(1)))


class ModifiedResNet(nn.Module):
    """ResNet with a stem of three convolutions, anti-aliased strides, and an attention pool (section 2.4)."""

    gradient_checkpointing = False
    """Whether the backward pass computes each bottleneck anew instead of keeping what is inside; see CLIP."""

    def __init__(
        self,
        layers: tuple[int, int, int, int],
        output_dim: int,
        heads: int,
        input_resolution: int = 224,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.output_dim = output_dim
        self.input_resolution = input_resolution
        self.conv1 = nn.Conv2d(3, width // 2, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width // 2)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width // 2, width // 2, kernel_size=3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width // 2)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width // 2, width, kernel_size=3, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.relu3 = nn.ReLU(inplace=True)
        self.avgpool = nn.AvgPool2d(2)
        self._inplanes = width
        self.layer1 = self._make_layer(width, layers[0])
        self.layer2 = self._make_layer(width * 2, layers[1], stride=2)
        self.layer3 = self._make_layer(width * 4, layers[2], stride=2)
        self.layer4 = self._make_layer(width * 8, layers[3], stride=2)
        self.attnpool = AttentionPool2d(input_resolution // 32, width * 32, heads, output_dim)

    def _make_layer(self, planes: int, blocks: int, stride: int = 1) -> nn.Sequential:
        layers = [Bottleneck(self._inplanes, planes, stride)]
        self._inplanes = planes * Bottleneck.expansion
        layers += [Bottleneck(self._inplanes, planes) for _ in range(1, blocks)]
        return nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, 3, H, W), H = W = ``input_resolution`` → (B, E)."""
        _check_image(x)
        x = x.to(self.conv1.weight.dtype)
        x = self.relu1(self.bn1(self.conv1(x)))
        x = self.relu2(self.bn2(self.conv2(x)))
        x = self.avgpool(self.relu3(self.bn3(self.conv3(x))))
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = _checkpointed(stage, x) if self.gradient_checkpointing else stage(x)
        return cast(Tensor, self.attnpool(x))


def _is_traced() -> bool:
    """Whether a graph is being recorded, which must not depend on the data and keeps no checks."""
    return torch.compiler.is_compiling() or torch._C._is_tracing()


def _add_positions(x: Tensor, positions: Tensor) -> Tensor:
    """x: (B, L, D), positions: (L, D) → (B, L, D). Raises ShapeError if the image has more or fewer cells."""
    if not _is_traced() and x.shape[1] != positions.shape[0]:
        raise ShapeError(
            f"the images make {x.shape[1] - 1} patches or cells; the model has positions for {positions.shape[0] - 1}. "
            "Its preprocess makes images of the right size"
        )
    return x + positions.to(x.dtype)


def _drop_patches(x: Tensor, share: float) -> Tensor:
    """x: (B, L, D), the class token first → (B, L', D): the same with a random choice of each image's patches.

    The choice comes from torch's global generator of the device, so that a second pass with its state chooses alike.
    """
    if not 0 <= share < 1:
        raise ConfigError(f"patch_dropout is {share}; it must be at least 0 and less than 1")
    patches = x.shape[1] - 1
    kept = max(1, round(patches * (1 - share)))
    chosen = torch.rand(x.shape[0], patches, device=x.device).topk(kept, dim=1, sorted=False).indices  # (B, L' - 1)
    rows = torch.cat([torch.zeros_like(chosen[:, :1]), chosen + 1], dim=1)  # (B, L')
    return x.gather(1, rows[..., None].expand(-1, -1, x.shape[2]))


def _checkpointed(blocks: Iterable[nn.Module], x: Tensor) -> Tensor:
    """x through the blocks, of which the backward pass finds kept only what goes from one to the next."""
    for block in blocks:
        if not torch.is_grad_enabled():
            x = block(x)
        elif isinstance(block, Bottleneck):
            contexts = functools.partial(_checkpoint_contexts, block)
            x = cast(Tensor, checkpoint(block, x, use_reentrant=False, context_fn=contexts))
        else:  # torch.compile takes no context_fn, not even the one that is the default
            x = cast(Tensor, checkpoint(block, x, use_reentrant=False))
    return x


def _checkpoint_contexts(block: nn.Module) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """Of the first pass and of the second, in which BatchNorm must not count the batch again."""
    return contextlib.nullcontext(), _frozen_statistics(block)


@contextlib.contextmanager
def _frozen_statistics(block: nn.Module) -> Iterator[None]:
    """Within it BatchNorm normalises as always and leaves its running statistics as they are."""
    # A momentum of zero rather than no statistics: both passes have to save the same tensors.
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def _check_image(x: Tensor) -> None:
    if not _is_traced() and (x.ndim != 4 or x.shape[1] != 3):
        raise ShapeError(
            f"images have shape {tuple(x.shape)}; (batch, 3, height, width) is expected, as preprocess gives them; "
            "unsqueeze(0) makes a batch of one"
        )


_TEXTS_IN_GROUP = 16
"""Fewest texts that are worth a pass of their own: below it the matrix products lose more than padding costs."""


# The model ------------------------------------------------------------------------------------------------------------


class CLIP(nn.Module):
    """Images and texts in one space, where cosine similarity says how well they belong together (figure 1).

    The positional arguments are OpenAI's; ``from_config`` is the comfortable way. ``vision_layers`` is an int for a
    ViT and a tuple of four for a ResNet, whose ``vision_patch_size`` is None. Heads and MLP widths that are not given
    are 64 wide and four times the width.
    """

    def __init__(
        self,
        embed_dim: int,
        image_resolution: int,
        vision_layers: tuple[int, int, int, int] | int,
        vision_width: int,
        vision_patch_size: int | None,
        context_length: int,
        vocab_size: int,
        transformer_width: int,
        transformer_heads: int,
        transformer_layers: int,
        *,
        vision_heads: int = 0,
        vision_mlp_width: int = 0,
        transformer_mlp_width: int = 0,
        activation: Activation = "quick_gelu",
        logit_bias: bool = False,
    ) -> None:
        super().__init__()
        config = CLIPConfig(
            embed_dim=embed_dim,
            image_resolution=image_resolution,
            vision_layers=tuple(vision_layers) if isinstance(vision_layers, list) else vision_layers,
            vision_width=vision_width,
            vision_patch_size=vision_patch_size,
            vision_heads=vision_heads,
            vision_mlp_width=vision_mlp_width,
            context_length=context_length,
            vocab_size=vocab_size,
            transformer_width=transformer_width,
            transformer_heads=transformer_heads,
            transformer_layers=transformer_layers,
            transformer_mlp_width=transformer_mlp_width,
            activation=activation,
            logit_bias=logit_bias,
        )
        self.config = config
        self.context_length = context_length
        self.vocab_size = vocab_size
        self.visual: ModifiedResNet | VisionTransformer
        if isinstance(config.vision_layers, tuple):
            self.visual = ModifiedResNet(
                config.vision_layers, embed_dim, config.vision_heads, image_resolution, vision_width
            )
        else:
            assert config.vision_patch_size is not None
            self.visual = VisionTransformer(
                image_resolution,
                config.vision_patch_size,
                vision_width,
                config.vision_layers,
                config.vision_heads,
                embed_dim,
                mlp_width=config.vision_mlp_width,
                activation=activation,
            )
        self.transformer = Transformer(
            transformer_width,
            transformer_layers,
            config.transformer_heads,
            self.build_attention_mask(),
            mlp_width=config.transformer_mlp_width,
            activation=activation,
        )
        self.token_embedding = nn.Embedding(vocab_size, transformer_width)
        self.positional_embedding = nn.Parameter(torch.empty(context_length, transformer_width))
        self.ln_final = LayerNorm(transformer_width)
        self.text_projection = nn.Parameter(torch.empty(transformer_width, embed_dim))
        self.logit_scale = nn.Parameter(torch.tensor(INITIAL_LOGIT_SCALE))
        self.logit_bias = nn.Parameter(torch.tensor(INITIAL_LOGIT_BIAS)) if logit_bias else None
        self.initialize_parameters()

    @classmethod
    def from_config(cls, config: CLIPConfig) -> CLIP:
        """A model of these sizes with fresh random weights, in fp32."""
        return cls(**config.to_dict())

    def initialize_parameters(self) -> None:
        """Draws all weights anew, as OpenAI's models were initialised before training."""
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        nn.init.normal_(self.positional_embedding, std=0.01)
        if isinstance(self.visual, ModifiedResNet):
            pool = self.visual.attnpool
            for projection in (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj):
                nn.init.normal_(projection.weight, std=projection.in_features**-0.5)
            for block in self.visual.modules():
                if isinstance(block, Bottleneck):  # each block begins as its shortcut
                    nn.init.zeros_(block.bn3.weight)
        width, layers = self.transformer.width, self.transformer.layers
        for block in self.transformer.resblocks:
            assert isinstance(block, ResidualAttentionBlock)
            nn.init.normal_(block.attn.in_proj_weight, std=width**-0.5)
            nn.init.normal_(block.attn.out_proj.weight, std=width**-0.5 * (2 * layers) ** -0.5)
            nn.init.normal_(cast(nn.Linear, block.mlp.c_fc).weight, std=(2 * width) ** -0.5)
            nn.init.normal_(cast(nn.Linear, block.mlp.c_proj).weight, std=width**-0.5 * (2 * layers) ** -0.5)
        nn.init.normal_(self.text_projection, std=width**-0.5)

    def build_attention_mask(self) -> Tensor:
        """(T, T): minus infinity above the diagonal, so that a token sees itself and what stands before it."""
        # The device is named so that a model built on the meta device has its mask all the same.
        return torch.full((self.context_length, self.context_length), float("-inf"), device="cpu").triu_(1)

    def set_gradient_checkpointing(self, enabled: bool) -> None:
        """Whether training computes the inside of each block a second time in the backward pass, to save memory.

        Gradients stay the same, random choices and the running statistics of BatchNorm too; a step takes about a third
        longer, and what it keeps falls to one tensor a block.
        """
        for module in self.modules():
            if isinstance(module, Transformer | ModifiedResNet):
                module.gradient_checkpointing = enabled

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights that images and texts are multiplied with."""
        return self.visual.conv1.weight.dtype

    def encode_image(self, image: Tensor) -> Tensor:
        """image: (B, 3, H, W), as ``preprocess`` gives it → image features (B, E), of any norm."""
        return cast(Tensor, self.visual(image.type(self.dtype)))

    def encode_text(self, text: Tensor) -> Tensor:
        """text: (B, L) token ids, as ``clip.tokenize`` gives them → text features (B, E), of any norm.

        The feature is read at the end token, the largest id of the row. Under the causal mask nothing behind it has
        any influence, so padding is not computed: exact, and five times faster on short captions. On a CPU, where no
        gradient is recorded, a large batch goes in up to four groups of similar length, each cut to its longest text.
        """
        if text.ndim != 2:
            raise ShapeError(f"text has shape {tuple(text.shape)}; (batch, tokens) is expected, as clip.tokenize gives")
        end = text.argmax(dim=-1)  # (B,)
        if _is_traced() or not text.shape[0]:
            return self._encode_tokens(text, end)
        # Recording, one pass: each group would have gradients of all weights of its own, which costs more than padding.
        is_worth_groups = text.device.type == "cpu" and not torch.is_grad_enabled()
        groups = min(4, text.shape[0] // _TEXTS_IN_GROUP) if is_worth_groups else 1
        if groups <= 1:
            return self._encode_tokens(text[:, : int(end.max()) + 1], end)
        order = end.argsort()
        parts = [self._encode_tokens(text[rows, : int(end[rows[-1]]) + 1], end[rows]) for rows in order.chunk(groups)]
        return torch.cat(parts)[order.argsort()]

    def _encode_tokens(self, text: Tensor, end: Tensor) -> Tensor:
        """text: (B, L) token ids; end: (B,), where each text ends → text features (B, E)."""
        if not _is_traced() and text.shape[1] > self.context_length:
            raise ShapeError(f"a text has {text.shape[1]} tokens; the context length is {self.context_length}")
        x = self.token_embedding(text).type(self.dtype)  # (B, L, D)
        x = x + self.positional_embedding[: text.shape[1]].type(self.dtype)
        x = x.transpose(0, 1).contiguous()  # (L, B, D)
        if self.training and _may_end_at_one_token(self.transformer):
            return cast(Tensor, self.ln_final(self.transformer(x, end)).type(self.dtype) @ self.text_projection)
        x = self.ln_final(self.transformer(x).transpose(0, 1)).type(self.dtype)
        return cast(Tensor, x[torch.arange(x.shape[0], device=x.device), end] @ self.text_projection)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine similarity of every image with every text, times ``logit_scale.exp()`` (about 100 once trained).

        A model with a ``logit_bias`` adds it, as OpenCLIP does. image: (B, 3, H, W); text: (K, L). Returns
        ``logits_per_image`` (B, K) and its transpose, in fp32 whatever the precision of the towers: near 25 half
        precision has steps of 1/64, which makes ties.
        """
        image_features = self.encode_image(image)
        text_features = self.encode_text(text)
        with torch.autocast(image_features.device.type, enabled=False):
            image_embeddings = F.normalize(image_features.float(), dim=-1)
            text_embeddings = F.normalize(text_features.float(), dim=-1)
            logits_per_image = self.logit_scale.float().exp() * image_embeddings @ text_embeddings.t()
            if self.logit_bias is not None:
                logits_per_image = logits_per_image + self.logit_bias.float()
        return logits_per_image, logits_per_image.t()


# Weights --------------------------------------------------------------------------------------------------------------


def convert_weights(model: nn.Module, dtype: torch.dtype = torch.float16) -> None:
    """Turns the weights of matrix products to ``dtype`` in place; normalisations, embeddings and scale stay.

    The rules are OpenAI's: convolutions, linear layers, attention and the two projections.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear | nn.MultiheadAttention):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(dtype)
        for name in ("text_projection", "proj"):
            projection = getattr(module, name, None)
            if isinstance(projection, nn.Parameter):
                projection.data = projection.data.to(dtype)


class _Undrawn(TorchFunctionMode):
    """Leaves out ``normal_``: the first one on the meta device imports 800 modules, a second, to draw nothing."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in (Tensor.normal_, nn.init.normal_):
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs)


def load_weights(config: CLIPConfig, state_dict: Mapping[str, Tensor]) -> CLIP:
    """A model in eval mode that uses the tensors of ``state_dict`` themselves, without a copy, in their own dtypes.

    Raises StateDictError that lists every missing, unexpected and mis-shaped tensor.
    """
    with torch.device("meta"), _Undrawn():
        model = CLIP.from_config(config)
    own = model.state_dict()
    given = {key: value for key, value in state_dict.items() if key not in SIZES_IN_ARCHIVES}
    for key in ("logit_scale", "logit_bias"):
        if key in given and given[key].shape == (1,):  # as some versions of OpenCLIP store it
            given[key] = given[key].reshape(())
    for key in own:  # PyTorch before 0.4.1 wrote no counters, and they say nothing at inference
        if key.endswith("num_batches_tracked"):
            given.setdefault(key, torch.tensor(0))
    problems = {
        "missing": sorted(own.keys() - given.keys()),
        "unexpected": sorted(given.keys() - own.keys()),
        "mis-shaped": [
            f"{key} {tuple(given[key].shape)} instead of {tuple(own[key].shape)}"
            for key in own.keys() & given.keys()
            if given[key].shape != own[key].shape
        ],
    }
    if any(problems.values()):
        lines = [f"{name}: {', '.join(keys[:8])}{' …' * (len(keys) > 8)}" for name, keys in problems.items() if keys]
        raise StateDictError("the state dict does not fit the model; " + "; ".join(lines))
    model.load_state_dict(given, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    return model.eval()


def build_model(state_dict: Mapping[str, Tensor], *, activation: Activation = "quick_gelu") -> CLIP:
    """A model in eval mode with a copy of these weights in fp32, its sizes inferred from their shapes.

    OpenAI compatibility: OpenAI's function removes keys from the caller's dict and returns half precision, which no
    CPU computes well; here the dict is left alone, and ``convert_weights(model)`` gives the half precision.
    """
    config = CLIPConfig.from_state_dict(state_dict, activation=activation)
    copies = {
        key: value.to(torch.float32, copy=True) if value.is_floating_point() else value.clone()
        for key, value in state_dict.items()
    }
    return load_weights(config, copies)
