"""`gradlint new-rule`: what it writes is a rule like any other, and what it refuses."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from gradlint.catalog import load_rules
from tests import test_rules
from tests.models import EXAMPLE_PACK

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def written(run, tmp_path) -> Path:
    """A pack with one skeleton, in a folder that new-rule makes."""
    code, out, err = run("new-rule", "ZZ208", "my-name", "--rules", "pack")
    assert (code, err) == (0, "")
    assert out.startswith("wrote pack/my_name.py")
    return tmp_path / "pack"


def skeleton(folder: Path):
    (found,) = [rule for rule in load_rules([folder]) if rule.code == "ZZ208"]
    return found


def test_the_file_is_a_rule_that_keeps_the_contract_and_whose_examples_do_what_they_say(written):
    rule = skeleton(written)
    assert {bool(example.fires_on) for example in rule.examples} == {True, False}
    for example in rule.examples:
        test_rules.test_example_is_reported_on_exactly_the_named_nodes(rule, example)
        test_rules.test_findings_of_an_example_can_be_reported(rule, example)
    test_rules.test_documentation_is_headed_by_code_and_name_and_has_its_sections(rule)
    test_rules.test_rule_has_an_example_that_fires_and_one_that_does_not(rule)
    test_rules.test_rule_file_imports_nothing_of_gradlint_but_the_rule_module(rule)
    test_rules.test_rule_that_needs_the_probe_has_only_probed_examples_and_others_run_without(rule)
    assert Path(sys.modules[rule.__module__].__file__).stem == "my_name"


def test_its_page_is_printed_and_it_lints(run, written):
    code, out, _ = run("rule", "--rules", "pack", "ZZ208")
    assert code == 0
    assert out.startswith("ZZ208 my-name: ")
    Path("net.py").write_text(
        "from torch import nn\ndef twice(): return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Tanh(), nn.Linear(8, 8))\n"
        "def once(): return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))\n",
        encoding="utf-8",
    )
    lint = ("--rules", "pack", "--select", "ZZ208", "--fail-on", "note", "--no-probe", "--output-format", "concise")
    code, out, _ = run("net.py:once", *lint)
    assert (code, "ZZ208" in out) == (0, False)
    code, out, _ = run("net.py:twice", *lint)
    assert code == 1
    assert "ZZ208 note my-name" in out
    assert "an activation reads another one, in 1 place" in out


@pytest.mark.skipif(importlib.util.find_spec("ruff") is None, reason="ruff is not installed")
def test_the_file_passes_the_linter_of_the_built_in_rules(written):
    source = (written / "my_name.py").read_text(encoding="utf-8")
    for command in (["check"], ["format", "--check"]):
        done = subprocess.run(
            [sys.executable, "-m", "ruff", *command, "--stdin-filename", "rules/my_name.py", "-"],
            cwd=ROOT,
            input=source,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


REFUSED = {
    ("zz208", "a-name", "pack"): ("the code 'zz208' is not two to four capitals and three digits", "write it ZZ208"),
    ("ZZ20", "a-name", "pack"): ("the code 'ZZ20' is not", "capitals of your own"),
    ("ZZ208\n", "a-name", "pack"): ("the code 'ZZ208\\n' is not", "capitals of your own"),
    ("ZZ209", "A-Name", "pack"): ("the name 'A-Name' is not lower-case words and hyphens", "as in deep-post-norm"),
    ("ZZ209", "../name", "pack"): ("the name '../name' is not", "as in deep-post-norm"),
    ("ZZ209", "a--name", "pack"): ("the name 'a--name' is not", "as in deep-post-norm"),
    ("GL303", "a-name", "pack"): ("the code GL303 belongs to deep-post-norm", "gradlint rule lists"),
    ("ZZ209", "deep-post-norm", "pack"): ("the name deep-post-norm belongs to GL303", "gradlint rule GL303"),
    ("XP101", "a-name", str(EXAMPLE_PACK)): ("the code XP101 belongs to norm-behind-dropout", "gradlint rule lists"),
    ("XP103", "signal-lost", str(EXAMPLE_PACK)): ("the name signal-lost belongs to XP102", "gradlint rule XP102"),
}


@pytest.mark.parametrize("given", REFUSED, ids=lambda given: " ".join(given[:2]))
def test_a_code_or_name_that_is_malformed_or_taken_is_refused_and_nothing_is_written(run, tmp_path, given):
    before = sorted(EXAMPLE_PACK.iterdir())
    code, name, folder = given
    status, out, err = run("new-rule", code, name, "--rules", folder)
    assert (status, out) == (2, "")
    assert all(said in err for said in REFUSED[given])
    assert not (tmp_path / "pack").exists()
    assert sorted(EXAMPLE_PACK.iterdir()) == before


def test_a_second_skeleton_of_the_same_name_or_code_is_refused(run, written):
    assert run("new-rule", "ZZ209", "my-name", "--rules", "pack")[0] == 2
    assert run("new-rule", "ZZ208", "other-name", "--rules", "pack")[0] == 2
    assert run("new-rule", "ZZ209", "other-name", "--rules", "pack")[0] == 0
    assert sorted(path.name for path in written.glob("*.py")) == ["my_name.py", "other_name.py"]


def test_a_file_that_is_in_the_way_is_left_alone(run, written):
    helper = written / "_helper.py"
    helper.write_text("X = 1\n", encoding="utf-8")
    (written / "my_name.py").write_text(helper.read_text(encoding="utf-8"), encoding="utf-8")
    status, _, err = run("new-rule", "ZZ209", "my-name", "--rules", "pack")
    assert status == 2
    assert "my_name.py" in err
    assert (written / "my_name.py").read_text(encoding="utf-8") == "X = 1\n"


def test_by_default_it_is_written_into_the_rules_of_the_checkout(run, tmp_path, monkeypatch):
    (tmp_path / "rules").mkdir()
    monkeypatch.setattr("gradlint.catalog.builtin_dir", lambda: tmp_path / "rules")
    assert run("new-rule", "GL208", "my-name")[0] == 0
    assert (tmp_path / "rules" / "my_name.py").is_file()


def test_an_installed_gradlint_writes_into_no_folder_that_was_not_named(run, monkeypatch):
    monkeypatch.setattr("gradlint.catalog.is_checkout", lambda: False)
    monkeypatch.setattr("gradlint.catalog.builtin_dir", lambda: ROOT / "rules")
    status, _, err = run("new-rule", "GL208", "my-name")
    assert status == 2
    assert "--rules DIR" in err
    assert not (ROOT / "rules" / "my_name.py").exists()


@pytest.mark.parametrize("name", ["example", "rule", "graph-builder", "listed", "kind"])
def test_a_class_may_be_called_like_what_a_rule_file_imports(run, tmp_path, name):
    assert run("new-rule", "ZZ208", name, "--rules", "pack")[0] == 0
    rule = skeleton(tmp_path / "pack")
    assert rule.name == name
    for example in rule.examples:
        test_rules.test_example_is_reported_on_exactly_the_named_nodes(rule, example)
