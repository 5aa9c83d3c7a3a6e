"""Check the claims of rules against what the probe measured, and relate findings to their causes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from gradlint.growth import HEALTHY, LIMIT, along, signed
from gradlint.growth.tracks import Places
from gradlint.result import Confidence, Effect, Finding, Measurement, Severity
from gradlint.rule import Rule


def verify(finding: Finding, measurement: Measurement | None, places: Places) -> Finding:
    """Return a finding as the probe confirms or refutes it.

    A claim about growth is confirmed if sustained growth over the claimed span is at least `HEALTHY` decades in the claimed
    direction. Below `LIMIT` decades, or where the gradients of weights do not bear it out, a confirmed finding is a warning at
    most, and beside the spine it is refuted. A finding is returned unchanged if it claims no growth, if its rule used the
    measurement itself, or if no growth was measured over its span.

    Args:
        finding: The finding.
        measurement: What the probe measured, or None without a probe.
        places: Where nodes stand on the measured chains.
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
    beside = finding.span is not None and finding.span[1] not in measurement.spine
    if not holds or (beside and not measurement.learning.bears_out(measured)):
        return replace(finding, confidence=Confidence.REFUTED, evidence={**finding.evidence, "measured_decades": measured})
    is_fault = abs(measured) >= LIMIT and measurement.learning.bears_out(measured)
    severity = finding.severity if is_fault else max(finding.severity, Severity.WARNING, key=lambda s: s.rank)
    evidence = {**finding.evidence, "decades": measured}
    return replace(finding, confidence=Confidence.MEASURED, severity=severity, evidence=evidence)


def forgiven(finding: Finding, measurement: Measurement | None) -> Finding:
    """Return an error about growth as a warning if the rehearsal of the user's own recipe clearly learned in spite of it.

    Adaptive optimizers divide the scale of a gradient away, so a stack whose gradient shrinks a million-fold may train well.
    """
    rehearsed = measurement.rehearsal if measurement is not None else None
    about_growth = finding.effect is not None or finding.states_growth
    if finding.severity is not Severity.ERROR or not about_growth or rehearsed is None or not rehearsed.learned:
        return finding
    message = f"{finding.message}; the recipe trains it all the same"
    return replace(finding, severity=Severity.WARNING, message=message)


def _measured_over(finding: Finding, measurement: Measurement, places: Places) -> float | None:
    """Return the sustained growth over the span of a finding, or over the spine without a span; None if it is unknown."""
    if measurement.dead:
        return None
    chain, gains = (places.between(finding.span) if finding.span is not None else ()), measurement.gains
    if not chain:
        chain, gains = measurement.spine, measurement.spine_gains
    levels = along(chain, {node: gains[node].backward for node in chain if node in gains})[1]
    return signed(levels)[0] if len(levels) > 1 else None


def relate(findings: Sequence[Finding], rules: Mapping[str, Rule]) -> list[Finding]:
    """Set the cause of each symptom, and drop findings about depth alone if another finding names a cause.

    The cause of a symptom is the most severe finding that explains it, and the one with the largest growth among these. A
    finding is about depth alone if its effect is `EITHER`. It is dropped if another one claims at least as many decades with a
    definite effect.

    Args:
        findings: Findings that `verify` returned.
        rules: The rule of every finding, by code.
    """
    standing = [finding for finding in findings if finding.confidence is not Confidence.REFUTED]
    named = max((cause.decades for cause in standing if cause.effect in {Effect.EXPLODES, Effect.VANISHES}), default=0.0)
    related = []
    for finding in findings:
        if finding.effect is Effect.EITHER and finding.confidence is not Confidence.REFUTED and finding.decades <= named:
            continue  # depth amplifies every cause, so the finding that names the cause is enough
        fitting = [cause for cause in standing if cause is not finding and _explains(cause, finding, rules)]
        cause = min(fitting, key=lambda cause: (cause.severity.rank, -cause.decades), default=None)
        related.append(replace(finding, caused_by=cause.rule) if cause else finding)
    return related


def _explains(cause: Finding, symptom: Finding, rules: Mapping[str, Rule]) -> bool:
    """Return whether one of the two rules declares that `cause` may explain `symptom`, and both confirm it."""
    maker, made = rules[cause.rule], rules[symptom.rule]
    declared = symptom.rule in maker.explains or cause.rule in made.explained_by or cause.effect in made.explained_by
    return declared and maker.relates(cause, symptom) and made.relates(cause, symptom)
