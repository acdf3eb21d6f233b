"""WebDataset shards: tar files whose members with the same key are one record.

Read as others write them: img2dataset's output and OpenCLIP's recipes (``KEY.jpg`` with ``KEY.txt``), and the layout of
CLIP_benchmark (``KEY.webp`` with ``KEY.cls``, class names and templates beside). Any record can be read at any time: an
index of offsets is made from the headers when a shard is first needed. Memory does not grow with the number of shards:
of most only the size is known.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import itertools
import json
import logging
import re
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from clip.checkpoints.download import default_directory, fetch
from clip.data.class_captions import DEFAULT_TEMPLATES, captions_of_class, checked_templates, lines_of
from clip.data.packing import pack
from clip.data.records import Sample
from clip.data.strings import Strings
from clip.data.tar_index import IMAGE_EXTENSIONS, Member, ShardIndex, read_index
from clip.errors import DataError, DownloadError
from clip.images import MAX_BYTES

__all__ = [
    "ShardSource",
    "expand",
    "fetch_once",
    "index_of",
    "is_compressed",
    "is_pattern",
    "is_url",
    "open_shards",
    "pack",
    "read_member",
]

logger = logging.getLogger(__name__)

_KEPT_INDEXES = 64
"""Shards whose offsets are in memory: several windows of the order. Each takes about a megabyte."""

_SAVED_FROM = 1000
"""Records from which on an index is kept on disk; a smaller one is read as fast as its file is found."""

_MAX_TEXT = 1 << 20
"""Bytes of a caption, a class or a JSON member."""

_MAX_SHARDS = 1_000_000
_MAX_SIDE_FILE = 1 << 26
"""Bytes of a file beside the shards; ``sizes.json`` of a million shards has 20 MB."""

_SCANNERS = 8
"""Threads that read headers or fetch shards when a source is opened; they wait more than they compute."""


# --- Addresses --------------------------------------------------------------------------------------------------------


def is_url(address: str) -> bool:
    return re.match(r"https?://", address) is not None


def is_pattern(address: str) -> bool:
    """Whether an address is not that of one file or folder."""
    if is_url(address) or "::" in address:
        return True
    return re.search(r"\{.*\}|\*", address) is not None


def expand(address: str) -> list[str]:
    """The shards that an address means: ``{00000..00012}`` and ``{a,b}`` as in a shell, patterns with ``*``, and
    several addresses with ``::`` between them as in OpenCLIP. Raises DataError if a pattern fits nothing."""
    shards: list[str] = []
    for part in address.split("::"):
        for number, one in enumerate(_braces(part), start=1):
            if number > _MAX_SHARDS:
                raise DataError(f"{part}: means more than {_MAX_SHARDS} shards; check the ranges")
            if is_url(one) or not re.search(r"[*?[]", one):
                shards.append(one)
                continue
            anchor = Path(Path(one).anchor or ".")
            try:
                found = sorted(str(path) for path in anchor.glob(str(Path(one).relative_to(Path(one).anchor))))
            except (ValueError, NotImplementedError) as error:  # such as *** in Python 3.11 and 3.12
                raise DataError(f"{one}: is no pattern ({error}); correct the address") from error
            if not found:
                raise DataError(f"{one}: no file fits this pattern; check the address")
            shards += found
    return shards


_RANGE = re.compile(r"(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})")


def _braces(text: str) -> Iterator[str]:
    """``text`` for each combination of the choices in its braces, which may be nested, in the order of a shell."""
    start = text.find("{")
    while start >= 0:
        inside, stop = _inside(text, start)
        choices = _choices(inside)
        if choices is not None:
            for choice in choices:
                yield from _braces(text[:start] + choice + text[stop:])
            return
        start = text.find("{", start + 1)  # these braces are part of the name
    yield text


def _inside(text: str, start: int) -> tuple[str, int]:
    """What stands between the brace at ``start`` and its partner, and where that ends; nothing if it has none."""
    depth = 0
    for i in range(start, len(text)):
        depth += (text[i] == "{") - (text[i] == "}")
        if depth == 0:
            return text[start + 1 : i], i + 1
    return "", start


def _choices(inside: str) -> Iterable[str] | None:
    """The numbers of a range, or what stands between commas; None if it is neither."""
    if numbers := _RANGE.fullmatch(inside):
        first, last = int(numbers[1]), int(numbers[2])
        is_padded = any(re.match("-?0[0-9]", digits) for digits in numbers.groups())
        width = max(map(len, numbers.groups())) if is_padded else 0
        step = 1 if last >= first else -1
        return (f"{number:0{width}d}" for number in range(first, last + step, step))
    choices, depth = [""], 0
    for character in inside:
        depth += (character == "{") - (character == "}")
        if character == "," and depth == 0:
            choices.append("")
        else:
            choices[-1] += character
    return choices if len(choices) > 1 else None


# --- Opening ----------------------------------------------------------------------------------------------------------


def open_shards(
    address: str, *, caption_column: str | None = None, templates: Sequence[str] | None = None, split: str | None = None
) -> ShardSource:
    """The records of shards: of a folder (local or http), of a pattern, or of several.

    caption_column: take captions from this field of ``KEY.json`` instead of ``KEY.txt``.
    templates: captions of records that have a class and no text; by default those beside the shards.
    split: a folder inside, as in CLIP_benchmark's layout.
    Raises DataError if there are none, or if no record of the first has an image and a caption.
    """
    is_one = not re.search(r"::|[{*]", address)
    if split is not None or (is_one and not re.search(r"\.(tar|tgz|tar\.\w+)$", address.split("?")[0])):
        folder = _Folder(f"{address.rstrip('/')}/{split}" if split else address)
        shards = folder.shards()
        above = _Folder(address) if split else folder
        is_retrieval = above.lines("dataset_type.txt") == ("retrieval",)
    else:
        shards = expand(address)
        folder = above = _Folder(shards[0].rpartition("/")[0] or ".")
        is_retrieval = False
    return ShardSource(
        address,
        shards,
        sizes=folder.sizes(shards),
        caption_column=caption_column,
        has_caption_per_line=is_retrieval,
        read_classes=above.lines,
        templates=templates,
    )


class _Folder:
    """What lies beside the shards, on disk or behind an address."""

    def __init__(self, address: str) -> None:
        self._address = address.rstrip("/") if is_url(address) else address

    def read(self, name: str) -> bytes | None:
        """A small file, or None if there is none."""
        try:
            if is_url(self._address):
                path = fetch_once(f"{self._address}/{name}", max_bytes=_MAX_SIDE_FILE)
            else:
                path = Path(self._address) / name
            with path.open("rb") as file:
                return file.read(_MAX_SIDE_FILE + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except DownloadError as error:
            if re.search(r"HTTP status (403|404|410)", str(error)):  # 403: object stores, for what is not there
                return None
            raise
        except OSError as error:
            raise DataError(f"{self._address}/{name}: cannot be read ({error.strerror}); check it") from error

    def lines(self, name: str) -> tuple[str, ...] | None:
        """Of a text file, or None if there is none."""
        data = self.read(name)
        return None if data is None else lines_of(data, f"{self._address}/{name}")

    def shards(self) -> list[str]:
        """By ``nshards.txt`` (CLIP_benchmark) or ``sizes.json``; on disk also all tar files, by their names."""
        if (count := self.lines("nshards.txt")) is not None:
            if not re.fullmatch("[0-9]{1,6}", count[0]):
                raise DataError(f"{self._address}/nshards.txt: is {count[0]!r}; a number of shards is expected")
            return [f"{self._address}/{number}.tar" for number in range(int(count[0]))]
        if not is_url(self._address):
            if names := sorted(path.name for path in Path(self._address).glob("*.tar")):
                return [str(Path(self._address) / name) for name in names]
            packed = sorted(path.name for path in Path(self._address).glob("*.t*") if is_compressed(path.name))
            hint = f"; there is {packed[0]}: decompress it" if packed else "; check the address"
            raise DataError(f"{self._address}: has no shards (*.tar){hint}")
        if names := sorted(self._listed()):
            return [f"{self._address}/{name}" for name in names]
        raise DataError(
            f"{self._address}: has neither nshards.txt nor sizes.json, and a web server lists no files; name the "
            f"shards, as in {self._address}/{{00000..00012}}.tar"
        )

    def sizes(self, shards: Sequence[str]) -> dict[str, int]:
        """Records of each shard by ``sizes.json``, if it knows all of them."""
        sizes = self._listed()
        return sizes if all(_file_name(shard) in sizes for shard in shards) else {}

    def _listed(self) -> dict[str, int]:
        data = self.read("sizes.json")
        if data is None:
            return {}
        try:
            sizes = json.loads(data)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{self._address}/sizes.json: is not JSON ({error}); remove it") from error
        is_sound = isinstance(sizes, dict) and all(type(size) is int and 0 <= size < 1 << 40 for size in sizes.values())
        if not is_sound:
            raise DataError(f"{self._address}/sizes.json: maps not all names to numbers of records; remove it")
        return {name: size for name, size in sizes.items() if "/" not in name}


def is_compressed(name: str) -> bool:
    return re.search(r"\.(tgz|tar\.\w+)$", name) is not None


def _file_name(address: str) -> str:
    return urlsplit(address).path.rpartition("/")[2] if is_url(address) else Path(address).name


def fetch_once(url: str, *, max_bytes: int = 1 << 40) -> Path:
    """The file at an address, from the cache folder if it was fetched before."""
    place = url.split("?")[0].rpartition("/")[0]
    folder = default_directory() / "data" / hashlib.sha256(place.encode()).hexdigest()[:16]
    return fetch(url, sha256=None, directory=folder, max_bytes=max_bytes)


class ShardSource:
    """Records of tar files, in the order of the shards and of their members.

    A shard is fetched, if it lies on the web, and its headers are read when the first of its records is asked for. Only
    where ``sizes.json`` does not give the numbers of records must that be done for all of them at once.
    """

    def __init__(
        self,
        name: str,
        shards: Sequence[str],
        *,
        sizes: Mapping[str, int],
        caption_column: str | None = None,
        has_caption_per_line: bool = False,
        read_classes: Callable[[str], tuple[str, ...] | None] = lambda name: None,
        templates: Sequence[str] | None = None,
    ) -> None:
        self.name = name
        self._shards = Strings(shards)
        self._caption_column = caption_column
        self._has_caption_per_line = has_caption_per_line
        self._indexes: OrderedDict[int, ShardIndex] = OrderedDict()
        self._lock = threading.Lock()
        for shard in shards:
            if is_compressed(urlsplit(shard).path if is_url(shard) else shard):
                raise DataError(f"{shard}: records in a compressed archive cannot be found; decompress it to .tar")
            if not is_url(shard) and not Path(shard).is_file():
                raise DataError(f"{shard}: no such file; check the address")
        self.shard_sizes = self._sizes(sizes)
        self._starts = list(itertools.accumulate(self.shard_sizes, initial=0))
        if not len(self):
            raise DataError(f"{name}: has no records; members are named KEY.jpg, KEY.txt")
        self.class_names, self._templates = self._classes(read_classes, templates)

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which opens what it needs itself."""
        return {name: value for name, value in vars(self).items() if name not in ("_indexes", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _indexes=OrderedDict(), _lock=threading.Lock())

    def __len__(self) -> int:
        return self._starts[-1]

    def __getitem__(self, index: int) -> Sample:
        index = range(len(self))[index]
        shard = bisect.bisect_right(self._starts, index) - 1
        record = index - self._starts[shard]
        members = self._index(shard)
        name = _file_name(self._shards[shard])
        if record >= len(members):
            raise DataError(
                f"{name}: has {len(members)} records, {self.shard_sizes[shard]} are expected by sizes.json; correct or "
                "remove that"
            )
        key = f"{name}:{members.keys[record]}"
        try:
            with self._path(shard).open("rb", buffering=0) as file:
                return self._sample(key, members, record, file)
        except DataError as error:
            raise DataError(f"{key}: {error}") from error.__cause__
        except OSError as error:
            raise DataError(f"{key}: {self._path(shard)} cannot be read ({error.strerror}); check it") from error

    # --- One record ---------------------------------------------------------------------------------------------------

    def _sample(self, key: str, members: ShardIndex, record: int, file: io.FileIO) -> Sample:
        image = members.member(record, "image")
        if image is None:
            raise DataError(f"has no image; its member must end in one of {', '.join(IMAGE_EXTENSIONS)}")
        label = self._label(members, record, file)
        captions = self._captions(members, record, file, label)
        return Sample(key=key, image=read_member(file, image, MAX_BYTES), captions=captions, label=label)

    def _label(self, members: ShardIndex, record: int, file: io.FileIO) -> int | None:
        member = members.member(record, "cls")
        if member is None:
            return None
        text = read_member(file, member, _MAX_TEXT)
        if not re.fullmatch(rb"\s*[0-9]{1,9}\s*", text):
            raise DataError(f"its class is {text[:20]!r}; a number from 0 on is expected")
        label = int(text)
        if self.class_names and label >= len(self.class_names):
            raise DataError(f"its class is {label}, but classnames.txt has {len(self.class_names)} names; correct it")
        return label

    def _captions(self, members: ShardIndex, record: int, file: io.FileIO, label: int | None) -> tuple[str, ...]:
        if self._caption_column is not None:
            found = _json(file, members.member(record, "json"), ".json")
            found = found.get(self._caption_column) if isinstance(found, dict) else None
            return _checked_captions(found, f"the field {self._caption_column!r} of its .json")
        if (member := members.member(record, "captions.json")) is not None:
            return _checked_captions(_json(file, member, ".captions.json"), "its .captions.json")
        if (member := members.member(record, "txt")) is not None:
            try:
                text = read_member(file, member, _MAX_TEXT).decode()
            except UnicodeDecodeError as error:
                raise DataError(f"its caption is not UTF-8 at byte {error.start}; write the shard again") from error
            return _checked_captions(text.splitlines() if self._has_caption_per_line else text, "its .txt")
        if label is not None and self.class_names:
            return captions_of_class(self.class_names[label], self._templates)
        raise DataError("has no caption; its member must end in .txt")

    # --- All of them --------------------------------------------------------------------------------------------------

    def _sizes(self, known: Mapping[str, int]) -> tuple[int, ...]:
        """Records of each shard, from ``sizes.json`` or by reading all headers."""
        if known:
            return tuple(known[_file_name(shard)] for shard in self._shards)
        logger.info("%s: reading the headers of %d shards", self.name, len(self._shards))
        with ThreadPoolExecutor(_SCANNERS, thread_name_prefix="clip-shards") as pool:
            return tuple(pool.map(lambda shard: len(self._index(shard)), range(len(self._shards))))

    def _classes(
        self, read: Callable[[str], tuple[str, ...] | None], templates: Sequence[str] | None
    ) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Class names and templates, looked for where the first shard has classes. Checks that it has captions."""
        first = self._index(next(i for i, size in enumerate(self.shard_sizes) if size))
        names = (read("classnames.txt") if first.count("cls") else None) or ()
        if templates is None:
            templates = read("zeroshot_classification_templates.txt") if names else None
        needed = ("json",) if self._caption_column is not None else ("txt", "captions.json")
        if not first.count("image"):
            raise DataError(f"{self.name}: no record has an image; members must end in {', '.join(IMAGE_EXTENSIONS)}")
        if not any(first.count(role) for role in needed) and not names:
            what = f"{needed[0]!r} for caption_column" if self._caption_column is not None else "'txt'"
            remedy = "pass caption_column= with a field of it" if first.count("json") else "write captions, or classes"
            remedy = "put classnames.txt beside the shards" if first.count("cls") else remedy
            raise DataError(f"{self.name}: no record has a member {what}; {remedy}")
        return names, checked_templates(DEFAULT_TEMPLATES if templates is None else templates)

    def _path(self, shard: int) -> Path:
        address = self._shards[shard]
        return fetch_once(address) if is_url(address) else Path(address)

    def _index(self, shard: int) -> ShardIndex:
        """Where the records of a shard lie: from memory, from disk, or from its headers."""
        with self._lock:
            if (known := self._indexes.get(shard)) is not None:
                self._indexes.move_to_end(shard)
                return known
        index = index_of(self._path(shard))
        with self._lock:
            self._indexes[shard] = index
            while len(self._indexes) > _KEPT_INDEXES:
                self._indexes.popitem(last=False)
        return index


def index_of(path: Path) -> ShardIndex:
    """The index of a tar file, which is kept in the cache folder if it took long to read."""
    try:
        status = path.stat()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    stamp = (status.st_size, status.st_mtime_ns)
    saved = default_directory() / "indexes" / (hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:32] + ".npz")
    is_large = status.st_size > _SAVED_FROM * 1024  # a record has two members of two blocks at least
    if is_large and (index := ShardIndex.load(saved, stamp)) is not None:
        return index
    index = read_index(path)
    if len(index) >= _SAVED_FROM:
        try:
            index.save(saved, stamp)
        except OSError as error:  # a full or read-only disk costs time, no more
            logger.info("%s cannot be written (%s); the headers of %s are read each time", saved, error.strerror, path)
    return index


def read_member(file: io.FileIO, member: Member, limit: int) -> bytes:
    """All of a member's bytes. Raises DataError if there are more than ``limit``, or fewer than its header says."""
    if member.size > limit:
        raise DataError(f"a member has {member.size} bytes; the limit is {limit}")
    file.seek(member.offset)
    chunks: list[bytes] = []
    missing = member.size
    while missing and (chunk := file.read(missing)):
        chunks.append(chunk)
        missing -= len(chunk)
    if missing:
        raise DataError("the shard is shorter than when it was opened; fetch or write it again")
    return b"".join(chunks)


def _json(file: io.FileIO, member: Member | None, extension: str) -> Any:
    if member is None:
        raise DataError(f"has no member {extension}")
    try:
        return json.loads(read_member(file, member, _MAX_TEXT))
    except (ValueError, RecursionError) as error:
        raise DataError(f"its {extension} is not JSON ({error}); write the shard again") from error


def _checked_captions(found: object, where: str) -> tuple[str, ...]:
    """A text or a list of texts as captions, without blank ones."""
    texts = [found] if isinstance(found, str) else found
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{where} is {str(found)[:40]!r}; a text or a list of texts is expected")
    captions = tuple(text.strip() for text in texts if text.strip())
    if not captions:
        raise DataError(f"{where} is empty")
    try:
        "".join(captions).encode()
    except UnicodeEncodeError:
        raise DataError(f"{where} has half a character (a lone surrogate); write the shard again") from None
    return captions
