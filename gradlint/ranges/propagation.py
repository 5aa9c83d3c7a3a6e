"""Ranges of all tensors of a graph: interval arithmetic on the way forward (Moore 1966), where weight layers give any number.

Guards against singular points (an eps, a clamp, a maximum, a shift by the largest element, a choice by `where`) need no
recognition: they are what keeps an interval off the point.
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

_INPUT = replace(UNKNOWN, all_zero=True)  # padding, silence, black
_WHOLE = frozenset({"round", "Round", "floor", "Floor", "ceil", "Ceil", "trunc", "fix"})

_CHOICES = frozenset({"where", "Where", "masked_fill"})


def ranges_of(graph: Graph) -> Mapping[str, Interval]:
    """The interval of the outputs of every node, by its id."""
    return {case.node.id: case.found[case.node.id] for case in cases(graph)}


def cases(graph: Graph, given: Mapping[str, Interval] = MappingProxyType({})) -> Iterator[Case]:
    """Every node with the ranges up to its own; `given` are those of inputs, by node."""
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
    """The interval without NaN for an end, which infinities of both signs leave."""
    low = -math.inf if math.isnan(found.low) else found.low
    high = math.inf if math.isnan(found.high) else found.high
    return replace(found, low=low, high=high) if (low, high) != (found.low, found.high) else found
