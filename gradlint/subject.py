"""One model as rules see it: graph, measurement and task, with what theory and structure say of them."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from gradlint.graph import Graph
from gradlint.growth import HEALTHY
from gradlint.measurements.numbers import Range
from gradlint.measurements.rehearsal import Rehearsal
from gradlint.predicted_growth import INTERVAL, PredictedGrowth, predict_growth
from gradlint.ranges.singularities import Singularity, singularities
from gradlint.recipe import Task
from gradlint.result import Measurement, Place, TimeGrowth
from gradlint.signal_path import is_weight_layer
from gradlint.structure import Structure
from gradlint.theory.branches import are_unsettled, hides_norm, normalises
from gradlint.theory.initialization import looks_initialised
from gradlint.theory.prediction import Prediction, predict
from gradlint.theory.reading.steps import Step, propagate
from gradlint.theory.reading.trends import Trend, is_plain
from gradlint.theory.recurrence.loops import Loop, TimeGrowthRate, loops


@dataclass(frozen=True)
class Subject:
    """One model as rules see it. `measurement` is None where nothing was probed."""

    graph: Graph
    measurement: Measurement | None = None
    task: Task = field(default_factory=Task)

    @cached_property
    def structure(self) -> Structure:
        """Spine, residual sums, depth, recurrences; narrowed to what ran where the model was probed."""
        if self.measurement is None:
            return Structure(self.graph)
        return Structure(self.graph, live=self.measurement.live)

    @property
    def outputs(self) -> list[str]:
        """Nodes that make the outputs: where a finding about the model as a whole stands."""
        return list(dict.fromkeys(ref.node for ref in self.graph.outputs))

    @cached_property
    def prediction(self) -> Prediction:
        """What theory says of every operator."""
        return predict(self.structure)

    @cached_property
    def predicted_growth(self) -> PredictedGrowth:
        """What theory expects of the whole model."""
        measured = self.measurement.gains if self.measurement is not None else None
        return predict_growth(self.structure, self.prediction, measured, drawn=self.is_initialised(self.structure.signal))

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Predicted gradient factor of every spine step, None where a layer on it hides a norm: its weights say nothing."""
        hidden = {node.id for node in self.graph if hides_norm(node)}
        steps = propagate(self.structure, self.prediction)
        return tuple(step if hidden.isdisjoint(step.via) else replace(step, decades=None) for step in steps)

    def runs(self, follows: Callable[[Step], bool] = lambda step: step.decades is not None) -> Iterator[tuple[Step, ...]]:
        """Runs of consecutive spine steps that `follows` accepts, by default those that theory can follow."""
        run: list[Step] = []
        for step in self.steps:
            if follows(step):
                run.append(step)
            elif run:
                yield tuple(run)
                run = []
        if run:
            yield tuple(run)

    def margin(self, span: tuple[str, str]) -> float:
        """Decades by which growth over the steps that end in these two spine nodes may miss its prediction (90 % interval)."""
        structure, nodes = self.structure, self.prediction.nodes
        if not structure.spine_index.keys() >= set(span):
            return 0.0
        ends = structure.spine[max(structure.spine_index[span[0]] - 1, 0)], span[1]
        variances = [nodes[node].backward_sd ** 2 if node in nodes else 0.0 for node in ends]
        return INTERVAL * math.sqrt(max(variances[0] - variances[1], 0.0))

    def is_claim(self, trend: Trend) -> bool:
        """Whether a predicted trend is large enough for a claim: HEALTHY decades or more.

        Where the probe will check it, one that may reach them within its interval is enough.
        """
        if trend.span is None:
            return False
        return abs(trend.decades) + (self.margin(trend.span) if self.measurement is not None else 0.0) >= HEALTHY

    @cached_property
    def singularities(self) -> list[Singularity]:
        """Operators whose argument may come to a point where they break."""
        return singularities(self.graph)

    @property
    def rehearsal(self) -> Rehearsal | None:
        """The rehearsal with the loss that the model will have; None where there was none."""
        found = self.measurement.rehearsal if self.measurement is not None else None
        return found if found is not None and not found.is_surrogate else None

    def seen(self, node: str) -> Range | None:
        """The smallest and the largest value that the probe saw of a node; None where nothing was probed."""
        return self.measurement.ranges.get(node) if self.measurement is not None else None

    @cached_property
    def loops(self) -> list[Loop]:
        """Every recurrence that applies square matrices to its own state."""
        return loops(self.structure)

    def expected_over_time(self, loop: Loop, steps: int) -> float:
        """Predicted decades that the gradient gains over so many steps of a recurrence, fed by a signal of the predicted size."""
        sources = self.graph.parents(loop.node) if len(loop.nodes) == 1 else []
        level = self.prediction.signals[sources[0].id].level if sources and sources[0].id in self.prediction.signals else 0.0
        return steps * (loop.exponent(steps, level if math.isfinite(level) else 0.0) or 0.0)

    def time_growth_rate(self, loop: Loop) -> TimeGrowthRate | None:
        """How the gradient fades or grows along a recurrence, in the direction that fades fastest: measured, else predicted.

        None where neither is known, or the length of the sequence is not.
        """
        found = self.measurement.time if self.measurement is not None else ()
        told = [item for item in found if item.node == loop.node and item.slope is not None]
        if told:
            item = min(told, key=lambda item: item.slope or 0.0)
            return TimeGrowthRate(item.slope or 0.0, item.horizon or math.inf, item.steps, measured=True)
        return (
            TimeGrowthRate.predicted(self.expected_over_time(loop, loop.steps) / loop.steps, loop.steps) if loop.steps else None
        )

    def steps_of(self, loop: Loop) -> int | None:
        """How many steps the probe saw a recurrence make; None where it saw none."""
        found = self.measurement.time if self.measurement is not None else ()
        return next((item.steps for item in found if item.node == loop.node and item.steps), None)

    def alike(self, found: Iterable[TimeGrowth]) -> list[list[TimeGrowth]]:
        """Recurrences by place: those of one operator, of modules that differ by a number alone, and of one state go together."""
        groups: dict[object, list[TimeGrowth]] = {}
        places: dict[tuple[float, ...], object] = {}
        for item in found:
            if item.node in self.graph:
                node = self.graph[item.node]
                place = (node.op, re.sub(r"\d+", "#", node.module or node.id))
                groups.setdefault(places.setdefault(item.backward, place) if item.backward else place, []).append(item)
        return list(groups.values())

    def growth_over_time(self, node: str) -> float | None:
        """Measured sustained rise of the gradient along the time axis of the recurrence at `node`, in decades."""
        found = self.measurement.time if self.measurement is not None else ()
        return max((item.growth.rise for item in found if item.node == node), default=None)

    def layers_between(self, start: Place, end: Place) -> tuple[list[str], int]:
        """The weight layers of the measured chain from start to end (those two where it has none), and the depth between."""
        first, last = self.graph.position[start.node], self.graph.position[end.node]
        chain = self.measurement.spine if self.measurement is not None else ()
        within = [node for node in chain if first <= self.graph.position[node] <= last]
        layers = [node for node in within if is_weight_layer(self.graph[node])]
        depth = self.structure.depths.get(end.node, 0) - self.structure.depths.get(start.node, 0)
        return layers or list(dict.fromkeys((start.node, end.node))), depth or len(layers)

    def is_unsettled(self, start: Place, end: Place) -> bool:
        """Whether the BatchNorms from start to end are in eval mode on statistics that are not those of the signal.

        What is measured there is not what training does, which divides by the statistics of the batch.
        """
        first, last = self.graph.position[start.node], self.graph.position[end.node]
        levels = {node: gains.forward for node, gains in self.measurement.gains.items()} if self.measurement is not None else {}
        return are_unsettled(self.graph, (n for n in self.graph if first <= self.graph.position[n.id] <= last), levels)

    def chains(self, *, norms: bool = False) -> Iterator[tuple[Step, ...]]:
        """Runs of plain steps that theory can follow: no skip goes round any operator. Norms break a run unless asked for."""
        return self.runs(
            lambda step: (
                step.decades is not None
                and is_plain(self.structure, step)
                and (norms or not normalises(self.graph, self.graph[step.node]))
            )
        )

    def is_initialised(self, nodes: Iterable[str]) -> bool:
        """Whether the weight matrices of these nodes look as if nobody had trained them; masks of attention are none."""
        return looks_initialised(
            weight
            for node in nodes
            if is_weight_layer(self.graph[node]) and self.graph[node].op != "attention"
            for role, weight in self.graph[node].weights.items()
            if len(weight.shape) > 1 and "bias" not in role
        )

    def can_claim(self, nodes: Iterable[str]) -> bool:
        """Whether a claim about growth through these nodes can stand: the probe will check it, or their weights look drawn.

        Predictions are about random weights; about trained ones nothing is claimed that is not measured.
        """
        return self.measurement is not None or self.is_initialised(nodes)
