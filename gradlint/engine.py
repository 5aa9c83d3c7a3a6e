"""One target from name to report: load, probe, run the rules, confront them with the probe, judge."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from gradlint.catalog import load_rules, select
from gradlint.errors import ConfigError, InputError
from gradlint.flow import is_weight_layer, kind_of
from gradlint.forecast import Forecast
from gradlint.frontends.inputs import InputSpec
from gradlint.graph import Graph
from gradlint.growth import HEALTHY, LIMIT, along, place, signed
from gradlint.load import Loaded, load
from gradlint.ops import Kind
from gradlint.probe.isolated import Limits
from gradlint.result import (
    Confidence,
    Coverage,
    Effect,
    Finding,
    Measurement,
    Severity,
    Skipped,
    SpinePoint,
    TargetReport,
)
from gradlint.rule import Needs, Rule, Subject
from gradlint.score import judge, predicted_growth, worst_growth

Progress = Callable[[str], None]

_FEW = 8  # values per channel: the batch that is inferred
_SYMPTOMS = {  # what can make each: claims about growth, and rules that name a cause without one
    "GL801": (frozenset({Effect.EXPLODES, Effect.EITHER}), frozenset[str]()),
    "GL802": (frozenset({Effect.VANISHES, Effect.EITHER}), frozenset({"GL104", "GL806"})),
    "GL804": (frozenset({Effect.EXPLODES}), frozenset({"GL604"})),
    "GL805": (frozenset({Effect.EXPLODES}), frozenset({"GL604"})),
    "GL806": (frozenset[Effect](), frozenset({"GL104"})),
}
_CAUSES = frozenset().union(*(codes for _, codes in _SYMPTOMS.values()))


@dataclass(frozen=True)
class Options:
    """How a target is checked."""

    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    inputs: tuple[InputSpec, ...] = ()
    probe: bool = True
    seed: int = 0
    seeds: int = 3
    mode: str | None = None
    rules_dirs: tuple[Path, ...] = ()
    limits: Limits | None = field(default_factory=Limits)  # None: model files are probed in this process, without bounds

    def __post_init__(self) -> None:
        if self.seeds < 1 or self.seed < 0:
            raise ConfigError(f"seed {self.seed}, seeds {self.seeds}", hint="give a seed of 0 or more, and at least one of them")
        if self.mode not in {None, "train", "eval"}:
            raise ConfigError(f"unknown mode {self.mode!r}", hint="one of train, eval")


@dataclass
class _Clock:
    """Seconds by stage."""

    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stages[stage] = self.stages.get(stage, 0.0) + time.perf_counter() - start


def check(target: object, options: Options | None = None, *, progress: Progress | None = None) -> TargetReport:
    """Check one target: a path, `pkg.mod:attr`, `file.py:attr`, a torch module or an ONNX model.

    Raises GradlintError when it cannot be read, imported or run.
    """
    options = options or Options()
    say = progress or (lambda _: None)
    clock = _Clock()
    rules = select(load_rules(options.rules_dirs), options.select, options.ignore)
    say("reading")
    with clock("load"):
        loaded = load(target, options.inputs, options.mode, probe=options.probe, limits=options.limits)
    measurement = None
    if options.probe:
        with clock("probe"):
            measurement = loaded.measure(seeds=options.seeds, seed=options.seed, progress=say)
            _refuse_guessed_numbers(loaded, measurement)
    graph = loaded.graph_of()
    subject = Subject(graph, measurement)
    say("applying rules")
    with clock("theory"):
        expected = subject.forecast
        measured = measurement is not None and any(gains.backward is not None for gains in measurement.gains.values())
        conclusive = expected.conclusive if measurement is None else measured and _ran_all_layers(graph, measurement)
    with clock("rules"):
        findings, skipped = _run_rules(rules, subject)
    growth = predicted_growth(expected.growth, findings) if measurement is None else worst_growth(measurement)
    growth = growth if measurement is None or measured else None
    broken = any(finding.rule == "GL604" for finding in findings) or any(_is_broken(graph))
    verdict, score = judge(measurement, growth, findings, conclusive=conclusive, broken_weight=broken)
    return TargetReport(
        target=loaded.name,
        frontend=loaded.frontend,
        mode=graph.mode,
        verdict=verdict,
        score=score,
        growth=growth,
        spine=_spine_points(subject, expected),
        findings=findings,
        coverage=_coverage(graph, measurement),
        skipped=skipped,
        inputs=loaded.inputs,
        timings=clock.stages,
        seeds=measurement.seeds if measurement else 0,
        rules_checked=len(rules) - len(skipped),
        notes=(*loaded.notes_of(), *(measurement.notes if measurement else ()), *_small_batch(graph)),
        capture=loaded.capture_of(),
        predicted=expected.growth if measurement else growth,
        time=measurement.time if measurement else (),
    )


def _is_broken(graph: Graph) -> Iterator[bool]:
    return (not weight.statistics.finite for weight in graph.weights.values())


def _small_batch(graph: Graph) -> Iterator[str]:
    """A remark where BatchNorm on batch statistics sees so few values that it inflates growth: (B-2)/(B-3) a layer and more."""
    seen = [
        math.prod(size or 1 for size in node.shape) // (node.shape[1] or 1)
        for node in graph
        if node.op == "batch_norm" and node.attrs.get("training", graph.mode == "train") and node.shape and len(node.shape) > 1
    ]
    if seen and min(seen) < _FEW:
        yield f"BatchNorm sees only {min(seen)} values per channel, which distorts gradients by itself: give a larger batch"


def _refuse_guessed_numbers(loaded: Loaded, measurement: Measurement) -> None:
    """Raise InputError where a lone float that was inferred (a bound, a rate) may be what breaks the pass, not the model."""
    guessed = [spec.name or "?" for spec in loaded.specs if not spec.given and not spec.shape and spec.dtype.startswith("float")]
    if guessed and measurement.nonfinite_forward is not None and not any(_is_broken(loaded.graph_of())):
        raise InputError(
            f"the pass is not finite, which may be due to {', '.join(guessed)}, inferred as 1",
            hint=f"give {'it' if len(guessed) == 1 else 'them'}: {' '.join(f'--input {name}=0.5' for name in guessed)}",
        )


def _ran_all_layers(graph: Graph, measurement: Measurement) -> bool:
    """Whether no weight layer lies behind the operator, if any, that the probe stopped at."""
    layers = [node.id for node in graph if is_weight_layer(node)]
    return measurement.stopped_at is None or (bool(layers) and measurement.ran.issuperset(layers))


def _coverage(graph: Graph, measurement: Measurement | None) -> Coverage:
    unknown = Counter(str(node.attrs.get("name", node.op)) for node in graph if kind_of(node) is Kind.UNKNOWN)
    ran = len(measurement.ran & {node.id for node in graph}) if measurement else 0
    return Coverage(len(graph), len(graph) - sum(unknown.values()), ran, dict(unknown))


def _spine_points(subject: Subject, expected: Forecast) -> tuple[SpinePoint, ...]:
    """The chart's rows: what was measured and what theory expects, node by node."""
    graph, measurement = subject.graph, subject.measurement
    measured = measurement.gains if measurement is not None else {}
    return tuple(
        SpinePoint(
            place(graph, node),
            graph[node].op,
            measured[node].backward if node in measured else None,
            measured[node].forward if node in measured else None,
            expected.gains[node].backward if node in expected.gains else None,
            expected.gains[node].forward if node in expected.gains else None,
            graph[node].definition or graph[node].source,
        )
        for node in (measurement.spine if measurement is not None else expected.chain)
    )


# rules ------------------------------------------------------------------------------------------------------------------


def _run_rules(rules: Sequence[type[Rule]], subject: Subject) -> tuple[tuple[Finding, ...], tuple[Skipped, ...]]:
    findings: list[Finding] = []
    skipped: list[Skipped] = []
    spine = subject.measurement.spine if subject.measurement is not None else ()
    places = {node: index for index, node in enumerate(spine)}
    for rule_class in rules:
        rule = rule_class()
        reason = "nothing was probed" if rule.needs is Needs.PROBE and subject.measurement is None else rule.applies(subject)
        if reason is not None:
            skipped.append(Skipped(rule.code, reason))
            continue
        findings.extend(confront(finding, subject.measurement, places) for finding in rule.check(subject))
    findings = [replace(finding, fingerprint=_fingerprint(finding)) for finding in _relate(findings)]
    findings.sort(key=_order)
    return tuple(findings), tuple(skipped)


def _order(finding: Finding) -> tuple[bool, int, bool, float, str]:
    refuted = finding.confidence is Confidence.REFUTED
    return refuted, finding.severity.rank, finding.caused_by is not None, -finding.decades, finding.rule


def confront(finding: Finding, measurement: Measurement | None, places: Mapping[str, int]) -> Finding:
    """What the probe says of a claim: measured with its decades and severity, or refuted. `places` indexes the measured spine.

    A claim about growth stands when the gradient really changes by HEALTHY decades or more over the claimed span, in the claimed
    direction; below LIMIT it is a warning at most. A rule that looked at the measurement itself has the last word.
    """
    if finding.effect is None or measurement is None or finding.confidence is not Confidence.PREDICTED:
        return finding
    measured = _measured_over(finding, measurement, places)
    if measured is None:
        return finding
    holds = {
        Effect.EXPLODES: measured >= HEALTHY,
        Effect.VANISHES: measured <= -HEALTHY,
        Effect.EITHER: abs(measured) >= HEALTHY,
    }[finding.effect]
    if not holds:
        return replace(finding, confidence=Confidence.REFUTED, evidence={**finding.evidence, "measured_decades": measured})
    severity = finding.severity if abs(measured) >= LIMIT else max(finding.severity, Severity.WARNING, key=lambda s: s.rank)
    evidence = {**finding.evidence, "decades": measured}
    return replace(finding, confidence=Confidence.MEASURED, severity=severity, evidence=evidence)


def _measured_over(finding: Finding, measurement: Measurement, places: Mapping[str, int]) -> float | None:
    """Sustained growth over the part of the measured spine that a finding speaks of; None where nothing was measured there."""
    if measurement.dead:
        return None
    spine = measurement.spine
    if finding.span is not None and all(node in places for node in finding.span):
        first, last = (places[node] for node in finding.span)
        spine = spine[max(first - 1, 0) : last + 1]
    levels = along(spine, {node: measurement.backward(node) for node in spine})[1]
    return signed(levels)[0] if len(levels) > 1 else None


def _relate(findings: Sequence[Finding]) -> list[Finding]:
    """Point symptoms at the strongest finding that explains them, and let a named cause stand for mere depth."""
    causes = [f for f in findings if f.confidence is not Confidence.REFUTED and _explains(f)]
    named = max((f.decades for f in causes if f.effect is not Effect.EITHER), default=0.0)
    related = []
    for finding in findings:
        if finding.effect is Effect.EITHER and finding.confidence is Confidence.MEASURED and finding.decades <= named:
            continue  # depth makes any cause worse; a finding that names the cause says enough
        cause = _cause_of(finding, causes) if finding.rule in _SYMPTOMS else None
        related.append(replace(finding, caused_by=cause.rule) if cause else finding)
    return related


def _explains(finding: Finding) -> bool:
    return finding.effect is not None or finding.rule in _CAUSES


def _cause_of(symptom: Finding, causes: Sequence[Finding]) -> Finding | None:
    fitting = [cause for cause in causes if cause is not symptom and _fits(symptom.rule, cause)]
    return min(fitting, key=lambda cause: (cause.severity.rank, -cause.decades), default=None)


def _fits(symptom: str, cause: Finding) -> bool:
    """Whether a finding can be what makes a symptom."""
    effects, codes = _SYMPTOMS[symptom]
    return cause.effect in effects or cause.rule in codes


def _fingerprint(finding: Finding) -> str:
    """Stable across runs and changes of numbers: rule and graph path."""
    where = finding.module or finding.node or ""
    return hashlib.sha256(f"{finding.rule}|{where}".encode()).hexdigest()[:16]
