"""Where a value that is not finite comes from: ranks of values, and the operator whose result outranks its operands."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Mapping
from enum import IntEnum
from typing import TypeVar

from gradlint.graph import Graph, Node
from gradlint.masks import Masks
from gradlint.measurements.faults import Fault, NonFinite, bare, fault_of
from gradlint.ops import Kind
from gradlint.probe.recorder import Seen
from gradlint.signal_path import is_weight_layer, kind_of

Key = TypeVar("Key")

_FILLS = frozenset(
    {
        "fill",
        "full",
        "full_like",
        "index_copy",
        "index_fill",
        "index_put",
        "masked_fill",
        "masked_scatter",
        "nan_to_num",
        "new_full",
    }
    | {"new_tensor", "scatter", "select_scatter", "setitem", "slice_scatter", "tensor", "tril", "triu", "where"}
    | {"constant_pad_nd", "constantofshape", "pad", "scatterelements", "scatternd", "trilu"}
)
_CARRIERS = frozenset({"abs", "clone", "contiguous", "get", "getitem", "neg", "negative", "set"})
_SIDES = frozenset({"add", "sub", "maximum", "minimum", "mul", "div"})
_LARGEST = {"float16": 65504.0, "float64": 1e308}
_ORDINARY = 1e-4  # of the largest number of a type: a sum of smaller ones does not overflow


class Rank(IntEnum):
    """How bad the worst value of a tensor is. MASK is an infinity that the user put in on purpose."""

    FINITE = 0
    MASK = 1
    INFINITY = 2
    NAN = 3


def kind_in(low: float, high: float) -> str | None:
    """Return "NaN" or "infinity" for the smallest and the largest value of a tensor; None if both are finite."""
    if math.isnan(low) or math.isnan(high):
        return "NaN"
    return "infinity" if math.isinf(low) or math.isinf(high) else None


def fills(name: str) -> bool:
    """Return whether a function writes given values into a tensor."""
    return bare(name) in _FILLS


def carries(name: str, kind: Kind) -> bool:
    """Return whether an operator passes its operand on, so that a mask stays a mask."""
    return kind is Kind.SHAPE or bare(name) in _CARRIERS or fills(name)


def rank_of(low: float, high: float, operands: Iterable[Rank], *, carried: bool, deliberate: bool) -> Rank:
    """Return the rank of a result in [low, high].

    An infinity is a mask if it was put in deliberately, or if a mask was passed on: as it is, or as -inf in some places.
    """
    kind = kind_in(low, high)
    if kind is None:
        return Rank.FINITE
    if kind == "NaN":
        return Rank.NAN
    if deliberate:
        return Rank.MASK
    worst = max(operands, default=Rank.FINITE)
    if worst is Rank.MASK and (carried or (low < high < math.inf)):
        return Rank.MASK
    return Rank.INFINITY


def given_rank(low: float, high: float) -> Rank:
    """Return the rank of a tensor that no observed operator made: -inf in some places is a mask."""
    return rank_of(low, high, (), carried=False, deliberate=low < high < math.inf)


def origins(ends: Iterable[Key], parents: Callable[[Key], Iterable[Key]], rank: Callable[[Key], Rank], least: Rank) -> list[Key]:
    """Return the operators from which values of at least rank `least` reach some ends; their operands have lower ranks."""
    stack = [end for end in ends if rank(end) >= least]
    reached = set(stack)
    while stack:
        for parent in parents(stack.pop()):
            if parent not in reached and rank(parent) >= least:
                reached.add(parent)
                stack.append(parent)
    return [key for key in reached if not any(parent in reached for parent in parents(key))]


def chain_of(
    ends: Collection[Key],
    parents: Callable[[Key], Iterable[Key]],
    rank: Callable[[Key], Rank],
    order: Callable[[Key], int],
) -> tuple[Key, Key | None, Key | None] | None:
    """Return culprit, the operator that made NaN of its infinity, and the mask that it met; None if all ends are finite.

    The culprit is the first operator whose result outranks all its operands.
    """
    worst = max(map(rank, ends), default=Rank.FINITE)
    if worst < Rank.INFINITY:
        return None

    def first(keys: Iterable[Key], least: Rank) -> Key | None:
        return min(origins(keys, parents, rank, least), key=order, default=None)

    culprit, becomes = first(ends, worst), None
    assert culprit is not None
    before = [parent for parent in parents(culprit) if rank(parent) is Rank.INFINITY]
    if worst is Rank.NAN and before:
        culprit, becomes = first(before, Rank.INFINITY) or culprit, culprit
    mask = first([parent for parent in parents(culprit) if rank(parent) is Rank.MASK], Rank.MASK)
    return culprit, becomes, mask


def spoken(node: Node) -> str:
    """Return what people call an operator: what the code calls it, or what a spelled-out softmax or attention is."""
    return node.op if kind_of(node) in {Kind.SOFTMAX, Kind.ATTENTION} else node.called


class Provenance:
    """The ranks of all values of one recorded run."""

    def __init__(self, graph: Graph, seen: Mapping[str, Seen]) -> None:
        self.graph, self.seen = graph, seen
        self._masks = Masks(graph)
        self.ranks: dict[str, Rank] = {}
        for node in graph:
            if node.id in seen:
                self.ranks[node.id] = self._rank(node)

    def _rank(self, node: Node) -> Rank:
        seen = self.seen[node.id]
        if seen.kind is None:
            return Rank.FINITE
        if kind_of(node) is Kind.INPUT:
            return given_rank(seen.low, seen.high)
        before = [self.ranks[parent] for parent in self._parents(node.id)]
        deliberate = _fills_infinity(node, before) or _meets_constant(node, seen, before) or node.id in self._masks.made
        return rank_of(seen.low, seen.high, before, carried=carries(node.called, kind_of(node)), deliberate=deliberate)

    def _parents(self, node: str) -> list[str]:
        return [parent.id for parent in self.graph.parents(node) if parent.id in self.ranks]

    def rank(self, node: str) -> Rank:
        """Return the rank of what a node returned; FINITE if it did not run."""
        return self.ranks.get(node, Rank.FINITE)

    def found(self, ends: Collection[str]) -> NonFinite | None:
        """Return the culprit of values that are not finite at some nodes; None if they are finite or masks."""
        chain = chain_of(ends, self._parents, self.rank, self.graph.position.__getitem__)
        if chain is None:
            return None
        node, becomes, mask = chain
        if mask is not None and kind_of(self.graph[mask]) is Kind.INPUT and is_weight_layer(self.graph[node]):
            node, mask = mask, None  # data, not a mask
        seen = self.seen[node]
        return self._described(node, seen.kind or "NaN", seen.operands, becomes, mask)

    def found_backward(self, node: str, kind: str) -> NonFinite:
        """Return what was recorded of a culprit whose value is finite and whose gradient is not."""
        parents = [parent for parent in self.graph.parents(node) if parent.id in self.seen and parent.is_float]
        operands = tuple((self.seen[parent.id].low, self.seen[parent.id].high) for parent in parents)
        mask = next((mask for parent in parents if (mask := self._mask(parent.id))), None)
        return self._described(node, kind, operands, None, mask, backward=True)

    def mask_at(self, node: str) -> str:
        """Return what put a mask into the result of a node, with its line; "" if the result is no mask."""
        mask = self._mask(node)
        return self.place(mask) if mask is not None else ""

    def _mask(self, node: str) -> str | None:
        if self.rank(node) is not Rank.MASK:
            return None
        return min(origins([node], self._parents, self.rank, Rank.MASK), key=self.graph.position.__getitem__, default=None)

    def _described(
        self,
        node: str,
        kind: str,
        operands: tuple[tuple[float, float], ...],
        becomes: str | None,
        mask: str | None,
        *,
        backward: bool = False,
    ) -> NonFinite:
        it = self.graph[node]
        masked = _is_infinite(it.attrs.get("constant")) or any(kind_in(*ends) is not None for ends in operands)
        fault = Fault.INPUT if kind_of(it) is Kind.INPUT else _labels(it, self.seen[node])
        fault = fault or fault_of(spoken(it), kind, operands, backward=backward, masked=masked)
        return NonFinite(node, kind, operands, fault, *(self.place(key) if key else "" for key in (becomes, mask)))

    def place(self, node: str) -> str:
        """Return what a node is called and where it stands, "masked_fill (model.py:12)"."""
        it = self.graph[node]
        line = it.source or it.definition
        called = f"the input {it.label!r}" if kind_of(it) is Kind.INPUT else spoken(it)
        return f"{called} ({line})" if line else called


def _fills_infinity(node: Node, before: Collection[Rank]) -> bool:
    """Return whether a node writes infinities: it says so, or its operands have none."""
    said = any(map(_is_infinite, node.attrs.values()))
    return fills(node.called) and (said or max(before, default=Rank.FINITE) < Rank.INFINITY)


def _is_infinite(value: object) -> bool:
    return isinstance(value, float) and math.isinf(value)


def _meets_constant(node: Node, seen: Seen, before: Collection[Rank]) -> bool:
    """Return whether finite operands meet an infinity that is a constant of the user's code, such as an additive mask."""
    if node.op not in _SIDES or any(before) or not seen.operands:
        return False
    constant = node.attrs.get("constant")
    if _is_infinite(constant):
        return True
    largest = _LARGEST.get(node.dtype or "", 3e38)
    ordinary = max(abs(end) for ends in seen.operands for end in ends) <= _ORDINARY * largest
    if isinstance(constant, float):  # a finite number that the type of the signal does not hold
        return ordinary and abs(constant) > largest and seen.high < math.inf
    return ordinary and len(seen.operands) == 1 and node.op != "div" and seen.low < seen.high


def _labels(node: Node, seen: Seen) -> Fault | None:
    """Return what is wrong with the labels of a loss inside the model."""
    if node.op != "loss" or seen.kind != "NaN" or any(kind_in(*ends) is not None for ends in seen.operands):
        return None
    if seen.empty:
        return Fault.EMPTY
    ignored = node.attrs.get("ignore_index", -100)
    return Fault.IGNORED if (ignored, ignored) in seen.labels else None
