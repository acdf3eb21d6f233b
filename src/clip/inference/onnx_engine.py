"""ONNX Runtime as the engine of an exported model, on the CPU."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from clip.errors import CheckpointError, ClipError, ConfigError, MissingDependencyError
from clip.inference.manifest import Manifest, Tower, port

if TYPE_CHECKING:
    import onnxruntime

__all__ = ["open_graphs"]


def open_graphs(folder: Path, manifest: Manifest, precision: str) -> tuple[_Graph, _Graph, str]:
    """The image tower, the text tower, and the precision that they run in: that of the folder."""
    if precision == "bf16":
        raise ConfigError("precision bf16: ONNX Runtime has none on CPUs; use auto or fp32, or export for openvino")
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # read when it is imported
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependencyError(
            "this model was exported for onnxruntime, which is not installed; pip install 'everyclip[onnx]'"
        ) from error
    onnxruntime.disable_telemetry_events()  # in its builds for Windows
    image, text = (_Graph(onnxruntime, folder / f"{tower.name}.onnx", tower) for tower in manifest.towers)
    return image, text, manifest.precision


class _Graph:
    """One tower, read when it is first called with a batch. Several threads may, one after the other."""

    def __init__(self, runtime: Any, path: Path, tower: Tower) -> None:
        self._runtime, self._path, self._tower = runtime, path, tower
        self._session: onnxruntime.InferenceSession | None = None
        self._lock = threading.Lock()

    def __call__(self, batch: NDArray[Any]) -> NDArray[np.float32]:
        with self._lock, self._translated():
            if self._session is None:
                self._session = self._opened()
            (features,) = self._session.run(None, {self._session.get_inputs()[0].name: batch})
        return cast(NDArray[np.float32], features)

    def _opened(self) -> onnxruntime.InferenceSession:
        options = self._runtime.SessionOptions()
        options.log_severity_level = 3  # errors; its warnings are about its own optimiser
        session = self._runtime.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])
        self._tower.check(self._path, [*map(_port, session.get_inputs())], [*map(_port, session.get_outputs())])
        return session

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except ClipError:
            raise
        except Exception as error:  # its exceptions, fourteen of them, have no base of their own
            raise CheckpointError(f"{self._path}: ONNX Runtime cannot run it: {error}") from error


def _port(node: Any) -> str:
    dtype = {"tensor(float)": "float32", "tensor(int32)": "int32"}.get(node.type, node.type)
    return port(dtype, (size if isinstance(size, int) else None for size in node.shape))
