"""OnnxRunnable: what the probe sees of a run, and what it may change."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from gradlint.errors import InputError
from gradlint.frontends.base import PartialRun
from gradlint.frontends.inputs import InputSpec
from gradlint.frontends.onnx.file import read_onnx
from gradlint.onnx_torch import OnnxRunnable


def model(nodes, inputs, outputs, constants=None, opset=20):
    """A model from (op, inputs, outputs, attributes) tuples; a node is named by its first output."""
    made = [helper.make_node(op, list(ins), list(outs), outs[0], **attrs) for op, ins, outs, attrs in nodes]
    held = [numpy_helper.from_array(np.asarray(value), name) for name, value in (constants or {}).items()]
    given = [helper.make_tensor_value_info(name, kind, shape) for name, (kind, shape) in inputs.items()]
    graph = helper.make_graph(made, "g", given, [helper.make_tensor_value_info(name, 1, None) for name in outputs], held)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def runnable(*args, **kwargs):
    return OnnxRunnable(read_onnx(model(*args, **kwargs)))


FLOAT = (TensorProto.FLOAT, [2, 3])
WEIGHT = np.arange(9, dtype=np.float32).reshape(3, 3) - 4
LINES = [("MatMul", ["x", "w"], ["h"], {}), ("Tanh", ["h"], ["t"], {}), ("Add", ["t", "x"], ["y"], {})]


@pytest.fixture
def residual():
    return runnable(LINES, {"x": FLOAT}, ["y"], {"w": WEIGHT})


@pytest.fixture
def x():
    return np.random.default_rng(0).standard_normal((2, 3)).astype(np.float32)


def record(subject, arrays, edit=None):
    """Everything tapped in one run: node -> (outputs, inputs), in order; and the outputs."""
    taps = {}
    outputs = subject.forward(arrays, lambda node, outs, ins: taps.__setitem__(node, (outs, ins)), edit)
    return taps, outputs


def test_nodes_are_tapped_in_order_with_the_tensors_they_read(residual, x):
    taps, (y,) = record(residual, [x])
    assert list(taps) == ["input:x", "h", "t", "y"] == [node.id for node in residual.graph]
    assert taps["h"][1][1] is None  # the weight
    assert taps["y"][1] == (taps["t"][0][0], taps["input:x"][0][0])
    assert taps["y"][0][0] is y


def test_every_tapped_signal_can_be_differentiated(residual, x):
    taps, (y,) = record(residual, [x])
    gradients = torch.autograd.grad(y.sum(), [outs[0] for outs, _ in taps.values()])
    inner = torch.from_numpy(x) @ torch.from_numpy(WEIGHT)
    at_h = 1 - torch.tanh(inner) ** 2
    expected = [at_h @ torch.from_numpy(WEIGHT).T + 1, at_h, torch.ones(2, 3), torch.ones(2, 3)]
    assert all(torch.allclose(g, e, atol=1e-5) for g, e in zip(gradients, expected, strict=True))


def test_the_array_that_is_fed_stays_as_it_is(x):
    subject = runnable([("Relu", ["x"], ["y"], {})], {"x": FLOAT}, ["y"])
    before = x.copy()
    record(subject, [x], lambda _, outs: (outs[0].zero_(),))  # an edit may even work in place
    np.testing.assert_array_equal(x, before)


def test_an_edit_replaces_what_the_next_nodes_read_and_what_is_tapped(residual, x):
    taps, (y,) = record(residual, [x], lambda node, outs: (outs[0] * 0,) if node == "t" else None)
    assert torch.equal(y, taps["input:x"][0][0])
    assert taps["t"][0][0].count_nonzero() == 0
    assert taps["y"][1][0] is taps["t"][0][0]


def test_an_edit_of_an_input_reaches_every_reader(residual, x):
    _, (y,) = record(residual, [x], lambda node, outs: (outs[0] + 1,) if node == "input:x" else None)
    _, (expected,) = record(residual, [x + 1])
    assert torch.allclose(y, expected)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ([("Gather", ["w", "i"], ["e"], {}), ("Tanh", ["e"], ["y"], {})], "e"),
        ([("Cast", ["i"], ["c"], {"to": 1}), ("Mul", ["c", "s"], ["y"], {})], "c"),
    ],
)
def test_integer_inputs_can_be_differentiated_from_the_first_float_on(nodes, first):
    subject = runnable(nodes, {"i": (TensorProto.INT64, [3])}, ["y"], {"w": WEIGHT, "s": np.float32(2)})
    taps, (y,) = record(subject, [np.array([0, 2, 1])])
    assert not taps["input:i"][0][0].requires_grad
    (gradient,) = torch.autograd.grad(y.sum(), taps[first][0][0])
    assert gradient.abs().sum() > 0


def test_a_cast_of_a_shape_is_not_a_signal():
    nodes = [("Shape", ["x"], ["s"], {}), ("Cast", ["s"], ["c"], {"to": 1}), ("ReduceSum", ["c"], ["r"], {"keepdims": 0}),
             ("Div", ["x", "r"], ["y"], {})]  # fmt: skip
    subject = runnable(nodes, {"x": (TensorProto.FLOAT, ["n", 3])}, ["y"])
    seen = []
    original = subject.module.run
    subject.module.run = lambda feeds, observe: original(
        feeds, lambda s, o, i: seen.append((s.op, observe(s, o, i))) or seen[-1][1]
    )
    subject.forward([np.ones(spec.shape, np.float32) for spec in subject.inputs])
    assert not next(outs for op, outs in seen if op == "Cast")[0].requires_grad


def branch(op, name):
    out = helper.make_tensor_value_info(name, 1, None)
    return helper.make_graph([helper.make_node(op, ["x"], [name], name)], name, [], [out])


@pytest.mark.parametrize(("flag", "taken", "left"), [(True, "then", "else"), (False, "else", "then")])
def test_only_the_branch_taken_runs_and_is_tapped(flag, taken, left, x):
    branches = {"then_branch": branch("Relu", "then"), "else_branch": branch("Tanh", "else")}
    subject = runnable([("If", ["c"], ["y"], branches)], {"c": (TensorProto.BOOL, []), "x": FLOAT}, ["y"])
    taps, (y,) = record(subject, [np.array(flag), x])
    assert f"y/{taken}_branch/{taken}" in taps
    assert f"y/{left}_branch/{left}" not in taps
    signal = torch.from_numpy(x)
    assert torch.equal(y, torch.relu(signal) if flag else torch.tanh(signal))
    assert [value is None for value in taps["y"][1]].count(True) == 1  # the output of the other branch


def test_an_operator_that_is_a_function_of_the_standard_is_one_node(x):
    nodes = [("MeanVarianceNormalization", ["x"], ["m"], {"axes": [0]}), ("Neg", ["m"], ["y"], {})]
    subject = runnable(nodes, {"x": FLOAT}, ["y"])
    taps, (y,) = record(subject, [x])
    assert list(taps) == ["input:x", "m", "y"]
    np.testing.assert_allclose(-y.detach().numpy(), (x - x.mean(0)) / (x.std(0) + 1e-9), rtol=1e-4)


def test_a_recurrent_layer_is_one_node_with_a_gradient_at_every_time_step():
    rng = np.random.default_rng(0)
    held = {"w": rng.standard_normal((1, 8, 3)), "r": rng.standard_normal((1, 8, 2))}
    subject = runnable(
        [("LSTM", ["x", "w", "r"], ["y", "", "c"], {"hidden_size": 2})], {"x": (TensorProto.FLOAT, [5, 1, 3])}, ["y", "c"],
        {name: value.astype(np.float32) for name, value in held.items()},
    )  # fmt: skip
    taps, (y, c) = record(subject, [rng.standard_normal((5, 1, 3)).astype(np.float32)])
    assert list(taps) == ["input:x", "y"]
    assert y.shape == (5, 1, 1, 2)
    assert taps["y"][0][2] is c
    (gradient,) = torch.autograd.grad(c.sum(), taps["input:x"][0][0])
    assert (gradient.abs().sum((1, 2)) > 0).all()


def test_a_run_that_cannot_go_on_has_tapped_what_came_before(x):
    nodes = [("Relu", ["x"], ["r"], {}), ("Nonsense", ["r"], ["n"], {}), ("Relu", ["n"], ["y"], {})]
    subject, taps = runnable(nodes, {"x": FLOAT}, ["y"]), []
    with pytest.raises(PartialRun) as stop:
        subject.forward([x], lambda node, *_: taps.append(node))
    assert (stop.value.node, stop.value.op) == ("n", "Nonsense")
    assert taps == ["input:x", "r"]


def test_an_unknown_operator_inside_a_loop_is_reported_at_the_loop(x):
    infos = [helper.make_tensor_value_info(name, kind, None) for name, kind in (("i", 7), ("c", 9), ("v", 1))]
    outs = [helper.make_tensor_value_info(name, kind, None) for name, kind in (("c", 9), ("w", 1))]
    body = helper.make_graph([helper.make_node("Nonsense", ["v"], ["w"], "inner")], "body", infos, outs)
    subject = runnable([("Loop", ["n", "", "x"], ["y"], {"body": body})], {"x": FLOAT}, ["y"], {"n": np.int64(2)})
    with pytest.raises(PartialRun, match="Nonsense") as stop:
        subject.forward([x])
    assert stop.value.node in subject.graph


def test_the_random_state_is_handed_back(x):
    nodes = [("Dropout", ["x", "ratio", "training"], ["y"], {})]
    subject = runnable(nodes, {"x": FLOAT}, ["y"], {"ratio": np.float32(0.5), "training": np.array(True)})
    before = torch.random.get_rng_state()
    with subject.untouched():
        subject.forward([x])
        assert not torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert subject.mode == "train"


def test_a_bfloat16_input_is_converted_from_float32():
    subject = runnable([("Relu", ["x"], ["y"], {})], {"x": (TensorProto.BFLOAT16, [2, 3])}, ["y"])
    (y,) = subject.forward([spec.draw(np.random.default_rng(0)) for spec in subject.inputs])
    assert y.dtype == torch.bfloat16
    assert y.requires_grad


def test_given_inputs_take_the_place_of_inferred_ones():
    file = read_onnx(model([("Relu", ["x"], ["y"], {})], {"x": (TensorProto.FLOAT, ["n", 3])}, ["y"]))
    subject = OnnxRunnable(file, file.inputs_with((InputSpec("x", "float32", (7, 3), given=True),)))
    (y,) = subject.forward([spec.draw(np.random.default_rng(0)) for spec in subject.inputs])
    assert y.shape == (7, 3)


def test_an_input_that_cannot_be_inferred_is_refused():
    untyped = model([("Identity", ["x"], ["y"], {})], {"x": FLOAT}, ["y"])
    untyped.graph.input[0].type.CopyFrom(onnx.TypeProto())
    with pytest.raises(InputError, match="x"):
        OnnxRunnable(read_onnx(untyped))
