"""Both towers as graphs of another engine, each alone, for batches of any size and texts of any length.

``torch.export`` records a tower once, and OpenVINO and ONNX are made of that record. What is recorded is written here
anew from the modules of ``clip.model``, which has other aims: there hooks, training and OpenAI's (L, B, D) layout
count, here a graph without transpositions whose last block computes nothing but the token that is read.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.errors import MissingDependencyError
from clip.inference.telemetry import without_telemetry
from clip.model import CLIP, ModifiedResNet, ResidualAttentionBlock, Transformer, VisionTransformer

if TYPE_CHECKING:
    import openvino

__all__ = ["ImageTower", "TextTower", "imported", "openvino_graph", "write_onnx"]

_EXAMPLES = 2
"""Rows of the input that a tower is recorded with. One would be taken for a constant."""

_LARGEST_ONNX = 1_900_000_000
"""Bytes of weights in one file, which the limit of Protocol Buffers, 2 GiB, holds with the graph."""


# The towers -----------------------------------------------------------------------------------------------------------


class ImageTower(nn.Module):
    """image (B, 3, S, S) fp32 → image features (B, E)."""

    name = "image"

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.visual = model.visual
        self.size = model.config.image_resolution

    def forward(self, image: Tensor) -> Tensor:
        visual = self.visual
        if isinstance(visual, ModifiedResNet):
            return cast(Tensor, visual(image))
        return _vision_transformer(visual, image)

    def example(self) -> tuple[Tensor, dict[int, Any]]:
        """An input, and the names of its dimensions that may vary."""
        return torch.zeros(_EXAMPLES, 3, self.size, self.size), {0: torch.export.Dim("batch", min=1)}


class TextTower(nn.Module):
    """text (B, L) int32, L up to the context length → text features (B, E), read at the largest id of each row."""

    name = "text"

    def __init__(self, model: CLIP) -> None:
        super().__init__()
        self.token_embedding, self.positional_embedding = model.token_embedding, model.positional_embedding
        self.transformer, self.ln_final = model.transformer, model.ln_final
        self.text_projection = model.text_projection

    def forward(self, text: Tensor) -> Tensor:
        places = torch.arange(text.shape[1])
        x = self.token_embedding(text) + F.embedding(places, self.positional_embedding)  # (B, L, D)
        *blocks, last = _blocks(self.transformer)
        mask = places <= places[:, None]  # a token sees itself and what stands before it
        for block in blocks:
            y = block.ln_1(x)
            x = x + _attention(block, y, y, mask)
            x = x + block.mlp(block.ln_2(x))
        rows, ends = torch.arange(text.shape[0]), text.argmax(dim=-1)
        y = last.ln_1(x)
        seen = (places <= ends[:, None])[:, None, None]  # (B, 1, 1, L)
        x = x[rows, ends, None] + _attention(last, y[rows, ends, None], y, seen)  # (B, 1, D)
        x = x + last.mlp(last.ln_2(x))
        return cast(Tensor, (self.ln_final(x) @ self.text_projection)[:, 0])

    def example(self) -> tuple[Tensor, dict[int, Any]]:
        """An input, and the names of its dimensions that may vary."""
        longest = self.positional_embedding.shape[0]
        dimensions = {0: torch.export.Dim("batch", min=1), 1: torch.export.Dim("length", min=1, max=longest)}
        return torch.zeros(_EXAMPLES, longest // 2 + 1, dtype=torch.int32), dimensions


def _vision_transformer(visual: VisionTransformer, image: Tensor) -> Tensor:
    x = visual.conv1(image).flatten(2).transpose(1, 2)  # (B, L - 1, D)
    x = torch.cat([visual.class_embedding.expand(x.shape[0], 1, -1), x], dim=1) + visual.positional_embedding
    x = visual.ln_pre(x)  # (B, L, D)
    *blocks, last = _blocks(visual.transformer)
    for block in blocks:
        y = block.ln_1(x)
        x = x + _attention(block, y, y)
        x = x + block.mlp(block.ln_2(x))
    y = last.ln_1(x)
    x = x[:, :1] + _attention(last, y[:, :1], y)  # (B, 1, D), the class token
    x = x + last.mlp(last.ln_2(x))
    return cast(Tensor, (visual.ln_post(x) @ visual.proj)[:, 0])


def _blocks(transformer: Transformer) -> list[ResidualAttentionBlock]:
    return [cast(ResidualAttentionBlock, block) for block in transformer.resblocks]


def _attention(block: ResidualAttentionBlock, query: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
    """query: (B, L', D); y: (B, L, D), what it looks at → (B, L', D)."""
    attention = block.attn
    head_width = attention.embed_dim // attention.num_heads
    q, k, v = (
        F.linear(x, attention.in_proj_weight[rows], attention.in_proj_bias[rows])
        .view(*x.shape[:2], attention.num_heads, head_width)
        .transpose(1, 2)  # (B, heads, L, D / heads)
        for x, rows in zip((query, y, y), _thirds(attention.embed_dim), strict=True)
    )
    x = F.scaled_dot_product_attention(q, k, v, mask)
    return cast(Tensor, attention.out_proj(x.transpose(1, 2).flatten(2)))


def _thirds(width: int) -> tuple[slice, slice, slice]:
    """Where the weights of queries, keys and values lie in those of all three."""
    return slice(width), slice(width, 2 * width), slice(2 * width, 3 * width)


# The engines ----------------------------------------------------------------------------------------------------------


def openvino_graph(tower: ImageTower | TextTower) -> openvino.Model:
    """The tower for OpenVINO, with the tower's own weights in memory."""
    openvino = imported("openvino")
    with _quiet(), without_telemetry():
        graph = openvino.convert_model(_recorded(tower))
    example, dynamic = tower.example()
    graph.reshape({tower.name: [-1 if i in dynamic else size for i, size in enumerate(example.shape)]})
    graph.input(0).get_tensor().set_names({tower.name})
    graph.output(0).get_tensor().set_names({f"{tower.name}_features"})
    return graph


def write_onnx(tower: ImageTower | TextTower, path: Path) -> None:
    """The tower as an ONNX file. Weights of more than 2 GB, which no such file can hold, lie beside it in ``.data``."""
    imported("onnx"), imported("onnxscript")
    size_bytes = sum(parameter.nbytes for parameter in tower.parameters())
    with _quiet():
        program = torch.onnx.export(
            _recorded(tower),
            dynamo=True,
            input_names=[tower.name],
            output_names=[f"{tower.name}_features"],
            dynamic_shapes=(tower.example()[1],),  # for the names of the dimensions
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=size_bytes > _LARGEST_ONNX)


def _recorded(tower: ImageTower | TextTower) -> torch.export.ExportedProgram:
    example, dynamic = tower.example()
    with torch.no_grad():
        return torch.export.export(tower.eval(), (example,), dynamic_shapes=(dynamic,))


def imported(name: str) -> Any:
    """An optional library. Raises MissingDependencyError with the extra that brings it."""
    import importlib

    try:
        with without_telemetry():
            return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependencyError(
            f"exporting needs {name}, which is not installed; pip install 'everyclip[export]'"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch and OpenVINO tell of their own inside: deprecations, and libraries that we do not use."""
    logger = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
