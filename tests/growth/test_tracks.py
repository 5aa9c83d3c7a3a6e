"""Tracks of a graph, and the one that decides."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradlint.graph_builder import GraphBuilder
from gradlint.growth import HEALTHY, LIMIT
from gradlint.growth.tracks import LEAST, Places, counted, decisive, tracks
from gradlint.measurements.learning import BLOWN, SPREAD, Learning
from gradlint.result import Growth, Track
from gradlint.signal_path import is_weight_layer
from gradlint.structure import Structure


def chain(builder: GraphBuilder, x: str, depth: int) -> str:
    for _ in range(depth):
        x = builder.op("relu", builder.linear(x), shape=(8, 64))
    return x


def towers(*depths: int, together: int = 0) -> Structure:
    """Chains from one input, added up, with more layers behind the sum."""
    builder = GraphBuilder()
    x = builder.input(8, 64)
    ends = [chain(builder, x, depth) for depth in depths]
    y = builder.op("add", *ends, shape=(8, 64))
    builder.linear(chain(builder, y, together))
    return Structure(builder.graph)


def layers(structure: Structure, track: tuple[str, ...]) -> int:
    return sum(is_weight_layer(structure.graph[node]) for node in track)


@given(st.lists(st.integers(1, 9), min_size=2, max_size=4))
def test_every_tower_of_three_layers_and_more_is_on_a_track(depths):
    structure = towers(*depths)
    found = tracks(structure)
    nodes = [node for track in found for node in track]
    assert len(nodes) == len(set(nodes))
    long = sum(depth for depth in depths if depth >= LEAST)
    assert sum(layers(structure, track) for track in found) >= long


@given(st.integers(3, 12), st.integers(0, 9))
def test_the_spine_comes_first_where_it_represents_the_model(depth, more):
    builder = GraphBuilder()
    builder.linear(chain(builder, builder.input(8, 64), depth + more))
    structure = Structure(builder.graph)
    assert tracks(structure) == (structure.spine,)


def test_a_part_inside_a_part_is_found():
    builder = GraphBuilder()
    x = chain(builder, builder.input(8, 64), 2)
    inner = chain(builder, x, 4)
    innermost = chain(builder, inner, 5)
    y = builder.op("add", chain(builder, innermost, 3), chain(builder, inner, 1), shape=(8, 64))
    builder.linear(builder.op("add", y, x, shape=(8, 64)))
    structure = Structure(builder.graph)
    on_tracks = {node for track in tracks(structure) for node in track if is_weight_layer(structure.graph[node])}
    assert len(on_tracks) >= 2 + 4 + 5 + 3 + 1


def test_what_depends_on_no_weight_is_on_no_track():
    builder = GraphBuilder()
    x, mask = builder.input(8, 64), builder.input(8, 64, name="mask")
    for _ in range(6):
        x = builder.op("add", builder.linear(x), builder.op("mul", mask, None, shape=(8, 64), constant=0.5), shape=(8, 64))
    (track,) = tracks(Structure(builder.graph))
    assert not any(node.startswith(("mul", "input")) for node in track)


# the one that decides --------------------------------------------------------------------------------------------------------


def track(name: str, decades: float) -> Track:
    return Track((name,), Growth(decades))


MAIN, BESIDE = track("linear0", 1.0), track("linear1", -6.0)


def chosen(learning: Learning, *others: Track, main: Track = MAIN) -> Track:
    return decisive(towers(3, 3), main, others, learning)


def test_a_track_beside_the_main_one_decides_where_gradients_of_weights_bear_it_out():
    assert chosen(Learning(spread=-5.0, run=("linear1",)), BESIDE) is BESIDE
    assert chosen(Learning(spread=-0.3, matrices=0.0), BESIDE) is MAIN
    assert chosen(Learning(), BESIDE) is MAIN  # nothing could be compared


def test_the_main_track_decides_unless_gradients_of_weights_speak_against_it():
    grown = track("linear0", 6.0)
    assert chosen(Learning(), main=grown) is grown
    assert chosen(Learning(spread=5.0, run=("linear0",)), BESIDE, main=grown) in {grown, BESIDE}


def test_a_drift_of_weights_alone_is_growth_between_its_layers():
    found = chosen(Learning(spread=-4.0, run=("linear1", "linear2")), track("linear1", -1.0))
    assert (found.growth.decades, found.growth.start.node, found.growth.end.node) == (-4.0, "linear1", "linear2")


@pytest.mark.parametrize(("drawn", "beside"), [(True, True), (False, False)])
def test_a_loud_output_of_a_drawn_model_is_read_along_the_track_that_rises_most(drawn, beside):
    rising = track("linear1", 2.0)
    learning = Learning(spread=0.0, output=BLOWN, drawn=drawn)
    assert (chosen(learning, rising) is rising) is beside


@given(st.floats(-40.0, 40.0))
def test_growth_counts_in_full_where_nothing_is_known_of_weights(decades):
    assert counted(decades, Learning()) == decades


@given(st.floats(LIMIT, 40.0), st.floats(-SPREAD / 2, SPREAD / 2))
def test_growth_that_weights_do_not_follow_counts_as_their_drift(decades, drift):
    found = counted(decades, Learning(spread=drift, output=0.0))
    assert found == pytest.approx(max(HEALTHY, abs(drift) * LIMIT / SPREAD), abs=1e-9) or abs(found) < LIMIT


@given(st.floats(0.0, 20.0))
def test_the_output_of_a_drawn_model_counts_with_growth_alone(output):
    loud = Learning(output=output, drawn=True)
    assert counted(0.5, loud) == 0.5
    assert counted(1.5, loud) == pytest.approx(max(1.5, output * LIMIT / BLOWN))
    assert counted(1.5, Learning(output=output)) == 1.5


# places ----------------------------------------------------------------------------------------------------------------------


def test_a_span_is_read_on_one_chain_with_the_node_before_it():
    places = Places([("a", "b", "c", "d"), ("x", "y", "z")])
    assert places.between(("b", "c")) == ("a", "b", "c")
    assert places.between(("a", "b")) == ("a", "b")
    assert places.between(("b", "z")) == places.between(("b", "nowhere")) == ()
    assert places.chain("y") == ("x", "y", "z")
    assert places.chain("nowhere") == ()


def test_the_cost_of_tracks_is_linear():
    """Twice the graph, twice the steps: counted, not timed."""
    counts = []
    for depth in (40, 80):
        structure = towers(depth, depth, together=depth)
        asked = 0
        plain = structure.signal_parents

        def counting(node: str, plain=plain) -> list[str]:
            nonlocal asked
            asked += 1
            return plain(node)

        structure.signal_parents = counting
        tracks(structure)
        counts.append(asked)
    assert math.log2(counts[1] / counts[0]) < 1.1
