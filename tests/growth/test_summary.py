"""From gains at nodes to growth: which gains count, growth with its sign, jumps, spread between seeds, and remarks on it."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from gradlint.graph import Graph, Node, Ref, Source
from gradlint.growth import FLOOR, HEALTHY, JUMP, LIMIT, UNDERFLOW, about, along, nearness, place, signed, spine_points, summarize
from gradlint.measurements.reinitialization import Redraws
from gradlint.measurements.segments import Segment
from gradlint.result import Gains, Growth, Jump, Measurement, Place, SpinePoint
from gradlint.theory.reading.sustained import largest_run

INF, NAN = math.inf, math.nan
LEVELS = st.lists(st.integers(-20, 20).map(lambda value: value / 4), min_size=1, max_size=12)


def names(levels):
    return [f"n{index}" for index in range(len(levels))]


def gains_of(levels, relative=None):
    relative = levels if relative is None else relative
    return {node: Gains(level, 0.0, other) for node, level, other in zip(names(levels), levels, relative, strict=True)}


def graph_of(levels):
    nodes, last = [], None
    for index, name in enumerate(names(levels)):
        nodes.append(Node(name, "linear" if index else "input", (Ref(last),) if last else (), module=f"layers.{index}"))
        last = name
    return Graph(nodes, [Ref(last)] if last else [])


def summary(levels, *, relative=None, seeds=()):
    singles = [dict(zip(names(single), single, strict=True)) for single in seeds]
    return summarize(graph_of(levels), names(levels), gains_of(levels, relative), singles)


# limits -------------------------------------------------------------------------------------------------------------------


def test_the_limits_lie_where_standard_architectures_and_failing_models_were_measured():
    """90 % of 134 healthy architectures under 2.2 decades, all under 3.4; models that fail above 3.7."""
    assert pytest.approx(2.2) == HEALTHY
    assert 3.4 < LIMIT < 3.7
    assert 0.0 < JUMP < HEALTHY


def test_the_floor_is_below_every_number_of_single_precision():
    smallest = math.log10(float(np.finfo(np.float32).smallest_subnormal))
    assert math.floor(smallest) == FLOOR


def test_squares_of_a_gradient_that_has_underflowed_are_no_longer_exact():
    smallest, tiny = np.finfo(np.float32).smallest_subnormal, np.finfo(np.float32).tiny
    assert 0.5 * math.log10(float(smallest)) < UNDERFLOW < 0.5 * math.log10(float(tiny))


# levels along a chain -----------------------------------------------------------------------------------------------------


@given(st.lists(st.sampled_from([None, NAN, INF, -3.0, 0.0, 2.5])))
def test_nodes_without_a_finite_gain_are_left_out_of_a_chain(values):
    chain = names(values)
    kept = [(node, value) for node, value in zip(chain, values, strict=True) if value is not None and math.isfinite(value)]
    found = along(chain, dict(zip(chain, values, strict=True)))
    assert list(zip(*found, strict=True)) == kept


def test_a_chain_may_name_nodes_that_were_not_measured_and_leave_out_others():
    assert along(["a", "b", "c"], {"a": 2.0, "c": 1.0, "elsewhere": 9.0}) == (["a", "c"], [2.0, 1.0])


@pytest.mark.parametrize("last", [UNDERFLOW, UNDERFLOW - 1.0])
def test_a_gradient_that_faded_before_it_became_zero_counts_as_the_smallest_one(last):
    levels = [-INF, -INF, last, -1.0]
    assert along(names(levels), dict(zip(names(levels), levels, strict=True))) == (names(levels), [FLOOR, FLOOR, last, -1.0])


@pytest.mark.parametrize("last", [math.nextafter(UNDERFLOW, 0.0), 0.0, 5.0])
def test_nothing_before_a_zero_that_did_not_fade_counts(last):
    levels = [7.0, -INF, last, -1.0]
    assert along(names(levels), dict(zip(names(levels), levels, strict=True))) == (["n2", "n3"], [last, -1.0])


def test_a_chain_that_ends_in_a_zero_has_no_levels():
    assert along(["a", "b"], {"a": 1.0, "b": -INF}) == ([], [])


def test_a_gain_that_is_infinite_hides_no_other():
    levels = [3.0, INF, NAN, -INF, UNDERFLOW, None]
    assert along(names(levels), dict(zip(names(levels), levels, strict=True)))[1] == [3.0, FLOOR, UNDERFLOW]


# growth with its sign -----------------------------------------------------------------------------------------------------


@given(LEVELS)
@example([0.0, 2.0, 4.0, 2.0, 0.0])  # rises as far as it falls
def test_growth_is_the_larger_of_rise_and_fall_and_a_fall_is_negative(levels):
    up, down = largest_run(levels), largest_run([-level for level in levels])
    decades, rise, fall, run = signed(levels)
    assert (rise, fall) == (up.decades, down.decades)
    assert decades == (rise if rise >= fall else -fall)
    assert run == (up if rise >= fall else down)


@given(LEVELS)
def test_growth_of_the_mirrored_gains_has_the_other_sign(levels):
    decades, rise, fall, run = signed(levels)
    other = signed([-level for level in levels])
    assert (other[1], other[2]) == (fall, rise)
    assert rise == fall or (other[0], other[3]) == (-decades, run)


# the summary --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("levels", [[], [2.0], [None, 2.0, NAN], [1.0, 2.0, -INF]])
def test_there_is_no_growth_where_fewer_than_two_gains_are_known(levels):
    assert summary(levels) == Growth(0.0)


@given(st.lists(st.integers(-20, 20).map(lambda value: value / 4), min_size=2, max_size=12))
def test_a_summary_holds_the_growth_of_its_chain_and_where_it_lies(levels):
    found = summary(levels)
    decades, rise, fall, run = signed(levels)
    assert (found.decades, found.rise, found.fall) == (decades, rise, fall)
    assert found.total == levels[0] - levels[-1]
    assert (found.start, found.end) == tuple(Place(f"n{index}", f"layers.{index}") for index in (run.start, run.end))
    assert (found.spread, found.interval, found.per_step) == (None, None, None)


def test_nodes_of_the_chain_that_were_not_measured_are_left_out_of_a_summary():
    levels = [4.0, 3.0, 2.0, 1.0]
    gains = gains_of(levels)
    del gains["n1"]
    assert summarize(graph_of(levels), names(levels), gains) == summarize(graph_of(levels), ["n0", "n2", "n3"], gains)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_relative_growth_is_read_at_the_ends_of_the_run(sign):
    levels = [sign * level for level in (0.0, 3.0, 2.0, 1.0, 0.0, 0.0)]
    found = summary(levels, relative=[50.0, 7.0, 30.0, 20.0, 5.5, 60.0])
    assert (found.start.node, found.end.node) == ("n1", "n4")
    assert found.relative == 7.0 - 5.5


@pytest.mark.parametrize("ends", [(None, 1.0), (1.0, None), (None, None), (INF, 1.0), (1.0, -INF), (INF, INF), (NAN, 1.0)])
def test_relative_growth_is_unknown_where_one_of_its_ends_is(ends):
    assert summary([3.0, 2.0, 1.0], relative=[ends[0], 0.0, ends[1]]).relative is None


@pytest.mark.parametrize("offset", [0.0, 10.0, -10.0])
def test_steps_of_more_than_a_decade_are_jumps_with_their_place_and_sign(offset):
    steps = [JUMP, -JUMP, -1.25 * JUMP, 1.5 * JUMP, 0.5 * JUMP]
    levels = [offset - sum(steps[:index]) for index in range(len(steps) + 1)]
    found = summary(levels).jumps
    assert found == (Jump(Place("n3", "layers.3"), -1.25 * JUMP), Jump(Place("n4", "layers.4"), 1.5 * JUMP))


def test_the_spread_is_the_largest_deviation_of_a_seed_from_the_median_seed():
    steep, seeds = [4.0, 3.0, 2.0, 1.0], [[slope * step for step in (4, 3, 2, 1)] for slope in (1.0, 1.5, -2.0, 1.25)]
    growths = [signed(single)[0] for single in seeds]
    assert summary(steep, seeds=seeds).spread == max(abs(growth - median(growths)) for growth in growths)
    assert summary(steep, seeds=seeds[:2]).spread > 0.0


def test_a_seed_without_two_gains_counts_for_nothing_in_the_spread():
    steep, two = [4.0, 3.0, 2.0, 1.0], [[3.0, 2.0, 1.0, 0.0], [6.0, 4.0, 2.0, 0.0]]
    unknown = [None, NAN, 1.0, -INF]
    assert summary(steep, seeds=[*two, unknown, [None, None, None, 1.0]]).spread == summary(steep, seeds=two).spread
    assert summary(steep, seeds=[two[0], unknown]).spread is None
    assert summary(steep, seeds=[two[0]]).spread is None


def test_a_seed_with_two_gains_has_a_growth_of_zero():
    steep, short = [4.0, 3.0, 2.0, 1.0], [None, None, 5.0, 1.0]
    assert summary(steep, seeds=[steep, short]).spread == pytest.approx(0.5 * signed(steep)[0])


def test_a_place_has_the_module_of_its_node_if_there_is_one():
    graph = graph_of([1.0])
    assert place(graph, "n0") == Place("n0", "layers.0")
    assert place(graph, "depth 3") == Place("depth 3", "")


# rows of the chart --------------------------------------------------------------------------------------------------------


def test_a_row_of_the_chart_holds_what_was_measured_and_predicted_at_its_node():
    line, body = Source("net.py", 7), Source("net.py", 30)
    nodes = [Node("a", "input"), Node("b", "linear", source=body, definition=line, module="fc"), Node("c", "relu", source=body)]
    measured = {"a": Gains(1.0, 2.0, 3.0), "b": Gains(4.0, None)}
    predicted = {"b": Gains(5.0, 6.0, 7.0), "c": Gains(None, 8.0)}
    assert spine_points(Graph(nodes, [Ref("c")]), ["a", "c", "b"], measured, predicted) == (
        SpinePoint(Place("a"), "input", backward=1.0, forward=2.0),
        SpinePoint(Place("c"), "relu", predicted_forward=8.0, source=body),
        SpinePoint(Place("b", "fc"), "linear", 4.0, None, 5.0, 6.0, line),
    )


# remarks ------------------------------------------------------------------------------------------------------------------

MEASURED = Growth(4.0, start=Place("a"), end=Place("c"))
JACOBIAN = {"inside": 2, "outside": 3, "largest": 2.0, "condition": 9.0, "steps": 4}


def measurement(**fields):
    return Measurement({}, (), (), MEASURED, **{"seeds": 3} | fields)


def test_evidence_on_growth_has_its_spread_and_the_number_of_seeds_where_they_are_known():
    assert about(MEASURED, measurement()) == {}
    assert about(replace(MEASURED, spread=0.0), measurement(seeds=5)) == {"spread": 0.0, "seeds": 5}


def test_evidence_on_growth_has_the_jacobian_between_its_own_ends():
    mine = Segment("a", "c", frobenius=6.0, **JACOBIAN)
    others = [Segment("a", "b", frobenius=1.0, **JACOBIAN), Segment("b", "c", frobenius=1.0, **JACOBIAN)]
    found = about(MEASURED, measurement(segments=(others[0], mine, others[1])))
    expected = {"frobenius": 6.0, "largest": 2.0, "stable_rank": mine.stable_rank, "condition_at_least": 9.0}
    assert found == {"jacobian": expected}
    assert about(MEASURED, measurement(segments=tuple(others))) == {}


@pytest.mark.parametrize("ends", [{"start": None}, {"end": None}, {"start": None, "end": None}])
def test_growth_without_ends_has_no_jacobian(ends):
    segment = Segment("a", "c", frobenius=6.0, **JACOBIAN)
    assert about(replace(MEASURED, **ends), measurement(segments=(segment,))) == {}


def test_evidence_on_growth_has_what_other_draws_of_the_weights_gave():
    found = about(replace(MEASURED, spread=0.25), measurement(redraws=Redraws((1.0, 2.5))))
    assert found == {"spread": 0.25, "seeds": 3, "redraws": [1.0, 2.5]}


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_growth_is_near_the_limit_where_its_spread_reaches_it(sign):
    for side in (1.0, -1.0):
        near = Growth(sign * (LIMIT + side * 0.5), spread=0.5)
        assert nearness(near, measurement(seeds=4)) == f" (near the limit of {LIMIT}: +-0.5 over 4 seeds)"
        assert nearness(replace(near, spread=0.49), measurement()) == ""
        assert nearness(replace(near, spread=None), measurement()) == ""
