"""What a rule is, and all that a rule file needs: it imports this module alone.

A rule looks at a `Subject` and yields findings. Its module docstring is its documentation: a first line "GLnnn name:
sentence", then the sections *What it finds*, *Why it explodes* (or *Why it vanishes*, *Why it matters*), *How to fix it* and
*References*. Its `examples` are run by the test suite: each is a small graph and the nodes that the rule must report there.
`docs/rule-packs.md` describes the names of this module, which stay as they are within a major version.
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
    "is_weight_layer",
    "kind_of",
    "listed",
    "operator",
    "probed",
]


class Needs(StrEnum):
    """What a rule cannot do without; it is skipped, with the reason, where that is missing."""

    GRAPH = "graph"
    PROBE = "probe"
    RECIPE = "recipe"
    LOSS = "loss"


@dataclass(frozen=True, slots=True)
class Example:
    """A small model, and the nodes that the rule must report in it (none: it must stay silent)."""

    build: Callable[[], GraphBuilder]
    fires_on: tuple[str, ...] = ()

    @property
    def subject(self) -> Subject:
        """The model as the rule sees it."""
        builder = self.build()
        return Subject(builder.graph, builder.measurement, builder.task)


class Rule(ABC):
    """Base of all rules. A subclass sets the class variables and yields findings from `check`.

    `code` is two to four capitals and three digits and `name` states the pattern; both belong to this rule alone. `severity` is
    that of a finding unless it sets its own. `needs` says what the rule cannot do without.

    `explains` are the codes of rules whose findings a finding of this one may be the cause of; `explained_by` are codes of rules,
    or effects that rules claim, which may be the cause of its own findings. Of two rules the younger says it. A finding with a
    cause points at it and stands behind it in the report.

    `verdict` is NON_FINITE, UNTRAINABLE or UNSTABLE where an error of this rule makes that verdict by itself; then the headline
    of a report names its place. `states_growth` says that its finding is the measured growth of the whole model itself, to which
    the engine adds the operators that this growth is made of.
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
        """Yield a finding for every place that has the pattern. It is called where the rule lacks nothing."""

    def applies(self, subject: Subject) -> str | None:
        """None when the rule has something to look at, else the reason why it has not."""
        del subject
        return None

    def relates(self, cause: Finding, symptom: Finding) -> bool:
        """Whether `cause` can be what made `symptom`. Both rules are asked, when one of them has declared that it may be."""
        del cause, symptom
        return True

    def lacks(self, subject: Subject) -> str | None:
        """Why the rule is skipped on a model: what it needs and does not get, or why it does not apply; None for neither."""
        if self.needs is Needs.RECIPE and subject.task.recipe is None:
            return "no recipe was given"
        if self.needs in {Needs.PROBE, Needs.LOSS} and subject.measurement is None:
            return "nothing was probed"
        if self.needs is Needs.LOSS and subject.task.loss is None:
            return "no loss was given"
        return self.applies(subject)

    def findings(self, subject: Subject) -> list[Finding]:
        """Everything that the rule has to say of a model; nothing where it is skipped."""
        return [] if self.lacks(subject) is not None else list(self.check(subject))

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
        confidence: Confidence | None = None,
        source: str = "",
        **evidence: Any,
    ) -> Finding:
        """A finding of this rule about `nodes`, which are put in execution order.

        With an `effect`, the probe checks the claim over `span` (first and last node; by default over the whole model). Without a
        `confidence`, the finding of a rule that needs the probe is measured, and that of another one predicted. `source` is
        "file:line" of what is no node.
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
        """A finding that these nodes make the gradient grow, or shrink, as predicted by `trend`, which the probe checks.

        Unmeasured, the claim is a warning where the predicted decades may be under LIMIT.
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
        """A claim that the gains of weight layers make a trend; `what` says how they are off, `remedy` how to mend them."""
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
        """The modules of some nodes as a person writes them, "blocks.0-29.fc"; "the layers" where they have none."""
        return _compact(subject.graph[node].module for node in nodes) or "the layers"

    def on_loss(
        self, subject: Subject, message: str, *, remedy: str, severity: Severity | None = None, **evidence: Any
    ) -> Finding:
        """A finding about the loss of the first batch, at the tensors that it is computed from; with the norm of its gradient."""
        loss = subject.training.loss
        norm = loss.gradient_norm if loss is not None else None
        nodes = list(subject.probe.trunk)
        return self.finding(subject, nodes, message, severity=severity, remedy=remedy, **evidence, gradient_norm=norm)


def _place(source: str) -> Source | None:
    file, _, line = source.rpartition(":")
    return Source(file, int(line)) if line.isdigit() else None


def _compact(modules: Iterable[str]) -> str:
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


def _pattern(shape: tuple[str, ...], rows: list[list[int]]) -> str:
    columns = [sorted(set(column)) for column in zip(*rows, strict=True)]
    ranges = iter(str(column[0]) if len(column) == 1 else f"{column[0]}-{column[-1]}" for column in columns)
    return ".".join(next(ranges) if part == "#" else part for part in shape)
