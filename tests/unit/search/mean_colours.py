"""A model with a known answer: the embedding of a picture says what colours it has where."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip.errors import ClipError
from clip.features import Encoded, Failure, OnError, normalized
from clip.images import read_pixels
from clip.preprocess import Preprocess
from clip.search.about import About
from clip.search.store import Store, open_store

EMBED_DIM = 12
PREPROCESS = Preprocess(size=8)


@dataclasses.dataclass
class MeanColours:
    """Counts what it is asked for."""

    name: str = "mean-colours"
    encoded: int = 0

    def encode(
        self, sources: Iterable[Any], *, batch_size: int = 32, on_error: OnError | None = None
    ) -> Iterator[Encoded[Any]]:
        pixels = list(sources)
        self.encoded += len(pixels)
        embeddings = normalized(np.stack([_quarters(one) for one in pixels]))
        good = [place for place, one in enumerate(pixels) if np.ptp(one, axis=(1, 2)).any()]
        for place in sorted({*range(len(pixels))} - {*good}):  # as a model may overflow on some picture
            assert on_error is not None
            on_error(Failure(place, pixels[place], ClipError(f"item {place}: its features are not finite")))
        if good:
            yield Encoded(good, [pixels[place] for place in good], embeddings[good])


def _quarters(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """(3, 8, 8) → (12,)"""
    quarters: NDArray[np.float32] = pixels.reshape(3, 2, 4, 2, 4).mean(axis=(2, 4)).ravel()
    return quarters


def embedding_of(path: Path) -> NDArray[np.float32]:
    """What the index has to have of a picture file."""
    pixels = PREPROCESS(read_pixels(path, shorter_side=PREPROCESS.size)).numpy()
    embedding: NDArray[np.float32] = normalized(_quarters(pixels)[None])[0]
    return embedding


def empty_index(folder: Path) -> Store:
    store = open_store(str(folder), embed_dim=EMBED_DIM)
    about = About(
        model="mean-colours",
        fingerprint="0" * 64,
        embed_dim=EMBED_DIM,
        preprocess=PREPROCESS.to_dict(),
        engine="torch",
        precision="fp32",
    )
    store.write_document("about", about.to_bytes())
    return store
