"""One target from name to report: load, probe, run the rules, confront them with the probe, judge."""

from __future__ import annotations

import hashlib
import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

from gradlint.catalog import load_rules, select
from gradlint.errors import ConfigError, InputError
from gradlint.frontends.inputs import InputSpec
from gradlint.graph import Graph
from gradlint.growth import JUMP, place
from gradlint.load import Loaded, load
from gradlint.ops import Kind
from gradlint.predicted_growth import PredictedGrowth
from gradlint.probe.process.isolated import Limits
from gradlint.recipe import Task
from gradlint.result import Confidence, Coverage, Finding, Growth, Measurement, Skipped, SpinePoint, TargetReport
from gradlint.rule import Needs, Rule, Subject
from gradlint.score import growth_with_claims, judge, worst_growth
from gradlint.signal_path import is_weight_layer, kind_of
from gradlint.theory.reading.attribution import Attribution, attribute, interval
from gradlint.theory.reading.stacks import Stack, stack
from gradlint.verify import relate, verify

Progress = Callable[[str], None]

_FEW = 8  # values per channel: the batch that is inferred
_EACH = 0.01  # decades a layer that theory may be off in one direction: narrow layers of one kind err alike


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
    task: Task = field(default_factory=Task)
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
    loaded, subject = examine(target, options, say, clock)
    graph, measurement = subject.graph, subject.measurement
    say("applying rules")
    with clock("theory"):
        expected = subject.predicted_growth
        measured = measurement is not None and any(gains.backward is not None for gains in measurement.gains.values())
        conclusive = expected.conclusive if measurement is None else measured and _ran_all_layers(graph, measurement)
    with clock("rules"):
        findings, skipped = _run_rules(rules, subject)
    growth = growth_with_claims(expected.growth, findings) if measurement is None else worst_growth(measurement)
    conclusive = conclusive or (measurement is None and growth is not expected.growth)  # an error claims it
    growth = growth if measurement is None or measured else None
    attribution = _attribution(subject, growth)
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
        findings=tuple(_attributed(finding, attribution) for finding in findings),
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
        attribution=attribution,
        recipe=loaded.task.recipe,
        observed=measurement.observed if measurement else {},
        stack=repeated(subject),
    )


def examine(
    target: object, options: Options, progress: Progress | None = None, clock: _Clock | None = None
) -> tuple[Loaded, Subject]:
    """Read a target, and probe it where the options say so. Raises GradlintError when it cannot be read, imported or run."""
    say, clock = progress or (lambda _: None), clock or _Clock()
    say("reading")
    with clock("load"):
        loaded = load(target, options.inputs, options.mode, probe=options.probe, limits=options.limits, task=options.task)
    measurement = None
    if options.probe:
        with clock("probe"):
            measurement = loaded.measure(seeds=options.seeds, seed=options.seed, progress=say)
            _refuse_guessed_numbers(loaded, measurement)
    return loaded, Subject(loaded.graph_of(), measurement, loaded.task)


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


def _as_expected(subject: Subject, start: str, end: str) -> bool:
    """Whether the growth between two nodes is what theory expects, as far as seeds agree; True where nothing was measured."""
    measurement, structure = subject.measurement, subject.structure
    if measurement is None:
        return True
    before, behind = (measurement.backward(node) for node in (start, end))
    bounds = interval(subject.prediction, start, end)
    if before is None or behind is None or bounds is None:
        return False
    first, last = (structure.spine_index.get(node, 0) for node in (start, end))
    layers = sum(is_weight_layer(structure.graph[node]) for node in structure.spine[first:last])
    spread = measurement.growth.spread or 0.0
    slack = _EACH * layers + (spread if math.isfinite(spread) else 0.0)
    return bounds[0] - slack <= before - behind <= bounds[1] + slack


def _attribution(subject: Subject, growth: Growth | None) -> Attribution | None:
    """What a growth over the spine is made of; None where theory expects another one, or none at all."""
    if growth is None or growth.start is None or growth.end is None or not JUMP <= abs(growth.decades) < math.inf:
        return None
    start, end = growth.start.node, growth.end.node
    bounds = interval(subject.prediction, start, end)
    if bounds is None or min(bounds) * max(bounds) <= 0.0 or not _as_expected(subject, start, end):
        return None
    found = attribute(subject.structure, subject.steps, start, end)
    return found if found is not None and found.decades * growth.decades > 0.0 else None


def repeated(subject: Subject) -> Stack | None:
    """The model's stack of one repeated layer, with its phase; None where the probe saw something else."""
    found = stack(subject.structure, subject.steps)
    return found if found is not None and _as_expected(subject, found.start, found.end) else None


def _attributed(finding: Finding, attribution: Attribution | None) -> Finding:
    """A finding about growth itself, with what that is made of."""
    if attribution is None or finding.rule not in {"GL801", "GL802"} or "steps" in finding.evidence:
        return finding
    return replace(finding, evidence={**finding.evidence, "attribution": attribution.document()})


def _spine_points(subject: Subject, expected: PredictedGrowth) -> tuple[SpinePoint, ...]:
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
        reason = _lacking(rule, subject) or rule.applies(subject)
        if reason is not None:
            skipped.append(Skipped(rule.code, reason))
            continue
        findings.extend(verify(finding, subject.measurement, places) for finding in rule.check(subject))
    findings = [replace(finding, fingerprint=_fingerprint(finding)) for finding in relate(findings)]
    findings.sort(key=_order)
    return tuple(findings), tuple(skipped)


def _lacking(rule: Rule, subject: Subject) -> str | None:
    """What a rule needs and does not get."""
    if rule.needs is Needs.RECIPE and subject.task.recipe is None:
        return "no recipe was given"
    if rule.needs in {Needs.PROBE, Needs.LOSS} and subject.measurement is None:
        return "nothing was probed"
    return "no loss was given" if rule.needs is Needs.LOSS and subject.task.loss is None else None


def _order(finding: Finding) -> tuple[bool, int, bool, float, str]:
    refuted = finding.confidence is Confidence.REFUTED
    return refuted, finding.severity.rank, finding.caused_by is not None, -finding.decades, finding.rule


def _fingerprint(finding: Finding) -> str:
    """Stable across runs and changes of numbers: rule and graph path."""
    where = finding.module or finding.node or ""
    return hashlib.sha256(f"{finding.rule}|{where}".encode()).hexdigest()[:16]
