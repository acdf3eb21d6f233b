"""What is wrong with pairs before training, found in one pass: ``examine`` a source, and read the report.

Pictures are decoded in threads; of each record 74 bytes are kept, and 16 of each caption, so that ten million pairs
need a gigabyte. Examples are read again at the end. ``doctor_page`` shows a report as text or as a page.
"""

from __future__ import annotations

import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from clip.data.captions import is_no_text, script, tokens
from clip.data.copies import (
    Kept,
    duplicates,
    equal_captions,
    overlap_of_captions,
    overlap_of_pictures,
    repeated_captions,
)
from clip.data.findings import EXAMPLES, Example, Finding, Place, Report, histogram
from clip.data.likeness import Signature, image_bytes, signature
from clip.data.records import Sample, Source
from clip.errors import ClipError, ConfigError

__all__ = ["examine"]

_TOKENS = (4, 8, 16, 32, 48, 64, 77)
_SIDES = (31, 63, 127, 223, 447, 895)
_ASPECTS = (1.1, 1.5, 2.0, 4.0)

# What is looked for in each record by itself: name, in words, remedy.
_CHECKS = {
    "unreadable-records": (
        "records that cannot be read",
        "mend or remove these rows; training leaves them out, and stops where they are many",
    ),
    "unreadable-pictures": ("pictures that cannot be decoded", "fetch them again, or remove their rows"),
    "blank-pictures": ("pictures of one colour", "remove them: often they are placeholders of a website"),
    "empty-captions": (
        "captions without a word",
        "remove them, or name the right column with --caption-column",
    ),
    "long-captions": (
        "captions over the context length",
        "training cuts their ends off; shorten them, or begin with what matters",
    ),
    "no-text": (
        "captions that are an address or a file name, or have no letters",
        "name the right column with --caption-column, or remove them",
    ),
    "broken-text": (
        "captions with U+FFFD, which stands for lost characters",
        "export the data again as UTF-8: the characters cannot be restored",
    ),
}


def examine(
    source: Source,
    *,
    context_length: int = 77,
    batch_size: int = 256,
    against: Sequence[Source] = (),
    workers: int | None = None,
    on_progress: Callable[[int], None] = lambda count: None,
) -> Report:
    """Reads every record once, and says what is wrong and what is there.

    context_length: of the model that is to be trained. batch_size: over all processes.
    against: evaluation sets; a picture of theirs that is also in ``source`` would make their figures worthless.
    workers: threads that decode; by default one per processor. on_progress: called with the number of records done.
    Raises DataError for a source without records. Bad records are findings.
    """
    for name, value, least in (("context_length", context_length, 3), ("batch_size", batch_size, 1)):
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    own, others = Kept(source), [Kept(other) for other in against]
    tally = _Tally(source.name, context_length)
    for index, sample, found in _readings(source, workers):
        captions = _tokens(sample)
        tally.add(index, sample, captions, found)
        own.add(index, captions, found)
        on_progress(1)
    for other in others:
        for index, sample, found in _readings(other.source, workers):
            other.add(index, _tokens(sample), found)
            on_progress(1)
    findings = [*tally.findings(), *duplicates(own)]
    if not source.class_names:  # whose captions repeat by design
        findings.append(repeated_captions(own))
    if others:
        findings.append(overlap_of_pictures(own, others))
        if not source.class_names and not any(other.source.class_names for other in others):
            findings.append(overlap_of_captions(own, others))
    return Report(
        source=source.name,
        against=tuple(other.source.name for other in others),
        records=len(source),
        pairs=tally.pairs,
        captions=tally.captions,
        findings=tuple(findings),
        formats=dict(tally.formats.most_common()),
        grey_pictures=tally.grey,
        sides=histogram(tally.sides, _SIDES),
        aspects=histogram(tally.aspects, _ASPECTS),
        context_length=context_length,
        tokens=histogram(tally.lengths, _TOKENS),
        scripts=dict(tally.scripts.most_common()),
        ascii_captions=tally.ascii,
        classes={name: tally.labels[label] for label, name in enumerate(source.class_names)},
        batch_size=batch_size,
        batches_per_epoch=-(-tally.pairs // batch_size),
        last_batch=(tally.pairs - 1) % batch_size + 1 if tally.pairs else 0,
        equal_captions_per_batch=equal_captions(own, min(batch_size, tally.pairs)),
    )


class _Tally:
    """Counts of what one record shows by itself, and the first examples of what is wrong."""

    def __init__(self, source: str, context_length: int) -> None:
        self._source = source
        self._context_length = context_length
        self._counts = Counter[str]()
        self._examples: dict[str, list[Example]] = {name: [] for name in _CHECKS}
        self.records = self.readable_records = self.captions = self.pairs = self.grey = self.ascii = 0
        self.formats, self.scripts, self.labels = Counter[str](), Counter[str](), Counter[int]()
        self.sides, self.aspects, self.lengths = Counter[float](), Counter[float](), Counter[float]()

    def add(
        self, index: int, sample: Sample | None, captions: Sequence[list[int]], found: Signature | ClipError
    ) -> None:
        """captions: the tokens of each."""
        self.records += 1
        if sample is None:
            self._note("unreadable-records", Place(source=self._source, index=index, key=""), str(found))
            return
        self.readable_records += 1
        place = Place(source=self._source, index=index, key=sample.key)
        has_words = self._add_captions(place, sample, captions)
        if isinstance(found, ClipError):
            self._note("unreadable-pictures", place, str(found).removeprefix("<bytes>: "))
            return
        self.pairs += has_words
        if sample.label is not None:
            self.labels[sample.label] += 1
        if found.is_blank:
            self._note("blank-pictures", place, f"{found.width} × {found.height} pixels of one colour")
        shorter, longer = sorted((found.width, found.height))
        self.sides[shorter] += 1
        self.aspects[round(longer / shorter, 2)] += 1
        self.formats[found.format] += 1
        self.grey += found.is_grey

    def _add_captions(self, place: Place, sample: Sample, captions: Sequence[list[int]]) -> bool:
        """Whether any caption has words."""
        has_words = False
        for caption, ids in zip(sample.captions, captions, strict=True):
            length = len(ids)
            self.captions += 1
            self.lengths[length + 2] += 1  # with start and end
            self.scripts[script(caption)] += 1
            self.ascii += caption.isascii()
            if not length:
                self._note("empty-captions", place, repr(caption[:100]))
                continue
            has_words = True
            if length + 2 > self._context_length:
                self._note("long-captions", place, f"{length + 2} tokens: {caption}")
            if is_no_text(caption):
                self._note("no-text", place, caption)
            if "\N{REPLACEMENT CHARACTER}" in caption:
                self._note("broken-text", place, caption)
        if not sample.captions:
            self._note("empty-captions", place, "there is none")
        return has_words

    def _note(self, name: str, place: Place, text: str) -> None:
        self._counts[name] += 1
        if len(self._examples[name]) < EXAMPLES:
            self._examples[name].append(Example(places=(place,), text=text[:500]))

    def findings(self) -> Iterator[Finding]:
        pictures = self.readable_records - self._counts["unreadable-pictures"]
        looked_at = {
            "unreadable-records": self.records,
            "unreadable-pictures": self.readable_records,
            "blank-pictures": pictures,
        }
        for name, (about, remedy) in _CHECKS.items():
            count = self._counts[name]
            yield Finding(
                name=name,
                about=about,
                count=count,
                of=looked_at.get(name, max(self.captions, count)),
                remedy=remedy,
                examples=tuple(self._examples[name]),
            )


def _readings(source: Source, workers: int | None) -> Iterator[tuple[int, Sample | None, Signature | ClipError]]:
    """Records in their order, each with its signature or its error; None for a record that cannot be read.

    Records are read in this thread, for a source may keep files open; the pool decodes.
    """
    workers = workers or _processors()
    pending: deque[tuple[int, Sample | None, Future[Signature | ClipError]]] = deque()
    pool = ThreadPoolExecutor(workers, thread_name_prefix="clip-doctor")
    try:
        for index in range(len(source)):
            try:
                sample = source[index]
            except ClipError as error:
                failed: Future[Signature | ClipError] = Future()
                failed.set_result(error)
                pending.append((index, None, failed))
            else:
                pending.append((index, sample, pool.submit(_signature, sample)))
            if len(pending) > 4 * workers:
                index, read, future = pending.popleft()
                yield index, read, future.result()
        while pending:
            index, read, future = pending.popleft()
            yield index, read, future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _tokens(sample: Sample | None) -> list[list[int]]:
    return [tokens(caption) for caption in sample.captions] if sample is not None else []


def _signature(sample: Sample) -> Signature | ClipError:
    try:
        return signature(image_bytes(sample.image))
    except ClipError as error:
        return error


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
