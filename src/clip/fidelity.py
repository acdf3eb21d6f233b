"""What another form of a model changed: in lower precision, or in another engine.

Both forms encode the same pictures and texts; ``compare`` says how far the embeddings moved, and whether any answer
did. Plain cosines flatter: all embeddings of a CLIP share a large part, which says nothing and hides the error of what
does. The *centred* cosine leaves that part out, and falls first. What decides is whether the answers are the same.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip.errors import ShapeError

__all__ = ["Embeddings", "Fidelity", "compare"]

_TIE = 1e-6
"""Rounding of single precision: similarities that differ by less are equal, and shorter vectors have no direction."""


class Embeddings(NamedTuple):
    """What one form of a model gave for some pictures and texts, in any precision."""

    images: NDArray[np.floating[Any]]
    """(N, E), of any norm but 0."""
    texts: NDArray[np.floating[Any]]
    """(M, E), of any norm but 0."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Fidelity:
    """How near one form of a model is to another; identical forms have cosines of 1 and changes of 0.

    "Least" is over all pictures, or all texts: a mean would hide the one that is lost.
    """

    images: int
    """N, how many pictures this is about."""
    texts: int
    """M, how many texts."""
    image_cosine: float
    """Least cosine between a picture's two embeddings, from -1 to 1."""
    image_centred_cosine: float | None
    """The same after the mean of the reference's embeddings is subtracted from both; None where all pictures have the
    same embedding, and so for a single one."""
    text_cosine: float
    """Least cosine between a text's two embeddings."""
    text_centred_cosine: float | None
    """The same, centred on the reference's texts."""
    similarity_change: float
    """Largest absolute change of the cosine of any picture with any text, from 0 to 2. Times the logit scale it is the
    largest change of a logit; and only answers that led the next by less than twice as much can change at all."""
    changed_answers: int
    """Pictures whose best text is another one. Equal ones (within 1e-6) are all best: an answer is the same if whatever
    is best now was best before. With a single text there is nothing to change."""
    changed_finds: int
    """Texts whose best picture is another one, counted likewise."""

    @property
    def changed_answers_share(self) -> float:
        """Of the pictures, from 0 to 1."""
        return self.changed_answers / self.images

    @property
    def changed_finds_share(self) -> float:
        """Of the texts, from 0 to 1."""
        return self.changed_finds / self.texts

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it, the shares included."""
        return {
            **dataclasses.asdict(self),
            "changed_answers_share": self.changed_answers_share,
            "changed_finds_share": self.changed_finds_share,
        }


def compare(reference: Embeddings, other: Embeddings) -> Fidelity:
    """How near ``other`` is to ``reference``; row i of both is of the same picture, or the same text.

    Computed in float64; all N × M similarities are held at once.
    Raises ShapeError where rows do not belong together, there are none, or one has no direction: zero, or not finite.
    """
    images, other_images = _units(reference.images, other.images, "images")
    texts, other_texts = _units(reference.texts, other.texts, "texts")
    if images.shape[1] != texts.shape[1]:
        raise ShapeError(
            f"images have {images.shape[1]} numbers each and texts {texts.shape[1]}; both must be of one joint space"
        )
    similarities, other_similarities = images @ texts.T, other_images @ other_texts.T  # (N, M)
    return Fidelity(
        images=len(images),
        texts=len(texts),
        image_cosine=_least_cosine(images, other_images),
        image_centred_cosine=_least_centred_cosine(images, other_images),
        text_cosine=_least_cosine(texts, other_texts),
        text_centred_cosine=_least_centred_cosine(texts, other_texts),
        similarity_change=float(np.abs(other_similarities - similarities).max()),
        changed_answers=_changed(similarities, other_similarities),
        changed_finds=_changed(similarities.T, other_similarities.T),
    )


Rows = NDArray[np.float64]


def _units(reference: NDArray[Any], other: NDArray[Any], what: str) -> tuple[Rows, Rows]:
    """Both at unit norm."""
    if reference.ndim != 2 or reference.shape != other.shape or not len(reference):
        raise ShapeError(
            f"{what} have shapes {reference.shape} and {other.shape}; "
            f"both must be ({what}, embed_dim) of at least one row"
        )
    return _unit(reference, f"{what} of the reference"), _unit(other, f"{what} of the other form")


def _unit(rows: NDArray[Any], what: str) -> Rows:
    rows = rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    is_lost = ~(np.isfinite(norms) & (norms > 0))[:, 0]
    if is_lost.any():
        row = int(is_lost.argmax())
        raise ShapeError(f"{what}: row {row} has norm {norms[row, 0]}, and so no direction; compare without it")
    unit: Rows = rows / norms
    return unit


def _least_cosine(reference: Rows, other: Rows) -> float:
    """Of two sets of vectors, row by row. A vector that vanished has cosine 0."""
    norms = np.linalg.norm(reference, axis=1) * np.linalg.norm(other, axis=1)
    cosines = (reference * other).sum(axis=1) / np.maximum(norms, _TIE**2)
    return float(cosines.min().clip(-1, 1))


def _least_centred_cosine(reference: Rows, other: Rows) -> float | None:
    centre = reference.mean(axis=0)
    reference, other = reference - centre, other - centre
    has_direction = np.linalg.norm(reference, axis=1) > _TIE
    return _least_cosine(reference[has_direction], other[has_direction]) if has_direction.any() else None


def _changed(reference: Rows, other: Rows) -> int:
    """How many rows of similarities have something among their best that was not there before."""
    was_best, is_best = (rows >= rows.max(axis=1, keepdims=True) - _TIE for rows in (reference, other))
    return int((is_best & ~was_best).any(axis=1).sum())
