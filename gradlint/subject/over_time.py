"""The time axis of a model's recurrences: how fast the gradient grows or fades along it, predicted and measured."""

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
    """The recurrences of one model, as `Subject.time`. `measured` is empty where nothing was probed."""

    structure: Structure
    prediction: Prediction
    measured: tuple[TimeGrowth, ...]

    @cached_property
    def loops(self) -> list[Loop]:
        """Every recurrence that applies square or diagonal matrices to its own state."""
        return loops(self.structure)

    def predicted(self, loop: Loop, steps: int) -> float:
        """Predicted decades that the gradient gains over so many steps of a recurrence, fed by a signal of the predicted size."""
        sources = self.structure.graph.parents(loop.node) if len(loop.nodes) == 1 else []
        level = self.prediction.signals[sources[0].id].level if sources and sources[0].id in self.prediction.signals else 0.0
        return steps * (loop.exponent(steps, level if math.isfinite(level) else 0.0) or 0.0)

    def rate(self, loop: Loop) -> TimeGrowthRate | None:
        """How the gradient fades or grows along a recurrence, in the direction that fades fastest: measured, else predicted.

        None where neither is known, or the length of the sequence is not.
        """
        told = [item for item in self.measured if item.node == loop.node and item.slope is not None]
        if told:
            item = min(told, key=lambda item: item.slope or 0.0)
            return TimeGrowthRate(item.slope or 0.0, item.horizon or math.inf, item.steps, measured=True)
        return TimeGrowthRate.predicted(self.predicted(loop, loop.steps) / loop.steps, loop.steps) if loop.steps else None

    def growth(self, loop: Loop) -> float | None:
        """Measured sustained rise of the gradient along the time axis of a recurrence, in decades."""
        return max((item.growth.rise for item in self.measured if item.node == loop.node), default=None)

    def steps(self, loop: Loop) -> int | None:
        """How many steps a recurrence makes, as the probe saw or else the graph says; None where neither knows."""
        return next((item.steps for item in self.measured if item.node == loop.node and item.steps), loop.steps)

    def alike(self, found: Iterable[TimeGrowth]) -> list[list[TimeGrowth]]:
        """Recurrences by place: those of one operator, of modules that differ by a number alone, and of one state go together."""
        graph = self.structure.graph
        groups: dict[object, list[TimeGrowth]] = {}
        places: dict[tuple[float, ...], object] = {}
        for item in found:
            if item.node in graph:
                node = graph[item.node]
                place = (node.op, re.sub(r"\d+", "#", node.module or node.id))
                groups.setdefault(places.setdefault(item.backward, place) if item.backward else place, []).append(item)
        return list(groups.values())
