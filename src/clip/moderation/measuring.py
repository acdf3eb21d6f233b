"""Labelled pictures → what a model says of each, without copies of one another: what ``fitting`` learns from."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from clip.data.failures import BadRecord, Tolerance
from clip.data.likeness import Signature, components, image_bytes, signature
from clip.errors import ClipError, DataError
from clip.images import ImageSource
from clip.moderation.labels import Labels
from clip.moderation.policy import Category, Policy

__all__ = ["Judge", "Measured", "Sample", "measure"]

_SHOWN = 5

_log = logging.getLogger(__name__)

Array = NDArray[np.float64]


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
    """What of a ``Moderator`` is needed to learn from pictures."""

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


class Sample(NamedTuple):
    """N pictures of which it is known whether they belong to one category; at most one of a group for each label."""

    contrasts: Array
    """(N,)"""
    embeddings: NDArray[np.float32]
    """(N, E), unit norm."""
    belongs: NDArray[np.bool_]
    """(N,)"""
    groups: NDArray[np.int64]
    """(N,) equal for pictures that are nearly the same."""

    def part(self, rows: NDArray[np.intp]) -> Sample:
        return Sample(self.contrasts[rows], self.embeddings[rows], self.belongs[rows], self.groups[rows])


class _Picture(NamedTuple):
    path: str
    line: int
    known: dict[str, bool]
    sha256: str
    signature: Signature
    contrasts: Array
    embedding: NDArray[np.float32]


class Measured:
    """Pictures that were read, in an order that their contents decide."""

    def __init__(self, policy: Policy, name: str, read: Sequence[_Picture], unreadable: int) -> None:
        self.files = len(read)
        """Files that were read."""
        self.unreadable = unreadable
        """Files that were not."""
        self._pictures = _merged(name, read)
        groups = _groups([picture.signature for picture in self._pictures])
        self._samples = {}
        kept: set[int] = set()
        for k, category in enumerate(policy.categories):
            known = [i for i, picture in enumerate(self._pictures) if category.name in picture.known]
            belongs = np.array([self._pictures[i].known[category.name] for i in known], np.bool_)
            # Copies would count as evidence, and are none: one picture for each group and label.
            _, first = np.unique(2 * groups[known] + belongs, return_index=True)
            rows = [known[i] for i in sorted(first.tolist())]
            kept.update(rows)
            self._samples[category.name] = self._sample(category.name, k, rows, groups[rows])
        self.duplicates = len(read) - len(kept)
        """Files that were passed over because another one is nearly the same, with the same labels."""

    def sample(self, category: str) -> Sample:
        return self._samples[category]

    def _sample(self, name: str, k: int, rows: Sequence[int], groups: NDArray[np.int64]) -> Sample:
        pictures = [self._pictures[i] for i in rows]
        width = len(self._pictures[0].embedding)
        belongs = np.array([picture.known[name] for picture in pictures], np.bool_)
        _warn_of_disputes(name, pictures, groups)
        return Sample(
            np.array([picture.contrasts[k] for picture in pictures], np.float64),
            np.array([picture.embedding for picture in pictures], np.float32).reshape(-1, width),
            belongs,
            groups,
        )


def measure(
    moderator: Judge,
    labels: Labels,
    *,
    max_failures: float = 0.1,
    batch_size: int = 32,
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
    on_failure: Callable[[str], None] = lambda message: None,
) -> Measured:
    """Reads all labelled pictures once.

    max_failures: the share of pictures that may be unreadable; they are left out and counted.
    on_progress: told how many more pictures are done. on_failure: told of each that cannot be read.
    Raises DataError if more than that are unreadable, or if the same file has different labels under two paths.
    """
    tolerance = Tolerance(max_failures)
    paths = [picture.path for picture in labels.pictures]
    found: list[_Picture] = []
    evidence = moderator.evidence(paths, batch_size=batch_size, workers=workers)
    with ThreadPoolExecutor(workers or os.cpu_count(), thread_name_prefix="clip-likeness") as pool:
        marks = pool.map(_marks, paths)
        try:
            for row, (picture, (_, seen), mark) in enumerate(zip(labels.pictures, evidence, marks, strict=True)):
                if isinstance(seen, ClipError) or isinstance(mark, ClipError):
                    error = seen if isinstance(seen, ClipError) else mark
                    assert isinstance(error, ClipError)
                    failure = BadRecord.of(row, picture.path, error)
                    on_failure(failure.message)
                    tolerance.count(1, [failure])
                else:
                    tolerance.count(1, [])
                    about = (picture.path, picture.line, picture.known)
                    found.append(_Picture(*about, *mark, seen.contrasts, seen.embedding))
                on_progress(1)
        finally:
            pool.shutdown(cancel_futures=True)
    if not found:
        raise DataError(f"{labels.name}: none of its {len(paths)} pictures can be read; check the paths")
    return Measured(moderator.policy, labels.name, found, len(paths) - len(found))


def _marks(path: str) -> tuple[str, Signature] | ClipError:
    try:
        data = image_bytes(Path(path))
        return hashlib.sha256(data).hexdigest(), signature(data)
    except ClipError as error:
        return error


def _merged(name: str, read: Sequence[_Picture]) -> list[_Picture]:
    """One for each content, in an order that does not depend on the table's."""
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
    return [by_content[key] for key in sorted(by_content)]


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


def _warn_of_disputes(name: str, pictures: Sequence[_Picture], groups: NDArray[np.int64]) -> None:
    members = defaultdict(list)
    for picture, group in zip(pictures, groups.tolist(), strict=True):
        members[group].append(picture)
    disputed = [both if both[0].known[name] else both[::-1] for both in members.values() if len(both) == 2]
    for yes, no in disputed[:_SHOWN]:
        _log.warning("%s and %s look nearly the same, and only the first is labelled %s", yes.path, no.path, name)
    if len(disputed) > _SHOWN:
        _log.warning("%d more pairs of such pictures for %s", len(disputed) - _SHOWN, name)
