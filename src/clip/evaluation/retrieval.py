"""Images find their captions and captions their images, among all others of the set.

An image with several captions is found by any of them, and finds any; a caption that several images share, likewise.
Captions that differ only in case and white space are one text to the model, and so one candidate here: counted twice,
each would be a wrong answer to the other's image.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from clip.errors import DataError, ShapeError
from clip.evaluation import metrics
from clip.evaluation.datasets import EmbeddedSource
from clip.evaluation.intervals import bootstrap, measured_share
from clip.evaluation.metrics import Placing
from clip.evaluation.results import Direction, FailedItem, Measure, RetrievalResult
from clip.features import Failure, encode_texts
from clip.inference.loading import Model
from clip.prompts import same_text

__all__ = [
    "EmbeddedPairs",
    "distinct_captions",
    "embed_pairs",
    "evaluate_retrieval",
    "find",
    "recalls",
    "retrieval_placings",
]

RECALL_AT = (1, 5, 10)

_ELEMENTS_AT_ONCE = 1 << 24


def retrieval_placings(queries: Tensor, candidates: Tensor, pairs: Tensor, *, top: int = 10) -> tuple[Placing, Tensor]:
    """Where the best correct candidate of each query stands, and the first ``top`` candidates (Q, up to ``top``).

    queries: (Q, E), candidates: (C, E), unit norm; pairs: (P, 2) int64, query and a correct candidate. The similarities
    are computed in blocks of queries, so that (Q, C) is never held. Raises ShapeError for a query without a pair.
    """
    pairs = pairs[pairs[:, 0].argsort(stable=True)]
    rows = max(_ELEMENTS_AT_ONCE // max(len(candidates), 1), 1)
    parts: list[Placing] = []
    best: list[Tensor] = []
    for first in range(0, len(queries), rows):
        block = queries[first : first + rows]
        scores = block @ candidates.T  # (b, C)
        start, end = torch.searchsorted(pairs[:, 0].contiguous(), torch.tensor([first, first + len(block)])).tolist()
        correct = torch.zeros(scores.shape, dtype=torch.bool)
        correct[pairs[start:end, 0] - first, pairs[start:end, 1]] = True
        parts.append(metrics.placings(scores, correct))
        best.append(scores.topk(min(top, scores.shape[1]), dim=1).indices)
    if not parts:
        raise ShapeError("there are no queries")
    return Placing(*(torch.cat(part) for part in zip(*parts, strict=True))), torch.cat(best)


def recalls(image_embeddings: Tensor, text_embeddings: Tensor, pairs: Tensor) -> dict[str, float]:
    """``image_to_text/recall@1`` and so on, both ways, without intervals: what training watches.

    pairs: (P, 2) int64, image and text that belong together.
    """
    numbers: dict[str, float] = {}
    directions = (
        ("image_to_text", image_embeddings, text_embeddings, pairs),
        ("text_to_image", text_embeddings, image_embeddings, pairs.flip(1)),
    )
    for name, queries, candidates, matches in directions:
        placing, _ = retrieval_placings(queries, candidates, matches)
        for k in _cutoffs(len(candidates)):
            numbers[f"{name}/recall@{k}"] = float(metrics.in_top(placing, k).mean())
    return numbers


def evaluate_retrieval(
    model: Model,
    data: EmbeddedSource,
    *,
    truncate: bool = False,
    batch_size: int = 256,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[RetrievalResult, tuple[FailedItem, ...]]:
    """Retrieval both ways, and the captions that do not fit the model and are left out.

    truncate: cut captions that are too long instead. Raises DataError if there are not two images and two captions.
    """
    embedded = embed_pairs(model, data, truncate=truncate, batch_size=batch_size)
    result = find(
        embedded.image_embeddings,
        embedded.text_embeddings,
        embedded.pairs,
        keys=tuple(data.keys[i] for i in embedded.images.tolist()),
        rows=data.rows[embedded.images],
        captions=embedded.captions,
        resamples=resamples,
        seed=seed,
    )
    return result, embedded.failures


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbeddedPairs:
    """Images and their distinct captions, each with at least one of the other."""

    images: Tensor
    """(I,) int64, places in the source's list of readable pictures."""
    image_embeddings: Tensor
    """(I, E)."""
    captions: tuple[str, ...]
    text_embeddings: Tensor
    """(T, E)."""
    pairs: Tensor
    """(P, 2) int64: image, caption."""
    failures: tuple[FailedItem, ...]


def embed_pairs(model: Model, data: EmbeddedSource, *, truncate: bool = False, batch_size: int = 256) -> EmbeddedPairs:
    """The captions of a source beside its pictures. Raises DataError if there are not two of each left."""
    texts, pairs = distinct_captions(data.captions)
    failed: list[FailedItem] = []

    def on_error(failure: Failure[str]) -> None:
        image = int(pairs[pairs[:, 1] == failure.position][0, 0])
        reason = str(failure.error).replace(f"text {failure.position} ", f"caption {failure.source!r} ", 1)
        failed.append(FailedItem(key=data.keys[image], row=int(data.rows[image]), reason=reason))

    batches = list(encode_texts(model, texts, batch_size=batch_size, truncate=truncate, on_error=on_error))
    has_embedding = torch.zeros(len(texts), dtype=torch.bool)
    has_embedding[[position for batch in batches for position in batch.positions]] = True
    pairs = pairs[has_embedding[pairs[:, 1]]]
    images, image_of_pair = _distinct(pairs[:, 0])  # an image without any caption left is no query
    captions, caption_of_pair = _distinct(pairs[:, 1])
    if len(images) < 2 or len(captions) < 2:
        raise DataError(
            f"{data.name}: {len(images)} images with {len(captions)} distinct captions; retrieval needs two of each"
        )
    return EmbeddedPairs(
        images=images,
        image_embeddings=data.embeddings[images],
        captions=tuple(texts[i] for i in captions.tolist()),
        text_embeddings=torch.from_numpy(np.concatenate([batch.embeddings for batch in batches])),
        pairs=torch.stack([image_of_pair, caption_of_pair], dim=1),
        failures=tuple(failed),
    )


def distinct_captions(captions: Sequence[Sequence[str]]) -> tuple[list[str], Tensor]:
    """The texts of some images, each once, and which image has which: pairs (P, 2) int64, each once."""
    place: dict[str, int] = {}
    texts: list[str] = []
    pairs: dict[tuple[int, int], None] = {}
    for image, own in enumerate(captions):
        for caption in own:
            key = same_text(caption)
            if key not in place:
                place[key] = len(texts)
                texts.append(caption)
            pairs[image, place[key]] = None
    return texts, torch.tensor(list(pairs), dtype=torch.int64).view(-1, 2)


def find(
    image_embeddings: Tensor,
    text_embeddings: Tensor,
    pairs: Tensor,
    *,
    keys: tuple[str, ...],
    rows: Tensor,
    captions: tuple[str, ...],
    resamples: int = 1000,
    seed: int = 0,
) -> RetrievalResult:
    """Retrieval both ways among embeddings (images, E) and (texts, E) of unit norm, with intervals."""
    groups = _connected(pairs, len(image_embeddings), len(text_embeddings))
    of_images, of_texts = _distinct(groups[: len(image_embeddings)])[1], _distinct(groups[len(image_embeddings) :])[1]
    backward = pairs.flip(1)
    return RetrievalResult(
        keys=keys,
        rows=rows,
        captions=captions,
        pairs=pairs,
        image_to_text=_direction(image_embeddings, text_embeddings, pairs, of_images, "images", resamples, seed),
        text_to_image=_direction(text_embeddings, image_embeddings, backward, of_texts, "captions", resamples, seed),
    )


def _direction(
    queries: Tensor, candidates: Tensor, pairs: Tensor, groups: Tensor, of: str, resamples: int, seed: int
) -> Direction:
    placing, best = retrieval_placings(queries, candidates, pairs)
    matches = torch.bincount(pairs[:, 0], minlength=len(queries))
    measured = functools.partial(measured_share, of=of, clusters=groups, resamples=resamples, seed=seed)
    values = {f"recall@{k}": metrics.in_top(placing, k) for k in _cutoffs(len(candidates))}
    chances = {f"recall@{k}": metrics.chance_in_top(len(candidates), matches, k) for k in _cutoffs(len(candidates))}
    measures = [measured(name, name, hits, chance=chances[name]) for name, hits in values.items()]
    values["mrr"] = metrics.reciprocal_ranks(placing)
    measures.append(measured("mrr", "mean reciprocal rank", values["mrr"]))
    ranks = metrics.expected_ranks(placing)
    middle = functools.partial(metrics.median, ranks)
    low, high = bootstrap(middle, len(ranks), clusters=groups, resamples=resamples, seed=seed)
    measures.append(
        Measure(
            name="median_rank",
            title="median rank",
            value=float(middle()),
            low=low,
            high=high,
            n=len(ranks),
            of=of,
            is_share=False,
            lower_is_better=True,
        )
    )
    return Direction(ranks=ranks, best=best, measures=tuple(measures), values=values, groups=groups)


def _cutoffs(candidates: int) -> tuple[int, ...]:
    """The cut-offs that can be missed."""
    return tuple(k for k in RECALL_AT if k < candidates)


def _connected(pairs: Tensor, images: int, texts: int) -> Tensor:
    """(images + texts,) int64: which of them hang together by shared captions, numbered from 0; drawn together."""
    root = list(range(images + texts))

    def find_root(node: int) -> int:
        while root[node] != node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    for image, text in pairs.tolist():
        root[find_root(image)] = find_root(images + text)
    return _distinct(torch.tensor([find_root(node) for node in range(images + texts)]))[1]


def _distinct(values: Tensor) -> tuple[Tensor, Tensor]:
    """The distinct values, ascending, and for each item the place of its own among them."""
    distinct, place = np.unique(values.numpy(), return_inverse=True)
    return torch.from_numpy(distinct), torch.from_numpy(place)
