"""The text tower in NumPy: a query gets its features in less time than ``import torch`` takes.

Weights stay in the mapped file; of the table of tokens only the rows of the text are read, and each block becomes
float32 when it is first used. Results are those of the tower of torch in fp32, up to rounding.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip.checkpoints.description import TOKENIZER
from clip.checkpoints.mapped import MappedCheckpoint, map_checkpoint
from clip.clip import find_here
from clip.config import Activation, CLIPConfig
from clip.errors import ConfigError, ShapeError

__all__ = ["NumpyText"]

Array = NDArray[np.float32]

_EPSILON = 1e-5
"""Of torch's LayerNorm."""


class NumpyText:
    """The text half of a model, for ``features.encode_texts``. Takes and gives NumPy arrays."""

    def __init__(self, checkpoint: MappedCheckpoint) -> None:
        """checkpoint: must have all tensors of the text tower, as ``open`` makes sure."""
        self.config: CLIPConfig = checkpoint.config
        self.context_length, self.vocab_size = self.config.context_length, self.config.vocab_size
        self._tensors = checkpoint.tensors
        self._activate = _ACTIVATIONS[self.config.activation]

    @classmethod
    def open(cls, name: str | os.PathLike[str], *, activation: Activation | None = None) -> NumpyText | None:
        """The text tower of a model on this machine, or None where its weights cannot be read without torch.

        name: what ``clip.load`` takes; nothing is fetched. None are models of transformers' layout, and exported ones.
            Of what is no sound checkpoint ``load_for_inference`` says what is wrong.
        activation: as in ``clip.load``.
        """
        path = find_here(name)
        checkpoint = map_checkpoint(path, activation=activation) if path else None
        if checkpoint is None or checkpoint.description.tokenizer not in (TOKENIZER, None):
            return None
        return cls(checkpoint) if _is_whole(checkpoint) else None

    def encode_text(self, text: NDArray[np.integer[Any]]) -> Array:
        """text: (B, L) token ids, as ``clip.tokenize`` gives them → text features (B, E), of any norm.

        Read at the end token, the largest id of the row. Nothing behind it has any influence, so nothing behind it is
        computed: the tokens of all texts stand in one matrix of as many rows.
        """
        text = np.asarray(text)
        if text.ndim != 2 or not 0 < text.shape[1] <= self.context_length or text.dtype.kind not in "iu":
            raise ShapeError(
                f"text has shape {text.shape} of {text.dtype}; ids (batch, up to {self.context_length}) are expected"
            )
        if text.size and (text.min() < 0 or text.max() >= self.vocab_size):
            raise ConfigError(f"token ids are {text.min()} to {text.max()}; the model knows 0 to {self.vocab_size - 1}")
        lengths = text.argmax(axis=1) + 1
        is_token = np.arange(text.shape[1]) < lengths[:, None]
        ends = np.cumsum(lengths)
        # Texts of one length attend together: for each length, which rows their tokens are, (texts, length).
        groups = [
            (ends[lengths == length] - length)[:, None] + np.arange(length) for length in sorted(set(lengths.tolist()))
        ]
        x = self._tensors["token_embedding.weight"].numbers(text[is_token])  # (tokens, D)
        x = x + self._positions[np.nonzero(is_token)[1]]
        for layer in range(self.config.transformer_layers):
            x = self._block(layer, x, groups)
        return self._normalised("ln_final", x[ends - 1]) @ self._weight("text_projection")

    def _block(self, layer: int, x: Array, groups: list[NDArray[np.intp]]) -> Array:
        name = f"transformer.resblocks.{layer}"
        y = self._normalised(f"{name}.ln_1", x)
        y = self._attention(self._linear(f"{name}.attn.in_proj_", y), groups)
        x = x + self._linear(f"{name}.attn.out_proj.", y)
        y = self._linear(f"{name}.mlp.c_fc.", self._normalised(f"{name}.ln_2", x))
        return x + self._linear(f"{name}.mlp.c_proj.", self._activate(y))

    def _attention(self, projected: Array, groups: list[NDArray[np.intp]]) -> Array:
        """projected: (tokens, 3 D), queries, keys and values → (tokens, D)."""
        width, heads = self.config.transformer_width, self.config.transformer_heads
        result = np.empty((len(projected), width), np.float32)
        for rows in groups:
            texts, length = rows.shape
            q, k, v = projected[rows].reshape(texts, length, 3, heads, -1).transpose(2, 0, 3, 1, 4)  # (B, heads, L, d)
            scores = q @ k.swapaxes(2, 3) * np.float32((width // heads) ** -0.5)
            scores[..., np.triu(np.ones((length, length), bool), 1)] = -np.inf
            weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
            weights /= weights.sum(axis=-1, keepdims=True)
            result[rows] = (weights @ v).transpose(0, 2, 1, 3).reshape(texts, length, width)
        return result

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self._weight(f"{name}weight").T + self._weight(f"{name}bias")

    def _normalised(self, name: str, x: Array) -> Array:
        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(_EPSILON))
        return x * self._weight(f"{name}.weight") + self._weight(f"{name}.bias")

    @property
    def _positions(self) -> Array:
        return self._weight("positional_embedding")

    @functools.cached_property
    def _weight(self) -> Callable[[str], Array]:
        # Kept: what is asked for again, in a program that answers many queries, is converted once.
        return functools.cache(lambda name: self._tensors[name].numbers())


def _is_whole(checkpoint: MappedCheckpoint) -> bool:
    """Whether all tensors of the text tower are there, floating-point numbers, and of the right shape."""
    return all(
        key in checkpoint.tensors
        and checkpoint.tensors[key].shape == shape
        and "float" in checkpoint.tensors[key].dtype
        for key, shape in _shapes(checkpoint.config).items()
    )


def _shapes(config: CLIPConfig) -> dict[str, tuple[int, ...]]:
    width, inner = config.transformer_width, config.transformer_mlp_width
    block = {
        **{"ln_1.weight": (width,), "ln_1.bias": (width,), "ln_2.weight": (width,), "ln_2.bias": (width,)},
        **{"attn.in_proj_weight": (3 * width, width), "attn.in_proj_bias": (3 * width,)},
        **{"attn.out_proj.weight": (width, width), "attn.out_proj.bias": (width,)},
        **{"mlp.c_fc.weight": (inner, width), "mlp.c_fc.bias": (inner,)},
        **{"mlp.c_proj.weight": (width, inner), "mlp.c_proj.bias": (width,)},
    }
    return {
        "token_embedding.weight": (config.vocab_size, width),
        "positional_embedding": (config.context_length, width),
        **{"ln_final.weight": (width,), "ln_final.bias": (width,), "text_projection": (width, config.embed_dim)},
        **{
            f"transformer.resblocks.{layer}.{key}": shape
            for layer in range(config.transformer_layers)
            for key, shape in block.items()
        },
    }


# Activations ----------------------------------------------------------------------------------------------------------


def _quick_gelu(x: Array) -> Array:
    with np.errstate(over="ignore"):  # of numbers below -50, whose result is 0 as it should be
        y: Array = x / (1 + np.exp(np.float32(-1.702) * x))
    return y


_STEPS, _RANGE = 1024, 6
"""The normal distribution function is interpolated between so many points per unit, up to where it is 1 ± 1e-9. The
error of ``_gelu`` is then below 4e-8, less than half a unit in the last place of 1."""


@functools.cache
def _normal_distribution() -> tuple[Array, Array]:
    """Its values at the points, and what is added up to the next."""
    points = np.arange(-_RANGE * _STEPS, _RANGE * _STEPS + 2) / _STEPS
    values = np.array([0.5 * math.erfc(-point / math.sqrt(2)) for point in points.tolist()])
    return values[:-1].astype(np.float32), np.diff(values).astype(np.float32)


def _gelu(x: Array) -> Array:
    values, increments = _normal_distribution()
    place = x.clip(-_RANGE, _RANGE) * np.float32(_STEPS)  # exact, and its distance to the point too
    point = np.floor(place)
    index = point.astype(np.int32) + _RANGE * _STEPS
    return x * (values[index] + (place - point) * increments[index])


_ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {"quick_gelu": _quick_gelu, "gelu": _gelu}
