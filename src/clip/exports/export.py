"""A checkpoint → a folder with both towers as graphs, and ``clip.json`` with all that a reader needs."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from clip.checkpoints.files import Checkpoint, fingerprint, moved_into_place, read_checkpoint
from clip.clip import find
from clip.errors import CheckpointError, ConfigError, ConversionError, choices
from clip.exports.certificate import TOLERANCE, Certificate, Inputs, certify, inputs_for
from clip.exports.graphs import ImageTower, TextTower, imported, openvino_graph, write_onnx
from clip.exports.quantization import image_rows, quantized, text_rows
from clip.images import ImageSource
from clip.inference.exported import ExportedCLIP
from clip.inference.manifest import FORMAT, MANIFEST, VERSION
from clip.model import CLIP, CLIPConfig
from clip.simple_tokenizer import END, START, default_tokenizer

if TYPE_CHECKING:
    from clip.model import Activation

__all__ = ["LIBRARIES", "MIN_COSINE", "Engine", "export"]

Engine = Literal["openvino", "onnx"]

LIBRARIES: dict[Engine, tuple[str, ...]] = {
    "openvino": ("openvino",),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
}
"""What an export needs beside torch: to write, and to run what was written."""

MIN_COSINE = 0.999
"""Of an int8 export. Below, rankings begin to change visibly."""


def export(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    to: Engine = "openvino",
    *,
    int8: bool = False,
    pictures: Sequence[ImageSource] | None = None,
    min_cosine: float = MIN_COSINE,
    activation: Activation | None = None,
    download_root: str | os.PathLike[str] | None = None,
) -> Certificate:
    """Writes a model for another engine as a folder that does not exist yet, and gives what the engine changes.

    source: as for ``clip.load``. to: "openvino", or "onnx", which ONNX Runtime runs.
    int8: whether matrix products are quantised to 8-bit integers; of OpenVINO only.
    pictures: what ranges are taken from and both forms are compared with; by default the package's samples.
    min_cosine: of any embedding to that of the exact model; an int8 export below it is not written.
    The folder appears whole or not at all. Raises MissingDependencyError without the extra ``export``, ConversionError
    for an export that is not true to the model.
    """
    destination = Path(destination)
    if to not in get_args(Engine):
        raise ConversionError(f"engine {to!r} is not known; known are {choices(to, get_args(Engine))}")
    if int8 and to != "openvino":
        raise ConversionError(f"int8 is for OpenVINO, not for {to}; export --to openvino, or without --int8")
    if not 0 <= min_cosine <= 1:
        raise ConfigError(f"min_cosine is {min_cosine}; it must be from 0 to 1")
    if destination.exists():
        raise CheckpointError(f"{destination} exists; remove it or choose another name")
    for name in LIBRARIES[to] + (("nncf",) if int8 else ()):
        imported(name)  # before minutes of work, not after
    found = find(source, download_root)
    checkpoint = read_checkpoint(found, activation=activation)
    model = checkpoint.build().float().requires_grad_(False)
    inputs = inputs_for(model.config, checkpoint.preprocess, pictures)
    manifest = _manifest(checkpoint, str(source), to, "int8" if int8 else "fp32")
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with moved_into_place(destination) as folder:
            folder.mkdir()
            _write_towers(model, folder, to, inputs if int8 else None)
            manifest["files"] = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
            _write_manifest(folder, manifest)
            certificate = certify(
                model,
                ExportedCLIP.open(folder, precision=manifest["precision"]),
                inputs,
                reference_bytes=_size_bytes(found),
                exported_bytes=sum(manifest["files"].values()),
            )
            _refuse_unfaithful(certificate, int8, min_cosine)
            _write_manifest(folder, {**manifest, "certificate": certificate.to_dict()})
    except OSError as error:
        raise CheckpointError(f"cannot write {destination}: {error.strerror or error}") from error
    return certificate


def _write_towers(model: CLIP, folder: Path, to: Engine, calibration: Inputs | None) -> None:
    """calibration: what int8 takes its ranges from; None leaves fp32."""
    for tower in (ImageTower(model), TextTower(model)):
        if to == "onnx":
            write_onnx(tower, folder / f"{tower.name}.onnx")
            continue
        graph = openvino_graph(tower)
        if calibration is not None:
            rows = image_rows(calibration.images) if tower.name == "image" else text_rows(calibration.text)
            graph = quantized(graph, rows)
        imported("openvino").save_model(graph, folder / f"{tower.name}.xml", compress_to_fp16=False)
        del graph
        gc.collect()  # the record of a tower refers to itself


def _refuse_unfaithful(certificate: Certificate, int8: bool, min_cosine: float) -> None:
    """Raises ConversionError for an export that no longer gives the model's answers."""
    if not int8:
        if not certificate.relative_difference <= TOLERANCE:
            raise ConversionError(
                f"the export differs from the model by {certificate.relative_difference:.1e} of the largest feature, "
                f"where rounding allows {TOLERANCE:.0e}; this is a fault of {certificate.engine} or of everyclip. "
                "Please report it; nothing was written"
            )
        return
    fidelity = certificate.fidelity
    cosine, what = min((fidelity.image_cosine, "picture"), (fidelity.text_cosine, "text"))
    if not cosine >= min_cosine:
        raise ConversionError(
            f"in int8 the embedding of a {what} has cosine {cosine:.6f} to the model's own; at least {min_cosine} was "
            "asked for. Calibrate with pictures like yours (--calibration), accept less (--min-cosine), or export "
            "without --int8; nothing was written"
        )


def _size_bytes(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    text = json.dumps(manifest, ensure_ascii=False, indent=1)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def _manifest(checkpoint: Checkpoint, source: str, to: Engine, precision: str) -> dict[str, Any]:
    scale, bias = (checkpoint.state_dict.get(name) for name in ("logit_scale", "logit_bias"))
    return {
        "format": FORMAT,
        "version": VERSION,
        "engine": {"openvino": "openvino", "onnx": "onnxruntime"}[to],
        "precision": precision,
        "source": source,
        "fingerprint": fingerprint(checkpoint.config, checkpoint.state_dict),
        "licence": checkpoint.licence,
        "config": checkpoint.config.to_dict(),
        "preprocess": checkpoint.preprocess.to_dict(),
        "logit_scale": None if scale is None else scale.item(),
        "logit_bias": None if bias is None else bias.item(),
        "tokenizer": _tokenizer(checkpoint.config),
    }


def _tokenizer(config: CLIPConfig) -> dict[str, Any] | None:
    """All that makes ids of a text, for whoever reads the folder without this package."""
    tokenizer = default_tokenizer()
    if config.vocab_size != len(tokenizer.encoder):
        return None  # a model with a vocabulary of its own, which we do not have
    return {
        "kind": "clip-bpe",
        "lower_case": True,
        "end_of_word": "</w>",
        "start": {"token": START, "id": tokenizer.encoder[START]},
        "end": {"token": END, "id": tokenizer.encoder[END]},
        "padding_id": 0,
        "merges": "\n".join(" ".join(pair) for pair in tokenizer.bpe_ranks),
    }
