"""The fastest matrix product of this machine, which no model can pass: what a share of the ceiling is a share of."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from clip.inference.packed import PackedLinear
from clip.inference.streams import in_streams

__all__ = ["matmul_ceiling"]

_SHAPES = ((400, 768, 3072), (1600, 768, 3072), (1600, 3072, 768))
"""Rows, width before and after: the wide layers of a ViT-B/32 for 8 and for 32 images."""


def matmul_ceiling(precision: str, *, seconds: float = 0.5) -> float | None:
    """FLOP/s of the fastest product with a packed weight, over all of torch's threads; None where torch has no kernel.

    precision: "fp32", "bf16" or "int8". Of several shapes, each shared by all cores and with one of its own for each,
    the best is taken, for this length of time each.
    """
    best = 0.0
    for rows, width, out in _SHAPES:
        product = _product(precision, rows, width, out)
        if product is None:
            return None
        for parts in {1, torch.get_num_threads()}:
            best = max(best, _rate(product, parts, 2 * rows * width * out, seconds / 2 / len(_SHAPES)))
    return best


def _rate(product: Callable[[int], None], parts: int, flops: int, seconds: float) -> float:
    repeats = [1] * parts  # of the product, in each stream
    in_streams(product, repeats)  # warm
    best, start = 0.0, time.perf_counter()
    while (begin := time.perf_counter()) - start < seconds:
        in_streams(product, repeats)
        elapsed = time.perf_counter() - begin
        best = max(best, sum(repeats) * flops / elapsed)
        if elapsed < 0.02:  # long enough that handing out the work does not count
            repeats = [2 * count for count in repeats]
    return best


def _product(precision: str, rows: int, width: int, out: int) -> Callable[[int], None] | None:
    """A function that does the product so many times."""
    if precision == "int8":
        return _int8_product(rows, width, out)
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    layer = PackedLinear(torch.randn(out, width), torch.zeros(out), dtype)
    x = torch.randn(rows, width).to(dtype)

    def run(repeats: int) -> None:
        for _ in range(repeats):
            layer(x)

    return run


def _int8_product(rows: int, width: int, out: int) -> Callable[[int], None] | None:
    operators = torch.ops.onednn
    if not hasattr(operators, "qlinear_prepack"):  # private, and absent from builds without oneDNN
        return None
    x = torch.randint(0, 255, (rows, width), dtype=torch.uint8)
    weight = operators.qlinear_prepack(torch.randint(-127, 127, (out, width), dtype=torch.int8), [rows, width])
    scales, zeros = torch.full((out,), 0.01), torch.zeros(out, dtype=torch.int64)

    def run(repeats: int) -> None:
        for _ in range(repeats):  # bytes in, fp32 out: the sums are not rounded to bytes again
            operators.qlinear_pointwise(
                x, 0.01, 128, weight, scales, zeros, None, 1.0, 0, torch.float32, "none", [], ""
            )

    return run
