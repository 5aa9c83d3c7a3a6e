"""Growth along the time axis of recurrences: a line through what reaches each step from the last one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gradlint.errors import GradlintError
from gradlint.growth import along, signed, summarize
from gradlint.probe.time.cells import cell_exponents
from gradlint.probe.time.steps import Fed, Line, Sites, lines
from gradlint.result import Gains, Growth, TimeGrowth
from gradlint.structure import Structure

_HORIZON = 3.0  # decades
_FLAT = 2.0  # standard errors: a slope under so many is none
_STILL = 1e-4  # decades per step: the same for a line without noise


@dataclass(frozen=True, slots=True)
class OverTime:
    """What one run showed of its recurrences; `exponents` are Lyapunov exponents by node and direction."""

    lines: tuple[Line, ...] = ()
    exponents: Mapping[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, structure: Structure, points: Sites, fed: Fed, seed: int) -> OverTime:
        """Measure after the forward pass; what fails is said in the notes."""
        try:
            found = tuple(lines(structure, points, fed, seed))
            return cls(found, cell_exponents(structure.graph, found, fed))
        except (
            GradlintError,
            RuntimeError,
            ValueError,
        ) as error:  # shapes and types that torch and numpy refuse
            return cls(notes=(f"time axis: not measured, {str(error).splitlines()[0]}",))

    def growth(self, structure: Structure, gains: Mapping[str, Gains]) -> tuple[TimeGrowth, ...]:
        """One entry for each direction of each recurrence; loops that no sequence feeds are read from the general pass."""
        measured = {line.node for line in self.lines}
        found = [_along(line, self.exponents.get((line.node, line.direction), ())) for line in self.lines]
        loops = (item.nodes for item in structure.recurrences if measured.isdisjoint(item.nodes))
        return (*found, *(_unfed(structure, nodes, gains) for nodes in loops))


def _along(line: Line, exponents: tuple[float, ...]) -> TimeGrowth:
    levels = tuple(0.5 * math.log10(square) if square > 0.0 else -math.inf for square in line.squares)
    labels = [str(index) for index in range(len(levels))]
    known = along(labels, dict(zip(labels, levels, strict=True)))[1]
    finite = [level for level in levels[len(levels) - len(known) :] if math.isfinite(level)]
    found = TimeGrowth(
        line.node, levels, Growth(0.0), lyapunov=exponents, axis=line.axis, steps=len(levels), direction=line.direction
    )
    if len(known) < 2 or len(finite) < 2:
        return found
    decades, rise, fall, _ = signed(known)
    slope, error = slope_of(finite)
    growth = Growth(decades, rise, fall, known[0] - known[-1], per_step=slope)
    return replace(found, growth=growth, slope=slope, slope_error=error, horizon=horizon_of(slope, error))


def slope_of(levels: Sequence[float]) -> tuple[float, float | None]:
    """Decades per step, positive when the gradient grows towards the first step, and its standard error.

    Least squares. The gain of a step is multiplied by that of the next, so that the level walks at random about its line: the
    error is that of a walk, 6/5 of the variance of its increments over their number, with their correlations over a few steps
    (Newey, West 1987). None for fewer than three increments.
    """
    values = np.asarray(levels)
    slope = -float(np.polyfit(np.arange(len(values)), values, 1)[0])
    steps = np.diff(values)
    if len(steps) < 3:
        return slope, None
    off = steps - steps.mean()
    lags = math.ceil(len(off) ** (1 / 3))
    variance = float(off @ off) / len(off)
    for lag in range(1, lags + 1):
        variance += 2.0 * (1.0 - lag / (lags + 1)) * float(off[lag:] @ off[:-lag]) / len(off)
    return slope, math.sqrt(1.2 * max(variance, 0.0) / len(off))


def horizon_of(slope: float, error: float | None) -> float:
    """Steps until three decades are lost or gained; infinite where the slope is none that can be told from zero."""
    return math.inf if abs(slope) <= max(_FLAT * (error or 0.0), _STILL) else _HORIZON / abs(slope)


def _unfed(structure: Structure, nodes: Sequence[str], gains: Mapping[str, Gains]) -> TimeGrowth:
    values = {node: gains[node].backward if node in gains else None for node in nodes}
    known = along(nodes, values)[1]
    growth = summarize(structure.graph, nodes, gains)
    levels = tuple(value for value in values.values() if value is not None)
    slope, error = slope_of(known) if len(known) > 1 else (None, None)
    return TimeGrowth(nodes[0], levels, replace(growth, per_step=slope), slope, error, steps=len(nodes))
