"""Measure whether the means of training fit the model: what optimizers hold, how low the loss comes, which weights stand bare."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from gradlint.errors import GradlintError
from gradlint.graph import Graph
from gradlint.measurements.means import Bare, Floor, Held
from gradlint.ops import Kind, operator
from gradlint.probe.experiments.constant import is_float
from gradlint.probe.experiments.domains import bare_weights
from gradlint.probe.experiments.objective import copy_target, raw_gradients
from gradlint.probe.experiments.setting import Setting
from gradlint.signal_path import is_weight_layer, kind_of

GAPS = (1.0, 3.0, 50.0)  # logits: with smoothed labels the best ones are small, and with 50 a prediction is certain
_RAW = frozenset(
    {Kind.ADD, Kind.MUL, Kind.MATH, Kind.SOFTMAX, Kind.ACTIVATION, Kind.UNKNOWN}
)  # kinds that may take a bare weight


def held(setting: Setting) -> Mapping[str, Any]:
    """Return the field `held` of `Measurement`, if the user gave optimizers. The model does not run."""
    recipe = setting.task.recipe
    if recipe is None or not recipe.own or setting.task.copied:
        return {}
    names = {id(weight): name for name, weight in setting.model.parameters().items()}
    decay: dict[str, float] = {}
    found, foreign = set(), 0
    for group in (group for optimizer in recipe.own for group in optimizer.param_groups):
        for weight in group["params"]:
            name = names.get(id(weight))
            if name is None:
                foreign += bool(weight.requires_grad)
                continue
            found.add(name)
            if isinstance(rate := group.get("weight_decay"), (int, float)) and rate > 0.0:
                decay[name] = float(rate)
    missing = tuple(name for name in names.values() if name not in found)
    return {"held": Held(len(found), missing, foreign, decay)}


def floor(setting: Setting) -> Mapping[str, Any]:
    """Return the field `floor` of `Measurement`, for one output and a target of classes, or of zeros and ones.

    The cost is that of one forward pass and a few calls of the loss.
    """
    if setting.task.loss is None or not setting.objective.parameters:
        return {}
    objective = setting.objective
    goals = [leaf for leaf in pytree.tree_leaves(objective.task.target) if isinstance(leaf, Tensor)]
    if len(goals) != 1 or not goals[0].numel():
        return {}
    with torch.no_grad():
        output = objective.model.call(objective.batch())
    leaves = [leaf for leaf in pytree.tree_leaves(output) if is_float(leaf)]
    right = _right(leaves[0], goals[0]) if len(leaves) == 1 else None
    if right is None:
        return {}

    def of(prediction: Tensor) -> float | None:
        tree = pytree.tree_map(lambda leaf: prediction if leaf is leaves[0] else leaf, output)
        with torch.no_grad(), suppress(GradlintError, Exception):
            value = float(objective.task.loss(tree, copy_target(objective.task.target)))  # type: ignore[misc]
            return value if math.isfinite(value) else None
        return None

    logits = [value for gap in GAPS if (value := of(gap * (2.0 * right - 1.0))) is not None]
    ends = setting.graph.outputs
    last = {operator(setting.graph[ref.node].op).name for ref in ends if operator(setting.graph[ref.node].op).final}
    bounded = bool(last) or float(leaves[0].detach().max()) <= 0.0
    deep = len(logits) == len(GAPS) and logits[0] < 0.0 and math.isclose(logits[2], logits[0] * GAPS[2], rel_tol=1e-3)
    certain = of(right) if last and not any(name.startswith("log") for name in last) else None
    return {"floor": Floor(certain, min(logits, default=None), bottomless=deep, bounded=bounded)}


def _right(output: Tensor, goal: Tensor) -> Tensor | None:
    """Return the certain probabilities of a target, of the shape of the output; None if it is no target of a classifier."""
    if goal.is_floating_point() or goal.dtype is torch.bool:
        fits = goal.numel() == output.numel() and bool(((goal == 0) | (goal == 1)).all())
        return goal.to(output).reshape(output.shape) if fits and bool(goal.any()) else None
    if goal.is_complex() or output.ndim < 2:
        return None
    classes = {1: output.shape[:1] + output.shape[2:], output.ndim - 1: output.shape[:-1]}
    axis = next((axis for axis, rest in classes.items() if goal.shape == rest), None)
    if axis is None:
        return None
    if int(goal.min()) < 0 or int(goal.max()) >= output.shape[axis]:
        return None
    return functional.one_hot(goal.long(), output.shape[axis]).movedim(-1, axis).to(output)


def bare(setting: Setting) -> Mapping[str, Any]:
    """Return the field `bare` of `Measurement`. The cost is that of one forward and one backward pass, where a weight may be."""
    names = set(_raw(setting.graph))
    if setting.found.nonfinite_forward is not None or not names & setting.objective.parameters.keys():
        return {}
    objective = setting.objective
    state = torch.get_rng_state()
    functions = bare_weights(objective)
    torch.set_rng_state(state)
    if not functions:
        return {}
    weights = [objective.parameters[name] for name in functions]
    slopes = raw_gradients(objective(), weights) if setting.task.loss is not None else [None] * len(weights)
    return {"bare": tuple(_described(*item) for item in zip(functions.items(), weights, slopes, strict=True))}


def _described(named: tuple[str, str], weight: Tensor, slope: Tensor | None) -> Bare:
    largest = float(slope.detach().abs().max()) if slope is not None and slope.numel() and not slope.is_sparse else None
    return Bare(*named, float(weight.detach().abs().min()) if weight.numel() else math.inf, largest)


def _raw(graph: Graph) -> Iterator[str]:
    """Yield the names of weights that operators other than layers and norms take."""
    for node in graph:
        if not is_weight_layer(node) and kind_of(node) in _RAW:
            yield from (weight.name for weight in node.weights.values() if weight.trainable)
