"""How strongly a picture belongs to each category of a policy: from embeddings alone, once the words are embedded.

A cosine says nothing by itself. So a category's prompts and examples compete with what resembles it and is none (its
counter-prompts and counter-examples) and with everyday things. How a picture fares in this contest is compared with how
pictures of nothing in particular do, and becomes evidence by a curve that was fitted for the model on pictures whose
labels are known. The formulae, how they were chosen and what they are worth: docs/moderation-scores.md.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip import samples
from clip.features import encode_images, encode_texts
from clip.moderation.calibration import Curve, curve_of
from clip.moderation.neutral import NEUTRAL
from clip.moderation.policy import Category, Policy
from clip.moderation.views import Views, views_of
from clip.prompts import DEFAULT_TEMPLATES, fill, same_text

if TYPE_CHECKING:
    from clip.images import ImageSource
    from clip.inference.loading import Model
    from clip.preprocess import Preprocess

__all__ = ["Judged", "Looks", "Scorer", "Seen", "Threshold", "judged"]

Embeddings = NDArray[np.float32]
Array = NDArray[np.float64]
Indices = NDArray[np.intp]

_SOFTNESS = 0.4
"""Of the model's logit scale: it was learned for captions, of which one is right. Here several prompts may be."""

_LEAST_DEVIATION = 1e-6

_SHARE_OF_WHOLE = 0.5
"""How likely it is, of a picture that belongs to a category, that the whole of it shows so as it stands."""


class Threshold(NamedTuple):
    value: float
    """From 0 to 1."""
    origin: str
    """``stated``, ``by calibration`` or ``fitted on N pictures``."""


class Looks(NamedTuple):
    """V views of pictures, and K categories."""

    evidence: Array
    """(V, K) the logarithm of how much likelier such a view is in a picture of the category than in another."""
    word: Indices
    """(V, K) which of the category's prompts and examples fits best."""
    exemption: Indices
    """(V, K) which of the category's exemptions has words that fit better than that; -1 for none."""


class Seen(NamedTuple):
    """A view without its pixels."""

    name: str
    kind: str
    frame: int


class Judged(NamedTuple):
    """Views of a picture together."""

    evidence: Array
    """(K,)"""
    view: Indices
    """(K,) the one that says most."""


class _Words(NamedTuple):
    """Prompts and pictures that stand for something."""

    embeddings: Embeddings
    """(P, E)"""
    slope: Array
    """(P,) with ``shift``, what makes the cosine with a picture as large as that with a text would be."""
    shift: Array
    """(P,)"""

    def and_(self, others: _Words) -> _Words:
        """These and then the others."""
        return _Words(
            np.concatenate([self.embeddings, others.embeddings]),
            np.concatenate([self.slope, others.slope]),
            np.concatenate([self.shift, others.shift]),
        )

    def cosines(self, embeddings: Embeddings) -> Array:
        """(V, P)"""
        cosines: Array = self.slope * (embeddings @ self.embeddings.T) + self.shift
        return cosines


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class _Contest:
    """What speaks for a category, and what against it."""

    names: tuple[str, ...]
    """Prompts, and paths of examples, in the order of ``own``."""
    own: _Words
    rivals: _Words
    exemptions: tuple[tuple[int, _Words], ...] = ()
    """Those that go by prompts, with their places among the category's."""

    def hold(self, embeddings: Embeddings, scale: float) -> tuple[Array, Indices, Indices]:
        """Log-odds, and what ``Looks`` has for one category; each (V,)."""
        own = self.own.cosines(embeddings)
        for_it = np.logaddexp.reduce(scale * own, axis=1)
        against = np.logaddexp.reduce(scale * self.rivals.cosines(embeddings), axis=1)
        best = own.max(axis=1)
        exemption = np.full(len(embeddings), -1, np.intp)
        for place, words in self.exemptions:
            fit = words.cosines(embeddings).max(axis=1)
            exemption[fit > best] = place
            best = np.maximum(best, fit)
        return for_it - against, own.argmax(axis=1), exemption


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Scorer:
    """A policy as a model sees it."""

    policy: Policy
    contests: tuple[_Contest, ...]
    scale: float
    """What cosines are multiplied by."""
    usual: Array
    """(2, K) mean and deviation of each contest over pictures of nothing in particular."""
    curve: Curve

    @classmethod
    def of(cls, policy: Policy, model: Model, preprocess: Preprocess) -> Scorer:
        """Embeds all words and examples of the policy, and the pictures that it is calibrated on.

        Raises ImageError for an example that cannot be read, TextTooLongError for a prompt that is too long.
        """
        known = samples.pictures()
        labels = [sample.label for sample in known]
        background = _whole_pictures(model, preprocess, [sample.image for sample in known])
        neutral_prompts = list(dict.fromkeys([*NEUTRAL, *policy.background]))
        embedding_of = _text_embeddings(model, policy, [*neutral_prompts, *labels])

        def texts(prompts: Sequence[str]) -> _Words:
            rows = [embedding_of[prompt] for prompt in prompts]
            return _as_texts(np.stack(rows) if rows else background[:0])

        usual_text = (background @ texts(neutral_prompts).embeddings.T).astype(np.float64)

        def words(prompts: Sequence[str], pictures: Sequence[str]) -> _Words:
            from_texts = texts(prompts)
            if not pictures:
                return from_texts
            from_pictures = _as_pictures(_whole_pictures(model, preprocess, pictures), background, usual_text)
            return from_texts.and_(from_pictures)

        def contest(category: Category) -> _Contest:
            own = {same_text(prompt) for prompt in category.prompts}  # a category does not compete with itself
            against = [p for p in (*category.counter_prompts, *neutral_prompts) if same_text(p) not in own]
            return _Contest(
                (*category.prompts, *category.examples),
                words(category.prompts, category.examples),
                words(against, category.counter_examples),
                tuple((i, texts(e.prompts)) for i, e in enumerate(category.exemptions) if e.prompts),
            )

        scale = _SOFTNESS * math.exp(float(model.logit_scale))
        contests = tuple(contest(category) for category in policy.categories)
        logits = np.stack([found.hold(background, scale)[0] for found in contests], axis=1)
        names = list(dict.fromkeys(labels))
        against = np.logaddexp.reduce(scale * usual_text, axis=1)
        trials = scale * (texts(names).embeddings @ background.T) - against
        is_match = np.array([[label == name for label in labels] for name in names])
        return cls(policy, contests, scale, _usual(logits), curve_of(trials, is_match))

    def looks(self, embeddings: Embeddings) -> Looks:
        """embeddings: (V, E), unit norm."""
        mean, deviation = self.usual
        held = zip(*(contest.hold(embeddings, self.scale) for contest in self.contests), strict=True)
        logits, word, exemption = (np.stack(rows, axis=1) for rows in held)
        return Looks(self.curve.evidence((logits - mean) / deviation), word, exemption)

    def score(self, evidence: float) -> float:
        """0 to 1."""
        return self.curve.probability(evidence)

    def threshold(self, category: Category) -> Threshold:
        """As stated, or what the calibration says of the target."""
        if category.threshold is not None:
            return Threshold(category.threshold, "stated")
        assert category.target is not None
        target = category.target
        # Where the probability is p, that much of it is right; and more above it.
        value = target.value if target.measure == "precision" else self.score(self.curve.quantile(1 - target.value))
        return Threshold(value, "by calibration")


def judged(evidence: Array, views: Sequence[Seen]) -> Judged:
    """What views of one picture say together. evidence: (V, K).

    Of a frame, either the whole shows that it belongs to a category, or one of its parts does, or the whole when it is
    turned: the likelihood ratio is the mean of theirs, the whole counting for half. So nothing follows if one of many
    looks like something by chance, and what one shows clearly is not lost. Of several wholes of a frame (on white, on
    black), and of several frames, the worst counts: who made the file chose how many there are.
    """
    frames = np.array([view.frame for view in views])
    is_part = np.array([view.kind in ("turned", "crop", "tile") for view in views])
    found = [_of_frame(evidence, np.flatnonzero(frames == frame), is_part) for frame in np.unique(frames)]
    strongest = np.argmax([frame.evidence for frame in found], axis=0)
    columns = np.arange(evidence.shape[1])
    total, view = (np.stack(rows)[strongest, columns] for rows in zip(*found, strict=True))
    return Judged(total, view)


def _of_frame(evidence: Array, rows: Indices, is_part: NDArray[np.bool_]) -> Judged:
    wholes, parts = rows[~is_part[rows]], rows[is_part[rows]]
    share = _SHARE_OF_WHOLE if len(wholes) and len(parts) else float(len(parts) == 0)
    with np.errstate(divide="ignore"):  # a share of nothing
        weighted = np.concatenate(
            [evidence[wholes] + np.log(share), evidence[parts] + np.log((1 - share) / max(len(parts), 1))]
        )
    whole = weighted[: len(wholes)].max(axis=0, initial=-np.inf)
    total = np.logaddexp(whole, np.logaddexp.reduce(weighted[len(wholes) :], axis=0))
    return Judged(total, np.concatenate([wholes, parts])[weighted.argmax(axis=0)])


def _usual(logits: Array) -> Array:
    return np.stack([logits.mean(axis=0), np.maximum(logits.std(axis=0), _LEAST_DEVIATION)])


def _as_texts(embeddings: Embeddings) -> _Words:
    return _Words(embeddings, np.ones(len(embeddings)), np.zeros(len(embeddings)))


def _as_pictures(embeddings: Embeddings, background: Embeddings, usual_text: Array) -> _Words:
    """Two pictures are nearer to each other than a picture is to any words, whatever they show (Liang et al. 2022): the
    cosines with an example are moved and stretched to have the mean and deviation that those with a neutral text have.

    background: (B, E). usual_text: (B, N), its cosines with N neutral texts.
    """
    cosines = (background @ embeddings.T).astype(np.float64)
    slope = usual_text.std(axis=0).mean() / np.maximum(cosines.std(axis=0), _LEAST_DEVIATION)
    return _Words(embeddings, slope, usual_text.mean() - slope * cosines.mean(axis=0))


def _whole_pictures(model: Model, preprocess: Preprocess, sources: Sequence[ImageSource]) -> Embeddings:
    """(N, E), of each picture as the first of its views has it."""
    pixels = (views_of(source, Views.fast).views[0].pixels for source in sources)
    return np.concatenate([batch.embeddings for batch in encode_images(model, preprocess, pixels)])


def _text_embeddings(model: Model, policy: Policy, others: Sequence[str]) -> dict[str, Embeddings]:
    """Of each prompt of a policy, and of others: the mean over the templates of unit-norm embeddings, at unit norm."""
    prompts = [*others]
    for category in policy.categories:
        prompts += [*category.prompts, *category.counter_prompts]
        prompts += [prompt for exemption in category.exemptions for prompt in exemption.prompts]
    prompts = list(dict.fromkeys(prompts))
    templates = policy.templates or DEFAULT_TEMPLATES
    filled = [fill(template, prompt) for prompt in prompts for template in templates]
    rows = np.concatenate([batch.embeddings for batch in encode_texts(model, filled)])
    means = rows.reshape(len(prompts), len(templates), -1).mean(axis=1)
    return dict(zip(prompts, means / np.linalg.norm(means, axis=1, keepdims=True), strict=True))
