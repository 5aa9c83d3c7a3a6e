"""Weights that stand bare under a log, a root or a fraction bar, and the step at which training walks them out of its domain."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from gradlint.measurements.rehearsal import Leaving
from gradlint.probe.experiments.objective import Objective, raw_gradients
from gradlint.probe.experiments.outlook import PLANNED

LARGEST = 1 << 14  # elements: larger weights are matrices and not scales
INWARD = 0.1, 0.01  # of the present value: if the gradient points to zero there too, nothing keeps the weight off
STEADY = 0.5  # a drift that is less than this of the drift in the quarter before comes to rest
_FIRST = frozenset({"log", "log2", "log10", "sqrt", "rsqrt", "reciprocal", "__rdiv__", "__rtruediv__"})
_SECOND = frozenset({"div", "divide", "true_divide", "__truediv__", "__div__"})
_ALIASES = frozenset({"view", "reshape", "unsqueeze", "squeeze", "expand", "expand_as", "__getitem__", "square", "abs"})
_POWERS = frozenset({"pow", "__pow__"})
_NAMES = {"__rdiv__": "division", "__rtruediv__": "division", **dict.fromkeys(_SECOND, "division")}


class _Watch(TorchFunctionMode):
    """Records which of some weights are the direct argument of a function that is not defined at zero or below."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.found: dict[str, str] = {}
        self._names = {id(weight): name for name, weight in weights.items() if weight.numel() <= LARGEST}
        self._kept: list[Tensor] = []  # ids of freed tensors are used again

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        names = [self._names.get(id(arg), "") for arg in args[:2]] + ["", ""]
        power = args[1] if name in _POWERS and len(args) > 1 and isinstance(args[1], (int, float)) else None
        if names[0] and (name in _FIRST or (power is not None and (power < 0 or power != int(power)))):
            self.found.setdefault(names[0], _NAMES.get(name, name.strip("_")))
        elif names[1] and name in _SECOND:
            self.found.setdefault(names[1], "division")
        elif names[0] and isinstance(result, Tensor) and (name in _ALIASES or power is not None):
            self._names[id(result)] = names[0]
            self._kept.append(result)
        return result


def bare_weights(objective: Objective) -> dict[str, str]:
    """Return the functions in which weights stand bare, by the name of the weight. The cost is that of one forward pass."""
    objective.restart()
    watch = _Watch(objective.parameters)
    with watch:
        objective()
    return watch.found


def leaving(objective: Objective, functions: Mapping[str, str], paths: Mapping[str, Sequence[Tensor]]) -> tuple[Leaving, ...]:
    """Return the weights that drift to zero within PLANNED steps, the first to arrive first.

    Each element is extrapolated along a straight line through the second half of its path. It is left out if the drift comes to
    rest, or if the gradient turns round on the way: most losses with a log or a fraction push a scale up again once it is small.

    Args:
        objective: The loss, at the weights with which the paths end.
        functions: The functions in which weights stand bare, by name.
        paths: The values of these weights after each step.
    """
    found = []
    for name, path in paths.items():
        count = len(path) // 4
        if count < 2:
            continue
        end, middle, earlier = path[-1].double(), path[-1 - count].double(), path[-1 - 2 * count].double()
        drift, before = (end - middle) / count, (middle - earlier) / count
        goes = (end * drift < 0.0) & (drift.abs() > STEADY * before.abs()) & (drift * before > 0.0)
        needed = torch.where(goes, end.abs() / drift.abs().clamp_min(1e-300), math.inf).reshape(-1)
        index = int(needed.argmin())
        steps = float(needed[index])
        if steps <= PLANNED and _is_drawn(objective, name, index):
            done = len(path)
            value, pace = float(end.reshape(-1)[index]), float(drift.reshape(-1)[index])
            found.append(Leaving(name, functions[name], value, pace, done + math.ceil(steps)))
    return tuple(sorted(found, key=lambda item: item.step))


def _is_drawn(objective: Objective, name: str, index: int) -> bool:
    """Return whether the gradient of an element still points to zero where the element is much smaller than it is."""
    weight = objective.parameters[name]
    kept = weight.detach().clone()
    try:
        for share in INWARD:
            with torch.no_grad():
                weight.data.reshape(-1)[index] = share * kept.reshape(-1)[index]
            objective.restart()
            (gradient,) = raw_gradients(objective(), [weight])
            slope = float(gradient.reshape(-1)[index]) if gradient is not None and not gradient.is_sparse else 0.0
            if not slope * float(kept.reshape(-1)[index]) > 0.0:
                return False
    finally:
        weight.data.copy_(kept)
    return True
