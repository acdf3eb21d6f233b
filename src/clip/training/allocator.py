"""Keeps memory that a step of training frees for the next step, where the C library would give it back.

A step on a CPU allocates and frees gigabytes in tensors of megabytes. glibc takes each from the system and returns it,
and the system clears every page anew: at batch 64 of a small ViT 20,000 pages and a twelfth of a step's time, measured
by ``benchmarks/training.py``.
"""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory"]

# From glibc's malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Lets this process keep the memory it has freed, from now to its end; whether the C library can (glibc).

    The process stays as large as its largest step, which it has to have room for anyway. For a process that trains and
    nothing else: one that also serves or shares its memory would rather give it back.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Tensors of up to a gigabyte come from the heap, and the heap does not shrink.
    return bool(mallopt(_M_MMAP_THRESHOLD, 2**30) and mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
