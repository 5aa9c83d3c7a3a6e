"""Watch one trial of a forward: which inputs each tensor comes from, and what was running when it failed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils.weak import WeakTensorKeyDictionary

from gradlint.frontends.torch.ops import function_name
from gradlint.frontends.turns import own_thread

_VIEWS = frozenset({"view", "reshape"})
_SHAPES = frozenset({"shape", "size", "ndim", "dim"})


class OutOfTimeError(BaseException):
    """The time for a trial is over. No Exception, because the user's code may catch those."""


@dataclass
class Trial:
    """What is known of one trial.

    Attributes:
        calls: How many torch functions ended, so how far the forward came.
        function: The name of the torch function that raised, or "" if Python raised between functions.
        args: The positional arguments of that function.
        layers: The modules that were running, the innermost last, each with the arguments of its call.
        asked: The tensors whose shapes were asked for last, the latest last.
        mixed: A tensor, and the sizes that a view cut it into, where one row of these took values of several samples.
        uses: For each input, the names of the functions that read it, in order.
    """

    calls: int = 0
    function: str = ""
    args: tuple[Any, ...] = ()
    layers: list[tuple[nn.Module, tuple[Any, ...]]] = field(default_factory=list)
    asked: list[Tensor] = field(default_factory=list)
    mixed: tuple[Tensor, int] | None = None
    uses: dict[str, list[str]] = field(default_factory=dict)
    _names: Any = field(default_factory=WeakTensorKeyDictionary)

    def sources(self, value: Any) -> tuple[str, ...]:
        """Return the names of the inputs that the tensors in `value` come from."""
        if isinstance(value, Tensor):
            return tuple(self._names.get(value, ()))
        if isinstance(value, (tuple, list)):
            return tuple(dict.fromkeys(name for item in value for name in self.sources(item)))
        return ()

    def mark(self, value: Any, names: tuple[str, ...]) -> None:
        """Note that the tensors in `value` come from the named inputs."""
        for leaf in pytree.tree_leaves(value):
            if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter):
                self._names[leaf] = names

    @contextmanager
    def watching(self, names: Sequence[str], tensors: Sequence[Tensor], until: float) -> Iterator[None]:
        """Watch what runs in the body of the context. Raises OutOfTimeError inside once the clock passes `until`."""
        for name, tensor in zip(names, tensors, strict=True):
            self.mark(tensor, (name,))

        mine = own_thread()  # the hooks are called for modules that run in other threads, too

        def before(module: nn.Module, args: tuple[Any, ...]) -> None:
            if mine():
                self.layers.append((module, args))

        def after(module: nn.Module, _args: Any, _outcome: Any) -> None:
            while mine() and self.layers and self.layers.pop()[0] is not module:
                pass

        hooks = [register_module_forward_pre_hook(before), register_module_forward_hook(after)]
        try:
            with _Watch(self, {id(tensor): name for name, tensor in zip(names, tensors, strict=True)}, until):
                yield
        finally:
            for hook in hooks:
                hook.remove()


class _Watch(TorchFunctionMode):
    def __init__(self, trial: Trial, inputs: Mapping[int, str], until: float) -> None:
        super().__init__()
        self.inputs = inputs
        self.trial = trial
        self.until = until

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run `func` and note what it was given."""
        kwargs = kwargs or {}
        if perf_counter() > self.until:
            raise OutOfTimeError
        trial, name = self.trial, function_name(func)
        trial.function, trial.args = name, (*args, *kwargs.values())
        if name in _SHAPES:
            trial.asked = [*trial.asked[-3:], args[0]]
        outcome = func(*args, **kwargs)
        trial.function, trial.args = "", trial.args
        trial.calls += 1
        names = trial.sources((*args, *kwargs.values()))
        if names:
            trial.mark(outcome, names)
        for value in pytree.tree_leaves((args, kwargs)) if name not in _SHAPES else ():
            if id(value) in self.inputs:
                trial.uses.setdefault(self.inputs[id(value)], []).append(name)
        if name in _VIEWS and trial.mixed is None and pytree.tree_leaves(list(args[1:]))[:1] == [-1]:
            trial.mixed = _mixed(args[0], outcome)
        return outcome


def _mixed(before: Tensor, after: Tensor) -> tuple[Tensor, int] | None:
    """Return the tensor and the size of a row where a view makes rows that no whole number of axes of the tensor fills."""
    if before.ndim < 3 or after.ndim < 2 or after.shape[0] == before.shape[0] or not before.numel():
        return None
    row = math.prod(after.shape[1:])
    whole = {math.prod(before.shape[axis:]) for axis in range(before.ndim)}
    split = before.shape[-1] % row == 0  # as of the heads of attention
    return None if row in whole or split or before.shape[0] * row == before.numel() else (before, row)
