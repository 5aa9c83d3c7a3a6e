"""What the report says first, on models whose fault is known."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import gradlint
from gradlint.frontends.targets import Target


class Cutting(nn.Module):
    def __init__(self, cut) -> None:
        super().__init__()
        self.first, self.second, self.cut = nn.Linear(8, 8), nn.Linear(8, 4), cut

    def forward(self, x):
        return self.second(self.cut(self.first(x)))


@pytest.mark.parametrize(("cut", "verdict"), [(torch.round, "vanishes"), (torch.tanh, "healthy")])
def test_a_cut_that_nothing_gets_past_is_no_healthy_model(cut, verdict):
    report = gradlint.check(Cutting(cut), torch.randn(8, 8))
    assert report.verdict == verdict
    assert ("nothing before it can learn" in report.to("full")) is (verdict == "vanishes")


@pytest.mark.parametrize(("batch", "said"), [(4, True), (8, False)])
def test_a_batch_norm_that_sees_few_values_is_remarked(batch, said):
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    for mode in ("train", "eval"):
        notes = gradlint.check(Target(module, (torch.randn(batch, 8),)), mode=mode).result.notes
        assert any("values per channel" in note for note in notes) is (said and mode == "train")


def test_a_spatial_map_counts_towards_the_values_of_a_channel():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    assert not gradlint.check(module, torch.randn(2, 3, 8, 8)).result.notes


def test_a_probe_that_stops_leaves_out_the_branch_that_was_not_taken(tmp_path):
    """The If joins a branch that ran with one that did not, before an operator that cannot be run."""

    def branch(op, name):
        made = helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 8])
        return helper.make_graph([helper.make_node(op, ["h"], [name])], name, [], [made])

    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "w")
    yes = numpy_helper.from_array(np.array(0, np.int64), "zero")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("ReduceSum", ["x"], ["total"], keepdims=0),
        helper.make_node("Cast", ["total"], ["count"], to=TensorProto.INT64),
        helper.make_node("Greater", ["count", "zero"], ["taken"]),
        helper.make_node("If", ["taken"], ["z"], then_branch=branch("Tanh", "a"), else_branch=branch("Relu", "b")),
        helper.make_node("Mystery", ["z"], ["y"], domain="org.example"),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 8]) for name in "xy")
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("org.example", 1)]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], [weight, yes]), opset_imports=opsets)
    onnx.save(model, tmp_path / "model.onnx")
    result = gradlint.check(tmp_path / "model.onnx").result
    assert "GL902" in {finding.rule for finding in result.findings}
    assert 0 < result.coverage.probed < result.coverage.nodes
