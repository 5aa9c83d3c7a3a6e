"""Find the operator, of the model or of the loss function, at which a training step stops being finite."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from gradlint.errors import ForwardError, InputError
from gradlint.frontends.user_code import calling_line
from gradlint.graph import Graph, Node
from gradlint.measurements.rehearsal import NonFiniteUpdate
from gradlint.probe.causes import first_nonfinite_backward, first_nonfinite_forward
from gradlint.probe.experiments.objective import Objective, output_cotangents, raw_gradients
from gradlint.probe.experiments.training import Trainer, batch_of
from gradlint.probe.recorder import Recorder, square_sum
from gradlint.result import NonFinite
from gradlint.structure import Structure

if TYPE_CHECKING:
    from torch.autograd.graph import Node as GradientNode

_MASKING = frozenset({"get", "set", "setitem", "getitem", "masked_fill", "masked_fill_", "where", "full_like", "fill_"})
"""Functions that write an infinity on purpose, or compute nothing."""

SQUASHING = ("softmax", "sigmoid")
HOPS = 4  # the most operators between a softmax and its logarithm: reshapes, or 1 - p


def non_finite_update(trainer: Trainer) -> NonFiniteUpdate | None:
    """Return the first operator of the trainer's last step that is not finite; None if the weights themselves are not finite.

    The step runs again from the same random state, while all operators are observed.
    """
    if not all(bool(torch.isfinite(weight).all()) for weight in trainer.weights):
        return None
    objective = trainer.objective
    arrays, target = batch_of(objective, trainer.index)
    with trainer.precision():
        torch.set_rng_state(trainer.state)
        try:
            recorder, outputs = _record(objective, arrays)
        except ForwardError:  # a model may check its own values
            return None
        graph = objective.model.graph
        found = first_nonfinite_forward(graph, recorder.seen)
        if found is not None:
            return _in_model(graph, found)
        torch.set_rng_state(trainer.state)
        returned = objective.model.call(arrays)
        observer = _LossObserver()
        with observer:
            try:
                loss = objective.of(returned, target)
            except InputError:  # a loss may raise for values that are not finite or out of its range
                return observer.found
    pairs = output_cotangents(loss * trainer.scale, returned, outputs)
    if observer.found is not None or not pairs:
        return observer.found
    tensors, vectors = zip(*pairs, strict=True)
    raw_gradients(tensors, recorder.sources, vectors)
    structure = Structure(graph, live={node for node, seen in recorder.seen.items() if seen.differentiable})
    backward = first_nonfinite_backward(structure, recorder.seen)
    return _in_model(graph, backward, backward=True) if backward is not None else None


def _record(objective: Objective, arrays: Sequence[Any]) -> tuple[Recorder, Sequence[Tensor]]:
    recorder = Recorder(lambda _: False, lambda _: False)
    return recorder, objective.model.forward(arrays, tap=recorder)


def _in_model(graph: Graph, found: NonFinite, *, backward: bool = False) -> NonFiniteUpdate:
    node = graph[found.node]
    line = node.source or node.definition
    place = str(line) if line else ""
    return NonFiniteUpdate(
        found.node, node.op, found.kind, found.operands, place, backward=backward, squashed=_squashed(graph, node)
    )


def _squashed(graph: Graph, node: Node) -> str:
    """Return "softmax" or "sigmoid" if a node reads the result of one, directly or through few operators; otherwise ""."""
    for _ in range(HOPS):
        before = graph.parents(node.id)
        if len(before) != 1:
            return ""
        node = before[0]
        if node.op in SQUASHING:
            return node.op
    return ""


def _squashed_tensor(tensor: Tensor) -> str:
    """Return the same for a tensor in a loss function, from its autograd graph."""
    grad_fn = tensor.grad_fn
    for _ in range(HOPS):
        if grad_fn is None:
            return ""
        name = grad_fn.name().lower()
        found = next((kind for kind in SQUASHING if name.startswith(kind)), "")
        if found:
            return found
        grad_fn = next((before for before, _ in grad_fn.next_functions if before is not None), None)
    return ""


class _LossObserver(TorchFunctionMode):
    """A function mode that checks every operator of a loss function.

    `found` is the first operator whose value, or whose derivative, is not finite although its operands are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: NonFiniteUpdate | None = None

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        del types
        outcome = function(*args, **(kwargs or {}))
        if self.found is None:
            self._check(function, [leaf for leaf in pytree.tree_leaves((args, kwargs or {})) if _is_float(leaf)], outcome)
        return outcome

    @staticmethod
    def _update(name: str, kind: str, operands: Sequence[Tensor], line: str, *, backward: bool = False) -> NonFiniteUpdate:
        squashed = next(filter(None, map(_squashed_tensor, operands)), "")
        return NonFiniteUpdate("", name, kind, _ranges(operands), line, backward=backward, squashed=squashed)

    def _check(self, function: Callable[..., Any], operands: Sequence[Tensor], outcome: Any) -> None:
        name = str(getattr(function, "__name__", function)).strip("_")
        if name in _MASKING:
            return
        for out in pytree.tree_leaves(outcome):
            if not _is_float(out) or any(out is operand for operand in operands):
                continue
            kind = _kind(out)
            if kind is not None and all(_kind(operand) is None for operand in operands):
                self.found = self._update(name, kind, operands, _line())
            elif kind is None and out.grad_fn is not None:
                self._check_backward(out.grad_fn, name, operands)

    def _check_backward(self, grad_fn: GradientNode, name: str, operands: Sequence[Tensor]) -> None:
        line = _line()

        def check(gradients: Sequence[Tensor | None], arriving: Sequence[Tensor | None]) -> None:
            kinds = [kind for gradient in gradients if gradient is not None and (kind := _kind(gradient)) is not None]
            if self.found is None and kinds and all(part is None or _kind(part) is None for part in arriving):
                self.found = self._update(name, kinds[0], operands, line, backward=True)

        grad_fn.register_hook(check)


def _ranges(tensors: Sequence[Tensor]) -> tuple[tuple[float, float], ...]:
    return tuple(square_sum(tensor.detach())[1:] for tensor in tensors)


def _line() -> str:
    """Return the line of user code that is running."""
    line = calling_line(0)
    return str(line) if line else ""


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _kind(tensor: Tensor) -> str | None:
    """Return "NaN" or "infinity" if a tensor is not finite, otherwise None."""
    _, low, high = square_sum(tensor.detach())
    if math.isnan(low) or math.isnan(high):
        return "NaN"
    return "infinity" if math.isinf(low) or math.isinf(high) else None
