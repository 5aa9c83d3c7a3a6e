"""One model as rules see it: graph, measurement and task, with what theory and structure say of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property

from gradlint.graph import Graph, Node, Weight
from gradlint.predicted_growth import PredictedGrowth, predict_growth
from gradlint.recipe import Recipe, Task
from gradlint.result import Measurement
from gradlint.structure import Structure
from gradlint.subject.claims import Claims, is_initialized
from gradlint.subject.hazards import Hazards
from gradlint.subject.measured_growth import MeasuredGrowth
from gradlint.subject.over_time import OverTime
from gradlint.subject.residuals import Residuals
from gradlint.subject.training import Training
from gradlint.theory.branches import hides_norm, normalizes
from gradlint.theory.initialization import is_constant, looks_initialized
from gradlint.theory.prediction import Prediction, predict
from gradlint.theory.reading.logits import Logits, logits_of
from gradlint.theory.reading.steps import Step, propagate
from gradlint.theory.reading.trends import Layer, is_plain, layers


@dataclass(frozen=True)
class Subject:
    """One model as rules see it. `measurement` is None where nothing was probed."""

    graph: Graph
    measurement: Measurement | None = None
    task: Task = field(default_factory=Task)

    # what was given ---------------------------------------------------------------------------------------------------

    @property
    def probe(self) -> Measurement:
        """What the probe measured. Raises LookupError where nothing was probed: for rules that need the probe."""
        if self.measurement is None:
            raise LookupError("nothing was probed; a rule that looks at the probe has needs = Needs.PROBE")
        return self.measurement

    @property
    def recipe(self) -> Recipe:
        """How the model will be trained. Raises LookupError where that is not known: for rules that need a recipe."""
        if self.task.recipe is None:
            raise LookupError("no recipe was given; a rule that looks at the recipe has needs = Needs.RECIPE")
        return self.task.recipe

    @property
    def outputs(self) -> list[str]:
        """Nodes that make the outputs: where a finding about the model as a whole stands."""
        return list(dict.fromkeys(ref.node for ref in self.graph.outputs))

    # what structure and theory say ------------------------------------------------------------------------------------

    @cached_property
    def structure(self) -> Structure:
        """Spine, residual sums, depth, recurrences; narrowed to what ran where the model was probed."""
        if self.measurement is None:
            return Structure(self.graph)
        return Structure(self.graph, live=self.measurement.live)

    @cached_property
    def prediction(self) -> Prediction:
        """What theory says of every operator."""
        return predict(self.structure)

    @cached_property
    def predicted_growth(self) -> PredictedGrowth:
        """What theory expects of the whole model."""
        measured = self.measurement.gains if self.measurement is not None else None
        return predict_growth(self.structure, self.prediction, measured, drawn=self.is_initialized(self.structure.signal))

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

    def chains(self, *, norms: bool = False) -> Iterator[tuple[Step, ...]]:
        """Runs of plain steps that theory can follow: no skip goes round any operator. Norms break a run unless asked for."""
        return self.runs(
            lambda step: (
                step.decades is not None and self.is_plain(step) and (norms or not self.normalizes(self.graph[step.node]))
            )
        )

    def is_plain(self, step: Step) -> bool:
        """Whether a step is one operator with one input: no skip goes round it."""
        return is_plain(self.structure, step)

    def layers(self, steps: Iterable[Step]) -> list[Layer]:
        """The weight layers among plain steps, each with the activation behind it, or before it where it is the last."""
        return layers(self.structure, tuple(steps))

    def normalizes(self, node: Node) -> bool:
        """Whether a node divides a signal by its own size: a norm, a layer that hides one, or a quotient that spells one out."""
        return normalizes(self.graph, node)

    def hides_norm(self, node: Node) -> bool:
        """Whether a layer holds, or may hold, a BatchNorm that was folded into it: its weights are not those that were drawn."""
        return hides_norm(node)

    def is_initialized(self, nodes: Iterable[str]) -> bool:
        """Whether the weight matrices of these nodes look as if nobody had trained them; masks of attention do not count."""
        return is_initialized(self.structure, nodes)

    def look_drawn(self, weights: Iterable[Weight]) -> bool:
        """Whether at least nine in ten of these weights look as an initializer draws them."""
        return looks_initialized(weights)

    def is_constant(self, weight: Weight) -> bool:
        """Whether all elements of a weight are equal, up to rounding."""
        return is_constant(weight)

    def logits(self) -> Iterator[Logits]:
        """The attention logits on the signal, as large as queries and keys make them that have the measured size."""
        for node in self.structure.signal:
            found = logits_of(self.graph, self.prediction, self.graph[node])
            if found is not None:
                yield self._as_measured(found)

    def _as_measured(self, logits: Logits) -> Logits:
        measured, decades = self.measurement, 0.0
        for node in logits.factors if measured is not None else ():
            gains, predicted = measured.gains.get(node) if measured else None, self.prediction.nodes[node].forward
            if gains is not None and gains.forward is not None and predicted is not None:
                decades += gains.forward - predicted
        known = math.isfinite(decades) and logits.deviation > 0.0
        return replace(logits, deviation=10.0 ** min(math.log10(logits.deviation) + decades, 300.0)) if known else logits

    # companions -------------------------------------------------------------------------------------------------------

    @cached_property
    def claims(self) -> Claims:
        """What may be claimed of predicted growth."""
        return Claims(self.structure, self.prediction, self.measurement)

    @cached_property
    def residuals(self) -> Residuals:
        """The residual sums that steps end in."""
        return Residuals(self.structure)

    @cached_property
    def time(self) -> OverTime:
        """The recurrences, and growth along their time axis."""
        return OverTime(self.structure, self.prediction, self.measurement.time if self.measurement is not None else ())

    @cached_property
    def hazards(self) -> Hazards:
        """Operators whose argument may come to a point where they break."""
        own = self.training.own_rehearsal
        return Hazards(self.graph, self.measurement, own.breach if own is not None else None)

    @cached_property
    def training(self) -> Training:
        """What is known of the training to come."""
        return Training(self.task, self.measurement)

    @cached_property
    def growth(self) -> MeasuredGrowth | None:
        """The measured growth of the whole model; None where nothing was probed or the growth has no ends."""
        measured = self.measurement
        growth = measured.growth if measured is not None else None
        if measured is None or growth is None or growth.start is None or growth.end is None:
            return None
        return MeasuredGrowth(self.structure, measured, growth, growth.start, growth.end)
