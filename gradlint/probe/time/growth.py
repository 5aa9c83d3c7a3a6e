"""Growth along the time axis of recurrences: fit a line to the logarithm of the gradient at each step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from gradlint.errors import GradlintError
from gradlint.growth import along, signed, summarize
from gradlint.probe.time.cells import cell_exponents
from gradlint.probe.time.steps import Fed, Points, TimeProfile, time_profiles
from gradlint.result import Gains, Growth, TimeGrowth
from gradlint.structure import Structure
from gradlint.theory.recurrence.readout import readout

_HORIZON = 3.0  # decades
_FLAT = 2.0  # standard errors: a smaller slope does not differ from zero
_STILL = 1e-4  # decades per step: neither does a smaller one, even without noise


@dataclass(frozen=True, slots=True)
class OverTime:
    """The gradients along time in one run.

    `profiles` are the squared gradients by step of each recurrence and direction, `exponents` the Lyapunov exponents by node and
    direction, in nats per step, and `notes` what could not be measured.
    """

    profiles: tuple[TimeProfile, ...] = ()
    exponents: Mapping[tuple[str, str], tuple[float, ...]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, structure: Structure, points: Points, fed: Fed, seed: int) -> OverTime:
        """Measure after the forward pass and before the general backward pass. Errors become notes."""
        try:
            found = tuple(time_profiles(structure, points, fed, seed))
            return cls(found, cell_exponents(structure.graph, found, fed))
        except (
            GradlintError,
            RuntimeError,
            ValueError,
        ) as error:  # torch and numpy do not support some shapes and types
            return cls(notes=(f"time axis: not measured, {str(error).splitlines()[0]}",))

    def growth(self, structure: Structure, gains: Mapping[str, Gains]) -> tuple[TimeGrowth, ...]:
        """Return the growth of each recurrence and direction.

        For loops that read no sequence, the levels are the backward `gains` of the general pass, in decades.
        """
        measured = {profile.node for profile in self.profiles}
        found = [
            replace(
                _growth_of(profile, self.exponents.get((profile.node, profile.direction), ())),
                reads=readout(structure, profile.nodes or (profile.node,), len(profile.squares)),
            )
            for profile in self.profiles
        ]
        loops = (item.nodes for item in structure.recurrences if not item.elementwise and measured.isdisjoint(item.nodes))
        return (*found, *(_without_sequence(structure, nodes, gains) for nodes in loops))


def _growth_of(profile: TimeProfile, exponents: tuple[float, ...]) -> TimeGrowth:
    levels = tuple(0.5 * math.log10(square) if square > 0.0 else -math.inf for square in profile.squares)
    labels = [str(index) for index in range(len(levels))]
    known = along(labels, dict(zip(labels, levels, strict=True)))[1]
    finite = [level for level in levels[len(levels) - len(known) :] if math.isfinite(level)]
    found = TimeGrowth(
        profile.node, levels, Growth(0.0), lyapunov=exponents, axis=profile.axis, steps=len(levels), direction=profile.direction
    )
    if len(known) < 2 or len(finite) < 2:
        return found
    decades, rise, fall, _ = signed(known)
    slope, error = slope_of(finite)
    growth = Growth(decades, rise, fall, known[0] - known[-1], per_step=slope)
    return replace(found, growth=growth, slope=slope, slope_error=error, horizon=horizon_of(slope, error))


def slope_of(levels: Sequence[float]) -> tuple[float, float | None]:
    """Fit a line to `levels`, in decades by step, and return its slope and the standard error of the slope.

    The slope is in decades per step, positive if the gradient grows toward the first step, and is fitted by least squares. The
    gains of the steps multiply, so that the level is a random walk about the line: the squared error is 6/5 of the variance of
    its increments divided by their number, with the autocorrelation of a few steps included (Newey and West 1987). The error is
    None if there are fewer than three increments.
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
    """Return the number of steps in which the gradient gains or loses three decades.

    `slope` and its standard error are in decades per step. Infinite if the slope does not differ significantly from zero.
    """
    return math.inf if abs(slope) <= max(_FLAT * (error or 0.0), _STILL) else _HORIZON / abs(slope)


def _without_sequence(structure: Structure, nodes: Sequence[str], gains: Mapping[str, Gains]) -> TimeGrowth:
    values = {node: gains[node].backward if node in gains else None for node in nodes}
    known = along(nodes, values)[1]
    growth = summarize(structure.graph, nodes, gains)
    levels = tuple(value for value in values.values() if value is not None)
    slope, error = slope_of(known) if len(known) > 1 else (None, None)
    return TimeGrowth(nodes[0], levels, replace(growth, per_step=slope), slope, error, steps=len(nodes))
