"""Steps of training → batches of tensors, decoded ahead of the model.

What a step holds is decided by ``order`` alone: it does not depend on how many workers or ranks there are, or on where
the run was interrupted. A record that cannot be read makes its batch smaller by one, is counted and named, and too many
of them are an error.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import os
import signal
import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from clip.data.augment import Augmentation, TrainingPreprocess, Transform
from clip.data.failures import BadRecord, Tolerance
from clip.data.order import Order, generator, part_of_rank, span
from clip.data.records import Source
from clip.errors import ClipError, ConfigError
from clip.images import read_pixels
from clip.preprocess import Preprocess
from clip.simple_tokenizer import token_ids

__all__ = ["BadRecord", "Batch", "batches"]

_CHUNK = 32
"""Records that a worker prepares at a time. Batches are put together from chunks, so that a large batch is decoded by
all workers and the first one does not wait for a single worker; smaller chunks would pay more for their transport."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Batch:
    """One step of one rank. B may be smaller than asked for, even 0; row i of each field is one record."""

    images: Tensor
    """(B, 3, S, S) float32."""
    texts: Tensor
    """(B, T) int64, padded to the context length."""
    keys: list[str]
    rows: Tensor
    """(B,) int64: indices in the source."""
    captions: list[str]
    """The one of each record that was drawn."""
    labels: Tensor | None
    """(B,) int64, or None where the source has no classes."""
    failures: tuple[BadRecord, ...]
    """Records of this batch that are not in it."""
    step: int
    epoch: int
    wait_seconds: float
    """How long the caller waited for this batch: what the input pipeline costs."""


def batches(
    source: Source,
    *,
    transform: Transform | Preprocess,
    context_length: int,
    global_batch_size: int,
    seed: int,
    steps: int,
    first_step: int = 0,
    rank: int = 0,
    world_size: int = 1,
    workers: int | None = None,
    max_failures: float = 0.01,
    shuffle: bool = True,
) -> Iterator[Batch]:
    """The batches of steps ``first_step`` … ``steps - 1`` of a run, for one rank.

    transform: a ``TrainingPreprocess``; a plain ``Preprocess`` changes nothing at random.
    steps: of the whole run, so that a resumed one differs in ``first_step`` only.
    workers: how many decode side by side, as threads or from 5 on as processes; 0 decodes when a batch is asked for;
    None takes one for each processor that this rank may use.
    max_failures: share of bad records above which a DataError ends the run; 0 allows none.
    shuffle: False takes the records in the order of the source, and the first caption of each.
    Captions too long for the context are cut; special words in them are ordinary text.
    """
    for name, value, least in (
        ("global_batch_size", global_batch_size, 1),
        ("context_length", context_length, 3),
        ("first_step", first_step, 0),
        ("world_size", world_size, 1),
        ("workers", workers or 0, 0),
    ):
        if value < least:
            raise ConfigError(f"{name} is {value}; it must be at least {least}")
    if not 0 <= rank < world_size:
        raise ConfigError(f"rank is {rank}; it must be from 0 to {world_size - 1}")
    tolerance = Tolerance(max_failures)
    if isinstance(transform, Preprocess):
        transform = TrainingPreprocess(transform, augmentation=Augmentation.none())
    plan = _Plan(source, global_batch_size, seed, first_step, steps, rank, world_size, shuffle)
    decoder = _Decoder(source, transform, context_length, seed, draws_caption=shuffle)
    if workers is None:
        workers = max(_processors() // world_size, 1)
    return _batches(_decoded(plan, decoder, workers), tolerance)


# --- What to read -----------------------------------------------------------------------------------------------------


class _Chunk(NamedTuple):
    step: int
    epoch: int
    is_last: bool
    """Of this rank's part of the step."""
    rows_of_step: int
    """In this rank's part of the step."""
    rows: NDArray[np.int64]
    passes: NDArray[np.int64]


class _Plan:
    """The chunks of a rank in their order; what the DataLoader calls a sampler."""

    def __init__(
        self,
        source: Source,
        global_batch_size: int,
        seed: int,
        first_step: int,
        last_step: int,
        rank: int,
        world_size: int,
        shuffle: bool,
    ) -> None:
        self._order = Order(source, seed=seed, shuffle=shuffle)
        self._global_batch_size = global_batch_size
        self._steps = range(first_step, last_step)
        self._rank, self._world_size = rank, world_size
        self.chunks_per_step = -(-global_batch_size // (world_size * _CHUNK))

    def __iter__(self) -> Iterator[_Chunk]:
        for step in self._steps:
            whole = span(step, self._order.length, self._global_batch_size)
            first, last = part_of_rank(whole.first, whole.last, self._rank, self._world_size)
            rows, passes = self._order.draw(first, last)
            for start in range(0, max(len(rows), 1), _CHUNK):  # a rank without rows still takes part in the step
                stop = start + _CHUNK
                is_last = stop >= len(rows)
                yield _Chunk(step, whole.epoch, is_last, len(rows), rows[start:stop], passes[start:stop])


# --- Reading it, in a worker ------------------------------------------------------------------------------------------


class _Decoded(NamedTuple):
    chunk: _Chunk
    images: Tensor
    texts: Tensor
    keys: list[str]
    rows: list[int]
    captions: list[str]
    labels: list[int | None]
    failures: list[BadRecord]


class _Decoder(Dataset[_Decoded]):
    def __init__(
        self, source: Source, transform: Transform, context_length: int, seed: int, *, draws_caption: bool
    ) -> None:
        self._source = source
        self._transform = transform
        self.size = transform.size
        self._context_length = context_length
        self._seed = seed
        self._draws_caption = draws_caption

    def __getitem__(self, chunk: _Chunk) -> _Decoded:
        images: list[Tensor] = []
        keys: list[str] = []
        rows: list[int] = []
        captions: list[str] = []
        labels: list[int | None] = []
        failures: list[BadRecord] = []
        for row, epoch in zip(chunk.rows.tolist(), chunk.passes.tolist(), strict=True):
            randomness = generator(self._seed, epoch, row)
            key = ""
            try:
                sample = self._source[row]
                key = sample.key
                draw = int(randomness.random() * len(sample.captions))
                pixels = read_pixels(sample.image, shorter_side=self._transform.shorter_side)
                images.append(self._transform(pixels, randomness))
            except ClipError as error:
                failures.append(BadRecord.of(row, key, error))
                continue
            keys.append(key)
            rows.append(row)
            captions.append(sample.captions[draw if self._draws_caption else 0])
            labels.append(sample.label)
        texts = token_ids(captions, self._context_length, truncate=True, special_words=False)
        stacked = torch.stack(images) if images else torch.empty(0, 3, self.size, self.size)
        return _Decoded(chunk, stacked, torch.from_numpy(texts).long(), keys, rows, captions, labels, failures)


def _processors() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


# --- Side by side -----------------------------------------------------------------------------------------------------

# Measured on two busy cores, torch 2.13: of photographs of 640 × 480, made 224, two threads read 1.6 times as many as
# two processes, of drawings of 64 × 64 from PNG 1.3 times. Decoding and resizing release the interpreter lock, and what
# processes send back must be copied through shared memory. Threads also start at once, on every system, and cannot
# inherit a lock that some library held during a fork. But the rest of the work, a few tenths of a millisecond a record,
# takes turns: beyond a few workers the lock is the limit, and processes have one each.
_MOST_THREADS = 4

_AHEAD = 8
"""Chunks in work or waiting, at least, for each worker: what bridges a slow disk."""

_AHEAD_BYTES = 1 << 30
"""Up to this much, the whole next batch is prepared while the model works on one."""


def _decoded(plan: _Plan, decoder: _Decoder, workers: int) -> Generator[_Decoded]:
    """The chunks of the plan, in its order."""
    if workers == 0:
        return (decoder[chunk] for chunk in plan)
    if workers <= _MOST_THREADS:
        return _in_threads(plan, decoder, workers)
    return _in_processes(plan, decoder, workers)


def _in_threads(plan: _Plan, decoder: _Decoder, workers: int) -> Generator[_Decoded]:
    chunks = iter(plan)
    ahead = _chunks_ahead(plan, decoder, workers)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="clip-data")
    pending: deque[Future[_Decoded]] = deque()
    try:
        while True:
            for chunk in itertools.islice(chunks, ahead - len(pending)):
                pending.append(pool.submit(decoder.__getitem__, chunk))
            if not pending:
                return
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _in_processes(plan: _Plan, decoder: _Decoder, workers: int) -> Generator[_Decoded]:
    loader: DataLoader[_Decoded] = DataLoader(
        decoder,
        sampler=plan,
        batch_size=None,
        collate_fn=_same,  # type: ignore[arg-type]  # without a batch size it is given single items
        num_workers=workers,
        worker_init_fn=_leave_interrupts_to_the_parent,
        prefetch_factor=-(-_chunks_ahead(plan, decoder, workers) // workers),
    )
    yield from loader


def _leave_interrupts_to_the_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal, and a run that wants to save its state needs its next batch."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _chunks_ahead(plan: _Plan, decoder: _Decoder, workers: int) -> int:
    chunk_bytes = _CHUNK * 3 * decoder.size**2 * 4
    return max(_AHEAD * workers, min(plan.chunks_per_step, _AHEAD_BYTES // chunk_bytes))


def _same(decoded: _Decoded) -> _Decoded:
    """In place of DataLoader's collation, which would turn lists into tensors."""
    return decoded


# --- Putting batches together -----------------------------------------------------------------------------------------


def _batches(chunks: Generator[_Decoded], tolerance: Tolerance) -> Iterator[Batch]:
    parts: list[_Decoded] = []
    images = torch.empty(0)
    count = 0
    waiting_since = time.perf_counter()
    with contextlib.closing(chunks):
        for decoded in chunks:
            tolerance.count(len(decoded.chunk.rows), decoded.failures)
            # Pictures of a large batch are gigabytes: each chunk goes to its place at once, so they are never there
            # twice.
            if not parts:
                images = decoded.images.new_empty(decoded.chunk.rows_of_step, *decoded.images.shape[1:])
                count = 0
            images[count : count + len(decoded.images)] = decoded.images
            count += len(decoded.images)
            parts.append(decoded._replace(images=images[:0]))
            if decoded.chunk.is_last:
                yield _joined(images[:count], parts, time.perf_counter() - waiting_since)
                parts, images = [], torch.empty(0)  # lets go of this batch before the next takes its memory
                waiting_since = time.perf_counter()


def _joined(images: Tensor, parts: list[_Decoded], wait_seconds: float) -> Batch:
    labels = [label for part in parts for label in part.labels]
    return Batch(
        images=images,
        texts=torch.cat([part.texts for part in parts]),
        keys=[key for part in parts for key in part.keys],
        rows=torch.tensor([row for part in parts for row in part.rows], dtype=torch.int64),
        captions=[caption for part in parts for caption in part.captions],
        labels=None if not labels or None in labels else torch.tensor(labels, dtype=torch.int64),
        failures=tuple(failure for part in parts for failure in part.failures),
        step=parts[0].chunk.step,
        epoch=parts[0].chunk.epoch,
        wait_seconds=wait_seconds,
    )
