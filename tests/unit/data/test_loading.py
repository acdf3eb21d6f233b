"""Batches are the same whoever decodes them, on however many ranks, and from wherever a run goes on."""

from __future__ import annotations

import dataclasses
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from clip.data import loading
from clip.data.augment import Augmentation, TrainingPreprocess
from clip.data.loading import Batch, batches
from clip.data.records import Sample
from clip.data.sources import Mixture, open_source
from clip.errors import ConfigError, DataError
from clip.preprocess import Preprocess
from clip.simple_tokenizer import default_tokenizer, token_ids

LARGE_DIALS = Augmentation(crop_scale=(0.3, 1.0), flip=0.5, rotate=20, colour=0.5, grey=0.3)


def _pgm(level: int) -> bytes:
    return b"P5 4 4 255\n" + bytes([level] * 16)


class Generated:
    """Grey pictures; record i has the captions "i 0", "i 1", "i 2". Those in ``bad`` are no pictures."""

    name = "generated"
    class_names: tuple[str, ...] = ()

    def __init__(self, length: int, bad: frozenset[int] = frozenset(), labels: bool = False) -> None:
        self._length, self._bad, self._labels = length, bad, labels

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Sample:
        image = b"no picture" if index in self._bad else _pgm(index % 256)
        captions = tuple(f"{index} {i}" for i in range(3))
        return Sample(key=f"key {index}", image=image, captions=captions, label=index % 5 if self._labels else None)


def _run(source: object, **options: object) -> list[Batch]:
    defaults: dict[str, object] = {
        "transform": TrainingPreprocess(Preprocess(size=8), augmentation=LARGE_DIALS),
        "context_length": 12,
        "global_batch_size": 40,
        "seed": 3,
        "steps": 5,
        "workers": 0,
    }
    return list(batches(source, **{**defaults, **options}))  # type: ignore[arg-type]


def _assert_equal(one: Batch, other: Batch) -> None:
    assert (one.step, one.epoch, one.keys, one.captions) == (other.step, other.epoch, other.keys, other.captions)
    for name in ("images", "texts", "rows"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.failures == other.failures


def _joined(parts: list[Batch]) -> Batch:
    """The batches of all ranks as one."""
    return Batch(
        images=torch.cat([part.images for part in parts]),
        texts=torch.cat([part.texts for part in parts]),
        keys=[key for part in parts for key in part.keys],
        rows=torch.cat([part.rows for part in parts]),
        captions=[caption for part in parts for caption in part.captions],
        labels=None,
        failures=tuple(failure for part in parts for failure in part.failures),
        step=parts[0].step,
        epoch=parts[0].epoch,
        wait_seconds=0.0,
    )


def test_a_batch() -> None:
    batch = _run(Generated(100, labels=True))[0]
    assert batch.images.shape == (40, 3, 8, 8) and batch.images.dtype == torch.float32
    assert batch.texts.shape == (40, 12) and batch.texts.dtype == torch.int64
    assert batch.keys == [f"key {row}" for row in batch.rows.tolist()]
    assert all(caption.split()[0] == str(row) for caption, row in zip(batch.captions, batch.rows.tolist(), strict=True))
    assert np.array_equal(batch.texts.numpy(), token_ids(batch.captions, 12))
    assert batch.labels is not None and batch.labels.tolist() == [row % 5 for row in batch.rows.tolist()]
    assert batch.wait_seconds >= 0


def test_an_epoch_holds_each_record_once_and_the_next_begins_anew() -> None:
    run = _run(Generated(100), steps=6)
    assert [(batch.epoch, len(batch.keys)) for batch in run] == [(0, 40), (0, 40), (0, 20), (1, 40), (1, 40), (1, 20)]
    for epoch in (run[:3], run[3:]):
        assert sorted(torch.cat([batch.rows for batch in epoch]).tolist()) == list(range(100))
    assert run[0].rows.tolist() != run[3].rows.tolist()


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_workers_change_nothing(workers: int) -> None:
    for one, other in zip(_run(Generated(100)), _run(Generated(100), workers=workers), strict=True):
        _assert_equal(one, other)


def test_processes_change_nothing(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_MOST_THREADS", 0)
    source = open_source(pictures)
    options = {"global_batch_size": 5, "steps": 4}
    for one, other in zip(_run(source, **options), _run(source, workers=1, **options), strict=True):
        _assert_equal(one, other)


class WhatSigintDoes(Generated):
    """Its captions say whether Ctrl-C would end the process that reads them."""

    def __getitem__(self, index: int) -> Sample:
        word = "ignored" if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else "deadly"
        return dataclasses.replace(super().__getitem__(index), captions=(word,))


def test_processes_leave_interrupts_to_their_parent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loading, "_MOST_THREADS", 0)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it may be ignored already
    try:
        (batch,) = _run(WhatSigintDoes(8), steps=1, workers=1)
        assert set(batch.captions) == {"ignored"}
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("world_size", [2, 3, 64])
def test_ranks_change_nothing(world_size: int) -> None:
    whole = _run(Generated(100), steps=3)
    parts = [_run(Generated(100), steps=3, rank=rank, world_size=world_size) for rank in range(world_size)]
    for step in range(3):
        _assert_equal(_joined([part[step] for part in parts]), whole[step])
    sizes = [len(part[2].keys) for part in parts]
    assert max(sizes) - min(sizes) <= 1 and parts[0][2].images.shape == (sizes[0], 3, 8, 8)


@pytest.mark.parametrize("first_step", [1, 3, 4, 5])
def test_a_run_goes_on_where_it_was(first_step: int) -> None:
    whole = _run(Generated(100))
    rest = _run(Generated(100), first_step=first_step, workers=2)
    assert len(rest) == 5 - first_step
    for one, other in zip(whole[first_step:], rest, strict=True):
        _assert_equal(one, other)


def test_captions_and_augmentation_are_drawn_anew_each_epoch_and_evenly() -> None:
    run = _run(Generated(120), global_batch_size=120, steps=9)
    drawn = np.zeros(3)
    for batch in run:
        drawn += np.bincount([int(caption.split()[1]) for caption in batch.captions], minlength=3)
    assert (np.abs(drawn - 360) < 5 * np.sqrt(240)).all()
    by_row = [dict(zip(batch.rows.tolist(), batch.images, strict=True)) for batch in run[:2]]
    assert sum(not torch.equal(by_row[0][row], by_row[1][row]) for row in range(120)) > 100


def test_a_part_of_a_mixture_that_comes_round_early_is_drawn_anew() -> None:
    mixture = Mixture((Generated(90), Generated(10)), (1.0, 9.0))
    batch = _run(mixture, global_batch_size=100, steps=1)[0]
    seen = [caption for caption, row in zip(batch.captions, batch.rows.tolist(), strict=True) if row == 92]
    assert len(seen) == 9 and len(set(seen)) > 1


def test_without_shuffling_records_and_captions_are_the_first() -> None:
    batch = _run(Generated(50), shuffle=False, transform=Preprocess(size=4))[0]
    assert batch.rows.tolist() == list(range(40))
    assert batch.captions == [f"{row} 0" for row in range(40)]
    expected = Preprocess(size=4)(np.full((4, 4, 3), 7, dtype=np.uint8))
    assert torch.equal(batch.images[7], expected)


def test_bad_records_make_their_batch_smaller_and_are_named() -> None:
    good, run = _run(Generated(100), steps=3), _run(Generated(100, frozenset({5, 77})), steps=3)
    assert [len(batch.keys) + len(batch.failures) for batch in run] == [40, 40, 20]
    failures = sorted(failure for batch in run for failure in batch.failures)
    assert [failure.row for failure in failures] == [5, 77]
    assert failures[0].message.startswith("key 5: not a picture in one of the formats")
    for one, other in zip(good, run, strict=True):  # the others are as they would be without
        kept = [i for i, row in enumerate(one.rows.tolist()) if row not in (5, 77)]
        assert torch.equal(one.images[kept], other.images)


def test_too_many_bad_records_are_an_error() -> None:
    bad = frozenset(range(0, 1000, 50))  # 2 %
    assert (
        sum(
            len(batch.failures)
            for batch in _run(Generated(1000, bad), transform=Preprocess(size=4), steps=25, max_failures=0.05)
        )
        == 20
    )
    with pytest.raises(DataError, match=r"11 of \d+ records could not be read, more than the share of 0\.01"):
        _run(Generated(1000, bad), transform=Preprocess(size=4), steps=25)
    with pytest.raises(DataError, match=r"1 of .* more than the share of 0 that max_failures allows; the last: key"):
        _run(Generated(1000, bad), transform=Preprocess(size=4), steps=25, max_failures=0)
    assert len(_run(Generated(10, frozenset(range(9))), steps=1)[0].keys) == 1  # a few say nothing about a share


def test_a_batch_of_bad_records_only_is_empty() -> None:
    batch = _run(Generated(3, frozenset(range(3))), steps=1)[0]
    assert batch.images.shape == (0, 3, 8, 8) and batch.texts.shape == (0, 12) and len(batch.failures) == 3


def test_long_captions_are_cut_and_special_words_are_text(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(_pgm(1))
    (tmp_path / "a.txt").write_text("<|endoftext|> " + "word " * 50)
    batch = _run(open_source(tmp_path), steps=1)[0]
    end = default_tokenizer().encoder["<|endoftext|>"]
    assert batch.texts[0, -1] == end and (batch.texts[0] == end).sum() == 1


def test_what_a_caller_stops_reading_is_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    before = threading.active_count()
    stream = batches(
        Generated(100_000),
        transform=Preprocess(size=8),
        context_length=12,
        global_batch_size=16,
        seed=0,
        steps=10**6,
        workers=2,
    )
    next(stream)
    assert threading.active_count() > before
    stream.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_the_next_batch_is_prepared_while_the_model_works() -> None:
    class Counting(Generated):
        read = 0

        def __getitem__(self, index: int) -> Sample:
            self.read += 1
            return super().__getitem__(index)

    source = Counting(4000)
    stream = batches(
        source, transform=Preprocess(size=8), context_length=12, global_batch_size=1000, seed=0, steps=4, workers=1
    )
    next(stream)
    deadline = time.monotonic() + 30
    while source.read < 1900 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert 1900 <= source.read < 2100
    stream.close()  # type: ignore[attr-defined]


def test_an_error_that_is_no_bad_record_ends_the_run() -> None:
    class Broken:
        size = 8
        shorter_side = None

        def __call__(self, pixels: object, generator: object) -> Tensor:
            raise ZeroDivisionError("a mistake in a transform")

    for workers in (0, 2):
        with pytest.raises(ZeroDivisionError):
            _run(Generated(10), transform=Broken(), workers=workers)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"global_batch_size": 0}, "global_batch_size is 0; it must be at least 1"),
        ({"context_length": 2}, "context_length is 2"),
        ({"first_step": -1}, "first_step is -1"),
        ({"workers": -1}, "workers is -1"),
        ({"world_size": 0}, "world_size is 0"),
        ({"rank": 2, "world_size": 2}, "rank is 2; it must be from 0 to 1"),
        ({"max_failures": 1.5}, "max_failures is 1.5; it must be a share"),
    ],
)
def test_options_out_of_range(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _run(Generated(10), **options)
    with pytest.raises(ConfigError, match="has no records"):
        _run(Generated(0))
