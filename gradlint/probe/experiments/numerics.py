"""Numeric ranges in training: where the loss may become singular, and what few-bit formats can represent of a step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from gradlint.errors import ForwardError
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.graph import Graph, Node
from gradlint.masks import Masks
from gradlint.measurements.numbers import Headroom, Levels, Suspect
from gradlint.probe.experiments.objective import copy_target, output_cotangents, raw_gradients
from gradlint.probe.experiments.setting import Setting
from gradlint.probe.recorder import Recorder, Seen, real
from gradlint.ranges.intervals import REALS
from gradlint.ranges.propagation import ranges_of
from gradlint.ranges.singularities import Singularity, singularities

_FORMATS = {  # largest activation, largest and smallest gradient (OCP 8-bit floating point, IEEE 754)
    "fp16": (65504.0, 65504.0, 2.0**-24),
    "fp8": (448.0, 57344.0, 2.0**-16),  # e4m3 forward, e5m2 backward
}
_MASK = 1e30  # larger values are masks that stand for infinity, not signal
_SAMPLE = 1 << 14  # the most elements of a tensor whose exponents are counted
_LOWEST, _HIGHEST = -1100, 1100  # the range of binary exponents of float64
_LARGEST = 100  # the largest binary exponent of a loss scale, so that float32 can hold the scaled loss


def suspects(setting: Setting) -> Mapping[str, Any]:
    """Return the field `suspects` of `Measurement`: operators of the user's loss whose argument may reach a singularity."""
    task, found = setting.task, setting.found
    if task.loss is None or found.nonfinite_forward is not None:
        return {}
    setting.progress("looking at the loss")
    torch.manual_seed(setting.seed)
    module = _LossModule(task.loss, task.target, setting.model.call(setting.objective.batch()))
    if not module.fed:  # no output requires grad
        return {}
    loss = TorchRunnable(module, args=tuple(module.fed))
    recorder = Recorder(lambda _: False, lambda _: False, observers=())
    with loss.untouched():
        loss.forward([spec.draw(np.random.default_rng(0)) for spec in loss.inputs], tap=recorder)
    ranges, outputs = ranges_of(setting.graph), setting.graph.outputs
    known = [ranges[ref.node] for ref in outputs] if len(outputs) == len(module.fed) else [REALS] * len(module.fed)
    items = singularities(loss.graph, dict(zip(loss.graph.inputs, known, strict=True)))
    shown = ((_suspect(item, recorder.seen.get(item.operand), loss.graph[item.node]), item.expected) for item in items)
    return {"suspects": tuple(item for item, expected in shown if expected or item.hit)}


class _LossModule(nn.Module):
    """A loss as a module whose inputs are the differentiable tensors that the model returned. `fed` are their values."""

    def __init__(self, loss: Callable[[Any, Any], Any], target: Any, returned: Any) -> None:
        super().__init__()
        leaves, self._structure = pytree.tree_flatten(returned)
        self._places = [index for index, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.requires_grad]
        self._leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        self._loss, self._target = loss, target
        self.fed = [self._leaves[place] for place in self._places]

    def forward(self, *tensors: Tensor) -> Any:
        leaves = list(self._leaves)
        for place, tensor in zip(self._places, tensors, strict=True):
            leaves[place] = tensor
        return self._loss(pytree.tree_unflatten(leaves, self._structure), copy_target(self._target))


def _suspect(item: Singularity, seen: Seen | None, node: Node) -> Suspect:
    low, high = (seen.low, seen.high) if seen is not None else (math.nan, math.nan)
    return Suspect(
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
        nearness=item.nearness(low, high),
    )


def headroom(setting: Setting) -> Mapping[str, Any]:
    """Return the field `headroom` of `Measurement`, if the recipe or the model's weights have a format with few bits.

    The cost is that of two forward passes and one backward pass. The weights do not change.
    """
    recipe, objective = setting.task.recipe, setting.objective
    precision = recipe.precision if recipe is not None else "fp32"
    if precision == "fp32" and any(weight.dtype is torch.float16 for weight in objective.parameters.values()):
        precision = "fp16"
    if precision not in _FORMATS or not objective.parameters or setting.found.nonfinite_forward is not None:
        return {}
    setting.progress(f"measuring the headroom of {precision}")
    tap = _Magnitudes(setting.graph)
    gradients = _step(setting, tap)
    scale = recipe.loss_scale if recipe is not None else None
    return {"headroom": _headroom(precision, scale, tap, gradients, objective.stands_in)}


class _Magnitudes:
    """A tap that records the largest absolute activation of every node, and a histogram of the exponents of its gradients.

    Masks of logits are left out: what makes them, and the negative values of logits that they may have ruled out.
    """

    def __init__(self, graph: Graph) -> None:
        self._masks = Masks(graph)
        self.sources: list[Tensor] = []
        self.activations: dict[str, float] = {}
        self.gradients: dict[str, ExponentHistogram] = {}

    def __call__(self, node: str, outputs: Sequence[Any], inputs: Sequence[Any]) -> None:
        """Record the outputs of a node; see `frontends.base.Tap`."""
        fed = any(isinstance(tensor, Tensor) and tensor.requires_grad for tensor in inputs)
        for tensor in outputs:
            if not isinstance(tensor, Tensor) or not tensor.is_floating_point() or not tensor.numel():
                continue
            if node in self._masks.made:
                continue
            sizes = tensor.detach().clamp_min(0.0) if node in self._masks.masked else tensor.detach().abs()
            largest = float(sizes.max())
            if largest >= _MASK:
                largest = float(torch.where(sizes < _MASK, sizes, 0.0).max())
            self.activations[node] = max(self.activations.get(node, 0.0), largest)
            if tensor.requires_grad:
                if not fed:
                    self.sources.append(tensor)
                tensor.register_hook(self._hook(node))  # type: ignore[no-untyped-call]

    def restart(self) -> None:
        """Discard everything recorded; see `frontends.base.Restartable`."""
        for record in (self.sources, self.activations, self.gradients):
            record.clear()

    def _hook(self, node: str) -> Any:
        def add(gradient: Tensor | None) -> None:
            if gradient is not None:
                self.gradients[node] = exponent_histogram(gradient).merged(self.gradients.get(node))

        return add


@dataclass(frozen=True)
class ExponentHistogram:
    """The binary exponents of the elements of a tensor.

    `largest` is the largest absolute value. `counts` is the number of nonzero elements with each exponent, from `_LOWEST` on.
    """

    largest: float
    counts: NDArray[np.int64]

    def merged(self, other: ExponentHistogram | None) -> ExponentHistogram:
        """Return the histogram of both tensors together."""
        return self if other is None else ExponentHistogram(max(self.largest, other.largest), self.counts + other.counts)

    def lost(self, smallest: float, scale: float) -> float:
        """Return the share of nonzero elements that round to zero.

        The elements are multiplied by `scale` and rounded to a format whose smallest positive number is `smallest`.
        """
        total = int(self.counts.sum())
        limit = math.ceil(math.log2(smallest / 2.0 / scale))  # values up to half of the smallest number round to zero
        return float(self.counts[: max(limit - _LOWEST, 0)].sum()) / total if total else 0.0


def exponent_histogram(tensor: Tensor) -> ExponentHistogram:
    """Return the histogram of a tensor's exponents. For a large tensor, it is that of a sample, scaled to all elements."""
    values = real(tensor.detach()).reshape(-1)
    step = max(values.numel() // _SAMPLE, 1)
    sample = values[::step]
    sample = sample[torch.isfinite(sample) & (sample != 0)].double()
    found = torch.frexp(sample).exponent.long() - 1 - _LOWEST
    counts: NDArray[np.int64] = torch.bincount(found, minlength=_HIGHEST - _LOWEST).cpu().numpy() * step
    low, high = torch.aminmax(values) if values.numel() else (0.0, 0.0)
    return ExponentHistogram(max(-float(low), float(high)), counts)


def _step(setting: Setting, tap: _Magnitudes) -> Mapping[str, ExponentHistogram]:
    """Run a forward and a backward pass with the tap; return the histogram of the gradient of each weight.

    The loss is computed in a plain run with the same random state. Raises ForwardError if the two runs have different outputs.
    """
    model, objective = setting.model, setting.objective
    arrays = objective.batch()
    torch.manual_seed(setting.seed)
    returned = model.call(arrays)
    loss = objective.of(returned)
    torch.manual_seed(setting.seed)
    outputs = model.forward(arrays, tap=tap)
    pairs = output_cotangents(loss, returned, outputs)
    if not pairs:
        raise ForwardError("the loss does not depend on an output that is the same in two runs")
    tensors, vectors = zip(*pairs, strict=True)
    weights = objective.parameters
    found = raw_gradients(tensors, [*tap.sources, *weights.values()], vectors)
    pulled = zip(weights, found[len(tap.sources) :], strict=True)
    return {name: exponent_histogram(gradient) for name, gradient in pulled if gradient is not None}


def _headroom(
    precision: str, scale: float | None, tap: _Magnitudes, weights: Mapping[str, ExponentHistogram], stands_in: str
) -> Headroom:
    forward, backward, smallest = _FORMATS[precision]
    everything = [*tap.gradients.values(), *weights.values()]
    top = max((found.largest for found in everything), default=0.0)
    best = 2.0 ** min(math.floor(math.log2(backward) - math.log2(top)), _LARGEST) if 0.0 < top < math.inf else 1.0

    def levels(activation: float | None, found: ExponentHistogram | None) -> Levels:
        if found is None:
            return Levels(activation, None, 0.0, 0.0)
        return Levels(activation, found.largest, found.lost(smallest, scale or 1.0), found.lost(smallest, best))

    together = ExponentHistogram(0.0, np.zeros(_HIGHEST - _LOWEST, np.int64))
    for found in weights.values():
        together = found.merged(together)
    return Headroom(
        precision=precision,
        forward=forward,
        backward=backward,
        loss_scale=scale,
        best_scale=best,
        nodes={node: levels(largest, tap.gradients.get(node)) for node, largest in tap.activations.items()},
        weights={name: levels(None, found) for name, found in weights.items()},
        lost=together.lost(smallest, scale or 1.0),
        saved=together.lost(smallest, best),
        stands_in=stands_in,
    )
