"""Exported models, run by OpenVINO or ONNX Runtime: no torch in the process."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clip.errors import CheckpointError, ConfigError, ShapeError, choices
from clip.inference.manifest import MANIFEST, Manifest, read_manifest

if TYPE_CHECKING:
    from clip.config import CLIPConfig
    from clip.preprocess import Preprocess

__all__ = ["MANIFEST", "ExportedCLIP", "is_exported"]

PRECISIONS = ("auto", "fp32", "bf16", "int8")

Graph = Callable[[NDArray[Any]], NDArray[np.float32]]
"""One tower: a batch of its inputs → (B, E) features."""

_TOKENS_OF_A_CALL = 50
"""What calling the text graph once more costs, in tokens computed: 30 to 60 for OpenVINO in bf16 and fp32, ViT-B/32."""


def is_exported(path: str | os.PathLike[str]) -> bool:
    """Whether this is a folder that ``clip export`` wrote."""
    return os.path.isfile(os.path.join(path, MANIFEST))  # noqa: PTH113, PTH118 (a name may be too long for a path)


class ExportedCLIP:
    """Both towers as graphs of another engine. Takes and gives NumPy arrays.

    A tower is read and compiled when it is first used: labels alone never load the image tower.
    """

    def __init__(self, manifest: Manifest, image_graph: Graph, text_graph: Graph, precision: str) -> None:
        self.manifest = manifest
        """All that ``clip.json`` says: source, fingerprint, licence, certificate."""
        self.config: CLIPConfig = manifest.config
        self.context_length, self.vocab_size = manifest.config.context_length, manifest.config.vocab_size
        self.logit_scale = np.float32(manifest.logit_scale)
        """A logarithm, as in CLIP."""
        self.logit_bias = None if manifest.logit_bias is None else np.float32(manifest.logit_bias)
        self.precision = precision
        """Of the matrix products: "fp32", "bf16" or "int8"."""
        self.engine = manifest.engine
        self.preprocess: Preprocess = manifest.preprocess
        self._image_graph, self._text_graph = image_graph, text_graph

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, precision: str = "auto") -> ExportedCLIP:
        """The model in a folder that ``clip export`` wrote.

        precision: of the matrix products. "auto" is that of the folder if it is int8; else bf16 with OpenVINO on a
            processor that has units for it, and fp32 otherwise.
        Raises CheckpointError for a folder that is not whole or not sound, ConfigError for a precision that it cannot
        have, MissingDependencyError without the extra ``openvino`` or ``onnx``.
        """
        if precision not in PRECISIONS:
            raise ConfigError(f"precision is {precision!r}; it must be one of {choices(precision, PRECISIONS)}")
        manifest = read_manifest(path)
        if (precision == "int8") != (manifest.precision == "int8") and precision != "auto":
            remedy = "export it with --int8" if precision == "int8" else "export it without --int8"
            raise ConfigError(f"{path} was exported in {manifest.precision} and cannot run in {precision}; {remedy}")
        open_graphs = _openvino if manifest.engine == "openvino" else _onnxruntime
        image_graph, text_graph, precision = open_graphs(Path(path), manifest, precision)
        return cls(manifest, image_graph, text_graph, precision)

    def encode_image(self, images: NDArray[np.float32]) -> NDArray[np.float32]:
        """images: (B, 3, S, S) → image features (B, E), of any norm."""
        size = self.config.image_resolution
        images = np.ascontiguousarray(images, dtype=np.float32)
        if images.ndim != 4 or images.shape[1:] != (3, size, size):
            raise ShapeError(f"images have shape {images.shape}; (batch, 3, {size}, {size}) is expected")
        if not len(images):
            return np.empty((0, self.config.embed_dim), np.float32)
        return self._features(self._image_graph, images)

    def encode_text(self, text: NDArray[np.integer[Any]]) -> NDArray[np.float32]:
        """text: (B, L) token ids, as ``clip.tokenize`` gives them → text features (B, E), of any norm.

        Read at the end token, the largest id of the row. Nothing behind it has any influence, so a batch goes in groups
        of similar length, each cut to its longest text.
        """
        text = np.asarray(text)
        if text.ndim != 2 or not 0 < text.shape[1] <= self.context_length or text.dtype.kind not in "iu":
            raise ShapeError(
                f"text has shape {text.shape} of {text.dtype}; ids (batch, up to {self.context_length}) are expected"
            )
        features = np.empty((len(text), self.config.embed_dim), np.float32)
        if not len(text):
            return features
        if text.min() < 0 or text.max() >= self.vocab_size:  # the engines read zeros there, or whatever lies beside
            raise ConfigError(f"token ids are {text.min()} to {text.max()}; the model knows 0 to {self.vocab_size - 1}")
        lengths = text.argmax(axis=-1) + 1
        for rows in _groups(lengths):
            longest = int(lengths[rows].max())
            batch = np.ascontiguousarray(text[rows, :longest], dtype=np.int32)
            features[rows] = self._features(self._text_graph, batch)
        return features

    def _features(self, graph: Graph, batch: NDArray[Any]) -> NDArray[np.float32]:
        features = graph(batch)
        expected = (len(batch), self.config.embed_dim)
        if features.shape != expected:  # a graph that computes something else
            raise CheckpointError(f"the exported model gives {features.shape} instead of {expected}; export it again")
        return features


def _openvino(folder: Path, manifest: Manifest, precision: str) -> tuple[Graph, Graph, str]:
    from clip.inference.openvino_engine import open_graphs

    return open_graphs(folder, manifest, precision)


def _onnxruntime(folder: Path, manifest: Manifest, precision: str) -> tuple[Graph, Graph, str]:
    from clip.inference.onnx_engine import open_graphs

    return open_graphs(folder, manifest, precision)


def _groups(lengths: NDArray[np.intp]) -> list[NDArray[np.intp]]:
    """The rows in groups of similar length, so that padding and calls together cost least.

    Each group computes its longest length for every row. The cheapest way to cut the rows, sorted by length, is found
    from the shortest on: the best way up to a length is the best way up to a shorter one, and one group for the rest.
    """
    distinct, counts = np.unique(lengths, return_counts=True)
    ends = [0, *np.cumsum(counts).tolist()]
    costs, starts = [0], [0]
    for last, length in enumerate(distinct.tolist(), start=1):
        options = [costs[first] + (ends[last] - ends[first]) * length for first in range(last)]
        best = min(range(last), key=options.__getitem__)
        costs.append(options[best] + _TOKENS_OF_A_CALL)
        starts.append(best)
    cuts, last = [], starts[-1]
    while last:
        cuts.append(ends[last])
        last = starts[last]
    return np.split(np.argsort(lengths, kind="stable"), cuts[::-1])
