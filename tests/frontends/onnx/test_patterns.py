"""Operators that exporters spell out are recognized as what they are, and the probe still taps every node of the graph."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from gradlint.frontends.onnx.file import read_onnx
from gradlint.onnx_torch.runnable import OnnxRunnable
from gradlint.signal_path import SignalPath
from tests.models.exports import by_dynamo, by_torchscript

DYNAMO = [(True, 18, True), (True, 20, False)]
SCRIPT = [(False, 13, True), (False, 16, True)]


class Call(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(self.function(self.fc(x)))


class HandWritten(nn.Module):
    """A norm as people write it: `kind` is "layer" or "rms"."""

    def __init__(self, kind):
        super().__init__()
        self.kind = kind
        self.weight = nn.Parameter(torch.rand(8))

    def forward(self, x):
        if self.kind == "rms":
            return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))
        mean = x.mean(-1, keepdim=True)
        return (x - mean) / torch.sqrt((x - mean).pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Attends(nn.Module):
    """Attention over two heads; `style` says how."""

    def __init__(self, style):
        super().__init__()
        self.style = style
        self.query, self.key, self.value = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, x):
        steps = x.shape[1]
        q, k, v = (f(x).view(x.shape[0], steps, 2, 4).transpose(1, 2) for f in (self.query, self.key, self.value))
        lower = torch.ones(steps, steps).tril().bool()
        if self.style == "by hand":
            logits = (q @ k.transpose(-1, -2) / 2.0).masked_fill(~lower, -1e9)
            y = logits.softmax(-1) @ v
        else:
            y = F.scaled_dot_product_attention(
                q, k, v, attn_mask=lower if self.style == "mask" else None, is_causal=self.style == "causal"
            )
        return y.transpose(1, 2).reshape(x.shape)


def export(model, way, shape=(2, 5, 8)):
    dynamo, opset, optimize = way
    x = torch.randn(shape)
    if dynamo:
        return by_dynamo(model, (x,), opset_version=opset, optimize=optimize)
    return by_torchscript(model, (x,), opset_version=opset)


def ops(file):
    return [node.op for node in file.graph if node.op not in {"input", "reshape", "cast", "slice"}]


def check_taps(file):
    """Every node of the graph runs, with a tensor for each of its inputs."""
    runnable, seen = OnnxRunnable(file), {}
    feeds = [spec.draw(np.random.default_rng(0)) for spec in file.inputs]
    runnable.forward(feeds, tap=lambda node, outputs, inputs: seen.update({node: inputs}))
    assert set(seen) == {node.id for node in file.graph}
    for node in file.graph:
        assert [tensor is None for tensor in seen[node.id]] == [ref is None for ref in node.inputs]


ACTIVATIONS = {
    "gelu": (F.gelu, "gelu"),
    "gelu by tanh": (lambda x: F.gelu(x, approximate="tanh"), "gelu"),
    "quick gelu": (lambda x: x * torch.sigmoid(1.702 * x), "gelu"),
    "silu": (F.silu, "silu"),
    "mish": (F.mish, "mish"),
    "hardswish": (F.hardswish, "hardswish"),
}


@pytest.mark.parametrize("way", DYNAMO + SCRIPT, ids=str)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_one_node_however_the_exporter_spells_it(name, way):
    function, op = ACTIVATIONS[name]
    file = read_onnx(export(Call(function), way))
    assert [found for found in ops(file) if found not in {"linear", "add"}] == [op]
    check_taps(file)


def test_a_function_that_is_only_like_an_activation_stays_as_it_is():
    file = read_onnx(export(Call(lambda x: x * torch.sigmoid(0.3 * x)), DYNAMO[0]))
    assert "sigmoid" in ops(file)


def test_an_activation_whose_inside_is_read_elsewhere_stays_as_it_is():
    class Both(nn.Module):
        def forward(self, x):
            s = torch.sigmoid(x)
            return x * s, s

    assert ops(read_onnx(export(Both(), DYNAMO[0]))) == ["sigmoid", "mul"]


NORMS = {
    "layer": (lambda: nn.LayerNorm(8), "layer_norm", {"scale", "bias"}, DYNAMO + SCRIPT),
    "rms": (lambda: nn.RMSNorm(8), "rms_norm", {"scale"}, DYNAMO),
    "layer by hand": (lambda: HandWritten("layer"), "layer_norm", {"scale"}, DYNAMO + SCRIPT),
    "rms by hand": (lambda: HandWritten("rms"), "rms_norm", {"scale"}, DYNAMO + SCRIPT),
    "group": (lambda: nn.GroupNorm(2, 4), "group_norm", {"scale", "bias"}, DYNAMO[:1] + SCRIPT),
}


@pytest.mark.parametrize(("name", "way"), [(name, way) for name, row in NORMS.items() for way in row[3]], ids=str)
def test_a_norm_is_one_node_with_its_scale_and_bias(name, way):
    build, op, roles, _ = NORMS[name]
    model = build()
    file = read_onnx(export(model, way, (2, 4, 8)))
    assert ops(file) == [op]
    (node,) = [node for node in file.graph if node.op == op]
    assert set(node.weights) == roles
    expected = np.ravel(next(model.parameters()).detach().numpy())
    assert np.array_equal(np.ravel(node.weights["scale"].array()), expected)
    check_taps(file)


@pytest.mark.parametrize("way", [*DYNAMO, SCRIPT[1]], ids=str)
@pytest.mark.parametrize("style", ["plain", "causal", "mask", "by hand"])
def test_attention_is_one_node_with_its_scale(style, way):
    file = read_onnx(export(Attends(style), way))
    assert ops(file).count("attention") == 1
    assert not {"softmax", "matmul", "mul", "div"} & set(ops(file))
    (node,) = [node for node in file.graph if node.op == "attention"]
    assert node.attrs["scale"] == pytest.approx(0.5, rel=1e-5)
    assert len(node.inputs) >= 3
    check_taps(file)


def test_a_recognized_node_has_the_output_of_the_last_node_of_its_pattern():
    file = read_onnx(export(NORMS["layer"][0](), SCRIPT[0]))
    runnable, seen = OnnxRunnable(file), {}
    x = np.random.default_rng(0).standard_normal((2, 5, 8)).astype(np.float32)
    runnable.forward([x], tap=lambda node, outputs, inputs: seen.update({node: outputs}))
    (node,) = [node for node in file.graph if node.op == "layer_norm"]
    expected = F.layer_norm(torch.from_numpy(x), (8,))
    assert torch.allclose(seen[node.id][0].detach(), expected, atol=1e-5)
    assert node.inputs == (next(iter(file.graph)).id, 0) or node.inputs[0].node == next(iter(file.graph)).id


def by_hand(kind, *, shift=True, axis=-1):
    """A softmax as people write it: `kind` says with what it ends."""

    def function(x):
        z = x - x.amax(axis, keepdim=True) if shift else x
        e = z.exp()
        if kind == "div":
            return e / e.sum(axis, keepdim=True)
        if kind == "mul":
            return e * e.sum(axis, keepdim=True).reciprocal()
        if kind == "dropped":
            return e / e.sum(axis).unsqueeze(axis)
        if kind == "log":
            return (e / e.sum(axis, keepdim=True)).log()
        if kind == "logsumexp":
            return x - x.logsumexp(axis, keepdim=True)
        return z - e.sum(axis, keepdim=True).log()

    return function


SOFTMAXES = {
    "shifted": (by_hand("div"), "softmax"),
    "not shifted": (by_hand("div", shift=False), "softmax"),
    "multiplied": (by_hand("mul"), "softmax"),
    "without keepdims": (by_hand("dropped"), "softmax"),
    "over another axis": (by_hand("div", axis=1), "softmax"),
    "its log": (by_hand("log"), "log_softmax"),
    "log": (by_hand("sub"), "log_softmax"),
    "log, not shifted": (by_hand("sub", shift=False), "log_softmax"),
    "log sum exp": (by_hand("logsumexp"), "log_softmax"),
    "log of softmax": (lambda x: x.softmax(-1).log(), "log_softmax"),
}


@pytest.mark.parametrize("way", DYNAMO + SCRIPT, ids=str)
@pytest.mark.parametrize("name", SOFTMAXES)
def test_a_softmax_is_one_node_however_it_is_spelled(name, way):
    function, op = SOFTMAXES[name]
    file = read_onnx(export(Call(function), way))
    assert [found for found in ops(file) if found not in {"linear", "add"}] == [op]
    (node,) = [node for node in file.graph if node.op == op]
    assert node.attrs["axis"] in ({1, -2} if name == "over another axis" else {2, -1})
    check_taps(file)


@pytest.mark.parametrize("name", SOFTMAXES)
def test_gradients_start_at_the_logits_of_a_softmax_that_is_spelled_out(name):
    class Ends(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return SOFTMAXES[name][0](self.fc(x))

    graph = read_onnx(export(Ends(), DYNAMO[1])).graph
    assert [graph[ref.node].op for ref in SignalPath(graph).trunk] in (["linear"], ["add"])


def quotient(sum_axes, *, max_axes=None, keepdims=1, shape=(4, 4)):
    """exp(x - max) / sum exp(x - max) with reductions over these axes."""
    max_axes = sum_axes if max_axes is None else max_axes
    nodes = [
        helper.make_node("ReduceMax", ["x"], ["m"], axes=max_axes, keepdims=keepdims),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Exp", ["d"], ["e"]),
        helper.make_node("ReduceSum", ["e", "axes"], ["s"], keepdims=keepdims),
        helper.make_node("Div", ["e", "s"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name in "xy")
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.array(sum_axes), "axes")])
    return read_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def test_a_quotient_that_is_no_softmax_over_one_axis_stays_as_it_is():
    assert ops(quotient([1])) == ops(quotient([-1], max_axes=[1])) == ["softmax"]
    assert ops(quotient([0, 1])) == ["max", "sub", "exp", "sum", "div"]
    assert "softmax" not in ops(quotient([1], keepdims=0))  # is divided along the wrong axis
    apart = quotient([1], max_axes=[0])
    assert ops(apart) == ["max", "sub", "softmax"]  # a shift, but not one that cancels
    assert quotient([9], keepdims=0).graph["Div:y"].op == "div"


def test_a_softmax_by_hand_within_attention_is_attention():
    class ByHand(Attends):
        def forward(self, x):
            q, k, v = (f(x).view(*x.shape[:2], 2, 4).transpose(1, 2) for f in (self.query, self.key, self.value))
            return by_hand("div")(q @ k.transpose(-1, -2) / 2.0) @ v

    for way in (*DYNAMO, SCRIPT[1]):
        file = read_onnx(export(ByHand("by hand"), way))
        assert ops(file).count("attention") == 1
        assert not {"exp", "softmax", "div"} & set(ops(file))
        check_taps(file)


def test_a_softmax_whose_inside_is_read_elsewhere_is_no_softmax():
    class Both(nn.Module):
        def forward(self, x):
            e = x.exp()
            return e / e.sum(-1, keepdim=True), e

    assert "softmax" not in ops(read_onnx(export(Both(), DYNAMO[0])))


def variance(mean_axes, axes):
    """x minus its mean over `mean_axes`, by the deviation over `axes`."""
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["m"], axes=mean_axes),
        helper.make_node("Sub", ["x", "m"], ["d"]),
        helper.make_node("Mul", ["d", "d"], ["s"]),
        helper.make_node("ReduceMean", ["s"], ["v"], axes=axes),
        helper.make_node("Add", ["v", "eps"], ["e"]),
        helper.make_node("Sqrt", ["e"], ["r"]),
        helper.make_node("Div", ["d", "r"], ["y"]),
    ]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 3, 4])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3, 4])
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(np.float32(1e-5), "eps")])
    return read_onnx(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)]))


def test_mean_and_deviation_over_the_same_axes_are_a_layer_norm_and_over_others_are_not():
    same = variance([-1], [-1])
    assert ops(same) == ["layer_norm"]
    assert next(node for node in same.graph if node.op == "layer_norm").attrs["eps"] == pytest.approx(1e-5)
    assert "layer_norm" not in ops(variance([1], [2]))


def test_a_softmax_over_one_activation_is_no_attention():
    class Gate(nn.Module):
        def forward(self, x):
            return x.softmax(-1) @ x.transpose(-1, -2)

    assert "attention" not in ops(read_onnx(export(Gate(), DYNAMO[0])))
