"""The numbers of a run: appended as JSON lines while it trains, read again, and drawn as curves."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from clip.errors import ConfigError, DataError, MissingDependencyError

__all__ = ["MetricsWriter", "plot", "read_metrics"]


class MetricsWriter(contextlib.AbstractContextManager["MetricsWriter"]):
    """Appends lines to ``metrics.jsonl``, on the first process only, and to TensorBoard where asked.

    The file is cut to ``length`` at first: what an interrupted run wrote after its last checkpoint comes again.
    """

    def __init__(self, folder: Path, length: int, *, is_first: bool, tensorboard: bool = False) -> None:
        self.last: dict[str, float] = {}
        """The newest value of each number."""
        self._path = folder / "metrics.jsonl"
        self._file: Any = None
        self._board: Any = None
        if not is_first:
            return
        if tensorboard:
            try:
                from torch.utils.tensorboard.writer import SummaryWriter
            except ImportError as error:
                raise MissingDependencyError(
                    "--tensorboard needs tensorboard; install everyclip[tensorboard]"
                ) from error
        self._file = self._path.open("a+b")
        self._file.truncate(min(length, self._file.seek(0, os.SEEK_END)))
        steps = [0]
        for line in read_metrics(folder):
            self.last |= {key: value for key, value in line.items() if key != "step"}
            steps.append(int(line["step"]))
        if tensorboard:
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=steps[-1] + 1)

    def write(self, line: Mapping[str, float]) -> None:
        """Appends one line. It has a ``step``; other names may hold a ``/`` after the name of what was measured."""
        self.last |= {key: value for key, value in line.items() if key != "step"}
        if self._file is None:
            return
        self._file.write((json.dumps(dict(line)) + "\n").encode())
        self._file.flush()
        if self._board is not None:
            for name, value in line.items():
                if name != "step":
                    self._board.add_scalar(name if "/" in name else f"train/{name}", value, int(line["step"]))

    def forced_to_disk(self) -> int:
        """The length of the file, all of which is on the disk."""
        if self._file is None:
            return 0
        self._file.flush()
        os.fsync(self._file.fileno())
        return int(self._file.seek(0, os.SEEK_END))

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def read_metrics(folder: str | os.PathLike[str]) -> list[dict[str, float]]:
    """The lines of a run's ``metrics.jsonl``; the last one is left out if a kill has cut it."""
    path = Path(folder) / "metrics.jsonl"
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); give the folder of a run") from error
    found = []
    for number, line in enumerate(lines[:-1], start=1):
        try:
            value = json.loads(line)
            found.append({"step": value["step"], **value})
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{path}, line {number}: not a JSON object with a step") from error
    return found


def plot(folder: str | os.PathLike[str], file: str | os.PathLike[str]) -> None:
    """Draws loss, temperature, learning rate, speed and validation of a run over its steps, as PNG, SVG or PDF."""
    raise ConfigError("not yet")
