"""Growth along the time axis of ONNX files: the same as their torch twins, whatever the layout and the operator."""

from __future__ import annotations

import math

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from gradlint.frontends.torch.module import TorchRunnable
from gradlint.load import load
from gradlint.probe.measure import measure

FLOAT = TensorProto.FLOAT
GATES = {"LSTM": (0, 3, 1, 2), "GRU": (1, 0, 2), "RNN": (0,)}  # torch's blocks of rows in the order of ONNX
HIDDEN, INPUTS, STEPS, BATCH = 8, 3, 30, 4


def over_time(nodes, inputs, outputs, weights, tmp_path):
    values = [helper.make_tensor_value_info(name, FLOAT, shape) for name, shape in inputs.items()]
    results = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    initializers = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph(nodes, "g", values, results, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    return load(str(path), (), None).measure(seeds=1, seed=0, progress=lambda _: None).time


def recurrent(kind, directions=1):
    """A torch layer and the same weights in ONNX order."""
    torch.manual_seed(0)
    options = {"bidirectional": directions == 2}
    layer = getattr(nn, kind)(INPUTS, HIDDEN, **options)
    ends = ["_l0", "_l0_reverse"][:directions]

    def rows(name):
        blocks = [getattr(layer, name + end).detach().reshape(len(GATES[kind]), HIDDEN, -1) for end in ends]
        return np.stack([block[list(GATES[kind])].reshape(len(GATES[kind]) * HIDDEN, -1).numpy() for block in blocks])

    bias = np.concatenate([rows("bias_ih"), rows("bias_hh")], axis=1)[..., 0]
    return layer, {"W": rows("weight_ih"), "R": rows("weight_hh"), "B": bias}


class Outputs(nn.Module):
    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x):
        return self.rnn(x)[0]


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_a_layer_and_its_onnx_twin_agree_in_both_layouts(kind, layout, final, tmp_path):
    layer, weights = recurrent(kind)
    shape = [BATCH, STEPS, INPUTS] if layout else [STEPS, BATCH, INPUTS]
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    names = ["Y", "Y_h"] if final else ["Y"]
    node = helper.make_node(kind, ["x", "W", "R", "B"], names, hidden_size=HIDDEN, layout=layout, name="rnn", **more)
    (found,) = over_time([node], {"x": shape}, ["Y"], weights, tmp_path)
    assert (found.axis, found.steps, found.direction) == (layout, STEPS, "forward")
    x = torch.randn(STEPS, BATCH, INPUTS)
    (twin,) = measure(TorchRunnable(Outputs(layer), args=(x,)), seeds=1).time
    assert found.slope == pytest.approx(twin.slope, abs=3 * twin.slope_error)
    assert found.lyapunov[0] == pytest.approx(twin.lyapunov[0], abs=0.1)


@pytest.mark.parametrize("final", [True, False])
@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_the_same_input_gives_torch_and_onnx_the_same_line(kind, final, tmp_path):
    layer, weights = recurrent(kind)
    names = ["Y", "Y_h"] if final else ["Y"]
    more = {"linear_before_reset": 1} if kind == "GRU" else {}
    node = helper.make_node(kind, ["x", "W", "R", "B"], names, hidden_size=HIDDEN, name="rnn", **more)
    (found,) = over_time([node], {"x": [STEPS, BATCH, INPUTS]}, ["Y"], weights, tmp_path)
    (spec,) = load(str(tmp_path / "model.onnx"), (), None).specs
    x = torch.from_numpy(np.asarray(spec.draw(np.random.default_rng(0))))
    (twin,) = measure(TorchRunnable(Outputs(layer), args=(x,)), seeds=1).time
    assert found.backward == pytest.approx(twin.backward, abs=1e-4)
    assert found.lyapunov == pytest.approx(twin.lyapunov, abs=1e-6)


def test_both_directions_of_a_bidirectional_onnx_layer_are_measured(tmp_path):
    layer, weights = recurrent("GRU", directions=2)
    node = helper.make_node(
        "GRU", ["x", "W", "R", "B"], ["Y"], hidden_size=HIDDEN, direction="bidirectional", linear_before_reset=1, name="rnn"
    )
    found = over_time([node], {"x": [STEPS, BATCH, INPUTS]}, ["Y"], weights, tmp_path)
    twins = measure(TorchRunnable(Outputs(layer), args=(torch.randn(STEPS, BATCH, INPUTS),)), seeds=1).time
    assert [item.direction for item in found] == ["forward", "reverse"]
    for one, other in zip(found, twins, strict=True):
        assert one.slope == pytest.approx(other.slope, abs=3 * other.slope_error)


def test_a_reversed_onnx_layer_is_read_from_its_end(tmp_path):
    _, weights = recurrent("RNN")
    weights["R"] = 0.9 * np.eye(HIDDEN, dtype=np.float32)[None]
    weights["W"], weights["B"] = np.abs(weights["W"]), 0.0 * weights["B"]
    node = helper.make_node(
        "RNN", ["x", "W", "R", "B"], ["Y"], hidden_size=HIDDEN, direction="reverse", activations=["Affine"], name="rnn"
    )
    (found,) = over_time([node], {"x": [STEPS, BATCH, INPUTS]}, ["Y"], weights, tmp_path)
    assert (found.axis, found.direction) == (0, "reverse")
    assert found.slope == pytest.approx(math.log10(0.9), abs=1e-4)


def step(feed, state="h", out="hn"):
    return [
        helper.make_node("MatMul", [state, "R"], ["hr"]),
        helper.make_node("MatMul", [feed, "W"], ["xw"]),
        helper.make_node("Add", ["hr", "xw"], [out]),
    ]


def info(name, shape, kind=FLOAT):
    return helper.make_tensor_value_info(name, kind, shape)


def linear_weights():
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((HIDDEN, HIDDEN)))[0]
    return {
        "R": (0.8 * rotation).astype(np.float32),
        "W": np.linalg.qr(rng.standard_normal((HIDDEN, HIDDEN)))[0].astype(np.float32),
        "h0": np.zeros((BATCH, HIDDEN), np.float32),
    }


@pytest.mark.parametrize(("axis", "back"), [(0, 0), (1, 0), (0, 1)])
def test_the_axis_and_direction_of_a_scan(axis, back, tmp_path):
    body = helper.make_graph(
        [*step("xt"), helper.make_node("Identity", ["hn"], ["y"])],
        "body",
        [info("h", [BATCH, HIDDEN]), info("xt", [BATCH, HIDDEN])],
        [info("hn", [BATCH, HIDDEN]), info("y", [BATCH, HIDDEN])],
    )
    options = {"num_scan_inputs": 1, "scan_input_axes": [axis], "scan_input_directions": [back]}
    node = helper.make_node("Scan", ["h0", "x"], ["hT", "ys"], body=body, name="scan", **options)
    shape = [BATCH, STEPS, HIDDEN] if axis else [STEPS, BATCH, HIDDEN]
    (found,) = over_time([node], {"x": shape}, ["ys"], linear_weights(), tmp_path)
    assert (found.axis, found.steps, found.direction) == (axis, STEPS, "reverse" if back else "forward")
    assert found.slope == pytest.approx(math.log10(0.8), abs=1e-5)


@pytest.mark.parametrize("collects", [True, False])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_axis_of_a_loop_is_found_from_its_gradient(axis, collects, tmp_path):
    nodes = [
        helper.make_node("Gather", ["x", "i"], ["xt"], axis=axis),
        *step("xt"),
        helper.make_node("Identity", ["c"], ["co"]),
        *([helper.make_node("Identity", ["hn"], ["y"])] if collects else []),
    ]
    body = helper.make_graph(
        nodes,
        "body",
        [info("i", [], TensorProto.INT64), info("c", [], TensorProto.BOOL), info("h", [BATCH, HIDDEN])],
        [info("co", [], TensorProto.BOOL), info("hn", [BATCH, HIDDEN]), *([info("y", [BATCH, HIDDEN])] if collects else [])],
    )
    node = helper.make_node("Loop", ["n", "", "h0"], ["hT", *(["ys"] if collects else [])], body=body, name="loop")
    shape = [BATCH, STEPS, HIDDEN] if axis else [STEPS, BATCH, HIDDEN]
    weights = {**linear_weights(), "n": np.array(STEPS, dtype=np.int64)}
    (found,) = over_time([node], {"x": shape}, ["hT"], weights, tmp_path)
    assert found.axis == axis
    assert found.slope == pytest.approx(math.log10(0.8), abs=1e-5)


def test_the_axis_of_an_unrolled_export_is_found(tmp_path):
    weights = {**linear_weights(), **{f"i{t}": np.array(t, dtype=np.int64) for t in range(6)}}
    nodes, state = [], "h0"
    for t in range(6):
        nodes.append(helper.make_node("Gather", ["x", f"i{t}"], [f"x{t}"], axis=1))
        nodes.append(helper.make_node("MatMul", [state, "R"], [f"hr{t}"], name=f"r{t}"))
        nodes.append(helper.make_node("MatMul", [f"x{t}", "W"], [f"xw{t}"], name=f"w{t}"))
        nodes.append(helper.make_node("Add", [f"hr{t}", f"xw{t}"], [f"h{t}"], name=f"a{t}"))
        state = f"h{t}"
    (found,) = over_time(nodes, {"x": [BATCH, 6, HIDDEN]}, [state], weights, tmp_path)
    assert found.axis == 1
    assert found.slope == pytest.approx(math.log10(0.8), abs=1e-5)


def test_a_sequence_of_lengths_is_measured(tmp_path):
    _, weights = recurrent("LSTM")
    node = helper.make_node("LSTM", ["x", "W", "R", "B", "lengths"], ["Y", "Y_h"], hidden_size=HIDDEN, name="rnn")
    weights["lengths"] = np.array([30, 20, 25, 30], dtype=np.int32)
    (found,) = over_time([node], {"x": [STEPS, BATCH, INPUTS]}, ["Y"], weights, tmp_path)
    assert found.slope < -0.05
