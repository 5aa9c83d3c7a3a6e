"""Operators of a model and of its loss that may reach a point at which they break, with what the probe measured there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from gradlint.graph import Graph
from gradlint.measurements.numbers import Range, Suspect
from gradlint.measurements.rehearsal import NonFiniteUpdate
from gradlint.ranges.intervals import bounds
from gradlint.ranges.singularities import Singularity, singularities
from gradlint.result import Measurement


@dataclass(frozen=True, slots=True)
class Hazard:
    """An operator whose argument may reach a point at which the operator breaks.

    Attributes:
        function: Name of the function.
        low: Lower end of the range of the argument.
        high: Upper end of the range of the argument.
        points: Arguments in this range at which the operator breaks.
        limit: Upper end of the range in which the operator is safe.
        seen: Measured range of the argument, or None if it was not measured.
        near: How far the measured argument has come to a point, from 0 to 1; see `Singularity.nearness`. NaN if it is unknown.
        hit: Whether the measured argument reaches a point.
        slope: Whether only the derivative breaks, and not the value.
        overflows: Whether the result overflows the range of its dtype, rather than leaving the domain of the function.
        expected: Whether training plausibly brings the argument to a point.
        broke: Operator that broke at this place in the rehearsal with the user's loss, or "".
        broken: Whether the operator itself broke in the probe.
        node: Id of the operator, or "" in the loss function.
        maker: Id of the node that makes the argument, or "" in the loss function.
        source: Line of the operator in the loss function, or "" in the model.
    """

    function: str
    low: float
    high: float
    points: tuple[float, ...]
    limit: float
    seen: Range | None
    near: float
    hit: bool
    slope: bool
    overflows: bool
    expected: bool = True
    broke: str = ""
    broken: bool = False
    node: str = ""
    maker: str = ""
    source: str = ""

    @property
    def argument(self) -> str:
        """Range of the argument as an interval, such as "[0, 1]" or "[0, inf)"."""
        return bounds(self.low, self.high)

    @property
    def observed(self) -> str:
        """Measured range of the argument as an interval, or "" if it was not measured."""
        return bounds(self.seen.low, self.seen.high) if self.seen is not None else ""


@dataclass(frozen=True)
class Hazards:
    """The hazards of one model; see `Subject.hazards`.

    Attributes:
        graph: The graph.
        measurement: What the probe measured, or None without a probe.
        breach: What broke in the rehearsal with the user's loss, or None.
    """

    graph: Graph
    measurement: Measurement | None
    breach: NonFiniteUpdate | None

    @cached_property
    def in_model(self) -> list[Hazard]:
        """Hazards at nodes of the graph, in execution order."""
        return [self._of_node(item) for item in singularities(self.graph)]

    @property
    def in_loss(self) -> list[Hazard]:
        """Hazards in the loss function, which is not part of the graph."""
        return [self._of_loss(item) for item in (self.measurement.suspects if self.measurement is not None else ())]

    def lines(self, *, overflows: bool, hit: Callable[[Hazard], bool]) -> Iterator[tuple[Hazard, list[Hazard]]]:
        """Group the hazards of one kind by line of the user's code. Lines of the model come before lines of the loss.

        A hazard counts if `hit` holds for it or training is expected to reach it. The worst hazard of a line is one for which
        `hit` holds, otherwise the one with the largest `near`. A NaN counts as 1.

        Args:
            overflows: Whether to return hazards that overflow, or the other ones.
            hit: Returns whether a hazard was reached.

        Yields:
            The worst hazard of a line, and all hazards of this line.
        """
        for found in (self.in_model, self.in_loss):
            lines: dict[object, list[Hazard]] = {}
            for index, item in enumerate(found):
                if item.overflows is overflows and (item.expected or hit(item)):
                    place = self.graph[item.node].source or item.node if item.node else item.source or index
                    lines.setdefault(place, []).append(item)
            for line in lines.values():
                yield max(line, key=lambda item: (hit(item), 1.0 if math.isnan(item.near) else item.near)), line

    def _of_node(self, item: Singularity) -> Hazard:
        measured = self.measurement
        seen = measured.ranges.get(item.operand) if measured is not None else None
        unseen = 0.0 if item.overflows else math.nan
        broken = (measured.nonfinite_forward, measured.nonfinite_backward) if measured is not None else ()
        return Hazard(
            function=item.function,
            low=item.interval.low,
            high=item.interval.high,
            points=item.points,
            limit=item.high,
            seen=seen,
            near=item.nearness(seen.low, seen.high) if seen is not None else unseen,
            hit=seen is not None and item.hit(seen.low, seen.high),
            slope=item.slope,
            overflows=item.overflows,
            expected=item.expected,
            broke=self._broke(item.node),
            broken=any(found is not None and found.node == item.node for found in broken),
            node=item.node,
            maker=item.interval.maker or item.operand,
        )

    def _of_loss(self, item: Suspect) -> Hazard:
        return Hazard(
            function=item.function,
            low=item.low,
            high=item.high,
            points=item.points,
            limit=max(item.points, default=math.inf),
            seen=Range(item.seen_low, item.seen_high),
            near=item.nearness,
            hit=item.hit,
            slope=item.slope,
            overflows=item.overflows,
            broke=self._broke(item.source),
            source=item.source,
        )

    def _broke(self, place: str) -> str:
        """Return the operator that broke at a node or a line of the loss in the rehearsal, or "" if none did."""
        found = self.breach
        return found.op if found is not None and place and place == (found.node or found.source) else ""
