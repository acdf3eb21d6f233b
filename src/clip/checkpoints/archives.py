"""Reads what ``torch.save`` and TorchScript write, without torch.load, torch.jit or Python's unpickler.

Both are zip files that hold a pickled structure (``data.pkl``) and one uncompressed file per storage. The pickle is
interpreted by a small machine that knows the opcodes torch writes and the few names in ``_NAMES``: no name in a file
leads to a call of anything else. Tensors are views of the memory-mapped file and never larger than it.
"""

from __future__ import annotations

import dataclasses
import math
import pickletools
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from clip.errors import CheckpointError

__all__ = ["Archive", "StoredTensor", "View", "read_archive"]

MAX_PICKLE_BYTES = 8 << 20
"""Largest structure that is read, some seconds of work; that of an OpenAI archive has about half a megabyte."""
MAX_OBJECTS = 1_000_000
"""Most attributes that are visited in a TorchScript module; those of an OpenAI archive have about 10,000."""


@dataclasses.dataclass(frozen=True, slots=True)
class Archive:
    """What a zip written by torch holds."""

    content: Any
    """What was saved: dicts, lists, numbers, strings and tensors; of a TorchScript module its tensors by name."""
    is_torchscript: bool


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where in the file a tensor lies; all of it is there."""

    dtype: str
    """By torch's name, without ``torch.``."""
    start: int
    """Byte of the file at which the first number lies."""
    size: tuple[int, ...]
    stride: tuple[int, ...]
    """In numbers."""

    @property
    def itemsize(self) -> int:
        return _ITEM_SIZES[self.dtype]

    @property
    def count(self) -> int:
        """Numbers from the first to the last, with those between them that are not the tensor's."""
        if 0 in self.size:
            return 0
        return 1 + sum((n - 1) * step for n, step in zip(self.size, self.stride, strict=True))


View = Callable[[StoredTensor], Any]
"""Makes a tensor, of torch or of NumPy, over the mapped file; whatever it gives has ``ndim``."""


def read_archive(path: Path, view: View | None = None) -> Archive:
    """The content of a zip written by ``torch.save`` (torch 1.6 or later) or by TorchScript.

    view: what makes its tensors; by default they are torch's, in one private memory map of the file.
    Raises CheckpointError, with the reason, for anything else.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return _read(path, archive, view or _torch_view(path))
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (zipfile.BadZipFile, EOFError, struct.error, NotImplementedError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{path} is not a readable zip file: {error}; it may be cut: fetch it again") from error


def _read(path: Path, archive: zipfile.ZipFile, view: View) -> Archive:
    entries = {info.filename: info for info in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in entries if name.split("/")[-1] == "data.pkl"]
    if len(roots) != 1:
        raise CheckpointError(
            f"a zip file, but not one of torch's: it holds {len(roots)} files data.pkl instead of one"
        )
    root = roots[0]
    if f"{root}byteorder" in entries and _read_entry(archive, entries[f"{root}byteorder"], 16) != b"little":
        raise CheckpointError("written on a big-endian machine; save it again on a little-endian one")
    program = _read_entry(archive, entries[f"{root}data.pkl"], MAX_PICKLE_BYTES)
    prefix = f"{root}data/"
    files = {name.removeprefix(prefix): info for name, info in entries.items() if name.startswith(prefix)}
    content = _Machine(_Storages(path, files, view)).run(program)
    if f"{root}constants.pkl" in entries:
        return Archive(dict(_tensors(content)), is_torchscript=True)
    return Archive(content, is_torchscript=False)


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    if info.file_size > limit:
        raise CheckpointError(f"{info.filename} has {info.file_size:,} bytes; the limit is {limit:,}")
    if info.compress_type != zipfile.ZIP_STORED:
        raise CheckpointError(f"{info.filename} is compressed; torch writes it as it is: save the model again")
    with archive.open(info) as file:
        return file.read(limit)


def _torch_view(path: Path) -> View:
    import torch

    storage: Any = None  # mapped with the first tensor

    def view(stored: StoredTensor) -> torch.Tensor:
        nonlocal storage
        if storage is None:
            storage = torch.UntypedStorage.from_file(str(path), shared=False, nbytes=path.stat().st_size)
        dtype = getattr(torch, stored.dtype)
        if stored.start % stored.itemsize:  # torch aligns storages; other tools may not
            data = torch.empty(0, dtype=torch.uint8)
            data.set_(storage, stored.start, (stored.count * stored.itemsize,), (1,))
            return data.clone().view(dtype).as_strided(stored.size, stored.stride)
        return torch.empty(0, dtype=dtype).set_(storage, stored.start // stored.itemsize, stored.size, stored.stride)

    return view


class _Storages:
    """The storages of an archive."""

    def __init__(self, path: Path, files: dict[str, zipfile.ZipInfo], view: View) -> None:
        self._path = path
        self._files = files
        self._view = view
        self._size = path.stat().st_size
        # Tied weights may share a storage, but no honest file holds many times its own size in tensors.
        self._allowance = 4 * self._size + 4096

    def storage(self, key: str, dtype: str, count: int) -> _Storage:
        if key not in self._files:
            raise CheckpointError(f"storage {key!r} is missing from the archive")
        info = self._files[key]
        if info.compress_type != zipfile.ZIP_STORED:
            raise CheckpointError(f"storage {key!r} is compressed; torch writes it as it is: save the model again")
        size_bytes = count * _ITEM_SIZES[dtype]
        if count < 0 or size_bytes > info.file_size:
            raise CheckpointError(f"storage {key!r} should have {size_bytes:,} bytes and has {info.file_size:,}")
        with self._path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
        signature, name_size, extra_size = struct.unpack("<4s22xHH", header)
        start = info.header_offset + 30 + name_size + extra_size
        if signature != b"PK\x03\x04" or start + size_bytes > self._size:
            raise CheckpointError(f"storage {key!r} reaches beyond the end of the file, which may be cut")
        return _Storage(self, start, count, dtype)

    def view(self, storage: _Storage, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> Any:
        if len(size) != len(stride) or min((offset, *size, *stride), default=0) < 0 or len(size) > 8:
            raise CheckpointError(f"a tensor has size {size} and stride {stride}")
        start = storage.start + offset * _ITEM_SIZES[storage.dtype]
        stored = StoredTensor(storage.dtype, start, size, stride)
        self._allowance -= math.prod(size) * stored.itemsize
        if (stored.count and offset + stored.count > storage.count) or self._allowance < 0:
            raise CheckpointError(f"a tensor of size {size} needs more bytes than the file has")
        return self._view(stored)


@dataclasses.dataclass(frozen=True, slots=True)
class _Storage:
    owner: _Storages
    start: int
    count: int
    dtype: str


class _Script:
    """An object of a TorchScript class: its attributes, and nothing that could run."""

    def __init__(self) -> None:
        self.attributes: dict[str, Any] = {}


def _rebuild_tensor(
    storage: Any,
    offset: Any,
    size: Any,
    stride: Any,
    requires_grad: Any = False,
    hooks: Any = None,
    metadata: Any = None,
) -> Any:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or not all(type(number) is int for number in numbers):
        raise CheckpointError("a tensor is not described as torch does it")
    return storage.owner.view(storage, offset, tuple(size), tuple(stride))


def _first(value: Any, *_: Any) -> Any:
    return value


def _nothing(*_: Any) -> None:
    return None


@dataclasses.dataclass(frozen=True, slots=True)
class _DType:
    name: str


_STORAGES = {
    "FloatStorage": _DType("float32"),
    "HalfStorage": _DType("float16"),
    "BFloat16Storage": _DType("bfloat16"),
    "DoubleStorage": _DType("float64"),
    "LongStorage": _DType("int64"),
    "IntStorage": _DType("int32"),
    "ShortStorage": _DType("int16"),
    "CharStorage": _DType("int8"),
    "ByteStorage": _DType("uint8"),
    "BoolStorage": _DType("bool"),
}
_ITEM_SIZES = {
    **{"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2},
    **{"int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1},
}

# What a pickled name may stand for: functions of this file, which only arrange what the file holds.
_NAMES: dict[str, Callable[..., Any]] = {
    "collections OrderedDict": lambda items=(): dict(items),
    "torch._utils _rebuild_tensor": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _first,
    "torch.jit._pickle build_boollist": _first,
    "torch.jit._pickle build_doublelist": _first,
    "torch.jit._pickle build_intlist": _first,
    "torch.jit._pickle build_tensorlist": _first,
    "torch.jit._pickle restore_type_tag": _first,
    "torch Size": _first,
    "torch device": _first,
    # Metrics that training scripts store beside the weights; what they are worth is of no use here.
    "numpy dtype": _nothing,
    "numpy.core.multiarray scalar": _nothing,
    "numpy._core.multiarray scalar": _nothing,
    "_codecs encode": _nothing,
}


def _name(module: str, name: str) -> Any:
    if module == "torch" and name in _STORAGES:
        return _STORAGES[name]
    if module == "torch" and re.fullmatch(r"(u?int|b?float|complex)\d+\w*|bool", name):  # a dtype beside the weights
        return _DType(name)
    if module.split(".")[0] == "__torch__":
        return _Script
    if (function := _NAMES.get(f"{module} {name}")) is None:
        raise CheckpointError(
            f"the file refers to '{module}.{name}', which is neither a tensor nor a plain value and is not executed; "
            "save the state dict alone: torch.save(model.state_dict(), path)"
        )
    return function


_T = TypeVar("_T")
_MARK = object()
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
    "EMPTY_SET": set,
    "MARK": lambda: _MARK,
}
_LITERALS = {
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"),
    *("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINSTRING", "SHORT_BINSTRING"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class _Machine:
    """Interprets a pickle over an allow-list of opcodes and names."""

    def __init__(self, storages: _Storages) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        """What the program leaves on its stack. Raises CheckpointError if it is not one that torch writes."""
        try:
            for opcode, argument, position in pickletools.genops(program):
                if opcode.name == "STOP":
                    return self._stack.pop()
                self._step(opcode.name, argument, position)
        except CheckpointError:
            raise
        # Whatever a malformed program does to the stack, the memo or the arguments of a known function.
        except (LookupError, TypeError, ValueError, AttributeError, OverflowError, RuntimeError) as error:
            raise CheckpointError(f"data.pkl is malformed: {type(error).__name__}: {error}") from error
        raise CheckpointError("data.pkl is malformed: it has no end")

    def _step(self, name: str, argument: Any, position: int | None) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name]())
        elif name in ("BINPUT", "LONG_BINPUT"):
            self._memo[argument] = stack[-1]
        elif name == "MEMOIZE":
            self._memo[len(self._memo)] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(self._memo[argument])
        elif name in _TUPLES:
            stack[-_TUPLES[name] :] = [tuple(stack[-_TUPLES[name] :])]
        elif name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name == "APPEND":
            item = stack.pop()
            _expect(stack[-1], list).append(item)
        elif name == "APPENDS":
            items = self._pop_to_mark()
            _expect(stack[-1], list).extend(items)
        elif name == "ADDITEMS":
            items = self._pop_to_mark()
            _expect(stack[-1], set).update(items)
        elif name == "SETITEM":
            value, key = stack.pop(), stack.pop()
            _expect(stack[-1], dict)[key] = value
        elif name == "SETITEMS":
            items = self._pop_to_mark()
            _expect(stack[-1], dict).update(zip(items[::2], items[1::2], strict=True))
        elif name == "GLOBAL":
            stack.append(_name(*argument.split(" ", 1)))
        elif name == "STACK_GLOBAL":
            attribute, module = stack.pop(), stack.pop()
            stack.append(_name(_expect(module, str), _expect(attribute, str)))
        elif name == "BINPERSID":
            kind, dtype, key, _, count = stack.pop()
            if kind != "storage" or not isinstance(dtype, _DType) or type(count) is not int:
                raise CheckpointError("a storage is not described as torch does it")
            stack.append(self._storages.storage(_expect(key, str), dtype.name, count))
        elif name in ("REDUCE", "NEWOBJ"):
            arguments, function = _expect(stack.pop(), tuple), stack.pop()
            if function is not _Script and function not in _NAMES.values():
                raise CheckpointError(f"a {type(function).__name__} is called")
            stack.append(function(*arguments))
        elif name == "BUILD":
            state = stack.pop()
            if isinstance(stack[-1], _Script):
                stack[-1].attributes.update(_expect(state, dict))
            elif isinstance(stack[-1], dict) or hasattr(stack[-1], "ndim"):
                pass  # attributes of an OrderedDict (_metadata) or a parameter, which nothing here needs
            elif stack[-1] is not None:
                raise CheckpointError(f"a {type(stack[-1]).__name__} is given a state")
        elif name not in ("PROTO", "FRAME"):
            raise CheckpointError(f"data.pkl has opcode {name} at byte {position}, which torch does not write")

    def _pop_to_mark(self) -> list[Any]:
        at = len(self._stack) - 1
        while self._stack[at] is not _MARK:  # an IndexError where there is none
            at -= 1
            if at < 0:
                raise CheckpointError("data.pkl is malformed: a mark is missing")
        items = self._stack[at + 1 :]
        del self._stack[at:]
        return items


def _expect(value: Any, kind: type[_T]) -> _T:
    if not isinstance(value, kind):
        raise CheckpointError(f"data.pkl is malformed: a {type(value).__name__} where a {kind.__name__} should be")
    return value


def _tensors(module: Any) -> Iterator[tuple[str, Any]]:
    """The tensors of a TorchScript module with their dotted names."""
    if not isinstance(module, _Script):
        raise CheckpointError(f"a TorchScript file that holds a {type(module).__name__}, not a module")
    waiting: list[tuple[str, Any]] = [("", module)]
    for _ in range(MAX_OBJECTS):
        if not waiting:
            return
        prefix, value = waiting.pop()
        if hasattr(value, "ndim"):
            yield prefix[:-1], value
        elif isinstance(value, _Script):
            waiting += [(f"{prefix}{name}.", child) for name, child in value.attributes.items()]
        if len(prefix) > 1000:
            break  # a module that contains itself
    raise CheckpointError(f"a TorchScript module of more than {MAX_OBJECTS:,} parts, or one that contains itself")
