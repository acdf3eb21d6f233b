"""Streams of images or texts → unit-norm embeddings, in batches.

Both functions are generators: memory is bounded by a few batches however long the stream, order is kept, and an item
that cannot be encoded is reported with its position and left out, without shifting the others. Pictures are read and
preprocessed in threads ahead of the model; texts of similar length are encoded together.

Embeddings are NumPy arrays, whatever computed them; torch is imported for models of torch alone.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar, overload

import numpy as np
from numpy.typing import NDArray

from clip.errors import ClipError, ConfigError, ImageError, ShapeError, TextTooLongError
from clip.simple_tokenizer import token_ids

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor
    from typing_extensions import TypeIs

    from clip.images import ImageSource
    from clip.inference.loading import Model
    from clip.inference.numpy_text import NumpyText
    from clip.preprocess import Preprocess

    AnyImage = ImageSource | Image.Image | NDArray[Any] | Tensor
else:
    AnyImage = Any
"""A path, the bytes of a file, an open file, a PIL image, pixels (H, W, 3) uint8, or a preprocessed image (3, S, S) as
an array of float32 or a tensor."""

__all__ = ["AnyImage", "Encoded", "Failure", "OnError", "as_array", "encode_images", "encode_texts", "normalized"]

Source = TypeVar("Source")

_TEXT_WINDOW = 16
"""Batches of texts that are sorted together: enough that a batch of captions carries almost no padding."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Encoded(Generic[Source]):
    """What one pass through a tower gave: row i of ``embeddings`` belongs to item i of the two lists."""

    positions: list[int]
    """Places in the stream, counted from 0 and ascending; those of failures are left out."""
    sources: list[Source]
    """The items, as they were passed in."""
    embeddings: NDArray[np.float32]
    """(B, E), unit norm."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Failure(Generic[Source]):
    """An item that has no embedding."""

    position: int
    source: Source
    error: ClipError


OnError = Callable[[Failure[Any]], None]
"""Told of each failure in the order of the stream, before the batch that follows it; may raise to end the stream."""


@overload
def normalized(features: NDArray[Any]) -> NDArray[np.float32]: ...
@overload
def normalized(features: Tensor) -> Tensor: ...
def normalized(features: NDArray[Any] | Tensor) -> NDArray[np.float32] | Tensor:
    """Features (B, E) of any norm and precision → embeddings (B, E), float32, unit norm.

    An array gives an array; a tensor gives a tensor, through which gradients flow.
    """
    if _is_tensor(features):
        import torch

        with torch.autocast(features.device.type, enabled=False):
            return torch.nn.functional.normalize(features.float(), dim=-1)
    values = np.asarray(features, np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # a row that is not finite stays so, and is the caller's to tell
        embeddings: NDArray[np.float32] = values / np.linalg.norm(values, axis=-1, keepdims=True).clip(1e-12)
    return embeddings


def as_array(features: NDArray[Any] | Tensor) -> NDArray[np.float32]:
    """Features of any precision, on any device, as float32 in the memory of the host."""
    if _is_tensor(features):
        return features.detach().float().cpu().numpy()
    return np.asarray(features, np.float32)


def _is_tensor(value: object) -> TypeIs[Tensor]:
    torch = sys.modules.get("torch")  # who has a tensor has imported it
    return torch is not None and isinstance(value, torch.Tensor)


def encode_images(
    model: Model,
    preprocess: Preprocess,
    sources: Iterable[AnyImage],
    *,
    batch_size: int = 32,
    workers: int | None = None,
    on_error: OnError | None = None,
) -> Iterator[Encoded[AnyImage]]:
    """Embeddings of images in batches, the files of the next batches being decoded while the model works on this one.

    sources: any iterable, read only ``2 * batch_size`` ahead. Files take the fast path of ``preprocess`` and are turned
    upright; PIL images take its exact path.
    workers: threads that decode; by default one per processor that this process may use.
    on_error: what to do with an image that cannot be read; None raises its ImageError.
    """
    _check(model, batch_size)
    if workers is not None and workers < 1:
        raise ConfigError(f"workers is {workers}; it must be at least 1")

    def batches() -> Iterator[Encoded[AnyImage]]:
        form = _form_of(model)
        prepare = functools.partial(form.prepare, preprocess)
        prepared = _prepared(prepare, preprocess.size, sources, workers or _processors(), 2 * batch_size, on_error)
        try:
            while batch := list(itertools.islice(prepared, batch_size)):
                features = form.compute(model.encode_image, np.stack([pixels for _, _, pixels in batch]))
                items = [(position, source) for position, source, _ in batch]
                yield from _finite(items, normalized(features), on_error)
        finally:
            prepared.close()

    return batches()


def encode_texts(
    model: Model | NumpyText,
    texts: Iterable[str],
    *,
    batch_size: int = 256,
    truncate: bool = False,
    special_words: bool = False,
    on_error: OnError | None = None,
) -> Iterator[Encoded[str]]:
    """Embeddings of texts in batches. The texts of a window of 16 batches are encoded in order of their length, so that
    nothing is computed for padding, and given back in theirs.

    truncate: cut what is longer than the context length; otherwise a long text is a TextTooLongError.
    special_words: False treats ``<|endoftext|>`` in a text as ordinary characters, so that no text can hide its end.
    on_error: what to do with a text that is too long; None raises.
    """
    _check(model, batch_size)

    def batches() -> Iterator[Encoded[str]]:
        form = _form_of(model)
        numbered = enumerate(texts)
        while window := list(itertools.islice(numbered, _TEXT_WINDOW * batch_size)):
            items, ids = _tokenized(window, model.context_length, truncate, special_words, on_error)
            if not items:
                continue
            if ids.max() >= model.vocab_size:
                raise ConfigError(
                    f"the model knows {model.vocab_size} tokens and was trained with another tokenizer than this one, "
                    f"which gives id {ids.max()}; pass ids of its own to model.encode_text"
                )
            order = np.argsort(ids.argmax(axis=1), kind="stable")  # the end token is the largest id
            features = np.empty((len(items), model.config.embed_dim), np.float32)
            for rows in np.split(order, range(batch_size, len(order), batch_size)):
                features[rows] = form.compute(model.encode_text, ids[rows])
            for first in range(0, len(items), batch_size):
                last = first + batch_size
                yield from _finite(items[first:last], normalized(features[first:last]), on_error)

    return batches()


def _check(model: Model | NumpyText, batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"batch_size is {batch_size}; it must be at least 1")
    if getattr(model, "training", False):  # batch statistics would make an embedding depend on its neighbours
        raise ConfigError("the model is in training mode; call model.eval() before encoding")


class _Form(NamedTuple):
    """What differs between a model of torch and one of arrays; all else is the same for both."""

    prepare: Callable[[Preprocess, Any], NDArray[np.float32]]
    """Pixels or a PIL image → the preprocessed image."""
    compute: Callable[[Callable[[Any], Any], NDArray[Any]], NDArray[np.float32]]
    """A tower and a batch → the features of the batch."""


def _form_of(model: Model | NumpyText) -> _Form:
    scale: object = getattr(model, "logit_scale", None)
    if not _is_tensor(scale):
        return _Form(lambda preprocess, image: preprocess.to_numpy(image), lambda tower, batch: as_array(tower(batch)))
    import torch

    device = scale.device

    def compute(tower: Callable[[Tensor], Tensor], batch: NDArray[Any]) -> NDArray[np.float32]:
        with torch.inference_mode():
            return as_array(tower(torch.from_numpy(batch).to(device)))

    # Torch's filter takes files; it is several times as fast as Pillow's, and the process has torch anyway.
    return _Form(lambda preprocess, image: preprocess(image).numpy(), compute)


def _finite(
    items: list[tuple[int, Source]], embeddings: NDArray[np.float32], on_error: OnError | None
) -> Iterator[Encoded[Source]]:
    """The batch without the rows that half precision drove out of range: NaN compares with everything as False."""
    good: list[bool] = np.logical_and.reduce(np.isfinite(embeddings), axis=1).tolist()
    if not all(good):
        for (position, source), is_good in zip(items, good, strict=True):
            if not is_good:
                error = ClipError(f"item {position}: its features are not finite; load the model with precision='fp32'")
                _report(Failure(position, source, error), on_error)
        items = list(itertools.compress(items, good))
        embeddings = embeddings[good]
    if items:
        yield Encoded([position for position, _ in items], [source for _, source in items], embeddings)


def _report(failure: Failure[Any], on_error: OnError | None) -> None:
    if on_error is None:
        raise failure.error
    on_error(failure)


# Images ---------------------------------------------------------------------------------------------------------------


def _prepared(
    prepare: Callable[[Any], NDArray[np.float32]],
    size: int,
    sources: Iterable[AnyImage],
    workers: int,
    ahead: int,
    on_error: OnError | None,
) -> Generator[tuple[int, AnyImage, NDArray[np.float32]]]:
    """Position, source and preprocessed image (3, S, S) in order; up to ``ahead`` of them are in work or wait."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="clip-decode")
    pending: deque[tuple[int, AnyImage, Future[NDArray[np.float32]]]] = deque()
    numbered = enumerate(sources)
    try:
        while True:
            for position, source in itertools.islice(numbered, ahead - len(pending)):
                pending.append((position, source, pool.submit(_pixels, prepare, size, source)))
            if not pending:
                return
            position, source, future = pending.popleft()
            try:
                pixels = future.result()
            except ImageError as error:
                _report(Failure(position, source, error), on_error)
            else:
                yield position, source, pixels
    finally:
        pool.shutdown(cancel_futures=True)


def _pixels(prepare: Callable[[Any], NDArray[np.float32]], size: int, source: AnyImage) -> NDArray[np.float32]:
    if _is_tensor(source) or (isinstance(source, np.ndarray) and source.dtype.kind == "f"):
        if source.shape != (3, size, size):
            raise ShapeError(
                f"an image has shape {tuple(source.shape)}; this model takes (3, {size}, {size}), as its preprocess "
                "gives it"
            )
        return as_array(source)
    from PIL import Image  # decoders, which texts do without

    from clip.images import read_pixels

    if isinstance(source, Image.Image | np.ndarray):
        return prepare(source)
    return prepare(read_pixels(source, shorter_side=size))


def _processors() -> int:
    """How many processors this process may use, which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# Texts ----------------------------------------------------------------------------------------------------------------


def _tokenized(
    items: list[tuple[int, str]], context_length: int, truncate: bool, special_words: bool, on_error: OnError | None
) -> tuple[list[tuple[int, str]], NDArray[np.int32]]:
    """The texts that fit, and their ids (n, context_length)."""

    def ids(texts: list[str]) -> NDArray[np.int32]:
        return token_ids(texts, context_length, truncate, special_words=special_words)

    try:
        return items, ids([text for _, text in items])
    except TextTooLongError:  # rare: look for the culprits one by one
        fitting = []
        for position, text in items:
            try:
                ids([text])
            except TextTooLongError as error:
                message = str(error).replace("texts[0]", f"text {position}", 1)
                _report(Failure(position, text, TextTooLongError(message)), on_error)
            else:
                fitting.append((position, text))
        return fitting, ids([text for _, text in fitting])
