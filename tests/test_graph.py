"""Graph and Weight: statistics against numpy, geometry against torch, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from torch import nn

from gradlint import graph as graph_module
from gradlint.graph import Graph, Node, Ref, Source, Weight
from gradlint.rule import GraphBuilder

FLOATS = st.floats(-1e6, 1e6, width=32)


def weight(values: np.ndarray, **options: object) -> Weight:
    return Weight("w", values.shape, str(values.dtype), lambda: values, **options)


@given(arrays(np.float32, array_shapes(max_dims=3, max_side=6), elements=FLOATS))
def test_statistics_are_those_of_numpy(values: np.ndarray):
    found, exact = weight(values).statistics, values.astype(np.float64)
    assert found.mean == pytest.approx(exact.mean(), rel=1e-9, abs=1e-9)
    assert found.mean_square == pytest.approx((exact**2).mean(), rel=1e-9, abs=1e-9)
    assert found.std == pytest.approx(exact.std(), rel=1e-5, abs=1e-2)
    assert found.max_abs == np.abs(exact).max()
    assert found.finite


def test_statistics_do_not_depend_on_the_size_of_the_chunks(monkeypatch: pytest.MonkeyPatch):
    values = np.random.default_rng(0).standard_normal((7, 11))
    whole = weight(values).statistics
    monkeypatch.setattr(graph_module, "_CHUNK", 10)
    parts = weight(values).statistics
    assert (parts.mean, parts.mean_square) == pytest.approx((whole.mean, whole.mean_square), rel=1e-12)
    assert (parts.max_abs, parts.finite) == (whole.max_abs, whole.finite)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_statistics_of_a_broken_weight_are_those_of_its_finite_elements(bad):
    found = weight(np.array([1.0, bad, 3.0])).statistics
    assert not found.finite
    assert (found.mean, found.max_abs) == (2.0, 3.0)


def test_half_precision_does_not_overflow():
    assert weight(np.full(1000, 6e4, dtype=np.float16)).statistics.mean_square == pytest.approx(3.6e9, rel=1e-3)


def test_statistics_of_a_weight_without_elements():
    found = weight(np.zeros((0, 3))).statistics
    assert (found.mean_square, found.max_abs, found.finite) == (0.0, 0.0, True)


@pytest.mark.parametrize(
    ("layer", "axis"),
    [(nn.Linear(6, 4), 0), (nn.Conv2d(6, 4, 3), 0), (nn.Conv2d(6, 4, 3, groups=2), 0), (nn.ConvTranspose2d(6, 4, 3), 1)],
)
def test_fans_are_inputs_summed_and_units_made(layer, axis):
    values = layer.weight.detach().numpy()
    found = weight(values, out_axis=axis)
    inputs = layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels * 9 // layer.groups
    assert (found.fan_in, found.fan_out) == (inputs, 4)
    assert found.matrix().shape == (4, inputs)
    assert found.size == values.size


def test_spectral_norm_is_the_largest_singular_value():
    values = np.random.default_rng(0).standard_normal((5, 3, 2))
    assert weight(values).spectral_norm == pytest.approx(np.linalg.svd(values.reshape(5, 6), compute_uv=False)[0])


def test_weight_is_read_when_somebody_looks_and_not_before():
    reads = []
    lazy = Weight("w", (2, 2), "float32", lambda: reads.append(1) or np.ones((2, 2)))
    assert (lazy.size, lazy.fan_in, repr(lazy)) == (4, 2, "Weight('w', float32[2, 2])")
    assert not reads
    assert lazy.statistics.mean == lazy.statistics.mean_square == 1.0
    assert len(reads) == 1


def test_two_nodes_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two nodes are called 'a'"):
        Graph([Node("a", "input"), Node("a", "relu")], [])


def test_node_that_uses_a_later_one_is_refused():
    with pytest.raises(ValueError, match="'a' uses 'b' before it exists"):
        Graph([Node("a", "relu", (Ref("b"),)), Node("b", "input")], [])


def test_output_that_names_no_node_is_refused():
    with pytest.raises(ValueError, match="unknown nodes: \\['z'\\]"):
        Graph([Node("a", "input")], [Ref("z")])


def test_parents_come_in_slot_order_and_children_once_each():
    builder = GraphBuilder()
    x, y = builder.input(8, 64), builder.input(8, 64, name="y")
    total = builder.op("add", y, None, x, y, name="sum")
    graph = builder.graph
    assert [node.id for node in graph.parents(total)] == ["y", "x", "y"]
    assert [node.id for node in graph.children("y")] == ["sum"]
    assert graph.inputs == ("x", "y")
    assert [graph.position[node.id] for node in graph] == [0, 1, 2]
    assert len(graph) == 3
    assert "sum" in graph
    assert "other" not in graph


def test_weights_are_listed_by_name_once():
    builder = GraphBuilder()
    shared = builder.weight(64, 64, name="shared")
    builder.linear(builder.linear(builder.input(8, 64), weight=shared), weight=shared)
    assert builder.graph.weights == {"shared": shared}


@pytest.mark.parametrize(
    ("dtype", "is_float"), [("float16", True), ("bfloat16", True), (None, True), ("int64", False), ("bool", False)]
)
def test_only_float_tensors_carry_a_gradient(dtype, is_float):
    assert Node("a", "input", dtype=dtype).is_float is is_float


def test_label_is_the_module_and_else_the_id():
    assert Node("a", "relu", module="blocks.0").label == "blocks.0"
    assert Node("a", "relu").label == "a"
    assert str(Source("net.py", 3)) == "net.py:3"
