"""However a batch is cut into tiles, whichever pairs are left out, a loss is that of the whole matrix in float64."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from clip.training.losses import clip_loss, sigmoid_loss

TOLERANCE = 1e-5  # of scale / N for embeddings: near 100 a float32 has steps of 8e-6


def whole(images: Tensor, texts: Tensor, scale: Tensor, bias: Tensor | None, ids: list[int]) -> Tensor:
    """The definition, pair by pair."""
    cosines = images @ texts.T
    count = len(ids)
    taking_part = [[j for j in range(count) if i == j or ids[i] != ids[j]] for i in range(count)]
    terms = []
    for i, others in enumerate(taking_part):
        if bias is None:
            terms.append((scale * cosines[i, others]).logsumexp(0) / 2 - scale * cosines[i, i] / 2)
            terms.append((scale * cosines[others, i]).logsumexp(0) / 2 - scale * cosines[i, i] / 2)
        else:
            signs = torch.tensor([1.0 if i == j else -1.0 for j in others], dtype=torch.float64)
            terms.append(-F.logsigmoid(signs * (scale * cosines[i, others] + bias)).sum())
    return torch.stack(terms).sum() / count


@settings(max_examples=60, deadline=None)
@given(
    ids=st.lists(st.integers(0, 5), min_size=1, max_size=14),
    tile_size=st.integers(1, 16),
    scale=st.sampled_from([0.5, 10.0, 100.0]),
    bias=st.sampled_from([None, 0.0, -10.0]),
    seed=st.integers(0, 1000),
)
def test_tiles_are_the_whole(ids: list[int], tile_size: int, scale: float, bias: float | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    count = len(ids)
    images, texts = (F.normalize(torch.randn(count, 6, generator=generator), dim=-1) for _ in range(2))
    scalars = [torch.tensor(scale)] if bias is None else [torch.tensor(scale), torch.tensor(bias)]
    inputs = [x.requires_grad_() for x in (images, texts, *scalars)]
    exact = [x.detach().double().requires_grad_() for x in inputs]
    expected = whole(*exact[:3], None if bias is None else exact[3], ids)
    loss = clip_loss if bias is None else sigmoid_loss
    value = loss(*inputs, equal=torch.tensor(ids), tile_size=tile_size)
    value.backward()
    expected.backward()
    assert abs(value.item() - expected.item()) <= TOLERANCE * max(1.0, expected.item())
    for tensor, of_whole in zip(inputs, exact, strict=True):
        assert tensor.grad is not None and of_whole.grad is not None
        largest = max(of_whole.grad.abs().max().item(), scale / count if tensor.ndim else 1.0)
        assert (tensor.grad - of_whole.grad).abs().max().item() <= TOLERANCE * largest
