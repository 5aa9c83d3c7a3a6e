"""How rules are found, loaded and selected."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from gradlint import catalog
from gradlint.catalog import builtin_dir, describe_rules, load_rules, select
from gradlint.errors import ConfigError, RuleFileError
from gradlint.rule import Rule, Severity
from tests.models import EXAMPLE_PACK

RULE = '''"""{code} {name}: a rule of the user."""

from gradlint.rule import Example, Rule, Severity, GraphBuilder


class Mine(Rule):
    code = "{code}"
    name = "{name}"
    severity = Severity.NOTE
    examples = (Example(GraphBuilder),)

    def check(self, subject):
        yield self.finding(subject, [node.id for node in subject.graph], "seen")
'''


@pytest.fixture
def pack(tmp_path: Path) -> Path:
    (tmp_path / "mine.py").write_text(RULE.format(code="ME001", name="mine"), encoding="utf-8")
    return tmp_path


def codes(rules: tuple[type[Rule], ...]) -> list[str]:
    return [rule.code for rule in rules]


# loading ------------------------------------------------------------------------------------------------------------------


def test_every_file_of_the_built_in_pack_is_loaded_and_sorted_by_code():
    found = codes(load_rules())
    assert len(found) == len(list(builtin_dir().glob("[!_]*.py")))
    assert found == sorted(found)


def test_loading_twice_gives_the_same_classes():
    assert load_rules() == load_rules()


def test_pack_of_the_user_is_loaded_beside_the_built_in_one(pack: Path):
    assert codes(load_rules([pack])) == sorted([*codes(load_rules()), "ME001"])


def test_files_that_start_with_an_underscore_are_helpers(pack: Path):
    (pack / "_shared.py").write_text("X = 1\n", encoding="utf-8")
    assert "ME001" in codes(load_rules([pack]))


def test_two_packs_may_have_files_of_one_name(pack: Path, tmp_path: Path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.py").write_text(RULE.format(code="ME002", name="mine-too"), encoding="utf-8")
    assert {"ME001", "ME002"} <= set(codes(load_rules([pack, other])))


def test_folder_that_does_not_exist_is_named(tmp_path: Path):
    with pytest.raises(RuleFileError, match="nowhere: no such folder"):
        load_rules([tmp_path / "nowhere"])


@pytest.mark.parametrize("read", [load_rules, describe_rules])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def check(", "SyntaxError"),
        ("import no_such_module_at_all", "ModuleNotFoundError"),
        ("X = 1", "defines 0 rules"),
        (RULE.format(code="ME001", name="a") + RULE.format(code="ME002", name="b").replace("Mine", "Other"), "defines 2 rules"),
        (RULE.format(code="me1", name="mine"), "has no code, or no name\n  set both .* three digits"),
        (RULE.format(code="ME001", name=""), "or no name"),
    ],
)
def test_file_that_is_not_one_rule_is_named_with_its_fault(tmp_path: Path, text: str, message: str, read):
    (tmp_path / "faulty.py").write_text(text, encoding="utf-8")
    with pytest.raises(RuleFileError, match=message) as caught:
        read([tmp_path])
    assert "faulty.py" in str(caught.value)
    assert caught.value.hint


@pytest.mark.parametrize("read", [load_rules, describe_rules])
def test_code_that_is_taken_is_refused(tmp_path: Path, read):
    (tmp_path / "mine.py").write_text(RULE.format(code="GL101", name="mine"), encoding="utf-8")
    with pytest.raises(RuleFileError, match="two rules have the code GL101: weight-gain-above-critical and mine"):
        read([tmp_path])


# description --------------------------------------------------------------------------------------------------------------


def imported(dirs: list[Path]) -> list[tuple[str, str, str, str]]:
    return [(rule.code, rule.name, rule.severity.value, rule.documentation()) for rule in load_rules(dirs)]


def is_imported(folder: Path) -> bool:
    """Whether a file of a folder was run."""
    return any(Path(getattr(module, "__file__", None) or "").parent == folder for module in list(sys.modules.values()))


def test_descriptions_say_what_the_imported_rules_say():
    described = describe_rules([EXAMPLE_PACK])
    assert len(described) == len(load_rules()) + 2
    assert [tuple(entry) for entry in described] == imported([EXAMPLE_PACK])


def test_every_severity_can_be_stated():
    assert {severity.name: severity.value for severity in Severity} == catalog._SEVERITIES


def test_file_that_states_its_rule_is_not_run(pack: Path):
    path = pack / "mine.py"
    path.write_text(path.read_text(encoding="utf-8") + "\nimport no_such_module_at_all\n", encoding="utf-8")
    assert ("ME001", "mine", "note", "ME001 mine: a rule of the user.") in describe_rules([pack])
    assert not is_imported(pack)


@pytest.mark.parametrize(
    ("literal", "other"),
    [
        ('code = "ME001"', 'code = "ME" + "001"'),
        ('code = "ME001"\n    name = "mine"', 'code, name = "ME001", "mine"'),
        ("severity = Severity.NOTE", 'severity = Severity("note")'),
        ("severity = Severity.NOTE", "severity = LEAST"),
        ("severity = Severity.NOTE", "if True:\n        severity = Severity.NOTE"),
        ("class Mine(Rule):", "class Mine(Rule, ABC):"),
        ("class Mine(Rule):", "@final\nclass Mine(Rule):"),
        ("class Mine(Rule):", "class Other(str):\n    pass\n\n\nclass Mine(Rule):"),
        ("class Mine(Rule):", "if True:\n    LEAST = None\n\n\nclass Mine(Rule):"),
    ],
)
def test_file_that_states_its_rule_in_another_way_is_run(pack: Path, literal: str, other: str):
    path = pack / "mine.py"
    head = '"""ME001 mine: a rule of the user."""\n\nfrom abc import ABC\nfrom typing import final\n'
    text = RULE.format(code="ME001", name="mine").partition("\n")[2].replace("class", "LEAST = Severity.NOTE\n\n\nclass", 1)
    assert literal in text
    path.write_text(head + text.replace(literal, other), encoding="utf-8")
    assert ("ME001", "mine", "note", "ME001 mine: a rule of the user.") in describe_rules([pack])
    assert is_imported(pack)


def test_selection_works_on_descriptions_as_on_rules():
    chosen = select(describe_rules(), ["GL1", "dead-relu"], ["GL102"])
    assert [entry.code for entry in chosen] == codes(select(load_rules(), ["GL1", "dead-relu"], ["GL102"]))


# selection ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "ignored", "expected"),
    [
        (["GL101"], [], ["GL101"]),
        (["weight-gain-above-critical"], [], ["GL101"]),
        (["GL10"], ["GL102"], ["GL101", "GL103", "GL104", "GL105", "GL106", "GL107", "GL108", "GL109"]),
        (["GL1", "GL604"], ["GL10"], ["GL110", "GL604"]),
        (["GL1", "GL103"], ["GL10"], ["GL103", "GL110"]),
        (["GL101"], ["GL101"], []),
        (["GL101"], ["GL1"], ["GL101"]),
        (["GL10"], ["GL1"], [f"GL10{digit}" for digit in range(1, 10)]),
        (["ALL"], ["GL1", "GL2", "GL3", "GL4", "GL5", "GL6", "GL7", "GL8"], ["GL901", "GL902", "GL903"]),
    ],
)
def test_longest_match_decides_and_ignore_wins_a_tie(chosen, ignored, expected):
    assert codes(select(load_rules(), chosen, ignored)) == expected


def test_without_a_selection_all_rules_are_kept():
    assert select(load_rules()) == load_rules()


@pytest.mark.parametrize(
    ("entry", "hint"), [("GL1O1", "GL101"), ("weight-gain-above", "weight-gain-above-critical"), ("?", "--all")]
)
def test_entry_that_matches_nothing_is_named_with_the_nearest_rule(entry, hint):
    with pytest.raises(ConfigError, match="unknown rule") as caught:
        select(load_rules(), [entry])
    assert hint in (caught.value.hint or "")
    with pytest.raises(ConfigError, match="unknown rule"):
        select(load_rules(), [], [entry])
