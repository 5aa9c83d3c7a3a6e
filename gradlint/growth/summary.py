"""Summarize gains at nodes as the growth that a report shows. The probe and the theory both use it.

A backward gain B is 1/2 log10 of the mean squared gradient at a node for a unit gradient at the output. All values are decades.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from gradlint.graph import Graph
from gradlint.result import Gains, Growth, Jump, Measurement, Place, SpinePoint
from gradlint.theory.reading.sustained import Run, largest_run

HEALTHY = 2.2
"""Decades of sustained growth: 90 % of 134 standard architectures stay below this at default initialization."""

LIMIT = 3.5
"""Decades of sustained growth that fail a model: none of 134 healthy architectures exceeds 3.4, failing models start at 3.7."""

JUMP = 1.0
"""Decades that one step of the spine must exceed to be reported as a jump."""

FLOOR = -45.0
"""Decades that replace -inf where a gradient underflowed: the smallest positive float32 is about 10^-45."""

UNDERFLOW = -20.0
"""Decades: a gradient that was below this before it became zero underflowed; a larger one was cut."""


def place(graph: Graph, node: str) -> Place:
    """Return the `Place` of a node, with an empty module for a node that is not in the graph."""
    return Place(node, graph[node].module if node in graph else "")


def along(chain: Sequence[str], values: Mapping[str, float | None]) -> tuple[list[str], list[float]]:
    """Return the nodes of a chain that have a finite value, and those values, in the order of the chain.

    The chain is read from the output back. A zero gradient (-inf) that follows one below `UNDERFLOW` counts as `FLOOR`. At any
    other zero the gradient was cut, and the reading stops.
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
    """Return signed growth, rise and fall in decades, and the run of steps with the larger of both.

    `levels` are backward gains along a chain, all finite. Growth is the rise, or minus the fall if that is larger.
    """
    rise, fall = largest_run(levels), largest_run([-level for level in levels])
    if rise.decades >= fall.decades:
        return rise.decades, rise.decades, fall.decades, rise
    return -fall.decades, rise.decades, fall.decades, fall


def summarize(
    graph: Graph, chain: Sequence[str], gains: Mapping[str, Gains], seeds: Sequence[Mapping[str, float | None]] = ()
) -> Growth:
    """Compute growth over a chain of nodes.

    Args:
        graph: The graph, for the module paths of nodes.
        chain: Node ids from the input to the output.
        gains: Gains by node, the median over seeds.
        seeds: Backward gains by node for each seed, in decades. Growth spreads by the largest deviation between them.

    Returns:
        Sustained growth in decades: the largest sum of consecutive steps B(i) - B(i+1), each sum without its one largest step.
        It is zero if fewer than two nodes have a known gain.
    """
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


def spine_points(
    graph: Graph, chain: Sequence[str], measured: Mapping[str, Gains], predicted: Mapping[str, Gains]
) -> tuple[SpinePoint, ...]:
    """Return the rows of the chart: measured and predicted gains in decades, node by node along the chain."""
    nothing = Gains()
    return tuple(
        SpinePoint(
            place(graph, node),
            graph[node].op,
            measured.get(node, nothing).backward,
            measured.get(node, nothing).forward,
            predicted.get(node, nothing).backward,
            predicted.get(node, nothing).forward,
            graph[node].definition or graph[node].source,
        )
        for node in chain
    )


def about(growth: Growth, found: Measurement) -> dict[str, Any]:
    """Return evidence about a measured growth: its spread, the Jacobian between its ends, and other draws of the weights."""
    facts: dict[str, Any] = {"spread": growth.spread, "seeds": found.seeds} if growth.spread is not None else {}
    ends = (growth.start and growth.start.node, growth.end and growth.end.node)
    for item in found.segments:
        if (item.start, item.end) == ends:
            norms = {"frobenius": item.frobenius, "largest": item.largest, "stable_rank": item.stable_rank}
            facts["jacobian"] = {**norms, "condition_at_least": item.condition}
    return facts | ({"redraws": list(found.redraws.growths)} if found.redraws is not None else {})


def nearness(growth: Growth, found: Measurement) -> str:
    """Return a remark if the distance of a measured growth to `LIMIT` is within its spread over seeds, else ""."""
    if growth.spread is None or abs(abs(growth.decades) - LIMIT) > growth.spread:
        return ""
    return f" (near the limit of {LIMIT}: +-{growth.spread:.1f} over {found.seeds} seeds)"
