"""A log to which lines are only ever added, each sealed with the hash of the one before it.

    {"seq": 3, "time": "2026-01-31T09:30:00.123456Z", "run": "1f2e3d4c", "event": "verdict", "contents": {…},
     "previous": "…", "hash": "…"}

``run`` is of the writer. ``hash`` is the SHA-256 of the record without it, as canonical JSON (sorted keys, no spaces,
ASCII); ``previous`` is the ``hash`` of the record before, sixty-four zeros in the first. A line that is changed,
deleted, inserted or moved breaks the chain at its place. What no chain can show is that its *end* was cut off, or that
all of it was written anew: note the hash of the last record elsewhere (a run prints it), and pass it to ``verify_log``
as ``expect``.

A process that is killed leaves at most an unfinished last line. The next writer changes nothing of it, and adds a
record ``torn`` that names the length and the SHA-256 of what it found there.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import filelock

from clip.errors import ClipError, ConfigError, DataError
from clip.moderation.relocation import sync_folder

__all__ = ["NO_HASH", "AuditLog", "Problem", "Verification", "verify_log"]

NO_HASH = "0" * 64
"""``previous`` of the first record."""

_KEYS = ("seq", "time", "run", "event", "contents", "previous", "hash")
_START = b'{"seq": '
_LONGEST_LINE = 16 << 20
"""Bytes. No verdict comes near it, and no reader has to hold more."""


class AuditLog:
    """The log as one process writes it; several may write to one log at once, record by record.

    A record is handed to the system before ``append`` returns, and so outlives the process. It outlives a failure of
    the power once a record that is ``durable`` has followed it, or the log has been closed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Opens the log, or begins one. Raises DataError if the file is something else, or its end was tampered with,
        and ClipError if it cannot be written."""
        self.path = Path(path)
        if not self.path.parent.is_dir():  # filelock would make it
            raise ConfigError(f"{path}: the folder {self.path.parent} does not exist; create it")
        self._run = secrets.token_hex(4)
        self._lock = filelock.FileLock(f"{self.path}.lock")
        with contextlib.ExitStack() as stack:
            try:
                self._file: BinaryIO = stack.enter_context(self.path.open("a+b", buffering=0))
                sync_folder(self.path.parent)
            except OSError as error:
                raise ClipError(f"{path}: cannot be written ({error.strerror}); choose another place") from error
            with self._lock:
                self._last, _ = _last_record(self.path)
            stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def head(self) -> str:
        """Hash of the last record: what to note elsewhere."""
        return self._last.hash

    def append(self, event: str, contents: Mapping[str, Any], *, durable: bool = False) -> str:
        """Adds a record, and gives its hash.

        durable: return only once it, and all before it, is on the disk.
        Raises ClipError where the disk is full; what is half written then is a tear for the next.
        """
        with self._lock:
            last, missing = self._end()
            last, line = _sealed(last, self._run, event, contents)
            if len(line) > _LONGEST_LINE:
                raise ClipError(f"a record {event!r} has {len(line):,} bytes; at most {_LONGEST_LINE:,} can be logged")
            try:
                data = memoryview(missing + line)
                while data:  # one write, unless the disk is nearly full
                    data = data[self._file.write(data) or 0 :]
                if durable:
                    os.fsync(self._file.fileno())
            except OSError as error:
                raise ClipError(
                    f"{self.path}: the log cannot be written ({error.strerror}); make room for it"
                ) from error
            self._last = dataclasses.replace(last, end=self._file.seek(0, os.SEEK_END))
        return self.head

    def close(self) -> None:
        if not self._file.closed:
            with contextlib.closing(self._file):
                os.fsync(self._file.fileno())

    def _end(self) -> tuple[_Last, bytes]:
        """The last record, which may be another process's, and what has to be written before the next one: the end of
        its line, or the record of a tear."""
        if self._file.seek(0, os.SEEK_END) == self._last.end:
            return self._last, b""
        last, rest = _last_record(self.path)
        if rest is None:
            return last, b"\n"
        if not rest:
            return last, b""
        last, line = _sealed(last, self._run, "torn", _described(rest))
        return last, b"\n" + line


@dataclasses.dataclass(frozen=True, slots=True)
class _Last:
    """What the next record continues."""

    seq: int
    hash: str
    end: int = -1
    """Size of the log when that was so and nothing was left to be mended; -1 where it has to be looked at."""


def _sealed(last: _Last, run: str, event: str, contents: Mapping[str, Any]) -> tuple[_Last, bytes]:
    """The record that follows ``last``, as what the next continues and as a line."""
    time = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    values = (last.seq + 1, time, run, event, contents, last.hash)
    record: dict[str, Any] = dict(zip(_KEYS, values, strict=False))
    record["hash"] = _hash(record)
    return _Last(record["seq"], record["hash"]), _line(record)


def _hash(record: Mapping[str, Any]) -> str:
    unsealed = {key: value for key, value in record.items() if key != "hash"}
    return hashlib.sha256(json.dumps(unsealed, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _line(record: Mapping[str, Any]) -> bytes:
    return json.dumps(record, allow_nan=False).encode() + b"\n"


def _described(torn: bytes) -> dict[str, Any]:
    return {"bytes": len(torn), "sha256": hashlib.sha256(torn).hexdigest()}


# Reading --------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """The first place at which a log is not what was written."""

    line: int
    """Counted from 1; 0 where it is not in the file at all."""
    reason: str


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """What is left of a log."""

    records: int
    """Those up to the first problem."""
    head: str
    """Hash of the last of them."""
    events: Mapping[str, int]
    """How many of each kind."""
    is_unfinished: bool
    """The last line is half written: by a process that was killed, or that is writing now. The next writer says so."""
    problem: Problem | None

    @property
    def is_whole(self) -> bool:
        return self.problem is None


def verify_log(path: str | os.PathLike[str], *, expect: str | None = None) -> Verification:
    """Follows the chain from the first record to the last; holds one line at a time.

    expect: a hash noted earlier; the record that it belongs to must be there still.
    Raises DataError if the file cannot be read.
    """
    if expect is not None and not (len(expect) == 64 and set(expect) <= set("0123456789abcdef")):
        raise ConfigError(f"{expect!r} is no hash of a record; it has 64 digits of 0-9 and a-f")
    last, events, torn = _Last(0, NO_HASH), Counter[str](), b""
    is_expected = expect in (None, NO_HASH)
    problem: Problem | None = None
    try:
        with open(path, "rb") as file:  # noqa: PTH123
            for number, line in enumerate(iter(lambda: file.readline(_LONGEST_LINE + 1), b""), start=1):
                record = _record_of(line)
                reason = _broken(line, record, last, torn)
                if record is not None and reason is None:
                    last, torn, problem = _Last(record["seq"], record["hash"]), b"", None
                    events[record["event"]] += 1
                    is_expected = is_expected or record["hash"] == expect
                    continue
                problem = problem or Problem(number, reason or "")  # unless a record of a tear explains it
                torn += line
                if not _is_tear(torn):
                    break
            else:
                problem = problem if torn.endswith(b"\n") else None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if problem is None and not is_expected:
        problem = Problem(0, f"no record has the hash {expect}: the end was cut off, or the log was written anew")
    is_unfinished = bool(torn) and problem is None
    return Verification(records=last.seq, head=last.hash, events=events, is_unfinished=is_unfinished, problem=problem)


def _broken(line: bytes, record: Mapping[str, Any] | None, last: _Last, torn: bytes) -> str | None:
    """Why this line does not continue the log; None if it does.

    torn: the lines before it that did not.
    """
    if record is None:
        if len(line) > _LONGEST_LINE:
            return "it is longer than any record"
        return "it was changed: its hash is another" if _is_json(line) else "it is no record"
    if (record["seq"], record["previous"]) != (last.seq + 1, last.hash):
        if record["seq"] == last.seq + 1:
            return f"it does not follow record {last.seq}: a line before it was changed and sealed anew"
        return f"record {record['seq']} stands where {last.seq + 1} should: lines were deleted, inserted or moved"
    if (record["event"] == "torn") != bool(torn):
        return "a torn line is recorded, but it is gone" if not torn else "the line before it is no record"
    if torn and record["contents"] != _described(torn.removesuffix(b"\n")):
        return "the torn line before it was changed"
    return None


def _record_of(line: bytes) -> dict[str, Any] | None:
    """A line that is exactly as it was written, its end aside; None for any other."""
    try:
        record = json.loads(line)
        if isinstance(record, dict) and tuple(record) == _KEYS and _hash(record) == record["hash"]:
            return record if _line(record).removesuffix(b"\n") == line.removesuffix(b"\n") else None
    except (ValueError, RecursionError):
        pass
    return None


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _is_tear(rest: bytes) -> bool:
    """Whether these lines may be what killed writers leave: beginnings of records, and zeros where the power failed."""
    return len(rest) <= _LONGEST_LINE and all(_is_beginning(part.rstrip(b"\0")) for part in rest.split(b"\n"))


def _is_beginning(line: bytes) -> bool:
    if not (line.startswith(_START) or _START.startswith(line)):
        return False
    try:
        json.JSONDecoder().raw_decode(line.decode())  # also with something after it
    except (ValueError, RecursionError):
        return True
    return False


def _last_record(path: Path) -> tuple[_Last, bytes | None]:
    """The last record of a log, and what stands after it: a tear, or nothing; None where even the line has no end."""
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        length = 1 << 16
        while True:
            start = max(size - length, 0)
            file.seek(start)
            lines = file.read(size - start).split(b"\n")
            for place in range(len(lines) - 1, 0 if start else -1, -1):  # the first may be the end of one
                if record := _record_of(lines[place]):
                    rest = b"\n".join(lines[place + 1 :]) if place + 1 < len(lines) else None
                    return _checked(_Last(record["seq"], record["hash"]), rest, path)
            if start == 0 or length > 2 * _LONGEST_LINE:
                return _checked(_Last(0, NO_HASH), b"\n".join(lines), path)
            length *= 4


def _checked(last: _Last, rest: bytes | None, path: Path) -> tuple[_Last, bytes | None]:
    if rest and (rest.endswith(b"\n") or not _is_tear(rest)):
        remedy = f"look at it with 'clip moderate --verify-log {path}', and begin another log"
        raise DataError(f"{path}: does not end as a log does, so nothing is added to it; {remedy}")
    return last, rest
