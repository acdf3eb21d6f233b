"""Exported models, run by OpenVINO or ONNX Runtime: no torch in the process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clip.config import CLIPConfig

if TYPE_CHECKING:
    from clip.preprocess import Preprocess

__all__ = ["ExportedCLIP", "is_exported"]

MANIFEST = "clip.json"


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder that ``clip export`` wrote."""
    return (Path(path) / MANIFEST).is_file()


class ExportedCLIP:
    """Both towers as graphs of another engine. Takes and gives NumPy arrays."""

    config: CLIPConfig
    context_length: int
    vocab_size: int
    logit_scale: np.float32
    """A logarithm, as in CLIP."""
    logit_bias: np.float32 | None
    precision: str
    engine: str
    preprocess: Preprocess

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, precision: str = "auto") -> ExportedCLIP:
        """The model in a folder that ``clip export`` wrote."""
        raise NotImplementedError

    def encode_image(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """images: (B, 3, S, S) → image features (B, E), of any norm."""
        raise NotImplementedError

    def encode_text(self, text: NDArray[np.int32]) -> NDArray[np.float32]:
        """text: (B, L) token ids → text features (B, E), of any norm. Computed up to the longest text."""
        raise NotImplementedError
