"""From gains at nodes to what the report says of growth. The probe and the theory both end here."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from gradlint.graph import Graph
from gradlint.result import Gains, Growth, Jump, Measurement, Place
from gradlint.theory.reading.sustained import Run, largest_run

HEALTHY = 2.2
"""Decades of sustained growth under which 90 % of 134 standard architectures stay at default initialization."""

LIMIT = 3.5
"""Decades of sustained growth that fail a model: of 134 healthy architectures none exceeds 3.4, failing models start at 3.7."""

JUMP = 1.0
"""Decades of one spine step that are worth naming."""

FLOOR = -45.0
"""Stands in for -inf where a gradient underflowed: the smallest float32 is 10^-45."""

UNDERFLOW = -20.0
"""A gradient that was this small before it became zero has underflowed; from a larger one it was cut."""


def place(graph: Graph, node: str) -> Place:
    """A node and its module."""
    return Place(node, graph[node].module if node in graph else "")


def along(chain: Sequence[str], values: Mapping[str, float | None]) -> tuple[list[str], list[float]]:
    """The nodes of a chain that have a value, with it; a gradient that faded to zero counts as FLOOR.

    Values are read from the output back: what lies before a zero that did not fade (a cut) is left out.
    """
    nodes: list[str] = []
    levels: list[float] = []
    for node in reversed(chain):
        value = values.get(node)
        if value is None or math.isnan(value) or value == math.inf:
            continue
        if value == -math.inf:
            if not levels or levels[-1] > UNDERFLOW:
                break
            value = FLOOR
        nodes.append(node)
        levels.append(value)
    return nodes[::-1], levels[::-1]


def signed(levels: Sequence[float]) -> tuple[float, float, float, Run]:
    """Growth with its sign, rise, fall, and the run that makes it."""
    rise, fall = largest_run(levels), largest_run([-level for level in levels])
    if rise.decades >= fall.decades:
        return rise.decades, rise.decades, fall.decades, rise
    return -fall.decades, rise.decades, fall.decades, fall


def summarize(
    graph: Graph, chain: Sequence[str], gains: Mapping[str, Gains], seeds: Sequence[Mapping[str, float | None]] = ()
) -> Growth:
    """Growth over a chain of nodes from their median gains; `seeds` holds the backward gains of every single seed."""
    nodes, levels = along(chain, {node: gains[node].backward for node in chain if node in gains})
    if len(levels) < 2:
        return Growth(0.0)
    decades, rise, fall, run = signed(levels)
    single = [signed(along(chain, seed)[1])[0] for seed in seeds if len(along(chain, seed)[1]) > 1]
    spread = max(abs(value - median(single)) for value in single) if len(single) > 1 else None
    start, end = gains[nodes[run.start]].relative, gains[nodes[run.end]].relative
    relative = start - end if start is not None and end is not None and math.isfinite(start - end) else None
    jumps = tuple(
        Jump(place(graph, after), before_level - after_level)
        for after, before_level, after_level in zip(nodes[1:], levels, levels[1:], strict=False)
        if abs(before_level - after_level) > JUMP
    )
    return Growth(
        decades=decades,
        rise=rise,
        fall=fall,
        total=levels[0] - levels[-1],
        spread=spread,
        relative=relative,
        start=place(graph, nodes[run.start]),
        end=place(graph, nodes[run.end]),
        jumps=jumps,
    )


def about(growth: Growth, found: Measurement) -> dict[str, Any]:
    """Evidence on a measured growth: its spread, the Jacobian between its ends, and other draws of the weights."""
    facts: dict[str, Any] = {"spread": growth.spread, "seeds": found.seeds} if growth.spread is not None else {}
    ends = (growth.start and growth.start.node, growth.end and growth.end.node)
    for item in found.segments:
        if (item.start, item.end) == ends:
            norms = {"frobenius": item.frobenius, "largest": item.largest, "stable_rank": item.stable_rank}
            facts["jacobian"] = {**norms, "condition_at_least": item.condition}
    return facts | ({"redraws": list(found.redraws.growths)} if found.redraws is not None else {})


def nearness(growth: Growth, found: Measurement) -> str:
    """A remark where the seeds of a measured growth lie on both sides of LIMIT, or nearly; "" elsewhere."""
    if growth.spread is None or abs(abs(growth.decades) - LIMIT) > growth.spread:
        return ""
    return f" (near the limit of {LIMIT}: +-{growth.spread:.1f} over {found.seeds} seeds)"
