"""CLIP, whole and usable: OpenAI's API on every CLIP checkpoint.

Public names resolve on first use, so ``import clip`` reads no file, touches no device and does not import torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clip import clip as clip
    from clip import model as model
    from clip import simple_tokenizer as simple_tokenizer
    from clip.clip import available_models, convert, load, save, tokenize
    from clip.evaluation.zero_shot import ZeroShotClassifier
    from clip.inference.loading import load_for_inference
    from clip.inference.optimized import optimize_for_inference

__version__ = "0.1.0"

_HOME = {
    "Index": "clip.search.index",
    "ZeroShotClassifier": "clip.evaluation.zero_shot",
    "available_models": "clip.clip",
    "convert": "clip.clip",
    "load": "clip.clip",
    "load_for_inference": "clip.inference.loading",
    "optimize_for_inference": "clip.inference.optimized",
    "save": "clip.clip",
    "tokenize": "clip.clip",
}
_SUBMODULES = (
    "checkpoints",
    "clip",
    "config",
    "errors",
    "evaluation",
    "features",
    "fidelity",
    "images",
    "inference",
    "model",
    "preprocess",
    "samples",
    "search",
    "simple_tokenizer",
)

__all__ = [
    "Index",
    "ZeroShotClassifier",
    "available_models",
    "convert",
    "load",
    "load_for_inference",
    "optimize_for_inference",
    "save",
    "tokenize",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _SUBMODULES:
        return importlib.import_module(f"clip.{name}")
    raise AttributeError(f"module 'clip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBMODULES, "__version__"])
