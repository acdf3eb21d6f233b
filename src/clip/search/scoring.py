"""How well pictures answer a query, and whether they answer it at all: from cosines alone, without a model.

A cosine says nothing by itself: 0.25 is high for one model or query and low for another. So each is compared with those
of pictures that have nothing to do with the query (``Background``), and turned into evidence by a curve that was fitted
for the model on pictures whose captions are known (``calibration_pairs``). The formulae: docs/queries.md.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.lib.format import read_array, write_array
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

_SHARE = 0.25
"""Of the pictures that have to do with a query, how many fulfil any one part of it, before anything is seen."""

_TYPICAL = 20
"""Pictures that answer best what is wanted: an exclusion is measured from their median."""

_MOST_WAYS = 64
"""To fulfil a query, before the mean of its choices stands for them."""

_LEAST_DEVIATION, _LEAST_SLOPE = 1e-4, 0.1
_STEPS, _PENALTY = 30, 1e-3


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
    foreign: int = 0
    """How many of them, the first, are not of the index."""


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
        return Reference(pictures @ embeddings.T, self.curve, len(self.anchors))

    def to_bytes(self) -> bytes:
        """Four arrays in the form of .npy, one behind the other: quicker to read than an archive of them."""
        file = io.BytesIO()
        for array in (np.int64(_VERSION), np.array(self.curve, np.float64), self.anchors, self.sample):
            write_array(file, np.asanyarray(array), allow_pickle=False)
        return file.getvalue()

    @classmethod
    def from_bytes(cls, data: bytes, address: str) -> Background:
        """Raises DataError for what is no such document, or one of another version."""
        file = io.BytesIO(data)
        try:
            version = int(read_array(file, allow_pickle=False))
            if version != _VERSION:
                raise DataError(f"{address}: its background is of version {version}; this everyclip reads {_VERSION}")
            curve, anchors, sample = (read_array(file, allow_pickle=False) for _ in range(3))
            slope, intercept = curve.astype(np.float64, casting="safe").tolist()
        except (ValueError, TypeError, EOFError, MemoryError) as error:
            raise DataError(f"{address}: its background cannot be read ({error}); make the index anew") from error
        good = math.isfinite(slope) and math.isfinite(intercept) and anchors.ndim == sample.ndim == 2 and len(anchors)
        good = good and anchors.dtype == sample.dtype == np.float16 and anchors.shape[1] == sample.shape[1]
        if not (good and np.isfinite(anchors).all() and np.isfinite(sample).all()):
            raise DataError(f"{address}: its background cannot be read (it is no background); make the index anew")
        return cls(anchors=anchors, sample=sample, curve=Curve(slope, intercept))


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

    They are the terms that are wanted, and sums of those that are wanted together: for ``(a OR b) AND c`` of a and c,
    and of b and c.
    """
    is_wanted = ~np.array(query.is_negated)
    ways = _ways(query.tree, iter(zip(query.terms, embeddings.astype(np.float64), strict=True)))
    found = np.stack([*embeddings[is_wanted], *(way.total for way in ways if way.is_sum)])
    norms = np.linalg.norm(found, axis=1, keepdims=True)
    unit: NDArray[np.float32] = (found / np.maximum(norms, 1e-12)).astype(np.float32)
    return unit


def score(query: Query, cosines: NDArray[np.float32], reference: Reference, count: int) -> Scored:
    """How N pictures answer the query.

    cosines: (N, T), of the pictures to the terms. count: how many pictures were searched for these N, which matters:
    the best of a million is high by chance.
    """
    terms = query.terms
    if cosines.ndim != 2 or cosines.shape[1] != len(terms) or reference.cosines.shape[1] != len(terms):
        raise ShapeError(
            f"the query has {len(terms)} terms; the cosines are of shape {cosines.shape}, those of the background "
            f"{reference.cosines.shape}"
        )
    found = evidence(cosines, reference)
    weights = np.array([term.weight for term in terms])
    usual = np.full(len(terms), reference.curve.intercept)
    scores = _answered(query.tree, zip((found * weights).T, usual * weights, strict=True)).score
    share = _share(query, reference, max(count, 1))
    return Scored(scores.astype(np.float32), _Likelihood.of(query, found, reference).matches(share).astype(np.float32))


class _Likelihood(NamedTuple):
    """What N pictures say of a query, before it is known how rare matches are."""

    holds: NDArray[np.float64]
    """(N,) the logarithm of the probability that the query holds, for a picture that has to do with it."""
    related: NDArray[np.float64]
    """(N,) the logarithm of the odds that it has, when all pictures match that could."""

    @classmethod
    def of(cls, query: Query, found: NDArray[np.float64], reference: Reference) -> _Likelihood:
        usual = [reference.curve.intercept] * found.shape[1]
        holds = _answered(query.tree, zip(found.T, usual, strict=True)).holds
        is_wanted = ~np.array(query.is_negated)
        related = np.logaddexp(math.log(1 - _SHARE), math.log(_SHARE) + found[:, is_wanted]).sum(axis=1)
        return cls(holds, related / _repetition(reference.cosines[:, is_wanted]) - _chance(query.tree))

    def matches(self, share: float) -> NDArray[np.float64]:
        """(N,) the probabilities, if this share of all pictures is expected to match."""
        return np.exp(self.holds - np.logaddexp(0, -self.related - math.log(share)))


def _share(query: Query, reference: Reference, count: int) -> float:
    """How many pictures match, as a share of all: what the sample of the index says (expectation maximisation, Saerens
    et al. 2002), and as if one match had been expected and seen (a gamma prior of shape and rate 1).

    One, for what must hold together: there the evidence is too rough, and the estimate would run away with it.
    """
    own = reference.cosines[reference.foreign :]
    share = 1 / count
    if len(own) and not _is_joint(query.tree):
        sample = _Likelihood.of(query, evidence(own, reference), reference)
        for _ in range(_STEPS):
            share = (1 / count + float(sample.matches(share).mean())) / 2
    return share


def evidence(cosines: NDArray[np.float32], reference: Reference) -> NDArray[np.float64]:
    """(N, T): the logarithm of how much likelier each cosine is for a match than for any other picture."""
    mean = reference.cosines.mean(axis=0, dtype=np.float64)
    deviation = reference.cosines.std(axis=0, dtype=np.float64)
    z = (cosines - mean) / np.maximum(deviation, _LEAST_DEVIATION)
    strength: NDArray[np.float64] = reference.curve.slope * z + reference.curve.intercept
    return strength


def fit_curve(images: NDArray[np.float32], texts: NDArray[np.float32], is_match: NDArray[np.bool_]) -> Curve:
    """The curve of a model, from embeddings of pictures (N, E) and texts (T, E) of which all matches (N, T) are known.

    Logistic regression; its targets are not quite 0 and 1, so that the few matches of a model that tells them all apart
    do not make the curve a step (Platt 1999, section 2.2).
    """
    reference = Reference(images @ texts.T, Curve(1.0, 0.0))
    z = evidence(reference.cosines, reference).ravel()
    matches = int(is_match.sum())
    others = is_match.size - matches
    target = np.where(is_match.ravel(), (matches + 1) / (matches + 2), 1 / (others + 2))
    design = np.stack([z, np.ones_like(z)])
    weights = np.array([1.0, np.log((matches + 1) / (others + 1))])
    for _ in range(_STEPS):  # Newton's method on a convex loss; the small penalty is for z that are all the same
        probability = np.exp(-np.logaddexp(0, -(weights @ design)))
        gradient = design @ (probability - target) + _PENALTY * weights
        hessian = (design * (probability * (1 - probability))) @ design.T + _PENALTY * np.eye(2)
        weights -= np.linalg.solve(hessian, gradient)
    slope, intercept = weights.tolist()
    if not slope >= _LEAST_SLOPE:  # the model does not tell matches apart: no evidence, but the order of the cosines
        return Curve(_LEAST_SLOPE, 0.0)
    return Curve(slope, intercept - math.log(matches / others))  # less what is the share of matches among the pairs


_Evidence = tuple[NDArray[np.float64], float]
"""For a term: of N pictures, and of a picture of average cosine."""


class _Answer(NamedTuple):
    """Of N pictures to a part of the query."""

    score: NDArray[np.float64]
    """Evidence that it holds, in nats."""
    holds: NDArray[np.float64]
    """The logarithm of the probability that it holds, for a picture that has to do with the query."""
    fails: NDArray[np.float64]
    """That of the opposite."""


def _answered(node: Node, terms: Iterator[_Evidence], typical: NDArray[np.intp] | None = None) -> _Answer:
    """terms: those that are left. typical: for what is excluded, the pictures that answer best what is wanted; by how
    much they exceed others is what the wanted implies, and no evidence for the exclusion."""
    if isinstance(node, Term):
        strength, usual = next(terms)
        if typical is not None and len(typical):
            strength = strength - max(float(np.median(strength[typical])) - usual, 0.0)
        log_odds = strength + math.log(_SHARE / (1 - _SHARE))
        return _Answer(strength, -np.logaddexp(0, -log_odds), -np.logaddexp(0, log_odds))
    parts = [_answered(part, terms, typical) for part in node.parts]
    if isinstance(node, Any):
        fails = _sum(part.fails for part in parts)
        return _Answer(np.logaddexp.reduce([part.score for part in parts]), _log_of_rest(fails), fails)
    score_, holds = _sum(part.score for part in parts), _sum(part.holds for part in parts)
    best = np.argsort(-score_, kind="stable")[:_TYPICAL]
    for excluded in node.without:
        fails = _answered(excluded, terms, best).fails
        score_, holds = score_ + fails, holds + fails
    return _Answer(score_, holds, _log_of_rest(holds))


def _chance(node: Node) -> float:
    """The logarithm of how often what is wanted holds for a picture that has to do with the query."""
    if isinstance(node, Term):
        return math.log(_SHARE)
    parts = [_chance(part) for part in node.parts]
    return sum(parts) if isinstance(node, All) else math.log1p(-math.prod(1 - math.exp(part) for part in parts))


def _repetition(cosines: NDArray[np.float32]) -> float:
    """How often T terms say the same, from 1 to T: by the correlation of their cosines (B, T), the design effect of
    cluster samples (Kish 1965, section 5.4)."""
    terms = cosines.shape[1]
    centred = cosines - cosines.mean(axis=0, dtype=np.float64)
    unit = centred / np.maximum(np.linalg.norm(centred, axis=0), _LEAST_DEVIATION)
    correlation = np.maximum(unit.T @ unit, 0)
    np.fill_diagonal(correlation, 1)
    return float(correlation.sum() / terms)


def _is_joint(node: Node) -> bool:
    """Whether several things must hold together."""
    if isinstance(node, Term):
        return False
    return (isinstance(node, All) and len(node.parts) > 1) or any(map(_is_joint, node.parts))


def _sum(arrays: Iterable[NDArray[np.float64]]) -> NDArray[np.float64]:
    total: NDArray[np.float64] = np.sum(list(arrays), axis=0)
    return total


def _log_of_rest(log_probability: NDArray[np.float64]) -> NDArray[np.float64]:
    """log(1 - p)"""
    rest: NDArray[np.float64] = np.log(-np.expm1(np.minimum(log_probability, -1e-300)))
    return rest


class _Way(NamedTuple):
    """One of the ways in which a part of a query can be fulfilled."""

    total: NDArray[np.float64]
    """(E,) the embeddings of the terms that then hold."""
    is_sum: bool
    """Whether there are several."""


def _ways(node: Node, terms: Iterator[tuple[Term, NDArray[np.float64]]]) -> list[_Way]:
    if isinstance(node, Term):
        term, embedding = next(terms)
        return [_Way(term.weight * embedding, False)]
    parts = [_ways(part, terms) for part in node.parts]
    if isinstance(node, Any):
        return [way for part in parts for way in part]
    for part in node.without:
        _ways(part, terms)  # moves on to the terms behind it
    if math.prod(map(len, parts)) > _MOST_WAYS:
        parts = [[_Way(np.mean([way.total for way in part], axis=0), True)] for part in parts]
    if len(parts) == 1:
        return parts[0]
    return [_Way(np.sum([way.total for way in chosen], axis=0), True) for chosen in itertools.product(*parts)]


def _drawn(batches: Iterable[NDArray[np.float32]], size: int, seed: int, embed_dim: int) -> NDArray[np.float16]:
    """Each row with the same chance (reservoir sampling, in the order of random keys: Efraimidis and Spirakis 2006)."""
    generator = np.random.default_rng(seed)
    kept, keys = np.empty((0, embed_dim), np.float16), np.empty(0)
    for batch in batches:
        rows, drawn = np.concatenate([kept, batch.astype(np.float16)]), np.append(keys, generator.random(len(batch)))
        best = np.argsort(drawn)[:size]
        kept, keys = rows[best], drawn[best]
    return kept
