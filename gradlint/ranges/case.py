"""One operator in interval analysis: the ranges of its operands, and how its operands relate to one another."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from gradlint.graph import Graph, Node, Ref, Weight
from gradlint.ops import Dispatch, Kind, operator
from gradlint.ranges.intervals import REALS, UNKNOWN, Interval, constant, rounded

MOVES = frozenset({"reshape", "cast", "detach"})
_SHUFFLES = frozenset(
    {"flip", "fliplr", "flipud", "roll", "rot90", "channel_shuffle", "unfold", "ReverseSequence", "fold", "col2im"}
)
_SPREADS = frozenset({"expand", "expand_as", "broadcast_to", "repeat", "repeat_interleave", "tile", "Expand", "Tile"})
PERMUTATIONS = frozenset({"permute", "transpose", "t", "T", "mT", "movedim", "moveaxis", "swapaxes", "swapdims", "Transpose"})
_PARTS = frozenset({"chunk", "split", "unbind", "tensor_split", "Split", "split_with_sizes", "hsplit", "vsplit", "dsplit"})
_SMALL = 1 << 20  # largest number of elements of a weight whose values are read
_DRAWN = frozenset({Kind.DROPOUT, Kind.CONTROL, Kind.UNKNOWN, Kind.RNN})  # operators whose results differ from call to call
_PORTS = {"max": 0, "var": 0, "lstm": 1, "lstm_cell": 0, "max_pool": 0}  # index of the last output that the node's range covers
_NEAR = 6  # largest number of operators between a tensor and its norm, maximum or mean
_GUARDS = frozenset({"add", "clamp", "maximum", "slice"})  # operators that do not decrease a norm
_EUCLIDEAN = (2, 2.0, "fro", None)
NORMS = frozenset(
    {"norm", "linalg_norm", "linalg_vector_norm", "frobenius_norm", "linalg_matrix_norm", "dist", "ReduceL2", "ReduceL1"}
)


def name_of(node: Node) -> str:
    """Return the name by which the operator was called; see `Node.called`."""
    return node.called


@dataclass(frozen=True, slots=True)
class Case:
    """A node with the ranges of all nodes before it.

    Attributes:
        graph: The graph.
        node: The node whose range is computed.
        found: Ranges by id of the nodes up to this one.
        first: For each node id, the id of the first node that computes the same value.
    """

    graph: Graph
    node: Node
    found: Mapping[str, Interval]
    first: Mapping[str, str]

    @property
    def name(self) -> str:
        """The name by which the operator was called; see `name_of`."""
        return name_of(self.node)

    @property
    def x(self) -> Interval:
        """The range of the first operand that is a tensor."""
        return next((self.at(ref) for ref in self.node.inputs if ref is not None), UNKNOWN)

    def at(self, ref: Ref | None) -> Interval:
        """Return the range of a tensor; `UNKNOWN` for secondary outputs, such as the indices of a maximum."""
        if ref is None or ref.port > _PORTS.get(self.graph[ref.node].op, ref.port):
            return UNKNOWN
        return self.found.get(ref.node, UNKNOWN)

    def operands(self) -> list[Interval]:
        """Return the ranges of the two operands of a binary operator, of which one may be a number or a weight."""
        slots = (*self.node.inputs, None, None)[:2]
        return [self.other() if ref is None else self.at(ref) for ref in slots]

    def other(self) -> Interval:
        """Return the range of the operand that is not a tensor: a number or a weight."""
        value = self.node.attrs.get("constant")
        if isinstance(value, (int, float)):
            return constant(rounded(float(value), self.node.dtype))
        weight = next(iter(self.node.weights.values()), None)
        return UNKNOWN if weight is None else weight_interval(weight)

    def number(self, *names: str) -> float | None:
        """Return the first of the named attributes that is a number, or None."""
        values = (self.node.attrs.get(name) for name in names)
        return next((float(value) for value in values if isinstance(value, (int, float))), None)

    def sizes(self) -> tuple[int | None, ...] | None:
        """Return the shape of the first operand that is a tensor."""
        return next((self.graph[ref.node].shape for ref in self.node.inputs if ref is not None), None)

    def axes(self) -> tuple[int, ...] | None:
        """Return the axes of a reduction, counted from 0, or None for a reduction over all or unknown axes."""
        given = next((self.node.attrs[key] for key in ("dim", "axis", "axes", "dims") if key in self.node.attrs), None)
        rank = len(self.sizes() or ())
        values = (given,) if isinstance(given, int) else given
        if not isinstance(values, Sequence) or not rank or not all(isinstance(value, int) for value in values):
            return None
        return tuple(sorted(value % rank for value in values))

    def count(self) -> int | None:
        """Return the number of elements that a reduction combines into one, or None if it is unknown."""
        before, after = self.sizes(), self.node.shape
        if before is None or None in before:
            return None
        axes = self.axes()
        if axes is not None:
            return math.prod(size or 0 for axis, size in enumerate(before) if axis in axes)
        if after is None or None in after:
            return None
        return math.prod(size or 0 for size in before) // max(math.prod(size or 0 for size in after), 1)

    def producer(self, ref: Ref | None, *ops: str) -> Node | None:
        """Return the node that produced a tensor, before reshapes and casts, if its operator is one of `ops`."""
        for _ in range(_NEAR):
            node = None if ref is None else self.graph[ref.node]
            if node is None or (node.op in ops and node.op not in MOVES):
                return node
            if node.op not in MOVES or name_of(node) in _SHUFFLES:
                return None
            ref = _first(node)
        return None

    def source(self, ref: Ref | None) -> Ref | None:
        """Return the tensor from which another was made by operators that keep all elements in their order."""
        for _ in range(_NEAR):
            node = None if ref is None else self.graph[ref.node]
            if node is None or node.op not in MOVES or name_of(node) in _SHUFFLES | _SPREADS | PERMUTATIONS | _PARTS:
                break
            ref = _first(node)
        return None if ref is None else Ref(self.first[ref.node], ref.port)

    def same(self, one: Ref | None, other: Ref | None) -> bool:
        """Return whether two tensors hold the same elements at the same positions."""
        if one is None or other is None or self.source(one) != self.source(other):
            return False
        return (one.port == other.port == 0 and self.graph[one.node].shape == self.graph[other.node].shape) or one == other

    def squared(self, ref: Ref | None) -> Ref | None:
        """Return the tensor whose square `ref` is, or None."""
        node = self.producer(ref, "pow", "mul")
        if node is None:
            return None
        refs = [item for item in node.inputs if item is not None]
        if node.op == "pow":
            return refs[0] if node.attrs.get("constant") == 2.0 and node.inputs[0] is not None else None
        return refs[0] if len(refs) == 2 and self.same(refs[0], refs[1]) else None

    def averaged(self, ref: Ref | None) -> Ref | None:
        """Return the tensor whose mean `ref` is, or None. A sum that is divided by a constant counts as a mean."""
        node = self.producer(ref, "mean", "div", "mul")
        if node is not None and node.op != "mean":
            node = self.producer(_first(node), "sum") if "constant" in node.attrs else None
        return None if node is None or (node.op == "sum" and name_of(node) not in {"sum", "ReduceSum"}) else _first(node)

    def norm_axes(self, ref: Ref | None, of: Ref | None) -> tuple[int, ...] | None:
        """Return the axes over which `ref` is the Euclidean norm of `of`, or None if it is not.

        Operators between them that do not decrease the norm are skipped. The result is () if the axes are unknown.
        """
        roots = 0
        for _ in range(2 * _NEAR):
            node = None if ref is None else self.graph[ref.node]
            if node is None:
                return None
            if node.op == "sum":
                euclidean = name_of(node) in NORMS and node.attrs.get("p", node.attrs.get("ord", 2)) in _EUCLIDEAN
                inner = _first(node) if euclidean else self.squared(_first(node))
                known = roots == (0 if euclidean else 1) and self.same(inner, of)
                return (replace(self, node=node).axes() or ()) if known else None
            root = node.op == "sqrt" or (node.op == "pow" and node.attrs.get("constant") == 0.5)
            guard = node.op in _GUARDS and (replace(self, node=node).number("constant") or 0.0) >= 0.0
            if not root and not guard and node.op not in MOVES:
                return None
            roots += root
            ref = _first(node)
        return None


RANGES: Dispatch[Callable[[Case], Interval]] = Dispatch()
"""The range of what an operator gives, from those of its operands."""


def first_equivalent(graph: Graph) -> Mapping[str, str]:
    """Map each node id to the id of the first node that applies the same operator to the same tensors.

    Models often compute an expression twice, such as a maximum that is subtracted from its own operand.
    """
    known: dict[object, str] = {}
    found: dict[str, str] = {}
    for node in graph:
        refs = tuple(None if ref is None else (found[ref.node], ref.port) for ref in node.inputs)
        unseen = None in node.inputs and not node.weights and "constant" not in node.attrs  # an unknown constant
        own = node.op == "input" or unseen or operator(node.op).kind in _DRAWN
        weights = tuple(sorted((role, weight.name) for role, weight in node.weights.items()))
        found[node.id] = node.id if own else known.setdefault((node.op, refs, weights, repr(node.attrs)), node.id)
    return found


def _first(node: Node) -> Ref | None:
    return next((ref for ref in node.inputs if ref is not None), None)


def permuted_axis(node: Node, axis: int) -> int | None:
    """Return the position of an axis after an operator that permutes axes, or None if it is unknown."""
    rank, name = len(node.shape or ()), name_of(node)
    order = list(range(rank))
    given = node.attrs.get("dims", node.attrs.get("perm"))
    ends = [node.attrs.get(key) for key in ("dim0", "dim1")]
    if isinstance(given, tuple) and len(given) == rank:
        order = [int(item) % rank for item in given]
    elif name in {"T", "t", "mT"} and rank > 1:
        order = order[::-1] if name == "T" else [*order[:-2], order[-1], order[-2]]
    elif all(isinstance(end, int) for end in ends) and rank:
        first, second = (end % rank for end in ends if isinstance(end, int))
        order[first], order[second] = order[second], order[first]
    else:
        return None
    return order.index(axis) if axis in order else None


def is_nonnegative(weight: Weight) -> bool:
    """Return whether a weight has no negative element and at least one that is not zero."""
    return weight.size <= _SMALL and float(np.real(weight.array()).min(initial=0.0)) >= 0.0 and weight.statistics.max_abs > 0.0


def weight_interval(weight: Weight, *, kept: bool = False) -> Interval:
    """Return the range of a weight.

    It is the range of the initial values if these all have one sign, which training seldom changes, or if `kept` is set or the
    weight is frozen. Otherwise training may give it any value.
    """
    if weight.size > _SMALL:
        return REALS
    values = np.real(weight.array())
    low, high = float(values.min(initial=math.inf)), float(values.max(initial=-math.inf))
    if weight.trainable and not kept and not (low > 0.0 or high < 0.0):
        return REALS
    if not low <= high:  # empty, or NaN
        return UNKNOWN
    return Interval(low, high, at_low=True, at_high=True, all_zero=low <= 0.0 <= high)
