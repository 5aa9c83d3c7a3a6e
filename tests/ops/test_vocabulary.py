"""Names of recurrent activations, and readers that took a list of names for the truth before they read rows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from gradlint.frontends.onnx.file import read_onnx
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.onnx_torch import OnnxRunnable
from gradlint.ops import OPERATORS, UNKNOWN, attributes_of, by_nonlinearity, by_onnx, by_torch
from gradlint.probe.measure import measure
from gradlint.ranges.propagation import ranges_of
from gradlint.rule import GraphBuilder
from gradlint.theory.recurrence.read import read_cells


def constant(name, values):
    return numpy_helper.from_array(np.asarray(values, np.float32), name)


def model_of(nodes, constants, shape, output="y"):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [constant(name, values) for name, values in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def recurrent(activation, **attrs):
    node = helper.make_node("RNN", ["x", "w", "r"], ["y"], hidden_size=4, activations=[activation], **attrs)
    return read_onnx(model_of([node], {"w": np.ones((1, 4, 3)), "r": 0.5 * np.eye(4)[None]}, [5, 2, 3]))


@pytest.mark.parametrize(
    ("name", "row"),
    [
        *(("relu", "relu"), ("Tanh", "tanh"), ("LeakyRelu", "leaky_relu"), ("leaky_relu", "leaky_relu")),
        *(("thresholdedrelu", "threshold"), ("HardSigmoid", "hardsigmoid"), ("Affine", "unknown"), ("matmul", "matmul")),
    ],
)
def test_a_recurrence_may_name_its_activation_as_onnx_does_or_as_we_do(name, row):
    assert by_nonlinearity(name).name == row


@pytest.mark.parametrize(
    ("activation", "bounds"),
    [
        *(("Relu", (0.0, np.inf)), ("Tanh", (-1.0, 1.0)), ("Softplus", (0.0, np.inf)), ("Sigmoid", (-1.0, 1.0))),
        *(("LeakyRelu", (-np.inf, np.inf)), ("Affine", (-np.inf, np.inf)), ("Elu", (-1.0, np.inf))),
    ],
)
def test_the_states_of_a_recurrence_have_the_range_of_its_activation(activation, bounds):
    file = recurrent(activation)
    node = next(node for node in file.graph if node.op == "rnn")
    found = ranges_of(file.graph)[node.id]
    assert (found.low, found.high) == bounds
    states = OnnxRunnable(file).module(100.0 * torch.randn(5, 2, 3))[0].detach()
    assert float(states.min()) >= found.low
    assert float(states.max()) <= found.high


@pytest.mark.parametrize(("activation", "row"), [("LeakyRelu", "leaky_relu"), ("ThresholdedRelu", "threshold")])
def test_a_recurrent_cell_has_the_parameter_that_the_file_gives_its_activation(activation, row):
    node = next(node for node in recurrent(activation, activation_alpha=[0.3]).graph if node.op == "rnn")
    cell = read_cells(node).layers[0][0]
    z = np.array([-2.0, -0.2, 0.2, 0.5, 3.0])
    expected = {"leaky_relu": np.where(z > 0.0, z, 0.3 * z), "threshold": np.where(z > 0.3, z, 0.0)}[row]
    assert cell.activation == row
    assert OPERATORS[row].of(cell.parameters)(z) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("act", "dead"), [(nn.Mish(), 1.0), (nn.SiLU(), 1.0), (nn.Tanh(), 1.0), (nn.LeakyReLU(), None), (nn.Softsign(), None)]
)
def test_units_far_below_zero_are_dead_where_the_activation_is_flat(act, dead):
    module = nn.Sequential(nn.Linear(8, 16), act, nn.Linear(16, 2))
    nn.init.constant_(module[0].bias, -200.0)
    x = torch.randn(16, 8)
    before = module[0](x).detach().requires_grad_()
    act(before).sum().backward()
    found = measure(TorchRunnable(module, (), args=(x,)), seeds=1).units
    assert [units.dead for units in found] == ([] if dead is None else [dead])
    assert (float(before.grad.abs().max()) == 0.0) is (dead is not None)


def test_constants_behind_any_function_of_one_tensor_are_folded():
    nodes = [helper.make_node("LeakyRelu", ["c"], ["w"], alpha=0.5), helper.make_node("MatMul", ["x", "w"], ["y"])]
    graph = read_onnx(model_of(nodes, {"c": -np.eye(4)}, [2, 4])).graph
    linear = next(node for node in graph if node.op == "linear")
    assert [node.op for node in graph] == ["input", "linear"]
    assert linear.weights["weight"].array() == pytest.approx(-0.5 * np.eye(4))


def test_a_name_stands_in_one_row():
    assert by_torch("relu_") is by_onnx("Relu") is OPERATORS["relu"]
    assert by_onnx("QuickGelu") is by_torch("gelu") is OPERATORS["gelu"]
    assert by_torch("no_such_function") is by_onnx("NoSuchOperator") is UNKNOWN
    names = [name for row in OPERATORS.values() for name in row.torch]
    assert len(names) == len(set(names))


def test_a_row_of_a_learned_slope_takes_its_mean():
    builder = GraphBuilder()
    x = builder.input(8, 16)
    act = builder.op("prelu", x, weights={"weight": builder.array(np.full(16, 0.4), "slope")}, shape=(8, 16))
    other = builder.op("relu", act, weights={"weight": builder.array(np.full(16, 0.4), "slope")}, shape=(8, 16))
    assert attributes_of(builder.graph[act])["negative_slope"] == pytest.approx(0.4)
    assert "negative_slope" not in attributes_of(builder.graph[other])
