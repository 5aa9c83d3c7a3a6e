"""Predicted and measured growth of the gradient along the time axis of a model's recurrences."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from gradlint.result import TimeGrowth
from gradlint.structure import Structure
from gradlint.theory.prediction import Prediction
from gradlint.theory.recurrence.loops import Loop, TimeGrowthRate, loops


@dataclass(frozen=True)
class OverTime:
    """The recurrences of one model; see `Subject.time`.

    Attributes:
        structure: The structure of the graph.
        prediction: What theory predicts at every node.
        measured: Measured growth along time, one item per recurrence and direction. Empty without a probe.
    """

    structure: Structure
    prediction: Prediction
    measured: tuple[TimeGrowth, ...]

    @cached_property
    def loops(self) -> list[Loop]:
        """All recurrences that apply square or diagonal matrices to their own state."""
        return loops(self.structure)

    def predicted(self, loop: Loop, steps: int) -> float:
        """Return the predicted growth of the gradient over a number of steps, in decades, for an input of the predicted size."""
        sources = self.structure.graph.parents(loop.node) if len(loop.nodes) == 1 else []
        level = self.prediction.signals[sources[0].id].level if sources and sources[0].id in self.prediction.signals else 0.0
        return steps * (loop.exponent(steps, level if math.isfinite(level) else 0.0) or 0.0)

    def rate(self, loop: Loop) -> TimeGrowthRate | None:
        """Return the measured rate in the direction in which the gradient fades fastest, or the predicted rate without one.

        The result is None if neither rate or no length of the sequence is known. Rates are in decades per step.
        """
        told = [item for item in self.measured if item.node == loop.node and item.slope is not None]
        if told:
            item = min(told, key=lambda item: item.slope or 0.0)
            return TimeGrowthRate(item.slope or 0.0, item.horizon or math.inf, item.steps, measured=True)
        return TimeGrowthRate.predicted(self.predicted(loop, loop.steps) / loop.steps, loop.steps) if loop.steps else None

    def growth(self, loop: Loop) -> float | None:
        """Return the largest measured sustained rise along the time axis of a recurrence, in decades; None if unmeasured."""
        return max((item.growth.rise for item in self.measured if item.node == loop.node), default=None)

    def steps(self, loop: Loop) -> int | None:
        """Return the number of steps of a recurrence from the probe, or else from the graph; None if both are unknown."""
        return next((item.steps for item in self.measured if item.node == loop.node and item.steps), loop.steps)

    def alike(self, found: Iterable[TimeGrowth]) -> list[list[TimeGrowth]]:
        """Group measured recurrences by place.

        A group has the same operator in modules whose paths differ only in numbers, or the same gradients along time, because
        these belong to one state.
        """
        graph = self.structure.graph
        groups: dict[object, list[TimeGrowth]] = {}
        places: dict[tuple[float, ...], object] = {}
        for item in found:
            if item.node in graph:
                node = graph[item.node]
                place = (node.op, re.sub(r"\d+", "#", node.module or node.id))
                groups.setdefault(places.setdefault(item.backward, place) if item.backward else place, []).append(item)
        return list(groups.values())
