"""An address → a source of pairs: a folder, a table, class folders, shards; and mixtures of them.

``open_source`` looks at the address and says which kind it takes it for. Opening reads names and captions, never a
picture. What is wrong with the whole (no such file, no caption column) is an error at once; what is wrong with one
record is an error when that record is read, and the stream counts it and goes on.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from clip.data.class_captions import DEFAULT_TEMPLATES, captions_of_class, checked_templates, read_lines
from clip.data.idx import open_idx
from clip.data.order import WINDOW_RECORDS
from clip.data.parquet import open_parquet
from clip.data.records import Sample, Source
from clip.data.shards import is_pattern, open_shards
from clip.data.strings import Strings
from clip.data.tables import open_table
from clip.errors import ConfigError, DataError, choices

__all__ = [
    "IMAGE_SUFFIXES",
    "ClassFolders",
    "FolderSource",
    "Kind",
    "Mixture",
    "detect_kind",
    "open_source",
]

logger = logging.getLogger(__name__)

Kind = Literal["folder", "classes", "csv", "tsv", "jsonl", "parquet", "webdataset", "idx"]

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif"})
"""Of the files that a folder is searched for; what they are is told by their first bytes."""

_SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "dev"})
_TABLES: dict[str, Kind] = {".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}


def open_source(
    address: str | os.PathLike[str],
    *,
    kind: Kind | None = None,
    image_column: str | None = None,
    caption_column: str | None = None,
    templates: Sequence[str] | None = None,
    split: str | None = None,
) -> Source:
    """The pairs at an address.

    kind: how to read it; None looks. image_column, caption_column: of a table; None takes the usual names.
    templates: strings with ``{}`` that make captions of class names. split: the folder inside, such as ``train``.
    Raises DataError if there is nothing that can be read, ConfigError for options that do not fit the kind.
    """
    name = os.fspath(address)
    if kind is not None and kind not in get_args(Kind):
        raise ConfigError(f"kind is {kind!r}; it must be one of {choices(kind, get_args(Kind))}")
    kind = kind or detect_kind(name, split=split)
    _check_options(kind, image_column=image_column, caption_column=caption_column, templates=templates, split=split)
    if kind == "webdataset":
        return open_shards(name, caption_column=caption_column, templates=templates, split=split)
    if kind == "parquet":
        return open_parquet(name, image_column=image_column, caption_column=caption_column)
    if kind == "idx":
        return open_idx(name, templates=templates, split=split)
    if kind in ("csv", "tsv", "jsonl"):
        return open_table(name, kind=kind, image_column=image_column, caption_column=caption_column)
    root = Path(name) / split if split else Path(name)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; check the address{' and the split' if split else ''}")
    if kind == "folder":
        return FolderSource(root)
    return ClassFolders(root, templates=templates, names_file=Path(name) / "classnames.txt")


_OPTIONS: dict[str, tuple[Kind, ...]] = {
    "image_column": ("csv", "tsv", "jsonl", "parquet"),
    "caption_column": ("csv", "tsv", "jsonl", "parquet", "webdataset"),
    "templates": ("classes", "webdataset", "idx"),
    "split": ("folder", "classes", "webdataset", "idx"),
}


def _check_options(kind: Kind, **options: object) -> None:
    """An option that a kind does not use is a mistake of the caller's: passing over it would hide that."""
    for name, value in options.items():
        if value is not None and kind not in _OPTIONS[name]:
            raise ConfigError(f"{name} is {value!r}, but data of kind {kind!r} has none; it is for {_OPTIONS[name]}")


def detect_kind(address: str, *, split: str | None = None) -> Kind:
    """What lies at an address. Raises DataError, with what was found, if that cannot be told."""
    if is_pattern(address) and not address.endswith(".parquet"):
        return "webdataset"
    path = Path(address)
    if re.search(r"\.(tar|tgz|tar\.\w+)$", address):
        return "webdataset"
    if path.suffix.lower() in _TABLES:
        return _TABLES[path.suffix.lower()]
    if not path.exists():
        raise DataError(f"{address}: no such file or folder; check the address")
    if path.is_file():
        raise DataError(f"{address}: its kind cannot be told from {path.suffix!r}; pass kind=, one of {get_args(Kind)}")
    if any("-idx3-" in entry.name for entry in path.iterdir()):
        return "idx"
    root = path / split if split else path
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; check the split")
    names = [entry.name for entry in root.iterdir()]
    if any(name.endswith(".tar") or name == "nshards.txt" for name in names):
        return "webdataset"
    if any(name.endswith(".parquet") for name in names):
        return "parquet"
    return _kind_of_folder(root)


def _kind_of_folder(root: Path) -> Kind:
    """By the first pictures: with a text beside them, or in folders of their own."""
    seen = 0
    is_nested = False
    for path in _pictures(root):
        seen += 1
        if path.with_suffix(".txt").exists():
            return "folder"
        is_nested = is_nested or path.parent != root
        if seen == 1000:
            break
    if not seen:
        raise DataError(f"{root}: there is no picture in this folder or those inside; check the address")
    if not is_nested:
        raise DataError(
            f"{root}: none of its pictures has a text of the same name (a.jpg with a.txt), and there are no folders by "
            "class; write captions beside the pictures, or pass a table of pairs"
        )
    return "classes"


def _pictures(root: Path) -> Iterator[Path]:
    """Pictures in a folder and those inside, in an order that does not depend on the file system; no hidden files."""

    def fail(error: OSError) -> None:
        raise DataError(f"{error.filename}: cannot be read ({error.strerror}); check its permissions") from error

    for folder, folders, files in os.walk(root, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES and not name.startswith("."):  # noqa: PTH122  # fast
                yield Path(folder, name)


class FolderSource:
    """Pictures with a text of the same name beside them, also in folders inside: one caption a line."""

    class_names: tuple[str, ...] = ()

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.name = os.fspath(root)
        self._root = Path(root)
        self._paths = Strings(path.relative_to(root).as_posix() for path in _pictures(self._root))
        if not len(self._paths):
            raise DataError(f"{self.name}: there is no picture in this folder or those inside; check the address")

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        key = self._paths[index]
        path = self._root / key
        return Sample(key=key, image=path, captions=read_lines(path.with_suffix(".txt")))


class ClassFolders:
    """A folder for each class, with pictures in it and in folders inside; captions are templates with the class name.

    Classes are in the sorted order of their folders, as in torchvision. Their names are those of the folders, with
    spaces for underscores, or the lines of ``classnames.txt`` in the same order.
    """

    def __init__(
        self,
        root: str | os.PathLike[str],
        *,
        templates: Sequence[str] | None = None,
        names_file: str | os.PathLike[str] | None = None,
    ) -> None:
        self.name = os.fspath(root)
        self._root = Path(root)
        folders = sorted(entry.name for entry in self._root.iterdir() if entry.is_dir() and entry.name[0] != ".")
        if folders and _SPLITS.issuperset(name.lower() for name in folders):
            raise DataError(
                f"{root}: its folders {folders} are splits, not classes; pass split=, such as {folders[0]!r}"
            )
        paths: list[str] = []
        labels: list[int] = []
        for label, folder in enumerate(folders):
            before = len(paths)
            paths += (path.relative_to(root).as_posix() for path in _pictures(self._root / folder))
            labels += [label] * (len(paths) - before)
        if not paths:
            raise DataError(f"{root}: there is no picture in its folders; one folder for each class is expected")
        self._paths = Strings(paths)
        self._labels = np.array(labels, dtype=np.int64)
        self.class_names = _class_names(folders, None if names_file is None else Path(names_file))
        self._templates = checked_templates(DEFAULT_TEMPLATES if templates is None else templates)

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Sample:
        key, label = self._paths[index], int(self._labels[index])
        captions = captions_of_class(self.class_names[label], self._templates)
        return Sample(key=key, image=self._root / key, captions=captions, label=label)


def _class_names(folders: list[str], names_file: Path | None) -> tuple[str, ...]:
    if names_file is None or not names_file.is_file():
        return tuple(" ".join(folder.split("_")) for folder in folders)
    names = read_lines(names_file)
    if len(names) != len(folders):
        raise DataError(
            f"{names_file}: has {len(names)} names for {len(folders)} folders; write one line for each, in sorted order"
        )
    return names


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """Several sources as one; index i counts through them in their order.

    weights: the share of each in what is drawn, whatever its size; see ``order.Order``. None draws every record of all
    of them once in an epoch.
    """

    parts: tuple[Source, ...]
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "parts", tuple(self.parts))
        if not self.parts:
            raise ConfigError("a mixture of no sources; give at least one")
        if self.weights is None:
            return
        weights = tuple(float(weight) for weight in self.weights)
        if len(weights) != len(self.parts):
            raise ConfigError(f"{len(weights)} weights for {len(self.parts)} sources; give one for each")
        if not all(0 < weight < float("inf") for weight in weights):
            raise ConfigError(f"weights are {weights}; each must be above 0; leave out a source that is not wanted")
        if any(getattr(part, "weights", None) is not None for part in self.parts):
            raise ConfigError("a mixture with weights inside another; give all sources and weights to one")
        object.__setattr__(self, "weights", weights)

    @property
    def name(self) -> str:
        return " + ".join(part.name for part in self.parts)

    @property
    def class_names(self) -> tuple[str, ...]:
        """Those of the parts if all have the same; labels of different classes do not mix."""
        first = self.parts[0].class_names
        return first if all(part.class_names == first for part in self.parts) else ()

    @property
    def shard_sizes(self) -> tuple[int, ...]:
        """The shards of all parts; a part without shards is one."""
        return tuple(size for part in self.parts for size in getattr(part, "shard_sizes", None) or (len(part),))

    @property
    def window_records(self) -> int:
        """What the most demanding part asks for."""
        return min(int(getattr(part, "window_records", WINDOW_RECORDS)) for part in self.parts)

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def __getitem__(self, index: int) -> Sample:
        place = index
        for part in self.parts:
            if 0 <= place < len(part):
                sample = part[place]
                return sample if self.class_names else dataclasses.replace(sample, label=None)
            place -= len(part)
        raise IndexError(f"index {index} is out of range for {len(self)} records")
