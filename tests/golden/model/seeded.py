"""Weights, images and texts from a seed, the same to the bit wherever numpy runs, so that goldens store no weights.

Only the raw stream of PCG64 is used, which numpy promises never to change (its normal variates may change). Needs
nothing but numpy, so that the reference environment and the tests read this one file.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]

IMAGE_SEED, TEXT_SEED = 1, 2

# Sizes by the names of OpenAI's constructor, in its order. "heads" and "mlp" only where they are not OpenAI's rule.
CASES: dict[str, dict[str, object]] = {
    "tiny ViT": {"sizes": (32, 32, 3, 128, 8, 24, 96, 64, 1, 3)},
    "tiny ResNet": {"sizes": (32, 64, (2, 1, 2, 1), 8, None, 24, 96, 64, 1, 2)},
    # Heads of width 80 and an MLP of 4.9231 times the width, as in LAION's H/14 and bigG/14; GELU.
    "tiny LAION": {"sizes": (48, 56, 3, 240, 14, 24, 96, 128, 2, 3), "heads": 3, "mlp": 1181, "gelu": True},
    "ViT-B/32": {"sizes": (512, 224, 12, 768, 32, 77, 49408, 512, 8, 12)},
    "RN50": {"sizes": (1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 8, 12)},
}


def uniform(seed: int, name: str, shape: tuple[int, ...]) -> Array:
    """Numbers of mean 0 and deviation 1, evenly spread between ±√3: each 64-bit draw gives four of 16 bits."""
    count = int(np.prod(shape))
    stream = np.random.PCG64([seed, zlib.crc32(name.encode())])
    words = np.atleast_1d(stream.random_raw(-(-count // 4))).astype("<u8", copy=False).view("<i2")[:count]
    x = words.astype(np.float32)
    x += np.float32(0.5)
    x *= np.float32(3**0.5 / 32768)
    return x.reshape(shape)


def weight(seed: int, name: str, shape: tuple[int, ...]) -> NDArray[np.generic]:
    """One tensor of a state dict, of a size that keeps activations near those of trained models."""
    if name.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    if name == "logit_scale":
        return np.full(shape, np.log(100), np.float32)
    x = uniform(seed, name, shape)
    if name.endswith("running_var"):
        return 1 + 0.25 * x  # at least 0.56
    if name.endswith("running_mean"):
        return 0.2 * x
    if name.endswith("bias"):
        return 0.1 * x
    if len(shape) == 1 and name.endswith("weight"):  # normalisations
        return (0.5 if "bn3" in name or "downsample" in name else 1) * (1 + 0.2 * x)
    if name == "token_embedding.weight":
        return 0.5 * x
    if name.endswith("embedding"):
        return 0.25 * x
    fan_in = shape[0] if name.endswith("proj") or name == "text_projection" else int(np.prod(shape[1:]))
    gain = 2.0 if "in_proj" in name else 1.4 if len(shape) == 4 else 1.0
    x *= np.float32(gain * fan_in**-0.5)
    return x


def weights(shapes: Mapping[str, tuple[int, ...]], seed: int = 0) -> dict[str, NDArray[np.generic]]:
    """A state dict for these shapes."""
    return {name: weight(seed, name, tuple(shape)) for name, shape in shapes.items()}


def images(count: int, resolution: int) -> Array:
    """(count, 3, resolution, resolution): coarse patches under fine grain, so that images differ as pictures do."""
    coarse = 2 * uniform(IMAGE_SEED, "coarse", (count, 3, 4, 4))
    side = -(-resolution // 4)
    blown = coarse.repeat(side, axis=2).repeat(side, axis=3)[:, :, :resolution, :resolution]
    return blown + np.float32(0.3) * uniform(IMAGE_SEED, "grain", (count, 3, resolution, resolution))


def texts(count: int, context_length: int, vocab_size: int) -> NDArray[np.int32]:
    """(count, context_length) token ids: start, words, end (the largest id), zeros; the last text fills its row."""
    ids = np.zeros((count, context_length), np.int32)
    for row in range(count):
        length = context_length if row == count - 1 else min(context_length, 7 + 3 * row)
        words = np.random.PCG64([TEXT_SEED, row]).random_raw(length - 2) % (vocab_size - 2)
        ids[row, :length] = [vocab_size - 2, *words, vocab_size - 1]
    return ids
