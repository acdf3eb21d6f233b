"""How well pictures fit texts, as published: CLIPScore and RefCLIPScore (Hessel et al. 2021).

The words ``A photo depicts`` before each text are part of the definition. So is precision: in half precision the
neighbours of a cosine of 0.3 are 0.0002 away and norms are worse, which is why the original code warns of its own
results with newer NumPy. Here the towers compute in fp32 if they were loaded so, and all after them is float64.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

from clip.errors import ConfigError, ImageError, ShapeError, TextTooLongError
from clip.features import AnyImage, Failure, OnError, encode_images, encode_texts
from clip.images import ImageSource, read_image

if TYPE_CHECKING:
    from clip.inference.loading import Model
    from clip.preprocess import Preprocess

__all__ = ["PREFIX", "WEIGHT", "Candidate", "Scored", "clip_score", "ranked", "ref_clip_score", "score_images"]

WEIGHT = 2.5
"""Stretches the cosines that CLIP ViT-B/32 gives, some 0 to 0.4, over 0 to 1 (section 3)."""

PREFIX = "A photo depicts"
"""Before each text, and each reference."""

_REMEMBERED_TEXTS = 10_000


def clip_score(image_features: ArrayLike, text_features: ArrayLike) -> NDArray[np.float64]:
    """2.5 · max(cos, 0) of each picture and its text: (N,), from 0 to 2.5.

    image_features, text_features: (N, E), of any norm; row i of one belongs to row i of the other. A single text (1, E)
    belongs to all. Raises ShapeError for other shapes, and for a row that has no direction (zero, or not finite).
    """
    images, texts = _unit(image_features, "image features"), _unit(text_features, "text features")
    if images.shape[1] != texts.shape[1] or len(texts) not in (1, len(images)):
        raise ShapeError(f"image features are {images.shape} and text features {texts.shape}; (N, E) twice is expected")
    cosines: NDArray[np.float64] = (images * texts).sum(axis=1)
    return WEIGHT * np.maximum(cosines, 0.0)


def ref_clip_score(
    image_features: ArrayLike, text_features: ArrayLike, reference_features: Sequence[ArrayLike]
) -> NDArray[np.float64]:
    """The harmonic mean of CLIPScore and max(cos, 0) of the text and the reference that is nearest to it: (N,).

    reference_features: for each picture (R, E) with R ≥ 1, texts that people wrote for it. For the rest see
    ``clip_score``. Zero where either is zero.
    """
    first = clip_score(image_features, text_features)
    if len(reference_features) != len(first):
        raise ShapeError(f"there are references for {len(reference_features)} pictures, and {len(first)} pictures")
    texts = np.broadcast_to(_unit(text_features, "text features"), (len(first), np.shape(text_features)[-1]))
    second = np.empty_like(first)
    for i, (text, references) in enumerate(zip(texts, reference_features, strict=True)):
        rows = _unit(references, f"references of picture {i}")
        if not len(rows) or rows.shape[1] != len(text):
            raise ShapeError(f"references of picture {i} are {rows.shape}; (R, {len(text)}) with R ≥ 1 is expected")
        second[i] = max((rows @ text).max(), 0.0)
    total = first + second
    return np.divide(2 * first * second, total, out=np.zeros_like(total), where=total > 0)


def _unit(features: ArrayLike, what: str) -> NDArray[np.float64]:
    rows = np.asarray(features, np.float64)
    if rows.ndim != 2:
        raise ShapeError(f"{what} are {rows.shape}; (N, E) is expected")
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    bad = ~(np.isfinite(norms) & (norms > 0))[:, 0]
    if bad.any():
        raise ShapeError(f"{what}: row {int(bad.argmax())} has norm {norms[bad.argmax(), 0]:g}, and so no direction")
    unit: NDArray[np.float64] = rows / norms
    return unit


# On pictures and texts ------------------------------------------------------------------------------------------------


class Candidate(NamedTuple):
    """A picture, and the text that it is held against."""

    image: AnyImage
    text: str
    references: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Scored:
    """One picture."""

    position: int
    """In the stream, from 0."""
    image: AnyImage
    """As it was passed in."""
    text: str
    clip_score: float
    ref_clip_score: float | None
    """None without references."""
    is_cut: bool
    """The text, or a reference, is longer than the context of the model; as in the original its end was left out."""

    @property
    def score(self) -> float:
        """The one that says more: RefCLIPScore where there are references."""
        return self.clip_score if self.ref_clip_score is None else self.ref_clip_score


def score_images(
    model: Model,
    preprocess: Preprocess,
    candidates: Iterable[Candidate],
    *,
    prefix: str = PREFIX,
    batch_size: int = 32,
    workers: int | None = None,
    on_error: OnError | None = None,
) -> Iterator[Scored]:
    """CLIPScore of each picture and its text, in order; RefCLIPScore where the candidate has references.

    model: load it in fp32. candidates: any iterable, read a few batches ahead. Files take the exact path, to the pixels
    that OpenAI's preprocessing gives; by the fast one scores would be 0.0001 away, and some 0.001.
    workers: threads that do so; by default a few more than there are processors.
    on_error: what to do with a picture that cannot be read, which is then left out; None raises its ImageError.
    """
    waiting: dict[int, tuple[int, Candidate]] = {}
    passed_on = itertools.count()
    report = on_error or _raise

    def images() -> Iterator[AnyImage]:
        for position, candidate, pixels in _read_ahead(preprocess, candidates, batch_size, workers):
            if isinstance(pixels, ImageError):
                report(Failure(position, candidate.image, pixels))
            else:
                waiting[next(passed_on)] = (position, candidate)
                yield pixels

    def on_failure(failure: Failure[Any]) -> None:
        position, candidate = waiting.pop(failure.position)
        report(Failure(position, candidate.image, failure.error))

    texts = _Texts(model, prefix)
    for batch in encode_images(model, preprocess, images(), batch_size=batch_size, on_error=on_failure):
        found = [waiting.pop(position) for position in batch.positions]
        texts.learn(text for _, candidate in found for text in (candidate.text, *candidate.references))
        for (position, candidate), embedding in zip(found, batch.embeddings, strict=True):
            image, text = embedding[None], texts.embeddings([candidate.text])
            references = texts.embeddings(candidate.references) if candidate.references else None
            yield Scored(
                position=position,
                image=candidate.image,
                text=candidate.text,
                clip_score=float(clip_score(image, text)[0]),
                ref_clip_score=None if references is None else float(ref_clip_score(image, text, [references])[0]),
                is_cut=texts.is_cut([candidate.text, *candidate.references]),
            )


def _raise(failure: Failure[Any]) -> None:
    raise failure.error


def _read_ahead(
    preprocess: Preprocess, candidates: Iterable[Candidate], ahead: int, workers: int | None
) -> Iterator[tuple[int, Candidate, AnyImage | ImageError]]:
    """Position, candidate, and what goes into the model or why there is nothing, in order."""
    pending: deque[tuple[int, Candidate, Future[AnyImage]]] = deque()
    numbered = enumerate(candidates)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="clip-decode")
    try:
        while True:
            for position, candidate in itertools.islice(numbered, ahead - len(pending)):
                if not candidate.text.strip() or not all(reference.strip() for reference in candidate.references):
                    raise ConfigError(f"candidate {position} has an empty text or reference; say what it should show")
                pending.append((position, candidate, pool.submit(_exactly, preprocess, candidate.image)))
            if not pending:
                return
            position, candidate, future = pending.popleft()
            try:
                yield position, candidate, future.result()
            except ImageError as error:
                yield position, candidate, error
    finally:
        pool.shutdown(cancel_futures=True)


def _exactly(preprocess: Preprocess, image: AnyImage) -> AnyImage:
    """The preprocessed image (3, S, S); what is one already is given back."""
    if isinstance(image, str | bytes | os.PathLike) or hasattr(image, "read"):
        return preprocess.to_numpy(read_image(cast(ImageSource, image)))
    if isinstance(image, Image.Image) or image.dtype == np.uint8:
        return preprocess.to_numpy(cast(Image.Image, image))
    return image


def ranked(scored: Iterable[Scored], *, keep: int | None = None) -> list[list[Scored]]:
    """The pictures of each text, best first; texts in the order in which they come. keep: how many of each text.

    Of pictures with the same score the one that came first is before the other. They are compared by RefCLIPScore where
    all pictures of the text have references, else by CLIPScore.
    """
    if keep is not None and keep < 1:
        raise ConfigError(f"keep is {keep}; it must be at least 1")
    groups: dict[str, list[Scored]] = {}
    for one in scored:
        groups.setdefault(one.text, []).append(one)
    return [_best_first(group)[:keep] for group in groups.values()]


def _best_first(group: list[Scored]) -> list[Scored]:
    have_references = all(one.ref_clip_score is not None for one in group)
    return sorted(group, key=lambda one: one.score if have_references else one.clip_score, reverse=True)


class _Texts:
    """Embeddings of texts behind the prefix; each is computed once, as long as they fit into memory."""

    def __init__(self, model: Model, prefix: str) -> None:
        self._model = model
        self._before = f"{prefix.rstrip()} " if prefix.strip() else ""
        self._embeddings: dict[str, NDArray[np.float32]] = {}
        self._cut: set[str] = set()

    def learn(self, texts: Iterable[str]) -> None:
        """Makes ``embeddings`` know these; may forget others."""
        wanted = list(dict.fromkeys(texts))
        if len(self._embeddings) > _REMEMBERED_TEXTS:
            self._embeddings.clear()
            self._cut.clear()
        new = [text for text in wanted if text not in self._embeddings]
        too_long: list[str] = []

        def on_error(failure: Failure[str]) -> None:
            if not isinstance(failure.error, TextTooLongError):
                raise failure.error
            too_long.append(new[failure.position])

        self._encode(new, truncate=False, on_error=on_error)
        self._encode(too_long, truncate=True, on_error=None)
        self._cut.update(too_long)

    def _encode(self, texts: list[str], *, truncate: bool, on_error: OnError | None) -> None:
        prompts = (self._before + text for text in texts)
        for batch in encode_texts(self._model, prompts, truncate=truncate, on_error=on_error):
            for position, embedding in zip(batch.positions, batch.embeddings, strict=True):
                self._embeddings[texts[position]] = embedding

    def embeddings(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """(N, E)"""
        return np.stack([self._embeddings[text] for text in texts])

    def is_cut(self, texts: Sequence[str]) -> bool:
        return not self._cut.isdisjoint(texts)
