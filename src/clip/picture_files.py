"""Which files of a folder are pictures: told by their names, without opening any."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

__all__ = ["EXTENSIONS", "is_picture_name", "pictures_in"]

EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".gif", ".webp", ".avif", ".bmp", ".dib"),
        *(".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
"""What is taken from a folder. A file that is named is tried whatever it is called."""


def is_picture_name(name: str) -> bool:
    """Whether a file of this name, or path, is taken from a folder."""
    return os.path.splitext(name)[1].lower() in EXTENSIONS  # noqa: PTH122  # pathlib is slow, and changes some names


def pictures_in(folder: str, *, on_unreadable: Callable[[str, OSError], None]) -> Iterator[os.DirEntry[str]]:
    """Pictures of a folder and of the folders inside, in order of the bytes of their paths.

    Hidden files, links to folders, and what is no regular file (or a link to one) are passed over. Folders may lie as
    deep as the system allows.
    on_unreadable: told of a folder that cannot be listed, or of an entry that cannot be looked at.
    """
    listings = [_listing(folder, on_unreadable)]  # of the folder and of those inside, down to where we are
    while listings:
        entry = next(listings[-1], None)
        if entry is None:
            listings.pop()
        elif entry.name.startswith("."):
            continue
        elif _is_folder(entry):
            listings.append(_listing(entry.path, on_unreadable))
        elif is_picture_name(entry.name):
            try:
                is_file = entry.is_file()
            except OSError as error:  # a link to itself, or into a folder that is closed to us
                on_unreadable(entry.path, error)
            else:
                if is_file:
                    yield entry


def _listing(folder: str, on_unreadable: Callable[[str, OSError], None]) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            # A folder sorts with the slash that follows its name, or "a/b" would come before "a.png".
            ordered = sorted(entries, key=lambda entry: os.fsencode(entry.name) + b"/" * _is_folder(entry))
    except OSError as error:
        on_unreadable(folder, error)
        return iter(())
    return iter(ordered)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir(follow_symlinks=False)
    except OSError:  # of a file system that does not tell with the listing, an entry that has gone since
        return False
