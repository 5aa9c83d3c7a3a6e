"""What theory says of a whole model: growth with its interval, and when that settles the verdict."""

from __future__ import annotations

import math

import pytest

from gradlint.graph_builder import GraphBuilder
from gradlint.growth.chains import elements
from gradlint.predicted_growth import INTERVAL, predict_growth
from gradlint.result import Gains
from gradlint.structure import Structure
from gradlint.theory.prediction import Predicted, Prediction, predict


def stack(depth=10):
    builder = GraphBuilder()
    builder.stack(depth, "relu")
    return Structure(builder.graph)


def blocks(last=1.0):
    """Two residual blocks; the last weight of each has this gain."""
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for _ in range(2):
        h = builder.op("relu", builder.linear(x))
        x = builder.op("add", x, builder.linear(h, gain=last))
    return Structure(builder.graph)


def ramp(structure, decades, deviation=0.0, **changed):
    """Predictions that rise evenly to so many decades from the last spine node to the first, deviation likewise."""
    steps = len(structure.spine) - 1
    shares = {node: 1.0 - index / steps for index, node in enumerate(structure.spine)}
    nodes = {node: Predicted(decades * share, 0.0, deviation * math.sqrt(share)) for node, share in shares.items()}
    return Prediction(nodes | changed, {}, {})


def sustained(decades, structure):
    """A ramp whose sustained growth, its largest step left out, is this."""
    steps = len(structure.spine) - 1
    return decades * steps / (steps - 1)


@pytest.mark.parametrize(
    ("decades", "deviation", "conclusive"),
    [(0.0, 0.5, True), (3.0, 0.2, True), (3.0, 0.5, False), (4.0, 0.2, True), (4.0, 0.5, False), (-4.0, 0.5, False)],
)
def test_growth_settles_the_verdict_when_its_interval_lies_on_one_side_of_the_limit(decades, deviation, conclusive):
    structure = stack()
    found = predict_growth(structure, ramp(structure, sustained(decades, structure), deviation))
    assert found.growth.decades == pytest.approx(decades)
    assert found.conclusive is conclusive


def test_the_interval_is_that_of_the_run_which_grows():
    structure = stack()
    low, high = predict_growth(structure, ramp(structure, 5.0, 0.3)).growth.interval
    assert (high - low) / 2 == pytest.approx(INTERVAL * 0.3)


def test_trained_weights_widen_the_interval():
    structure = stack()
    prediction = ramp(structure, sustained(2.0, structure))
    assert predict_growth(structure, prediction).conclusive
    found = predict_growth(structure, prediction, drawn=False)
    assert not found.conclusive
    assert found.growth.interval[1] - found.growth.interval[0] > 4.0


def test_a_layer_of_the_chain_that_is_not_followed_leaves_the_verdict_open():
    structure = stack()
    nothing = {"linear4": Predicted(None, 0.0)}
    assert not predict_growth(structure, ramp(structure, 0.0, **nothing)).conclusive


def test_a_layer_beside_the_chain_that_is_not_followed_widens_the_interval_upwards():
    structure = blocks()
    whole = predict(structure)
    partly = Prediction({**whole.nodes, "linear1": Predicted(None, 0.0)}, whole.signals, whole.cotangents)
    before, behind = predict_growth(structure, whole).growth, predict_growth(structure, partly).growth
    assert behind.interval[0] == before.interval[0]
    assert behind.interval[1] == pytest.approx(before.interval[1] + 0.5 * math.log10(2.0))
    assert predict_growth(structure, partly).conclusive


def test_most_layers_not_followed_leave_the_verdict_open():
    structure = blocks()
    whole = predict(structure)
    lost = {f"linear{index}": Predicted(None, 0.0) for index in range(3)}
    assert not predict_growth(structure, Prediction({**whole.nodes, **lost}, {}, {})).conclusive


def test_a_branch_that_starts_at_zero_is_followed_and_a_zero_on_the_chain_is_no_verdict():
    assert predict_growth(blocks(0.0), predict(blocks(0.0))).conclusive
    structure = stack()
    assert not predict_growth(structure, ramp(structure, 0.0, linear4=Predicted(-math.inf, 0.0))).conclusive


def test_a_chain_without_two_known_nodes_has_no_growth():
    structure = stack()
    found = predict_growth(structure, Prediction({}, {}, {}))
    assert (found.growth, found.conclusive) == (None, False)


def test_a_cut_is_as_uncertain_as_the_tensors_that_carry_its_gradient():
    """Two towers of five layers: the tensor of one carries a hundred times the gradient of the other."""
    builder = GraphBuilder()
    ends = []
    for side in "ab":
        x = builder.input(8, 64, name=f"x{side}")
        for index in range(5):
            x = builder.linear(x, name=f"{side}{index}")
        ends.append(x)
    builder.op("mul", *ends)
    structure = Structure(builder.graph)
    assert not structure.spine_is_representative
    nodes = {node: Predicted(0.0 if "a" in node else -2.0, 0.0, 0.1 if "a" in node else 3.0) for node in structure.signal}
    cuts = elements(structure, {node: Gains(p.backward) for node, p in nodes.items()})
    both = [name for name, cut in cuts if {"a2", "b2"} == set(cut)]
    found = predict_growth(structure, Prediction(nodes, {}, {}))
    assert [found.deviations[name] for name in both] == pytest.approx([math.sqrt((0.1**2 + 1e-4 * 9.0) / (1 + 1e-4))])
