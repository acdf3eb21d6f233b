"""Modules that a gradient passes through and leaves as they are."""

from __future__ import annotations

import copy
from typing import TypeVar

from torch import Tensor, nn

__all__ = ["frozen_twin"]

Module = TypeVar("Module", bound=nn.Module)


def frozen_twin(module: Module) -> Module:
    """A module in eval mode that shares the weights and asks for no gradients, so that the other is never touched.

    What changes the weights in place, as an optimizer does, changes both; what replaces them (``to`` another device)
    changes one.
    """
    shared: dict[int, Tensor] = {id(buffer): buffer for buffer in module.buffers()}
    shared |= {id(weight): nn.Parameter(weight.detach(), requires_grad=False) for weight in module.parameters()}
    return copy.deepcopy(module, dict(shared)).eval()
