"""Labelled pictures → calibrated scores, thresholds and linear heads for a policy, with figures from other pictures.

    fitted = fit(Moderator.open("policy.yaml"), read_labels("labels.csv", policy))
    fitted.save("policy.fit.json")

Half of the pictures are learned from: the calibration, the head and the threshold are chosen there. The other half is
used once, for the figures and the claim, so that nothing was chosen by what it shows. Nearly equal pictures are on the
same side. The reasons, and what became of claims in simulations: docs/moderation-fit.md.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

import clip
from clip.data.failures import BadRecord, Tolerance
from clip.data.likeness import Signature, components, image_bytes, signature
from clip.errors import ClipError, ConfigError, DataError
from clip.images import ImageSource
from clip.moderation.claims import figures
from clip.moderation.fitted import Fitted
from clip.moderation.labels import Labels
from clip.moderation.learning import Heads, fit_category
from clip.moderation.policy import Category, Policy

__all__ = ["Fitted", "Judge", "fit"]

_SHOWN = 5

_log = logging.getLogger(__name__)

Array = NDArray[np.float64]
Truth = NDArray[np.bool_]


class _Evidence(Protocol):
    @property
    def contrasts(self) -> Array: ...
    @property
    def embedding(self) -> NDArray[np.float32]: ...


class _Threshold(Protocol):
    @property
    def value(self) -> float: ...


class _Scorer(Protocol):
    def score(self, evidence: float, /) -> float: ...
    def threshold(self, category: Category, /) -> _Threshold: ...


class _Views(Protocol):
    @property
    def name(self) -> str: ...


class Judge(Protocol):
    """What of a ``Moderator`` is used here."""

    @property
    def policy(self) -> Policy: ...
    @property
    def model_fingerprint(self) -> str: ...
    @property
    def views(self) -> _Views: ...
    @property
    def scorer(self) -> _Scorer: ...

    def evidence(
        self, sources: Iterable[ImageSource], *, batch_size: int = 32, workers: int | None = None
    ) -> Iterator[tuple[ImageSource, _Evidence | ClipError]]: ...


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
    """What the labels teach about each category of the moderator's policy.

    seed: of the split into the two halves, and of the bootstrap; the order of the labels makes no difference.
    heads: whether categories may get a linear head on the embeddings. "auto": where it predicts better than the
        contrast by more than chance; True: wherever there are pictures enough; False: nowhere.
    max_failures: the share of pictures that may be unreadable; they are left out and counted.
    on_progress: told how many more pictures are done. on_failure: told of each that cannot be read.
    Raises DataError if more than that are unreadable, or if the same file has different labels under two paths.
    """
    if heads not in (True, False, "auto"):
        raise ConfigError(f"heads is {heads!r}; it must be True, False or 'auto'")
    read, unreadable = _read(moderator, labels, max_failures, batch_size, workers, on_progress, on_failure)
    pictures, same = _merged(labels.name, read)
    groups = _groups([picture.signature for picture in pictures])
    fits = []
    counted: set[int] = set()
    for k, category in enumerate(moderator.policy.categories):
        known = [i for i, picture in enumerate(pictures) if category.name in picture.known]
        belongs = np.array([pictures[i].known[category.name] for i in known], np.bool_)
        kept = _one_of_each(groups[known], belongs)
        _warn_of_disputes(category.name, [pictures[known[i]] for i in kept], groups[known][kept], belongs[kept])
        rows = [known[i] for i in kept]
        counted.update(rows)
        contrasts = np.array([pictures[i].contrasts[k] for i in rows], np.float64)
        width = len(pictures[0].embedding)
        embeddings = np.array([pictures[i].embedding for i in rows], np.float32).reshape(-1, width)
        found = fit_category(category, contrasts, embeddings, belongs[kept], groups[rows], seed=seed, heads=heads)
        if found.held_out is not None:
            by_policy = np.array([moderator.scorer.score(float(contrasts[i])) for i in found.held_out])
            before = figures(
                by_policy, belongs[kept][found.held_out], moderator.scorer.threshold(category).value, seed=seed
            )
            fits.append(dataclasses.replace(found.fit, before=before))
        else:
            fits.append(found.fit)
    return Fitted(
        policy=moderator.policy.fingerprint,
        policy_name=moderator.policy.name,
        model=moderator.model_fingerprint,
        views=moderator.views.name,
        seed=seed,
        date=datetime.now(UTC).isoformat(timespec="seconds"),
        version=clip.__version__,
        pictures=len(read),
        unreadable=unreadable,
        duplicates=same + len(pictures) - len(counted),
        categories=tuple(fits),
    )


# Pictures -------------------------------------------------------------------------------------------------------------


class _Picture(NamedTuple):
    path: str
    line: int
    known: dict[str, bool]
    sha256: str
    signature: Signature
    contrasts: Array
    embedding: NDArray[np.float32]


def _read(
    moderator: Judge,
    labels: Labels,
    max_failures: float,
    batch_size: int,
    workers: int | None,
    on_progress: Callable[[int], None],
    on_failure: Callable[[str], None],
) -> tuple[list[_Picture], int]:
    """The pictures that can be read, and how many cannot."""
    tolerance = Tolerance(max_failures)
    paths = [picture.path for picture in labels.pictures]
    found: list[_Picture] = []
    evidence = moderator.evidence(paths, batch_size=batch_size, workers=workers)
    with ThreadPoolExecutor(workers or os.cpu_count(), thread_name_prefix="clip-likeness") as pool:
        marks = pool.map(_marks, paths)
        try:
            for row, (picture, (_, seen), mark) in enumerate(zip(labels.pictures, evidence, marks, strict=True)):
                problem = next((item for item in (seen, mark) if isinstance(item, ClipError)), None)
                failures = [BadRecord.of(row, picture.path, problem)] if problem else []
                for failure in failures:
                    on_failure(failure.message)
                tolerance.count(1, failures)
                if not isinstance(seen, ClipError) and not isinstance(mark, ClipError):
                    found.append(
                        _Picture(picture.path, picture.line, picture.known, *mark, seen.contrasts, seen.embedding)
                    )
                on_progress(1)
        finally:
            pool.shutdown(cancel_futures=True)
    if not found:
        raise DataError(f"{labels.name}: none of its {len(paths)} pictures can be read; check the paths")
    return found, len(paths) - len(found)


def _marks(path: str) -> tuple[str, Signature] | ClipError:
    try:
        data = image_bytes(Path(path))
        return hashlib.sha256(data).hexdigest(), signature(data)
    except ClipError as error:
        return error


def _merged(name: str, read: Sequence[_Picture]) -> tuple[list[_Picture], int]:
    """One for each content, in an order that does not depend on the table's; and how many were one already."""
    by_content: dict[str, _Picture] = {}
    disputes = []
    for picture in sorted(read, key=lambda picture: picture.line):
        first = by_content.setdefault(picture.sha256, picture)
        for category, belongs in picture.known.items():
            if first.known.get(category, belongs) != belongs:
                disputes.append(f"lines {first.line} ({first.path}) and {picture.line} ({picture.path}) for {category}")
        by_content[picture.sha256] = first._replace(known={**picture.known, **first.known})
    if disputes:
        more = f" and {len(disputes) - _SHOWN} more" if len(disputes) > _SHOWN else ""
        raise DataError(
            f"{name}: the same picture is labelled both yes and no: {'; '.join(disputes[:_SHOWN])}{more}; correct one"
        )
    return [by_content[key] for key in sorted(by_content)], len(read) - len(by_content)


def _groups(signatures: Sequence[Signature]) -> NDArray[np.int64]:
    """(N,) the first picture that each is nearly the same as, through others if need be."""
    _, first, which = np.unique([each.pixels for each in signatures], return_index=True, return_inverse=True)
    groups = first[which].astype(np.int64)
    rows = np.flatnonzero([not each.is_blank for each in signatures])
    compared = [each for each in signatures if not each.is_blank]
    place = np.full(len(groups), -1)
    place[rows] = np.arange(len(rows))
    labels = place[groups[rows]].astype(np.int64)  # equal pixels are blank together
    gradients = np.array([each.gradients for each in compared], np.uint64)
    components(labels, gradients, np.array([each.colours for each in compared], np.uint8).reshape(len(rows), -1))
    groups[rows] = rows[labels]
    return groups


def _one_of_each(groups: NDArray[np.int64], belongs: Truth) -> NDArray[np.intp]:
    """One picture for each group and label: copies would count as evidence, and are none."""
    _, first = np.unique(2 * groups + belongs, return_index=True)
    return np.sort(first)


def _warn_of_disputes(name: str, pictures: Sequence[_Picture], groups: NDArray[np.int64], belongs: Truth) -> None:
    members = defaultdict(list)
    for picture, group, label in zip(pictures, groups.tolist(), belongs.tolist(), strict=True):
        members[group].append((label, picture))
    disputed = [sorted(both, key=lambda pair: pair[0]) for both in members.values() if len(both) == 2]
    for (_, no), (_, yes) in disputed[:_SHOWN]:
        _log.warning("%s and %s look nearly the same, and only the first is labelled %s", yes.path, no.path, name)
    if len(disputed) > _SHOWN:
        _log.warning("%d more pairs of such pictures for %s", len(disputed) - _SHOWN, name)
