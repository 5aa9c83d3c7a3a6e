"""Growth along the time axis of a recurrence, from the same backward pass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

import numpy as np

from gradlint.growth import along, signed, summarise
from gradlint.result import Gains, Growth, TimeGrowth
from gradlint.structure import Structure


def time_growth(
    structure: Structure,
    steps: Sequence[Mapping[str, Mapping[int, list[float]]]],
    cotangents: Sequence[float],
    gains: Mapping[str, Gains],
) -> tuple[TimeGrowth, ...]:
    """One entry per recurrence: fused ones from the gradient at each step of their input, unrolled ones from their nodes.

    `steps` holds, per seed, squared gradient norms by axis and index, first step first; `cotangents` the squared norm of each
    seed's cotangent. Growth per step is the slope of the backward gain over time (THEORY section 4).
    """
    fused = [_fused(structure, node, steps, cotangents) for node in steps[-1] if node in structure.graph]
    return tuple(fused) + tuple(_unrolled(structure, item.nodes, gains) for item in structure.recurrences)


def _fused(
    structure: Structure, node: str, steps: Sequence[Mapping[str, Mapping[int, list[float]]]], cotangents: Sequence[float]
) -> TimeGrowth:
    axis = int(structure.graph[node].attrs.get("time_axis", 0))
    rows = [
        [_half_decades(square, cotangent) for square in seed[node][axis]]
        for seed, cotangent in zip(steps, cotangents, strict=True)
        if axis in seed.get(node, {})
    ]
    if not rows:
        return TimeGrowth(node, (), Growth(0.0))
    length = min(len(row) for row in rows)
    levels = tuple(median(row[index] for row in rows) for index in range(length))
    labels = [str(index) for index in range(length)]
    known = along(labels, dict(zip(labels, levels, strict=True)))[1]
    if len(known) < 2:
        return TimeGrowth(node, levels, Growth(0.0))
    decades, rise, fall, _ = signed(known)
    return TimeGrowth(node, levels, Growth(decades, rise, fall, known[0] - known[-1], per_step=_slope(known)))


def _unrolled(structure: Structure, nodes: Sequence[str], gains: Mapping[str, Gains]) -> TimeGrowth:
    levels = tuple(value for node in nodes if (value := _backward(gains, node)) is not None)
    growth = summarise(structure.graph, nodes, gains)
    known = along(nodes, {node: _backward(gains, node) for node in nodes})[1]
    return TimeGrowth(nodes[0], levels, replace(growth, per_step=_slope(known) if len(known) > 1 else None))


def _backward(gains: Mapping[str, Gains], node: str) -> float | None:
    return gains[node].backward if node in gains else None


def _half_decades(square: float, reference: float) -> float:
    return 0.5 * math.log10(square / reference) if square > 0.0 and reference > 0.0 else -math.inf


def _slope(levels: Sequence[float]) -> float:
    """Decades per step, positive when the gradient grows towards the first step."""
    return -float(np.polyfit(np.arange(len(levels)), np.asarray(levels), 1)[0])
