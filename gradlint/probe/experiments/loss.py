"""Measure the given batch, and the loss on it before any update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils import _pytree as pytree

from gradlint.errors import GradlintError
from gradlint.measurements import is_surrogate
from gradlint.measurements.loss import InputFacts, LossFacts
from gradlint.ops import activation, operator
from gradlint.probe.experiments.constant import best_constant, is_float
from gradlint.probe.experiments.non_finite import non_finite_step
from gradlint.probe.experiments.objective import Objective, copy_target, raw_gradients
from gradlint.probe.experiments.setting import Setting
from gradlint.probe.experiments.training import norm_of

_LABEL_INPUTS = frozenset({"labels", "label", "targets", "target"})  # inputs from which a model computes its own loss
SURE = 50.0  # a logit with which a prediction is certain: float32 rounds 1 - sigmoid(17) to zero


def inputs(setting: Setting) -> Mapping[str, Any]:
    """Return the field `inputs` of `Measurement`: statistics of every float input that was given. The model does not run."""
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
    """Return the decades between the largest column and the median nonzero column of a matrix, and the index of the largest.

    The size of a column is its root mean square. None if the values are no matrix, or not finite.
    """
    if values.ndim != 2 or min(values.shape) < 2 or not np.isfinite(values).all():
        return None, None
    levels = np.sqrt(np.square(values.astype(np.float64)).mean(0))
    if not levels.any():
        return None, None
    largest = int(levels.argmax())
    return float(np.log10(levels[largest] / np.median(levels[levels > 0.0]))), largest


def loss(setting: Setting) -> Mapping[str, Any]:
    """Return the field `loss` of `Measurement`, if a loss was given, or labels from which the model computes its own loss.

    The cost is that of one forward and one backward pass, and of one more of each if these are not finite.
    """
    names = {spec.name for spec in setting.model.inputs if spec.given}
    if not setting.objective.parameters or (setting.task.loss is None and names.isdisjoint(_LABEL_INPUTS)):
        return {}
    setting.progress("taking the gradient of the loss")
    objective, state = setting.objective, torch.get_rng_state()
    output = objective.model.call(objective.batch())
    value = objective.of(output)
    if setting.task.loss is None and is_surrogate(objective.stands_in):
        return {}
    norms = {
        name: norm_of(gradient)
        for name, gradient in zip(objective.parameters, raw_gradients(value, [*objective.parameters.values()]), strict=True)
    }
    facts = (
        _loss_facts(objective, output, float(value.detach()))
        if setting.task.loss is not None
        else _own_loss_facts(setting, output)
    )
    total = math.sqrt(sum(norm * norm for norm in norms.values()))
    first = float(value.detach())
    broken = setting.found.nonfinite_forward is None and not math.isfinite(first + total)
    breach = non_finite_step(objective, objective.batch(), None, state) if broken else None
    return {"loss": LossFacts(first, total, norms, breach=breach, **facts)}


def _loss_facts(objective: Objective, output: Any, value: float) -> dict[str, Any]:
    """Evaluate the user's loss on modified outputs, and return the fields of `LossFacts` that this tells.

    A field is left out if the loss does not accept the modified output.
    """
    target = objective.task.target
    fixed = pytree.tree_map_only(Tensor, lambda leaf: leaf.detach(), output)
    leaves = [leaf for leaf in pytree.tree_leaves(fixed) if is_float(leaf)]
    asked = pytree.tree_leaves(target)
    goals = [goal for goal in map(_tensor, asked) if goal is not None]
    facts: dict[str, Any] = {"terms": max((goal.numel() for goal in goals), default=None)}
    if not leaves:
        return facts
    facts["output"] = _rms(leaves[0])
    same = [goal for goal in goals if goal.is_floating_point() and goal.numel() == leaves[0].numel()]
    facts["target"] = _rms(same[0]) if same else None
    neutral = _try_loss(objective, pytree.tree_map(_uninformative(objective), fixed), target)
    terms = facts["terms"] or 1
    facts["neutral"] = neutral if neutral is not None and _is_neutral(neutral, leaves[0], same, terms) else None
    assert objective.task.loss is not None
    facts["chance"] = best_constant(objective.task.loss, fixed, target, last=_last_operator(objective))
    facts["from_zero"] = facts["neutral"] is not None or _is_distance(objective, fixed, goals, value)
    batch = leaves[0].shape[0] if leaves[0].ndim else 0
    if batch and all(goal.ndim and goal.shape[0] == batch for goal in goals):
        facts["batch"] = batch
        twice = _try_loss(objective, pytree.tree_map(_doubled, fixed), pytree.tree_map(_doubled, target))
        facts["repeated"] = twice / value if twice is not None and value and math.isfinite(value) else None
    return facts


def _is_neutral(loss: float, output: Tensor, same: Sequence[Tensor], terms: int) -> bool:
    """Return whether the loss of an uninformative output is that of a known loss function.

    It is log C for the cross-entropy of C classes, log 2 for that of a sigmoid, and the mean square or the mean absolute value
    of the target for a distance; each as a mean or as a sum. Other losses (contrastive, adversarial) have no known value.
    """
    sizes = {output.shape[-1], output.shape[1] if output.ndim > 1 else 2, 2} if output.ndim else {2}
    known = [math.log(size) for size in sizes if size > 1]
    for goal in same:
        square = float(goal.double().square().mean())
        known += [square, square / 2.0, math.sqrt(square), float(goal.double().abs().mean())]
    return any(math.isclose(loss, value * many, rel_tol=1e-3) for value in known for many in (1, terms))


def _own_loss_facts(setting: Setting, output: Any) -> dict[str, Any]:
    """Return the fields of `LossFacts` for a classifier of the transformers library: chance is log C for labels below C."""
    logits = getattr(output, "logits", None)
    labels = [spec for spec in setting.model.inputs if spec.name in _LABEL_INPUTS and spec.value is not None]
    if not isinstance(logits, Tensor) or logits.ndim < 2 or len(labels) != 1 or labels[0].dtype != "int64":
        return {}
    classes = logits.shape[-1]
    fits = classes > 1 and int(np.max(labels[0].value, initial=0)) < classes
    if not fits:
        return {}
    equal = math.log(classes)
    return {"chance": equal, "neutral": equal, "output": _rms(logits.detach()), "batch": logits.shape[0]}


def _uninformative(objective: Objective) -> Callable[[Any], Any]:
    """Return a function that replaces an output by an uninformative one: equal probabilities after a softmax, else zeros."""
    last = _last_operator(objective)

    def replace(leaf: Any) -> Any:
        if not is_float(leaf):
            return leaf
        level = _at_zero_logits(last, leaf.shape[-1] if leaf.ndim else 1) if last else 0.0
        return torch.full_like(leaf, level)

    return replace


def _last_operator(objective: Objective) -> str:
    """Return the final operator, such as a softmax, that all outputs of the model which have one share; "" if none does."""
    graph = objective.model.graph
    last = {node.op for ref in graph.outputs if operator((node := graph[ref.node]).op).final}
    return next(iter(last)) if len(last) == 1 else ""


def _is_distance(objective: Objective, output: Any, goals: Sequence[Tensor], value: float) -> bool:
    """Return whether the loss is zero where the output is the target, or gives it great logits."""
    for perfect in _perfect(output, goals):
        least = _try_loss(objective, perfect, objective.task.target)
        if least is not None and abs(least) <= 1e-6 * abs(value):
            return True
    return False


def _perfect(output: Any, goals: Sequence[Tensor]) -> Iterator[Any]:
    """Yield outputs that predict the one target: itself, its sign as a logit, and logits of its classes."""
    if len(goals) != 1:
        return
    goal = goals[0]
    for level in (goal, SURE * (2.0 * goal.double() - 1.0)):
        yield pytree.tree_map(lambda leaf, given=level: given.to(leaf).reshape(leaf.shape) if _fits(leaf, goal) else leaf, output)
    if not goal.is_floating_point() and int(goal.min()) >= 0:
        classes = int(goal.max()) + 1

        def logits(leaf: Any) -> Any:
            if not is_float(leaf) or leaf.ndim < 2 or leaf.shape[-1] < classes or leaf[..., 0].numel() != goal.numel():
                return leaf
            chosen = functional.one_hot(goal.long(), leaf.shape[-1]).to(leaf).reshape(leaf.shape)
            return SURE * (2.0 * chosen - 1.0)

        yield pytree.tree_map(logits, output)


def _fits(leaf: Any, goal: Tensor) -> bool:
    return is_float(leaf) and leaf.numel() == goal.numel()


def _at_zero_logits(op: str, classes: int) -> float:
    """Return the output of a model's last operator for logits that are all zero."""
    function = activation(op, {})
    if function is not None:
        return float(function(np.zeros(1))[0])
    return -math.log(classes) if op == "log_softmax" else 1.0 / classes


def _try_loss(objective: Objective, output: Any, target: Any) -> float | None:
    """Return the loss of a modified output; None if the loss raises or is not finite."""
    assert objective.task.loss is not None
    with torch.no_grad(), suppress(GradlintError, Exception):
        value = float(objective.task.loss(output, copy_target(target)))
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
