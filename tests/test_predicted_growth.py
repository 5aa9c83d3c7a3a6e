"""What theory says of a whole model: growth with its interval, and when that settles the verdict."""

from __future__ import annotations

import math

import pytest

from gradlint.chains import elements
from gradlint.graph_builder import Sketch
from gradlint.predicted_growth import INTERVAL, forecast
from gradlint.result import Gains
from gradlint.structure import Structure
from gradlint.theory.prediction import Predicted, Prediction, predict


def stack(depth=10):
    sketch = Sketch()
    sketch.stack(depth, "relu")
    return Structure(sketch.graph)


def blocks(last=1.0):
    """Two residual blocks; the last weight of each has this gain."""
    sketch = Sketch()
    x = sketch.input(8, 64)
    for _ in range(2):
        h = sketch.op("relu", sketch.linear(x))
        x = sketch.op("add", x, sketch.linear(h, gain=last))
    return Structure(sketch.graph)


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
    found = forecast(structure, ramp(structure, sustained(decades, structure), deviation))
    assert found.growth.decades == pytest.approx(decades)
    assert found.conclusive is conclusive


def test_the_interval_is_that_of_the_run_which_grows():
    structure = stack()
    low, high = forecast(structure, ramp(structure, 5.0, 0.3)).growth.interval
    assert (high - low) / 2 == pytest.approx(INTERVAL * 0.3)


def test_trained_weights_widen_the_interval():
    structure = stack()
    prediction = ramp(structure, sustained(2.0, structure))
    assert forecast(structure, prediction).conclusive
    found = forecast(structure, prediction, drawn=False)
    assert not found.conclusive
    assert found.growth.interval[1] - found.growth.interval[0] > 4.0


def test_a_layer_of_the_chain_that_is_not_followed_leaves_the_verdict_open():
    structure = stack()
    nothing = {"linear4": Predicted(None, 0.0)}
    assert not forecast(structure, ramp(structure, 0.0, **nothing)).conclusive


def test_a_layer_beside_the_chain_that_is_not_followed_widens_the_interval_upwards():
    structure = blocks()
    whole = predict(structure)
    partly = Prediction({**whole.nodes, "linear1": Predicted(None, 0.0)}, whole.signals, whole.cotangents)
    before, behind = forecast(structure, whole).growth, forecast(structure, partly).growth
    assert behind.interval[0] == before.interval[0]
    assert behind.interval[1] == pytest.approx(before.interval[1] + 0.5 * math.log10(2.0))
    assert forecast(structure, partly).conclusive


def test_most_layers_not_followed_leave_the_verdict_open():
    structure = blocks()
    whole = predict(structure)
    lost = {f"linear{index}": Predicted(None, 0.0) for index in range(3)}
    assert not forecast(structure, Prediction({**whole.nodes, **lost}, {}, {})).conclusive


def test_a_branch_that_starts_at_zero_is_followed_and_a_zero_on_the_chain_is_no_verdict():
    assert forecast(blocks(0.0), predict(blocks(0.0))).conclusive
    structure = stack()
    assert not forecast(structure, ramp(structure, 0.0, linear4=Predicted(-math.inf, 0.0))).conclusive


def test_a_chain_without_two_known_nodes_has_no_growth():
    structure = stack()
    found = forecast(structure, Prediction({}, {}, {}))
    assert (found.growth, found.conclusive) == (None, False)


def test_a_cut_is_as_uncertain_as_the_tensors_that_carry_its_gradient():
    """Two towers of five layers: the tensor of one carries a hundred times the gradient of the other."""
    sketch = Sketch()
    ends = []
    for side in "ab":
        x = sketch.input(8, 64, name=f"x{side}")
        for index in range(5):
            x = sketch.linear(x, name=f"{side}{index}")
        ends.append(x)
    sketch.op("mul", *ends)
    structure = Structure(sketch.graph)
    assert not structure.spine_is_representative
    nodes = {node: Predicted(0.0 if "a" in node else -2.0, 0.0, 0.1 if "a" in node else 3.0) for node in structure.signal}
    cuts = elements(structure, {node: Gains(p.backward) for node, p in nodes.items()})
    both = [name for name, cut in cuts if {"a2", "b2"} == set(cut)]
    found = forecast(structure, Prediction(nodes, {}, {}))
    assert [found.deviations[name] for name in both] == pytest.approx([math.sqrt((0.1**2 + 1e-4 * 9.0) / (1 + 1e-4))])
