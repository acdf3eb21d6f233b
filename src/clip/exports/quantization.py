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
from clip.inference.telemetry import without_telemetry

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
    """The graph with 8-bit weights and activations in most of its products, 8-bit tokens, and all else as it is.

    rows: inputs of batch size 1, which the ranges of the activations are taken from.
    """
    convolutions = [node.get_friendly_name() for node in graph.get_ordered_ops() if _kind(node) == "Convolution"]
    is_resnet = len(convolutions) > _STEM
    products = {"Convolution"} if is_resnet else {"Convolution", "MatMul", "Gather"}  # the last: the table of tokens
    others = {_kind(node) for node in graph.get_ops()} - products - {"Parameter", "Result", "Constant"}
    with without_telemetry(), contextlib.redirect_stdout(io.StringIO()):  # it prints progress bars
        nncf = imported("nncf")
        level = logging.getLogger("nncf").level
        nncf.set_log_level(logging.ERROR)
        try:
            return nncf.quantize(
                graph,
                nncf.Dataset(rows),
                subset_size=len(rows),
                # Of transformers, outliers move from the activations to the weights ("smooth quant").
                model_type=None if is_resnet else nncf.ModelType.TRANSFORMER,
                # The convolutions that see the pixels are a small part of the work, and what is lost there is lost to
                # all that follows: a ViT's patches, a ResNet's stem of three.
                ignored_scope=nncf.IgnoredScope(types=sorted(others), names=convolutions[:_STEM], validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    # Of so few inputs the extremes are the range. Means and medians cut off outliers, and by them a
                    # trained model says much.
                    activations_range_estimator_params=nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX,
                    disable_bias_correction=True,  # it fits to these few inputs
                    # α of Xiao et al. 2023, equation 4. NNCF's own, 0.95, gives a random ViT-B/32 0.9988, this 0.9998;
                    # pocket's texts have 0.9996 with either, and 0.9991 with 0.5.
                    smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=0.7),
                    # NNCF gives the first layer 7 bits for processors without VNNI, whose sums may overflow. Ours comes
                    # after the stem, where the others have 8 as well.
                    overflow_fix=nncf.OverflowFix.DISABLE,
                ),
            )
        finally:
            nncf.set_log_level(level)


def _kind(node: Any) -> str:
    return str(node.get_type_name())
