"""The batch that was given, and the loss on it before any update."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils import _pytree as pytree

from gradlint.errors import GradlintError
from gradlint.measurements import is_surrogate
from gradlint.measurements.loss import InputFacts, LossFacts
from gradlint.ops import activation, operator
from gradlint.probe.experiments.objective import Objective, fresh, raw_gradients
from gradlint.probe.experiments.setting import Setting
from gradlint.probe.experiments.training import norm_of

_OWN = frozenset({"labels", "label", "targets", "target"})  # inputs by which models compute a loss of their own


def inputs(setting: Setting) -> Mapping[str, Any]:
    """The field `inputs`: what every float input that was given looks like. Nothing is run."""
    pairs = zip(setting.model.inputs, setting.graph.inputs, strict=False)
    given = [(node, np.asarray(spec.value)) for spec, node in pairs if spec.given and spec.value is not None]
    return {"inputs": tuple(_facts(node, values) for node, values in given if values.dtype.kind == "f" and values.size > 1)}


def _facts(node: str, values: NDArray[Any]) -> InputFacts:
    known = values[np.isfinite(values)].astype(np.float64)
    if not known.size:
        return InputFacts(node, math.nan, math.nan, math.nan, math.nan, math.nan)
    spread, column = _columns(values)
    mean, rms = float(known.mean()), float(np.sqrt(np.square(known).mean()))
    return InputFacts(node, mean, float(known.std()), rms, float(known.min()), float(known.max()), spread, column)


def _columns(values: NDArray[Any]) -> tuple[float | None, int | None]:
    """Decades between the largest column and the median one of those that are not zero, and which it is."""
    if values.ndim != 2 or min(values.shape) < 2 or not np.isfinite(values).all():
        return None, None
    levels = np.sqrt(np.square(values.astype(np.float64)).mean(0))
    if not levels.any():
        return None, None
    largest = int(levels.argmax())
    return float(np.log10(levels[largest] / np.median(levels[levels > 0.0]))), largest


def loss(setting: Setting) -> Mapping[str, Any]:
    """The field `loss`, where a loss was given, or labels from which the model computes its own: one pass and its gradient."""
    names = {spec.name for spec in setting.model.inputs if spec.given}
    if not setting.objective.parameters or (setting.task.loss is None and names.isdisjoint(_OWN)):
        return {}
    setting.progress("taking the gradient of the loss")
    objective = setting.objective
    output = objective.model.call(objective.batch())
    value = objective.of(output)
    if setting.task.loss is None and is_surrogate(objective.stands_in):
        return {}
    norms = {
        name: norm_of(gradient)
        for name, gradient in zip(objective.parameters, raw_gradients(value, [*objective.parameters.values()]), strict=True)
    }
    facts = _reactions(objective, output, float(value.detach())) if setting.task.loss is not None else _own(setting, output)
    total = math.sqrt(sum(norm * norm for norm in norms.values()))
    return {"loss": LossFacts(float(value.detach()), total, norms, **facts)}


def _reactions(objective: Objective, output: Any, value: float) -> dict[str, Any]:
    """What the loss does to other outputs than the model's; what it does not take is left out."""
    target = objective.task.target
    fixed = pytree.tree_map_only(Tensor, lambda leaf: leaf.detach(), output)
    leaves = [leaf for leaf in pytree.tree_leaves(fixed) if _is_float(leaf)]
    asked = pytree.tree_leaves(target)
    goals = [goal for goal in map(_tensor, asked) if goal is not None]
    facts: dict[str, Any] = {"terms": max((goal.numel() for goal in goals), default=None)}
    if not leaves:
        return facts
    facts["output"] = _rms(leaves[0])
    same = [goal for goal in goals if goal.is_floating_point() and goal.numel() == leaves[0].numel()]
    facts["target"] = _rms(same[0]) if same else None
    silence = _asked(objective, pytree.tree_map(_silent(objective), fixed), target)
    terms = facts["terms"] or 1
    facts["chance"] = silence if silence is not None and _is_chance(silence, leaves[0], same, terms) else None
    batch = leaves[0].shape[0] if leaves[0].ndim else 0
    if batch and all(goal.ndim and goal.shape[0] == batch for goal in goals):
        facts["batch"] = batch
        twice = _asked(objective, pytree.tree_map(_doubled, fixed), pytree.tree_map(_doubled, target))
        facts["repeated"] = twice / value if twice is not None and value and math.isfinite(value) else None
    return facts


def _is_chance(silence: float, output: Tensor, same: Sequence[Tensor], terms: int) -> bool:
    """Whether a loss is known to be best left at the value of an output that says nothing, by that value.

    It is log C for the cross-entropy of C classes, log 2 for that of a sigmoid, and the mean square or the mean size of the
    target for a distance, each as mean or as sum. Of other losses (contrastive, adversarial) nothing is known.
    """
    sizes = {output.shape[-1], output.shape[1] if output.ndim > 1 else 2, 2} if output.ndim else {2}
    known = [math.log(size) for size in sizes if size > 1]
    for goal in same:
        square = float(goal.double().square().mean())
        known += [square, square / 2.0, math.sqrt(square), float(goal.double().abs().mean())]
    return any(math.isclose(silence, value * many, rel_tol=1e-3) for value in known for many in (1, terms))


def _own(setting: Setting, output: Any) -> dict[str, Any]:
    """Chance for the loss of a classifier of the transformers library: log C for integer labels below C."""
    logits = getattr(output, "logits", None)
    labels = [spec for spec in setting.model.inputs if spec.name in _OWN and spec.value is not None]
    if not isinstance(logits, Tensor) or logits.ndim < 2 or len(labels) != 1 or labels[0].dtype != "int64":
        return {}
    classes = logits.shape[-1]
    fits = classes > 1 and int(np.max(labels[0].value, initial=0)) < classes
    return {"chance": math.log(classes), "output": _rms(logits.detach()), "batch": logits.shape[0]} if fits else {}


def _silent(objective: Objective) -> Callable[[Any], Any]:
    """A map from outputs to ones that say nothing: equal probabilities where the model ends in a softmax, else zeros."""
    graph = objective.model.graph
    last = {node.op for ref in graph.outputs if operator((node := graph[ref.node]).op).final}

    def silent(leaf: Any) -> Any:
        if not _is_float(leaf):
            return leaf
        level = _undecided(next(iter(last)), leaf.shape[-1] if leaf.ndim else 1) if len(last) == 1 else 0.0
        return torch.full_like(leaf, level)

    return silent


def _undecided(op: str, classes: int) -> float:
    """What the last operator of a model makes of logits that are all zero."""
    function = activation(op, {})
    if function is not None:
        return float(function(np.zeros(1))[0])
    return -math.log(classes) if op == "log_softmax" else 1.0 / classes


def _asked(objective: Objective, output: Any, target: Any) -> float | None:
    """The loss of an output that is not the model's; None where the loss does not take it or returns nothing finite."""
    assert objective.task.loss is not None
    with torch.no_grad(), suppress(GradlintError, Exception):
        value = float(objective.task.loss(output, fresh(target)))
        return value if math.isfinite(value) else None
    return None


def _doubled(leaf: Any) -> Any:
    if isinstance(leaf, Tensor) and leaf.ndim:
        return torch.cat([leaf, leaf])
    return np.concatenate([leaf, leaf]) if isinstance(leaf, np.ndarray) and leaf.ndim else leaf


def _tensor(leaf: Any) -> Tensor | None:
    if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "fiub":
        return torch.from_numpy(np.ascontiguousarray(leaf))
    return leaf if isinstance(leaf, Tensor) else None


def _rms(values: Tensor) -> float:
    return float(values.detach().double().square().mean().sqrt())


def _is_float(leaf: Any) -> bool:
    return isinstance(leaf, Tensor) and leaf.is_floating_point() and leaf.numel() > 0
