"""Models on the meta device: give them the values that their own initialization draws, all at once or one layer at a time."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from gradlint.errors import TargetError

_SHOWN = 5


def on_meta(module: nn.Module) -> bool:
    """Return whether a parameter or a buffer of the module has no values."""
    return any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def materialized(module: nn.Module, name: str) -> nn.Module:
    """Return a copy of the module on the CPU, with the values that each `reset_parameters` draws.

    A module with `init_weights` for the whole, as those of transformers have, is initialized by that too. The module itself stays
    on the meta device. Raises TargetError, which names the layers, if some have tensors but nothing that initializes them.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = copy.deepcopy(module)
        whole = getattr(made, "init_weights", None)
        lost = []
        for path, child in made.named_modules():
            if not any(tensor.is_meta for tensor in _own(child)):
                continue
            buffers = any(tensor is not None and tensor.is_meta for tensor in child._buffers.values())  # noqa: SLF001
            if not hasattr(child, "reset_parameters") and (whole is None or buffers):
                lost.append(f"{path or name} ({type(child).__name__})")
                continue
            child.to_empty(device="cpu", recurse=False)
            if hasattr(child, "reset_parameters"):
                child.reset_parameters()
        if not lost and callable(whole):
            whole()
    if lost:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        hint = "give them a method reset_parameters(), or build the model on the CPU"
        raise TargetError(f"{name}: nothing initializes {', '.join(lost[:_SHOWN])}{more}", hint=hint)
    return made


def _own(module: nn.Module) -> list[Tensor]:
    return [*module.parameters(recurse=False), *module.buffers(recurse=False)]


class InitialValues:
    """The values that a module on the meta device will start with, drawn one layer at a time, when they are asked for."""

    def __init__(self, module: nn.Module) -> None:
        self._owners: dict[int, tuple[str, nn.Module, str, Tensor]] = {}
        for path, child in module.named_modules():
            named = chain(child.named_parameters(recurse=False), child.named_buffers(recurse=False))
            for key, tensor in named:
                self._owners.setdefault(id(tensor), (path, child, key, tensor))

    def __call__(self, tensor: Tensor) -> Tensor:
        """Return the values of a parameter or a buffer. Raises TargetError if nothing initializes it, or it is computed."""
        if id(tensor) not in self._owners:
            raise TargetError("a weight that is computed from others on the meta device has no values", hint="use --materialize")
        path, child, key, _ = self._owners[id(tensor)]
        alone: Any = copy.copy(child)
        alone._parameters = {name: _empty(held) for name, held in child._parameters.items()}  # noqa: SLF001
        alone._buffers = {name: _empty(held) for name, held in child._buffers.items()}  # noqa: SLF001
        alone._modules = {}  # noqa: SLF001
        if not hasattr(alone, "reset_parameters"):
            hint = "give it a method reset_parameters(), or build the model on the CPU"
            raise TargetError(f"nothing initializes {path} ({type(child).__name__})", hint=hint)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(len(path) + sum(path.encode()))
            alone.reset_parameters()
        found: Tensor = getattr(alone, key)
        return found.detach()


def _empty(tensor: Tensor | None) -> Any:
    if tensor is None or not tensor.is_meta:
        return tensor
    values = torch.zeros(tensor.shape, dtype=tensor.dtype)
    return nn.Parameter(values, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else values
