"""Labelled pictures → calibrated scores, thresholds and linear heads for a policy, with figures from other pictures.

    fitted = fit(Moderator.open("policy.yaml"), read_labels("labels.csv", policy))
    fitted.save("policy.fit.json")

Half of the pictures are learned from: the calibration, the head and the threshold are chosen there. The other half is
used once, for the figures and the claim, so that nothing was chosen by what it shows. Nearly equal pictures are on the
same side. The reasons, and what became of claims in simulations: docs/moderation-fit.md.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np

import clip
from clip.errors import ConfigError
from clip.moderation.claims import figures
from clip.moderation.fitted import Figures, Fitted
from clip.moderation.labels import Labels
from clip.moderation.learning import Heads, fit_category
from clip.moderation.measuring import Judge, Measured, Sample, measure
from clip.moderation.policy import Category

__all__ = ["Fitted", "fit", "fit_measured", "judge"]


def fit(
    moderator: Judge,
    labels: Labels,
    *,
    seed: int = 0,
    heads: Heads = "auto",
    max_failures: float = 0.1,
    batch_size: int = 32,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[str], None] = lambda message: None,
) -> Fitted:
    """What the labels teach about each category of the moderator's policy: ``measure``, then ``fit_measured``."""
    _check(heads)
    measured = measure(
        moderator,
        labels,
        max_failures=max_failures,
        batch_size=batch_size,
        workers=workers,
        on_progress=on_progress,
        on_failure=on_failure,
    )
    return fit_measured(moderator, measured, seed=seed, heads=heads)


def fit_measured(moderator: Judge, measured: Measured, *, seed: int = 0, heads: Heads = "auto") -> Fitted:
    """Learns from pictures that were read already; no picture is read.

    seed: of the split into the two halves, and of the bootstrap; the order of the labels makes no difference.
    heads: whether categories may get a linear head on the embeddings. "auto": where it predicts better than the
        contrast by more than chance; True: wherever there are pictures enough; False: nowhere.
    """
    _check(heads)
    fits = []
    for category in moderator.policy.categories:
        sample = measured.sample(category.name)
        learned, held_out = fit_category(category, sample, seed=seed, heads=heads)
        if held_out is not None:
            before = _by_policy(moderator, category, sample.part(held_out), seed)
            learned = dataclasses.replace(learned, before=before)
        fits.append(learned)
    return Fitted(
        policy=moderator.policy.fingerprint,
        policy_name=moderator.policy.name,
        model=moderator.model_fingerprint,
        views=moderator.views.name,
        seed=seed,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        version=clip.__version__,
        pictures=measured.files,
        unreadable=measured.unreadable,
        duplicates=measured.duplicates,
        categories=tuple(fits),
    )


def judge(moderator: Judge, measured: Measured, *, fitted: Fitted | None = None, seed: int = 0) -> dict[str, Figures]:
    """How well each category is found among pictures from elsewhere: by what was fitted, or by the policy alone.

    Only categories with pictures that belong and others that do not. The pictures must be others than those of the fit.
    Raises ConfigError for what was fitted for another policy, model or way of looking.
    """
    if fitted is not None:
        fitted.check(policy=moderator.policy.fingerprint, model=moderator.model_fingerprint, views=moderator.views.name)
    found = {}
    for category in moderator.policy.categories:
        sample = measured.sample(category.name)
        if not 0 < sample.belongs.sum() < len(sample.belongs):
            continue
        learned = None if fitted is None else fitted.category(category.name)
        if learned is None or learned.threshold is None:
            found[category.name] = _by_policy(moderator, category, sample, seed)
        else:
            scores = learned.scores_of(sample.contrasts, sample.embeddings)
            found[category.name] = figures(scores, sample.belongs, learned.threshold, seed=seed)
    return found


def _check(heads: Heads) -> None:
    if heads not in (True, False, "auto"):
        raise ConfigError(f"heads is {heads!r}; it must be True, False or 'auto'")


def _by_policy(moderator: Judge, category: Category, sample: Sample, seed: int) -> Figures:
    scores = np.array([moderator.scorer.score(contrast) for contrast in sample.contrasts.tolist()])
    return figures(scores, sample.belongs, moderator.scorer.threshold(category).value, seed=seed)
