"""The ModifiedResNet for inference alone: batch normalisation folded into packed convolutions, channels last.

Against ``clip.model``: ReLU, and the sum with the shortcut, are part of the convolution before them, and the attention
pool makes no keys and no values. In bf16 the first convolution and the pool stay in fp32: pixels rounded to bf16 would
make most of the error, and together they are 2 % of the work.
"""

from __future__ import annotations

import dataclasses
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.inference.packed import PackedConv2d, PackedLinear
from clip.model import AttentionPool2d, Bottleneck, ModifiedResNet

__all__ = ["PackedResNet"]

_MOST_PIXELS = 4 * 224**2
"""Of the images in one pass. More are no faster, and the maps of the first layers are what takes memory."""


class PackedResNet:
    """``ModifiedResNet`` for inference on a CPU."""

    def __init__(self, tower: ModifiedResNet, dtype: torch.dtype) -> None:
        self.dtype = dtype
        size = tower.input_resolution
        self.rows_per_image = (size // 4) ** 2
        """Of the products in the first stage, the longest ones."""
        self.images_per_pass = max(1, _MOST_PIXELS // size**2)
        self.first = _folded(tower.conv1, tower.bn1, torch.float32, "relu", size)
        size //= 2
        self.stem = [
            _folded(tower.conv2, tower.bn2, dtype, "relu", size),
            _folded(tower.conv3, tower.bn3, dtype, "relu", size),
        ]
        size //= 2
        self.blocks: list[_Bottleneck] = []
        for stage in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            for block in stage:
                self.blocks.append(_bottleneck(cast(Bottleneck, block), dtype, size))
                size //= self.blocks[-1].stride
        self.pool = _AttentionPool(tower.attnpool)

    def __call__(self, images: Tensor) -> Tensor:
        """images: (B, 3, S, S) → (B, E) fp32."""
        return self.pool(torch.cat([self._map(part) for part in torch.split(images, self.images_per_pass)]))

    def _map(self, images: Tensor) -> Tensor:
        """images: (B, 3, S, S) → what the pool reads (B, S/32 · S/32, D) fp32."""
        x = self.first(images.float().contiguous(memory_format=torch.channels_last)).to(self.dtype)
        for conv in self.stem:
            x = conv(x)
        x = F.avg_pool2d(x, 2)
        for block in self.blocks:
            x = block(x)
        return x.permute(0, 2, 3, 1).flatten(1, 2).float()


@dataclasses.dataclass(frozen=True, slots=True)
class _Bottleneck:
    narrow: PackedConv2d
    conv: PackedConv2d
    widen: PackedConv2d
    shortcut: PackedConv2d | None
    stride: int

    def __call__(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W), overwritten → (B, C', H / stride, W / stride)."""
        y = self.conv(self.narrow(x))
        if self.stride > 1:
            x, y = F.avg_pool2d(x, self.stride), F.avg_pool2d(y, self.stride)
        return self.widen.add_to_(x if self.shortcut is None else self.shortcut(x), y)


def _bottleneck(block: Bottleneck, dtype: torch.dtype, size: int) -> _Bottleneck:
    after = size // block.stride
    shortcut = None
    if block.downsample is not None:
        conv, norm = (block.downsample.get_submodule(name) for name in ("0", "1"))
        shortcut = _folded(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm), dtype, "none", after)
    return _Bottleneck(
        narrow=_folded(block.conv1, block.bn1, dtype, "relu", size),
        conv=_folded(block.conv2, block.bn2, dtype, "relu", size),
        widen=_folded(block.conv3, block.bn3, dtype, "relu", after),
        shortcut=shortcut,
        stride=block.stride,
    )


def _folded(
    conv: nn.Conv2d, norm: nn.BatchNorm2d, dtype: torch.dtype, fused: Literal["none", "relu"], size: int
) -> PackedConv2d:
    """The convolution with the normalisation behind it in its weight and bias."""
    assert norm.running_mean is not None and norm.running_var is not None
    scale = norm.weight.detach().float() * (norm.running_var.float() + norm.eps).rsqrt()
    weight = conv.weight.detach().float() * scale[:, None, None, None]
    bias = norm.bias.detach().float() - norm.running_mean.float() * scale
    stride, padding = conv.stride[0], cast(tuple[int, int], conv.padding)[0]
    return PackedConv2d(weight, bias, dtype, fused, stride=stride, padding=padding, size=size)


class _AttentionPool:
    """``AttentionPool2d`` in fp32, without keys and values.

    There is one query, that of the mean. A head scores position x by q · (K x + k) = (Kᵀ q) · x + q · k, whose second
    term is the same everywhere and leaves the softmax alone; and it gives Σ a (V x + v) = V (Σ a x) + v. So K and V
    multiply one vector an image instead of all positions, which were 7 % of RN50's work.
    """

    def __init__(self, pool: AttentionPool2d) -> None:
        self.heads, width = pool.num_heads, pool.k_proj.in_features
        layers = (pool.q_proj, pool.k_proj, pool.v_proj, pool.c_proj)
        q, k, v, c = ((layer.weight.detach(), layer.bias.detach()) for layer in layers)
        scale = (width // self.heads) ** -0.5
        self.positions = pool.positional_embedding.detach().to(torch.float32, copy=True)
        self.query = PackedLinear(q[0].float() * scale, q[1].float() * scale, torch.float32)
        self.keys = k[0].to(torch.float32, copy=True).view(self.heads, -1, width)  # (heads, D / heads, D)
        self.values = v[0].float().view(self.heads, -1, width).transpose(1, 2).contiguous()  # (heads, D, D / heads)
        self.out = PackedLinear(c[0], c[1].float() + c[0].float() @ v[1].float(), torch.float32)

    def __call__(self, x: Tensor) -> Tensor:
        """x: (B, H W, D) fp32 → (B, E)."""
        x = torch.cat([x.mean(dim=1, keepdim=True), x], dim=1) + self.positions  # (B, L, D)
        q = self.query(x[:, 0].contiguous()).view(x.shape[0], self.heads, -1)  # (B, heads, D / heads)
        q = torch.bmm(q.transpose(0, 1), self.keys).transpose(0, 1)  # (B, heads, D)
        weights = torch.bmm(q, x.transpose(1, 2)).softmax(dim=-1)  # (B, heads, L)
        attended = torch.bmm(weights, x).transpose(0, 1)  # (heads, B, D)
        return self.out(torch.bmm(attended, self.values).transpose(0, 1).flatten(1))
