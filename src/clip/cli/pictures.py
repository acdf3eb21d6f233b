"""Arguments of a command → a stream of picture files: files, folders, patterns, and lists on stdin."""

from __future__ import annotations

import glob
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

from clip.picture_files import pictures_in

__all__ = ["STDIN", "count", "find", "lines_of_stdin"]

STDIN = "-"


def find(arguments: Sequence[str], *, on_problem: Callable[[str], None]) -> Iterator[str]:
    """Paths in the order of the arguments; a folder or pattern gives its files sorted by name.

    Folders are searched with the folders inside; hidden files, and links to folders, are passed over.
    on_problem: told of an argument that gave nothing, and of a folder that cannot be read. A path that does not exist
    is given as it is: reading it will fail.
    """
    for argument in arguments:
        if argument == STDIN:
            yield from lines_of_stdin()
            continue
        found = False
        for path in _expanded(argument, on_problem):
            found = True
            yield path
        if not found:
            on_problem(f"{argument}: has no pictures")


def count(arguments: Sequence[str]) -> int | None:
    """How many paths ``find`` will give, or None if they come from stdin."""
    return None if STDIN in arguments else sum(1 for _ in find(arguments, on_problem=lambda message: None))


def lines_of_stdin() -> Iterator[str]:
    """The lines of stdin as they come, without their ends; empty ones are passed over.

    They are read as bytes, because a file name need not be UTF-8.
    """
    for line in sys.stdin.buffer:
        if name := line.rstrip(b"\r\n"):
            yield os.fsdecode(name)


def _expanded(argument: str, on_problem: Callable[[str], None]) -> Iterable[str]:
    if os.path.isdir(argument):  # noqa: PTH112  # a name may hold a NUL
        return _pictures_in(argument, on_problem)
    if glob.has_magic(argument) and not os.path.lexists(argument):
        return _matches(argument)
    return (argument,)


def _matches(pattern: str) -> Iterator[str]:
    for path in sorted(glob.glob(pattern, recursive=True)):  # noqa: PTH207  # pathlib's has no absolute patterns
        if os.path.isdir(path):  # noqa: PTH112
            continue
        yield path


def _pictures_in(folder: str, on_problem: Callable[[str], None]) -> Iterator[str]:
    def on_unreadable(path: str, error: OSError) -> None:
        on_problem(f"{path}: cannot be read ({error.strerror})")

    return (entry.path for entry in pictures_in(folder, on_unreadable=on_unreadable))
