"""The JSON report against its JSON Schema."""

from __future__ import annotations

import dataclasses
import json
import math

import jsonschema
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlint.report import render, tool_version
from gradlint.report.formats.json import schema
from gradlint.result import Growth, Severity
from tests.models.report_samples import SAMPLES, cut, exploding, healthy, non_finite, recurrent, unprobed

VALIDATOR = jsonschema.Draft202012Validator(schema())


def no_literal(name):
    raise AssertionError(f"{name} is not JSON")


def document(*reports, **options):
    loaded = json.loads(render("json", reports, **options), parse_constant=no_literal)
    VALIDATOR.validate(loaded)
    return loaded


def target(report, **options):
    return document(report, **options)["targets"][0]


def test_the_schema_is_a_valid_schema():
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("refuted", [False, True])
def test_every_report_satisfies_the_schema(name, refuted):
    document(SAMPLES[name](), show_refuted=refuted)


def test_all_targets_are_one_document_that_names_schema_and_version():
    loaded = document(exploding(), healthy())
    assert [loaded["schema"], loaded["version"]] == ["gradlint-report/2", tool_version()]
    assert [item["verdict"] for item in loaded["targets"]] == ["explodes", "healthy"]


def test_the_schema_allows_no_field_that_it_does_not_name():
    def objects(part):
        if isinstance(part, dict):
            if part.get("type") == "object" and "properties" in part:
                yield part
            for value in part.values():
                yield from objects(value)
        elif isinstance(part, list):
            for value in part:
                yield from objects(value)

    found = list(objects(schema()))
    assert len(found) > 10
    assert all(part["additionalProperties"] is False for part in found)
    loaded = document(exploding())
    loaded["targets"][0]["surprise"] = 1
    assert not VALIDATOR.is_valid(loaded)


def test_what_was_not_measured_is_null():
    report = target(unprobed())
    assert report["growth"]["measured_decades"] is None
    assert report["growth"]["predicted_decades"] == 2.1
    assert report["spine"][0]["backward_decades"] == {"predicted": 2.1, "measured": None}
    assert target(non_finite())["growth"] is None


def test_what_is_not_finite_is_named():
    assert target(cut())["spine"][0]["backward_decades"]["measured"] == "-inf"
    assert target(non_finite())["spine"][0]["backward_decades"]["measured"] == "nan"
    assert target(non_finite())["findings"][1]["evidence"] == {"operands": [[-3.1, "inf"]]}


def test_a_recurrence_has_one_value_a_step():
    (time,) = target(recurrent())["time"]
    assert len(time["backward_decades"]) == 64
    assert time["decades_per_step"] == 0.114


def test_without_timings_two_runs_write_the_same_bytes():
    slower = dataclasses.replace(exploding(), timings={"load": 9.9})
    assert render("json", [slower], timings=False) == render("json", [exploding()], timings=False)
    assert "timings" not in target(slower, timings=False)
    assert target(slower)["timings"] == {"load": 9.9}


def test_refuted_findings_are_left_out_unless_asked_for():
    assert {item["confidence"] for item in target(exploding())["findings"]} == {"measured"}
    assert "refuted" in {item["confidence"] for item in target(exploding(), show_refuted=True)["findings"]}


def test_evidence_may_hold_numpy_values_enums_and_sets():
    evidence = {
        "gain": np.float32(2.5),
        "count": np.int64(3),
        "levels": np.array([1.0, np.nan]),
        "tiny": 1.23456789e-12,
        "kind": Severity.NOTE,
        "names": {"b", "a"},
        "nested": {"range": (0, 1.5), "none": None, "flag": True},
    }
    finding = dataclasses.replace(exploding().findings[0], evidence=evidence)
    assert target(dataclasses.replace(exploding(), findings=(finding,)))["findings"][0]["evidence"] == {
        "gain": 2.5,
        "count": 3,
        "levels": [1.0, "nan"],
        "tiny": 1.23457e-12,
        "kind": "note",
        "names": ["a", "b"],
        "nested": {"range": [0, 1.5], "none": None, "flag": True},
    }


@given(st.floats())
def test_any_growth_is_a_number_to_four_places_or_the_name_of_what_is_not_finite(value):
    written = target(dataclasses.replace(healthy(), growth=Growth(value)))["growth"]["measured_decades"]
    if math.isfinite(value):
        assert written == pytest.approx(value, abs=5.1e-5)
        assert len(str(written).partition(".")[2]) <= 4 or abs(value) > 1e11
        assert math.copysign(1.0, written) == 1.0 or written < 0
    else:
        assert float(written) == value or math.isnan(value)


def test_the_report_is_ascii_whatever_names_the_model_uses():
    report = dataclasses.replace(healthy(), target="modèle-\U0001f525.onnx")
    assert render("json", [report]).isascii()
    assert target(report)["target"] == "modèle-\U0001f525.onnx"
