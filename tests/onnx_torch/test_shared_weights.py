"""Weights that exporters merged because they were equal: gradients by node and slot are those of the separate weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

from gradlint.onnx_torch import OnnxModule
from tests.models.exports import by_dynamo

WEIGHT = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)


def twice(middle="Tanh", reader=None):
    """y = tanh(x w) w, with one initializer, or with what `reader` makes of it."""
    name = "w" if reader is None else "v"
    nodes = [] if reader is None else [helper.make_node(reader, ["w"], ["v"], "moved")]
    nodes += [
        helper.make_node("MatMul", ["x", name], ["a"], "first"),
        helper.make_node(middle, ["a"], ["b"], "middle"),
        helper.make_node("MatMul", ["b", name], ["y"], "second"),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", 1, [3, 4])], [helper.make_tensor_value_info("y", 1, [3, 4])],
        [numpy_helper.from_array(WEIGHT, "w")],
    )  # fmt: skip
    return OnnxModule(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=8))


@pytest.mark.parametrize("reader", [None, "Transpose"])
def test_each_use_has_the_gradient_of_a_weight_of_its_own(reader):
    module, x = twice(reader=reader), torch.randn(3, 4)
    (y,), uses = module.uses(x)
    value = torch.from_numpy(WEIGHT if reader is None else WEIGHT.T)
    first, second = value.clone().requires_grad_(), value.clone().requires_grad_()
    expected = torch.tanh(x @ first) @ second
    cotangent = torch.randn_like(y)
    want = torch.autograd.grad(expected, [first, second], cotangent)
    have = torch.autograd.grad(y, [uses["first", 1], uses["second", 1]], cotangent, retain_graph=True)
    for got, good in zip(have, want, strict=True):
        torch.testing.assert_close(got, good)
    (whole,) = torch.autograd.grad(y, list(module.parameters()), cotangent)
    torch.testing.assert_close(whole if reader is None else whole.T, sum(have))


def test_activations_are_not_among_the_uses():
    _, uses = twice().uses(torch.randn(3, 4, requires_grad=True))
    assert uses.keys() == {("first", 1), ("second", 1)}


def test_fresh_layers_that_an_exporter_merged_keep_their_own_gradients():
    torch.manual_seed(0)
    module = nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Tanh(), nn.LayerNorm(6), nn.Linear(6, 6), nn.LayerNorm(6))
    x = torch.randn(5, 6)
    proto = by_dynamo(module, (x,))
    ours = OnnxModule(proto)
    norms = [node.name for node in proto.graph.node if node.op_type == "LayerNormalization"]
    shared = {node.input[1] for node in proto.graph.node if node.op_type == "LayerNormalization"}
    (y,), uses = ours.uses(x)
    cotangent = torch.randn_like(y)
    want = torch.autograd.grad(module(x), [module[k].weight for k in (0, 3, 5)], cotangent)
    have = torch.autograd.grad(y, [uses[name, 1] for name in norms], cotangent)
    assert len(norms) == 3
    assert len(shared) == 1  # or the exporter merges no more, and this test has lost its subject
    for got, good in zip(have, want, strict=True):
        torch.testing.assert_close(got, good, rtol=1e-5, atol=1e-6)
