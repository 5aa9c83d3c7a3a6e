"""What a rule is. A rule file imports this module alone.

A rule looks at a `Subject` and yields findings. Its module docstring is its documentation: a first line "GLnnn name:
sentence", then the sections *What it finds*, *Why it explodes* (or *Why it vanishes*, *Why it matters*), *How to fix it* and
*References*. Its `examples` are run by the test suite: each is a small graph and the nodes that the rule must report there.
"""

from __future__ import annotations

import inspect
import math
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, ClassVar

from gradlint.flow import is_weight_layer, kind_of
from gradlint.forecast import INTERVAL, Forecast, forecast
from gradlint.graph import Graph, Node, Ref, Source, Weight
from gradlint.growth import HEALTHY, JUMP, LIMIT
from gradlint.ops import Kind, operator
from gradlint.recipe import Recipe, Task
from gradlint.result import (
    Confidence,
    Cut,
    Effect,
    Finding,
    Gains,
    Growth,
    Measurement,
    NonFinite,
    Place,
    Remedy,
    Severity,
    TimeGrowth,
)
from gradlint.sketch import Sketch
from gradlint.structure import Recurrence, ResidualSum, Structure
from gradlint.theory.branches import are_unsettled, has_norm, hides_norm, normalises, on_skip, starts_at_zero
from gradlint.theory.gaussian import chi, critical_gain, moments
from gradlint.theory.initialised import is_constant, is_torch_default, looks_initialised
from gradlint.theory.logits import Logits, logits_of
from gradlint.theory.prediction import Predicted, Prediction, predict
from gradlint.theory.propagation import Step, main_weight, propagate, squared_gain
from gradlint.theory.recurrence import Loop, loops
from gradlint.theory.trends import RECTIFIERS, Layer, Trend, fall, is_plain, layers, rise

__all__ = [
    "HEALTHY",
    "INTERVAL",
    "JUMP",
    "LIMIT",
    "RECTIFIERS",
    "Confidence",
    "Cut",
    "Effect",
    "Example",
    "Finding",
    "Forecast",
    "Gains",
    "Graph",
    "Growth",
    "Kind",
    "Layer",
    "Logits",
    "Loop",
    "Measurement",
    "Needs",
    "Node",
    "NonFinite",
    "Place",
    "Predicted",
    "Prediction",
    "Recipe",
    "Recurrence",
    "Ref",
    "Remedy",
    "ResidualSum",
    "Rule",
    "Severity",
    "Sketch",
    "Source",
    "Step",
    "Structure",
    "Subject",
    "Task",
    "TimeGrowth",
    "Trend",
    "Weight",
    "chi",
    "compact",
    "critical_gain",
    "fall",
    "has_norm",
    "hides_norm",
    "is_constant",
    "is_plain",
    "is_torch_default",
    "is_weight_layer",
    "kind_of",
    "layers",
    "listed",
    "logits_of",
    "looks_initialised",
    "main_weight",
    "moments",
    "normalises",
    "on_skip",
    "operator",
    "predict",
    "propagate",
    "ranges",
    "rise",
    "squared_gain",
    "starts_at_zero",
]


class Needs(StrEnum):
    """What a rule cannot do without; the engine skips it, with the reason, where that is missing."""

    GRAPH = "graph"
    PROBE = "probe"
    RECIPE = "recipe"
    LOSS = "loss"


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

    @cached_property
    def prediction(self) -> Prediction:
        """What theory says of every operator."""
        return predict(self.structure)

    @cached_property
    def forecast(self) -> Forecast:
        """What theory expects of the whole model."""
        measured = self.measurement.gains if self.measurement is not None else None
        return forecast(self.structure, self.prediction, measured, drawn=self.is_initialised(self.structure.signal))

    @cached_property
    def steps(self) -> tuple[Step, ...]:
        """Predicted gradient factor of every spine step, None where a layer on it hides a norm: its weights say nothing."""
        hidden = {node.id for node in self.graph if hides_norm(node)}
        steps = propagate(self.structure, self.prediction)
        return tuple(step if hidden.isdisjoint(step.via) else replace(step, decades=None) for step in steps)

    def stretches(self, follows: Callable[[Step], bool] = lambda step: step.decades is not None) -> Iterator[tuple[Step, ...]]:
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
    def loops(self) -> list[Loop]:
        """Every recurrence that applies square matrices to its own state."""
        return loops(self.structure)

    def expected_over_time(self, loop: Loop, steps: int) -> float:
        """Predicted decades that the gradient gains over so many steps of a recurrence, fed by a signal of the predicted size."""
        sources = self.graph.parents(loop.node) if len(loop.nodes) == 1 else []
        level = self.prediction.signals[sources[0].id].level if sources and sources[0].id in self.prediction.signals else 0.0
        return steps * (loop.exponent(steps, level if math.isfinite(level) else 0.0) or 0.0)

    def growth_over_time(self, node: str) -> float | None:
        """Measured sustained rise of the gradient along the time axis of the recurrence at `node`, in decades."""
        found = self.measurement.time if self.measurement is not None else ()
        return next((item.growth.rise for item in found if item.node == node), None)

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
        return self.stretches(
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


@dataclass(frozen=True, slots=True)
class Example:
    """A small model, and the nodes that the rule must report in it (none: it must stay silent)."""

    build: Callable[[], Sketch]
    fires_on: tuple[str, ...] = ()


class Rule(ABC):
    """Base of all rules. A subclass sets the class variables and yields findings from `check`."""

    code: ClassVar[str]
    name: ClassVar[str]
    severity: ClassVar[Severity]
    needs: ClassVar[Needs] = Needs.GRAPH
    examples: ClassVar[tuple[Example, ...]]

    @abstractmethod
    def check(self, subject: Subject) -> Iterable[Finding]:
        """Yield a finding for every place that has the pattern."""

    def applies(self, subject: Subject) -> str | None:
        """None when the rule has something to look at, else the reason why it has not."""
        del subject
        return None

    @classmethod
    def documentation(cls) -> str:
        """The rule's documentation, "" under `python -OO`, which strips it."""
        return inspect.cleandoc(sys.modules[cls.__module__].__doc__ or "")

    def finding(
        self,
        subject: Subject,
        nodes: Sequence[str],
        message: str,
        *,
        severity: Severity | None = None,
        remedy: str | None = None,
        effect: Effect | None = None,
        span: tuple[str, str] | None = None,
        confidence: Confidence = Confidence.PREDICTED,
        **evidence: Any,
    ) -> Finding:
        """A finding of this rule about `nodes`, which are put in execution order.

        With an `effect`, the probe checks the claim over `span` (first and last node; by default over the whole model).
        """
        graph = subject.graph
        ordered = tuple(sorted(nodes, key=graph.position.__getitem__))
        first = graph[ordered[0]] if ordered else None
        return Finding(
            rule=self.code,
            name=self.name,
            severity=severity or self.severity,
            message=message,
            nodes=ordered,
            module=compact([graph[node].module for node in ordered]),
            source=(first.definition or first.source) if first else None,
            confidence=confidence,
            evidence=evidence,
            remedy=Remedy(remedy) if remedy else None,
            effect=effect,
            span=span,
        )

    def claim(
        self,
        subject: Subject,
        nodes: Sequence[str],
        message: str,
        *,
        effect: Effect,
        span: tuple[str, str],
        decades: float,
        remedy: str,
        **evidence: Any,
    ) -> Finding:
        """A finding about growth. Unmeasured, it is a warning where the predicted `decades` may be under LIMIT."""
        sure = subject.measurement is not None or abs(decades) - subject.margin(span) >= LIMIT
        severity = self.severity if sure or self.severity is Severity.NOTE else Severity.WARNING
        return self.finding(
            subject,
            nodes,
            message,
            severity=severity,
            remedy=remedy,
            effect=effect,
            span=span,
            decades=decades,
            **evidence,
        )


def compact(modules: Iterable[str]) -> str:
    """Module paths as a person writes them: "blocks.0-29.fc" for blocks.0.fc to blocks.29.fc, else first, second, ...

    More than three unlike paths become "first ... last".
    """
    unique = list(dict.fromkeys(module for module in modules if module))
    patterns: dict[tuple[str, ...], list[list[int]]] = {}
    for module in unique:
        parts = module.split(".")
        shape = tuple("#" if part.isdigit() else part for part in parts)
        patterns.setdefault(shape, []).append([int(part) for part in parts if part.isdigit()])
    texts = [_pattern(shape, rows) for shape, rows in patterns.items()]
    return ", ".join(texts) if len(texts) <= 3 else f"{texts[0]} ... {texts[-1]}"


def listed(names: Sequence[str], shown: int = 3) -> str:
    """Names for a message, the first few of them: "a, b, c and 4 more"."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def ranges(found: NonFinite) -> str:
    """The operands of the operator that broke, as people read them: "(operands in [-3, 5], [0, 0])", or nothing."""
    operands = ", ".join(f"[{low:.3g}, {high:.3g}]" for low, high in found.operands)
    return f" (operands in {operands})" if operands else ""


def _pattern(shape: tuple[str, ...], rows: list[list[int]]) -> str:
    columns = [sorted(set(column)) for column in zip(*rows, strict=True)]
    ranges = iter(str(column[0]) if len(column) == 1 else f"{column[0]}-{column[-1]}" for column in columns)
    return ".".join(next(ranges) if part == "#" else part for part in shape)
