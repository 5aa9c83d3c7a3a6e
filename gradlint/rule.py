"""The base class of rules, and every name that a rule file needs. A rule file imports only this module.

A rule checks a `Subject` and yields findings. The module docstring is the documentation of the rule: a first line "GLnnn name:
sentence", then the sections *What it finds*, *Why it explodes* (or *Why it vanishes*, *Why it matters*), *How to fix it* and
*References*. The test suite runs its `examples`: each is a small graph and the nodes that the rule must report there.
`docs/rule-packs.md` describes the names of this module, which do not change within a major version.
"""

from __future__ import annotations

import inspect
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

from gradlint.graph import Node, Source, Weight
from gradlint.graph_builder import GraphBuilder
from gradlint.growth import HEALTHY, LIMIT
from gradlint.ops import Kind, operator
from gradlint.recipe import Recipe
from gradlint.result import Confidence, Effect, Finding, Remedy, Severity, Verdict
from gradlint.signal_path import is_weight_layer, kind_of
from gradlint.subject import Subject, probed
from gradlint.subject.claims import Imbalance
from gradlint.subject.guards import guard
from gradlint.subject.hazards import Hazard
from gradlint.theory.reading.steps import Step
from gradlint.theory.reading.trends import Layer, Trend
from gradlint.theory.recurrence.loops import Loop

__all__ = [
    "HEALTHY",
    "LIMIT",
    "Confidence",
    "Effect",
    "Example",
    "Finding",
    "GraphBuilder",
    "Hazard",
    "Kind",
    "Layer",
    "Loop",
    "Needs",
    "Node",
    "Recipe",
    "Rule",
    "Severity",
    "Step",
    "Subject",
    "Trend",
    "Verdict",
    "Weight",
    "guard",
    "is_weight_layer",
    "kind_of",
    "listed",
    "operator",
    "probed",
]


class Needs(StrEnum):
    """What a rule needs. Without it, the rule is skipped and the report states the reason."""

    GRAPH = "graph"
    PROBE = "probe"
    RECIPE = "recipe"
    LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Example:
    """A small model for the tests of a rule.

    Attributes:
        build: Returns the builder of the model.
        fires_on: Ids of the nodes that the rule must report. Empty if it must report nothing.
    """

    build: Callable[[], GraphBuilder]
    fires_on: tuple[str, ...] = ()

    @property
    def subject(self) -> Subject:
        """The subject that the rule checks."""
        builder = self.build()
        return Subject(builder.graph, builder.measurement, builder.task)


class Rule(ABC):
    """Base class of all rules. A subclass sets the class variables and yields findings from `check`.

    Attributes:
        code: Two to four capitals and three digits, unique to the rule.
        name: Name of the pattern that the rule finds, unique to the rule.
        severity: Default severity of a finding.
        needs: What the rule needs.
        examples: Models for the tests of the rule.
        explains: Codes of rules whose findings a finding of this rule may cause.
        explained_by: Codes of rules, or effects that rules claim, that may cause findings of this rule. Of two rules, the newer
            one declares the relation. A finding with a cause names it and follows it in the report.
        verdict: NON_FINITE, UNTRAINABLE or UNSTABLE if an error of this rule decides that verdict by itself. The headline of the
            report then names the place of the error. None otherwise.
        states_growth: Whether the finding states the measured growth of the whole model. The engine then adds the operators that
            make up this growth to its evidence.
    """

    code: ClassVar[str]
    name: ClassVar[str]
    severity: ClassVar[Severity]
    needs: ClassVar[Needs] = Needs.GRAPH
    examples: ClassVar[tuple[Example, ...]]
    explains: ClassVar[tuple[str, ...]] = ()
    explained_by: ClassVar[tuple[Effect | str, ...]] = ()
    verdict: ClassVar[Verdict | None] = None
    states_growth: ClassVar[bool] = False

    @abstractmethod
    def check(self, subject: Subject) -> Iterable[Finding]:
        """Yield a finding for every place that has the pattern. It is not called if `lacks` returns a reason."""

    def applies(self, subject: Subject) -> str | None:
        """Return None if the rule applies to the model, else the reason why it does not."""
        del subject
        return None

    def relates(self, cause: Finding, symptom: Finding) -> bool:
        """Return whether `cause` can be the cause of `symptom`. Both rules must agree, if one declared that it may be."""
        del cause, symptom
        return True

    def lacks(self, subject: Subject) -> str | None:
        """Return the reason why the rule is skipped, a missing need or the result of `applies`; None if it is not skipped."""
        if self.needs is Needs.RECIPE and subject.task.recipe is None:
            return "no recipe was given"
        if self.needs in {Needs.PROBE, Needs.LOSS} and subject.measurement is None:
            return "the model was not probed"
        if self.needs is Needs.LOSS and subject.task.loss is None:
            return "no loss was given"
        return self.applies(subject)

    def findings(self, subject: Subject) -> list[Finding]:
        """Return all findings of the rule in a model, none if the rule is skipped."""
        return [] if self.lacks(subject) is not None else list(self.check(subject))

    @classmethod
    def documentation(cls) -> str:
        """Return the documentation of the rule, or "" under `python -OO`, which strips it."""
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
        confidence: Confidence | None = None,
        source: str = "",
        **evidence: Any,
    ) -> Finding:
        """Return a finding of this rule.

        Args:
            subject: The model.
            nodes: Ids of the nodes that the finding is about, in any order.
            message: Description of the problem.
            severity: Severity, by default that of the rule.
            remedy: Advice on how to fix the problem.
            effect: The effect on the gradient that the rule claims. The probe checks the claim.
            span: First and last node of the claim, by default the whole model.
            confidence: Confidence, by default measured if the rule needs the probe, and predicted otherwise.
            source: "file:line" of a finding without nodes.
            evidence: Values that support the finding.
        """
        graph = subject.graph
        ordered = tuple(sorted(nodes, key=graph.position.__getitem__))
        first = graph[ordered[0]] if ordered else None
        usual = Confidence.MEASURED if self.needs in {Needs.PROBE, Needs.LOSS} else Confidence.PREDICTED
        return Finding(
            rule=self.code,
            name=self.name,
            severity=severity or self.severity,
            message=message,
            nodes=ordered,
            module=_compact([graph[node].module for node in ordered]),
            source=(first.definition or first.source) if first else _place(source),
            confidence=confidence or usual,
            evidence=evidence,
            remedy=Remedy(remedy) if remedy else None,
            effect=effect,
            span=span,
            verdict=self.verdict,
            states_growth=self.states_growth,
        )

    def claim(
        self,
        subject: Subject,
        trend: Trend,
        nodes: Sequence[str],
        message: str,
        *,
        remedy: str,
        effect: Effect | None = None,
        **evidence: Any,
    ) -> Finding:
        """Return a finding that these nodes make the gradient grow or shrink as predicted by `trend`. The probe checks it.

        Without a measurement, the finding is a warning at most if the 90 % interval of the prediction reaches below `LIMIT`.
        """
        sure = subject.claims.is_sure(trend) or self.severity is Severity.NOTE
        return self.finding(
            subject,
            nodes,
            message,
            severity=self.severity if sure else Severity.WARNING,
            remedy=remedy,
            effect=effect or (Effect.EXPLODES if trend.decades > 0.0 else Effect.VANISHES),
            span=trend.span,
            decades=trend.decades,
            **evidence,
        )

    def claim_gain(
        self, subject: Subject, trend: Trend, off: Imbalance, what: str | None = None, *, remedy: str | None = None
    ) -> Finding:
        """Return a claim that the gains of weight layers cause a trend.

        `what` describes the layers in the message and `remedy` is the advice. Both follow from `off` by default.
        """
        return self.claim(
            subject,
            trend,
            off.nodes,
            f"{what or off}: the gradient {trend.pace(len(off.nodes))} a layer",
            remedy=remedy or off.cure(self.where(subject, off.nodes)),
            gain=off.gain,
            critical=off.critical,
            layers=len(off.nodes),
        )

    @staticmethod
    def where(subject: Subject, nodes: Sequence[str]) -> str:
        """Return a short name for the modules of some nodes, such as "blocks.0-29.fc", or "the layers" if they have none."""
        return _compact(subject.graph[node].module for node in nodes) or "the layers"

    def on_loss(
        self, subject: Subject, message: str, *, remedy: str, severity: Severity | None = None, **evidence: Any
    ) -> Finding:
        """Return a finding about the loss of the first batch, at the trunk outputs, with the gradient norm as evidence."""
        loss = subject.training.loss
        norm = loss.gradient_norm if loss is not None else None
        nodes = list(subject.probe.trunk)
        return self.finding(subject, nodes, message, severity=severity, remedy=remedy, **evidence, gradient_norm=norm)


def _place(source: str) -> Source | None:
    file, _, line = source.rpartition(":")
    return Source(file, int(line)) if line.isdigit() else None


def _compact(modules: Iterable[str]) -> str:
    """Shorten module paths for a message: blocks.0.fc to blocks.29.fc become "blocks.0-29.fc".

    Paths that differ otherwise are listed. More than three of these become "first ... last".
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
    """Return the first `shown` names for a message, such as "a, b, c and 4 more"."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def _pattern(shape: tuple[str, ...], rows: list[list[int]]) -> str:
    columns = [sorted(set(column)) for column in zip(*rows, strict=True)]
    ranges = iter(str(column[0]) if len(column) == 1 else f"{column[0]}-{column[-1]}" for column in columns)
    return ".".join(next(ranges) if part == "#" else part for part in shape)
