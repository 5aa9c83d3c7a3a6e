"""Fitting and its figures, against plain definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.trained.fit import auc, calibration_error, fit, recall

PAIRS = st.lists(st.tuples(st.integers(0, 8), st.booleans()), min_size=2, max_size=40).filter(
    lambda pairs: len({fails for _, fails in pairs}) == 2
)


@given(PAIRS)
def test_the_area_is_the_share_of_pairs_in_the_right_order(pairs):
    scores, fails = np.array([score for score, _ in pairs], float), np.array([fails for _, fails in pairs])
    shares = [(a > b) + 0.5 * (a == b) for a in scores[fails] for b in scores[~fails]]
    assert auc(scores, fails) == pytest.approx(np.mean(shares))


@given(PAIRS)
def test_recall_is_told_where_no_more_than_a_share_of_sound_cases_are_alarms(pairs):
    scores, fails = np.array([score for score, _ in pairs], float), np.array([fails for _, fails in pairs])
    bars = [bar for bar in {-math.inf, *scores} if (scores[~fails] > bar).mean() <= 0.25]
    assert recall(scores, fails, 0.25) == pytest.approx(max((scores[fails] > bar).mean() for bar in bars))


def test_probabilities_that_are_frequencies_have_no_error_of_calibration():
    chances = np.repeat([0.25, 0.75], 400)
    fails = np.concatenate([np.arange(400) % 4 == 0, np.arange(400) % 4 != 0])
    assert calibration_error(chances, fails) == pytest.approx(0.0, abs=1e-12)
    assert calibration_error(np.full(800, 0.95), fails) == pytest.approx(0.45)


def test_a_fit_finds_what_made_the_labels_and_no_feature_speaks_for_a_model():
    rng = np.random.default_rng(0)
    table = {"cause": rng.uniform(0.0, 3.0, 4000), "noise": rng.uniform(0.0, 1.0, 4000), "virtue": rng.uniform(0.0, 1.0, 4000)}
    truth = 1.0 / (1.0 + np.exp(-(2.0 * table["cause"] - 2.0 * table["virtue"] - 2.0)))
    fails = rng.uniform(size=4000) < truth
    fitted = fit(table, fails)
    assert fitted.weights["cause"] == pytest.approx(1.9, abs=0.3)
    assert "virtue" not in fitted.weights
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    assert calibration_error(np.array([fitted.probability(row) for row in rows]), fails) < 0.03


def test_a_fit_is_at_the_optimum_of_its_penalized_likelihood():
    rng = np.random.default_rng(1)
    table = {"a": rng.uniform(size=300), "b": rng.uniform(size=300)}
    fails = rng.uniform(size=300) < 0.2 + 0.6 * table["a"]
    fitted = fit(table, fails, ridge=1.0)

    def cost(offset: float, a: float, b: float) -> float:
        z = offset + a * table["a"] + b * table["b"]
        penalty = 0.5 * ((a * table["a"].std()) ** 2 + (b * table["b"].std()) ** 2)
        return float(np.logaddexp(0.0, z).sum() - (z * fails).sum() + penalty)

    best = fitted.offset, fitted.weights.get("a", 0.0), fitted.weights.get("b", 0.0)
    nearby = [tuple(x + step * (i == j) for j, x in enumerate(best)) for i in range(3) for step in (-0.05, 0.05)]
    assert all(cost(*best) <= cost(*point) + 1e-6 for point in nearby if min(point[1:]) >= 0.0)
