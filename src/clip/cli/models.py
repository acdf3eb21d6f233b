"""``clip models``: what can be loaded by name, and what is on this machine."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from importlib.resources import files as package_files
from math import prod
from pathlib import Path
from typing import Any

from clip.checkpoints.download import default_directory
from clip.checkpoints.registry import OPENAI_MODELS
from clip.cli import options
from clip.cli.console import Session, json_line

__all__ = ["FACTS", "command"]


@dataclasses.dataclass(frozen=True, slots=True)
class Facts:
    """What ``clip.model`` would tell, written down because it imports torch; a test holds the two together."""

    resolution: int
    embed_dim: int
    parameters: int


FACTS = {
    "RN50": Facts(224, 1024, 102_007_137),
    "RN101": Facts(224, 512, 119_688_033),
    "RN50x4": Facts(288, 640, 178_300_601),
    "RN50x16": Facts(384, 768, 290_979_217),
    "RN50x64": Facts(448, 1024, 623_258_305),
    "ViT-B/32": Facts(224, 512, 151_277_313),
    "ViT-B/16": Facts(224, 512, 149_620_737),
    "ViT-L/14": Facts(224, 768, 427_616_513),
    "ViT-L/14@336px": Facts(336, 768, 427_944_193),
}


@options.verb("models", example="clip models\nclip models --json")
@options.json_output("One JSON object a line for each model.")
def command(session: Session, as_json: bool) -> None:
    """List the models that can be loaded by name.

    Any checkpoint on disk and any repository of CLIP weights on the Hugging Face Hub can be loaded too; pass its path
    or its name as --model.
    """
    models = [*_published(), *_bundled()]
    if as_json:
        for model in models:
            print(json_line(model))
        return
    rows = [("NAME", "PIXELS", "EMBED DIM", "PARAMETERS", "MB", "LICENCE", "HERE")]
    for model in models:
        rows.append(
            (
                model["name"],
                str(model["resolution"]),
                str(model["embed_dim"]),
                f"{model['parameters'] / 1e6:.1f} M",
                str(model["size_mb"]),
                re.split(r"[,;.:(]", model["licence"])[0].strip()[:24],
                "yes" if model["path"] else "no",
            )
        )
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = zip(row, widths, "<>>>><<", strict=True)  # numbers to the right
        print("  ".join(f"{cell:{side}{width}}" for cell, width, side in cells).rstrip())


def _published() -> Iterator[dict[str, Any]]:
    """OpenAI's models, and whether the default folder has them."""
    for model in OPENAI_MODELS.values():
        path = default_directory() / model.filename
        yield {
            "name": model.name,
            **dataclasses.asdict(FACTS[model.name]),
            "size_mb": model.size_mb,
            "licence": model.licence,
            "path": str(path) if path.is_file() else None,
        }


def _bundled() -> Iterator[dict[str, Any]]:
    """The model in the package, as the header of its file describes it."""
    path = Path(str(package_files("clip"))) / "pocket.safetensors"
    if not path.is_file():  # left out by whoever packaged it
        return
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    about = header.pop("__metadata__")
    config = json.loads(about["config"])
    yield {
        "name": "pocket",
        "resolution": config["image_resolution"],
        "embed_dim": config["embed_dim"],
        # What ends in _scale belongs to the tensor of that name that is stored in 8 bits, except for one.
        "parameters": sum(
            prod(tensor["shape"])
            for key, tensor in header.items()
            if key == "logit_scale" or not key.endswith(("_scale", "running_mean", "running_var", "batches_tracked"))
        ),
        "size_mb": max(1, round(path.stat().st_size / 1e6)),
        "licence": about.get("licence", ""),
        "path": str(path),
    }
