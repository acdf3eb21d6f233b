"""A source of records → embeddings with their labels and captions: what all evaluations begin with.

Each picture goes through the model once. A record that cannot be read or encoded is left out and told by its key; the
others keep their own labels.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clip.data.records import Sample, Source
from clip.errors import ConfigError, DataError, choices
from clip.evaluation.results import FailedItem
from clip.features import AnyImage, Failure, encode_images
from clip.inference.loading import Model
from clip.preprocess import Preprocess
from clip.prompts import checked_classes, same_text

__all__ = [
    "Answers",
    "Classes",
    "EmbeddedSource",
    "declared_answers",
    "embed_source",
    "labelled",
    "labelled_alike",
    "read_answers",
]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class EmbeddedSource:
    """N pictures of a source that could be read."""

    name: str
    keys: tuple[str, ...]
    rows: Tensor
    """(N,) int64, places in the source; ascending."""
    embeddings: Tensor
    """(N, E) float32, unit norm."""
    captions: tuple[tuple[str, ...], ...]
    labels: Tensor | None
    """(N,) int64, places in ``class_names``; None where the source has no classes."""
    class_names: tuple[str, ...]
    failures: tuple[FailedItem, ...]

    def __len__(self) -> int:
        return len(self.keys)


def embed_source(
    model: Model,
    preprocess: Preprocess,
    source: Source,
    *,
    batch_size: int = 64,
    workers: int | None = None,
    limit: int | None = None,
    advance: Callable[[int], None] = lambda count: None,
) -> EmbeddedSource:
    """The embeddings of a source, in its order.

    limit: only so many records, evenly spaced, so that sources sorted by class keep all classes.
    advance: told how many records are done.
    Raises DataError if no picture can be read.
    """
    rows = _rows(source, limit)
    if not rows:
        raise DataError(f"{source.name}: has no records; check the address")
    read: list[tuple[int, Sample]] = []  # position in the stream → record, without its picture
    failures: list[FailedItem] = []

    def pictures() -> Iterator[AnyImage]:
        for row in rows:
            try:
                sample = source[row]
            except DataError as error:
                failures.append(FailedItem(key=f"record {row}", row=row, reason=str(error)))
                advance(1)
                continue
            read.append((row, dataclasses.replace(sample, image=b"")))
            yield sample.image

    def on_error(failure: Failure[AnyImage]) -> None:
        row, sample = read[failure.position]
        failures.append(FailedItem(key=sample.key, row=row, reason=str(failure.error)))
        advance(1)

    positions: list[int] = []
    parts: list[NDArray[np.float32]] = []
    for batch in encode_images(
        model, preprocess, pictures(), batch_size=batch_size, workers=workers, on_error=on_error
    ):
        positions += batch.positions
        parts.append(batch.embeddings)
        advance(len(batch.positions))
    if not parts:
        raise DataError(f"{source.name}: none of {len(rows)} pictures can be read; the first: {failures[0].reason}")
    good = [read[position] for position in positions]
    labels = [sample.label for _, sample in good]
    missing = [sample.key for _, sample in good if sample.label is None]
    if source.class_names and missing:
        raise DataError(f"{source.name}: {missing[0]} has no label, though the source has classes; give it one")
    return EmbeddedSource(
        name=source.name,
        keys=tuple(sample.key for _, sample in good),
        rows=torch.tensor([row for row, _ in good]),
        embeddings=torch.from_numpy(np.concatenate(parts)),
        captions=tuple(sample.captions for _, sample in good),
        labels=torch.tensor(labels) if source.class_names else None,
        class_names=tuple(source.class_names),
        failures=tuple(sorted(failures, key=lambda item: item.row)),
    )


def _rows(source: Source, limit: int | None) -> Sequence[int]:
    count = len(source)
    if limit is None:
        return range(count)
    if limit < 1:
        raise ConfigError(f"limit is {limit}; it must be at least 1")
    return [i * count // min(limit, count) for i in range(min(limit, count))]


# Labels ---------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Answers:
    """What is known of N records without their pictures; the fields are those of ``EmbeddedSource``."""

    name: str
    captions: tuple[tuple[str, ...], ...]
    labels: Tensor | None
    class_names: tuple[str, ...]


def declared_answers(source: Source) -> Answers:
    """A record for each class that the source names; where it names none, those that it has."""
    names = tuple(source.class_names)
    if not names:
        return read_answers(source)
    captions = tuple((name,) for name in names)
    return Answers(name=source.name, captions=captions, labels=torch.arange(len(names)), class_names=names)


def read_answers(source: Source, *, limit: int | None = None) -> Answers:
    """Those of all records that can be read, or of evenly spaced ones; no picture is decoded.

    What cannot be read or has no label is passed over, and told when its picture is to be encoded.
    """
    captions: list[tuple[str, ...]] = []
    labels: list[int] = []
    for row in _rows(source, limit):
        with contextlib.suppress(DataError):
            sample = source[row]
            if source.class_names:
                if sample.label is None:
                    continue
                labels.append(sample.label)
            captions.append(sample.captions)
    if not captions:
        raise DataError(f"{source.name}: has no record that can be read; check the address")
    return Answers(
        name=source.name,
        captions=tuple(captions),
        labels=torch.tensor(labels) if source.class_names else None,
        class_names=tuple(source.class_names),
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Classes:
    """The classes that pictures are sorted into, and where each picture belongs."""

    synonyms: tuple[tuple[str, ...], ...]
    """K classes, each with its names; the first is the one it goes by."""
    labels: Tensor
    """(N,) int64."""

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(names[0] for names in self.synonyms)


def labelled(data: EmbeddedSource | Answers, class_names: Sequence[str | Sequence[str]] = ()) -> Classes:
    """The classes of a source, and the class of each picture.

    Without ``class_names``: the classes of the source; if it has none, its distinct captions, in alphabetical order.
    With ``class_names``: if they hold all names of the source, pictures go by name, and further names compete as
    distractors. Otherwise they replace the names of the source one by one, and must be as many.
    Raises DataError if a name of the source is in neither way there.
    """
    if data.labels is not None:
        own, index = data.class_names, data.labels
    else:
        first = [same_text(captions[0]) for captions in data.captions]
        spelled = {same: captions[0] for same, captions in zip(reversed(first), reversed(data.captions), strict=True)}
        own = tuple(spelled[same] for same in sorted(spelled))
        place = {same: i for i, same in enumerate(sorted(spelled))}
        index = torch.tensor([place[same] for same in first])
    if not class_names:
        return Classes(synonyms=tuple(checked_classes(own)), labels=index)
    synonyms = tuple(checked_classes(class_names))
    by_name = {same_text(name): i for i, names in enumerate(synonyms) for name in names}
    unknown = [name for name in own if same_text(name) not in by_name]
    if not unknown:
        mapping = torch.tensor([by_name[same_text(name)] for name in own])
        return Classes(synonyms=synonyms, labels=mapping[index])
    if data.labels is not None and len(unknown) == len(own) == len(synonyms):
        return Classes(synonyms=synonyms, labels=index)
    raise DataError(
        f"{data.name}: {len(unknown)} of {len(own)} classes are not among the {len(synonyms)} class names, such as "
        f"{unknown[0]!r} (there are {choices(unknown[0], by_name)[:200]}); name them all as the data does, or give as "
        "many other names in the order of the data's classes"
    )


def labelled_alike(
    data: EmbeddedSource | Answers,
    training: EmbeddedSource | Answers,
    class_names: Sequence[str | Sequence[str]] = (),
) -> tuple[Classes, Classes]:
    """The classes of test pictures, and those of training pictures, whose captions may name classes of the test."""
    classes = labelled(data, class_names)
    if not training.class_names and not class_names:
        class_names = classes.synonyms
    return classes, labelled(training, class_names)
