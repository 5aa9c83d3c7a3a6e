"""Ranges of sums, maxima and softmaxes over segments, as graph networks compute them with `scatter_add` and its relatives."""

from __future__ import annotations

import math
from dataclasses import replace

from gradlint.graph import Node, Ref
from gradlint.ranges.case import MOVES, Case, weight_interval
from gradlint.ranges.intervals import REALS, UNKNOWN, Interval, constant, hull

ACCUMULATES = frozenset({"scatter_add", "index_add", "scatter_reduce", "index_reduce", "ScatterND", "ScatterElements"})
_GATHERS = frozenset({"getitem", "index_select", "gather", "take_along_dim", "Gather", "GatherElements"})
_STORES = frozenset({"none", "amax", "amin", "max", "min"})
_OPERANDS = 3  # the tensor that is added to, the index, and the values that are added
_NEAR = 6  # largest number of reshapes between an index and the operator that takes it


def accumulated(case: Case) -> Interval:
    """Return the range of an operator that adds values to the elements of a tensor that an index names, or stores their maximum.

    A tensor that is not an operand starts as zeros for a sum; the start of a maximum is unknown. Elements that no index names
    keep their value.
    """
    node = case.node
    base, _, source = (*node.inputs, None, None, None)[:_OPERANDS]
    if source is None:
        return UNKNOWN
    stores = _reduction(node) in _STORES
    start = next((weight_interval(weight) for weight in node.weights.values()), UNKNOWN if stores else constant(0.0))
    start, added = case.at(base) if base is not None else start, case.at(source)
    if stores:
        return hull([start.plain, added.plain])
    if start.low < 0.0 or added.low < 0.0 or (case.number("alpha") or 1.0) < 0.0:
        return REALS
    at_low = start.low == 0.0 and start.at_low
    return Interval(0.0, math.inf, at_low=at_low, at_high=added.at_high, all_zero=start.all_zero, maker=node.id)


def gathered(case: Case) -> Interval | None:
    """Return the range of sums over segments that are gathered back to the summed elements, or None for any other gather.

    No gathered segment is empty, so its sum is at least one summand. If the summands are exponentials shifted by the maximum of
    their segment, one of each segment is 1 and the sum is not zero.
    """
    sums = _segments(case, case.node)
    if sums is None or _reduction(sums) in _STORES or case.found[sums.id].low < 0.0 or case.at(sums.inputs[2]).low < 0.0:
        return None
    added = case.at(sums.inputs[2])
    exponential = case.producer(sums.inputs[2], "exp")
    shift = case.producer(exponential.inputs[0], "sub") if exponential is not None else None
    shifted = shift is not None and len(shift.inputs) > 1 and is_shifted(case, shift.inputs[0], shift.inputs[1])
    all_zero = added.all_zero and not shifted
    return replace(case.found[sums.id], low=max(added.low, 0.0), at_low=all_zero, all_zero=all_zero, maker=added.maker)


def is_shifted(case: Case, left: Ref | None, right: Ref | None) -> bool:
    """Return whether `right` holds, for each element of `left`, the maximum of its segment."""
    part = case.producer(right, "slice")
    tops = _segments(case, part) if part is not None else None
    return tops is not None and _reduction(tops) in {"amax", "max"} and case.same(left, tops.inputs[2])


def _segments(case: Case, part: Node) -> Node | None:
    """Return the node that reduced over segments, if `part` gathers its result with the same index; else None."""
    made = case.producer(part.inputs[0], "slice") if part.called in _GATHERS and len(part.inputs) > 1 else None
    if made is None or made.called.rstrip("_") not in ACCUMULATES or len(made.inputs) < _OPERANDS:
        return None
    axes = [node.attrs.get("dim", node.attrs.get("axis", 0)) for node in (made, part)]
    one, other = _index(case, made.inputs[1]), _index(case, part.inputs[1])
    return made if one is not None and one == other and axes[0] == axes[1] else None


def _index(case: Case, ref: Ref | None) -> Ref | None:
    """Return the index tensor before operators that expand it over more axes."""
    for _ in range(_NEAR):
        node = case.graph[ref.node] if ref is not None else None
        if node is None or not node.inputs or node.inputs[0] is None:
            break
        before, after = case.graph[node.inputs[0].node].shape, node.shape
        whole = node.op == "slice" and len(node.inputs) == 1 and None not in (before or (None,)) and before != after
        if node.op not in MOVES and not (whole and _size(before) == _size(after)):
            break
        ref = node.inputs[0]
    return None if ref is None else Ref(case.first[ref.node], ref.port)


def _size(shape: tuple[int | None, ...] | None) -> int:
    return math.prod(size or 0 for size in shape or ())


def _reduction(node: Node) -> str:
    given = node.attrs.get("reduce", node.attrs.get("reduction", "none" if node.called.startswith("Scatter") else "sum"))
    return given.decode() if isinstance(given, bytes) else str(given)
