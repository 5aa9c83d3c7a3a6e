"""Ranges of operators that bound or choose values: clamp, maximum, minimum and `where`."""

from __future__ import annotations

import math
from dataclasses import replace

from gradlint.graph import Node, Ref
from gradlint.ranges.case import RANGES, Case, name_of
from gradlint.ranges.intervals import UNKNOWN, Interval, constant, hull, minus

_ORDERS = frozenset({"gt", "greater", "ge", "greaterorequal", "greater_equal", "lt", "less", "le", "lessorequal", "less_equal"})


@RANGES.rule("clamp")
def clamped(case: Case) -> Interval:
    """Return the range of clamp, whose bounds are numbers or tensors, or of nan_to_num."""
    x = case.x
    if case.name == "nan_to_num":
        return hull([x.plain, constant(case.number("nan") or 0.0)])
    low, high = case.number("min", "min_val"), case.number("max", "max_val")
    if low is None and high is None:  # the bounds are tensors
        return UNKNOWN if len(case.node.inputs) < 2 else Interval(x.low, x.high)
    return clipped(x, -math.inf if low is None else low, math.inf if high is None else high)


def clipped(x: Interval, low: float, high: float) -> Interval:
    """Return the range of x clamped to [low, high]."""
    ends = min(max(x.low, low), high), max(min(x.high, high), low)
    return replace(
        x,
        low=ends[0],
        high=ends[1],
        at_low=x.at_low if x.low > low else x.low < low or x.at_low,
        at_high=x.at_high if x.high < high else True,
        all_zero=ends[0] <= 0.0 <= ends[1] and (x.all_zero or low == 0.0),
        peak=None if x.peak is None else min(max(x.peak, low), high),
    )


@RANGES.rule("maximum")
def larger(case: Case) -> Interval:
    """Return the range of the elementwise maximum or minimum of two operands.

    An operand of unknown range may be a guard, so its lower end is not expected to be reached.
    """
    one, other = case.operands()
    if "min" in case.name.lower():
        return minus(_larger(minus(one), minus(other)))
    return _larger(one, other)


def _larger(a: Interval, b: Interval) -> Interval:
    low, high = max(a.low, b.low), max(a.high, b.high)
    at_low = all(one.at_low or -math.inf < one.low < low for one in (a, b))  # an operand of unknown range may be a guard
    at_high = any(one.at_high for one in (a, b) if one.high == high)
    return Interval(low, high, at_low=at_low, at_high=at_high, all_zero=a.all_zero and b.all_zero, maker=a.maker or b.maker)


def chosen(case: Case) -> Interval:
    """Return the range of `where` or `masked_fill`: the hull of both operands, each restricted by the condition."""
    node = case.node
    is_where = case.name.lower() == "where"
    refs = list(node.inputs)
    condition = refs[0] if is_where else next(iter(refs[1:]), None)
    if is_where:
        branches = [*refs[1:3], *[None] * (3 - len(refs))]
        numbers = [case.number("self", "X", "input"), case.number("other", "Y")]
        if len(refs) == 2:  # one of the two is a number, which has no input slot
            branches = [None, refs[1]] if numbers[0] is not None else [refs[1], None]
    else:
        branches, numbers = [None, refs[0]], [case.number("value"), None]
        if len(refs) > 2 and refs[2] is not None:
            branches[0] = refs[2]
    parts = []
    for taken, ref, number in zip((True, False), branches, numbers, strict=True):
        if ref is not None:
            parts.append(_where(case, condition, ref, taken=taken))
        else:
            parts.append(UNKNOWN if number is None else constant(number))
    return hull(parts)


def _where(case: Case, condition: Ref | None, ref: Ref, *, taken: bool) -> Interval:
    """Return the range of a tensor at the elements where a condition holds (`taken`) or does not hold."""
    x = case.at(ref).plain
    test = case.producer(condition, "compare")
    if test is None:
        return x
    tested = next((item for item in test.inputs if item is not None), None)
    limit = test.attrs.get("other", test.attrs.get("B"))
    name = name_of(test).lower()
    if case.same(tested, ref) and isinstance(limit, (int, float)) and name in _ORDERS and test.inputs[0] is not None:
        above = name.startswith("g") == taken
        closed = name.endswith(("e", "equal")) == taken
        at = float(limit)
        if above:
            return replace(
                x, low=max(x.low, at), at_low=x.at_low and (closed or x.low > at), all_zero=x.all_zero and closed and at == 0.0
            )
        return replace(x, high=min(x.high, at), at_high=x.at_high and (closed or x.high < at), all_zero=x.all_zero and closed)
    if _depends_on(case, test, ref):  # a guard whose effect intervals cannot express
        return replace(x, at_low=False, at_high=False, all_zero=False)
    return x


def _depends_on(case: Case, test: Node, ref: Ref) -> bool:
    """Return whether a condition is computed from a tensor by at most four operators."""
    level, goal = [test], case.source(ref)
    for _ in range(4):
        refs = [item for node in level for item in node.inputs if item is not None]
        if any(case.source(item) == goal for item in refs):
            return True
        level = [case.graph[item.node] for item in refs]
    return False
