"""Recurrent cells in numpy against torch and onnxruntime, and what is said of their gradients against autograd."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from gradlint.frontends.onnx.file import read_onnx
from gradlint.graph import Weight
from gradlint.graph_builder import GraphBuilder
from gradlint.ops import Kind, operator
from gradlint.theory.recurrence.cells import respond
from gradlint.theory.recurrence.read import read_cells
from gradlint.theory.recurrence.run import run_layers
from tests.models.onnxruntime_sessions import by_onnxruntime
from tests.models.theory_cases import graph_of, measured

pytestmark = pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")

MODELS = {
    "tanh": lambda **more: nn.RNN(5, 7, **more),
    "relu": lambda **more: nn.RNN(5, 7, nonlinearity="relu", **more),
    "lstm": lambda **more: nn.LSTM(5, 7, **more),
    "gru": lambda **more: nn.GRU(5, 7, **more),
    "projected": lambda **more: nn.LSTM(5, 7, proj_size=3, **more),
    "plain bias": lambda **more: nn.GRU(5, 7, bias=False, **more),
}
SHAPES = ({}, {"bidirectional": True}, {"num_layers": 3}, {"num_layers": 2, "bidirectional": True})


def recurrent(graph):
    return next(node for node in graph if operator(node.op).kind is Kind.RNN)


def node_of(module, *shape):
    return recurrent(graph_of(module, torch.randn(shape)))


# the cells compute what torch and onnxruntime compute -----------------------------------------------------------------------


@pytest.mark.parametrize("more", SHAPES, ids=str)
@pytest.mark.parametrize("name", MODELS)
def test_a_run_and_its_pullback_meet_torch_and_autograd(name, more):
    torch.manual_seed(0)
    module = MODELS[name](**more)
    x = torch.randn(6, 3, 5, requires_grad=True)
    y = module(x)[0]
    cotangent = torch.randn(2, *y.shape)
    expected = [torch.autograd.grad(y, x, part, retain_graph=True)[0].numpy() for part in cotangent]
    cells = read_cells(node_of(module, 6, 3, 5))
    found, pull = run_layers(cells.layers, x.detach().numpy(), np.random.default_rng(0))
    np.testing.assert_allclose(found, y.detach().numpy(), atol=1e-5)
    np.testing.assert_allclose(pull(cotangent.numpy()), expected, atol=1e-5)


ONNX_CASES = [
    *(("RNN", {"activations": [act] * 2}) for act in ("Tanh", "Relu", "Softsign", "Sigmoid")),
    ("LSTM", {}),
    ("GRU", {"linear_before_reset": 0}),
    ("GRU", {"linear_before_reset": 1}),
]


@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
@pytest.mark.parametrize(("op", "attributes"), ONNX_CASES, ids=str)
def test_a_run_meets_onnxruntime_whose_gates_have_another_order(op, attributes, direction):
    rng = np.random.default_rng(0)
    gates, sides = {"RNN": 1, "LSTM": 4, "GRU": 3}[op], 2 if direction == "bidirectional" else 1
    if "activations" in attributes:
        attributes = {"activations": attributes["activations"][:sides]}
    arrays = {"w": (sides, gates * 7, 5), "r": (sides, gates * 7, 7), "b": (sides, 2 * gates * 7)}
    weights = {name: (0.5 * rng.standard_normal(shape)).astype(np.float32) for name, shape in arrays.items()}
    node = helper.make_node(op, ["x", "w", "r", "b"], ["y"], hidden_size=7, direction=direction, **attributes)
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [6, 3, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    x = rng.standard_normal((6, 3, 5)).astype(np.float32)
    (expected,) = by_onnxruntime(model, {"x": x})
    cells = read_cells(recurrent(read_onnx(model).graph))
    found, pull = run_layers(cells.layers, x, rng)
    np.testing.assert_allclose(found, expected.transpose(0, 2, 1, 3).reshape(6, 3, -1), atol=1e-5)
    # the pullback is the transpose of the derivative: <v, J u> = <J^T v, u>, J u by central differences
    cotangent, tangent = rng.standard_normal((1, *found.shape)), rng.standard_normal(x.shape)
    step = 1e-5 if op == "RNN" else 1e-2  # in double and in single precision
    ahead, behind = (run_layers(cells.layers, x + sign * step * tangent, rng)[0] for sign in (1, -1))
    directional = float(np.sum(cotangent[0] * (np.float64(ahead) - behind)) / (2.0 * step))
    assert float(np.sum(pull(cotangent)[0] * tangent)) == pytest.approx(directional, abs=2e-3 * np.linalg.norm(tangent))


@pytest.mark.parametrize("attribute", [{"clip": 1.0}, {"input_forget": 1}, {"activations": ["Sigmoid", "Relu", "Tanh"]}])
def test_a_cell_with_an_option_that_is_not_simulated_is_not_guessed_at(attribute):
    builder = GraphBuilder()
    weights = {"weight": builder.weight(32, 4), "recurrent": builder.weight(32, 8)}
    builder.op("lstm", builder.input(9, 2, 4), weights=weights, gate_order="iofc", **attribute)
    assert respond(recurrent(builder.graph), level=0.0) is None


# the response ---------------------------------------------------------------------------------------------------------------


TOLERANCE = {"level": 0.02, "mean": 0.05, "over_time": 0.06, "over_batch": 0.06} | {
    "independent": 0.05, "equal": 0.15, "last": 0.15, "step": 0.01
}  # fmt: skip
CASES = {
    "tanh": lambda: nn.RNN(24, 128),
    "relu": lambda: nn.RNN(24, 128, nonlinearity="relu"),
    "lstm": lambda: nn.LSTM(24, 128),
    "gru": lambda: nn.GRU(24, 128),
    "stacked both ways": lambda: nn.GRU(24, 64, num_layers=2, bidirectional=True),
    "projected": lambda: nn.LSTM(24, 128, proj_size=48),
    "dropout between layers": lambda: nn.LSTM(24, 128, num_layers=2, dropout=0.5),
}


def close(found, expected, names=TOLERANCE):
    assert {name: getattr(found, name) for name in names} == {
        name: pytest.approx(expected[name], abs=TOLERANCE[name]) for name in names
    }


@pytest.mark.parametrize("name", CASES)
def test_the_response_of_a_cell_as_torch_draws_it_meets_autograd(name):
    torch.manual_seed(0)
    module = CASES[name]()
    close(respond(node_of(module, 60, 2, 24), level=0.0, steps=60), measured(module, 60))


def test_a_bias_makes_what_time_and_batch_share():
    torch.manual_seed(0)
    module = nn.LSTM(8, 64)
    nn.init.normal_(module.bias_ih_l0, std=2.0)
    found = respond(node_of(module, 40, 2, 8), level=-2.0, steps=40)
    expected = measured(module, 40, 0.01 * torch.randn(40, 64, 8, dtype=torch.double))
    assert expected["over_batch"] > 0.9
    close(found, expected, ("level", "mean", "over_time", "over_batch", "independent"))


def test_an_input_that_time_shares_is_remembered():
    torch.manual_seed(0)
    module = nn.GRU(24, 128)
    x = torch.randn(1, 64, 24, dtype=torch.double).repeat(60, 1, 1)
    found = respond(node_of(module, 60, 2, 24), level=0.0, over_time=1.0, steps=60)
    close(found, measured(module, 60, x), ("level", "over_time", "over_batch", "independent"))
    assert found.over_time > 0.8


def test_an_input_mean_is_taken_along():
    torch.manual_seed(0)
    module = nn.RNN(24, 128, nonlinearity="relu")
    x = math.sqrt(0.19) * torch.randn(60, 64, 24, dtype=torch.double) + 0.9
    found = respond(node_of(module, 60, 2, 24), level=0.0, mean=0.9, steps=60)
    close(found, measured(module, 60, x), ("level", "mean", "over_time", "over_batch", "independent"))


def test_a_cotangent_that_time_half_shares_lies_between_the_two_ends():
    torch.manual_seed(0)
    module = nn.LSTM(24, 128)
    node = node_of(module, 60, 2, 24)
    found = respond(node, level=0.0, steps=60, cotangent_over_time=0.5)
    x = torch.randn(60, 64, 24, requires_grad=True)
    y = module(x)[0]
    cotangent = math.sqrt(0.5) * (torch.randn_like(y) + torch.randn_like(y[:1]))
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    expected = math.log10(gradient.square().sum() / cotangent.square().sum())
    assert found.factor == pytest.approx(expected, abs=0.1)
    assert found.factor_for(0.0) == pytest.approx(found.independent)
    assert found.factor_for(1.0) == pytest.approx(found.equal)
    assert found.independent + 0.05 < found.factor < found.equal - 0.05


@pytest.mark.parametrize("gain", [0.9, 1.6])
def test_a_sequence_longer_than_the_run_goes_on_at_the_same_rate(gain):
    torch.manual_seed(0)
    module = nn.RNN(24, 128, nonlinearity="relu")
    nn.init.orthogonal_(module.weight_hh_l0, gain)
    found, expected = respond(node_of(module, 9, 2, 24), level=0.0, steps=300), measured(module, 300)
    close(found, expected, ("step",))
    assert found.last == pytest.approx(expected["last"], abs=0.2 + 0.05 * abs(expected["last"]))
    assert found.level == pytest.approx(expected["level"], abs=0.1 + 0.05 * abs(expected["level"]))


def test_a_wide_cell_is_represented_by_some_of_its_units():
    torch.manual_seed(0)
    module = nn.GRU(200, 768)
    node = node_of(module, 9, 2, 200)
    assert read_cells(node).layers[0][0].hidden < 768
    close(respond(node, level=0.0, steps=30), measured(module, 30, batch=8), ("level", "independent", "step"))


def test_a_cell_alone_passes_on_one_step():
    torch.manual_seed(0)
    cell, module = nn.GRUCell(24, 128), nn.GRU(24, 128)
    module.load_state_dict({f"{name}_l0": weight for name, weight in cell.state_dict().items()})
    graph = graph_of(cell, torch.randn(4, 24), torch.randn(4, 128))
    found = respond(recurrent(graph), level=0.0)
    h = module(torch.randn(50, 64, 24))[1][0].detach()
    x = torch.randn(64, 24, requires_grad=True)
    y = cell(x, h)
    cotangent = torch.randn_like(y)
    (gradient,) = torch.autograd.grad(y, x, cotangent)
    assert found.factor == pytest.approx(math.log10(gradient.square().sum() / cotangent.square().sum()), abs=0.05)
    assert found.step == pytest.approx(measured(module, 100)["step"], abs=0.01)


@pytest.mark.parametrize(("gain", "draw"), [(0.5, nn.init.orthogonal_), (1.5, nn.init.orthogonal_), (3.0, nn.init.orthogonal_)])
@pytest.mark.parametrize("name", ["tanh", "lstm", "gru"])
def test_growth_per_step_meets_autograd_from_vanishing_to_chaos(name, gain, draw):
    torch.manual_seed(0)
    module = CASES[name]()
    for gate in module.weight_hh_l0.detach().split(128):
        draw(gate, gain)
    close(respond(node_of(module, 9, 2, 24), level=0.0, steps=80), measured(module, 80, batch=16), ("step", "level"))


@settings(max_examples=30, deadline=None)
@given(
    level=st.floats(-400, 400),
    radius=st.floats(-30, 30),
    act=st.sampled_from(["tanh", "relu", "softplus", "elu"]),
    op=st.sampled_from(["rnn", "lstm", "gru"]),
    steps=st.integers(1, 10_000),
)
def test_no_level_gain_or_length_makes_a_nan(level, radius, act, op, steps):
    builder = GraphBuilder()
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[op]
    matrix = 10.0**radius * np.random.default_rng(0).standard_normal((8 * gates, 8))
    weights = {"weight": builder.weight(8 * gates, 8), "recurrent": builder.array(matrix)}
    builder.op(op, builder.input(9, 2, 8), weights=weights, nonlinearity=act)
    found = respond(recurrent(builder.graph), level=level, steps=steps)
    assert found is None or not any(math.isnan(getattr(found, name)) for name in found.__slots__)


@pytest.mark.parametrize("radius", [1e3, 1e20])
def test_growth_beyond_the_range_of_floats_is_still_a_number(radius):
    builder = GraphBuilder()
    weights = {"weight": builder.array(np.eye(8)), "recurrent": builder.array(radius * np.eye(8))}
    builder.op("rnn", builder.input(9, 2, 8), weights=weights, nonlinearity="linear")
    found = respond(recurrent(builder.graph), level=0.0, steps=200)
    assert found.last == pytest.approx(2.0 * 199 * math.log10(radius), rel=1e-3)
    assert found.level == pytest.approx(199 * math.log10(radius), rel=0.02)


def test_a_signal_of_any_size_passes_a_linear_recurrence_in_proportion():
    builder = GraphBuilder()
    weights = {"weight": builder.array(np.eye(8)), "recurrent": builder.array(0.5 * np.eye(8))}
    builder.op("rnn", builder.input(9, 2, 8), weights=weights, nonlinearity="linear")
    levels = [respond(recurrent(builder.graph), level=level).level - level for level in (-300.0, 0.0, 300.0)]
    assert levels == pytest.approx([0.5 * math.log10(4.0 / 3.0)] * 3, abs=0.02)


def test_weights_that_are_not_finite_or_not_there_have_no_response():
    builder = GraphBuilder()
    x = builder.input(9, 2, 8)
    broken = np.full((8, 8), np.nan)
    nodes = [
        builder.op("rnn", x, weights={"weight": builder.array(np.eye(8)), "recurrent": builder.array(broken)}),
        builder.op("lstm", x),
        builder.op("lstm", x, weights={"recurrent": builder.array(np.eye(8)[:7])}),
        builder.op("gru", x, weights={"weight": builder.array(np.eye(8)), "recurrent": builder.array(np.ones((24, 8)))}),
    ]
    graph = builder.graph
    assert [respond(graph[node], level=0.0) for node in nodes] == [None] * 4


def test_a_response_is_the_same_every_time():
    module = nn.LSTM(8, 16, num_layers=2, dropout=0.5)
    node = node_of(module, 9, 2, 8)
    assert respond(node, level=0.0) == respond(node, level=0.0)


def test_a_weight_known_by_its_statistics_alone_is_drawn_from_them():
    builder = GraphBuilder()
    known = {"weight": builder.weight(64, 64, gain=1.0), "recurrent": builder.weight(64, 64, gain=0.5)}
    drawn = {
        role: Weight(role, (64, 64), "float64", lambda gain=gain: gain / 8 * np.random.default_rng(5).standard_normal((64, 64)))
        for role, gain in (("weight", 1.0), ("recurrent", 0.5))
    }
    x = builder.input(9, 2, 64)
    nodes = [builder.op("rnn", x, weights=weights) for weights in (known, drawn)]
    graph = builder.graph
    first, second = (respond(graph[node], level=0.0) for node in nodes)
    assert first.level == pytest.approx(second.level, abs=0.03)
    assert first.independent == pytest.approx(second.independent, abs=0.06)
