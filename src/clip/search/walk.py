"""Folders → the picture files in them, with what tells whether one has changed since."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from typing import NamedTuple

from clip.picture_files import pictures_in

__all__ = ["PictureFile", "is_gone", "walk"]


class PictureFile(NamedTuple):
    """A file as it was when it was seen; for a link, the file that it leads to."""

    path: str
    size_bytes: int
    modified_ns: int


def walk(root: str, *, on_unreadable: Callable[[str, OSError], None]) -> Iterator[PictureFile]:
    """The pictures of a folder and of those inside, in order of the bytes of their paths, as ``pictures_in`` finds
    them. A root that is a file is given whatever it is called, if it is a regular one. No file is opened.

    on_unreadable: told of a folder or a file that cannot be looked at; of the root too, if it is not there.
    """
    try:
        status = os.stat(root)  # noqa: PTH116  # pathlib is slow, and changes some names
    except OSError as error:
        on_unreadable(root, error)
        return
    if not stat.S_ISDIR(status.st_mode):
        if stat.S_ISREG(status.st_mode):
            yield PictureFile(root, status.st_size, status.st_mtime_ns)
        else:
            on_unreadable(root, OSError(None, "neither a file nor a folder"))
        return
    for entry in pictures_in(root, on_unreadable=on_unreadable):
        try:
            status = entry.stat()
        except OSError as error:
            on_unreadable(entry.path, error)
        else:
            yield PictureFile(entry.path, status.st_size, status.st_mtime_ns)


def is_gone(path: str) -> bool:
    """Whether there certainly is no file or link at this path any more. Where it cannot be told, it is not gone.

    A member of an archive, or a picture in a table, is no file of its own; it is gone when that file is.
    """
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return True
    except NotADirectoryError:
        return not any(f"{suffix}/" in path for suffix in (".tar", ".parquet"))
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISLNK(mode))
