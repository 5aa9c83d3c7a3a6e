"""Find the operator, of the model or of the loss function, at which a training step stops being finite."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from gradlint.errors import ForwardError, InputError
from gradlint.graph import Graph, Node
from gradlint.measurements.faults import NonFinite
from gradlint.measurements.rehearsal import NonFiniteUpdate
from gradlint.probe.causes import first_nonfinite_backward, first_nonfinite_forward
from gradlint.probe.experiments.loss_observer import HOPS, SQUASHING, LossObserver, Returned
from gradlint.probe.experiments.objective import Objective, as_tree, output_cotangents, raw_gradients
from gradlint.probe.experiments.training import Trainer, batch_of
from gradlint.probe.provenance import Provenance, spoken
from gradlint.probe.recorder import Recorder
from gradlint.structure import Structure


def non_finite_update(trainer: Trainer) -> NonFiniteUpdate | None:
    """Return the first operator of the trainer's last step that is not finite; None if the weights themselves are not finite.

    The step runs again from the same random state, while all operators are observed.
    """
    if not all(bool(torch.isfinite(weight).all()) for weight in trainer.weights):
        return None
    arrays, target = batch_of(trainer.objective, trainer.index)
    with trainer.precision():
        return non_finite_step(trainer.objective, arrays, target, trainer.state, trainer.scale)


def non_finite_step(
    objective: Objective, arrays: Sequence[Any], target: Any, state: Tensor, scale: float = 1.0
) -> NonFiniteUpdate | None:
    """Return the first operator of a step on one batch that is not finite; None if all are.

    Args:
        objective: The model and its loss.
        arrays: The inputs.
        target: The target; None means that of the task.
        state: The random state of torch before the step.
        scale: The factor by which the loss is multiplied.
    """
    torch.set_rng_state(state)
    recorder = Recorder(lambda _: False, lambda _: False)
    try:
        outputs = objective.model.forward(arrays, tap=recorder)
    except ForwardError:  # a model may check its own values
        return None
    graph = objective.model.graph
    found = first_nonfinite_forward(graph, recorder.seen)
    if found is not None:
        return _in_model(graph, found)
    torch.set_rng_state(state)
    returned = objective.model.call(arrays)
    known = Provenance(graph, recorder.seen)
    observer = LossObserver(_returned(known, outputs, returned), returned, objective.task.target if target is None else target)
    loss = None
    with observer, suppress(InputError):  # a loss may raise for values that are not finite or out of its range
        loss = objective.of(returned, target)
    broken = observer.forward(loss)
    if isinstance(broken, str):
        before = known.found([broken]) or known.found([ref.node for ref in graph.outputs])
        return _in_model(graph, before) if before is not None else None
    if broken is not None or loss is None:
        return broken
    pairs = output_cotangents(loss * scale, returned, outputs)
    if observer.backward is not None or not pairs:
        return observer.backward
    tensors, vectors = zip(*pairs, strict=True)
    raw_gradients(tensors, recorder.sources, vectors)
    structure = Structure(graph, live={node for node, seen in recorder.seen.items() if seen.differentiable})
    backward = first_nonfinite_backward(structure, recorder.seen)
    return _in_model(graph, backward, backward=True) if backward is not None else None


def _returned(known: Provenance, outputs: Sequence[Tensor], returned: Any) -> dict[int, Returned]:
    """Describe each tensor that the model returned, by identity, from the equal output of the recorded run."""
    leaves = [leaf for leaf in pytree.tree_leaves(as_tree(returned)) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    refs = known.graph.outputs
    found = {}
    for leaf in leaves:
        pairs = zip(refs, outputs, strict=False)
        same = (ref for ref, out in pairs if leaf.shape == out.shape and torch.allclose(leaf, out, equal_nan=True))
        node = next(same, refs[0]).node
        found[id(leaf)] = Returned(node, known.rank(node), known.mask_at(node))
    return found


def _in_model(graph: Graph, found: NonFinite, *, backward: bool = False) -> NonFiniteUpdate:
    node = graph[found.node]
    line = node.source or node.definition
    return NonFiniteUpdate(
        found.node,
        spoken(node),
        found.kind,
        found.operands,
        str(line) if line else "",
        backward=backward,
        squashed=_squashed(graph, node),
        fault=found.fault,
        becomes=found.becomes,
        mask=found.mask,
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
