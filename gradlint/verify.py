"""Claims of rules against what the probe measured, and symptoms against their causes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gradlint.growth import HEALTHY, LIMIT, along, signed
from gradlint.result import Confidence, Effect, Finding, Measurement, Severity
from gradlint.rule import Rule


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


def relate(findings: Sequence[Finding], rules: Mapping[str, Rule]) -> list[Finding]:
    """Point symptoms at the strongest finding that explains them, and let a named cause stand for mere depth.

    `rules` holds the rule of every finding by its code.
    """
    standing = [finding for finding in findings if finding.confidence is not Confidence.REFUTED]
    named = max((cause.decades for cause in standing if cause.effect in {Effect.EXPLODES, Effect.VANISHES}), default=0.0)
    related = []
    for finding in findings:
        if finding.effect is Effect.EITHER and finding.confidence is not Confidence.REFUTED and finding.decades <= named:
            continue  # depth makes any cause worse; a finding that names the cause says enough
        fitting = [cause for cause in standing if cause is not finding and _explains(cause, finding, rules)]
        cause = min(fitting, key=lambda cause: (cause.severity.rank, -cause.decades), default=None)
        related.append(replace(finding, caused_by=cause.rule) if cause else finding)
    return related


def _explains(cause: Finding, symptom: Finding, rules: Mapping[str, Rule]) -> bool:
    """Whether one rule declares that `cause` may explain `symptom`, and both hold that it does."""
    maker, made = rules[cause.rule], rules[symptom.rule]
    declared = symptom.rule in maker.explains or cause.rule in made.explained_by or cause.effect in made.explained_by
    return declared and maker.relates(cause, symptom) and made.relates(cause, symptom)
