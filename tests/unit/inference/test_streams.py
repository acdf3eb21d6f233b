"""Parts of a batch on threads of their own."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from clip.inference.streams import in_streams, streams_for


def test_each_part_is_worth_a_stream() -> None:
    torch.set_num_threads(4)
    assert [streams_for(rows) for rows in (0, 99, 199, 200, 399, 10_000)] == [1, 1, 1, 2, 3, 4]


def test_results_come_in_order_and_the_callers_threads_are_left_alone() -> None:
    torch.set_num_threads(4)
    together = threading.Barrier(2, timeout=30)  # both parts have to be under way at once

    def part(number: int) -> tuple[int, int, bool]:
        together.wait()
        return number, torch.get_num_threads(), torch.is_grad_enabled()

    assert in_streams(part, [7, 8]) == [(7, 2, False), (8, 2, False)]
    assert torch.get_num_threads() == 4


def test_a_thread_of_others_keeps_all_of_torchs_threads() -> None:
    torch.set_num_threads(6)
    in_streams(abs, [1, 2, 3])
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(torch.get_num_threads).result() == 6
    assert in_streams(lambda part: torch.get_num_threads(), [1, 2, 3]) == [2, 2, 2]


def test_one_part_runs_where_it_is() -> None:
    assert in_streams(lambda part: threading.current_thread(), [1]) == [threading.current_thread()]


def test_an_error_of_a_part_is_the_callers() -> None:
    torch.set_num_threads(2)

    def part(number: int) -> int:
        return 1 // number

    with pytest.raises(ZeroDivisionError):
        in_streams(part, [1, 0])
    assert in_streams(part, [1, 1]) == [1, 1]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_starts_threads_of_its_own() -> None:
    torch.set_num_threads(2)
    in_streams(abs, [1, 2])
    child = os.fork()
    if not child:
        os._exit(0 if in_streams(abs, [-1, -2]) == [1, 2] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
