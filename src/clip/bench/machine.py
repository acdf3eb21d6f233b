"""What a figure was measured on, without which it says little."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import sys
from pathlib import Path
from typing import Any

__all__ = ["Machine", "peak_memory", "this_machine", "use_processors"]

_UNITS = (
    "amx_bf16",
    "amx_int8",
    "avx512_bf16",
    "avx512_vnni",
    "avx_vnni",
    "avx512f",
    "avx2",
    "asimddp",
    "bf16",
    "i8mm",
)
"""Of a processor's flags those that decide how fast matrix products are, on x86 and on Arm."""


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The processor and what runs on it."""

    processor: str
    """Its name, as far as the system tells."""
    cores: int
    """That the system has; a process may be allowed fewer."""
    threads: int
    """That each model was given."""
    units: list[str]
    """Its matrix and vector units, by the names of Linux; empty where the system does not tell."""
    system: str
    torch: str
    """Version of PyTorch."""

    def __str__(self) -> str:
        units = ", ".join(self.units) or "units unknown"
        return f"{self.processor}, {self.cores} cores, {self.threads} threads; {units}; torch {self.torch}"

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return dataclasses.asdict(self)


def this_machine(*, threads: int, torch: str) -> Machine:
    """The machine that this process runs on."""
    fields = _cpu_info()
    flags = (fields.get("flags") or fields.get("Features") or "").split()
    return Machine(
        processor=fields.get("model name") or platform.processor() or platform.machine(),
        cores=os.cpu_count() or 1,
        threads=threads,
        units=[unit for unit in _UNITS if unit in flags],
        system=platform.platform(),
        torch=torch,
    )


def _cpu_info() -> dict[str, str]:
    """Of Linux, for its last processor; elsewhere nothing."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.split(":", 1) for line in text.splitlines() if ":" in line)
    return {key.strip(): value.strip() for key, value in pairs}


def use_processors(count: int) -> None:
    """Keeps this process, with every engine in it, to so many processors. Before torch is imported."""
    os.environ["OMP_NUM_THREADS"] = str(count)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:count])


def peak_memory() -> int:
    """The most memory that this process has had at once, in bytes."""
    with contextlib.suppress(OSError):  # the peak that getrusage gives may be that of the parent, before exec
        for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
