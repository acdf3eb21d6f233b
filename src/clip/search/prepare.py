"""A picture that is to be indexed → its row and the pixels that the model takes, from one reading and one decoding.

It needs no model, so it runs in threads ahead of one, or on other machines.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import stat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip.data.likeness import fields_of
from clip.errors import ImageError
from clip.image_headers import read_header
from clip.images import MAX_BYTES, read_pixels
from clip.preprocess import Preprocess
from clip.search.items import Item
from clip.search.store import Row

__all__ = ["DIGEST_BYTES", "Contents", "Prepared", "prepare", "prepare_contents", "read_contents"]

DIGEST_BYTES = 16


class Contents(NamedTuple):
    """What an item was when it was read."""

    item: Item
    """With its size and its time, if it has one."""
    data: bytes
    digest: bytes


class Prepared(NamedTuple):
    """All that the index and the model need of a picture. It can be pickled."""

    row: Row
    pixels: NDArray[np.float32]
    """(3, S, S)"""


def prepare(item: Item, preprocess: Preprocess, *, with_torch: bool = True) -> Prepared:
    """Reads, decodes and preprocesses one picture. Raises ImageError with the path and the reason.

    with_torch: resize by torch's filter, as ``encode_images`` does for a model of torch; otherwise by Pillow's, as it
    does for an exported one.
    """
    return prepare_contents(read_contents(item), preprocess, with_torch=with_torch)


def read_contents(item: Item) -> Contents:
    """Reads the file of an item, once. Raises ImageError with the path and the reason.

    An item without a size or a time gets those that its file had before it was read, so that a later change shows.
    """
    data, size_bytes, modified_ns = item.image, item.size_bytes, item.modified_ns
    if isinstance(data, str):
        try:
            data, status = _read_file(data)
        except (OSError, ValueError) as error:  # ValueError: a null character in the path
            raise ImageError(f"{item.path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
        size_bytes = status.st_size if size_bytes is None else size_bytes
        modified_ns = status.st_mtime_ns if modified_ns is None else modified_ns
    if len(data) > MAX_BYTES:
        raise ImageError(f"{item.path}: has more than {MAX_BYTES} bytes; re-encode the picture as JPEG or PNG")
    size_bytes = len(data) if size_bytes is None else size_bytes
    item = dataclasses.replace(item, size_bytes=size_bytes, modified_ns=modified_ns)
    return Contents(item, data, hashlib.blake2b(data, digest_size=DIGEST_BYTES).digest())


def _read_file(path: str) -> tuple[bytes, os.stat_result]:
    """The bytes of a regular file, one more than the limit at most, and what it was like."""
    if not stat.S_ISREG(os.stat(path).st_mode):  # noqa: PTH116  # to open a pipe or a device may already do something
        raise OSError(None, "not a regular file")
    with open(path, "rb") as file:  # noqa: PTH123
        status = os.fstat(file.fileno())
        return file.read(min(status.st_size, MAX_BYTES) + 1), status


def prepare_contents(contents: Contents, preprocess: Preprocess, *, with_torch: bool = True) -> Prepared:
    """What ``prepare`` does after reading."""
    item, data, digest = contents
    try:
        pixels = read_pixels(data, shorter_side=preprocess.size)
        header = read_header(data)
        resized = preprocess(pixels).numpy() if with_torch else preprocess.to_numpy(pixels)
    except ImageError as error:
        raise ImageError(f"{item.path}: {str(error).removeprefix('<bytes>: ')}") from error
    width, height = header.size or (pixels.shape[1], pixels.shape[0])
    if header.size and header.orientation >= 5:
        width, height = height, width
    row = Row(
        path=item.path,
        size_bytes=item.size_bytes,
        modified_ns=item.modified_ns,
        digest=digest,
        width=width,
        height=height,
        format=header.format,
        signature=_signature(pixels),
        metadata=item.metadata,
    )
    return Prepared(row, resized)


def _signature(pixels: NDArray[np.uint8]) -> bytes | None:
    """``Row.signature``; None of a blank picture, which is not compared."""
    fields = fields_of(pixels)
    return None if fields.is_blank else fields.gradients.to_bytes(8, "big") + fields.colours.tobytes()
