"""Zero-shot classification (Radford et al. 2021, section 3.1): which of these names fits a picture best?

Each class is the mean of the text embeddings of its prompts; a picture goes to the class with the largest cosine.
``ZeroShotClassifier`` embeds the classes once, then answers for pictures, files or embeddings that are at hand.

What the probabilities mean: how the model divides one certainty between *the given names*. They sum to one whether or
not anything named is in the picture. ``background`` prompts, which compete with the names, and ``reject_below`` let a
classifier answer "none of these"; neither is a probability of presence, and both want a try on pictures like yours.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clip.errors import ConfigError, ShapeError, TextTooLongError
from clip.features import AnyImage, Encoded, Failure, OnError, as_array, encode_images, encode_texts, normalized
from clip.preprocess import Preprocess
from clip.prompts import DEFAULT_TEMPLATES, checked_classes, checked_templates, fill
from clip.simple_tokenizer import default_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

    from clip.inference.loading import Model

__all__ = ["Classification", "Scores", "ZeroShotClassifier", "embed_prompts"]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Scores:
    """Of B images against K classes, float32."""

    cosines: NDArray[np.float32]
    """(B, K), from -1 to 1; what to threshold for "is it there at all?", class by class."""
    probabilities: NDArray[np.float32]
    """(B, K), softmax of the cosines at the model's logit scale; with ``background``, a row sums to one."""
    background: NDArray[np.float32]
    """(B,), the share of the background prompts; zeros where there are none."""


@dataclasses.dataclass(frozen=True, slots=True)
class Classification:
    """Of one image: the best classes first."""

    position: int
    """Place of the image in the stream, counted from 0."""
    source: AnyImage
    """The image as it was passed in."""
    labels: tuple[str, ...]
    probabilities: tuple[float, ...]
    cosines: tuple[float, ...]
    background: float
    """Share of the background prompts; 0 where there are none."""
    is_rejected: bool
    """Whether the answer is "none of these": the best probability is too small, or the background's larger."""

    @property
    def label(self) -> str | None:
        """The best class, or None if it is rejected."""
        return None if self.is_rejected else self.labels[0]


def embed_prompts(model: Model, prompts: Sequence[str], *, batch_size: int = 256) -> NDArray[np.float32]:
    """(len(prompts), E), unit norm. Raises TextTooLongError if one does not fit."""

    def explain(failure: Failure[str]) -> None:
        if not isinstance(failure.error, TextTooLongError):
            raise failure.error
        count = len(default_tokenizer().encode(failure.source, special_words=False)) + 2
        raise TextTooLongError(
            f"the prompt {failure.source!r} has {count} tokens with start and end, the context length is "
            f"{model.context_length}; shorten the class name or the template"
        )

    batches = encode_texts(model, prompts, batch_size=batch_size, on_error=explain)
    empty = np.empty((0, model.config.embed_dim), np.float32)  # there may be no prompts
    return np.concatenate([empty, *(batch.embeddings for batch in batches)])


class ZeroShotClassifier:
    """Sorts pictures into classes that are given by their names.

    class_names: K names; a sequence of strings is one class with synonyms, called by the first.
    templates: strings with ``{}``; each class is the mean over all of them (ensembling, section 3.1.4).
    preprocess: needed for pictures and files; not for embeddings.
    background: prompts for what is none of the classes, such as ``prompts.BACKGROUND``.
    Raises ConfigError for duplicate or empty names, templates without ``{}`` and a lone class without background,
    TextTooLongError for a name that does not fit.
    """

    def __init__(
        self,
        model: Model,
        class_names: Sequence[str | Sequence[str]],
        templates: Sequence[str] = DEFAULT_TEMPLATES,
        *,
        preprocess: Preprocess | None = None,
        background: Sequence[str] = (),
    ) -> None:
        self.model = model
        self.preprocess = preprocess
        self.templates = checked_templates(templates)
        self.background = tuple(background)
        self._background_embeddings = embed_prompts(model, self.background)  # (G, E)
        self._sums: dict[str, NDArray[np.float32]] = {}  # name → sum of the embeddings of its prompts, (E,)
        self._set_classes(class_names)

    def with_classes(self, class_names: Sequence[str | Sequence[str]]) -> ZeroShotClassifier:
        """A classifier for other classes, otherwise the same; names that both have are not encoded again."""
        other = copy.copy(self)
        other._set_classes(class_names)
        return other

    def _set_classes(self, class_names: Sequence[str | Sequence[str]]) -> None:
        classes = checked_classes(class_names, self.background)
        names = [name for synonyms in classes for name in synonyms]
        new = [name for name in names if name not in self._sums]
        prompts = [fill(template, name) for name in new for template in self.templates]
        embeddings = embed_prompts(self.model, prompts)
        by_name = embeddings.reshape(len(new), len(self.templates), embeddings.shape[1]).sum(axis=1)  # (new, E)
        known = {**self._sums, **dict(zip(new, by_name, strict=True))}
        self._sums = {name: known[name] for name in names}  # no others, or a server's memory would grow with requests
        self.class_names = tuple(synonyms[0] for synonyms in classes)
        self.class_embeddings = normalized(
            np.stack([np.sum([known[name] for name in synonyms], axis=0) for synonyms in classes])
        )
        """(K, E) float32, unit norm."""

    def scores(self, image_embeddings: NDArray[Any] | Tensor) -> Scores:
        """Cosines and probabilities of every class. image_embeddings: (B, E), of any norm, precision and device."""
        embed_dim = self.class_embeddings.shape[1]
        if image_embeddings.ndim != 2 or image_embeddings.shape[1] != embed_dim:
            raise ShapeError(
                f"embeddings have shape {tuple(image_embeddings.shape)}; (images, {embed_dim}) is expected"
            )
        texts = np.concatenate([self.class_embeddings, self._background_embeddings])  # (K + G, E)
        cosines = normalized(as_array(image_embeddings)) @ texts.T
        probabilities = _softmax(np.exp(np.float32(self.model.logit_scale.item())) * cosines)
        count = len(self.class_names)
        return Scores(cosines[:, :count], probabilities[:, :count], probabilities[:, count:].sum(axis=1))

    def classify(
        self,
        images: Iterable[AnyImage],
        *,
        top_k: int | None = None,
        reject_below: float = 0.0,
        batch_size: int = 32,
        workers: int | None = None,
        on_error: OnError | None = None,
    ) -> Iterator[Classification]:
        """One answer for each image, in order, as ``encode_images`` reads them.

        top_k: how many classes an answer holds, all by default. reject_below: a best probability under this is none.
        """
        if self.preprocess is None:
            raise ConfigError("pictures need the model's preprocess; pass preprocess= to ZeroShotClassifier")
        if not 0 <= reject_below <= 1:
            raise ConfigError(f"reject_below is {reject_below}; it must be a probability from 0 to 1")
        if top_k is not None and top_k < 1:
            raise ConfigError(f"top_k is {top_k}; it must be at least 1")
        encoded = encode_images(
            self.model, self.preprocess, images, batch_size=batch_size, workers=workers, on_error=on_error
        )
        return (answer for batch in encoded for answer in self._answers(batch, top_k, reject_below))

    def __call__(self, image: AnyImage, *, top_k: int | None = None, reject_below: float = 0.0) -> Classification:
        """The answer for one image. Raises ImageError if it cannot be read."""
        return next(self.classify([image], top_k=top_k, reject_below=reject_below, batch_size=1, workers=1))

    def _answers(self, batch: Encoded[AnyImage], top_k: int | None, reject_below: float) -> Iterator[Classification]:
        scores = self.scores(batch.embeddings)
        order = np.argsort(-scores.cosines, axis=1, kind="stable")[:, :top_k]  # of equals, the first named comes first
        ranked = [np.take_along_axis(values, order, axis=1) for values in (scores.probabilities, scores.cosines)]
        rows: list[NDArray[Any]] = [order, *ranked, scores.background]
        columns = zip(batch.positions, batch.sources, *(row.tolist() for row in rows), strict=True)
        for position, source, classes, shares, similarities, background in columns:
            yield Classification(
                position=position,
                source=source,
                labels=tuple(self.class_names[i] for i in classes),
                probabilities=tuple(shares),
                cosines=tuple(similarities),
                background=background,
                is_rejected=shares[0] < reject_below or shares[0] < background,
            )


def _softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Over the last axis. The largest is taken off first, so that nothing overflows at any scale."""
    shares: NDArray[np.float32] = np.exp(logits - logits.max(axis=-1, keepdims=True))
    shares /= shares.sum(axis=-1, keepdims=True)
    return shares
