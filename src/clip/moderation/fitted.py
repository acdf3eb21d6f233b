"""What was learned from labelled pictures for one policy and one model, and what may be claimed of it; and its file."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from clip.errors import ConfigError, DataError, choices
from clip.html_page import write_atomically
from clip.intervals import wilson
from clip.moderation.logistic import expit
from clip.moderation.strict_json import Vector, from_json, to_json

__all__ = ["CategoryFit", "Claim", "Estimate", "Figures", "Fitted", "HeadTrial"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A number from a sample, and between which two it lies with a confidence of 95 %."""

    value: float
    low: float
    high: float


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How well one category was found among pictures that had no part in what was learned or chosen."""

    pictures: int
    yes: int
    """Pictures that belong to the category."""
    hits: int
    """Pictures whose score reaches the threshold."""
    right: int
    """Hits that belong."""
    precision: Estimate | None
    """None where there is no hit to be right or wrong."""
    recall: Estimate
    f1: float
    average_precision: Estimate
    calibration_error: float
    """By how much scores differ from the share of pictures that belong, on average over up to ten bins of equal size.
    Not 0 for perfect scores of few pictures."""

    def precision_at(self, share: float) -> Estimate | None:
        """The precision among pictures of which so large a share belongs, where each kind scores as it did here.

        Precision depends on how common a category is; labelled pictures often hold far more of it than a stream does.
        None without a single hit: nothing says how many there would be.
        """
        no, wrong = self.pictures - self.yes, self.hits - self.right
        if not self.hits:
            return None
        # One interval for each of the two rates, both wider than 95 %, so that they hold together with 95 %.
        found, alarms = (wilson(k / n, n, level=0.975) for k, n in ((self.right, self.yes), (wrong, no)))

        def precision(recall: float, false_alarms: float) -> float:
            right = share * recall
            return right / (right + (1 - share) * false_alarms) if right + false_alarms else 0.0

        value = precision(self.right / self.yes, wrong / no)
        return Estimate(value=value, low=precision(found.low, alarms.high), high=precision(found.high, alarms.low))


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Whether the policy's target is met, as far as the held-out pictures can tell."""

    measure: Literal["precision", "recall"]
    target: float
    level: float
    """How sure the bound is: of so large a share of all fits, it is below the truth."""
    bound: float
    """The exact one-sided lower bound (Clopper and Pearson 1934) of the measure at the threshold."""
    trials: int
    """Hits for precision, pictures that belong for recall."""
    successes: int
    is_supported: bool
    """The bound reaches the target."""
    needed: int | None
    """About how many labelled pictures of this kind would support it; None if it is supported, or if no number would
    because the measure itself is below the target."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HeadTrial:
    """Whether a head predicts better than the contrast, by cross-validation among the pictures learned from."""

    penalty: float
    gain: float
    """Log loss of the contrast less that of the head, in nats a picture; above 0 if the head is better."""
    gain_bound: float
    """One-sided lower bound of it, 95 %."""
    is_used: bool


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CategoryFit:
    """One category: score = σ(slope · contrast + weights · embedding + intercept)."""

    name: str
    method: Literal["policy", "contrast", "head"]
    """"policy": nothing could be learned, and score and threshold stay those of the policy."""
    reason: str
    """Why this method, in a sentence."""
    yes: int
    """Labelled pictures that belong; nearly equal ones count once."""
    no: int
    slope: float | None = None
    intercept: float | None = None
    weights: Vector | None = None
    """(E,), of a head."""
    threshold: float | None = None
    origin: Literal["stated", "chosen"] | None = None
    """Of the threshold: in the policy, or here for the policy's target."""
    figures: Figures | None = None
    before: Figures | None = None
    """The same pictures by the policy alone."""
    contrast: Figures | None = None
    """The same pictures by the contrast alone, at a threshold chosen alike, where there is a head."""
    claim: Claim | None = None
    trial: HeadTrial | None = None
    scores: tuple[float, ...] = ()
    """Of the held-out pictures, descending."""
    belongs: tuple[bool, ...] = ()
    """Whether each of them belongs."""

    def __post_init__(self) -> None:
        if (self.method != "policy") != (None not in (self.slope, self.intercept, self.threshold, self.figures)):
            raise DataError(f"{self.name}: method {self.method!r} does not go with what is given")
        if (self.method == "head") != (self.weights is not None):
            raise DataError(f"{self.name}: only a head has weights, and each has")
        if self.threshold is not None and not 0 <= self.threshold <= 1:
            raise DataError(f"{self.name}: the threshold is {self.threshold}; 0 to 1 is expected")
        if len(self.scores) != len(self.belongs):
            raise DataError(
                f"{self.name}: {len(self.scores)} scores and {len(self.belongs)} labels; equally many expected"
            )

    def scores_of(
        self, contrasts: NDArray[np.floating[Any]], embeddings: NDArray[np.floating[Any]]
    ) -> NDArray[np.float64]:
        """(N,) 0 to 1, from contrasts (N,) and embeddings (N, E). Raises ConfigError for method "policy"."""
        if self.slope is None or self.intercept is None:
            raise ConfigError(f"{self.name}: nothing was fitted; use the policy's own score")
        logits: NDArray[np.float64] = self.slope * np.asarray(contrasts, np.float64) + self.intercept
        if self.weights is not None:
            if embeddings.shape[-1] != len(self.weights):
                raise ConfigError(
                    f"embeddings are {embeddings.shape[-1]} wide, and the head was fitted for {len(self.weights)}; use "
                    "the model that it was fitted with"
                )
            logits = logits + embeddings.astype(np.float64) @ self.weights.astype(np.float64)
        return expit(logits)


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Fitted:
    """All that ``fit`` learned; a ``Moderator`` takes it and refuses it for another policy, model or way of looking."""

    policy: str
    """Fingerprint of the policy."""
    policy_name: str
    model: str
    """Fingerprint of the model."""
    views: str
    """What of each picture was looked at."""
    seed: int
    """Of the split into pictures to learn from and pictures to judge by."""
    date: str
    """When it was fitted, in UTC, as ISO 8601."""
    version: str
    """Of everyclip."""
    pictures: int
    """Files that were read."""
    unreadable: int
    """Files that were not, and are left out."""
    duplicates: int
    """Pictures that are another one, or nearly, with the same labels; they count once."""
    categories: tuple[CategoryFit, ...]
    """One for each of the policy, in its order."""
    format: Literal[1] = 1
    """Of the file."""

    @functools.cached_property
    def fingerprint(self) -> str:
        """SHA-256 of all that decides: equal exactly if two of them give equal scores and thresholds."""
        decides = [
            [fit.name, fit.method, fit.slope, fit.intercept, to_json(fit.weights), fit.threshold]
            for fit in self.categories
        ]
        text = json.dumps([self.policy, self.model, self.views, decides])
        return hashlib.sha256(text.encode()).hexdigest()

    def category(self, name: str) -> CategoryFit:
        """Raises ConfigError for a name that is not there."""
        for fit in self.categories:
            if fit.name == name:
                return fit
        known = choices(name, [fit.name for fit in self.categories])
        raise ConfigError(f"{name!r} is no category of this fit; its categories are {known}")

    def score(self, category: str, contrast: float, embedding: NDArray[np.floating[Any]]) -> float | None:
        """0 to 1, calibrated on the labelled pictures; None where the policy's own score stays.

        contrast: over all views. embedding: (E,) of the whole picture, unit norm.
        """
        fit = self.category(category)
        if fit.method == "policy":
            return None
        return float(fit.scores_of(np.array([contrast]), embedding[None])[0])

    def threshold(self, category: str) -> tuple[float, str] | None:
        """The score from which on a picture belongs, and where it comes from; None where the policy's own stays."""
        fit = self.category(category)
        if fit.threshold is None:
            return None
        return fit.threshold, "stated" if fit.origin == "stated" else f"fitted on {fit.yes + fit.no} pictures"

    def check(self, *, policy: str, model: str, views: str) -> None:
        """Raises ConfigError if it was made for another policy, model or way of looking: its figures hold for none."""
        for what, own, other, remedy in (
            ("policy", self.policy, policy, "use that version of the policy"),
            ("model", self.model, model, "use that model"),
            ("views", self.views, views, f"use views {self.views}"),
        ):
            if own != other:
                short = (own, other) if what == "views" else (own[:12], other[:12])
                raise ConfigError(
                    f"was fitted for {what} {short[0]} ({self.policy_name}), and this is {short[1]}; {remedy}, or fit "
                    "again"
                )

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, all of it; what ``save`` writes."""
        contents: dict[str, Any] = to_json(self)
        return contents

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes JSON, whole or not at all; numbers keep all their digits. Raises ClipError where that cannot be."""
        write_atomically(path, json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Fitted:
        """What ``save`` wrote. Raises DataError, with the file and the place, for anything else."""
        try:
            text = Path(path).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{path}: cannot be read ({reason}); write it with clip moderate --fit") from error
        try:
            return from_json(cls, text)
        except DataError as error:
            raise DataError(f"{path}: {error}") from error.__cause__
