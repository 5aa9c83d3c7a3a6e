"""The score: monotone in everything that speaks against a model, and told piece by piece."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlint.calibration.features import FEATURES, features
from gradlint.calibration.score import coefficients, scored
from gradlint.measurements.evidence import Evidence, Level

SOUND = Evidence(
    Level.RECIPE,
    growth=0.3,
    spread=0.2,
    tangent=1.0,
    output=0.0,
    value=1.1,
    constant=1.0,
    ratio=True,
    gradient=1.0,
    first=1.1,
    last=0.2,
    peak=1.1,
    steps=40,
    rate=0.3,
)
WORSE = {
    "growth": [1.0, 3.0, 9.0, math.inf],
    "spread": [1.0, 3.0, 9.0],
    "output": [1.0, 4.0, math.inf],
    "tangent": [3.0, 6.0, 20.0],
    "along": [1.0, 8.0],
    "reach": [0.9, 0.5],
    "silent": [0.5, 1.0],
    "errors": [("GL101",), ("GL101", "GL801")],
    "warnings": [("GL301",), ("GL301", "GL302", "GL404")],
    "value": [10.0, 1e6, math.nan],
    "gradient": [1e3, 1e9, math.inf],
    "inputs": [1.0, 3.0],
    "last": [0.9, 1.5, 1e4, math.nan],
    "peak": [10.0, 1e5],
    "diverged": [True],
    "broken": [True],
    "behind": [True],
    "rate": [3.0, 1e3],
}


@pytest.mark.parametrize("field", WORSE)
@pytest.mark.parametrize("level", list(Level))
def test_the_score_never_rises_with_what_speaks_against_a_model(level, field):
    steps = [replace(SOUND, level=level, **{field: value}) for value in WORSE[field]]
    points = [scored(one).points for one in (replace(SOUND, level=level), *steps)]
    assert points == sorted(points, reverse=True)


def test_what_a_level_does_not_know_does_not_count():
    bad = replace(SOUND, last=math.nan, diverged=True, value=1e9, gradient=math.inf)
    assert scored(replace(bad, level=Level.MODEL)) == scored(replace(SOUND, level=Level.MODEL))
    assert scored(bad).points < 20
    assert scored(SOUND).points > 80


@given(
    st.builds(
        Evidence,
        st.sampled_from(Level),
        growth=st.none() | st.floats(-50.0, 50.0),
        output=st.none() | st.floats(-50.0, 50.0),
        last=st.none() | st.floats(),
        first=st.none() | st.floats(),
        constant=st.none() | st.floats(),
        value=st.none() | st.floats(),
        peak=st.none() | st.floats(),
        gradient=st.none() | st.floats(0.0),
        rate=st.none() | st.floats(0.0),
        ratio=st.booleans(),
    )
)
def test_every_evidence_has_a_score_and_its_parts_add_up(evidence):
    assert all(value >= 0.0 and math.isfinite(value) for value in features(evidence).values())
    made = scored(evidence)
    assert 0 <= made.points <= made.best <= 100
    rounding = 0.5 * len(FEATURES[evidence.level]) + 1
    assert made.best + sum(points for _, points in made.moved) == pytest.approx(made.points, abs=rounding)


def test_a_limit_holds():
    assert scored(SOUND, 49).points == 49
    assert scored(SOUND, 0).points == 0


@pytest.mark.parametrize("level", [Level.STATIC, Level.MODEL, Level.LOSS])
def test_a_short_memory_costs_its_share_of_tasks(level):
    kept, whole = (scored(replace(SOUND, level=level, reach=reach)) for reach in (0.75, 1.0))
    assert kept.points == pytest.approx(0.75 * whole.points, abs=1.0)
    assert kept.moved[-1] == ("reach", pytest.approx(-0.25 * whole.points, abs=1.0))


def test_a_short_memory_costs_nothing_where_the_task_was_seen_to_be_learned():
    assert scored(replace(SOUND, reach=0.5)) == scored(SOUND)
    stuck = replace(SOUND, last=1.0)
    assert scored(replace(stuck, reach=0.5)).points < scored(stuck).points


def test_coefficients_are_few_not_negative_and_of_features_that_exist():
    assert set(coefficients()) == set(Level)
    for level, fitted in coefficients().items():
        assert set(fitted.weights) <= set(FEATURES[level])
        assert min(fitted.weights.values()) >= 0.0


def test_more_is_known_with_a_recipe_than_without():
    assert scored(SOUND).best > max(scored(replace(SOUND, level=level)).best for level in (Level.STATIC, Level.MODEL))
