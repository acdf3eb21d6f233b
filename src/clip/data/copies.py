"""What is remembered of a source while it is examined, and which of its pictures and captions occur again.

Of each record 74 bytes are kept and 16 of each caption. Examples are read again.
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from clip.data.captions import digest, tokens
from clip.data.findings import EXAMPLES, Example, Finding, Place
from clip.data.likeness import COLOURS, Signature, components, similar_pairs
from clip.data.records import Source
from clip.errors import ClipError, DataError

__all__ = ["Kept", "duplicates", "equal_captions", "overlap_of_captions", "overlap_of_pictures", "repeated_captions"]

_SHOWN_COPIES = 4


class Kept:
    """What is kept of the records of one source."""

    def __init__(self, source: Source) -> None:
        count = len(source)
        if not count:
            raise DataError(f"{source.name}: has no records; check the address")
        self.source = source
        self.readable = np.zeros(count, np.bool_)
        self.blank = np.zeros(count, np.bool_)
        self.file = np.zeros(count, np.uint64)
        self.pixels = np.zeros(count, np.uint64)
        self.gradients = np.zeros(count, np.uint64)
        self.colours = np.zeros((count, COLOURS), np.uint8)
        self.caption_digests = array("Q")
        self.caption_owners = array("q")

    def add(self, index: int, captions: Sequence[list[int]], found: Signature | ClipError) -> None:
        """captions: their tokens."""
        for ids in captions:
            if ids:
                self.caption_digests.append(digest(ids))
                self.caption_owners.append(index)
        if isinstance(found, Signature):
            self.readable[index] = True
            self.blank[index] = found.is_blank
            self.file[index], self.pixels[index] = found.file, found.pixels
            self.gradients[index], self.colours[index] = found.gradients, found.colours

    def captions(self) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
        """Digests of the captions that are not empty, and the records that they belong to."""
        return np.frombuffer(self.caption_digests, np.uint64), np.frombuffer(self.caption_owners, np.int64)

    def caption(self, index: int, wanted: int) -> str:
        """Reads a record again, for its caption with this digest."""
        return next(text for text in self.source[index].captions if digest(tokens(text)) == wanted)

    def places(self, indices: Sequence[int]) -> tuple[Place, ...]:
        """Reads records again, for their keys."""
        return tuple(Place(source=self.source.name, index=i, key=self.source[i].key) for i in indices)


def repeated_captions(own: Kept) -> Finding:
    digests, owners = own.captions()
    order = np.lexsort((owners, digests))
    digests, owners = digests[order], owners[order]
    # A record that has the same caption twice repeats it only for itself.
    is_new = np.ones(len(digests), np.bool_)
    is_new[1:] = (digests[1:] != digests[:-1]) | (owners[1:] != owners[:-1])
    digests, owners = digests[is_new], owners[is_new]
    _, first, counts = np.unique(digests, return_index=True, return_counts=True)
    repeated = np.flatnonzero(counts > 1)
    examples = []
    for place in repeated[np.argsort(-counts[repeated], kind="stable")][:EXAMPLES].tolist():
        rows = owners[first[place] : first[place] + min(counts[place], _SHOWN_COPIES)].tolist()
        caption = own.caption(rows[0], int(digests[first[place]]))
        examples.append(Example(places=own.places(rows), text=f"{counts[place]} ×: {caption[:500]}"))
    return Finding(
        name="repeated-captions",
        about="captions that other records have too",
        count=int(counts[repeated].sum()),
        of=len(digests),
        remedy="in one batch they count as wrong answers to each other; make them more specific, or train with "
        "--mask-equal",
        examples=tuple(examples),
    )


def equal_captions(own: Kept, batch_size: int) -> float:
    """The expectation over all batches, with one caption drawn for each record."""
    digests, owners = own.captions()
    usable = own.readable[owners]
    digests, owners = digests[usable], owners[usable]
    records = len(np.unique(owners))
    if records < 2:
        return 0.0
    chance = 1.0 / np.bincount(owners)[owners]
    _, which = np.unique(digests, return_inverse=True)
    equal = float((np.bincount(which, chance) ** 2).sum() - (chance**2).sum())
    return max(0.0, equal) / (records * (records - 1)) * (batch_size * (batch_size - 1) / 2)


def _first_of_equal(values: NDArray[np.uint64]) -> NDArray[np.int64]:
    """For each place the first place with the same value."""
    _, first, which = np.unique(values, return_index=True, return_inverse=True)
    return first[which].astype(np.int64)


def duplicates(own: Kept) -> Iterator[Finding]:
    """Three findings, each about what the ones before left: a picture is counted once."""
    rows = np.flatnonzero(own.readable)
    remedy = "keep one of each, with all its captions"
    for name, about, values in (
        ("same-file", "pictures that are a copy of another file", own.file),
        ("same-pixels", "pictures with the pixels of another, in another file", own.pixels),
    ):
        labels = _first_of_equal(values[rows])
        yield _copies(own, name, about, remedy, rows, labels)
        rows = rows[labels == np.arange(len(rows))]
    rows = rows[~own.blank[rows]]
    labels = np.arange(len(rows))
    components(labels, own.gradients[rows], own.colours[rows])
    about = "pictures that are nearly another one: compressed again, resized, a little brighter"
    yield _copies(own, "near-duplicates", about, f"look at them; {remedy}", rows, labels)


def _copies(
    own: Kept, name: str, about: str, remedy: str, rows: NDArray[np.intp], labels: NDArray[np.int64]
) -> Finding:
    order = np.argsort(labels, kind="stable")
    first, counts = np.unique(labels[order], return_index=True, return_counts=True)[1:]
    several = np.flatnonzero(counts > 1)
    examples = []
    for place in several[np.argsort(-counts[several], kind="stable")][:EXAMPLES].tolist():
        members = rows[order[first[place] : first[place] + min(counts[place], _SHOWN_COPIES)]]
        examples.append(Example(places=own.places(members.tolist()), text=f"{counts[place]} alike"))
    return Finding(
        name=name,
        about=about,
        count=int(counts[several].sum() - len(several)),
        of=int(own.readable.sum()),
        remedy=remedy,
        examples=tuple(examples),
    )


def overlap_of_pictures(own: Kept, others: Sequence[Kept]) -> Finding:
    own_rows = np.flatnonzero(own.readable)
    first_with = dict(zip(own.pixels[own_rows].tolist()[::-1], own_rows.tolist()[::-1], strict=True))
    count = of = 0
    examples: list[Example] = []
    for other in others:
        other_rows = np.flatnonzero(other.readable)
        match = np.array([first_with.get(pixels, -1) for pixels in other.pixels[other_rows].tolist()], np.int64)
        _match_similar(own, own_rows, other, other_rows, match)
        found = np.flatnonzero(match >= 0)
        count += len(found)
        of += len(other_rows)
        for place in itertools.islice(found.tolist(), EXAMPLES - len(examples)):
            theirs, ours = int(other_rows[place]), int(match[place])
            both = (*other.places([theirs]), *own.places([ours]))
            examples.append(Example(places=both, text="one of the evaluation set, one of this data"))
    return Finding(
        name="overlap-pictures",
        about="pictures of the evaluation set that are, or nearly are, in this data",
        count=count,
        of=of,
        remedy="remove them here; what is measured with them is memory",
        examples=tuple(examples),
    )


def _match_similar(
    own: Kept, own_rows: NDArray[np.intp], other: Kept, other_rows: NDArray[np.intp], match: NDArray[np.int64]
) -> None:
    """Fills ``match``, for each of the other rows a row of ours or -1, where pictures are nearly the same."""
    own_rows = own_rows[~own.blank[own_rows]]
    searched = np.flatnonzero((match < 0) & ~other.blank[other_rows])
    ours = len(own_rows)
    gradients = np.concatenate((own.gradients[own_rows], other.gradients[other_rows[searched]]))
    colours = np.concatenate((own.colours[own_rows], other.colours[other_rows[searched]]))

    def is_between_the_two(left: NDArray[np.intp], right: NDArray[np.intp]) -> NDArray[np.bool_]:
        between: NDArray[np.bool_] = (left < ours) != (right < ours)
        return between

    for left, right in similar_pairs(gradients, colours, wanted=is_between_the_two):
        low, high = np.minimum(left, right), np.maximum(left, right)
        match[searched[high - ours]] = own_rows[low]


def overlap_of_captions(own: Kept, others: Sequence[Kept]) -> Finding:
    digests = own.captions()[0]
    count = of = 0
    examples: list[Example] = []
    for other in others:
        theirs, owners = other.captions()
        found = np.flatnonzero(np.isin(theirs, digests))
        count += len(found)
        of += len(theirs)
        for place in itertools.islice(found.tolist(), EXAMPLES - len(examples)):
            index = int(owners[place])
            caption = other.caption(index, int(theirs[place]))
            examples.append(Example(places=other.places([index]), text=caption[:500]))
    return Finding(
        name="overlap-captions",
        about="captions of the evaluation set that are in this data",
        count=count,
        of=of,
        remedy="short ones are chance; long ones point to the same origin, so look at their pictures",
        examples=tuple(examples),
    )
