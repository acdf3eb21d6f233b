"""Losses and gradients equal OpenCLIP's, from ``tests/golden/losses/make_goldens.py``."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clip.training.losses import clip_loss, sigmoid_loss

# Both sides are fp32. Near logits of 100 one step of a float32 is 8e-6, which the exponential hands on.
TOLERANCE = 1e-5

with np.load(Path(__file__).parents[1] / "golden" / "losses" / "goldens.npz") as file:
    GOLDENS = dict(file)
CASES = sorted(key.removesuffix("/value") for key in GOLDENS if key.endswith("/value"))


@pytest.mark.parametrize("tile_size", [4, 1024])
@pytest.mark.parametrize("case", CASES)
def test_value_and_gradients_equal_openclip(case: str, tile_size: int) -> None:
    names = [name for name in ("images", "texts", "scale", "bias") if f"{case}/{name}" in GOLDENS]
    inputs = [torch.from_numpy(GOLDENS[f"{case}/{name}"]).requires_grad_() for name in names]
    loss = clip_loss if len(inputs) == 3 else sigmoid_loss
    value = loss(*inputs, tile_size=tile_size)
    value.backward()
    expected = float(GOLDENS[f"{case}/value"])
    assert value.item() == pytest.approx(expected, rel=TOLERANCE, abs=TOLERANCE)
    for name, tensor in zip(names, inputs, strict=True):
        of_openclip = torch.from_numpy(GOLDENS[f"{case}/{name}.grad"])
        assert tensor.grad is not None
        largest = of_openclip.abs().max()
        torch.testing.assert_close(tensor.grad, of_openclip, rtol=0, atol=TOLERANCE * largest.item(), msg=name)


def test_every_case_is_there() -> None:
    assert [case.split("/")[0] for case in CASES].count("softmax") == 2
    assert [case.split("/")[0] for case in CASES].count("sigmoid") == 3
