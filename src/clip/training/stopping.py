"""Stopping at a signal: the step under way is finished and saved first."""

from __future__ import annotations

import contextlib
import os
import signal
from types import FrameType
from typing import Any

from clip.errors import ClipError

__all__ = ["Stop", "StoppedError"]


class StoppedError(ClipError):
    """Training has stopped at a signal, after a checkpoint."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
        """The exit status that shells expect: 128 and the number of the signal."""


class Stop(contextlib.AbstractContextManager["Stop"]):
    """Notes SIGINT and SIGTERM, so that the step under way can be finished and saved; a second one ends at once."""

    def __init__(self) -> None:
        self._noted = 0
        self._before: dict[int, Any] = {}
        # Torch's launchers cannot tell their processes when they are killed themselves, and those would go on alone.
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    @property
    def signal(self) -> int:
        """The number of the signal, or 0."""
        if self._launcher is not None and os.getppid() != self._launcher:
            return signal.SIGTERM
        return self._noted

    def __enter__(self) -> Stop:
        with contextlib.suppress(ValueError):  # in a thread of a larger program, which sees to its signals itself
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def __exit__(self, *_: object) -> None:
        self._restore()
