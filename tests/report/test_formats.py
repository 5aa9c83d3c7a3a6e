"""An output format is one file."""

from __future__ import annotations

from importlib import import_module

import pytest

import gradlint
from gradlint import report
from tests.models.report_samples import exploding

SHOUTED = '''"""The shouted format: one verdict per line, in capitals."""


def render(reports, *, version, **_):
    """Return one line per target."""
    return "".join(f"{item.verdict.value.upper()} {version}\\n" for item in reports)
'''


def test_a_file_among_the_formats_is_a_format(tmp_path, monkeypatch):
    (tmp_path / "shouted.py").write_text(SHOUTED, encoding="utf-8")
    assert "shouted" not in report.format_names()
    package = import_module("gradlint.report.formats")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(tmp_path)])
    assert "shouted" in report.format_names()
    assert gradlint.Report(exploding()).to("shouted", version="1.2") == "EXPLODES 1.2\n"


def test_the_report_for_people_is_named_first():
    assert report.format_names()[0] == report.DEFAULT == "full"


def test_an_unknown_format_is_refused_with_those_that_there_are():
    with pytest.raises(gradlint.GradlintError, match="unknown format 'shouted'") as caught:
        gradlint.Report(exploding()).to("shouted")
    assert all(name in str(caught.value.hint) for name in report.format_names())
