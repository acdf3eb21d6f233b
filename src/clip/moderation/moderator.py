"""Pictures and a policy → verdicts, in a stream."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from clip.errors import ClipError, ConfigError, ImageError
from clip.features import encode_images
from clip.moderation.policy import ACTIONS, SEVERITIES, Category, Policy
from clip.moderation.scores import Scorer, Threshold
from clip.moderation.verdict import Finding, Verdict
from clip.moderation.views import Looked, Views, views_of

if TYPE_CHECKING:
    import torch

    from clip.features import Failure
    from clip.images import ImageSource
    from clip.inference.loading import Model
    from clip.inference.precision import Precision
    from clip.preprocess import Preprocess

__all__ = ["Evidence", "Fit", "Moderator"]


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of a picture before anything is decided; for ``fitting``."""

    contrasts: NDArray[np.float64]
    """(K,) for each category, in the policy's order, over all views: the logarithm of a likelihood ratio."""
    embedding: NDArray[np.float32]
    """(E,) of the whole picture, unit norm."""


class Fit(Protocol):
    """What was learned from labelled pictures: ``fitting.Fitted``."""

    @property
    def policy(self) -> str:
        """Fingerprint of the policy that it was made for."""

    @property
    def model(self) -> str:
        """Fingerprint of the model."""

    def threshold(self, category: str) -> tuple[float, str] | None:
        """The score from which on a picture belongs to it, and "fitted on N pictures"; None if nothing was learned."""

    def score(self, category: str, contrast: float, embedding: NDArray[np.float32]) -> float | None:
        """From 0 to 1; None if the calibrated one is to be used."""


@dataclasses.dataclass(slots=True, eq=False)
class _Open:
    """A picture that the model has not seen all of."""

    source: ImageSource
    looked: Looked | ClipError
    rows: list[NDArray[np.float32]] = dataclasses.field(default_factory=list)

    @property
    def is_done(self) -> bool:
        return isinstance(self.looked, ClipError) or len(self.rows) == len(self.looked.views)


class Moderator:
    """A policy and a model."""

    def __init__(
        self,
        policy: Policy,
        model: Model,
        preprocess: Preprocess,
        *,
        model_fingerprint: str,
        fitted: Fit | None = None,
        views: Views = Views.standard,
    ) -> None:
        """Embeds the words and examples of the policy.

        Raises ImageError for an example that cannot be read, ConfigError for what was fitted for something else.
        """
        self.policy = policy
        self.model = model
        self.preprocess = preprocess
        self.model_fingerprint = model_fingerprint
        self.views = views
        self.fitted = fitted
        if fitted is not None:
            _check_fitted(fitted, policy, model_fingerprint)
        self.scorer = Scorer.of(policy, model, preprocess)

    @classmethod
    def open(
        cls,
        policy: Policy | str | os.PathLike[str],
        *,
        model: str | os.PathLike[str] = "pocket",
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        fitted: Fit | None = None,
        views: Views = Views.standard,
    ) -> Moderator:
        """policy: one in memory, the name of a packaged one, or the path of a file."""
        from clip.inference.loading import fingerprint_of, load_for_inference

        if not isinstance(policy, Policy):
            from clip.moderation.policy_file import read_policy

            policy = read_policy(policy)
        network, preprocess = load_for_inference(model, device=device, precision=precision)
        return cls(policy, network, preprocess, model_fingerprint=fingerprint_of(model), fitted=fitted, views=views)

    def moderate(
        self, sources: Iterable[ImageSource], *, batch_size: int = 32, workers: int | None = None
    ) -> Iterator[Verdict]:
        """One verdict for each, in order."""
        thresholds = [self.threshold(category) for category in self.policy.categories]
        for seen in self._seen(sources, batch_size, workers):
            yield self._verdict(seen, thresholds)

    def evidence(
        self, sources: Iterable[ImageSource], *, batch_size: int = 32, workers: int | None = None
    ) -> Iterator[tuple[ImageSource, Evidence | ClipError]]:
        """What ``fitting`` learns from, in order; the error of a picture that cannot be read."""
        for seen in self._seen(sources, batch_size, workers):
            if isinstance(seen.looked, ClipError):
                yield seen.source, seen.looked
            else:
                embeddings = np.stack(seen.rows)
                looks = self.scorer.looks(embeddings)
                yield seen.source, Evidence(looks.evidence.max(axis=0), embeddings[0])

    def threshold(self, category: Category) -> Threshold:
        """From which score on a picture belongs to a category, and why from there."""
        if self.fitted is not None and (learned := self.fitted.threshold(category.name)):
            return Threshold(*learned)
        return self.scorer.threshold(category)

    def _seen(self, sources: Iterable[ImageSource], batch_size: int, workers: int | None) -> Iterator[_Open]:
        waiting: deque[_Open] = deque()
        numbered: deque[_Open] = deque()  # the picture of each view that the model has not given back

        def pixels() -> Iterator[NDArray[np.uint8]]:
            for source, looked in _looked(sources, self.views, workers or os.cpu_count() or 1):
                picture = _Open(source, looked)
                waiting.append(picture)
                if not isinstance(looked, ClipError):
                    for view in looked.views:
                        numbered.append(picture)
                        yield view.pixels

        def fail(failure: Failure[Any]) -> None:
            raise failure.error

        for batch in encode_images(
            self.model, self.preprocess, pixels(), batch_size=batch_size, workers=workers, on_error=fail
        ):
            for row in batch.embeddings:
                numbered.popleft().rows.append(row)
            while waiting and waiting[0].is_done:
                yield waiting.popleft()
        while waiting:
            yield waiting.popleft()

    def _verdict(self, seen: _Open, thresholds: Sequence[Threshold]) -> Verdict:
        path = (
            seen.source
            if isinstance(seen.source, str)
            else os.fspath(seen.source)
            if isinstance(seen.source, os.PathLike)
            else "<bytes>"
        )
        if isinstance(seen.looked, ClipError):
            return Verdict(
                path=path,
                action=self.policy.unreadable,
                findings=(),
                policy=self.policy.fingerprint,
                model=self.model_fingerprint,
                error=str(seen.looked),
            )
        looks = self.scorer.looks(np.stack(seen.rows))
        findings = []
        for k, (category, threshold) in enumerate(zip(self.policy.categories, thresholds, strict=True)):
            best = int(looks.evidence[:, k].argmax())
            score = self.scorer.score(float(looks.evidence[best, k]))
            findings.append(
                Finding(
                    category=category.name,
                    score=score,
                    threshold=threshold.value,
                    prompt=self.scorer.words(k, int(looks.best[best, k])),
                    view=seen.looked.views[best].name,
                    action=category.action if score >= threshold.value else "allow",
                    severity=category.severity,
                    threshold_origin=threshold.origin,
                )
            )
        findings.sort(key=_rank)
        return Verdict(
            path=path,
            action=max((f.action for f in findings), key=ACTIONS.index),
            findings=tuple(findings),
            policy=self.policy.fingerprint,
            model=self.model_fingerprint,
            sha256=seen.looked.sha256,
            frames=seen.looked.frames,
            notes=seen.looked.notes,
        )


def _rank(finding: Finding) -> tuple[Any, ...]:
    if finding.is_hit:
        return 0, -ACTIONS.index(finding.action), -SEVERITIES.index(finding.severity), -finding.margin, finding.category
    return 1, 0, 0, -finding.margin, finding.category


def _check_fitted(fitted: Fit, policy: Policy, model_fingerprint: str) -> None:
    for what, found, expected in (
        ("policy", fitted.policy, policy.fingerprint),
        ("model", fitted.model, model_fingerprint),
    ):
        if found != expected:
            raise ConfigError(
                f"was fitted for another {what} ({found[:12]}, this one is {expected[:12]}); fit it anew with "
                "clip moderate --fit"
            )


def _looked(
    sources: Iterable[ImageSource], how: Views, workers: int
) -> Generator[tuple[ImageSource, Looked | ClipError]]:
    pool = ThreadPoolExecutor(workers, thread_name_prefix="clip-views")
    pending: deque[tuple[ImageSource, Future[Looked]]] = deque()
    rest = iter(sources)
    try:
        while True:
            for source in itertools.islice(rest, 2 * workers - len(pending)):
                pending.append((source, pool.submit(views_of, source, how)))
            if not pending:
                return
            source, future = pending.popleft()
            try:
                yield source, future.result()
            except ImageError as error:
                yield source, error
    finally:
        pool.shutdown(cancel_futures=True)
