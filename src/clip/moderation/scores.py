"""How strongly a picture belongs to each category of a policy: from embeddings alone, once the texts are embedded.

A cosine says nothing by itself. So a category's prompts and examples compete with what resembles it and is none (its
counter-prompts and counter-examples) and with everyday things; what is left is compared with how pictures of nothing in
particular fare in the same contest, and turned into evidence by a curve that was fitted for the model on pictures whose
labels are known. The formulae, and what they are worth: docs/moderation-scores.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip import samples
from clip.features import as_array, encode_images, encode_texts
from clip.moderation.calibration import Curve, fit_curve
from clip.moderation.policy import Category, Policy
from clip.prompts import DEFAULT_TEMPLATES, fill

if TYPE_CHECKING:
    from clip.inference.loading import Model
    from clip.preprocess import Preprocess

__all__ = ["NEUTRAL", "Looks", "Scorer", "Threshold"]

Array = NDArray[np.float32]

NEUTRAL = (
    *("a photo", "a picture", "a drawing", "an emoji", "an icon", "text", "a logo", "an abstract pattern"),
    *("a face", "a person", "a group of people", "a child", "a hand", "a heart", "a foot", "an eye"),
    *("a cat", "a dog", "a bird", "a fish", "a horse", "an insect", "a flower", "a tree", "grass", "leaves"),
    *(
        "the sky",
        "the sun",
        "the moon",
        "a star",
        "a cloud",
        "rain",
        "a mountain",
        "the sea",
        "a landscape",
        "a street",
    ),
    *("a house", "a building", "a room", "a door", "a window", "a chair", "a table", "a bed", "a lamp"),
    *("a car", "a bus", "a train", "a bicycle", "an airplane", "a boat", "a road sign", "a flag", "a map"),
    *("a fruit", "a vegetable", "bread", "a cake", "a plate of food", "a cup of coffee", "a spoon", "a bowl"),
    *("a shirt", "a dress", "a shoe", "a hat", "a bag", "glasses", "a watch", "a ring", "an umbrella"),
    *("a telephone", "a computer", "a television", "a camera", "a book", "a pencil", "a letter", "money", "a key"),
    *("a tool", "a machine", "a box", "a ball", "a toy", "a musical instrument", "a clock", "a chart", "an arrow"),
)
"""What pictures mostly show and no policy asks for by itself."""


class Threshold(NamedTuple):
    value: float
    """From 0 to 1."""
    origin: str
    """"stated", "by calibration" or "fitted on N pictures"."""


class Looks(NamedTuple):
    """V views of pictures, and K categories."""

    evidence: NDArray[np.float64]
    """(V, K) the logarithm of how much likelier each view is for a picture of the category than for another."""
    best: NDArray[np.intp]
    """(V, K) which of ``Scorer.words`` fits best."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Contest:
    """What speaks for a category and what against it."""

    words: tuple[str, ...]
    """Prompts, and paths of examples."""
    own: Array
    """(P, E), in the order of ``words``."""
    rivals: Array
    """(R, E)"""

    def logits(self, embeddings: Array, scale: float) -> tuple[NDArray[np.float64], NDArray[np.intp]]:
        own = scale * (embeddings @ self.own.T).astype(np.float64)
        rivals = scale * (embeddings @ self.rivals.T).astype(np.float64)
        against = np.logaddexp.reduce(rivals, axis=1)
        return np.logaddexp.reduce(own, axis=1) - against, own.argmax(axis=1)


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Scorer:
    """A policy as a model sees it."""

    policy: Policy
    contests: tuple[_Contest, ...]
    scale: float
    usual: NDArray[np.float64]
    """(2, K) mean and deviation of each contest over pictures of nothing in particular."""
    curve: Curve

    @classmethod
    def of(cls, policy: Policy, model: Model, preprocess: Preprocess) -> Scorer:
        """Embeds all words and examples once. Raises ImageError for an example that cannot be read."""
        templates = policy.templates or DEFAULT_TEMPLATES

        def texts(prompts: Sequence[str]) -> Array:
            return _text_embeddings(model, prompts, templates)

        def pictures(sources: Sequence[str | bytes]) -> Array:
            rows = [part.embeddings for part in encode_images(model, preprocess, sources)]
            return np.concatenate(rows) if rows else np.empty((0, model.config.embed_dim), np.float32)

        neutral = texts([*NEUTRAL, *policy.background])
        contests = []
        for category in policy.categories:
            own = np.concatenate([texts(category.prompts), pictures(category.examples)])
            against = np.concatenate([texts(category.counter_prompts), pictures(category.counter_examples), neutral])
            contests.append(_Contest((*category.prompts, *category.examples), own, against))
        scale = float(np.exp(as_array(model.logit_scale)))
        known = samples.pictures()
        background = pictures([sample.image for sample in known])
        usual = _usual(contests, background, scale)
        labels = [sample.label for sample in known]
        names = list(dict.fromkeys(labels))
        named = [_Contest((name,), row[None], neutral) for name, row in zip(names, texts(names), strict=True)]
        mean, deviation = _usual(named, background, scale)
        z = (np.stack([contest.logits(background, scale)[0] for contest in named], axis=1) - mean) / deviation
        is_match = np.array([[label == name for name in names] for label in labels])
        return cls(policy, tuple(contests), scale, usual, fit_curve(z.ravel(), is_match.ravel()))

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(category.name for category in self.policy.categories)

    def looks(self, embeddings: Array) -> Looks:
        """embeddings: (V, E), unit norm."""
        found = [contest.logits(embeddings, self.scale) for contest in self.contests]
        mean, deviation = self.usual
        z = (np.stack([logits for logits, _ in found], axis=1) - mean) / deviation
        return Looks(self.curve.slope * z + self.curve.intercept, np.stack([best for _, best in found], axis=1))

    def words(self, category: int, best: int) -> str:
        return self.contests[category].words[best]

    def score(self, evidence: float) -> float:
        """The probability of a category, if it was in one picture of ten before anything was seen."""
        return 1 / (1 + math.exp(-np.clip(evidence + math.log(_SHARE / (1 - _SHARE)), -500, 500)))

    def threshold(self, category: Category) -> Threshold:
        if category.threshold is not None:
            return Threshold(category.threshold, "stated")
        assert category.target is not None
        if category.target.measure == "precision":
            return Threshold(category.target.value, "by calibration")
        return Threshold(self.score(self.curve.quantile(1 - category.target.value)), "by calibration")


_SHARE = 0.1


def _usual(contests: Sequence[_Contest], background: Array, scale: float) -> NDArray[np.float64]:
    logits = np.stack([contest.logits(background, scale)[0] for contest in contests], axis=1)
    return np.stack([logits.mean(axis=0), np.maximum(logits.std(axis=0), 1e-6)])


def _text_embeddings(model: Model, prompts: Sequence[str], templates: Sequence[str]) -> Array:
    """(P, E): the mean over the templates of embeddings of unit norm, at unit norm."""
    filled = [fill(template, prompt) for prompt in prompts for template in templates]
    rows = [part.embeddings for part in encode_texts(model, filled)]
    if not rows:
        return np.empty((0, model.config.embed_dim), np.float32)
    means = np.concatenate(rows).reshape(len(prompts), len(templates), -1).mean(axis=1)
    embeddings: Array = means / np.linalg.norm(means, axis=1, keepdims=True)
    return embeddings
