"""Verdict and score: which growth is judged, what overrides it, and how the score falls."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

import gradlint
from gradlint.growth import LIMIT
from gradlint.measurements import SURROGATE
from gradlint.measurements.coverage import Coverage
from gradlint.measurements.faults import NonFinite
from gradlint.measurements.loss import LossFacts
from gradlint.measurements.rehearsal import DeadUnits, Rehearsal
from gradlint.measurements.units import Cut
from gradlint.result import (
    Confidence,
    Effect,
    Finding,
    Growth,
    Measurement,
    Severity,
    TargetReport,
    TimeGrowth,
    Verdict,
)
from gradlint.score import State, failed, failing, growth_with_claims, judge, worst_growth

INF, NAN = math.inf, math.nan
CLAIMS = [*Effect, None]


def measurement(growth=0.0, **fields):
    return Measurement({}, (), (), Growth(growth), 1, **fields)


def finding(severity=Severity.ERROR, effect=None, decades=0.0, confidence=Confidence.MEASURED):
    return Finding("XX001", "x", severity, "", effect=effect, confidence=confidence, evidence={"decades": decades})


def judged(found, growth, findings=(), *, conclusive=True, broken_weight=False):
    """The verdict, and the highest score that it allows."""
    growth = Growth(growth) if isinstance(growth, float) else growth
    judgment = judge(found, growth, findings, State(conclusive=conclusive, broken_weight=broken_weight))
    return judgment.verdict, judgment.most


# which growth is judged ---------------------------------------------------------------------------------------------------

SIZES = [-9.0, -LIMIT, -1.0, 0.0, 1.0, math.nextafter(LIMIT, 0.0), LIMIT, 5.0, 9.0]


@pytest.mark.parametrize(("spine", "times"), [*itertools.product(SIZES, [(), *itertools.combinations(SIZES, 2)])])
def test_growth_along_time_is_judged_where_it_explodes_and_by_more_than_the_spine(spine, times):
    along_time = [TimeGrowth("rnn", (), Growth(decades)) for decades in times]
    found = worst_growth(measurement(spine, time=tuple(along_time)))
    largest = max(times, default=-INF)
    assert found.decades == (largest if largest >= LIMIT and largest > abs(spine) else spine)


def test_the_growth_that_is_judged_is_handed_on_with_its_place():
    along_time, spine = replace(Growth(9.0), per_step=0.25), replace(Growth(5.0), total=7.0)
    found = Measurement({}, (), (), spine, 1, time=(TimeGrowth("rnn", (), along_time),))
    assert worst_growth(found) is along_time
    assert worst_growth(replace(found, time=())) is spine
    assert worst_growth(replace(found, growth=replace(spine, decades=-9.0))).decades == -9.0


@pytest.mark.parametrize("effect", CLAIMS)
@pytest.mark.parametrize("confidence", list(Confidence))
@pytest.mark.parametrize("severity", list(Severity))
def test_an_error_that_claims_a_direction_stands_for_growth_that_theory_did_not_follow(severity, confidence, effect):
    counts = severity is Severity.ERROR and confidence is not Confidence.REFUTED
    signs = {Effect.EXPLODES: 1.0, Effect.VANISHES: -1.0}
    found = growth_with_claims(Growth(2.0), [finding(severity, effect, 6.0, confidence)])
    assert found == Growth(6.0 * signs[effect] if counts and effect in signs else 2.0)


def test_the_strongest_claim_stands_whatever_its_direction():
    claims = [finding(effect=effect, decades=d) for effect, d in ((Effect.EXPLODES, 4.0), (Effect.VANISHES, 6.0))]
    assert growth_with_claims(None, claims) == growth_with_claims(None, claims[::-1]) == Growth(-6.0)
    assert growth_with_claims(Growth(-2.0), [*claims, finding(effect=Effect.EXPLODES, decades=8.0)]) == Growth(8.0)


@pytest.mark.parametrize("followed", [Growth(6.0), Growth(-6.0), Growth(-7.0)])
def test_growth_that_theory_followed_stands_where_no_claim_is_larger(followed):
    assert growth_with_claims(followed, [finding(effect=Effect.EXPLODES, decades=6.0)]) is followed


def test_nothing_is_predicted_without_growth_and_without_a_claim():
    assert growth_with_claims(None, []) is None
    assert growth_with_claims(None, [finding(effect=Effect.EITHER, decades=5.0), finding(decades=5.0)]) is None
    assert growth_with_claims(None, [finding(effect=Effect.EXPLODES, decades=0.5)]) == Growth(0.5)


# the verdict --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_the_verdict_changes_at_the_limit(sign):
    below, expected = math.nextafter(LIMIT, 0.0), Verdict.EXPLODES if sign > 0 else Verdict.VANISHES
    for found in (measurement(), None):
        assert judged(found, sign * LIMIT)[0] is expected
        assert judged(found, sign * below)[0] is Verdict.HEALTHY


# what is known ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("growth", [None, 1.0])
@pytest.mark.parametrize("conclusive", [True, False])
@pytest.mark.parametrize("found", [measurement(), None])
def test_a_model_is_healthy_only_where_the_growth_of_all_of_it_is_known(found, conclusive, growth):
    verdict, score = judged(found, growth, conclusive=conclusive)
    known = conclusive and growth is not None
    assert verdict is (Verdict.HEALTHY if known else Verdict.UNKNOWN)
    assert (score > 50) is known


@pytest.mark.parametrize("found", [measurement(), None])
def test_a_fault_counts_where_it_was_measured_or_theory_is_sure(found):
    sure, unsure = (judged(found, 2.0 * LIMIT, conclusive=conclusive) for conclusive in (True, False))
    assert sure[0] is Verdict.EXPLODES
    assert unsure[0] is (Verdict.EXPLODES if found else Verdict.UNKNOWN)
    assert sure[1] == unsure[1] < 50


@pytest.mark.parametrize("confidence", list(Confidence))
@pytest.mark.parametrize("severity", list(Severity))
def test_an_error_that_is_not_refuted_makes_trouble_more_likely_than_not(severity, confidence):
    verdict, score = judged(
        measurement(), 0.0, [finding(confidence=Confidence.REFUTED), finding(severity, confidence=confidence)]
    )
    assert verdict is Verdict.HEALTHY
    assert score == (49 if severity is Severity.ERROR and confidence is not Confidence.REFUTED else 100)


def test_an_error_raises_no_score():
    assert judged(measurement(), 9.0, [finding()])[1] == judged(measurement(), 9.0)[1] == 49
    nearly = [judged(None, LIMIT - 0.5, findings, conclusive=False)[1] for findings in ([], [finding()])]
    assert nearly == [49, 49]


# faults that need no growth -----------------------------------------------------------------------------------------------

NON_FINITE = NonFinite("n1", "NaN")
LOSS = LossFacts(2.0, 1.0, {"w": 1.0})
CUT = Cut("n1", "round", ("w",), on_spine=True)
REHEARSED = Rehearsal(3, (2.0, 1.5, 1.0, 0.5), (1.0, 1.0, 1.0), {}, (), 2.0, 0.5)
UNITS = DeadUnits("relu", 8, 0.0, 1.0)

NOT_FINITE = {
    "forward": {"nonfinite_forward": NON_FINITE},
    "backward": {"nonfinite_backward": NON_FINITE},
    "loss": {"loss": replace(LOSS, value=NAN)},
    "gradient of the loss": {"loss": replace(LOSS, gradient_norm=INF)},
    "first loss": {"rehearsal": replace(REHEARSED, losses=(INF, 1.0))},
    "first gradient": {"rehearsal": replace(REHEARSED, gradient_norms=(NAN, 1.0))},
    "first gradient behind a loss": {"loss": LOSS, "rehearsal": replace(REHEARSED, gradient_norms=(NAN,))},
    "first loss behind a loss": {"loss": LOSS, "rehearsal": replace(REHEARSED, losses=(-INF,))},
    "loss before a rehearsal": {"loss": replace(LOSS, value=INF), "rehearsal": REHEARSED},
}
DEAD = {
    "dead": {"dead": True},
    "flat loss": {"loss": LossFacts(2.0, 0.0, {"w": 0.0})},
    "cut": {"cuts": (CUT,)},
    "one cut of two": {"cuts": (replace(CUT, on_spine=False), CUT)},
}
UNHARMED = {
    "nothing": {},
    "loss": {"loss": LOSS},
    "loss of zero": {"loss": LossFacts(0.0, 0.0, {"w": 0.0})},
    "cut beside the spine": {"cuts": (replace(CUT, on_spine=False),)},
    "cut that starves nothing": {"cuts": (replace(CUT, starved=()),)},
    "rehearsal": {"rehearsal": REHEARSED},
    "rehearsal without a step": {"rehearsal": replace(REHEARSED, losses=(), gradient_norms=())},
    "later loss": {"rehearsal": replace(REHEARSED, losses=(2.0, NAN), gradient_norms=(1.0, NAN))},
    "loss that was made up": {"rehearsal": replace(REHEARSED, losses=(NAN, NAN), stands_in="mean square")},
}


@pytest.mark.parametrize("fields", NOT_FINITE.values(), ids=NOT_FINITE)
@pytest.mark.parametrize("growth", [0.0, 9.0, None])
def test_a_pass_that_is_not_finite_is_the_verdict_whatever_the_growth(growth, fields):
    assert judged(measurement(dead=True, **fields), growth, conclusive=False) == (Verdict.NON_FINITE, 0)


@pytest.mark.parametrize("found", [None, measurement(), measurement(dead=True)])
def test_a_weight_that_is_not_finite_is_the_verdict(found):
    assert judged(found, 0.0, broken_weight=True) == (Verdict.NON_FINITE, 0)


@pytest.mark.parametrize("fields", DEAD.values(), ids=DEAD)
@pytest.mark.parametrize("growth", [0.0, 9.0, None])
def test_a_model_whose_weights_get_no_gradient_is_untrainable_whatever_the_growth(growth, fields):
    assert judged(measurement(**fields), growth, conclusive=False) == (Verdict.UNTRAINABLE, 0)


@pytest.mark.parametrize("fields", UNHARMED.values(), ids=UNHARMED)
def test_what_does_no_harm_leaves_a_model_healthy(fields):
    assert judged(measurement(**fields), 0.0) == (Verdict.HEALTHY, 100)


@pytest.mark.parametrize("found", [None, measurement()])
@pytest.mark.parametrize("confidence", list(Confidence))
@pytest.mark.parametrize("severity", list(Severity))
@pytest.mark.parametrize("verdict", [Verdict.NON_FINITE, Verdict.UNTRAINABLE, Verdict.UNSTABLE])
def test_an_error_whose_rule_makes_a_verdict_makes_it_by_itself(verdict, severity, confidence, found):
    makes = severity is Severity.ERROR and confidence is not Confidence.REFUTED
    makers = [replace(finding(severity, confidence=confidence), verdict=verdict)]
    growth = 9.0 if verdict is Verdict.NON_FINITE else 0.0  # of both, growth is the cause
    for findings in (makers, [finding(), *makers]):
        most = 0 if verdict is Verdict.NON_FINITE else 49
        assert judged(found, growth, findings) == ((verdict, most) if makes else judged(found, growth, findings))


def test_a_pass_that_is_not_finite_comes_before_a_gradient_that_stops():
    both = [replace(finding(), verdict=verdict) for verdict in (Verdict.UNTRAINABLE, Verdict.NON_FINITE)]
    assert judged(measurement(), 0.0, both) == (Verdict.NON_FINITE, 0)
    assert judged(measurement(dead=True), 0.0, both[1:]) == (Verdict.NON_FINITE, 0)


FAILS = [{"diverged_at": 2}, {"dead": UNITS}, {"dead": UNITS, "diverged_at": 0}, {"behind": True, "last": 9.0}]


@pytest.mark.parametrize("fields", FAILS)
def test_a_rehearsal_that_certainly_fails_makes_a_model_below_the_limit_unstable(fields):
    found = measurement(rehearsal=replace(REHEARSED, **fields))
    below = math.nextafter(LIMIT, 0.0)
    assert [judged(found, growth) for growth in (0.0, below, -below, None)] == [(Verdict.UNSTABLE, 49)] * 4
    assert judged(found, -LIMIT) == (Verdict.VANISHES, 49)
    assert judged(found, LIMIT) == (Verdict.EXPLODES, 49)


def test_a_rehearsal_that_may_have_failed_is_no_verdict():
    for fields in ({"stalled": True}, {"behind": True}, {"diverged_at": 2, "stands_in": SURROGATE}):
        assert judged(measurement(rehearsal=replace(REHEARSED, **fields)), 0.0)[0] is Verdict.HEALTHY


@pytest.mark.parametrize("growth", [0.0, 9.0, -9.0])
def test_a_rehearsal_that_clearly_learned_overrules_growth_and_lifts_the_limit_of_errors(growth):
    """But not that of a pass that is not finite."""
    learned = {"rehearsal": replace(REHEARSED, chance=1.0)}
    assert judged(measurement(**learned), growth, [finding()]) == (Verdict.HEALTHY, 100)
    assert judged(measurement(**learned, dead=True), growth) == (Verdict.UNTRAINABLE, 100)
    assert judged(measurement(**learned, nonfinite_forward=NON_FINITE), growth) == (Verdict.NON_FINITE, 0)
    for less in ({"chance": 0.6}, {"chance": None}, {"chance": 1.0, "stands_in": SURROGATE}):
        assert (judged(measurement(rehearsal=replace(REHEARSED, **less)), growth)[0] is Verdict.HEALTHY) is (growth == 0.0)


# checks that fail ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("severity", "limit"), list(itertools.product(Severity, Severity)))
def test_a_finding_fails_a_check_of_its_severity_or_a_milder_one_unless_it_is_refuted(severity, limit):
    order = [Severity.ERROR, Severity.WARNING, Severity.NOTE]
    assert failing(finding(severity), limit) is (order.index(severity) <= order.index(limit))
    assert failing(finding(severity, confidence=Confidence.PREDICTED), limit) is failing(finding(severity), limit)
    assert not failing(finding(severity, confidence=Confidence.REFUTED), limit)


def report(score, *findings):
    return TargetReport("x", "torch", "train", Verdict.HEALTHY, score, None, (), findings, Coverage(0, 0, 0), (), (), {})


def test_a_report_fails_by_a_finding_or_by_its_score():
    warned = report(80, finding(Severity.NOTE), finding(Severity.WARNING))
    assert failed(warned, Severity.WARNING, None)
    assert not failed(warned, Severity.ERROR, None)
    assert not failed(warned, None, None)
    assert not failed(report(80), Severity.NOTE, None)
    assert [failed(warned, None, least) for least in (79, 80, 81)] == [False, False, True]
    assert failed(warned, Severity.WARNING, 10)


@pytest.mark.parametrize(("optimizer", "verdict"), [("adam lr=1e-3", "healthy"), ("sgd lr=1e-3", "vanishes")])
def test_growth_does_not_overrule_a_rehearsal_that_learns(optimizer, verdict):
    """Adam divides the scale of a gradient away; gradient descent does not."""
    torch.manual_seed(0)
    layers = [part for index in range(10) for part in (nn.Linear(32 if index else 16, 32), nn.SiLU())]
    x = torch.randn(64, 16, generator=torch.Generator().manual_seed(3))
    task = {"loss": nn.functional.mse_loss, "target": x[:, :4].sin().sum(1, keepdim=True)}
    report = gradlint.check(nn.Sequential(*layers, nn.Linear(32, 1)), x, recipe=optimizer, seeds=1, **task)
    assert report.verdict == verdict
    about_growth = [finding for finding in report.findings if finding.rule == "GL802"]
    assert [finding.severity for finding in about_growth] == ["warning" if verdict == "healthy" else "error"]
    assert ("the recipe trains it" in str(report)) is (verdict == "healthy")
