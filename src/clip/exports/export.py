"""A checkpoint → a folder with both towers as graphs, and ``clip.json`` with all that a reader needs."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from clip.checkpoints.files import Checkpoint, fingerprint, read_checkpoint
from clip.clip import find
from clip.errors import CheckpointError, ConversionError, choices
from clip.exports.graphs import ImageTower, TextTower, onnx_graph, openvino_graph
from clip.inference.exported import MANIFEST
from clip.model import CLIP, CLIPConfig
from clip.simple_tokenizer import END, START, default_tokenizer

if TYPE_CHECKING:
    from clip.model import Activation

__all__ = ["Engine", "export"]

Engine = Literal["openvino", "onnx"]

FORMAT, VERSION = "everyclip-export", 1


def export(
    source: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    to: Engine = "openvino",
    *,
    activation: Activation | None = None,
    download_root: str | os.PathLike[str] | None = None,
) -> dict[str, Any]:
    """Writes a model for another engine as a folder that does not exist yet, and gives what its ``clip.json`` holds.

    source: as for ``clip.load``. to: "openvino" or "onnx", which ONNX Runtime runs.
    The folder appears whole or not at all. Raises MissingDependencyError without the extra ``export``.
    """
    destination = Path(destination)
    if to not in get_args(Engine):
        raise ConversionError(f"engine {to!r} is not known; known are {choices(to, get_args(Engine))}")
    if destination.exists():
        raise CheckpointError(f"{destination} exists; remove it or choose another name")
    checkpoint = read_checkpoint(find(source, download_root), activation=activation)
    model = checkpoint.build().float().requires_grad_(False)
    manifest = _manifest(checkpoint, model, str(source), to)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with _moved_into_place(destination) as folder:
            for tower in (ImageTower(model), TextTower(model)):
                _write_tower(tower, folder, to)
            manifest["files"] = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
            (folder / MANIFEST).write_text(json.dumps(manifest, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise CheckpointError(f"cannot write {destination}: {error.strerror or error}") from error
    return manifest


def _write_tower(tower: ImageTower | TextTower, folder: Path, to: Engine) -> None:
    if to == "openvino":
        import openvino

        openvino.save_model(openvino_graph(tower), folder / f"{tower.name}.xml", compress_to_fp16=False)
    else:
        onnx_graph(tower).save(folder / f"{tower.name}.onnx")
    gc.collect()  # the record of a tower holds itself


def _manifest(checkpoint: Checkpoint, model: CLIP, source: str, to: Engine) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": VERSION,
        "engine": {"openvino": "openvino", "onnx": "onnxruntime"}[to],
        "precision": "fp32",
        "source": source,
        "fingerprint": fingerprint(model.config, model.state_dict()),
        "licence": checkpoint.licence,
        "config": model.config.to_dict(),
        "preprocess": checkpoint.preprocess.to_dict(),
        "logit_scale": model.logit_scale.item(),
        "logit_bias": None if model.logit_bias is None else model.logit_bias.item(),
        "tokenizer": _tokenizer(model.config),
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


@contextlib.contextmanager
def _moved_into_place(destination: Path) -> Iterator[Path]:
    """A folder beside ``destination``, which takes its name if all goes well."""
    with tempfile.TemporaryDirectory(dir=destination.parent, prefix=f".{destination.name}.") as outer:
        folder = Path(outer) / destination.name
        folder.mkdir()
        yield folder
        for file in sorted(folder.iterdir()):
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
        if destination.exists():
            raise CheckpointError(f"{destination} has appeared meanwhile; it is left as it is")
        folder.rename(destination)
