"""The model that rules check: its graph, measurement and task, and the facts that structure and theory add."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby

from gradlint.graph import Graph, Node, Weight
from gradlint.growth.tracks import Places, tracks
from gradlint.masks import Masks
from gradlint.measurements.trainability import Trainability
from gradlint.measurements.units import Cut
from gradlint.predicted_growth import PredictedGrowth, predict_growth
from gradlint.recipe import Recipe, Task
from gradlint.result import Measurement
from gradlint.structure import Structure
from gradlint.subject.claims import Claims
from gradlint.subject.cuts import expected_cuts, expected_trainability
from gradlint.subject.hazards import Hazards
from gradlint.subject.measured_growth import MeasuredGrowth
from gradlint.subject.over_time import OverTime
from gradlint.subject.residuals import Residuals
from gradlint.subject.training import Training
from gradlint.theory.branches import hides_norm, normalizes
from gradlint.theory.initialization import is_constant, is_initialized, looks_initialized
from gradlint.theory.prediction import Prediction, predict
from gradlint.theory.reading.logits import Logits, logits_of
from gradlint.theory.reading.steps import Step, propagate
from gradlint.theory.reading.trends import Layer, is_plain, layers
from gradlint.theory.reading.zeros import shut_weights


@dataclass(frozen=True)
class Subject:
    """The model that rules check.

    Attributes:
        graph: The graph of operator calls.
        measurement: What the probe measured, or None without a probe.
        task: The loss, the target and the recipe, as far as they are known.
        parameters: Of a module, the number of elements of each trainable parameter and of all frozen ones; None of a file.
    """

    graph: Graph
    measurement: Measurement | None = None
    task: Task = field(default_factory=Task)
    parameters: tuple[dict[str, int], int] | None = None

    # what was given ---------------------------------------------------------------------------------------------------

    @property
    def probe(self) -> Measurement:
        """What the probe measured, for rules that need the probe.

        Raises:
            LookupError: The model was not probed.
        """
        if self.measurement is None:
            raise LookupError("the model was not probed; a rule that reads `probe` must set needs = Needs.PROBE")
        return self.measurement

    @property
    def recipe(self) -> Recipe:
        """How the model will be trained, for rules that need a recipe.

        Raises:
            LookupError: No recipe was given.
        """
        if self.task.recipe is None:
            raise LookupError("no recipe was given; a rule that reads `recipe` must set needs = Needs.RECIPE")
        return self.task.recipe

    @property
    def cuts(self) -> tuple[Cut, ...]:
        """Operators that cut weights off from every gradient, as measured or, without a probe, as the graph tells."""
        return self.measurement.cuts if self.measurement is not None else expected_cuts(self.graph)

    @cached_property
    def trainability(self) -> Trainability | None:
        """Which parameters learn, as measured or, of a torch module without a probe, as the graph tells. None of a file then."""
        if self.measurement is not None:
            return self.measurement.trainability
        return expected_trainability(self.graph, *self.parameters) if self.parameters is not None else None

    @cached_property
    def shut_weights(self) -> frozenset[str]:
        """Names of trainable weights of zeros that never open, as far as the graph tells."""
        return shut_weights(self.graph)

    @property
    def is_idle(self) -> bool:
        """Whether the model has parameters and none of them can learn."""
        return self.trainability is not None and self.trainability.learns_nothing

    @property
    def outputs(self) -> list[str]:
        """Ids of the nodes that make the outputs, at which a finding about the whole model is reported."""
        return list(dict.fromkeys(ref.node for ref in self.graph.outputs))

    # what structure and theory say ------------------------------------------------------------------------------------

    @cached_property
    def structure(self) -> Structure:
        """Spine, residual sums, depth and recurrences. After a probe, only nodes that ran and carried a gradient count."""
        if self.measurement is None:
            return Structure(self.graph)
        return Structure(self.graph, live=self.measurement.live)

    @cached_property
    def prediction(self) -> Prediction:
        """Predicted signal and gradient at every node."""
        return predict(self.structure)

    @cached_property
    def predicted_growth(self) -> PredictedGrowth:
        """Predicted growth of the whole model."""
        drawn = self.is_initialized(self.structure.signal)
        return predict_growth(self.structure, self.prediction, self.measurement, drawn=drawn)

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Steps of the spine with their predicted decades; see `steps_along`."""
        return self.steps_along(self.structure.spine)

    def steps_along(self, chain: Sequence[str]) -> tuple[Step, ...]:
        """Return the steps of a chain with their predicted decades.

        The decades are None if a layer of the step hides a norm, because its weights differ from the initial ones.
        """
        key = tuple(chain)
        if key not in self._steps:
            hidden = {node.id for node in self.graph if hides_norm(node)}
            steps = propagate(self.structure, self.prediction, chain)
            self._steps[key] = tuple(step if hidden.isdisjoint(step.via) else replace(step, decades=None) for step in steps)
        return self._steps[key]

    @cached_property
    def _steps(self) -> dict[tuple[str, ...], tuple[Step, ...]]:
        return {}

    @cached_property
    def tracks(self) -> tuple[tuple[str, ...], ...]:
        """Every chain of weight layers, the spine first; see `gradlint.growth.tracks.tracks`."""
        found = tracks(self.structure)
        return found if self.structure.spine in found else (self.structure.spine, *found)

    @cached_property
    def places(self) -> Places:
        """Where nodes stand on the tracks."""
        return Places(self.tracks)

    def runs(self, follows: Callable[[Step], bool] = lambda step: step.decades is not None) -> Iterator[tuple[Step, ...]]:
        """Yield the runs of consecutive steps of a track that `follows` accepts, by default those that theory can follow."""
        for chain in self.tracks:
            for followed, run in groupby(self.steps_along(chain), follows):
                if followed:
                    yield tuple(run)

    def chains(self, *, norms: bool = False) -> Iterator[tuple[Step, ...]]:
        """Return the runs of plain steps that theory can follow. A norm ends a run unless `norms` is true."""
        return self.runs(
            lambda step: (
                step.decades is not None and self.is_plain(step) and (norms or not self.normalizes(self.graph[step.node]))
            )
        )

    def is_plain(self, step: Step) -> bool:
        """Return whether a step is a single operator with one input on the signal, without a skip connection."""
        return is_plain(self.structure, step)

    def layers(self, steps: Iterable[Step]) -> list[Layer]:
        """Return the weight layers of plain steps, each with the activation after it, or before it for the last layer."""
        found = tuple(steps)
        return layers(self.structure, found, self.places.chain(found[0].node)) if found else []

    def normalizes(self, node: Node) -> bool:
        """Return whether a node divides a signal by its own size: a norm, a layer that hides one, or a hand-written norm."""
        return normalizes(self.graph, node)

    def hides_norm(self, node: Node) -> bool:
        """Return whether a BatchNorm was, or may have been, folded into a layer, whose weights then differ from initial ones."""
        return hides_norm(node)

    def is_initialized(self, nodes: Iterable[str]) -> bool:
        """Return whether the weight matrices of these nodes look untrained. Those of attention do not count."""
        return is_initialized(self.structure, nodes)

    def look_drawn(self, weights: Iterable[Weight]) -> bool:
        """Return whether at least nine in ten of these weights look as an initializer draws them."""
        return looks_initialized(weights)

    def is_constant(self, weight: Weight) -> bool:
        """Return whether all elements of a weight are equal up to rounding."""
        return is_constant(weight)

    def logits(self) -> Iterator[Logits]:
        """Yield the attention logits on the signal, scaled to the measured size of queries and keys if it is known."""
        for node in self.structure.signal:
            found = logits_of(self.masks, self.prediction, self.graph[node])
            if found is not None:
                yield self._as_measured(found)

    @cached_property
    def masks(self) -> Masks:
        """The masks that are added to logits, or put in their place."""
        return Masks(self.graph)

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
        """Claims about predicted growth."""
        return Claims(self.structure, self.prediction, self.measurement, self.places)

    @cached_property
    def residuals(self) -> Residuals:
        """Facts about steps that end in a residual sum."""
        return Residuals(self.structure)

    @cached_property
    def time(self) -> OverTime:
        """Recurrences, and growth along their time axis."""
        return OverTime(self.structure, self.prediction, self.measurement.time if self.measurement is not None else ())

    @cached_property
    def hazards(self) -> Hazards:
        """Operators whose argument may reach a point at which they break."""
        own = self.training.own_rehearsal
        return Hazards(self.graph, self.measurement, own.breach if own is not None else None)

    @cached_property
    def training(self) -> Training:
        """Facts about the training of the model."""
        return Training(self.task, self.measurement)

    @cached_property
    def growth(self) -> MeasuredGrowth | None:
        """Measured growth of the whole model. None without a probe, or if the growth has no start and end."""
        measured = self.measurement
        growth = measured.growth if measured is not None else None
        if measured is None or growth is None or growth.start is None or growth.end is None:
            return None
        return MeasuredGrowth(self.structure, measured, growth, growth.start, growth.end)
