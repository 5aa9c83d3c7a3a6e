"""The full report: what people read."""

from __future__ import annotations

import dataclasses
import re

import pytest

from gradlint.report import render
from gradlint.result import Confidence, Verdict
from tests.models.report_samples import SAMPLES, deep, exploding, healthy, recurrent, unprobed, vanishing

ANSI = re.compile(r"\x1b\[[\d;]*m")


def full(*reports, **options):
    return render("full", reports, version="0", **options)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_report_reads_as_it_was_designed(name, check_snapshot):
    check_snapshot(full(SAMPLES[name]()), f"full_{name}.txt")


@pytest.mark.parametrize("name", ["exploding", "vanishing"])
def test_bars_are_blocks_where_unicode_can_be_shown(name, check_snapshot):
    check_snapshot(full(SAMPLES[name](), unicode=True), f"full_{name}_unicode.txt")


def test_several_targets_are_blocks_with_one_closing_line_and_healthy_ones_have_no_chart(check_snapshot):
    check_snapshot(full(healthy(), vanishing(), recurrent(), healthy()), "full_several.txt")


@pytest.mark.parametrize("width", [60, 80, 100])
@pytest.mark.parametrize("name", SAMPLES)
def test_no_line_is_wider_than_the_page(name, width):
    text = full(SAMPLES[name](), width=width, unicode=True, show_refuted=True)
    assert [line for line in text.splitlines() if len(line) > width] == []


@pytest.mark.parametrize("name", SAMPLES)
def test_without_color_and_unicode_a_report_is_plain_ascii_without_trailing_blanks(name):
    text = full(SAMPLES[name]())
    assert text.isascii()
    assert all(char.isprintable() or char == "\n" for char in text)
    assert all(line == line.rstrip() for line in text.splitlines())


@pytest.mark.parametrize("name", SAMPLES)
def test_color_changes_no_character(name):
    colored = full(SAMPLES[name](), color=True)
    assert "\x1b[" in colored
    stripped = "".join(f"{line.rstrip()}\n" for line in ANSI.sub("", colored).splitlines())
    assert stripped == full(SAMPLES[name]())


def test_no_color_is_one_that_vanishes_on_white():
    codes = {
        code for name in SAMPLES for found in ANSI.findall(full(SAMPLES[name](), color=True)) for code in found[2:-1].split(";")
    }
    assert codes.isdisjoint({"33", "37", "93", "97", "92", "96"})


def test_an_escape_sequence_in_a_name_does_not_reach_the_terminal():
    report = dataclasses.replace(exploding(), target="\x1b]0;owned\x07net.onnx", notes=("\x1b[2Jgone",))
    assert "\x1b" not in full(report)
    assert "\x07" not in full(report, color=True)


def test_verdict_and_score_come_before_everything_but_the_name():
    assert full(exploding()).splitlines()[2].split() == ["EXPLODES", "score", "7/100"]


def test_times_are_shown_unless_they_are_left_out():
    assert " 0.9 s\n" in full(healthy())
    assert "0.9 s" not in full(healthy(), timings=False)


def test_a_refuted_suspicion_is_hidden_unless_asked_for():
    assert "GL302" not in full(exploding())
    assert "refuted" in full(exploding(), show_refuted=True)
    assert "1 model: 2 errors." in full(exploding())


def test_a_symptom_stands_behind_its_cause_in_one_line():
    report = exploding()
    cause, symptom, refuted = report.findings
    other = dataclasses.replace(refuted, confidence=Confidence.MEASURED)
    lines = full(dataclasses.replace(report, findings=(symptom, other, cause))).splitlines()
    at = next(index for index, line in enumerate(lines) if "GL801" in line)
    assert lines[at].endswith("(caused by GL101)")
    assert lines[at - 1].strip().startswith("tried:")
    assert lines[at + 1] == ""


def test_a_symptom_of_a_rule_that_reported_nothing_is_still_shown():
    report = exploding()
    assert "GL801" in full(dataclasses.replace(report, findings=report.findings[1:2]))


def test_numbers_that_the_message_gives_are_not_repeated():
    text = full(exploding()).partition("error GL101")[2]
    assert "gain 2.50" in text
    assert "gain 2.5," not in text
    assert "critical 1" not in text
    assert "explains 5.9 of 5.9 decades, layers 30" in text


def test_what_growth_is_made_of_and_the_phase_stand_under_the_headline():
    lines = full(exploding()).splitlines()
    assert lines[4] == "  due to linear x2.50, tanh x0.63: +0.20 decades a layer, 30 layers"
    assert lines[5] == "  phase: chaotic, gain 2.50, critical 1.00: e-fold growth every 4.2 layers"
    assert "due to" not in full(healthy())


def test_the_picture_of_a_phase_is_for_growth_that_is_not_healthy_on_a_page_that_is_wide_enough():
    assert "by weight gain" in full(exploding())
    assert "by weight gain" not in full(exploding(), width=60)
    mild = dataclasses.replace(exploding(), growth=dataclasses.replace(exploding().growth, decades=2.0))
    assert "by weight gain" not in full(mild)


def test_a_healthy_model_among_others_has_no_phase_line():
    fine = dataclasses.replace(healthy(), stack=exploding().stack)
    assert "phase" in full(fine)
    assert "phase" not in full(fine, healthy())


def test_growth_is_called_predicted_where_nothing_was_probed():
    text = full(unprobed())
    assert "predicted: gradient grows 10^2.1 (+-0.3)" in text
    assert "predicted gradient, decades" in text


def test_growth_of_an_unprobed_report_is_predicted_even_when_it_stands_in_the_field_for_growth():
    report = unprobed()
    moved = dataclasses.replace(report, growth=report.predicted, predicted=None)
    assert full(moved) == full(report)


def test_operators_that_were_not_understood_are_named():
    text = " ".join(full(unprobed()).split())
    assert "27 of 30 operators understood, 0 probed. Not understood: com.acme::RoiWarp x2, com.acme::Voxelize." in text


def test_inputs_that_were_inferred_are_said_to_be():
    assert "pixels=float32[8,3,224,224] (inferred), mask=bool[8,196]," in full(deep())


def test_a_report_with_nothing_in_it_can_be_shown():
    bare = dataclasses.replace(
        unprobed(), verdict=Verdict.UNKNOWN, growth=None, predicted=None, spine=(), findings=(), timings={}, notes=()
    )
    assert "the gradient was not measured" in full(bare)
    assert full(dataclasses.replace(bare, seeds=2)).count("\n") < 10


def test_totals_count_verdicts_over_all_targets():
    closing = full(healthy(), healthy(), exploding()).splitlines()[-1]
    assert closing.strip() == "3 models (2 healthy, 1 exploding): 2 errors. Read more: gradlint rule GL101"


def test_a_healthy_model_is_green_only_where_its_score_is():
    green, orange = "\x1b[1;32m", "\x1b[1;38;5;166m"
    assert f"{green}HEALTHY" in full(healthy(), color=True)
    assert f"{orange}HEALTHY" in full(dataclasses.replace(healthy(), score=74), color=True)
