"""The measured growth of the whole model, with the text and the evidence that findings about it share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gradlint.growth import LIMIT, about, nearness
from gradlint.growth.tracks import counted
from gradlint.result import Growth, Measurement, Place
from gradlint.signal_path import is_weight_layer
from gradlint.structure import Structure
from gradlint.theory.branches import are_unsettled

_NOT_BORNE_OUT = ", which the gradients of the weights do not follow"
_UNSETTLED = ", with BatchNorm on statistics that are not those of this signal"


@dataclass(frozen=True)
class MeasuredGrowth:
    """The measured growth of one model; see `Subject.growth`.

    Attributes:
        structure: The structure of the graph.
        measurement: What the probe measured.
        growth: The growth, in decades.
        start: Place at which the growth starts, nearer to the input.
        end: Place at which the growth ends, nearer to the output.
    """

    structure: Structure
    measurement: Measurement
    growth: Growth
    start: Place
    end: Place

    @property
    def decades(self) -> float:
        """Sustained growth in decades, positive if the gradient grows towards the input."""
        return self.growth.decades

    @property
    def nodes(self) -> list[str]:
        """Ids of the weight layers on the measured spine from start to end, or of these two nodes if there are none."""
        return self._weighted or list(dict.fromkeys((self.start.node, self.end.node)))

    @property
    def layers(self) -> int:
        """Number of weight layers on the longest path from start to end."""
        depths = self.structure.depths
        depth = depths.get(self.end.node, 0) - depths.get(self.start.node, 0)
        return depth or len(self._weighted)

    def factor(self, decades: float) -> float:
        """Return the factor per layer that corresponds to `decades` over all layers."""
        return float(10 ** (decades / max(self.layers, 1)))

    @property
    def counted(self) -> float:
        """The growth that counts, with gradients of weights and the output in it; see `gradlint.growth.tracks.counted`."""
        return counted(self.decades, self.measurement.learning)

    @property
    def reason(self) -> str:
        """What decides if the gradient of activations does not: the drift of gradients of weights, or the output; or ""."""
        learning = self.measurement.learning
        if abs(self.decades) >= LIMIT or abs(self.counted) < LIMIT:
            return ""
        if learning.drifts and learning.spread is not None:
            verb = "grows" if learning.spread > 0.0 else "shrinks to"
            return f"the gradient of weights {verb} 10^{learning.spread:.1f} from {self.end.module} back to {self.start.module}"
        return f"the signal grows to 10^{learning.output or 0.0:.1f} at the output"

    @property
    def is_doubtful(self) -> bool:
        """Whether the growth is no fault by itself: its BatchNorms are unsettled, or gradients of weights do not bear it out."""
        return self.is_unsettled or abs(self.counted) < LIMIT

    @property
    def is_borne_out(self) -> bool:
        """Whether the gradients of weights, which are what moves a model, bear this growth out."""
        return self.measurement.learning.bears_out(self.decades)

    @property
    def is_unsettled(self) -> bool:
        """Whether most BatchNorms from start to end run in eval mode with statistics that do not match their input.

        Growth in training differs then, because training divides by the statistics of the batch. See `are_unsettled`.
        """
        (first, last), graph = self._ends, self.structure.graph
        levels = {node: gains.forward for node, gains in self.measurement.gains.items()}
        return are_unsettled(graph, (node for node in graph if first <= graph.position[node.id] <= last), levels)

    @property
    def remarks(self) -> str:
        """End of a message about this growth: whether it is near the limit, and whether its BatchNorms are unsettled."""
        return nearness(self.growth, self.measurement) + _UNSETTLED * self.is_unsettled + _NOT_BORNE_OUT * (not self.is_borne_out)

    @property
    def evidence(self) -> dict[str, Any]:
        """Evidence about this growth: its spread, the Jacobian between its ends, and its size for other draws of the weights."""
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
