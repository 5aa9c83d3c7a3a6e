"""The ends of the differentiable path through a graph: where the signal starts, and where gradients start.

The signal path is made of the float tensors that carry a gradient from the trunk output back to the inputs. `SignalPath` finds
its sources (inputs and embeddings) and its trunk outputs (the tensors before a final softmax, sigmoid or loss).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property

from gradlint.graph import Graph, Node, Ref
from gradlint.ops import OPERATORS, UNKNOWN, Kind, operator

_TRANSPARENT = frozenset({Kind.SHAPE, Kind.DROPOUT})
_LAYERS = frozenset({Kind.LINEAR, Kind.CONV, Kind.RNN, Kind.ATTENTION})


def kind_of(node: Node) -> Kind:
    """Return the kind of a node's operator."""
    return OPERATORS.get(node.op, UNKNOWN).kind


def is_weight_layer(node: Node) -> bool:
    """Return whether a node is a linear, convolution, recurrent or attention operator that has weights."""
    return bool(node.weights) and OPERATORS.get(node.op, UNKNOWN).kind in _LAYERS


def passes_gradient(node: Node) -> bool:
    """Return whether a gradient can pass a node, as far as its operator, its type and its region tell."""
    return node.is_float and not operator(node.op).cuts and "no-grad" not in node.notes


def leading_to(graph: Graph, ends: Iterable[Ref], *, passing: bool = False) -> set[str]:
    """Return the nodes that some tensors depend on; if `passing`, those that a gradient can reach, as far as operators tell."""
    useful = {ref.node for ref in ends}
    for node in reversed(list(graph)):
        if node.id in useful and (passes_gradient(node) or not passing):
            useful.update(parent.id for parent in graph.parents(node.id))
    return useful


def first_cut(graph: Graph, node: Node) -> Node | None:
    """Return the first operator that depends on a node, or the node itself, and passes no gradient."""
    return next((item for item in (node, *graph.descendants(node.id)) if not passes_gradient(item)), None)


class SignalPath:
    """Sources and trunk outputs of a graph.

    Args:
        graph: The graph.
        live: Ids of the nodes that ran and whose output carried a gradient. None if every node counts.
    """

    def __init__(self, graph: Graph, *, live: Collection[str] | None = None) -> None:
        self.graph = graph
        self._live = None if live is None else frozenset(live)

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Ids of the nodes at which the differentiable signal starts: float inputs and embeddings.

        A graph without these starts at float nodes that have no float parent, such as casts from integers. They do not count
        otherwise, because a mask is cast from integers too and bypasses every layer.
        """
        floats = [node.id for node in self.graph if self._starts(node)]
        if floats:
            return tuple(floats)
        return tuple(
            node.id
            for node in self.graph
            if node.is_float and self._alive(node.id) and node.op != "input" and node.inputs and not self.float_parents(node)
        )

    @cached_property
    def trunk(self) -> tuple[Ref, ...]:
        """The tensors that gradients start from: the outputs of the model, or the input of a final softmax, sigmoid or loss.

        An output that carries no gradient (an argmax, a mask) is replaced by the last tensors before it that do. A head whose
        weight is all zeros is replaced by its input: it trains from the second step on, but hides every layer before it until
        then.
        """
        found: dict[Ref, None] = {}
        for ref in self.graph.outputs:
            for start in self._differentiable(ref):
                found.update((self._before_zero_head(end), None) for end in self._before_final(start))
        real = [ref for ref in found if self._skip_transparent(ref.node) not in self.sources]  # an output that is an input
        return tuple(real or found)

    def carries(self, node: Node) -> bool:
        """Return whether a gradient can pass from the output of a node to its inputs."""
        return passes_gradient(node) and self._alive(node.id)

    def float_parents(self, node: Node) -> list[Node]:
        """Return the parents of a node that ran and have a float output."""
        return [parent for parent in self.graph.parents(node.id) if parent.is_float and self._alive(parent.id)]

    def _alive(self, node_id: str) -> bool:
        return self._live is None or node_id in self._live

    def _starts(self, node: Node) -> bool:
        if not node.is_float or not self._alive(node.id):
            return False
        if node.op == "input":
            return True
        return kind_of(node) is Kind.EMBEDDING and not self.float_parents(node)

    def _differentiable(self, ref: Ref) -> Iterable[Ref]:
        """Return the last differentiable tensors on the paths to an output, in execution order."""
        node = self.graph[ref.node]
        if self.carries(node):
            return [ref]
        stack, seen, found = [ref.node], {ref.node}, []
        while stack:
            for parent_ref in self.graph[stack.pop()].inputs:
                if parent_ref is None or parent_ref.node in seen:
                    continue
                seen.add(parent_ref.node)
                if self.carries(self.graph[parent_ref.node]) and self.graph[parent_ref.node].op != "input":
                    found.append(parent_ref)
                else:
                    stack.append(parent_ref.node)
        return sorted(found, key=lambda item: self.graph.position[item.node])

    def _before_final(self, ref: Ref) -> list[Ref]:
        """Return the operands of the final softmax, sigmoid or loss that lead to a tensor, or [`ref`] if there is none.

        The search goes back through operators that only move, select or join results.
        """
        stack, seen, found, final = [ref], set[Ref](), list[Ref](), False
        while stack:
            at = stack.pop()
            if at in seen:
                continue
            seen.add(at)
            node, parents = self.graph[at.node], self._results(at)
            if parents and (operator(node.op).final or kind_of(node) is Kind.LOSS):
                found.append(parents[0])
                final = True
            elif parents and (kind_of(node) in {Kind.CONCAT, Kind.CONTROL} or (len(parents) == 1 and _selects(node))):
                stack.extend(reversed(parents))
            else:
                found.append(at)
        return found if final else [ref]

    def _results(self, ref: Ref) -> list[Ref]:
        """Return the float tensors that a tensor is made of; for a conditional, the matching output of each branch that ran."""
        node = self.graph[ref.node]
        refs: Iterable[Ref | None] = node.inputs
        if kind_of(node) is Kind.CONTROL and len(node.inputs) % 2:  # a condition, then the outputs of both branches
            count = len(node.inputs) // 2
            refs = (node.inputs[1 + ref.port], node.inputs[1 + count + ref.port]) if ref.port < count else ()
        return [item for item in refs if item is not None and self.graph[item.node].is_float and self._alive(item.node)]

    def _skip_transparent(self, node_id: str) -> str:
        """Return the nearest node upstream that is neither a reshape nor a dropout."""
        while kind_of(self.graph[node_id]) in _TRANSPARENT:
            parents = self.float_parents(self.graph[node_id])
            if len(parents) != 1:
                break
            node_id = parents[0].id
        return node_id

    def _before_zero_head(self, ref: Ref) -> Ref:
        """Return the input of the weight layer, or of the gain, that makes a tensor if its weight is all zeros, else `ref`."""
        at = ref
        while True:
            node = self.graph[at.node]
            parents = [item for item in node.inputs if item is not None and self.graph[item.node].is_float]
            if len(parents) != 1 or parents[0].node in self.sources:
                return ref
            if is_weight_layer(node) or (node.op == "mul" and node.weights):
                weight = node.weights.get("weight", node.weights.get("scale"))
                zero = weight is not None and weight.statistics.finite and weight.statistics.max_abs == 0.0
                return parents[0] if zero else ref
            if kind_of(node) not in _TRANSPARENT and not (node.op == "add" and "bias" in node.weights):
                return ref
            at = parents[0]


def _selects(node: Node) -> bool:
    """Return whether a node moves, selects or averages elements, such as the largest scores."""
    return kind_of(node) in _TRANSPARENT or node.op in {"max", "mean"}
