"""How a module draws its own weights: `reset_parameters` of each layer, then what the modules around it do to it."""

from __future__ import annotations

import inspect
import random
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gradlint.errors import TargetError
from gradlint.frontends.torch.state.randomness import seeded
from gradlint.frontends.user_code import described

_OF_A_LAYER = ("reset_parameters", "_reset_parameters")
_OF_A_MODEL = ("_init_weights", "init_weights")
_UNSET = 0xA5  # each byte of a tensor that nothing has written yet


class Scheme:
    """The ways in which the modules of a model initialize it, in the order in which they come: inner modules first.

    `_init_weights(module)` of a model, as those of transformers have, is called for each of its modules, and a method
    `init_weights()` or `_init_weights()` without arguments once. Each module has a seed of its own, which its path gives, so that
    a part of a model that is drawn alone, and drawn again, gets the values that it gets in the whole.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self._name = name
        self._steps: dict[str, list[Callable[[], Any]]] = {}
        around: list[tuple[str, nn.Module]] = []
        for path, module in model.named_modules():
            around = [(outer, owner) for outer, owner in around if not outer or path.startswith(f"{outer}.")] + [(path, module)]
            self._steps[path] = [*_first(module, _OF_A_LAYER, 0), *_by_models(module, [owner for _, owner in around])]

    def draw(self, paths: Iterable[str]) -> None:
        """Initialize the modules at `paths` in place. Random states are left as they were.

        Raises TargetError if a method of the user raises.
        """
        with seeded(), torch.no_grad():
            for path in paths:
                seed = zlib.crc32(path.encode())
                torch.manual_seed(seed)
                random.seed(seed)
                np.random.seed(seed)  # noqa: NPY002 - user code draws from the global state
                for step in self._steps[path]:
                    try:
                        step()
                    except Exception as error:
                        method = getattr(step, "__qualname__", "its initialization")
                        hint = "build the model on the CPU"
                        raise TargetError(
                            f"{self._name}: {method} of {path or 'it'} raised {described(error)}", hint=hint
                        ) from error


def inner_first(module: nn.Module, prefix: str = "") -> list[str]:
    """Return the paths of all modules of a module, each after those within it."""
    return [path for path, _ in module.named_modules(prefix=prefix)][::-1]


def _first(module: nn.Module, names: Iterable[str], arguments: int) -> list[Callable[..., Any]]:
    """Return the first of some methods that a module has, if it can be called with so many arguments and no fewer."""
    for name in names:
        method = getattr(module, name, None)
        if callable(method) and _required(method) == arguments:
            return [method]
    return []


def _required(method: Callable[..., Any]) -> int | None:
    try:
        parameters = inspect.signature(method).parameters.values()
    except (TypeError, ValueError):
        return None
    kinds = {inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD}
    return sum(parameter.default is inspect.Parameter.empty and parameter.kind in kinds for parameter in parameters)


def _by_models(module: nn.Module, around: list[nn.Module]) -> list[Callable[[], Any]]:
    """Return what the modules around a module, and it itself, do to initialize it, from the inside to the outside."""
    steps: list[Callable[[], Any]] = []
    for owner in reversed(around):
        for method in _first(owner, _OF_A_MODEL, 1):

            def step(method: Callable[..., Any] = method) -> Any:
                return method(module)

            step.__qualname__ = getattr(method, "__qualname__", method.__class__.__name__)
            steps.append(step)
            if hasattr(owner, "_initialize_weights"):  # transformers: a model within a model initializes itself
                return steps
    return steps or _first(module, _OF_A_MODEL, 0)


def unset(tensor: Tensor) -> Tensor:
    """Mark the values of a dense tensor as not drawn yet, and return it."""
    _bytes(tensor).fill_(_UNSET)
    return tensor


def is_unset(tensor: Tensor) -> bool:
    """Return whether nothing has written to a tensor since it was marked by `unset`."""
    values = _bytes(tensor)
    return bool(values.numel()) and bool((values[:64] == _UNSET).all()) and bool((values == _UNSET).all())


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.data.reshape(-1).view(torch.uint8)
