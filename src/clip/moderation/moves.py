"""Blocked pictures go into a folder, and come back: each move is written down before it happens.

The folder keeps the paths of its pictures, from the current directory on (or in full where they lie elsewhere), and a
journal, ``moves.jsonl``. Pictures are never changed, never replaced by others, and never nowhere: ``relocation`` says
how.
A move that was interrupted is brought to an end when the folder is opened again, and ``undo`` takes all moves back.

A picture goes only if it still holds the bytes that were judged. Symbolic links stay where they are: what was judged is
the file that they lead to, which nobody has named.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import errno
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal, Self

import filelock

from clip.errors import ClipError, DataError
from clip.moderation.relocation import (
    Identity,
    Step,
    file_facts,
    reason_of,
    relocate,
    settle,
    sync_folder,
    without_names_in_use,
)
from clip.moderation.verdict import Verdict

__all__ = ["JOURNAL", "BlockedFolder", "Outcome", "undo"]

JOURNAL = "moves.jsonl"
VERSION = 1


Result = Literal["moved", "not moved", "restored", "not restored"]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one picture."""

    result: Result
    source: str
    """Where it was when it was judged, absolute."""
    destination: str | None
    """Its place in the folder; None if it never had one."""
    sha256: str | None
    reason: str | None = None
    """Why not; or a remark, such as that a process was killed in it."""

    @property
    def is_done(self) -> bool:
        return self.result in ("moved", "restored")

    @classmethod
    def of(cls, result: Result, source: Path, destination: Path | None, sha256: str | None, reason: str | None) -> Self:
        place = None if destination is None else str(destination)
        return cls(result=result, source=str(source), destination=place, sha256=sha256, reason=reason)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON, for a log."""
        return dataclasses.asdict(self)


OnOutcome = Callable[[Outcome], None]
"""Told of each outcome before it is written down as final. If the process is killed in between, the next one is told it
again: once too often, and never not at all."""


class BlockedFolder:
    """The folder and its journal. Several processes may use one at once."""

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        root: str | os.PathLike[str] | None = None,
        on_outcome: OnOutcome | None = None,
    ) -> None:
        """Makes the folder if there is none, and ends what was interrupted in it.

        root: the paths of pictures below it are kept from there on; by default the current directory.
        Raises ClipError if nothing can be written there, and DataError if the journal is something else.
        """
        self.folder = Path(os.path.realpath(folder))
        self._root = Path(os.path.realpath(root or os.curdir))
        self._on_outcome = on_outcome or (lambda outcome: None)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._lock = filelock.FileLock(self.folder / ".moves.lock")
            with self._lock:
                self._journal = _Journal(self.folder / JOURNAL)
        except OSError as error:
            raise ClipError(f"{folder}: pictures cannot be moved there ({reason_of(error)})") from error
        with contextlib.ExitStack() as stack:
            stack.callback(self._journal.close)
            self.recovered = self._end_interrupted()
            """Outcomes of what earlier processes were killed in."""
            stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._journal.close()

    def __contains__(self, path: str | os.PathLike[str]) -> bool:
        return self.folder in _absolute(path).parents

    def move(self, verdict: Verdict) -> Outcome:
        """Moves the picture of a verdict, if it is still what was judged.

        Raises ClipError if the move cannot be written down; then nothing has moved.
        """
        source = _absolute(verdict.path)
        with self._lock:
            try:
                if self.folder in source.parents:
                    raise OSError(errno.EEXIST, "it is in the folder already")
                identity, sha256 = file_facts(source)
                if verdict.sha256 is None:
                    raise OSError(errno.EINVAL, "it could not be read when it was judged")
                if sha256 != verdict.sha256:
                    raise OSError(errno.EBUSY, "it does not hold what was judged")
            except OSError as error:
                return self._told(Outcome.of("not moved", source, None, verdict.sha256, reason_of(error)))
            record = _Record(
                event="move",
                id=secrets.token_hex(8),
                source=str(source),
                destination=str(self._place_for(source).relative_to(self.folder)),
                sha256=sha256,
                identity=identity,
            )
            return self._carry_out(record, verdict=_facts(verdict))

    def undo(self) -> Iterator[Outcome]:
        """Takes all moves back, the latest first. A file that has the place of a picture meanwhile stays, and so does
        the picture.

        May be interrupted, and repeated. Folders that the moves have made in this one go when they are empty.
        """
        with self._lock:
            moved = [move.record for move in self._journal.moves() if move.is_in_folder]
        for record in reversed(moved):
            with self._lock:
                outcome = self._restore(record)
            yield outcome

    def _restore(self, move: _Record) -> Outcome:
        source, destination = Path(move.source), self.folder / move.destination
        reason, identity = None, None
        try:
            identity, sha256 = file_facts(destination)
            if sha256 != move.sha256:
                reason = f"{destination} has changed since it was moved"
            elif os.path.lexists(source):
                reason = "another file has its place"
        except FileNotFoundError:
            reason = f"{destination} is not there any more"
            with contextlib.suppress(OSError):
                if file_facts(source)[1] == move.sha256:
                    return self._concluded(dataclasses.replace(move, event="undo"), None, "somebody has put it back")
        except OSError as error:
            reason = f"{destination}: {reason_of(error)}"
        if identity is None or reason is not None:
            return self._told(Outcome.of("not restored", source, destination, move.sha256, reason))
        return self._carry_out(dataclasses.replace(move, event="undo", identity=identity))

    def _carry_out(self, record: _Record, **about: Any) -> Outcome:
        """Writes down what is about to be done, and does it."""
        self._journal.add({"version": VERSION, **record.to_dict(), **about}, durable=True)
        try:
            failure = relocate(self._step(record))
        except OSError as error:  # the next process tries again to end it
            return self._told(self._outcome(record, False, f"it is half way, and cannot go on: {reason_of(error)}"))
        if failure is not None and failure.errno == errno.EXDEV and record.how == "rename":
            return self._carry_out(dataclasses.replace(record, how="copy"), **about)
        return self._concluded(record, None if failure is None else reason_of(failure))

    def _end_interrupted(self) -> tuple[Outcome, ...]:
        with self._lock:  # whoever has written these records is dead, or would hold it
            return tuple(self._settled(move.pending) for move in self._journal.moves() if move.pending is not None)

    def _settled(self, record: _Record) -> Outcome:
        try:
            reason = settle(self._step(record))
        except OSError as error:
            return self._told(self._outcome(record, False, f"it is half way, and cannot go on: {reason_of(error)}"))
        return self._concluded(record, reason, "it was interrupted, and has been ended now")

    def _concluded(self, record: _Record, failure: str | None, remark: str | None = None) -> Outcome:
        """Writes down how it ended."""
        outcome = self._told(self._outcome(record, failure is None, failure or remark))
        self._journal.add({**record.to_dict(), "event": f"{record.event} {'failed' if failure else 'done'}"})
        self._remove_empty((self.folder / record.destination).parent)
        return outcome

    def _outcome(self, record: _Record, is_done: bool, reason: str | None) -> Outcome:
        result: Result = "moved" if record.event == "move" else "restored"
        if not is_done:
            result = "not moved" if record.event == "move" else "not restored"
        return Outcome.of(result, Path(record.source), self.folder / record.destination, record.sha256, reason)

    def _told(self, outcome: Outcome) -> Outcome:
        self._on_outcome(outcome)
        return outcome

    def _step(self, record: _Record) -> Step:
        outside, inside = Path(record.source), self.folder / record.destination
        source, destination = (outside, inside) if record.event == "move" else (inside, outside)
        return Step(
            id=record.id,
            source=source,
            destination=destination,
            how=record.how,
            sha256=record.sha256,
            identity=record.identity,
        )

    def _place_for(self, source: Path) -> Path:
        is_below = self._root in source.parents
        relative = source.relative_to(self._root if is_below else source.anchor)
        return next(without_names_in_use(self.folder / relative))

    def _remove_empty(self, folder: Path) -> None:
        with contextlib.suppress(OSError):  # one that is not empty
            while folder != self.folder:
                folder.rmdir()
                folder = folder.parent


def undo(folder: str | os.PathLike[str], *, on_outcome: OnOutcome | None = None) -> Iterator[Outcome]:
    """Takes back all moves into a folder (or of the journal in it). Gives what became of each picture.

    Raises DataError if nothing was ever moved there.
    """
    path = Path(folder)
    path = path.parent if path.name == JOURNAL else path
    if not (path / JOURNAL).is_file():
        raise DataError(f"{folder}: has no {JOURNAL}; name the folder that was given as --move-blocked")
    with BlockedFolder(path, on_outcome=on_outcome) as blocked:
        yield from (outcome for outcome in blocked.recovered if outcome.result == "restored")
        yield from blocked.undo()  # and what else was recovered


def _absolute(path: str | os.PathLike[str]) -> Path:
    """With links in the path followed, but not the one that the path may name."""
    folder, name = os.path.split(os.path.abspath(path))  # noqa: PTH100
    return Path(os.path.realpath(folder), name)


def _facts(verdict: Verdict) -> dict[str, Any]:
    """Why it was moved."""
    rule = verdict.rule
    why = {"category": rule.category, "score": rule.score, "threshold": rule.threshold} if rule else {}
    return {"action": verdict.action, **why, "policy": verdict.policy, "model": verdict.model}


# The journal ----------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Record:
    """One line of the journal, as far as a recovery needs it."""

    event: Literal["move", "undo"]
    """Of what is written before: ``move`` or ``undo``; afterwards with `` done`` or `` failed``."""
    id: str
    source: str
    """Where the picture was when it was judged."""
    destination: str
    """Relative to the folder, which may so be moved as a whole."""
    sha256: str
    identity: Identity
    how: Literal["rename", "copy"] = "rename"

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Self:
        known = {field.name: values[field.name] for field in dataclasses.fields(cls)}
        return cls(**{**known, "identity": Identity(*known["identity"])})


@dataclasses.dataclass(slots=True)
class _Move:
    """What the journal says of one picture."""

    record: _Record
    is_in_folder: bool = False
    pending: _Record | None = None
    """What was begun and not concluded."""


class _Journal:
    """Lines of JSON that are only ever added. One that is half written was never acted upon, and is passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with contextlib.ExitStack() as stack:
            self._file: BinaryIO = stack.enter_context(path.open("a+b", buffering=0))
            sync_folder(path.parent)
            stack.pop_all()

    def close(self) -> None:
        self._file.close()

    def add(self, record: Mapping[str, Any], *, durable: bool = False) -> None:
        """durable: it is on the disk when this returns."""
        line = json.dumps({"time": datetime.datetime.now(datetime.UTC).isoformat(), **record}).encode() + b"\n"
        try:
            size = self._file.seek(0, os.SEEK_END)
            if size:
                self._file.seek(size - 1)
                if self._file.read(1) != b"\n":
                    line = b"\n" + line
            data = memoryview(line)
            while data:
                data = data[self._file.write(data) or 0 :]
            if durable:
                os.fsync(self._file.fileno())
        except OSError as error:
            raise ClipError(f"{self._path}: cannot be written ({reason_of(error)}), so nothing is moved") from error

    def moves(self) -> list[_Move]:
        """In the order in which they were begun."""
        moves: dict[str, _Move] = {}
        with self._path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    values = json.loads(line)
                except ValueError:
                    continue
                try:
                    begun, _, end = values["event"].partition(" ")
                    record = _Record.from_dict({**values, "event": begun})
                    if values.get("version", VERSION) != VERSION or begun not in ("move", "undo"):
                        raise ValueError
                except (ValueError, TypeError, KeyError, AttributeError) as error:
                    message = f"{self._path}, line {number}: is no record of a move, or one of a later version"
                    raise DataError(message) from error
                move = moves.setdefault(record.id, _Move(record))
                move.pending = None if end else record
                if end == "done":
                    move.is_in_folder = begun == "move"
        return list(moves.values())
