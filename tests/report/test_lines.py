"""Formats of one line a finding: github and concise."""

from __future__ import annotations

import dataclasses
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlint.report import printable, render
from gradlint.result import Severity
from tests.models.report_samples import SAMPLES, cut, deep, exploding, healthy, non_finite, unprobed

COMMAND = re.compile(r"^::(error|warning|notice) ([^:]*)::(.*)$")


def read(line):
    """A workflow command as the runner reads it: command, properties, message."""

    def plain(text):
        for code, char in (("%3A", ":"), ("%2C", ","), ("%0D", "\r"), ("%0A", "\n"), ("%25", "%")):
            text = text.replace(code, char)
        return text

    command, properties, message = COMMAND.match(line).groups()
    pairs = dict(part.split("=", 1) for part in properties.split(","))
    return command, {key: plain(value) for key, value in pairs.items()}, plain(message)


def commands(*reports, **options):
    return [read(line) for line in render("github", reports, **options).splitlines() if line.startswith("::")]


def test_an_annotation_points_at_the_users_line():
    command, properties, message = commands(exploding())[0]
    assert command == "error"
    assert properties == {"file": "net.py", "line": "14", "title": "GL101 weight-gain-above-critical"}
    assert message.startswith("blocks.0-29.fc: weights have gain 2.50")


def test_without_a_line_an_annotation_points_at_the_model_file():
    assert commands(non_finite())[0][1]["file"] == "broken.onnx"


@pytest.mark.parametrize(
    ("target", "frontend", "file"),
    [("src/net.py:build", "torch", "src/net.py"), ("pkg.net:build", "torch", None), ("-", "onnx", None)],
)
def test_a_target_that_names_a_file_lends_it_to_findings_without_a_line(target, frontend, file):
    finding = dataclasses.replace(exploding().findings[0], source=None)
    report = dataclasses.replace(exploding(), target=target, frontend=frontend, findings=(finding,))
    assert commands(report)[0][1].get("file") == file


def test_severities_become_error_warning_and_notice():
    assert [found[0] for found in commands(exploding(), deep(), unprobed())] == ["error", "error", "warning", "notice"]


def test_a_line_break_and_a_percent_sign_survive_the_trip():
    assert commands(cut())[0][2] == "module 0: detach stops the gradient:\n2 weights before it never learn, 50% of all."


@given(st.text(min_size=1), st.text(min_size=1))
def test_whatever_the_text_a_finding_is_one_command_that_reads_back(message, module):
    finding = dataclasses.replace(exploding().findings[0], message=message, module=module, remedy=None)
    text = render("github", [dataclasses.replace(exploding(), findings=(finding,))])
    first, rest = text.split("\n", 1)
    assert rest == "net.py:build: explodes, score 7/100\n"
    assert read(first)[2].endswith(printable(f": {message}", keep="\n"))
    assert first.isprintable()


def test_a_target_cannot_smuggle_in_a_command():
    report = dataclasses.replace(healthy(), target="::error::x\n::warning::y")
    assert not [line for line in render("github", [report]).splitlines() if line.startswith("::")]


@pytest.mark.parametrize("output_format", ["github", "concise"])
def test_refuted_findings_are_left_out_unless_asked_for(output_format):
    assert "GL302" not in render(output_format, [exploding()])
    assert "GL302" in render(output_format, [exploding()], show_refuted=True)


def test_concise_is_one_line_a_finding_then_the_verdict_and_the_totals():
    assert render("concise", [exploding()]).splitlines() == [
        "net.py:14: GL101 error weight-gain-above-critical [blocks.0-29.fc] weights have gain 2.50; tanh is critical at 1.00.",
        "net.py:14: GL801 error jacobian-growth [blocks.0-29.fc] the gradient grows by 5.9 decades. (caused by GL101)",
        "net.py:build: explodes, score 7/100",
        "1 model: 2 errors. Read more: gradlint rule GL101",
    ]


@pytest.mark.parametrize("name", SAMPLES)
def test_every_concise_finding_has_the_shape_that_editors_parse(name):
    report = SAMPLES[name]()
    shape = re.compile(r"^\S+: GL\d{3} (error|warning|note) [a-z-]+ (\[[^\]]+\] )?\S")
    lines = render("concise", [report], show_refuted=True).splitlines()[:-2]
    assert len(lines) == len(report.findings)
    assert all(shape.match(line) for line in lines)


def test_a_finding_about_the_whole_model_has_no_place():
    finding = dataclasses.replace(exploding().findings[0], nodes=(), module="", source=None, severity=Severity.NOTE)
    report = dataclasses.replace(exploding(), findings=(finding,))
    assert render("concise", [report]).startswith("net.py:build: GL101 note weight-gain-above-critical weights have")
    assert commands(report)[0][2].startswith("weights have")
