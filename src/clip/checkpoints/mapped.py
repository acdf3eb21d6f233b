"""Weights where they lie: the tensors of a file as NumPy arrays over the mapped file, for which torch is not imported.

Nothing is read before it is asked for, and bfloat16, which NumPy lacks, is seen as its 16 bits. What is not read here,
the layout of transformers, is ``files.read_checkpoint``'s, which also says what is wrong with a damaged file.
"""

from __future__ import annotations

import dataclasses
import json
import math
import mmap
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clip.checkpoints import formats
from clip.checkpoints.description import (
    OWN,
    SCALE,
    Description,
    Found,
    describe,
    describe_own,
    found_in_archive,
    read_folder,
)
from clip.config import SIZES_IN_ARCHIVES, Activation, CLIPConfig
from clip.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from clip.checkpoints.archives import StoredTensor

__all__ = ["MappedCheckpoint", "MappedTensor", "fingerprint_of_parts", "map_checkpoint", "map_safetensors"]

_DTYPES = {
    **{"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"},
    **{"I8": "int8", "I32": "int32", "I64": "int64"},
}
"""Torch's names by those of safetensors."""
_STORED_AS = {
    **{"float16": "<f2", "bfloat16": "<u2", "float32": "<f4", "float64": "<f8"},
    **{"int8": "i1", "uint8": "u1", "bool": "?", "int16": "<i2", "int32": "<i4", "int64": "<i8"},
}
"""NumPy's names, of arrays that hold the bytes, by torch's."""

_MAX_HEADER_BYTES = 100 << 20
"""As in safetensors itself."""


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class MappedTensor:
    """A tensor of a mapped file."""

    dtype: str
    """By torch's name, without ``torch.``."""
    stored: NDArray[Any]
    """What is in the file; of bfloat16 the bits."""
    scale: NDArray[np.float32] | None = None
    """(rows, 1), for int8 rows: the tensor is their product."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.stored.shape

    @property
    def ndim(self) -> int:
        return self.stored.ndim

    def numbers(self, rows: NDArray[np.integer[Any]] | slice = slice(None)) -> NDArray[np.float32]:
        """The tensor, or these rows of it, as float32. A view of the file where it holds just that."""
        stored = self.stored[rows] if self.ndim else self.stored
        if self.dtype == "bfloat16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        numbers = np.require(stored, np.float32, "A")
        return numbers if self.scale is None else numbers * self.scale[rows]

    def contents(self) -> NDArray[Any]:
        """All of the tensor in its own dtype, contiguous."""
        return np.ascontiguousarray(self.stored if self.scale is None else self.numbers())


@dataclasses.dataclass(frozen=True, slots=True, eq=False)
class MappedCheckpoint:
    """What ``files.Checkpoint`` is, with weights that stay in the file."""

    description: Description
    tensors: dict[str, MappedTensor]
    """Under OpenAI's keys."""

    @property
    def config(self) -> CLIPConfig:
        return self.description.config

    def fingerprint(self) -> str:
        """As ``files.fingerprint`` gives it. Reads all weights."""
        parts = ((key, t.dtype, t.shape, t.contents()) for key, t in sorted(self.tensors.items()))
        return fingerprint_of_parts(self.config, parts)


def fingerprint_of_parts(config: CLIPConfig, parts: Iterable[tuple[str, str, tuple[int, ...], NDArray[Any]]]) -> str:
    """SHA-256 over the sizes of a model and, in order of their names, the name, dtype, shape and bytes of its tensors.

    parts: the dtype by torch's name without ``torch.``, the bytes as an array of any type that is contiguous.
    """
    import hashlib  # the libraries of OpenSSL, for a query that asks for no fingerprint

    digest = hashlib.sha256(json.dumps(config.to_dict(), sort_keys=True).encode())
    for key, dtype, shape, contents in parts:
        digest.update(f"{key} torch.{dtype} {shape}\n".encode())
        digest.update(contents.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def map_checkpoint(path: str | os.PathLike[str], *, activation: Activation | None = None) -> MappedCheckpoint | None:
    """The checkpoint in a file or in OpenCLIP's folder, or None where it is transformers', or not sound.

    activation: for weights that do not tell, as in ``read_checkpoint``.
    """
    path = Path(path)
    try:
        found = read_folder(path, lambda file: _found_in(file).tensors) if path.is_dir() else _found_in(path)
        return _understood(found, activation)
    except (OSError, CheckpointError, ConfigError):
        return None


def _found_in(path: Path) -> Found[MappedTensor]:
    with path.open("rb") as file:
        start = file.read(4)
    if start == b"PK\x03\x04":
        from clip.checkpoints.archives import read_archive  # zipfile and pickletools, which other files do without

        return found_in_archive(path, read_archive(path, _view(path)))
    tensors, header = map_safetensors(path)
    kind = OWN if header.get("format") == OWN else "safetensors"
    return Found(tensors=tensors, header=header, kind=kind, name=path.name)


def _understood(found: Found[MappedTensor], activation: Activation | None) -> MappedCheckpoint | None:
    if found.kind == OWN:
        return MappedCheckpoint(describe_own(found.header, found.tensors), _with_scales(found.tensors))
    stripped = formats.strip_wrappers(found.tensors)
    layout = formats.detect(stripped)
    if layout == "transformers":
        return None
    state_dict = formats.to_openai(stripped, layout)
    description = describe(found, state_dict, layout, activation)
    return MappedCheckpoint(description, {k: v for k, v in state_dict.items() if k not in SIZES_IN_ARCHIVES})


def _with_scales(tensors: Mapping[str, MappedTensor]) -> dict[str, MappedTensor]:
    whole = {}
    for key, tensor in tensors.items():
        if key.endswith(SCALE) and key.removesuffix(SCALE) in tensors:
            continue
        if scale := tensors.get(key + SCALE):
            if tensor.dtype != "int8" or tensor.ndim != 2 or scale.shape != (len(tensor.stored), 1):
                raise CheckpointError(f"{key} is not int8 rows with a factor each")
            tensor = MappedTensor("float32", tensor.stored, scale.numbers())
        whole[key] = tensor
    return whole


def map_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, MappedTensor], dict[str, str]]:
    """The tensors of a safetensors file by name, and the texts of its header. Raises CheckpointError, OSError."""
    with open(path, "rb") as file:  # noqa: PTH123  # a name may be anything
        length = int.from_bytes(file.read(8), "little")
        size = os.fstat(file.fileno()).st_size
        if not 2 <= length <= min(size - 8, _MAX_HEADER_BYTES):
            raise CheckpointError(f"{os.fspath(path)} is not a safetensors file")
        header = file.read(length)
        data = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)
    try:
        entries = json.loads(header)
        notes = entries.pop("__metadata__", {})
        return {key: _tensor(data, 8 + length, **entry) for key, entry in entries.items()}, dict(notes)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError, OverflowError) as error:
        raise CheckpointError(f"{os.fspath(path)} is not a valid safetensors file: {error}") from error


def _tensor(data: mmap.mmap, start: int, *, dtype: str, shape: list[int], data_offsets: list[int]) -> MappedTensor:
    stored_as = _STORED_AS[_DTYPES[dtype]]
    first, last = data_offsets
    count = math.prod(shape)
    if first < 0 or any(side < 0 for side in shape) or last - first != count * np.dtype(stored_as).itemsize:
        raise ValueError(f"{dtype} {shape} does not fit in bytes {first} to {last}")
    return MappedTensor(_DTYPES[dtype], np.frombuffer(data, stored_as, count, start + first).reshape(shape))


def _view(path: Path) -> Callable[[StoredTensor], MappedTensor]:
    with path.open("rb") as file:
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def view(tensor: StoredTensor) -> MappedTensor:
        strides = [step * tensor.itemsize for step in tensor.stride]
        start = tensor.start if tensor.count else 0  # one without numbers may begin at the end of the file
        return MappedTensor(tensor.dtype, np.ndarray(tensor.size, _STORED_AS[tensor.dtype], data, start, strides))

    return view
