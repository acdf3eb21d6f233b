"""How well pictures answer a query, and whether they answer it at all: from cosines alone, without a model.

A cosine says nothing by itself: 0.25 is high for one model or query and low for another. So each is compared with those
of pictures that have nothing to do with the query (``Background``), and turned into evidence by a curve that was fitted
for the model on pictures whose captions are known (``calibration_pairs``). The formulae: docs/queries.md.
"""

from __future__ import annotations

import dataclasses
import io
import zipfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip import samples
from clip.errors import DataError, ShapeError
from clip.search.query import All, Any, Node, Query, Term

__all__ = [
    "SAMPLE_SIZE",
    "Background",
    "Curve",
    "Pairs",
    "Reference",
    "Scored",
    "calibration_pairs",
    "evidence",
    "fit_curve",
    "probes",
    "score",
]

SAMPLE_SIZE = 1024
"""Pictures of an index that stand for all of it: half a megabyte at 256 dimensions."""

_VERSION = 1
_PRIOR_MATCHES = 1.0
"""Of one query, before anything is seen."""


class Pairs(NamedTuple):
    """Pictures and texts of which it is known what belongs together."""

    images: list[bytes]
    texts: list[str]
    is_match: NDArray[np.bool_]
    """(images, texts)"""


class Curve(NamedTuple):
    """Evidence = slope · z + intercept: the logarithm of how much likelier a cosine is for a match than for another."""

    slope: float
    intercept: float


class Reference(NamedTuple):
    """What the cosines of a query's terms are compared with."""

    cosines: NDArray[np.float32]
    """(B, T): of the background's pictures."""
    curve: Curve


class Scored(NamedTuple):
    """For each of N pictures."""

    scores: NDArray[np.float32]
    """(N,) what to order by, largest first; weights count."""
    matches: NDArray[np.float32]
    """(N,) the probability that all of the query holds; weights do not count."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Background:
    """A document of an index: some of its pictures, and what is known of its model."""

    anchors: NDArray[np.float16]
    """(36, E): the packaged pictures, so that an index of dogs does not take a dog for what pictures show anyway."""
    sample: NDArray[np.float16]
    """(B, E), up to ``SAMPLE_SIZE`` pictures of the index."""
    curve: Curve

    @classmethod
    def of(cls, images: NDArray[np.float32], texts: NDArray[np.float32], is_match: NDArray[np.bool_]) -> Background:
        """That of a new index, from the embeddings of ``calibration_pairs``."""
        anchors = images.astype(np.float16)
        return cls(anchors=anchors, sample=anchors[:0], curve=fit_curve(images, texts, is_match))

    def with_sample_of(self, batches: Iterable[NDArray[np.float32]], *, seed: int = 0) -> Background:
        """The same with pictures drawn from all embeddings of the index, which come in batches (n, E)."""
        return dataclasses.replace(self, sample=_drawn(batches, SAMPLE_SIZE, seed, self.anchors.shape[1]))

    def reference(self, query: Query, embeddings: NDArray[np.float32]) -> Reference:
        """For ``score``. embeddings: (T, E), of the terms of the query, as ``Query.arranged`` gives them."""
        pictures = np.concatenate([self.anchors, self.sample]).astype(np.float32)
        return Reference(pictures @ embeddings.T, self.curve)

    def to_bytes(self) -> bytes:
        file = io.BytesIO()
        np.savez(
            file,
            version=np.int64(_VERSION),
            anchors=self.anchors,
            sample=self.sample,
            curve=np.array(self.curve, np.float64),
        )
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, address: str) -> Background:
        """Raises DataError for what is no such document, or one of another version."""
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as arrays:
                version = int(arrays["version"])
                if version != _VERSION:
                    raise DataError(
                        f"{address}: its background is of version {version}; this everyclip reads {_VERSION}"
                    )
                slope, intercept = arrays["curve"].tolist()
                return cls(anchors=arrays["anchors"], sample=arrays["sample"], curve=Curve(slope, intercept))
        except (ValueError, KeyError, TypeError, EOFError, OSError, zipfile.BadZipFile) as error:
            raise DataError(f"{address}: its background cannot be read ({error}); make the index anew") from error


def calibration_pairs() -> Pairs:
    """The packaged pictures with their captions and labels; embed both once when an index is made."""
    pictures = samples.pictures()
    labels = [picture.label for picture in pictures]
    names = list(dict.fromkeys(labels))
    captions = [picture.caption for picture in pictures]
    is_caption = np.eye(len(pictures), dtype=bool)
    is_name = np.array([[label == name for name in names] for label in labels])
    return Pairs([picture.image for picture in pictures], captions + names, np.hstack([is_caption, is_name]))


def probes(query: Query, embeddings: NDArray[np.float32]) -> NDArray[np.float32]:
    """(P, E), unit norm: ask the store for the nearest of each; what any of them finds is worth to be scored.

    They are the terms that are wanted, and for terms that must hold together also their mean.
    """
    is_wanted = ~np.array(query.is_negated)
    found = [*embeddings[is_wanted], *_means(query, embeddings)]
    return np.stack([probe / max(float(np.linalg.norm(probe)), 1e-12) for probe in found]).astype(np.float32)


def score(query: Query, cosines: NDArray[np.float32], reference: Reference, count: int) -> Scored:
    """How N pictures answer the query.

    cosines: (N, T), of the pictures to the terms. count: how many pictures were searched for these N, which matters:
    the best of a million is high by chance.
    """
    terms = len(query.terms)
    if cosines.ndim != 2 or cosines.shape[1] != terms or reference.cosines.shape[1] != terms:
        raise ShapeError(
            f"the query has {terms} terms; the cosines are of shape {cosines.shape}, those of the background "
            f"{reference.cosines.shape}"
        )
    strength = iter(evidence(cosines, reference).T)
    prior = np.log(_PRIOR_MATCHES / max(count, 2))
    scores, log_match = _combined(query.tree, strength, prior)
    return Scored(scores.astype(np.float32), np.exp(log_match).astype(np.float32))


def evidence(cosines: NDArray[np.float32], reference: Reference) -> NDArray[np.float64]:
    """(N, T): the logarithm of how much likelier each cosine is for a match than for any other picture."""
    mean = reference.cosines.mean(axis=0, dtype=np.float64)
    deviation = reference.cosines.std(axis=0, dtype=np.float64)
    z = (cosines - mean) / np.maximum(deviation, 1e-4)
    strength: NDArray[np.float64] = reference.curve.slope * z + reference.curve.intercept
    return strength


def fit_curve(images: NDArray[np.float32], texts: NDArray[np.float32], is_match: NDArray[np.bool_]) -> Curve:
    """By logistic regression on all pairs (images, texts), regularised: there are only a few matches."""
    cosines = images.astype(np.float64) @ texts.T
    z = ((cosines - cosines.mean(axis=0)) / np.maximum(cosines.std(axis=0), 1e-4)).ravel()
    target = is_match.ravel().astype(np.float64)
    design = np.stack([z, np.ones_like(z)])
    weights = np.zeros(2)
    for _ in range(50):  # Newton's method; convex, and the penalty keeps it so for pairs that are told apart perfectly
        probability = 1 / (1 + np.exp(-weights @ design))
        gradient = design @ (probability - target) + [1e-1 * weights[0], 0]
        hessian = (design * (probability * (1 - probability))) @ design.T + np.diag([1e-1, 1e-9])
        step = np.linalg.solve(hessian, gradient)
        weights -= step
        if np.abs(step).max() < 1e-9:
            break
    odds = target.mean() / (1 - target.mean())
    return Curve(float(weights[0]), float(weights[1] - np.log(odds)))  # less what is the share of matches in the pairs


def _combined(
    node: Node, strength: Iterator[NDArray[np.float64]], prior: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Score and log probability of a part of the tree."""
    if isinstance(node, Term):
        log_match = -np.logaddexp(0, -(next(strength) + prior))
        return node.weight * log_match, log_match
    results = [_combined(part, strength, prior) for part in node.parts]
    scores, matches = (np.stack(values) for values in zip(*results, strict=True))
    if isinstance(node, Any):
        return scores.max(axis=0), matches.max(axis=0)
    score_, match = scores.sum(axis=0), matches.sum(axis=0)
    for part in node.without:
        excluded, log_excluded = _combined(part, strength, prior)
        score_ = score_ + np.log1p(-np.minimum(np.exp(excluded), 1 - 1e-9))
        match = match + np.log1p(-np.minimum(np.exp(log_excluded), 1 - 1e-9))
    return score_, match


def _means(query: Query, embeddings: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    rows = iter(embeddings)

    def wanted(node: Node) -> Iterator[NDArray[np.float32]]:
        """The terms below a node, with the means of what stands together on the way."""
        if isinstance(node, Term):
            yield node.weight * next(rows)
            return
        below = [list(wanted(part)) for part in node.parts]
        if isinstance(node, All):
            for part in node.without:
                list(wanted(part))
            if len(below) > 1:
                yield np.sum([np.mean(part, axis=0) for part in below if part], axis=0)
                return
        for embeddings_below in below:
            yield from embeddings_below

    if not isinstance(query.tree, Term):
        yield from wanted(query.tree)


def _drawn(batches: Iterable[NDArray[np.float32]], size: int, seed: int, embed_dim: int) -> NDArray[np.float16]:
    """Each row with the same chance (reservoir sampling, in the order of random keys: Efraimidis and Spirakis 2006)."""
    generator = np.random.default_rng(seed)
    kept, keys = np.empty((0, embed_dim), np.float16), np.empty(0)
    for batch in batches:
        rows, drawn = np.concatenate([kept, batch.astype(np.float16)]), np.append(keys, generator.random(len(batch)))
        best = np.argsort(drawn)[:size]
        kept, keys = rows[best], drawn[best]
    return kept
