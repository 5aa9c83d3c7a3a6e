"""Where the differentiable signal of a graph starts, and the tensors that gradients start from."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from functools import cached_property

from gradlint.graph import Graph, Node, Ref
from gradlint.ops import Kind, operator

_TRANSPARENT = frozenset({Kind.SHAPE, Kind.DROPOUT})
_LAYERS = frozenset({Kind.LINEAR, Kind.CONV, Kind.RNN, Kind.ATTENTION})


def kind_of(node: Node) -> Kind:
    """Kind of a node's operator."""
    return operator(node.op).kind


def is_weight_layer(node: Node) -> bool:
    """Whether the node mixes units with a weight of its own."""
    return kind_of(node) in _LAYERS and bool(node.weights)


class SignalPath:
    """Sources and trunk outputs of a graph. `live`, when given, are the nodes that really ran and carried a gradient."""

    def __init__(self, graph: Graph, *, live: Collection[str] | None = None) -> None:
        self.graph = graph
        self._live = None if live is None else frozenset(live)

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Where the differentiable signal starts: float inputs and embeddings; casts from integers only for want of these.

        A mask is cast from integers too, and would bypass every layer.
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
        """The tensors that gradients start from: the model's outputs, taken before a final softmax, sigmoid or loss.

        Outputs that carry no gradient (argmax, a mask) are followed back to the last tensor that does. A head whose weight is
        all zeros trains from its second step on and hides everything before it: its input takes its place.
        """
        found: dict[Ref, None] = {}
        for ref in self.graph.outputs:
            for start in self._differentiable(ref):
                found.update((self._before_zero_head(end), None) for end in self._before_final(start))
        real = [ref for ref in found if self._behind_moves(ref.node) not in self.sources]  # an input handed through says nothing
        return tuple(real or found)

    def carries(self, node: Node) -> bool:
        """Whether a gradient can pass from a node's output to its inputs."""
        return node.is_float and self._alive(node.id) and not operator(node.op).cuts and "no-grad" not in node.notes

    def float_parents(self, node: Node) -> list[Node]:
        """Parents that ran and whose tensors can carry a gradient."""
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
        """The last differentiable tensors on the way to an output, in order of execution."""
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
        """The tensors before a final softmax, sigmoid or loss, behind what only moves, selects or joins results; else `ref`."""
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
        """The signal that a tensor is made of; of a branch the output that stands for it, where that branch was taken."""
        node = self.graph[ref.node]
        refs: Iterable[Ref | None] = node.inputs
        if kind_of(node) is Kind.CONTROL and len(node.inputs) % 2:  # a condition, then the outputs of both branches
            count = len(node.inputs) // 2
            refs = (node.inputs[1 + ref.port], node.inputs[1 + count + ref.port]) if ref.port < count else ()
        return [item for item in refs if item is not None and self.graph[item.node].is_float and self._alive(item.node)]

    def _behind_moves(self, node_id: str) -> str:
        """The nearest node upstream that does more than move elements."""
        while kind_of(self.graph[node_id]) in _TRANSPARENT:
            parents = self.float_parents(self.graph[node_id])
            if len(parents) != 1:
                break
            node_id = parents[0].id
        return node_id

    def _before_zero_head(self, ref: Ref) -> Ref:
        at = ref
        while True:
            node = self.graph[at.node]
            parents = [item for item in node.inputs if item is not None and self.graph[item.node].is_float]
            if len(parents) != 1 or parents[0].node in self.sources:
                return ref
            if is_weight_layer(node):
                weight = node.weights.get("weight")
                zero = weight is not None and weight.statistics.finite and weight.statistics.max_abs == 0.0
                return parents[0] if zero else ref
            if kind_of(node) not in _TRANSPARENT and not (node.op == "add" and "bias" in node.weights):
                return ref
            at = parents[0]


def _selects(node: Node) -> bool:
    """Whether a node moves, selects or averages what it is given, such as the largest scores."""
    return kind_of(node) in _TRANSPARENT or node.op in {"max", "mean"}
