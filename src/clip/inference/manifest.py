"""``clip.json``, the one file beside the graphs of an exported model: what they are, and what they take.

Read strictly, because a folder may come from anybody: every value has its type and range, and every file its size,
before an engine sees one byte of it.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from clip.config import CLIPConfig
from clip.errors import CheckpointError, ConfigError, choices
from clip.preprocess import Preprocess

__all__ = ["ENGINES", "FORMAT", "MANIFEST", "VERSION", "Manifest", "Tower", "port", "read_manifest"]

MANIFEST = "clip.json"
FORMAT, VERSION = "everyclip-export", 1

ENGINES = {
    "openvino": ("image.xml", "image.bin", "text.xml", "text.bin"),
    "onnxruntime": ("image.onnx", "text.onnx"),
}
"""The files that each engine needs."""

PRECISIONS = ("fp32", "int8")

_MAX_BYTES = 64 * 2**20
"""Of ``clip.json``; that of OpenAI's models has 0.6 MB, nearly all of it the vocabulary."""

_FLOAT32_MAX = 3.4e38


def port(dtype: str, dimensions: Iterable[int | None]) -> str:
    """An input or output of a graph in words: ``float32 (?, 3, 224, 224)``, where ? is of any size."""
    return f"{dtype} ({', '.join('?' if size is None else str(size) for size in dimensions)})"


class Tower(NamedTuple):
    """What the graph of one tower must look like."""

    name: str
    takes: str
    gives: str

    def check(self, path: Path, inputs: list[str], outputs: list[str]) -> None:
        """Raises CheckpointError if a graph is not this tower's."""
        if inputs != [self.takes] or outputs != [self.gives]:
            found = f"takes {' and '.join(inputs) or 'nothing'} and gives {' and '.join(outputs) or 'nothing'}"
            raise CheckpointError(
                f"{path} {found}; by its {MANIFEST} it should take {self.takes} and give {self.gives}. "
                "Export the model again"
            )


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """What ``clip.json`` says."""

    engine: str
    """"openvino" or "onnxruntime"."""
    precision: str
    """Of the stored weights: "fp32" or "int8"."""
    config: CLIPConfig
    preprocess: Preprocess
    logit_scale: float
    """A logarithm."""
    logit_bias: float | None
    files: dict[str, int]
    """Size in bytes by name; all lie beside ``clip.json``."""
    source: str = ""
    """Where the weights came from, in words."""
    fingerprint: str = ""
    """Of the weights before they were exported, as ``clip.checkpoints`` computes it."""
    licence: str = ""
    tokenizer: Mapping[str, Any] | None = None
    """For readers without this package; we use our own."""
    certificate: Mapping[str, Any] | None = None
    """How far the graphs are from the model they were made of."""

    @property
    def towers(self) -> tuple[Tower, Tower]:
        """The image tower and the text tower."""
        size, gives = self.config.image_resolution, port("float32", (None, self.config.embed_dim))
        takes = port("float32", (None, 3, size, size)), port("int32", (None, None))
        return Tower("image", takes[0], gives), Tower("text", takes[1], gives)


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """What is exported in ``folder``, whose files are all there. Raises CheckpointError with the first thing wrong."""
    path = Path(folder) / MANIFEST
    try:
        values = _read_json(path)
        manifest = _from_dict(values)
        _check_files(Path(folder), manifest)
    except (ConfigError, OverflowError) as error:  # the latter from an integer of 400 digits
        raise CheckpointError(f"{path}: {error}; export the model again") from error
    return manifest


def _read_json(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"it has more than {_MAX_BYTES} bytes")
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:  # of bytes that are no UTF-8 too
        raise ConfigError(f"it is no JSON ({error})") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise ConfigError(f'it does not say "format": "{FORMAT}", so \'clip export\' has not written it')
    version = values.get("version")
    if isinstance(version, bool) or version != VERSION:
        raise ConfigError(f"its version is {version!r}, and this everyclip reads version {VERSION}; update everyclip")
    return values


def _from_dict(values: Mapping[str, Any]) -> Manifest:
    fields = {field.name: field for field in dataclasses.fields(Manifest)}
    given = {key: value for key, value in values.items() if key not in ("format", "version")}
    if unknown := sorted(set(given) - set(fields)):
        raise ConfigError(f"unknown keys {unknown}; known are {sorted(fields)}")
    required = {name for name, field in fields.items() if field.default is dataclasses.MISSING}
    if missing := sorted(required - set(given)):
        raise ConfigError(f"the keys {missing} are missing")
    for name, value in given.items():
        what, is_right = _CHECKS[name]
        if not is_right(value):
            raise ConfigError(f"{name} is {_short(value)}; it must be {what}")
    config, preprocess = CLIPConfig.from_dict(given["config"]), Preprocess.from_dict(given["preprocess"])
    if preprocess.size != config.image_resolution:
        raise ConfigError(
            f"pictures are made {preprocess.size} pixels wide, and the model takes {config.image_resolution}"
        )
    if config.logit_bias != (given["logit_bias"] is not None):
        raise ConfigError(f"logit_bias is {given['logit_bias']!r}, and the configuration says {config.logit_bias}")
    return Manifest(**{**given, "config": config, "preprocess": preprocess})


def _check_files(folder: Path, manifest: Manifest) -> None:
    for name in ENGINES[manifest.engine]:
        if name not in manifest.files:
            raise ConfigError(f"{name} is not among its files, and {manifest.engine} needs it")
    for name, size in manifest.files.items():
        if name != Path(name).name or name in ("", ".", ".."):
            raise ConfigError(f"{name!r} is not the name of a file beside it")
        path = folder / name
        found = path.stat().st_size if path.is_file() else None
        if found != size:
            there = "is missing" if found is None else f"has {found} bytes"
            raise ConfigError(
                f"{path} {there}, {size} bytes are expected: the copy is not complete or not this model's"
            )


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -_FLOAT32_MAX < value < _FLOAT32_MAX


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_files(value: object) -> bool:
    return isinstance(value, dict) and all(map(_is_size, value.values())) and not any("\0" in name for name in value)


def _is_object_or_null(value: object) -> bool:
    return value is None or isinstance(value, dict)


def _one_of(names: tuple[str, ...]) -> tuple[str, Callable[[object], bool]]:
    return f"one of {choices('', names)}", lambda value: isinstance(value, str) and value in names


_Check = tuple[str, Callable[[object], bool]]
_TEXT: _Check = ("a text", lambda value: isinstance(value, str))
_OBJECT: _Check = ("an object", lambda value: isinstance(value, dict))
_CHECKS: dict[str, _Check] = {
    "engine": _one_of(tuple(ENGINES)),
    "precision": _one_of(PRECISIONS),
    "config": _OBJECT,
    "preprocess": _OBJECT,
    "logit_scale": ("a finite number", _is_number),
    "logit_bias": ("a finite number or null", lambda value: value is None or _is_number(value)),
    "files": ("an object of sizes in bytes by name", _is_files),
    "source": _TEXT,
    "fingerprint": _TEXT,
    "licence": _TEXT,
    "tokenizer": ("an object or null", _is_object_or_null),
    "certificate": ("an object or null", _is_object_or_null),
}
