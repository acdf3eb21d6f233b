"""Where the records of a WebDataset shard lie in its tar file, read from the headers alone.

Nothing is extracted: a member is a name, an offset and a size, and names are keys, never paths. Every number of a
header is checked against the file before it is used, so the cost of a hostile archive is bounded by its size.
"""

from __future__ import annotations

import os
import re
import zipfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from clip.data.strings import Strings
from clip.errors import DataError

__all__ = ["IMAGE_EXTENSIONS", "Member", "ShardIndex", "read_index"]

IMAGE_EXTENSIONS = ("jpg", "png", "jpeg", "webp", "gif", "bmp", "tif", "tiff", "ppm", "pgm", "avif")
"""Of members, the preferred first: the order of OpenCLIP's ``jpg;png;jpeg;webp``, then what others write."""

_EXTENSIONS = (*IMAGE_EXTENSIONS, "txt", "json", "cls", "captions.json")
_ROLES = ("image", "txt", "json", "cls", "captions.json")

_BLOCK = 512
_MAX_NAME = 1 << 16
"""Bytes of a long name or an extended header; paths of any system are far shorter."""
_MAX_MEMBERS = 1 << 24

# As webdataset splits names: the key ends at the first dot of the last path element.
_KEY_AND_EXTENSION = re.compile(r"((?:.*/|)[^./]+)[.]([^/]*)")


class Member(NamedTuple):
    """The bytes of one file in a shard."""

    offset: int
    size: int


_NONE = Member(0, 0)


class ShardIndex:
    """The records of one shard."""

    def __init__(self, keys: Strings, image_extensions: Strings, places: NDArray[np.int64]) -> None:
        self.keys = keys
        self.image_extensions = image_extensions
        """Of each record's image, empty where it has none."""
        self._places = places  # (records, roles, 2): offset and size, or _NONE: at 0 there is a header

    def __len__(self) -> int:
        return len(self.keys)

    def member(self, record: int, role: str) -> Member | None:
        """role: ``image``, ``txt``, ``json``, ``cls`` or ``captions.json``. None if the record has no such member."""
        offset, size = self._places[record, _ROLES.index(role)].tolist()
        return Member(offset, size) if offset else None

    def count(self, role: str) -> int:
        """Records that have such a member."""
        return int((self._places[:, _ROLES.index(role), 0] > 0).sum())

    def save(self, path: Path, stamp: tuple[int, int]) -> None:
        """Writes it for ``load``. stamp: size and time of the shard that it belongs to."""
        partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            np.savez(
                file,
                stamp=np.array([_VERSION, *stamp], dtype=np.int64),
                keys=self.keys.arrays()[0],
                key_ends=self.keys.arrays()[1],
                extensions=self.image_extensions.arrays()[0],
                extension_ends=self.image_extensions.arrays()[1],
                places=self._places,
            )
        partial.replace(path)

    @classmethod
    def load(cls, path: Path, stamp: tuple[int, int]) -> ShardIndex | None:
        """What ``save`` wrote, or None if it is not there, damaged, or of another state of the shard."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                if arrays["stamp"].tolist() != [_VERSION, *stamp]:
                    return None
                keys = Strings.of_arrays(arrays["keys"], arrays["key_ends"])
                extensions = Strings.of_arrays(arrays["extensions"], arrays["extension_ends"])
                places = arrays["places"]
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None
        if places.shape != (len(keys), len(_ROLES), 2) or len(extensions) != len(keys) or places.dtype != np.int64:
            return None
        return cls(keys, extensions, places)


_VERSION = 1


def read_index(path: Path) -> ShardIndex:
    """The records of a tar file. Raises DataError, with the offset, where it is not one, or is damaged or cut off."""
    keys: list[str] = []
    extensions: list[str] = []
    places = array("q")
    try:
        with path.open("rb") as file:
            for key, members in _records(file, path):
                extension = next((name for name in IMAGE_EXTENSIONS if name in members), "")
                keys.append(key)
                extensions.append(extension)
                for role in _ROLES:
                    places.extend(members.get(extension if role == "image" else role, _NONE))
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    shape = (len(keys), len(_ROLES), 2)
    return ShardIndex(Strings(keys), Strings(extensions), np.frombuffer(places, dtype=np.int64).reshape(shape).copy())


def _records(file: BinaryIO, path: Path) -> Iterator[tuple[str, dict[str, Member]]]:
    """Key and members, by extension, of each record: members in a row whose names have the same key."""
    key = ""
    members: dict[str, Member] = {}
    for name, member in _members(file, os.fstat(file.fileno()).st_size, path):
        split = _KEY_AND_EXTENSION.fullmatch(name)
        extension = split[2].lower() if split else ""
        if split is None or extension not in _EXTENSIONS:
            continue
        if split[1] != key and members:
            yield key, members
            members = {}
        key = split[1]
        if extension in members:
            raise DataError(f"{path}: has two members {name!r} in one record; write each record once")
        members[extension] = member
    if members:
        yield key, members


# --- The tar format ---------------------------------------------------------------------------------------------------
#
# POSIX.1-2017, "pax", ustar interchange format; GNU tar manual, "Basic Tar Format".

_REGULAR = frozenset(b"0\x007")
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstandard"}


def _members(file: BinaryIO, file_size: int, path: Path) -> Iterator[tuple[str, Member]]:
    """Name and place of each regular file; links, folders and devices are passed over."""
    offset = count = 0
    long_name: str | None = None
    pax: dict[str, str] = {}
    while offset < file_size:
        file.seek(offset)
        header = file.read(_BLOCK)
        if offset == 0 and (compression := _COMPRESSED.get(header[:2])) and header[257:262] != b"ustar":
            raise DataError(
                f"{path}: is compressed with {compression}, and a record inside cannot be found without reading all "
                "before it; decompress the shards (pictures are compressed already)"
            )
        if len(header) < _BLOCK:
            raise DataError(f"{path}: is cut off in the header at byte {offset}; fetch or write it again")
        if header == bytes(_BLOCK):  # the end of the archive
            return
        try:
            size = _number(header[124:136])
            if not _is_sound(header):
                raise ValueError("its checksum is wrong")
            kind = header[156]
            if "size" in pax and kind not in b"xgLK":
                size = int(pax["size"])
        except ValueError as error:
            raise DataError(f"{path}: no tar header at byte {offset} ({error}); fetch or write it again") from error
        data = offset + _BLOCK
        if kind in b"12" or kind in b"3456":  # what has no data, whatever its size says
            size = 0
        if size < 0 or data + size > file_size:
            raise DataError(f"{path}: is cut off at byte {file_size}, in the member at byte {offset}; fetch it again")
        count += 1
        if count > _MAX_MEMBERS:
            raise DataError(f"{path}: has more than {_MAX_MEMBERS} members; write shards of about 10000 records")
        if kind in b"Lx":
            if size > _MAX_NAME:
                raise DataError(f"{path}: the name at byte {offset} has {size} bytes; the limit is {_MAX_NAME}")
            content = file.read(size)
            if kind in b"L":
                long_name = _text(content)
            else:
                pax = _pax_fields(content, path, offset)
        elif kind not in b"gK":
            name = pax.get("path") or long_name or _name(header)
            is_sparse = kind in b"S" or any(field.startswith("GNU.sparse") for field in pax)
            if kind in _REGULAR and not is_sparse and not name.endswith("/"):
                yield name, Member(data, size)
            long_name, pax = None, {}
        offset = data + -(-size // _BLOCK) * _BLOCK


def _number(field: bytes) -> int:
    """Octal digits, or with the first bit set a binary number (GNU, for sizes from 8 GiB on). Raises ValueError."""
    if field[0] & 0x80:
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    digits = field.split(b"\0", 1)[0].strip(b" ")
    if not re.fullmatch(rb"[0-7]*", digits):
        raise ValueError(f"{field!r} is not an octal number")
    return int(digits or b"0", 8)


def _is_sound(header: bytes) -> bool:
    """Whether the sum of the header's bytes, its own field as spaces, is as stated: unsigned, or signed as some old
    programs have it."""
    stated = _number(header[148:156])
    rest = header[:148] + b" " * 8 + header[156:]
    total = sum(rest)
    return stated == total or stated == total - 256 * sum(byte > 127 for byte in rest)


def _name(header: bytes) -> str:
    name = _text(header[:100])
    prefix = _text(header[345:500]) if header[257:263] == b"ustar\0" else ""  # GNU keeps times there
    return f"{prefix}/{name}" if prefix else name


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _pax_fields(content: bytes, path: Path, offset: int) -> dict[str, str]:
    """Lines of the form "length name=value", where length counts the whole line."""
    fields: dict[str, str] = {}
    start = 0
    while start < len(content) and content[start]:
        match = re.compile(rb"([0-9]{1,6}) ([^=]+)=").match(content, start)
        stop = start + int(match[1]) if match else 0
        if match is None or stop > len(content) or stop <= match.end() - 1 or content[stop - 1 : stop] != b"\n":
            raise DataError(f"{path}: the extended header at byte {offset} is malformed; write the shard again")
        fields[_text(match[2])] = _text(content[match.end() : stop - 1])
        start = stop
    return fields
