"""How rules are found, loaded and selected."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradlint.catalog import builtin_dir, load_rules, select
from gradlint.errors import ConfigError, RuleFileError
from gradlint.rule import Rule

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
def test_file_that_is_not_one_rule_is_named_with_its_fault(tmp_path: Path, text: str, message: str):
    (tmp_path / "faulty.py").write_text(text, encoding="utf-8")
    with pytest.raises(RuleFileError, match=message) as caught:
        load_rules([tmp_path])
    assert "faulty.py" in str(caught.value)
    assert caught.value.hint


def test_code_that_is_taken_is_refused(tmp_path: Path):
    (tmp_path / "mine.py").write_text(RULE.format(code="GL101", name="mine"), encoding="utf-8")
    with pytest.raises(RuleFileError, match="two rules have the code GL101: weight-gain-above-critical and mine"):
        load_rules([tmp_path])


# selection ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("chosen", "ignored", "expected"),
    [
        (["GL101"], [], ["GL101"]),
        (["weight-gain-above-critical"], [], ["GL101"]),
        (["GL10"], ["GL102"], ["GL101", "GL103", "GL104", "GL107"]),
        (["GL1", "GL604"], ["GL10"], ["GL604"]),
        (["GL1", "GL103"], ["GL10"], ["GL103"]),
        (["GL101"], ["GL101"], []),
        (["GL101"], ["GL1"], ["GL101"]),
        (["GL10"], ["GL1"], ["GL101", "GL102", "GL103", "GL104", "GL107"]),
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
