"""Which states of a recurrence the rest of a model reads: that decides what a gradient that fades along time costs.

Where the last state alone is read, far steps are reached through the recurrence and in no other way. Where the model puts out a
result for every step, a task of near steps can be learned without them. Where all states are pooled (a mean, attention), the
gradient of every step enters directly.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum

from gradlint.graph import Node
from gradlint.ops import Kind
from gradlint.signal_path import kind_of
from gradlint.structure import Structure


class Readout(StrEnum):
    """Which states are read."""

    LAST = "last"
    EVERY = "every"
    POOLED = "pooled"


def readout(structure: Structure, nodes: Sequence[str], steps: int | None = None) -> Readout:
    """Return which states of the recurrence of `nodes` are read: one fused operator, or an application for each step."""
    if _last_of_loop(structure, nodes) if len(nodes) > 1 else _last_of_operator(structure, structure.graph[nodes[0]]):
        return Readout.LAST
    return Readout.EVERY if _results_by_step(structure, nodes, steps) else Readout.POOLED


def _last_of_loop(structure: Structure, nodes: Sequence[str]) -> bool:
    """Return whether nothing older than the last two steps is read behind the last application, or given out."""
    graph, position = structure.graph, structure.graph.position
    given = {ref.node for ref in graph.outputs}
    old, last = position[nodes[-2]], position[nodes[-1]]
    for node in (graph[nodes[0]], *graph.descendants(nodes[0])):
        if position[node.id] >= old:
            break
        late = (child for child in graph.children(node.id) if position[child.id] >= last)
        if node.id in given or any(child.id in structure.signal_set for child in late):
            return False
    return True


def _last_of_operator(structure: Structure, start: Node) -> bool:
    """Return whether the output sequence of a fused operator is read only through a slice that picks one step."""
    graph = structure.graph
    given = {ref.node for ref in graph.outputs if ref.port == 0 or ref.node != start.id}
    queue = [start.id]
    for node_id in queue:
        if node_id in given:
            return False
        for child in graph.children(node_id):
            ports = {ref.port for ref in child.inputs if ref is not None and ref.node == node_id}
            if child.id not in structure.signal_set or (node_id == start.id and 0 not in ports):
                continue
            picked = child.op == "slice" and len(child.shape or ()) < len(graph[node_id].shape or ())
            if not picked and kind_of(child) is not Kind.SHAPE:
                return False
            if not picked:
                queue.append(child.id)
    return start.id in structure.signal_set


def _results_by_step(structure: Structure, nodes: Sequence[str], steps: int | None) -> bool:
    """Return whether the model gives out something for every step: an axis of that size, or so many tensors."""
    graph = structure.graph
    first = graph[nodes[0]]
    if len(nodes) > 1:
        lengths = {len(nodes), len(nodes) + 1}  # the first step may apply the weight to a constant
        batch = 1
    else:
        axis = int(first.attrs.get("time_axis", 0))
        shape = first.shape or ()
        known = steps if steps is not None else shape[axis] if axis < len(shape) else None
        if known is None:
            return True
        lengths, batch = {known}, next((size or 1 for place, size in enumerate(shape[:2]) if place != axis), 1)
    shapes = [graph[ref.node].shape if ref.port == 0 else None for ref in structure.trunk]
    if len(shapes) >= min(lengths):
        return True
    return any(shape is None or not lengths.isdisjoint((*shape, *(size // batch for size in shape if size))) for shape in shapes)
