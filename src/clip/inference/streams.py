"""One batch over all cores: each core takes images of its own, instead of a share of every matrix product.

A product shared by two cores waits for the slower one, some fifty times an image. Each part runs on a thread of its own
with its share of torch's threads.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

__all__ = ["in_streams", "streams_for"]

Part = TypeVar("Part")
Result = TypeVar("Result")


def streams_for(rows: int, *, least_rows: int = 100) -> int:
    """How many parts a batch is worth: each gets at least ``least_rows`` rows of the matrix products."""
    return max(1, min(torch.get_num_threads(), rows // least_rows))


def in_streams(function: Callable[[Part], Result], parts: Sequence[Part]) -> list[Result]:
    """``function`` of each part, side by side, in their order. Nothing is recorded for gradients."""
    if len(parts) == 1:
        return [function(parts[0])]

    def run(part: Part) -> Result:
        with torch.no_grad():
            return function(part)

    return list(_pool(len(parts), max(1, torch.get_num_threads() // len(parts))).map(run, parts))


@functools.lru_cache(maxsize=4)
def _pool(workers: int, threads: int) -> ThreadPoolExecutor:
    """Workers with ``threads`` of torch's threads each. Those of all other threads are left as they are."""
    own = torch.get_num_threads()
    all_there = threading.Barrier(workers)

    def start() -> None:
        torch.get_num_threads()  # the first question of a thread takes over the default, the second keeps what was set
        torch.set_num_threads(threads)

    pool = ThreadPoolExecutor(workers, thread_name_prefix="clip-stream", initializer=start)
    list(pool.map(lambda _: all_there.wait(), range(workers)))
    torch.set_num_threads(own)  # setting it in any thread sets what threads to come begin with
    return pool


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of the threads
