"""OpenVINO as the engine of an exported model.

A graph is compiled when it is first used, on all cores, with its weights mapped from the folder. What compiling made of
it, without the weights, is kept in the user's cache (some 0.6 MB): the next process starts in a third of the time.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import json
import logging
import shutil
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clip.checkpoints.download import default_directory
from clip.errors import CheckpointError, ClipError, ConfigError, MissingDependencyError
from clip.inference.manifest import MANIFEST, Manifest, Tower, port

if TYPE_CHECKING:
    import openvino

__all__ = ["open_graphs"]

_log = logging.getLogger(__name__)

_DEVICE = "CPU"
_CONVERTER = "openvino.tools.ovc"
_MODEL = "model.json"
"""In each place of the cache: whose compiled graphs lie there, as the folder and the processor."""
_ESSENTIAL = ("INFERENCE_PRECISION_HINT", "NUM_STREAMS")
"""Of the properties of a compiled graph; without the others it is slower to start."""
_HINTS = {"fp32": "f32", "bf16": "bf16"}


def open_graphs(folder: Path, manifest: Manifest, precision: str) -> tuple[_Graph, _Graph, str]:
    """The image tower, the text tower, and the precision that they run in."""
    core = _core()
    has_bf16 = "BF16" in core.get_property(_DEVICE, "OPTIMIZATION_CAPABILITIES")
    if precision == "bf16" and not has_bf16:
        raise ConfigError("precision bf16: this processor has no units for it; use auto or fp32")
    is_int8 = manifest.precision == "int8"
    # What an int8 graph has not in int8 is a small part of the time, and in bf16 would make half of its error.
    rest = "fp32" if precision == "fp32" or is_int8 or not has_bf16 else "bf16"
    if precision == "auto" and not is_int8 and rest == "fp32":
        _log.info("precision fp32: this processor has no units for bf16, without which it is the slower one")
    # Two streams with half a batch each were 3 % faster at batch 32 and up in bf16, and slower in fp32; a batch of one
    # takes twice as long in them. Both forms in memory would be 200 MB more.
    properties = {"INFERENCE_PRECISION_HINT": _HINTS[rest], "NUM_STREAMS": "1"}
    # For each batch size and length it keeps what it prepared, 0.5 MB, up to 5000 times. With 64 of these, texts of all
    # lengths are as fast.
    properties |= {"CPU_RUNTIME_CACHE_CAPACITY": "64", **_cache(core, folder, manifest)}
    image, text = (_Graph(core, folder / f"{tower.name}.xml", tower, properties) for tower in manifest.towers)
    return image, text, "int8" if is_int8 else rest


def _imported() -> Any:
    """OpenVINO without its converter, which takes as long to import as all the rest and tells Google Analytics so.

    Whoever asks for ``openvino.convert_model`` later gets it. Raises MissingDependencyError.
    """
    if "openvino" in sys.modules and sys.modules["openvino"] is not None:
        return sys.modules["openvino"]
    missing: Any = None  # what the import system takes for a module that is not there
    is_hidden = sys.modules.setdefault(_CONVERTER, missing) is None
    try:
        openvino: Any = importlib.import_module("openvino")
    except ImportError as error:
        raise MissingDependencyError(
            "this model was exported for openvino, which is not installed; pip install 'everyclip[openvino]'"
        ) from error
    finally:
        if is_hidden:
            del sys.modules[_CONVERTER]
    if not hasattr(openvino, "convert_model"):
        openvino.__getattr__ = _from_converter
    return openvino


def _from_converter(name: str) -> Any:
    if name == "convert_model":
        return importlib.import_module(_CONVERTER).convert_model
    raise AttributeError(f"module 'openvino' has no attribute {name!r}")


@functools.cache
def _core() -> openvino.Core:
    return _imported().Core()


class _Graph:
    """One tower; call it with a batch. Several threads may, one after the other: a call has all cores."""

    def __init__(self, core: openvino.Core, path: Path, tower: Tower, properties: dict[str, str]) -> None:
        self._core, self._path, self._tower, self._properties = core, path, tower, properties
        self._request: openvino.InferRequest | None = None
        self._lock = threading.Lock()

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        with self._lock:
            try:
                if self._request is None:
                    self._request = self._compiled().create_infer_request()
                # A view of the engine's memory, which the next call overwrites: hence the copy.
                result = self._request.infer(batch, share_inputs=True, share_outputs=True)[0]
                return np.array(result.reshape(result.shape[-2:]), dtype=np.float32)
            except ClipError:
                raise
            except RuntimeError as error:
                raise CheckpointError(f"{self._path}: OpenVINO cannot run it: {_first_line(error)}") from error

    def _compiled(self) -> openvino.CompiledModel:
        try:
            compiled = self._core.compile_model(self._path, _DEVICE, self._properties)
        except RuntimeError as error:
            _log.info("%s is compiled without a cache: %s", self._path, _first_line(error))
            properties = {key: self._properties[key] for key in _ESSENTIAL}
            compiled = self._core.compile_model(self._path, _DEVICE, properties)
        self._tower.check(self._path, [*map(_port, compiled.inputs)], [*map(_port, compiled.outputs)])
        return compiled


def _port(node: Any) -> str:
    dtype = {"f32": "float32", "i32": "int32"}.get(node.element_type.get_type_name(), str(node.element_type))
    sizes = [None if size.is_dynamic else size.get_length() for size in node.partial_shape]
    # OpenVINO 2026.4 compiles an int8 text tower, (B, E) as it stands in the file, to give (1, B, E).
    return port(dtype, sizes[1:] if len(sizes) == 3 and sizes[0] == 1 else sizes)


def _first_line(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(error).__name__


def _cache(core: openvino.Core, folder: Path, manifest: Manifest) -> dict[str, str]:
    """Properties that make OpenVINO keep the compiled graphs, or none where there is no place for them.

    OpenVINO knows a graph by its path alone; here every state of a folder has a place of its own. With the first of a
    new state, those of earlier states and of folders that are gone are removed.
    """
    machine = [core.get_property(_DEVICE, name) for name in ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")]
    model = json.dumps([str(folder.resolve()), *machine])
    files = [(folder / name).stat() for name in sorted(manifest.files)]
    state = [(file.st_size, file.st_mtime_ns) for file in files]
    text = json.dumps([model, state, (folder / MANIFEST).read_text(encoding="utf-8"), _imported().get_version()])
    try:
        place = default_directory() / "compiled" / hashlib.sha256(text.encode()).hexdigest()[:24]
        if not (place / _MODEL).exists():
            _remove_outdated(place.parent, model)
            place.mkdir(parents=True, exist_ok=True)
            (place / _MODEL).write_text(model, encoding="utf-8")
    except (OSError, RuntimeError) as error:  # the latter where there is no home
        _log.info("compiled graphs are not kept: %s", error)
        return {}
    return {"CACHE_DIR": str(place), "CACHE_MODE": "OPTIMIZE_SIZE"}


def _remove_outdated(places: Path, model: str) -> None:
    for note in places.glob(f"*/{_MODEL}"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):  # another process removes them, too
            kept = note.read_text(encoding="utf-8")
            if kept == model or not Path(json.loads(kept)[0]).exists():
                shutil.rmtree(note.parent, ignore_errors=True)
