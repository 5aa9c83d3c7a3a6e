"""Check one target: load it, probe it, apply and verify the rules, and compute the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from gradlint.agreement import attribution, repeated_stack
from gradlint.calibration.evidence import evidence
from gradlint.calibration.score import scored
from gradlint.catalog import load_rules, select
from gradlint.checking import apply_rules
from gradlint.coverage import coverage, has_gradient, measured_all_layers, trains
from gradlint.frontends.inputs import refuse_guessed_numbers
from gradlint.frontends.turns import turn
from gradlint.graph import Graph
from gradlint.growth import spine_points
from gradlint.growth.tracks import counted
from gradlint.load import Loaded, Values, load
from gradlint.masks import broken_weights
from gradlint.measurements.evidence import Evidence, Score
from gradlint.measurements.learning import Learning
from gradlint.options import Options
from gradlint.predicted_growth import PredictedGrowth
from gradlint.probe.budget import ENDLESS, Budget
from gradlint.result import Finding, Growth, Measurement, SpinePoint, TargetReport, Verdict
from gradlint.rule import Subject
from gradlint.score import State, growth_with_claims, judge, worst_growth
from gradlint.theory.reading.attribution import Attribution

Progress = Callable[[str], None]


@dataclass
class _Clock:
    """A context manager that adds up the seconds of each stage."""

    stages: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.stages[stage] = self.stages.get(stage, 0.0) + time.perf_counter() - start


def check(target: object, options: Options | None = None, *, progress: Progress | None = None) -> TargetReport:
    """Check one target: a path, `pkg.mod:attr`, `file.py:attr`, a torch module or an ONNX model.

    `progress` is called with the name of each stage. Other threads wait until the check has ended. Raises GradlintError if the
    target cannot be read, imported or run.
    """
    with turn():
        options = options or Options()
        report = _checked(target, options, progress or (lambda _: None), _Clock())
    why = options.given_up
    return replace(report, notes=(*report.notes, why), given_up=why) if why else report


def _checked(target: object, options: Options, say: Progress, clock: _Clock) -> TargetReport:
    rules = select(load_rules(options.rules_dirs), options.select, options.ignore)
    loaded, subject = examine(target, options, say, clock)
    graph, measurement = subject.graph, subject.measurement
    say("applying rules")
    with clock("theory"):
        expected = subject.predicted_growth
        conclusive = expected.conclusive if measurement is None else measured_all_layers(graph, measurement)
    with clock("rules"):
        findings, skipped = apply_rules(rules, subject)
    if not (trained := trains(loaded.frontend, graph, measurement)):  # how it would train does not matter
        findings = tuple(finding for finding in findings if finding.verdict is Verdict.NON_FINITE)
    if measurement is None:
        growth = growth_with_claims(expected.growth, findings)
        conclusive = (conclusive or growth is not expected.growth) and not options.given_up  # an error claims this growth
    else:
        growth = worst_growth(measurement) if has_gradient(measurement) else None
    made_of = attribution(subject, growth)
    learning = measurement.learning if measurement is not None else expected.learning
    verdict, known, made = _judged(subject, findings, growth, learning, conclusive=conclusive, trained=trained)
    return TargetReport(
        target=loaded.name,
        frontend=loaded.frontend,
        mode=graph.mode,
        verdict=verdict,
        score=made.points if made is not None else None,
        growth=growth,
        spine=_spine(graph, measurement, expected),
        findings=tuple(_attributed(finding, made_of) for finding in findings),
        coverage=coverage(graph, measurement),
        skipped=skipped,
        inputs=loaded.inputs,
        timings=clock.stages,
        seeds=measurement.seeds if measurement else 0,
        rules_checked=len(rules) - len(skipped),
        notes=(*loaded.notes_of(), *(measurement.notes if measurement else ())),
        capture=loaded.capture_of(),
        predicted=expected.growth if measurement else growth,
        time=measurement.time if measurement else (),
        attribution=made_of,
        recipe=loaded.task.recipe,
        observed=measurement.observed if measurement else {},
        weights=learning,
        trainability=subject.trainability,
        tracks=measurement.tracks if measurement else (),
        evidence=known,
        made=made,
        stack=repeated_stack(subject),
    )


def _judged(
    subject: Subject, findings: Sequence[Finding], growth: Growth | None, learning: Learning, *, conclusive: bool, trained: bool
) -> tuple[Verdict, Evidence, Score | None]:
    """Return the verdict, and the score with the evidence that it is made of; no score where there is nothing to train."""
    broken = _has_broken_weight(subject.graph)
    state = State(conclusive=conclusive, broken_weight=broken, idle=subject.is_idle, trains=trained)
    judgment = judge(subject.measurement, growth, findings, state, learning)
    known = evidence(
        subject.measurement,
        findings,
        growth=counted(growth.decades, learning) if growth is not None else None,
        conclusive=conclusive and growth is not None,
        learning=learning,
        task=subject.task,
    )
    return judgment.verdict, known, scored(known, judgment.most) if judgment.most is not None else None


def examine(
    target: object, options: Options, progress: Progress | None = None, clock: _Clock | None = None
) -> tuple[Loaded, Subject]:
    """Load a target, probe it if the options ask for it, and return it with the subject that rules check.

    Raises:
        GradlintError: The target cannot be read, imported or run.
    """
    say, clock = progress or (lambda _: None), clock or _Clock()
    budget = Budget(options.limits.seconds) if options.limits is not None else ENDLESS
    say("reading")
    with clock("load"):
        loaded = load(
            target,
            options.inputs,
            options.mode,
            probe=options.probe,
            task=options.task,
            lenient=options.lenient,
            values=Values(options.weights, options.materialize, options.limits.memory if options.limits is not None else None),
        )
    measurement = None
    if options.probe:
        with clock("probe"):
            measurement = loaded.measure(seeds=options.seeds, seed=options.seed, progress=say, budget=budget)
        broken = measurement.nonfinite_forward or measurement.nonfinite_backward
        if broken is not None and not _has_broken_weight(loaded.graph_of()):
            refuse_guessed_numbers(loaded.specs)
    own = loaded.parameters_of() if loaded.parameters_of is not None else None
    return loaded, Subject(loaded.graph_of(), measurement, loaded.task, own)


def _spine(graph: Graph, measurement: Measurement | None, expected: PredictedGrowth) -> tuple[SpinePoint, ...]:
    if measurement is None:
        return spine_points(graph, expected.chain, {}, expected.gains)
    return spine_points(graph, measurement.spine, measurement.spine_gains, expected.gains)


def _has_broken_weight(graph: Graph) -> bool:
    return any(map(broken_weights, graph))


def _attributed(finding: Finding, attribution: Attribution | None) -> Finding:
    """Add the attribution of the growth to the evidence of a finding that states this growth."""
    if attribution is None or not finding.states_growth:
        return finding
    return replace(finding, evidence={**finding.evidence, "attribution": attribution.document()})
