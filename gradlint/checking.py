"""Apply rules to one model, and verify, relate and sort their findings."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace

from gradlint.growth.tracks import Places
from gradlint.measurements.coverage import Skipped
from gradlint.result import Confidence, Finding
from gradlint.rule import Rule, Subject
from gradlint.verify import forgiven, relate, verify


def apply_rules(rules: Iterable[type[Rule]], subject: Subject) -> tuple[tuple[Finding, ...], tuple[Skipped, ...]]:
    """Apply rules to a model.

    Returns:
        The findings, verified against the probe, with the most severe first and refuted ones last; and the skipped rules, each
        with the reason.
    """
    findings: list[Finding] = []
    skipped: list[Skipped] = []
    applied: dict[str, Rule] = {}
    measured = subject.measurement
    places = Places((measured.spine, *subject.tracks) if measured is not None else ())
    for rule_class in rules:
        rule = rule_class()
        reason = rule.lacks(subject)
        if reason is not None:
            skipped.append(Skipped(rule.code, reason))
            continue
        applied[rule.code] = rule
        findings.extend(forgiven(verify(finding, measured, places), measured) for finding in rule.check(subject))
    told = [replace(finding, fingerprint=_fingerprint(finding)) for finding in relate(findings, applied)]
    return tuple(sorted(told, key=_order)), tuple(skipped)


def _order(finding: Finding) -> tuple[bool, int, bool, float, str]:
    refuted = finding.confidence is Confidence.REFUTED
    return refuted, finding.severity.rank, finding.caused_by is not None, -finding.decades, finding.rule


def _fingerprint(finding: Finding) -> str:
    """Return a hash of the rule and the place, which is the same in every run and does not depend on numbers."""
    where = finding.module or finding.node or ""
    return hashlib.sha256(f"{finding.rule}|{where}".encode()).hexdigest()[:16]
