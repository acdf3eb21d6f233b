"""A model with known answers: words are directions, and a picture shows what its colours stand for."""

from __future__ import annotations

import hashlib
import io
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from clip import samples
from clip.moderation.moderator import Moderator
from clip.moderation.policy import Policy
from clip.moderation.views import Views, views_of
from clip.simple_tokenizer import SimpleTokenizer

WIDTH = 96
THINGS = {"gun": (200, 0, 0), "toy": (0, 200, 0), "beer": (0, 0, 200), "tree": (200, 200, 0), "museum": (0, 200, 200)}
BROKEN = (200, 0, 200)
"""A colour whose features are not finite."""


def direction(word: str) -> NDArray[np.float32]:
    """The same for the same word, and nearly orthogonal to every other."""
    seed = int.from_bytes(hashlib.sha256(word.encode()).digest()[:4], "little")
    drawn = np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)
    return drawn / np.linalg.norm(drawn)


class Model:
    """Pictures are nearer to each other than to any text, as they are with real models."""

    context_length, vocab_size, logit_scale = 77, 49408, np.float32(np.log(30.0))
    config = types.SimpleNamespace(embed_dim=WIDTH)

    def __init__(self) -> None:
        self.batches: list[int] = []
        self._tokenizer = SimpleTokenizer()

    def encode_image(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        self.batches.append(len(images))
        return images[:, :, 0, 0] + 0.7 * direction("all pictures")

    def encode_text(self, ids: NDArray[np.int32]) -> NDArray[np.float32]:
        rows = []
        for row in ids:
            text = self._tokenizer.decode([int(i) for i in row[1 : int(row.argmax())]])
            rows.append(np.sum([direction(word) for word in text.split()], axis=0))
        return np.stack(rows) + 0.5 * direction("all texts")


class Preprocess:
    """Gives what a picture shows instead of its pixels."""

    size = 4

    def __init__(self) -> None:
        self._known = {}
        for sample in samples.pictures():
            pixels = views_of(sample.image, Views.fast).views[0].pixels
            self._known[pixels.tobytes()] = np.sum([direction(word) for word in sample.label.split()], axis=0)

    def to_numpy(self, pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        shown = self._known.get(pixels.tobytes())
        if shown is None:
            flat = pixels.reshape(-1, 3).astype(int)
            shown = 0.2 * direction("colours")
            for word, colour in THINGS.items():
                shown = shown + float((np.abs(flat - colour).max(axis=1) < 8).mean()) * direction(word)
            if (np.abs(flat - BROKEN).max(axis=1) < 8).all():
                shown = np.full(WIDTH, np.nan, np.float32)
        return np.broadcast_to(shown.astype(np.float32)[:, None, None], (WIDTH, self.size, self.size))


@pytest.fixture(scope="session")
def preprocess() -> Preprocess:
    return Preprocess()


@pytest.fixture(scope="session")
def model() -> Model:
    return Model()


@pytest.fixture
def picture() -> Callable[..., bytes]:
    """A PNG that shows things, in columns of equal width."""

    def draw(*things: str | tuple[int, int, int], side: int = 64) -> bytes:
        pixels = np.full((side, side, 3), 255, np.uint8)
        for columns, thing in zip(np.array_split(np.arange(side), max(len(things), 1)), things, strict=False):
            pixels[:, columns] = THINGS.get(thing, (255, 255, 255)) if isinstance(thing, str) else thing
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    return draw


@pytest.fixture
def moderator_of(model: Model, preprocess: Preprocess) -> Callable[..., Moderator]:
    def build(policy: Policy, **options: Any) -> Moderator:
        options = {"views": Views.fast, "model_fingerprint": "m" * 64, **options}
        return Moderator(policy, model, preprocess, **options)  # type: ignore[arg-type]

    return build
