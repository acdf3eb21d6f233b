"""Freed memory is kept: the system has to hand out a page once, not at every allocation."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

from clip.training import allocator

# In a process of its own, because the setting lasts as long as the process.
PROGRAM = """
import resource
from clip.training.allocator import keep_freed_memory

def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        bytearray(8 << 20).clear()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

first = pages()
print(keep_freed_memory())
pages()
print(first, pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has the setting")
def test_memory_is_taken_from_the_system_once() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True)
    is_kept, first, then = done.stdout.split()
    assert is_kept == "True"
    assert int(first) >= 10 * (8 << 20) // (64 << 10)  # pages may be as large as 64 KiB
    assert int(then) < int(first) / 10


def test_other_c_libraries_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(allocator.ctypes, "CDLL", lambda *_: pytest.fail("nothing to call there"))
    assert not allocator.keep_freed_memory()
