"""`gradlint rule`. Most tests leave the built-in pack out, so that they depend on no rule."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from gradlint.report.rule_page import page
from tests.models import EXAMPLE_PACK

ROOT = Path(__file__).resolve().parents[2]

RULE = '''"""ZZ{code} {name}: a sentence.

What it finds
    A place.
"""
from gradlint.rule import Example, Rule, Severity


class It(Rule):
    code, name, severity, examples = "ZZ{code}", "{name}", Severity.NOTE, ()

    def check(self, subject):
        return []
'''


@pytest.fixture
def pack(tmp_path, monkeypatch):
    """A folder with two rules; the built-in pack is left out, so that the tests depend on no rule."""
    folder = tmp_path / "pack"
    folder.mkdir()
    for code, name in (("101", "odd-place"), ("102", "even-place")):
        (folder / f"{name}.py").write_text(RULE.format(code=code, name=name), encoding="utf-8")
    monkeypatch.setattr("gradlint.catalog.builtin_dir", lambda: folder)
    return folder


@pytest.mark.parametrize("word", ["ZZ101", "zz101", "odd-place"])
def test_a_rule_is_explained_by_code_or_name_with_its_docstring(run, pack, word):
    assert run("rule", word) == (0, "ZZ101 odd-place: a sentence.\n\nWhat it finds\n    A place.\n", "")


def test_all_rules_are_explained_one_after_the_other(run, pack):
    code, out, _ = run("rule", "--all")
    assert code == 0
    assert out.count("What it finds") == 2


def test_without_a_code_rules_are_listed_one_a_line(run, pack):
    assert run("rule") == (0, "ZZ101  note     odd-place\nZZ102  note     even-place\n", "")


def test_rules_as_json_are_a_list(run, pack):
    loaded = json.loads(run("rule", "--all", "--output-format", "json")[1])
    assert [(entry["code"], entry["name"], entry["severity"]) for entry in loaded] == [
        ("ZZ101", "odd-place", "note"),
        ("ZZ102", "even-place", "note"),
    ]
    assert loaded[0]["documentation"].startswith("ZZ101 odd-place: a sentence.")


def test_an_unknown_rule_is_answered_with_the_nearest_one(run, pack):
    code, out, err = run("rule", "odd-palce")
    assert (code, out) == (2, "")
    assert "odd-place" in err


def test_a_page_is_filled_to_a_width_and_otherwise_keeps_its_lines():
    documentation = "ZZ1 odd: title.\n\nHow\n    One two three\n    four five. End\n    here.\n    \n    Ref one.\n    Ref two."
    assert page(documentation) == documentation + "\n"
    assert page(documentation, 20).splitlines() == [
        *("ZZ1 odd: title.", "", "How", "    One two three", "    four five. End", "    here."),
        *("", "    Ref one.", "    Ref two."),
    ]
    assert "    One two three four five. End here." in page(documentation, 80).splitlines()


def test_headings_stand_out_in_color(run, pack):
    _, out, _ = run("rule", "ZZ101", "--color", "always")
    assert "\x1b[1mWhat it finds\x1b[0m\n    A place." in out


def python(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *args], cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_page_is_there_where_docstrings_are_stripped(pack):
    done = python("-OO", "-m", "gradlint", "rule", "ZZ101", "--rules", str(pack))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("ZZ101 odd-place: a sentence.\n")


@pytest.mark.parametrize("args", [[], ["GL101"], ["--all", "--output-format", "json"], ["--rules", str(EXAMPLE_PACK), "XP101"]])
def test_it_imports_nothing_heavy_and_no_rule(args):
    code = f"""
import sys
from gradlint import cli
try:
    cli.main(["rule", *{args!r}])
finally:
    heavy = {{"torch", "onnx", "numpy", "networkx", "rich", "gradlint.rule"}} & set(sys.modules)
    print("heavy:", sorted(heavy), file=sys.stderr)
"""
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "heavy: []\n")
    assert done.stdout
