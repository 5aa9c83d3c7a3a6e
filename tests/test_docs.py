"""The pages of docs/rules are what their generator writes."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from gradlint.catalog import load_rules

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("docs_build", ROOT / "docs" / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_pages_are_up_to_date(build: ModuleType):
    assert build.stale(build.build()) == []


def test_every_rule_has_a_page_and_a_row_in_the_index(build: ModuleType):
    index = (ROOT / "docs" / "rules" / "README.md").read_text(encoding="utf-8")
    for rule in load_rules():
        name = f"{rule.code}-{rule.name}.md"
        assert f"[{rule.code}]({name})" in index
        text = (ROOT / "docs" / "rules" / name).read_text(encoding="utf-8")
        assert text.startswith(f"# {rule.code} {rule.name}\n")
        assert text.count("\n## ") == 4
        assert text.partition("## References")[2].count("\n- ") >= 1


def test_check_says_what_is_stale_and_writing_mends_it(
    build: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(build, "OUT", tmp_path / "rules")
    assert build.main(["--check"]) == 1
    assert "stale: docs/rules/README.md" in capsys.readouterr().err
    assert build.main([]) == 0
    (tmp_path / "rules" / "GL000-gone.md").write_text("of a rule that is gone", encoding="utf-8")
    assert build.main(["--check"]) == 1
    assert build.main([]) == 0
    assert build.main(["--check"]) == 0
    assert not (tmp_path / "rules" / "GL000-gone.md").exists()
