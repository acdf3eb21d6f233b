"""A CLIP for inference on a CPU: the same features, several times faster.

model, preprocess = clip.load("ViT-B/32", device="cpu")
model = clip.optimize_for_inference(model)
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from clip.errors import ConfigError, ShapeError
from clip.inference.precision import Precision, resolved
from clip.inference.resnet import PackedResNet
from clip.inference.streams import in_streams, streams_for
from clip.inference.transformer import PackedTextTransformer, PackedVisionTransformer
from clip.model import CLIP, ModifiedResNet

__all__ = ["InferenceCLIP", "optimize_for_inference"]

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def optimize_for_inference(model: CLIP, precision: Precision = "auto") -> InferenceCLIP:
    """The model with its weights packed for the matrix units of this CPU. It takes what CLIP takes and gives the same.

    precision: of the matrix products. "fp32": features differ from the model's in rounding alone (1e-6). "bf16":
        cosines to the model's own are above 0.9999. "auto": bf16 where the processor has units for it, else fp32.
        "int8" is for exported models, and an error here.
    The given model is not changed, and not needed any more. Raises ConfigError for a model on another device or in
    training mode.
    """
    return InferenceCLIP(model, precision)


class InferenceCLIP:
    """What ``optimize_for_inference`` gives: ``encode_image``, ``encode_text`` and the call are those of CLIP.

    It holds no parameters, records no gradients and stays on the CPU.
    """

    training = False
    dtype = torch.float32
    """Of images and features."""

    def __init__(self, model: CLIP, precision: Precision = "auto") -> None:
        if model.logit_scale.device.type != "cpu":
            raise ConfigError(
                f"the model is on {model.logit_scale.device}; only models on the CPU are packed, use this one as it is"
            )
        if model.training:  # batch statistics are not part of the packed weights
            raise ConfigError("the model is in training mode; call model.eval() before packing it")
        self.precision = resolved(precision)
        if self.precision not in _DTYPES:
            raise ConfigError(
                f"precision {self.precision} needs the graphs of another engine: write them with 'clip export MODEL "
                f"FOLDER --to openvino --int8' and load that folder; torch computes in {' and '.join(_DTYPES)}"
            )
        dtype = _DTYPES[self.precision]
        self.config = model.config
        self.context_length, self.vocab_size = model.context_length, model.vocab_size
        self.logit_scale = model.logit_scale.detach().clone()
        self.logit_bias = None if model.logit_bias is None else model.logit_bias.detach().clone()
        self.visual: PackedResNet | PackedVisionTransformer
        if isinstance(model.visual, ModifiedResNet):
            self.visual = PackedResNet(model.visual, dtype)
        else:
            self.visual = PackedVisionTransformer(model.visual, dtype)
        self.text = PackedTextTransformer(model, dtype)

    def eval(self) -> InferenceCLIP:
        """Itself, as for a module in eval mode."""
        return self

    @torch.no_grad()
    def encode_image(self, image: Tensor) -> Tensor:
        """image: (B, 3, S, S), as ``preprocess`` gives it → image features (B, E) fp32, of any norm."""
        size = self.config.image_resolution
        if image.ndim != 4 or image.shape[1:] != (3, size, size):
            raise ShapeError(f"images have shape {tuple(image.shape)}; (batch, 3, {size}, {size}) is expected")
        if not image.shape[0]:
            return image.new_empty(0, self.config.embed_dim, dtype=torch.float32)
        parts = streams_for(image.shape[0] * self.visual.rows_per_image)
        return torch.cat(in_streams(self.visual, image.chunk(parts)))

    @torch.no_grad()
    def encode_text(self, text: Tensor) -> Tensor:
        """text: (B, L) token ids, as ``clip.tokenize`` gives them → text features (B, E) fp32, of any norm.

        Read at the end token, the largest id of the row; nothing behind it is computed.
        """
        if text.ndim != 2 or text.shape[1] > self.context_length:
            raise ShapeError(
                f"text has shape {tuple(text.shape)}; (batch, up to {self.context_length} tokens) is expected"
            )
        if not text.shape[0]:
            return torch.empty(0, self.config.embed_dim)
        ends = text.argmax(dim=-1)
        parts = streams_for(int(ends.sum()) + len(ends))
        order = ends.argsort()  # so that the texts of a part are about as long
        chunks = _even(order, ends + 1, parts)
        features = torch.cat(in_streams(lambda rows: self.text(text[rows], ends[rows]), chunks))
        restored = torch.empty_like(features)
        restored[order] = features
        return restored

    def __call__(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """``logits_per_image`` (B, K) and its transpose, in fp32, as CLIP gives them."""
        image_embeddings = F.normalize(self.encode_image(image), dim=-1)
        text_embeddings = F.normalize(self.encode_text(text), dim=-1)
        logits_per_image = self.logit_scale.float().exp() * image_embeddings @ text_embeddings.t()
        if self.logit_bias is not None:
            logits_per_image = logits_per_image + self.logit_bias.float()
        return logits_per_image, logits_per_image.t()


def _even(order: Tensor, lengths: Tensor, parts: int) -> list[Tensor]:
    """``order`` cut into up to ``parts`` runs with about the same number of tokens."""
    if parts == 1:
        return [order]
    before = lengths[order].cumsum(0)
    total = int(before[-1])
    cuts = torch.searchsorted(before, torch.arange(1, parts) * total / parts) + 1
    return [part for part in order.tensor_split(cast(list[int], cuts.tolist())) if len(part)]
