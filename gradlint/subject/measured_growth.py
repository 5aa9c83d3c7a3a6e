"""The measured growth of the whole model, in the words and numbers that findings about it share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gradlint.growth import about, nearness
from gradlint.result import Growth, Measurement, Place
from gradlint.signal_path import is_weight_layer
from gradlint.structure import Structure
from gradlint.theory.branches import are_unsettled

_UNSETTLED = ", with BatchNorm on statistics that are not those of this signal"


@dataclass(frozen=True)
class MeasuredGrowth:
    """The measured growth of one model, as `Subject.growth`; `start` and `end` are the nodes that it lies between."""

    structure: Structure
    measurement: Measurement
    growth: Growth
    start: Place
    end: Place

    @property
    def decades(self) -> float:
        """Sustained growth towards the input, negative for a decay."""
        return self.growth.decades

    @property
    def nodes(self) -> list[str]:
        """The weight layers of the measured chain from start to end; these two nodes where it has none."""
        return self._weighted or list(dict.fromkeys((self.start.node, self.end.node)))

    @property
    def layers(self) -> int:
        """How many weight layers lie between start and end, one after another."""
        depths = self.structure.depths
        depth = depths.get(self.end.node, 0) - depths.get(self.start.node, 0)
        return depth or len(self._weighted)

    def factor(self, decades: float) -> float:
        """The factor a layer that makes so many decades over all of them."""
        return float(10 ** (decades / max(self.layers, 1)))

    @property
    def is_unsettled(self) -> bool:
        """Whether the BatchNorms from start to end are in eval mode on statistics that are not those of the signal.

        What is measured there is not what training does, which divides by the statistics of the batch.
        """
        (first, last), graph = self._ends, self.structure.graph
        levels = {node: gains.forward for node, gains in self.measurement.gains.items()}
        return are_unsettled(graph, (node for node in graph if first <= graph.position[node.id] <= last), levels)

    @property
    def remarks(self) -> str:
        """What a message on this growth ends with: how near the limit it is, and whether its BatchNorms are unsettled."""
        return nearness(self.growth, self.measurement) + _UNSETTLED * self.is_unsettled

    @property
    def evidence(self) -> dict[str, Any]:
        """Its spread, the Jacobian between its ends, and other draws of the weights, as far as they were measured."""
        return about(self.growth, self.measurement)

    @property
    def _ends(self) -> tuple[int, int]:
        position = self.structure.graph.position
        return position[self.start.node], position[self.end.node]

    @property
    def _weighted(self) -> list[str]:
        (first, last), graph = self._ends, self.structure.graph
        within = [node for node in self.measurement.spine if first <= graph.position[node] <= last]
        return [node for node in within if is_weight_layer(graph[node])]
