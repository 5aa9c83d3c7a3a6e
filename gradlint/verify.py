"""Claims of rules against what the probe measured, and symptoms against their causes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gradlint.growth import HEALTHY, LIMIT, along, signed
from gradlint.result import Confidence, Effect, Finding, Measurement, Severity

_SYMPTOMS = {  # what can make each: claims about growth, and rules that name a cause without one
    "GL502": (frozenset[Effect](), frozenset({"GL501"})),
    "GL505": (frozenset[Effect](), frozenset({"GL501", "GL502"})),
    "GL506": (frozenset[Effect](), frozenset({"GL503", "GL504"})),
    "GL403": (frozenset[Effect](), frozenset({"GL104"})),
    "GL801": (frozenset({Effect.EXPLODES, Effect.EITHER}), frozenset({"GL803"})),
    "GL803": (frozenset({Effect.EXPLODES, Effect.EITHER}), frozenset[str]()),
    "GL802": (frozenset({Effect.VANISHES, Effect.EITHER}), frozenset({"GL104", "GL806"})),
    "GL804": (frozenset({Effect.EXPLODES}), frozenset({"GL602", "GL603", "GL604"})),
    "GL805": (frozenset({Effect.EXPLODES}), frozenset({"GL602", "GL603", "GL604"})),
    "GL806": (frozenset[Effect](), frozenset({"GL104"})),
    "GL807": (frozenset[Effect](), frozenset({"GL602", "GL603", "GL605"})),
}
_NUMERIC = frozenset({"operator", "precision"})  # causes of a failed rehearsal that those rules may name
_OPERATORS = frozenset({"GL602", "GL603"})
_CAUSES = frozenset().union(*(codes for _, codes in _SYMPTOMS.values()))


def verify(finding: Finding, measurement: Measurement | None, places: Mapping[str, int]) -> Finding:
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


def relate(findings: Sequence[Finding]) -> list[Finding]:
    """Point symptoms at the strongest finding that explains them, and let a named cause stand for mere depth."""
    causes = [f for f in findings if f.confidence is not Confidence.REFUTED and _explains(f)]
    named = max((f.decades for f in causes if f.effect is not Effect.EITHER), default=0.0)
    related = []
    for finding in findings:
        if finding.effect is Effect.EITHER and finding.confidence is not Confidence.REFUTED and finding.decades <= named:
            continue  # depth makes any cause worse; a finding that names the cause says enough
        cause = _cause_of(finding, causes) if finding.rule in _SYMPTOMS else None
        related.append(replace(finding, caused_by=cause.rule) if cause else finding)
    return related


def _explains(finding: Finding) -> bool:
    return finding.effect is not None or finding.rule in _CAUSES


def _cause_of(symptom: Finding, causes: Sequence[Finding]) -> Finding | None:
    if symptom.rule == "GL807" and symptom.evidence.get("cause") not in _NUMERIC:
        return None
    fitting = [cause for cause in causes if cause is not symptom and _fits(symptom, cause)]
    return min(fitting, key=lambda cause: (cause.severity.rank, -cause.decades), default=None)


def _fits(symptom: Finding, cause: Finding) -> bool:
    """Whether a finding can be what makes a symptom; operators and activations explain only what happens at the same place."""
    effects, codes = _SYMPTOMS[symptom.rule]
    if cause.rule in _OPERATORS and cause.rule in codes:
        in_the_loss = not symptom.nodes and not cause.nodes
        return in_the_loss or not set(symptom.nodes).isdisjoint(cause.nodes)
    if symptom.rule == "GL502":  # the same matrix, which only its activation lets grow
        same = symptom.nodes == cause.nodes and cause.severity.rank <= symptom.severity.rank
        return same and cause.rule in codes
    return cause.effect in effects or cause.rule in codes
