"""gradlint finds every published failure before it is trained, and clears every published fix."""

from __future__ import annotations

import pytest

import gradlint
from tests.published import CASES, Case, Setup

# torch's own complaint of the deviation of one element, which one of the models takes
pytestmark = pytest.mark.filterwarnings("ignore:(var|std).*degrees of freedom")


def _findings(setup: Setup) -> list[gradlint.Finding]:
    """What is not refuted and more than a note."""
    recipe = None if setup.recipe is None else gradlint.Recipe(**setup.recipe)
    report = gradlint.check(setup.model, setup.inputs, target=setup.target, loss=setup.loss, recipe=recipe, mode=setup.mode)
    told = [finding for finding in report.findings if finding.confidence is not gradlint.Confidence.REFUTED]
    return [finding for finding in told if finding.severity is not gradlint.Severity.NOTE]


def _lines(findings: list[gradlint.Finding]) -> str:
    return "\n".join(f"{one.severity} {one.rule} {one.confidence} {one.node}: {one.message}" for one in findings) or "nothing"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_failure_is_found(case: Case) -> None:
    findings = _findings(case.broken())
    assert case.expects & {finding.rule for finding in findings}, f"none of {sorted(case.expects)}, but\n{_lines(findings)}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_fix_is_cleared(case: Case) -> None:
    findings = _findings(case.fixed())
    false = [one for one in findings if one.rule in case.expects or one.severity is gradlint.Severity.ERROR]
    assert not false, _lines(false)
