"""What a command prints: results on stdout, everything else on stderr, and nothing that a terminal would obey.

rich is imported only where there is a terminal to print on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["ByteBar", "Progress", "Session", "json_line", "note", "printable", "progress", "rounded", "say", "tail"]


@dataclasses.dataclass(slots=True)
class Session:
    """What holds for the whole of one command."""

    quiet: bool = False
    """No progress and no summary on stderr; failures are still told."""
    debug: bool = False
    """Tracebacks and logs."""


def printable(text: str) -> str:
    """The text on one line, with control characters, line breaks and bytes that are not UTF-8 written as escapes.

    File names may hold any of these, and escape sequences would be obeyed by a terminal.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escaped(character) for character in text)


def _escaped(character: str) -> str:
    if 0xDC80 <= ord(character) <= 0xDCFF:  # a byte of a file name that is not UTF-8, as Python smuggles it
        return f"\\x{ord(character) - 0xDC00:02x}"
    return character.encode("unicode_escape").decode("ascii")


def say(message: str) -> None:
    """One line on stderr."""
    print(f"clip: {printable(message)}", file=sys.stderr, flush=True)


def note(session: Session, message: str) -> None:
    """One line on stderr for a person who watches: none in a pipe or a log, none with ``--quiet``."""
    if sys.stderr.isatty() and not session.quiet:
        say(message)


def json_line(value: dict[str, Any]) -> str:
    """One line of JSON. What is not UTF-8 is escaped, and json.loads gives the same string back."""
    text = json.dumps(value, ensure_ascii=False)
    is_safe = text.isprintable() and (sys.stdout.encoding or "").lower().replace("-", "") == "utf8"
    return text if is_safe else json.dumps(value)


def rounded(number: float) -> float:
    """Six significant digits: what is left of them in single precision."""
    return float(f"{number:.6g}")


@dataclasses.dataclass(frozen=True, slots=True)
class Progress:
    """A bar on stderr, or nothing where stderr is no terminal."""

    advance: Callable[[int], None]
    """Counts so many more items as done."""
    paused: Callable[[], contextlib.AbstractContextManager[None]]
    """The bar is away inside, so that lines can be printed to the same terminal."""


@contextlib.contextmanager
def progress(session: Session, what: str, total: Callable[[], int | None]) -> Iterator[Progress]:
    """Shows how many items of a stream are done. total: called only where there is a bar to show it."""
    if session.quiet or not sys.stderr.isatty():
        yield Progress(lambda count: None, contextlib.nullcontext)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # rich would send stdout to the console of the bar, and so results to stderr.
    bar = Bar(
        *(*columns, TimeRemainingColumn()),
        console=Console(stderr=True),
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
    )
    task = bar.add_task(what, total=total())

    @contextlib.contextmanager
    def paused() -> Iterator[None]:
        bar.stop()
        try:
            yield
        finally:
            bar.start()

    bar.start()
    try:
        yield Progress(lambda count: bar.advance(task, count), paused)
    finally:
        bar.stop()


def tail(text: str, width: int) -> str:
    """The end of ``text`` that fits into so many columns of a terminal, after an ellipsis."""
    from rich.cells import cell_len

    if cell_len(text) <= width:
        return text
    while text and cell_len(text) >= width:
        text = text[1:]
    return f"…{text}"


class ByteBar(contextlib.AbstractContextManager["ByteBar"]):
    """A bar for a download, to be passed as ``progress=``; appears with the first bytes."""

    def __init__(self, session: Session, what: str) -> None:
        self._is_shown = sys.stderr.isatty() and not session.quiet
        self._what = what
        self._bar: Any = None
        self._task: Any = None

    def __call__(self, done: int, total: int | None) -> None:
        if not self._is_shown:
            return
        if self._bar is None:
            from rich.console import Console
            from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
            self._bar = Progress(
                *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._task = self._bar.add_task(self._what, total=total)
            self._bar.start()
        self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
