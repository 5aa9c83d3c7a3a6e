"""What a rule is. A rule file imports this module alone.

A rule looks at a `Subject` and yields findings. Its module docstring is its documentation: a first line "GLnnn name:
sentence", then the sections *What it finds*, *Why it explodes* (or *Why it vanishes*, *Why it matters*), *How to fix it* and
*References*. Its `examples` are run by the test suite: each is a small graph and the nodes that the rule must report there.
"""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from gradlint.graph import Graph, Node, Ref, Source, Weight
from gradlint.graph_builder import GraphBuilder
from gradlint.growth import HEALTHY, JUMP, LIMIT, about, nearness
from gradlint.measurements.curvature import Curvature
from gradlint.measurements.loss import InputFacts, LossFacts
from gradlint.measurements.numbers import Headroom, Levels, Range, Suspect
from gradlint.measurements.rehearsal import Cause, DeadUnits, NonFiniteUpdate, Rehearsal, Trial
from gradlint.measurements.units import Units, ZeroGradient
from gradlint.ops import Kind, operator
from gradlint.predicted_growth import INTERVAL
from gradlint.ranges.intervals import bounds
from gradlint.ranges.singularities import Singularity
from gradlint.recipe import Recipe, Task
from gradlint.result import Confidence, Cut, Effect, Finding, Gains, Growth, Measurement, NonFinite, Remedy, Severity, TimeGrowth
from gradlint.signal_path import is_weight_layer, kind_of
from gradlint.structure import Structure
from gradlint.subject import Subject
from gradlint.theory.branches import has_norm, hides_norm, normalises, on_skip, starts_at_zero
from gradlint.theory.gaussian.integrals import chi
from gradlint.theory.initialization import is_constant, is_torch_default, looks_initialised
from gradlint.theory.prediction import predict
from gradlint.theory.reading.logits import Logits, logits_of
from gradlint.theory.reading.steps import Step, main_weight, propagate, squared_gain
from gradlint.theory.reading.trends import RECTIFIERS, Layer, Trend, fall, imbalance, is_plain, layers, rise
from gradlint.theory.recurrence.loops import Loop

__all__ = [
    "HEALTHY",
    "INTERVAL",
    "JUMP",
    "LIMIT",
    "RECTIFIERS",
    "Cause",
    "Confidence",
    "Curvature",
    "Cut",
    "DeadUnits",
    "Effect",
    "Example",
    "Finding",
    "Gains",
    "Graph",
    "GraphBuilder",
    "Growth",
    "Headroom",
    "InputFacts",
    "Kind",
    "Layer",
    "Levels",
    "Logits",
    "Loop",
    "LossFacts",
    "Measurement",
    "Needs",
    "Node",
    "NonFinite",
    "NonFiniteUpdate",
    "Range",
    "Recipe",
    "Ref",
    "Rehearsal",
    "Rule",
    "Severity",
    "Singularity",
    "Source",
    "Step",
    "Structure",
    "Subject",
    "Suspect",
    "Task",
    "TimeGrowth",
    "Trend",
    "Trial",
    "Units",
    "Weight",
    "ZeroGradient",
    "about",
    "bounds",
    "chi",
    "compact",
    "fall",
    "has_norm",
    "hides_norm",
    "imbalance",
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
    "nearness",
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


@dataclass(frozen=True, slots=True)
class Example:
    """A small model, and the nodes that the rule must report in it (none: it must stay silent)."""

    build: Callable[[], GraphBuilder]
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
        source: str = "",
        **evidence: Any,
    ) -> Finding:
        """A finding of this rule about `nodes`, which are put in execution order.

        With an `effect`, the probe checks the claim over `span` (first and last node; by default over the whole model). `source`
        is "file:line" of what is no node.
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
            source=(first.definition or first.source) if first else _place(source),
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


def _place(source: str) -> Source | None:
    file, _, line = source.rpartition(":")
    return Source(file, int(line)) if line.isdigit() else None


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
