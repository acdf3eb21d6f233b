"""Pictures and a policy → verdicts, in a stream.

    moderator = Moderator.open("restricted-goods")
    for verdict in moderator.moderate(["a.png", "b.gif"]):
        verdict.action, verdict.rule            # "block", Finding(category="weapons", score=0.93, …)

Pictures are read and cut into views in threads ahead of the model, which gets views of several pictures at a time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip.errors import ClipError, ImageError
from clip.features import encode_images
from clip.moderation.policy import ACTIONS, SEVERITIES, Action, Category, Exemption, Policy
from clip.moderation.scores import Judged, Looks, Scorer, Seen, Threshold, judged
from clip.moderation.verdict import Finding, Verdict
from clip.moderation.views import Looked, Views, bytes_of, views_of_bytes

if TYPE_CHECKING:
    import torch

    from clip.features import Failure
    from clip.images import ImageSource
    from clip.inference.loading import Model
    from clip.inference.precision import Precision
    from clip.moderation.fitted import Fitted
    from clip.preprocess import Preprocess

__all__ = ["Evidence", "Moderator"]

_WRITING_ALONE: Action = "flag"
"""The most that follows from a score that falls below its threshold once the writing is painted over."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of a picture before anything is decided; for ``fitting``."""

    contrasts: NDArray[np.float64]
    """(K,) of each category, in the policy's order, over all views: the logarithm of a likelihood ratio."""
    embedding: NDArray[np.float32]
    """(E,) of the whole picture, unit norm."""


class Moderator:
    """A policy, a model, and how closely pictures are looked at."""

    def __init__(
        self,
        policy: Policy,
        model: Model,
        preprocess: Preprocess,
        *,
        model_fingerprint: str,
        fitted: Fitted | None = None,
        views: Views = Views.standard,
    ) -> None:
        """Embeds the words and examples of the policy.

        Raises ImageError for an example that cannot be read, TextTooLongError for a prompt that is too long, and
        ConfigError if ``fitted`` was made for another policy, model or way of looking.
        """
        if fitted is not None:
            fitted.check(policy=policy.fingerprint, model=model_fingerprint, views=views.name)
        self.policy = policy
        self.model = model
        self.preprocess = preprocess
        self.model_fingerprint = model_fingerprint
        self.fitted = fitted
        self.views = views
        self.scorer = Scorer.of(policy, model, preprocess)
        self._policy_fingerprint = policy.fingerprint + (f"+{fitted.fingerprint}" if fitted is not None else "")
        self._thresholds = tuple(self.threshold(category) for category in policy.categories)

    @classmethod
    def open(
        cls,
        policy: Policy | str | os.PathLike[str],
        *,
        model: str | os.PathLike[str] = "pocket",
        device: str | torch.device | None = None,
        precision: Precision = "auto",
        fitted: Fitted | None = None,
        views: Views = Views.standard,
    ) -> Moderator:
        """policy: one in memory, the path of a file, or the name of a packaged one. model, device, precision: as
        ``load_for_inference`` takes them. Raises what it and ``read_policy`` raise, too.
        """
        from clip.inference.loading import fingerprint_of, load_for_inference

        if not isinstance(policy, Policy):
            from clip.moderation.policy_file import read_policy

            policy = read_policy(policy)
        network, preprocess = load_for_inference(model, device=device, precision=precision)
        return cls(policy, network, preprocess, model_fingerprint=fingerprint_of(model), fitted=fitted, views=views)

    def threshold(self, category: Category) -> Threshold:
        """From which score on a picture belongs to a category of the policy, and where that comes from."""
        learned = self.fitted.threshold(category.name) if self.fitted is not None else None
        return Threshold(*learned) if learned is not None else self.scorer.threshold(category)

    def moderate(
        self, sources: Iterable[ImageSource], *, batch_size: int = 32, workers: int | None = None
    ) -> Iterator[Verdict]:
        """A verdict for each picture, in their order; for a file that cannot be read, too.

        sources: any iterable, read only as far ahead as threads and model need.
        batch_size: how many views the model gets at a time. workers: threads, by default one per processor.
        """
        for seen in self._seen(sources, batch_size, workers):
            yield self._verdict(seen)

    def evidence(
        self, sources: Iterable[ImageSource], *, batch_size: int = 32, workers: int | None = None
    ) -> Iterator[tuple[ImageSource, Evidence | ClipError]]:
        """What is known of each picture, in their order, or why it could not be read."""
        for seen in self._seen(sources, batch_size, workers):
            if seen.error is not None:
                yield seen.source, seen.error
            else:
                sides = _Sides.of(self.scorer.looks(np.stack(seen.rows)), seen.views)
                yield seen.source, Evidence(sides.strongest, seen.rows[0])

    def _seen(self, sources: Iterable[ImageSource], batch_size: int, workers: int | None) -> Iterator[_Picture]:
        """Each picture once the model has seen all its views."""
        with contextlib.closing(_looked_at(sources, self.views, workers or _processors())) as looked_at:
            is_more = True
            while is_more:
                batches = _Batches(looked_at, most_waiting=4 * batch_size)
                for encoded in encode_images(
                    self.model,
                    self.preprocess,
                    batches.pixels(),
                    batch_size=batch_size,
                    workers=workers,
                    on_error=batches.fail,
                ):
                    batches.put(encoded.positions, encoded.embeddings)
                    yield from batches.done()
                yield from batches.done()
                is_more = not batches.is_end

    def _verdict(self, seen: _Picture) -> Verdict:
        path = "<bytes>" if not isinstance(seen.source, (str, os.PathLike)) else os.fspath(seen.source)
        if seen.error is not None:
            return Verdict(
                path=path,
                action=self.policy.unreadable,
                findings=(),
                policy=self._policy_fingerprint,
                model=self.model_fingerprint,
                sha256=seen.sha256,
                error=str(seen.error),
            )
        looks = self.scorer.looks(np.stack(seen.rows))
        sides = _Sides.of(looks, seen.views)
        findings = [self._finding(k, path, seen, looks, sides) for k in range(len(self._thresholds))]
        findings.sort(key=_rank)
        return Verdict(
            path=path,
            action=max((finding.action for finding in findings), key=ACTIONS.index),
            findings=tuple(findings),
            policy=self._policy_fingerprint,
            model=self.model_fingerprint,
            sha256=seen.sha256,
            frames=seen.frames,
            notes=seen.notes,
        )

    def _finding(self, k: int, path: str, seen: _Picture, looks: Looks, sides: _Sides) -> Finding:
        category, threshold = self.policy.categories[k], self._thresholds[k]
        as_is = self._score(k, sides.as_is, seen.rows[0])
        score, view, reservation = as_is, int(sides.as_is.view[k]), None
        if sides.bare is not None:
            bare = self._score(k, sides.bare, seen.rows[sides.bare_row])
            if bare > as_is:
                score, view = bare, int(sides.bare.view[k])
            elif bare < threshold.value <= as_is:
                reservation = f"rests on writing: {bare:.3f} where that is painted over"
        action: Action = category.action if score >= threshold.value else "allow"
        if reservation is not None:
            action = _milder(action, _WRITING_ALONE)
        exemption = self._exemption(k, path, seen, int(looks.exemption[view, k])) if action != "allow" else None
        return Finding(
            category=category.name,
            score=score,
            threshold=threshold.value,
            prompt=self.scorer.contests[k].names[looks.word[view, k]],
            view=seen.views[view].name,
            action=_milder(action, exemption.action) if exemption is not None else action,
            severity=category.severity,
            exemption=_described(exemption) if exemption is not None else None,
            threshold_origin=threshold.origin,
            reservation=reservation,
        )

    def _score(self, k: int, side: Judged, embedding: NDArray[np.float32]) -> float:
        evidence = float(side.evidence[k])
        learned = None
        if self.fitted is not None:
            learned = self.fitted.score(self.policy.categories[k].name, evidence, embedding)
        return self.scorer.score(evidence) if learned is None else learned

    def _exemption(self, k: int, path: str, seen: _Picture, by_words: int) -> Exemption | None:
        """The mildest of the category's that hold. by_words: which of them fits the deciding view better, or -1."""
        holding = [
            exemption
            for place, exemption in enumerate(self.policy.categories[k].exemptions)
            if place == by_words
            or (exemption.path is not None and fnmatchcase(path, exemption.path))
            or (exemption.sha256 is not None and exemption.sha256 == seen.sha256)
        ]
        return min(holding, key=lambda exemption: ACTIONS.index(exemption.action), default=None)


class _Sides(NamedTuple):
    """What a picture says as it is, and what it says where its writing is painted over."""

    as_is: Judged
    bare: Judged | None
    """None if there is no writing."""
    bare_row: int
    """A view without writing."""

    @classmethod
    def of(cls, looks: Looks, views: Sequence[Seen]) -> _Sides:
        is_bare = np.array([view.kind == "without-text" for view in views])
        as_is = _judged_of(looks, views, np.flatnonzero(~is_bare))
        if not is_bare.any():
            return cls(as_is, None, 0)
        # Only the whole of a frame is painted over. What a tile shows, or was hidden, stands beside the writing.
        painted = {view.frame for view in views if view.kind == "without-text"}
        is_covered = np.array([view.kind in ("whole", "turned", "crop") and view.frame in painted for view in views])
        return cls(as_is, _judged_of(looks, views, np.flatnonzero(~is_covered)), int(is_bare.argmax()))

    @property
    def strongest(self) -> NDArray[np.float64]:
        """(K,)"""
        return self.as_is.evidence if self.bare is None else np.maximum(self.as_is.evidence, self.bare.evidence)


def _judged_of(looks: Looks, views: Sequence[Seen], rows: NDArray[np.intp]) -> Judged:
    found = judged(looks.evidence[rows], [views[row] for row in rows])
    return Judged(found.evidence, rows[found.view])


def _milder(one: Action, other: Action) -> Action:
    return min(one, other, key=ACTIONS.index)


def _described(exemption: Exemption) -> str:
    if exemption.prompts:
        return f"looks like {', '.join(exemption.prompts)}"
    return f"path {exemption.path}" if exemption.path is not None else f"sha256 {exemption.sha256}"


def _rank(finding: Finding) -> tuple[float | str, ...]:
    """Hits first, by action, severity and margin; the name, so that the order of categories makes no difference."""
    if not finding.is_hit:
        return 1, 0, 0, -finding.margin, finding.category
    severity = SEVERITIES.index(finding.severity)
    return 0, -ACTIONS.index(finding.action), -severity, -finding.margin, finding.category


# The stream -----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(slots=True, eq=False)
class _Picture:
    """What is known of one so far."""

    source: ImageSource
    views: tuple[Seen, ...] = ()
    frames: int = 1
    notes: tuple[str, ...] = ()
    sha256: str | None = None
    error: ClipError | None = None
    rows: list[NDArray[np.float32]] = dataclasses.field(default_factory=list)
    """Embeddings of the first of the views."""

    @property
    def is_done(self) -> bool:
        return self.error is not None or len(self.rows) == len(self.views)


class _Unreadable(NamedTuple):
    """Why a picture has no views, and its digest if its bytes could be read."""

    error: ImageError
    sha256: str | None


class _Batches:
    """Views on their way through the model, and the pictures that they belong to."""

    def __init__(self, looked_at: Iterator[tuple[ImageSource, Looked | _Unreadable]], most_waiting: int) -> None:
        self._looked_at = looked_at
        self._most_waiting = most_waiting
        self._waiting: deque[_Picture] = deque()
        self._owners: dict[int, _Picture] = {}  # of the views that the model has, by their position
        self.is_end = False

    def pixels(self) -> Iterator[NDArray[np.uint8]]:
        """Ends early where many pictures wait, as they do behind thousands that cannot be read."""
        position = 0
        while len(self._waiting) < self._most_waiting:
            found = next(self._looked_at, None)
            if found is None:
                self.is_end = True
                return
            source, looked = found
            if isinstance(looked, _Unreadable):
                self._waiting.append(_Picture(source, sha256=looked.sha256, error=looked.error))
                continue
            views = tuple(Seen(view.name, view.kind, view.frame) for view in looked.views)
            picture = _Picture(source, views, looked.frames, looked.notes, looked.sha256)
            self._waiting.append(picture)
            for view in looked.views:
                self._owners[position] = picture
                position += 1
                yield view.pixels

    def put(self, positions: Sequence[int], embeddings: NDArray[np.float32]) -> None:
        for position, embedding in zip(positions, embeddings, strict=True):
            self._owners.pop(position).rows.append(embedding)

    def fail(self, failure: Failure[Any]) -> None:
        """What is not finite compares with everything as False: such a picture is no hit, and none that is allowed."""
        error = ClipError("the features of a view are not finite; load the model with precision='fp32'")
        self._owners.pop(failure.position).error = error

    def done(self) -> Iterator[_Picture]:
        while self._waiting and self._waiting[0].is_done:
            yield self._waiting.popleft()


def _looked_at(
    sources: Iterable[ImageSource], how: Views, workers: int
) -> Generator[tuple[ImageSource, Looked | _Unreadable]]:
    """The views of each picture, those of the next ones being cut meanwhile; or why there are none."""
    pool = ThreadPoolExecutor(workers, thread_name_prefix="clip-views")
    pending: deque[tuple[ImageSource, Future[Looked | _Unreadable]]] = deque()
    rest = iter(sources)
    try:
        while True:
            for source in itertools.islice(rest, 2 * workers - len(pending)):
                pending.append((source, pool.submit(_look, source, how)))
            if not pending:
                return
            source, future = pending.popleft()
            looked = future.result()
            del future  # or the views of this picture would stay while the next is looked at
            yield source, looked
    finally:
        pool.shutdown(cancel_futures=True)


def _look(source: ImageSource, how: Views) -> Looked | _Unreadable:
    """What is no picture has bytes, too, by which a log can name it, and which may be moved."""
    sha256 = None
    try:
        name, data = bytes_of(source)
        sha256 = hashlib.sha256(data).hexdigest()
        return views_of_bytes(data, how, name=name)
    except ImageError as error:
        if sha256 is None and isinstance(source, (str, os.PathLike)):
            sha256 = _digest(source)
        return _Unreadable(error, sha256)


def _digest(path: str | os.PathLike[str]) -> str | None:
    """Of a file that may be too large to be held in memory; None if it cannot be read."""
    with contextlib.suppress(OSError, ValueError):  # ValueError: a null character in the path
        if os.path.isfile(path):  # noqa: PTH113  # a pipe would make us wait
            with open(path, "rb") as file:  # noqa: PTH123
                return hashlib.file_digest(file, "sha256").hexdigest()
    return None


def _processors() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
