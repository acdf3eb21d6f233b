"""The one way to a model for every task: the fastest form of it on this machine."""

from __future__ import annotations

import dataclasses
import logging
import os
import warnings
from typing import TYPE_CHECKING, Any

from clip.checkpoints.mapped import map_checkpoint
from clip.clip import find, load
from clip.errors import ConfigError
from clip.inference.exported import ExportedCLIP, is_exported
from clip.inference.manifest import read_manifest

if TYPE_CHECKING:
    import torch

    from clip.config import Activation
    from clip.inference.optimized import InferenceCLIP
    from clip.inference.precision import Precision
    from clip.model import CLIP
    from clip.preprocess import Preprocess

__all__ = ["Model", "Runtime", "fingerprint_of", "load_for_inference", "runtime_of"]

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    Model = CLIP | InferenceCLIP | ExportedCLIP
else:
    Model = Any
"""Whatever has ``encode_image``, ``encode_text``, ``config``, ``context_length``, ``vocab_size`` and ``logit_scale``.
The first two take and give tensors; ExportedCLIP takes and gives NumPy arrays."""


@dataclasses.dataclass(frozen=True, slots=True)
class Runtime:
    """What computes the features of a model: printed and stored with every result."""

    engine: str
    """"torch", "openvino" or "onnxruntime"."""
    precision: str
    """Of the matrix products: "fp32", "bf16", "fp16" or "int8"."""
    device: str
    """"cpu", "cuda", …"""

    def __str__(self) -> str:
        return f"{self.precision} by {self.engine} on {self.device}"


def runtime_of(model: Model) -> Runtime:
    """What ran, in the terms of a report."""
    if isinstance(model, ExportedCLIP):
        return Runtime(model.engine, model.precision, "cpu")
    precision = (
        getattr(model, "precision", None)
        or {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}[str(model.dtype).removeprefix("torch.")]
    )
    return Runtime("torch", precision, model.logit_scale.device.type)


def load_for_inference(
    name: str | os.PathLike[str],
    *,
    device: str | torch.device | None = None,
    precision: Precision = "auto",
    activation: Activation | None = None,
    download_root: str | os.PathLike[str] | None = None,
) -> tuple[Model, Preprocess]:
    """A model to encode with, and its preprocessing: packed on a CPU, fp16 on CUDA, or the graphs of another engine.

    name: what ``clip.load`` takes, or a folder that ``clip export`` wrote, for which torch is not even imported.
    device: "cuda" where there is one, else "cpu".
    precision: of the matrix products. "auto" is bf16 on a CPU that has units for it, fp16 on CUDA, fp32 elsewhere; an
        exported model has its own.
    Raises what ``clip.load`` raises, and ConfigError for a precision that the device or the export has not.
    """
    if is_exported(name):
        if device is not None and str(device).partition(":")[0] != "cpu":
            raise ConfigError(f"device {device} is for models of torch; an exported one runs on the cpu")
        model = ExportedCLIP.open(name, precision=precision)
        return model, model.preprocess

    import torch

    from clip.checkpoints.files import read_checkpoint
    from clip.inference.optimized import optimize_for_inference
    from clip.inference.precision import resolved

    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type != "cpu":
        if precision == "int8":
            raise ConfigError(f"precision int8 is for CPUs; on {device.type} use auto, fp32 or bf16")
        exact = None if precision == "auto" else precision
        return load(name, device=device, precision=exact, activation=activation, download_root=download_root)
    precision = resolved(precision)
    # The weights stay in the mapped file, in its precision, until each is packed: there is no second model in memory.
    checkpoint = read_checkpoint(find(name, download_root), activation=activation)
    packed = optimize_for_inference(checkpoint.build(), precision)
    _log.info("%s: %s", name, runtime_of(packed))
    return packed, checkpoint.preprocess


def fingerprint_of(
    name: str | os.PathLike[str],
    *,
    activation: Activation | None = None,
    download_root: str | os.PathLike[str] | None = None,
) -> str:
    """What identifies the weights of a model, however they are run: the SHA-256 of them in the precision of their file.

    An exported model has that of the model it was made of. All weights are read, at about a gigabyte a second; torch is
    imported only for what ``map_checkpoint`` does not read.
    """
    if is_exported(name):
        return read_manifest(name).fingerprint

    path = find(name, download_root)
    with warnings.catch_warnings():  # an assumed activation was told when the model was loaded
        warnings.simplefilter("ignore")
        if mapped := map_checkpoint(path, activation=activation):
            return mapped.fingerprint()
        from clip.checkpoints.files import fingerprint, read_checkpoint

        checkpoint = read_checkpoint(path, activation=activation)
    return fingerprint(checkpoint.config, checkpoint.state_dict)
