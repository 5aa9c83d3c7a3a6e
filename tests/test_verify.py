"""Claims of rules against what the probe measured, and symptoms against their causes."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlint.catalog import load_rules
from gradlint.graph import Source
from gradlint.growth import HEALTHY, LIMIT
from gradlint.growth.tracks import Places
from gradlint.result import Confidence, Effect, Finding, Gains, Growth, Measurement, Severity
from gradlint.rule import Rule
from gradlint.verify import relate, verify

INF, NAN = math.inf, math.nan
LEVELS = st.lists(st.integers(-20, 20).map(lambda value: value / 4), min_size=1, max_size=10)


def measurement(levels, **fields):
    gains = {f"n{index}": Gains(level, 0.0, level) for index, level in enumerate(levels)}
    return Measurement(gains, tuple(gains), (f"n{len(levels) - 1}",), Growth(0.0), 1, **fields)


def claim(effect=Effect.EXPLODES, severity=Severity.ERROR, **fields):
    fields = {"evidence": {"decades": 9.0, "gain": 1.5}, **fields}
    return Finding("XX001", "x", severity, "", nodes=("n1",), effect=effect, **fields)


def verified(levels, effect=Effect.EXPLODES, severity=Severity.ERROR, span=None, **fields):
    found = measurement(levels, **fields)
    return verify(claim(effect, severity, span=span), found, Places([found.spine]))


def falling(decades, steps=10):
    """Gains along a spine that explode by `decades` of sustained growth: one step more than that, and it is left out."""
    return [decades * (1.0 - index / steps) + decades / steps for index in range(steps + 2)]


# claims -------------------------------------------------------------------------------------------------------------------

SMALLER_LIMIT, SMALLER_HEALTHY = math.nextafter(LIMIT, 0.0), math.nextafter(HEALTHY, 0.0)


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("effect", list(Effect))
@pytest.mark.parametrize("size", [0.0, 1.0, SMALLER_HEALTHY, HEALTHY, SMALLER_LIMIT, LIMIT, 9.0])
@pytest.mark.parametrize("severity", list(Severity))
def test_a_claim_stands_when_the_measured_growth_has_its_size_and_direction(sign, effect, size, severity):
    found = verified([2.0 * sign * size, sign * size, 0.0], effect, severity)  # two equal steps, one of which is left out
    stands = size >= HEALTHY and effect is not (Effect.VANISHES if sign > 0 else Effect.EXPLODES)
    at_most = severity if not stands or size >= LIMIT or severity is Severity.NOTE else Severity.WARNING
    assert (found.confidence, found.severity) == (Confidence.MEASURED if stands else Confidence.REFUTED, at_most)
    measured = {"decades": sign * size} if stands else {"measured_decades": sign * size}
    assert found.evidence == {"decades": 9.0, "gain": 1.5} | measured


def test_nothing_else_of_a_claim_is_changed():
    for span in (None, ("n1", "n5")):
        asked = claim(span=span, module="fc", source=Source("net.py", 3))
        found = verify(asked, measurement(falling(9.0)), Places([[f"n{index}" for index in range(12)]]))
        assert replace(found, confidence=asked.confidence, severity=asked.severity, evidence=asked.evidence) == asked


@pytest.mark.parametrize("confidence", [Confidence.MEASURED, Confidence.REFUTED])
def test_a_rule_that_looked_at_the_measurement_itself_has_the_last_word(confidence):
    for asked in (claim(confidence=confidence), claim(Effect.VANISHES, confidence=confidence)):
        assert verify(asked, measurement(falling(9.0)), Places([])) is asked


def test_a_finding_without_a_claim_or_without_a_measurement_is_left_as_it_is():
    for asked, found in ((claim(None), measurement(falling(9.0))), (claim(), None), (claim(Effect.VANISHES), None)):
        assert verify(asked, found, Places([])) is asked


@pytest.mark.parametrize("levels", [[], [9.0], [NAN] * 5, [INF] * 5, [None, 1.0, None]])
def test_a_claim_stays_predicted_where_nothing_was_measured(levels):
    assert verified(levels).confidence is Confidence.PREDICTED


def test_a_claim_stays_predicted_where_no_gradient_reaches_a_weight():
    assert verified(falling(5.0), dead=True).confidence is Confidence.PREDICTED


def test_two_gains_have_one_step_which_is_no_growth():
    found = verified([99.0, 0.0])
    assert (found.confidence, found.evidence["measured_decades"]) == (Confidence.REFUTED, 0.0)


@given(LEVELS, st.sampled_from(list(Effect)), st.data())
def test_a_claim_is_checked_over_its_span_and_the_step_into_it(levels, effect, data):
    first = data.draw(st.integers(0, len(levels) - 1))
    last = data.draw(st.integers(first, len(levels) - 1))
    found = verified(levels, effect, span=(f"n{first}", f"n{last}"))
    alone = verified(levels[max(first - 1, 0) : last + 1], effect)
    assert (found.confidence, found.severity, found.evidence) == (alone.confidence, alone.severity, alone.evidence)


@pytest.mark.parametrize("span", [("elsewhere", "n11"), ("n9", "elsewhere"), ("elsewhere", "beyond")])
def test_a_claim_over_nodes_off_the_spine_is_checked_over_all_of_it(span):
    whole, part = verified(falling(5.0)), verified(falling(5.0), span=("n9", "n11"))
    assert verified(falling(5.0), span=span).confidence is whole.confidence is Confidence.MEASURED
    assert part.confidence is Confidence.REFUTED


# causes and symptoms ------------------------------------------------------------------------------------------------------


def rule(code, *, explains=(), explained_by=(), relates=None):
    """A rule that declares what it explains and what explains it."""
    body = {"code": code, "explains": explains, "explained_by": explained_by, "check": lambda self, subject: ()}
    if relates is not None:
        body["relates"] = lambda self, cause, symptom: relates(cause, symptom)
    return type(code, (Rule,), body)()


def rules(*known):
    return {one.code: one for one in known}


def finding(code, effect=None, decades=0.0, severity=Severity.ERROR, confidence=Confidence.MEASURED):
    return Finding(code, code, severity, "", effect=effect, evidence={"decades": decades}, confidence=confidence)


def causes(found):
    return [one.caused_by for one in found]


DECLARED = {
    "by the cause": (rule("C", explains=("S",)), rule("S")),
    "by the symptom": (rule("C"), rule("S", explained_by=("C",))),
    "by the symptom, as an effect": (rule("C"), rule("S", explained_by=(Effect.EXPLODES,))),
}


@pytest.mark.parametrize("known", DECLARED.values(), ids=DECLARED)
def test_a_symptom_points_at_a_finding_that_either_rule_declares_to_explain_it(known):
    for order in (1, -1):
        pair = [finding("C", Effect.EXPLODES), finding("S")][::order]
        assert causes(relate(pair, rules(*known))) == [None, "C"][::order]


def test_a_symptom_points_at_nothing_that_no_rule_declares():
    known = rules(rule("C", explains=("X",)), rule("S", explained_by=("X", Effect.VANISHES)))
    assert causes(relate([finding("C", Effect.EXPLODES), finding("S")], known)) == [None, None]
    assert (
        causes(relate([finding("C"), finding("S")], rules(rule("C"), rule("S", explained_by=(Effect.EXPLODES,))))) == [None] * 2
    )


@pytest.mark.parametrize(("by_cause", "by_symptom"), list(itertools.product([True, False], repeat=2)))
@pytest.mark.parametrize("declares", ["cause", "symptom"])
def test_both_rules_are_asked_whether_one_finding_made_the_other(by_cause, by_symptom, declares):
    seen = []

    def answer(value):
        return lambda cause, symptom: seen.append((cause.rule, symptom.rule)) or value

    explains, explained_by = (("S",), ()) if declares == "cause" else ((), ("C",))
    known = rules(
        rule("C", explains=explains, relates=answer(by_cause)), rule("S", explained_by=explained_by, relates=answer(by_symptom))
    )
    assert causes(relate([finding("C"), finding("S")], known))[1] == ("C" if by_cause and by_symptom else None)
    assert set(seen) == {("C", "S")}


def test_a_finding_does_not_explain_itself_but_another_one_of_its_rule_may():
    known = rules(rule("C", explains=("C",)))
    assert causes(relate([finding("C", decades=1.0)], known)) == [None]
    assert causes(relate([finding("C", decades=1.0), finding("C", decades=2.0)], known)) == ["C", "C"]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))))
def test_a_symptom_points_at_the_severest_cause_and_of_equal_ones_at_that_of_most_decades(order):
    found = [
        finding("A", decades=9.0, severity=Severity.WARNING),
        finding("B", decades=1.0),
        finding("C", decades=2.0),
        finding("D", decades=99.0, severity=Severity.NOTE),
    ]
    known = rules(*(rule(code, explains=("S",)) for code in "ABCD"), rule("S"))
    shuffled = [found[index] for index in order]
    assert causes(relate([finding("S"), *shuffled], known))[0] == "C"
    assert causes(relate([finding("S"), *(one for one in shuffled if one.rule in "AD")], known))[0] == "A"


def test_of_equal_causes_the_first_is_named():
    known = rules(rule("A", explains=("S",)), rule("B", explains=("S",)), rule("S"))
    assert causes(relate([finding("B"), finding("A"), finding("S")], known))[-1] == "B"


def test_a_refuted_finding_explains_nothing_and_stays_where_it_is():
    known = rules(rule("C", explains=("S",)), rule("S"))
    refuted = finding("C", confidence=Confidence.REFUTED)
    assert relate([refuted, finding("S")], known) == [refuted, finding("S")]


def test_a_finding_without_a_cause_is_left_as_it_is():
    known, found = rules(rule("C"), rule("S")), [finding("C", Effect.EXPLODES), finding("S")]
    assert all(one is other for one, other in zip(relate(found, known), found, strict=True))


@pytest.mark.parametrize("effect", [Effect.EXPLODES, Effect.VANISHES])
@pytest.mark.parametrize("decades", [0.0, 3.0, math.nextafter(4.0, 0.0), 4.0, 5.0])
@pytest.mark.parametrize("confidence", [Confidence.MEASURED, Confidence.PREDICTED])
def test_depth_is_not_reported_beside_a_cause_that_explains_as_much(confidence, decades, effect):
    known = rules(rule("C"), rule("D"))
    depth = finding("D", Effect.EITHER, 4.0, confidence=confidence)
    cause = finding("C", effect, decades, confidence=confidence)
    assert relate([depth, cause], known) == ([cause] if decades >= 4.0 else [depth, cause])


def test_depth_is_reported_beside_what_names_no_cause_of_it():
    known = rules(rule("C"), rule("D"))
    depth = finding("D", Effect.EITHER, 4.0)
    refuted = finding("C", Effect.EXPLODES, 9.0, confidence=Confidence.REFUTED)
    others = [finding("C", None, 9.0), finding("C", Effect.EITHER, 9.0), refuted]
    for other in others:
        assert depth in relate([depth, other], known)
    refuted = finding("D", Effect.EITHER, 4.0, confidence=Confidence.REFUTED)
    assert relate([refuted, finding("C", Effect.EXPLODES, 9.0)], known)[0] is refuted


def test_depth_of_no_decades_is_not_reported_at_all():
    assert relate([finding("D", Effect.EITHER, 0.0)], rules(rule("D"))) == []


# the built-in pack --------------------------------------------------------------------------------------------------------

PACK = {known.code: known() for known in load_rules()}


def test_measured_growth_points_at_the_cause_that_explains_most_of_it_in_its_direction():
    weak, strong = finding("GL101", Effect.EXPLODES, 3.0), finding("GL302", Effect.EXPLODES, 5.0)
    vanishing = finding("GL102", Effect.VANISHES, 9.0)
    assert relate([weak, strong, vanishing, finding("GL801")], PACK)[-1].caused_by == "GL302"
    assert relate([weak, strong, vanishing, finding("GL802")], PACK)[-1].caused_by == "GL102"
    refuted = replace(strong, confidence=Confidence.REFUTED)
    assert relate([refuted, finding("GL801")], PACK)[-1].caused_by is None
