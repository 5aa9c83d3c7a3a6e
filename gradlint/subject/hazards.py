"""Operators that may come to a point where they break, of the model and of its loss, with what the probe saw of them."""

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
    """An operator whose argument lies in [low, high] and may come to one of `points`, where it breaks.

    `node` is its node, `maker` the node that made the argument; both are empty in the loss function, whose line is `source`.
    `slope` says that its derivative breaks and not its value, `overflows` that it is the range of the type that is left, at
    `limit`. `expected` says that training plausibly brings the argument there. `seen` holds what the probe saw of the argument,
    `near` the part of the way to the point that this is (see `Singularity.nearness`; NaN where it is not known) and `hit` whether
    it is at the point. `broke` is the operator that broke at this place in the rehearsal with the user's loss, if any; `broken`
    says that the operator itself broke in the probe.
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
        """Where the argument lies, as people write it: "[0, 1]", "[0, inf)"."""
        return bounds(self.low, self.high)

    @property
    def observed(self) -> str:
        """What the probe saw of the argument, written likewise; "" for nothing."""
        return bounds(self.seen.low, self.seen.high) if self.seen is not None else ""


@dataclass(frozen=True)
class Hazards:
    """The hazards of one model, as `Subject.hazards`."""

    graph: Graph
    measurement: Measurement | None
    breach: NonFiniteUpdate | None  # what broke in the rehearsal with the user's loss

    @cached_property
    def in_model(self) -> list[Hazard]:
        """Those of the graph, in execution order."""
        return [self._of_node(item) for item in singularities(self.graph)]

    @property
    def in_loss(self) -> list[Hazard]:
        """Those of the loss function, which are no nodes."""
        return [self._of_loss(item) for item in (self.measurement.suspects if self.measurement is not None else ())]

    def lines(self, *, overflows: bool, hit: Callable[[Hazard], bool]) -> Iterator[tuple[Hazard, list[Hazard]]]:
        """The hazards of one kind by line of the user's code, each line with its worst one: of the model, then of the loss.

        Those are left out that `hit` does not hold for and that are not expected either. The worst is one that was hit, then
        one that may be on both sides of its pole, then the one that came nearest.
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
        """The operator that broke in the rehearsal at a node, or at a line of the loss; "" where it was another one."""
        found = self.breach
        return found.op if found is not None and place and place == (found.node or found.source) else ""
