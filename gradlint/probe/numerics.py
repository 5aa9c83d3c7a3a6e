"""Numbers in training: how large results are, where the loss may break, what half precision would hold of a step's gradients."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from gradlint.errors import ForwardError
from gradlint.frontends.user_code import described
from gradlint.graph import Node
from gradlint.observed.numbers import Headroom, Levels, Range, Suspect
from gradlint.probe.recorder import Recorder, Seen
from gradlint.theory.singularities import Singularity, singularities

if TYPE_CHECKING:
    from gradlint.probe.experiments import Setting

_FORMATS = {  # largest number of activations; largest and smallest number of gradients (OCP 8-bit floating point, IEEE 754)
    "fp16": (65504.0, 65504.0, 2.0**-24),
    "fp8": (448.0, 57344.0, 2.0**-16),  # e4m3 forward, e5m2 backward
}
_MASK = 1e30  # larger ones are no signal, but infinity by another name
_LOWEST, _HIGHEST = -1100, 1100  # binary exponents of float64
Exponents = NDArray[np.int64]


def ranges_seen(passes: Iterable[Mapping[str, Seen]]) -> Mapping[str, Range]:
    """The range of every node that ran and has float outputs, over all passes."""
    found: dict[str, Range] = {}
    for seen in passes:
        for node, one in seen.items():
            if one.size:
                before = found.get(node, Range(math.inf, -math.inf))
                found[node] = Range(_least(before.low, one.low), -_least(-before.high, -one.high))
    return found


def _least(one: float, other: float) -> float:
    """The smaller of two, NaN where either is."""
    return math.nan if math.isnan(one) or math.isnan(other) else min(one, other)


def suspects(setting: Setting) -> Mapping[str, Any]:
    """The field `suspects`: operators of a loss that was given whose argument may come to where they break."""
    task, ending_in = setting.task, getattr(setting.model, "ending_in", None)
    if task.loss is None or ending_in is None or setting.found.nonfinite_forward is not None:
        return {}
    setting.progress("looking at the loss")
    whole = ending_in(task.loss, task.target)
    recorder = Recorder(lambda _: False, lambda _: False, watchers=())
    torch.manual_seed(setting.seed)
    whole.forward(setting.objective.batch(), tap=recorder)
    found = (item for item in singularities(whole.graph) if not whole.graph[item.node].module)
    shown = (_suspect(item, recorder.seen.get(item.operand), whole.graph[item.node]) for item in found)
    return {"suspects": tuple(item for item, expected in shown if expected or item.hit)}


def _suspect(item: Singularity, seen: Seen | None, node: Node) -> tuple[Suspect, bool]:
    low, high = (seen.low, seen.high) if seen is not None else (math.nan, math.nan)
    suspect = Suspect(
        function=item.function,
        low=item.interval.low,
        high=item.interval.high,
        points=item.points,
        seen_low=low,
        seen_high=high,
        source=str(node.source) if node.source else "",
        overflows=item.overflows,
        slope=item.slope,
        hit=item.hit(low, high),
    )
    return suspect, item.expected


def headroom(setting: Setting) -> Mapping[str, Any]:
    """The field `headroom`, where the recipe or the model's own weights say half precision: one more step, not taken."""
    recipe, objective = setting.task.recipe, setting.objective
    precision = recipe.precision if recipe is not None else "fp32"
    if precision == "fp32" and any(weight.dtype is torch.float16 for weight in objective.parameters.values()):
        precision = "fp16"
    if precision not in _FORMATS or setting.found.nonfinite_forward is not None:
        return {}
    setting.progress(f"measuring the headroom of {precision}")
    tap = _Magnitudes()
    gradients = _step(setting, tap)
    scale = recipe.loss_scale if recipe is not None else None
    return {"headroom": _headroom(precision, scale, tap, gradients, objective.stands_in)}


class _Magnitudes:
    """A tap: the largest activation of every node, and how its gradients spread over binary exponents."""

    def __init__(self) -> None:
        self.sources: list[Tensor] = []
        self.activations: dict[str, float] = {}
        self.gradients: dict[str, Exponents] = {}

    def __call__(self, node: str, outputs: Sequence[Any], inputs: Sequence[Any]) -> None:
        """See `frontends.base.Tap`."""
        fed = any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in inputs)
        for tensor in outputs:
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or not tensor.numel():
                continue
            sizes = tensor.detach().abs()
            largest = float(sizes.max())
            if largest >= _MASK:
                largest = float(torch.where(sizes < _MASK, sizes, 0.0).max())
            self.activations[node] = max(self.activations.get(node, 0.0), largest)
            if tensor.requires_grad:
                if not fed:
                    self.sources.append(tensor)
                tensor.register_hook(self._hook(node))  # type: ignore[no-untyped-call]

    def restart(self) -> None:
        """See `frontends.base.Restartable`."""
        for record in (self.sources, self.activations, self.gradients):
            record.clear()

    def _hook(self, node: str) -> Any:
        def add(gradient: Tensor | None) -> None:
            if gradient is not None:
                self.gradients[node] = self.gradients.get(node, 0) + exponents(gradient)

        return add


def exponents(tensor: Tensor) -> Exponents:
    """How many elements that are finite and not zero have each binary exponent e, 2^e <= |x| < 2^(e+1), from `_LOWEST` on."""
    values = tensor.detach().reshape(-1)
    values = values[torch.isfinite(values) & (values != 0)]
    found = torch.frexp(values.float() if values.dtype is torch.bfloat16 else values).exponent.long() - 1 - _LOWEST
    return torch.bincount(found, minlength=_HIGHEST - _LOWEST).cpu().numpy()


def _step(setting: Setting, tap: _Magnitudes) -> Mapping[str, Exponents]:
    """Run a step under the tap; the spread of the gradients of all weights. The loss is that of the same run without the tap."""
    model, objective = setting.model, setting.objective
    arrays = objective.batch()
    torch.manual_seed(setting.seed)
    returned = model.call(arrays)
    loss = objective.of(returned)
    leaves = [leaf for leaf in pytree.tree_leaves(_tree(returned)) if isinstance(leaf, Tensor) and leaf.requires_grad]
    torch.manual_seed(setting.seed)
    outputs = model.forward(arrays, tap=tap)
    try:
        cotangents = torch.autograd.grad(loss, leaves, allow_unused=True)
        pairs = [(out, vector) for out in outputs if (vector := _same(out, leaves, cotangents)) is not None]
        if not pairs:
            raise ForwardError("the loss does not depend on an output that is the same in two runs")
        weights = objective.parameters
        tensors, vectors = zip(*pairs, strict=True)
        found = torch.autograd.grad(tensors, [*tap.sources, *weights.values()], vectors, allow_unused=True)
    except RuntimeError as error:
        raise ForwardError(f"the model's backward pass raised {described(error)}") from error
    pulled = zip(weights, found[len(tap.sources) :], strict=True)
    return {name: exponents(gradient) for name, gradient in pulled if gradient is not None}


def _tree(returned: Any) -> Any:
    """What a model returned, output objects of the usual libraries as plain dicts."""
    return dict(returned) if isinstance(returned, Mapping) else returned


def _same(out: Tensor, leaves: Sequence[Tensor], cotangents: Sequence[Tensor | None]) -> Tensor | None:
    """The cotangent of the tensor that holds the same numbers."""
    fitting = (v for leaf, v in zip(leaves, cotangents, strict=True) if leaf.shape == out.shape and torch.equal(leaf, out))
    return next((vector for vector in fitting if vector is not None), None)


def _headroom(
    precision: str, scale: float | None, tap: _Magnitudes, weights: Mapping[str, Exponents], stands_in: str
) -> Headroom:
    forward, backward, smallest = _FORMATS[precision]
    everything = [*tap.gradients.values(), *weights.values()]
    top = max((_largest(found) for found in everything), default=0.0)
    best = 2.0 ** math.floor(math.log2(backward / top)) if top else 1.0

    def levels(activation: float | None, found: Exponents | None) -> Levels:
        if found is None:
            return Levels(activation, None, 0.0, 0.0)
        return Levels(activation, _largest(found), lost(found, smallest, scale or 1.0), lost(found, smallest, best))

    together = sum(weights.values(), np.zeros(_HIGHEST - _LOWEST, np.int64))
    return Headroom(
        precision=precision,
        forward=forward,
        backward=backward,
        loss_scale=scale,
        best_scale=best,
        nodes={node: levels(largest, tap.gradients.get(node)) for node, largest in tap.activations.items()},
        weights={name: levels(None, found) for name, found in weights.items()},
        lost=lost(together, smallest, scale or 1.0),
        saved=lost(together, smallest, best),
        stands_in=stands_in,
    )


def _largest(found: Exponents) -> float:
    """A bound of the largest value, within a factor of two."""
    present = np.flatnonzero(found)
    return 2.0 ** min(float(present[-1] + _LOWEST + 1), 1023.0) if present.size else 0.0


def lost(found: Exponents, smallest: float, scale: float) -> float:
    """Share of the elements that round to zero in a format with the smallest number `smallest`, multiplied by `scale` before."""
    total = int(found.sum())
    limit = math.ceil(math.log2(smallest / 2.0 / scale))  # up to half of the smallest number everything rounds to zero
    return float(found[: max(limit - _LOWEST, 0)].sum()) / total if total else 0.0
