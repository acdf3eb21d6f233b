"""What is said about the machine, and what is measured of a process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from clip.bench import machine
from clip.bench.machine import this_machine


def test_the_processor_by_its_name_and_units(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = {"model name": "A Processor", "flags": "fpu avx2 avx512f amx_bf16 sse"}
    monkeypatch.setattr(machine, "_cpu_info", lambda: fields)
    found = this_machine(threads=2, torch="2.13.0")
    assert (found.processor, found.units) == ("A Processor", ["amx_bf16", "avx512f", "avx2"])
    assert str(found).startswith(f"A Processor, {os.cpu_count()} cores, 2 threads; amx_bf16, avx512f, avx2; torch")
    assert found.to_dict()["threads"] == 2


def test_a_system_that_tells_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_cpu_info", dict)
    found = this_machine(threads=1, torch="2.13.0")
    assert found.processor
    assert found.units == []
    assert "units unknown" in str(found)


def _printed(code: str) -> str:
    """By a process of its own."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_the_peak_is_of_this_process_alone_and_stays_when_memory_is_given_back() -> None:
    code = """
import subprocess, sys
from clip.bench.machine import peak_memory
block = bytearray(200_000_000)
del block
ask = "from clip.bench.machine import peak_memory; print(peak_memory())"
print(peak_memory(), subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True).stdout)
"""
    parent, child = map(int, _printed(code).split())
    assert child < 100e6 < 200e6 < parent


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system gives processors as it likes")
def test_a_process_is_kept_to_its_processors() -> None:
    code = """
import os
from clip.bench.machine import use_processors
use_processors(1)
print(len(os.sched_getaffinity(0)), os.environ["OMP_NUM_THREADS"])
"""
    assert _printed(code) == "1 1\n"
