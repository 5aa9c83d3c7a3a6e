"""Propagate ranges through a graph by interval arithmetic (Moore 1966).

The output of a trainable weight layer may be any number. Guards against a singular point (an eps, a clamp, a maximum, a shift by
the largest element, a `where`) are not matched as patterns; they keep the interval away from the point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from gradlint.graph import Graph
from gradlint.ops import operator
from gradlint.ranges import choices, layers, pointwise
from gradlint.ranges.case import RANGES, Case, first_equivalent
from gradlint.ranges.intervals import UNKNOWN, Interval, monotone, within

_INPUT = replace(UNKNOWN, all_zero=True)  # an input may be padding, silence or a black image
_WHOLE = frozenset({"round", "Round", "floor", "Floor", "ceil", "Ceil", "trunc", "fix"})

_CHOICES = frozenset({"where", "Where", "masked_fill"})


def ranges_of(graph: Graph) -> Mapping[str, Interval]:
    """Return the range of the output of each node, by node id."""
    return {case.node.id: case.found[case.node.id] for case in cases(graph)}


def cases(graph: Graph, given: Mapping[str, Interval] = MappingProxyType({})) -> Iterator[Case]:
    """Yield each node in execution order, with the ranges up to its own. `given` holds known ranges of inputs by node id."""
    found: dict[str, Interval] = {}
    first = first_equivalent(graph)
    for node in graph:
        case = Case(graph, node, found, first)
        found[node.id] = given.get(node.id) or within(_without_nan(_rule(case)), node.dtype)
        yield case


def _rule(case: Case) -> Interval:
    node = case.node
    if node.op == "slice":
        return choices.chosen(case) if case.name in _CHOICES else layers.selected(case)
    if node.op == "round" and case.name in _WHOLE:
        return _rounded(case)
    if node.op == "input":
        return _INPUT if node.is_float else UNKNOWN
    rule = RANGES.find(node.op)
    if rule is None:
        rule = pointwise.activated if operator(node.op).function is not None else layers.unknown
    return rule(case)


def _rounded(case: Case) -> Interval:
    functions: dict[str, Callable[[float], int]] = {"f": math.floor, "c": math.ceil, "r": round}
    function = functions.get(case.name[0].lower(), math.trunc)
    return monotone(lambda x: float(function(x)) if math.isfinite(x) else x, case.x)


def _without_nan(found: Interval) -> Interval:
    """Replace an end that is NaN, the sum of infinities of both signs, by infinity."""
    low = -math.inf if math.isnan(found.low) else found.low
    high = math.inf if math.isnan(found.high) else found.high
    return replace(found, low=low, high=high) if (low, high) != (found.low, found.high) else found
