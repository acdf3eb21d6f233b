"""Batches of any size in the memory of a micro-batch, with the gradients of the whole (Gao et al. 2021, "Scaling deep
contrastive learning batch size under memory limited setup", GradCache).

The towers run over all micro-batches without a graph; the loss of all embeddings gives the gradient of each; then each
micro-batch runs again, with a graph, from the same state of the random generators, and takes its gradients on to the
parameters. That costs one more forward pass, a third of the time of a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from clip.errors import ConfigError, ShapeError

__all__ = ["Encode", "Loss", "backward"]

Encode = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""Images (B, ...) and texts (B, ...) → embeddings of both, (B, E). B may be 0."""

Loss = Callable[[Tensor, Tensor], Tensor]
"""Embeddings of the whole batch → a scalar."""


def backward(
    encode: Encode,
    images: Tensor,
    texts: Tensor,
    loss: Loss,
    *,
    micro_batch_size: int,
    model: nn.Module | None = None,
    synchronize: Callable[[bool], contextlib.AbstractContextManager[Any]] = lambda is_last: contextlib.nullcontext(),
    at_least: int = 1,
) -> Tensor:
    """Adds the gradients of ``loss(*encode(images, texts))`` to the parameters; returns the loss, detached.

    encode: a module, or a function of one, which is then ``model``. What it draws at random (dropout, patch dropout) is
    drawn again alike, and the generators are left as one forward pass leaves them.
    images, texts: of this process; they may stay in main memory if ``encode`` takes its rows to the device.
    micro_batch_size: rows that run through the towers at once. A batch that is no larger takes the direct way.
    model: has every module that ``encode`` uses. Its BatchNorms, if they are in training mode, take their statistics
    from each micro-batch by itself, so the gradients are those of ``loss`` of the micro-batches' embeddings side by
    side; running statistics are updated once for each micro-batch.
    synchronize: ``synchronize(is_last)`` is the context of each pass with gradients, e.g. DDP's ``no_sync()`` for all
    but the last. Parameters that ``loss`` uses itself (``logit_scale``) get their gradients before, in
    ``synchronize(False)``; so that DDP reduces them with the others, ``encode`` has to use them too (times zero).
    at_least: micro-batches to run, the last ones without rows if need be, where every rank must run as many (FSDP).
    A rank without any rows runs one; BatchNorms then keep out of training mode.
    """
    if len(images) != len(texts):
        raise ShapeError(f"{len(images)} images and {len(texts)} texts; a batch has one text for each image")
    if micro_batch_size < 1:
        raise ConfigError(f"micro_batch_size is {micro_batch_size}; it must be at least 1")
    if model is None:
        if not isinstance(encode, nn.Module):
            raise ConfigError("encode is no module, so its BatchNorms are not known; pass model= as well")
        model = encode
    batch_norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.training]
    device = next((parameter.device for parameter in model.parameters()), images.device)
    count = max(1, at_least, -(-len(images) // micro_batch_size))
    parts = [slice(start * micro_batch_size, (start + 1) * micro_batch_size) for start in range(count)]

    def run(part: slice) -> tuple[Tensor, Tensor]:
        with _in_eval(batch_norms if part.start >= len(images) else []):
            image_embeddings, text_embeddings = encode(images[part], texts[part])
        return image_embeddings, text_embeddings

    if count == 1:
        with synchronize(True):
            value = loss(*run(parts[0]))
            value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    states, cached = [], []
    with torch.no_grad(), _kept_statistics(batch_norms):
        for part in parts:
            states.append(_random_state(device))
            cached.append(run(part))
    # Before torch 2.10 the cache would hand weights that were cast without a graph to the passes that need one
    # (https://github.com/pytorch/pytorch/issues/112583).
    torch.clear_autocast_cache()
    embeddings = [torch.cat(side).requires_grad_() for side in zip(*cached, strict=True)]
    del cached
    with synchronize(False):
        value = loss(*embeddings)
        value.backward()  # type: ignore[no-untyped-call]
    gradients = [x.grad for x in embeddings]
    with _forked_random_state(device):
        for part, state in zip(parts, states, strict=True):
            _set_random_state(device, state)
            with synchronize(part is parts[-1]):
                sides = [
                    (output, gradient[part])
                    for output, gradient in zip(run(part), gradients, strict=True)
                    if output.requires_grad and gradient is not None
                ]
                if sides:  # neither tower may be in training
                    torch.autograd.backward([side[0] for side in sides], [side[1] for side in sides])
    return value.detach()


@contextlib.contextmanager
def _kept_statistics(batch_norms: list[_NormBase]) -> Iterator[None]:
    """Whatever runs inside leaves the running statistics as they were."""
    kept = [{name: buffer.clone() for name, buffer in module.named_buffers()} for module in batch_norms]
    try:
        yield
    finally:
        for module, buffers in zip(batch_norms, kept, strict=True):
            for name, buffer in module.named_buffers():
                buffer.copy_(buffers[name])


@contextlib.contextmanager
def _in_eval(batch_norms: list[_NormBase]) -> Iterator[None]:
    for module in batch_norms:
        module.training = False
    try:
        yield
    finally:
        for module in batch_norms:
            module.training = True


# Random generators ----------------------------------------------------------------------------------------------------


def _random_state(device: torch.device) -> list[Tensor]:
    """Of the CPU's generator and of the device's own."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    elif device.type == "mps":
        states.append(torch.mps.get_rng_state())
    return states


def _set_random_state(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)
    elif device.type == "mps":
        torch.mps.set_rng_state(states[1])


@contextlib.contextmanager
def _forked_random_state(device: torch.device) -> Iterator[None]:
    states = _random_state(device)
    try:
        yield
    finally:
        _set_random_state(device, states)
