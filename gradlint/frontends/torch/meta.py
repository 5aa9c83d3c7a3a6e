"""Models on the meta device: give them the values that their own initialization draws, all at once."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from gradlint.frontends.torch.blocks import not_initialized
from gradlint.frontends.torch.initialization import Scheme, inner_first, is_unset, unset


def on_meta(module: nn.Module) -> bool:
    """Return whether a parameter or a buffer of the module has no values."""
    return any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def bytes_of(module: nn.Module) -> int:
    """Return how many bytes the parameters and buffers of a module take, or would take with values."""
    return sum(tensor.numel() * tensor.element_size() for tensor in (*module.parameters(), *module.buffers()))


def materialized(module: nn.Module, name: str) -> nn.Module:
    """Return a copy of the module on the CPU, with the values that its own initialization draws; see `Scheme`.

    The module itself stays on the meta device. Raises TargetError, which names the layers, if some have tensors but nothing that
    initializes them.
    """
    made: dict[int, Any] = {}
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_meta:
            values = unset(torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu"))
            made[id(tensor)] = nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values
    copied = copy.deepcopy(module, dict(made))
    Scheme(copied, name).draw(inner_first(copied))
    new = {id(tensor) for tensor in made.values()}
    lost = [
        f"{path or name} ({type(child).__name__})"
        for path, child in copied.named_modules()
        if any(tensor.is_meta or (id(tensor) in new and is_unset(tensor)) for tensor in _own(child))
    ]
    if lost:
        raise not_initialized(name, lost)
    return copied


def _own(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]
