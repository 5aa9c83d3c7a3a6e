"""Find the operator because of which a gradient is missing, zero, or not finite."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from gradlint.graph import Graph, Node
from gradlint.growth import UNDERFLOW
from gradlint.measurements.faults import NonFinite
from gradlint.measurements.units import ONE_POSITION, Cut, ZeroGradient
from gradlint.ops import Kind, operator
from gradlint.probe.provenance import Provenance
from gradlint.probe.recorder import Seen
from gradlint.signal_path import is_weight_layer, kind_of, passes_gradient
from gradlint.structure import Structure

_SINGULAR = frozenset({"sqrt", "rsqrt", "log", "pow", "div", "reciprocal", "sum", "l2_normalize", "var", "tan", "abs", "exp"})


def first_nonfinite_forward(graph: Graph, seen: Mapping[str, Seen]) -> NonFinite | None:
    """Return the operator that makes an output of the model not finite; None if all outputs are finite or masked.

    An attention mask of -inf does not count, because the softmax after it is finite. Nor does an output that is -inf only in
    some places, which is a mask too.
    """
    known = Provenance(graph, seen)
    return known.found([ref.node for ref in graph.outputs if ref.node in seen and _broken(seen[ref.node])])


def _broken(seen: Seen) -> bool:
    """Return whether an output is not finite. Values of -inf count as a mask, unless all values are -inf."""
    return seen.kind == "NaN" or (seen.kind == "infinity" and math.isinf(seen.high))


def first_nonfinite_backward(structure: Structure, seen: Mapping[str, Seen]) -> NonFinite | None:
    """Return the operator whose backward pass makes a non-finite gradient of a finite one, if it reaches a weight.

    It need not reach one: the derivative of a ReLU is 0 at inactive units, so that it stops a non-finite gradient there.
    """
    graph = structure.graph
    broken = {node.id for node in graph if node.id in seen and seen[node.id].gradient_kind is not None}
    trained = [node.id for node in graph if node.id in seen and _trains(node)]
    stack = [node for node in trained or structure.signal if node in broken]
    reached = set(stack)
    while stack:
        fresh = {child.id for child in graph.children(stack.pop()) if child.id in broken} - reached
        reached |= fresh
        stack.extend(fresh)
    last = [node for node in reached if not any(child.id in reached for child in graph.children(node))]
    if not last:
        return None
    node = max(last, key=graph.position.__getitem__)
    readers = [child for child in graph.children(node) if child.id in structure.signal_set and child.id in seen]
    readers.sort(key=lambda child: child.op not in _SINGULAR)
    return Provenance(graph, seen).found_backward(readers[0].id if readers else node, seen[node].gradient_kind or "NaN")


def is_dead(structure: Structure, seen: Mapping[str, Seen]) -> bool:
    """Return whether no weight layer can learn, because every layer has a zero gradient or a zero input.

    A layer after the trunk, such as a zero-initialized head, can learn if its input is not zero. A gradient that underflows
    toward the input does not make a model dead, because the layers near the output still learn.
    """
    layers = [node for node in structure.graph if is_weight_layer(node) and node.id in seen and _trains(node)]
    layers = [node for node in layers if seen[node.id].size]  # nothing can be said of an empty batch
    if (
        not layers
        or not structure.trunk
        or any(seen[node.id].gradient and _input_square(structure, node, seen) for node in layers)
    ):
        return False
    behind = {ref.node for ref in structure.trunk}
    heads = [node for node in layers if any(parent.id in behind for parent in structure.graph.parents(node.id))]
    return not any(_input_square(structure, node, seen) for node in heads)


def _trains(node: Node) -> bool:
    return any(weight.trainable for weight in node.weights.values())


def _input_square(structure: Structure, node: Node, seen: Mapping[str, Seen]) -> float:
    """Return the sum of squares of a layer's inputs; 1 if it reads only weights."""
    squares = [seen[parent.id].square for parent in structure.graph.parents(node.id) if parent.id in seen and parent.is_float]
    return sum(squares) if squares else 1.0


def find_cuts(structure: Structure, seen: Mapping[str, Seen]) -> tuple[Cut, ...]:
    """Return the operators that cut trainable weights before them off from every gradient, with these weights."""
    graph = structure.graph
    useful = _leads_to_output(structure, seen)
    layers = [node for node in graph if node.id in useful and node.id in seen and is_weight_layer(node) and _trains(node)]
    learning = {weight.name for node in graph if node.id in seen and seen[node.id].gradient for weight in node.weights.values()}
    culprits = _culprits(graph, seen, useful)
    starved: dict[str, dict[str, None]] = defaultdict(dict)
    for node in layers:
        culprit = node.id if "no-grad" in node.notes else culprits[node.id]
        names = [weight.name for weight in node.weights.values() if weight.trainable and weight.name not in learning]
        if culprit and names and not seen[node.id].gradient:
            starved[culprit].update(dict.fromkeys(names))
    spine = _spine_without_cuts(structure)
    return tuple(
        Cut(culprit, _cause(graph, graph[culprit]), tuple(names), culprit in spine) for culprit, names in starved.items()
    )


def _leads_to_output(structure: Structure, seen: Mapping[str, Seen]) -> set[str]:
    """Return the nodes that the trunk output depends on, also through operators that pass no gradient."""
    useful = {ref.node for ref in structure.trunk}
    for node in reversed(list(structure.graph)):
        if node.id in useful:
            useful.update(parent.id for parent in structure.graph.parents(node.id) if parent.id in seen)
    return useful


def _culprits(graph: Graph, seen: Mapping[str, Seen], useful: set[str]) -> dict[str, str | None]:
    """Map each useful node to the first operator after it that gets a gradient, or that by its nature passes none.

    The value is None if there is no such operator, and "" if the operator is not a fault: a layer whose weights start at zero
    passes gradients from the first update on, and a gradient may have underflowed.
    """
    found: dict[str, str | None] = {}
    # a path without a fault decides, then one that has a gradient for other values
    rank = {"": (False, -1), **{node.id: (not passes_gradient(node), graph.position[node.id]) for node in graph}}
    for node in reversed(list(graph)):
        if node.id in useful:
            ways = [_first_fault(child, seen, found) for child in graph.children(node.id) if child.id in useful]
            found[node.id] = min((way for way in ways if way is not None), key=rank.__getitem__, default=None)
    return found


def _first_fault(node: Node, seen: Mapping[str, Seen], behind: Mapping[str, str | None]) -> str | None:
    """Return the node itself if it is at fault, or the value found after it if no gradient arrives at the node at all."""
    if not passes_gradient(node):
        return node.id
    here = seen.get(node.id)
    if here is None or not here.gradient:
        return behind[node.id]
    return "" if _zero_start(node) or _faded(here) else node.id


def find_zero_gradients(structure: Structure, seen: Mapping[str, Seen]) -> tuple[ZeroGradient, ...]:
    """Return the weights whose gradient is zero by construction, each with the reason, in execution order."""
    graph = structure.graph
    useful = _leads_to_output(structure, seen)
    gates = _gates(graph, seen, useful)
    idle: dict[str, dict[str, None]] = defaultdict(dict)
    for node in graph:
        gate = gates.get(node.id)
        if gate and node.id in seen and not seen[node.id].gradient:
            idle[gate].update((weight.name, None) for weight in node.weights.values() if weight.trainable)
    found = [ZeroGradient(gate, "zero-initialized branch", tuple(names)) for gate, names in idle.items() if names]
    heads = [node for node in graph if node.id in seen and node.id not in useful and is_weight_layer(node) and _zero_start(node)]
    before = [weight.name for node in graph if node.id in useful for weight in node.weights.values() if weight.trainable]
    found += [ZeroGradient(head.id, "zero-initialized head", tuple(dict.fromkeys(before))) for head in heads if before]
    for node in graph:
        bias, children = node.weights.get("bias"), graph.children(node.id)
        if bias is not None and bias.trainable and node.id in useful and len(children) == 1 and _takes_mean(graph, children[0]):
            found.append(ZeroGradient(node.id, "bias before a norm", (bias.name,)))
    return tuple(sorted(found, key=lambda item: graph.position[item.node]))


def _gates(graph: Graph, seen: Mapping[str, Seen], useful: set[str]) -> dict[str, str | None]:
    """Map each node without a gradient to the zero-initialized layer after it that has one; None if a path avoids it."""
    gates: dict[str, str | None] = {}
    for node in reversed(list(graph)):
        if node.id not in useful:
            continue
        ways = [
            child.id if child.id in seen and seen[child.id].gradient and _opens(child) else gates.get(child.id)
            for child in graph.children(node.id)
            if child.id in useful
        ]
        gates[node.id] = ways[0] if ways and all(ways) else None
    return gates


def _opens(node: Node) -> bool:
    """Return whether a node is a layer whose weights are zero at initialization and trainable."""
    return _zero_start(node) and any(weight.trainable for role, weight in node.weights.items() if role in {"weight", "scale"})


def _takes_mean(graph: Graph, node: Node) -> bool:
    """Return whether a norm subtracts the mean of each channel of the current batch, and thereby any bias."""
    batch = node.op == "batch_norm" and bool(node.attrs.get("training", graph.mode == "train"))
    return batch or node.op == "instance_norm"


def _zero_start(node: Node) -> bool:
    weight = node.weights.get("weight") or node.weights.get("scale")
    return weight is not None and weight.statistics.max_abs == 0.0


def _faded(seen: Seen) -> bool:
    return bool(seen.gradient) and (seen.gradient or 0.0) < 10.0 ** (2 * UNDERFLOW)


def _cause(graph: Graph, node: Node) -> str:
    if "no-grad" in node.notes:
        return "no-grad region"
    if operator(node.op).cuts:
        return node.op
    if not node.is_float:
        return "indices"
    if node.op == "softmax" and _normalized_size(node) == 1:
        return ONE_POSITION if _reads_product(graph, node) else "softmax over one position"
    return f"{node.op} with zero gradient" if kind_of(node) is not Kind.ACTIVATION else f"dead {node.op}"


def _reads_product(graph: Graph, node: Node) -> bool:
    """Return whether a node reads products of activations, scaled or masked: its length is that of a sequence, not of a layer."""
    while kind_of(node) in {Kind.SOFTMAX, Kind.ADD, Kind.MUL, Kind.SHAPE, Kind.DROPOUT}:
        parents = [parent for parent in graph.parents(node.id) if parent.is_float]
        if not parents:
            return False
        node = parents[0]
    return kind_of(node) is Kind.MATMUL


def _normalized_size(node: Node) -> int | None:
    """Return the number of values over which a softmax normalizes; None if it is not known."""
    axis, shape = node.attrs.get("dim"), node.shape or ()
    axis = -1 if axis is None else axis
    return shape[axis] if isinstance(axis, int) and -len(shape) <= axis < len(shape) else None


def _spine_without_cuts(structure: Structure) -> set[str]:
    """Return the nodes that every path from input to output passes, as if operators that cut gradients passed them."""
    graph = structure.graph
    open_edges, chain = 0, set()
    useful = {ref.node for ref in structure.trunk}
    for node in reversed(list(graph)):
        if node.id in useful:
            useful.update(parent.id for parent in graph.parents(node.id) if parent.is_float or operator(parent.op).cuts)
    children = {node.id: sum(child.id in useful for child in graph.children(node.id)) for node in graph if node.id in useful}
    for node in graph:
        if node.id not in useful:
            continue
        open_edges -= len({parent.id for parent in graph.parents(node.id) if parent.id in useful})
        if open_edges == 0:
            chain.add(node.id)
        open_edges += children[node.id]
    return chain
