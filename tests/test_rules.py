"""Every rule, built-in or of the example pack, keeps the contract of a rule file, and every example does what it says."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from gradlint.catalog import builtin_dir, load_rules
from gradlint.result import Effect, Severity, Verdict
from gradlint.rule import Example, Needs, Rule, Subject
from tests.models import EXAMPLE_PACK

RULES = load_rules([EXAMPLE_PACK])
EXAMPLES = [
    pytest.param(rule, example, id=f"{rule.code}-{index}-{'fires' if example.fires_on else 'silent'}")
    for rule in RULES
    for index, example in enumerate(rule.examples)
]
PACK = pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
SECTIONS = ["What it finds", "Why it", "How to fix it", "References"]


@pytest.mark.parametrize(("rule", "example"), EXAMPLES)
def test_example_is_reported_on_exactly_the_named_nodes(rule: type[Rule], example: Example):
    findings = rule().findings(example.subject)
    assert {node for finding in findings for node in finding.nodes} == set(example.fires_on)
    assert bool(findings) == bool(example.fires_on)


@pytest.mark.parametrize(("rule", "example"), EXAMPLES)
def test_findings_of_an_example_can_be_reported(rule: type[Rule], example: Example):
    subject = example.subject
    for finding in rule().findings(subject):
        assert (finding.rule, finding.name) == (rule.code, rule.name)
        assert finding.severity.rank >= rule.severity.rank or "decades" in finding.evidence
        assert finding.message
        assert finding.message[-1] != "."
        assert finding.span is None or finding.effect is not None
        assert all(node in subject.graph for node in (*finding.nodes, *(finding.span or ())))


@PACK
def test_file_is_named_by_its_rule(rule: type[Rule]):
    assert Path(inspect.getfile(rule)).stem == rule.name.replace("-", "_")
    assert Path(inspect.getfile(rule)).parent in {builtin_dir(), EXAMPLE_PACK}


@PACK
def test_documentation_is_headed_by_code_and_name_and_has_its_sections(rule: type[Rule]):
    first, *rest = rule.documentation().splitlines()
    assert re.fullmatch(rf"{rule.code} {rule.name}: .+\.", first)
    headings = [line.removesuffix(":") for line in rest if line and not line.startswith(" ")]
    assert len(headings) == len(SECTIONS)
    assert all(heading.startswith(section) for heading, section in zip(headings, SECTIONS, strict=True))
    assert headings[1] in {"Why it explodes", "Why it vanishes", "Why it matters"}


@PACK
def test_rule_has_an_example_that_fires_and_one_that_does_not(rule: type[Rule]):
    assert {bool(example.fires_on) for example in rule.examples} == {True, False}


@PACK
def test_rule_file_imports_nothing_of_gradlint_but_the_rule_module(rule: type[Rule]):
    text = Path(inspect.getfile(rule)).read_text(encoding="utf-8")
    assert set(re.findall(r"^\s*(?:from|import) (gradlint[\w.]*)", text, re.MULTILINE)) == {"gradlint.rule"}


@PACK
def test_rule_that_needs_the_probe_has_only_probed_examples_and_others_run_without(rule: type[Rule]):
    for example in rule.examples:
        builder = example.build()
        if rule.needs is Needs.PROBE:
            assert builder.measurement is not None
        else:
            rule().findings(Subject(builder.graph, task=builder.task))


def test_codes_and_names_are_unique():
    files = [path for folder in (builtin_dir(), EXAMPLE_PACK) for path in folder.glob("[!_]*.py")]
    assert len({rule.code for rule in RULES}) == len({rule.name for rule in RULES}) == len(files)


@PACK
def test_what_a_rule_declares_of_others_names_rules_that_exist(rule: type[Rule]):
    codes = {other.code for other in RULES}
    assert {*rule.explains} <= codes
    assert {*rule.explained_by} <= {*codes, *Effect}
    assert rule.verdict in {None, Verdict.NON_FINITE, Verdict.UNTRAINABLE, Verdict.UNSTABLE}


def test_pack_has_the_rules_of_the_main_job():
    expected = (101, 102, 103, 104, 201, 202, 203, 204, 301, 302, 303, 306, 402, 404, 501, 502, 604)
    expected += (801, 802, 804, 805, 806, 901, 902, 903)
    assert {f"GL{number}" for number in expected} <= {rule.code for rule in RULES}
    assert all(isinstance(rule.severity, Severity) for rule in RULES)
