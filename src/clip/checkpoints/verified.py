"""Remembers which files have the right SHA-256, so that a download is hashed once and not at every load.

Notes lie in a folder ``.everyclip`` beside the files, with the partial files and locks of ``download.py``.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

__all__ = ["RECORDS", "file_sha256", "is_verified", "read_note", "record_path", "remember", "write_note"]

logger = logging.getLogger(__name__)

RECORDS = ".everyclip"
"""Folder of the notes."""


def file_sha256(path: Path) -> str:
    """SHA-256 of a file in lower-case hexadecimal, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_verified(path: Path, sha256: str) -> bool:
    """Whether the file has that SHA-256. A yes is remembered, so that a file is hashed once and not at every load.

    The record holds size, modification and change time; a file that was written to, replaced or restored over since
    is hashed again. It guards against accidents; who may write to the folder can forge the record as well as the file.
    """
    before = _stamp(path)
    if read_note(record_path(path, "verified")) == {"sha256": sha256, **before}:
        return True
    if file_sha256(path) != sha256 or _stamp(path) != before:
        return False
    remember(path, sha256)
    return True


def _stamp(path: Path) -> dict[str, int]:
    # The change time, because `cp -p` and `touch -r` restore the modification time and nothing restores this one.
    stat = path.stat()
    return {"size_bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, "ctime_ns": stat.st_ctime_ns}


def remember(path: Path, sha256: str) -> None:
    """Notes that the file, as it is now, has that SHA-256."""
    record = record_path(path, "verified")
    try:
        record.parent.mkdir(exist_ok=True)
        write_note(record, {"sha256": sha256, **_stamp(path)})
    except OSError as error:  # a folder that others look after; the file is hashed at each load instead
        logger.info("cannot remember that %s is verified: %s", path, error)


def record_path(target: Path, kind: str) -> Path:
    """Where what is kept of ``target`` lies: "verified", "lock", "part" or "part.json"."""
    return target.parent / RECORDS / f"{target.name}.{kind}"


def read_note(path: Path) -> dict[str, Any]:
    """The object in a note of ours, or an empty one if it is absent or damaged: a note only ever saves work."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def write_note(path: Path, value: dict[str, Any]) -> None:
    """Writes a note in one piece."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.new")
    beside.write_text(json.dumps(value) + "\n", encoding="utf-8")
    beside.replace(path)
