"""Graphs in 8-bit integers: post-training quantisation by NNCF, the ranges of activations taken from real pictures.

What is left out of it was found by measurement (docs/export.md): on a trained model NNCF's own choice costs several
times what the products alone do.
"""

from __future__ import annotations

import contextlib
import io
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clip.exports.graphs import imported
from clip.exports.telemetry import without_telemetry

if TYPE_CHECKING:
    import openvino

__all__ = ["image_rows", "quantized", "text_rows"]

_STEM = 3
"""Convolutions before a ResNet's first block."""


def image_rows(images: NDArray[np.float32]) -> list[NDArray[Any]]:
    """One picture at a time: (1, 3, S, S) each."""
    return list(images[:, None])


def text_rows(text: NDArray[np.int32]) -> list[NDArray[Any]]:
    """One text at a time, without its padding, which is never computed: (1, L) each."""
    return [row[None, : row.argmax() + 1] for row in text]


def quantized(graph: openvino.Model, rows: list[NDArray[Any]]) -> openvino.Model:
    """The graph with 8-bit weights and activations in its matrix products and convolutions, all else in fp32.

    rows: inputs of batch size 1, which the ranges of the activations are taken from.
    """
    with without_telemetry(), contextlib.redirect_stdout(io.StringIO()):  # it prints progress bars
        nncf = imported("nncf")
        level = logging.getLogger("nncf").level
        nncf.set_log_level(logging.ERROR)
        try:
            return nncf.quantize(
                graph,
                nncf.Dataset(rows),
                subset_size=len(rows),
                model_type=nncf.ModelType.TRANSFORMER,  # outliers move from activations to weights ("smooth quant")
                ignored_scope=_left_alone(graph),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    # Of so few inputs the extremes are the range. NNCF's means and medians cut off outliers, and by
                    # them a trained model says much.
                    activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX,
                    disable_bias_correction=True,  # it fits to these few inputs
                ),
            )
        finally:
            nncf.set_log_level(level)


def _left_alone(graph: openvino.Model) -> Any:
    """What stays in fp32: everything but products, and the convolutions that see the pixels (a ViT's patches, a
    ResNet's stem of three). They are a small part of the work, and what they lose is lost to all that follows."""
    nodes = graph.get_ordered_ops()
    convolutions = [node.get_friendly_name() for node in nodes if node.get_type_name() == "Convolution"]
    kinds = {node.get_type_name() for node in nodes} - {"Parameter", "Result", "Constant"}
    return imported("nncf").IgnoredScope(
        types=sorted(kinds - {"Convolution", "MatMul"}), names=convolutions[:_STEM], validate=False
    )
