"""The model of an index: loaded when it is first needed, and only the half of it that is needed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clip.clip import available_models
from clip.errors import TextTooLongError
from clip.features import AnyImage, Encoded, OnError, encode_images, encode_texts
from clip.inference.exported import is_exported
from clip.inference.loading import fingerprint_of, load_for_inference, runtime_of
from clip.inference.numpy_text import NumpyText
from clip.search.about import About

if TYPE_CHECKING:
    from clip.inference.loading import Model
    from clip.inference.precision import Precision
    from clip.preprocess import Preprocess

__all__ = ["Encoder", "Loader"]

Loader = Callable[[str, str | None, "Precision"], "tuple[Model, Preprocess]"]
"""``load_for_inference``, or something that does the same and shows a bar meanwhile: name, device, precision."""


class Encoder:
    """Pictures and texts → embeddings of unit norm, by a model that is named and not yet loaded.

    model: what ``load_for_inference`` takes. A path is remembered as an absolute one.
    load: does the loading.
    """

    def __init__(
        self, model: str, *, device: str | None = None, precision: Precision = "auto", load: Loader | None = None
    ) -> None:
        is_path = model not in available_models() and os.path.exists(model)  # noqa: PTH110
        self.name = os.path.abspath(model) if is_path else model  # noqa: PTH100
        self._device, self._precision = device, precision
        self._load = load or _load
        self._expected: tuple[About, str] | None = None
        self._seen = b""

    def expect(self, about: About, address: str, *, seen: bytes = b"") -> None:
        """From now on a model that does not belong to the index at ``address`` raises ConfigError when it is used.

        seen: what ``seen`` was when it was found to belong; a file that has not changed since is not read again.
        """
        self._expected, self._seen = (about, address), seen

    @property
    def is_loaded(self) -> bool:
        return "_loaded" in self.__dict__

    @cached_property
    def _loaded(self) -> tuple[Model, Preprocess]:
        self._check_weights()
        model, preprocess = self._load(self.name, self._device, self._precision)
        if self._expected:
            about, address = self._expected
            about.check_preprocess(preprocess.to_dict(), address)
        return model, preprocess

    def _check_weights(self) -> None:
        if self._expected and not (self._seen and self._seen == self.seen):
            about, address = self._expected
            about.check_weights(self.name, self.fingerprint, address)

    @cached_property
    def seen(self) -> bytes:
        """What tells that the file of the model is still the same, unread; empty where it is not a single file."""
        from clip.clip import find

        path = find(self.name, None)
        if not path.is_file():
            return b""
        state = path.stat()
        return json.dumps([str(path.resolve()), state.st_size, state.st_mtime_ns]).encode()

    @property
    def model(self) -> Model:
        return self._loaded[0]

    @property
    def preprocess(self) -> Preprocess:
        return self._loaded[1]

    @cached_property
    def fingerprint(self) -> str:
        """Of the weights; known without loading the model, but all of its file is read."""
        return fingerprint_of(self.name)

    @cached_property
    def about(self) -> About:
        """What an index of its embeddings says of it. Loads the model."""
        runtime = runtime_of(self.model)
        return About(
            model=self.name,
            fingerprint=self.fingerprint,
            embed_dim=self.model.config.embed_dim,
            preprocess=self.preprocess.to_dict(),
            engine=runtime.engine,
            precision=runtime.precision,
        )

    @property
    def _text_model(self) -> Model | NumpyText:
        """The model, unless it is not loaded and NumPy can read its text tower sooner than torch is imported."""
        if self.is_loaded or self._device is not None or is_exported(self.name):
            return self.model
        return self._text_tower or self.model

    @cached_property
    def _text_tower(self) -> NumpyText | None:
        self._check_weights()
        return NumpyText.open(self.name)

    def texts(self, texts: Sequence[str], *, truncate: bool = False) -> NDArray[np.float32]:
        """(T, E). Raises TextTooLongError, unless long texts are to be cut."""
        model = self._text_model
        try:
            batches = [batch.embeddings for batch in encode_texts(model, texts, truncate=truncate)]
        except TextTooLongError as error:
            raise TextTooLongError(f"{error}; a query is searched for as a whole, so shorten it") from error
        return np.concatenate(batches) if batches else np.empty((0, model.config.embed_dim), np.float32)

    def images(self, sources: Iterable[AnyImage], *, on_error: OnError | None = None) -> NDArray[np.float32]:
        """(N, E) of the pictures that can be read; without ``on_error`` the first that cannot raises its ImageError."""
        batches = [batch.embeddings for batch in self.encode(sources, on_error=on_error)]
        return np.concatenate(batches) if batches else np.empty((0, self.model.config.embed_dim), np.float32)

    def encode(
        self, sources: Iterable[AnyImage], *, batch_size: int = 32, on_error: OnError | None = None
    ) -> Iterator[Encoded[Any]]:
        """``features.encode_images`` with this model: files, pixels, or what ``prepare`` made of them."""
        return encode_images(self.model, self.preprocess, sources, batch_size=batch_size, on_error=on_error)


def _load(name: str, device: str | None, precision: Precision) -> tuple[Model, Preprocess]:
    return load_for_inference(name, device=device, precision=precision)
