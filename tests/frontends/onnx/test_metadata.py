"""What the file of an exported torch module says of it: places, source lines, weights and their values, folded norms."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from gradlint.frontends.onnx.file import read_onnx
from gradlint.frontends.onnx.folded import FOLDED_NOTE, FROZEN_NOTE
from gradlint.frontends.onnx.metadata import FOLDED, source_line
from gradlint.graph import Source
from tests.models.exports import by_dynamo


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.bn = nn.BatchNorm1d(8)

    def forward(self, x):
        return torch.relu(self.bn(self.fc(x)))


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb = nn.Embedding(30, 8)
        self.blocks = nn.ModuleList([Inner(), Inner()])
        self.lstm = nn.LSTM(8, 5, bidirectional=True)
        self.gru = nn.GRU(10, 4)
        self.ln = nn.LayerNorm(8)
        self.head = nn.Linear(8, 6, bias=False)
        self.register_buffer("shift", torch.randn(6))

    def forward(self, ids, x):
        for block in self.blocks:
            x = block(x)
        h, _ = self.gru(self.lstm(self.emb(ids))[0])
        y = self.head(self.ln(x).unsqueeze(0)) * 0.5
        return y + self.shift, self.head(x), h


def export(model, args, **options):
    return by_dynamo(model, args, **{"optimize": False, **options})


@pytest.fixture(scope="module")
def outer():
    torch.manual_seed(0)
    model = Outer().eval()
    return model, read_onnx(export(model, (torch.randint(0, 30, (7, 2)), torch.randn(3, 8))))


def by_module(graph, module, op):
    return [node for node in graph if (node.module, node.op) == (module, op)]


def test_an_exported_node_has_the_module_class_and_line_that_made_it(outer):
    graph = outer[1].graph
    lines, start = inspect.getsourcelines(Inner.forward)
    (linear,) = by_module(graph, "blocks.1.fc", "linear")
    assert linear.module_class == "Linear"
    assert Path(linear.source.file).name == Path(__file__).name
    assert linear.source.line == start + next(i for i, line in enumerate(lines) if "self.fc" in line)
    assert by_module(graph, "blocks.1", "relu")[0].module_class == "Inner"
    assert all(node.source is not None for node in graph if node.op != "input")


def test_every_parameter_and_no_buffer_of_the_exported_module_is_a_trainable_weight(outer):
    model, file = outer
    trainable = {name for name, weight in file.graph.weights.items() if weight.trainable}
    assert trainable == {name for name, _ in model.named_parameters()}
    fixed = {name for name, weight in file.graph.weights.items() if not weight.trainable}
    assert fixed == {name for name, _ in model.named_buffers() if "num_batches" not in name}


def test_weights_have_the_values_and_the_fan_of_the_torch_parameters(outer):
    model, file = outer
    parameters = dict(model.named_parameters())
    for name in ("blocks.0.fc.weight", "head.weight", "gru.weight_ih_l0"):
        weight = file.graph.weights[name]
        matrix = parameters[name].detach().double().numpy()
        if "gru" in name:  # torch keeps the gates as r, z, n; ONNX as z, r, h
            matrix = matrix.reshape(3, 4, -1)[[1, 0, 2]].reshape(12, -1)
        assert np.array_equal(weight.matrix(), matrix)
        assert (weight.fan_out, weight.fan_in) == matrix.shape


def test_a_bidirectional_lstm_has_the_roles_of_torch_with_rows_in_the_order_of_onnx(outer):
    model, file = outer
    (node,) = by_module(file.graph, "lstm", "lstm")
    assert node.attrs["gate_order"] == "iofc"
    assert (node.attrs["hidden_size"], node.attrs["num_directions"], node.attrs["time_axis"]) == (5, 2, 0)
    names = {"weight": "weight_ih", "recurrent": "weight_hh", "bias": "bias_ih", "recurrent_bias": "bias_hh"}
    for end in ("_l0", "_l0_reverse"):
        for role, name in names.items():
            weight = node.weights[role + end]
            theirs = model.lstm.get_parameter(name + end).detach().numpy()
            gates = theirs.reshape(4, 5, -1)[[0, 3, 1, 2]]  # torch keeps them as i, f, g, o
            assert weight.name == f"lstm.{name}{end}"
            assert np.array_equal(weight.array(), gates.reshape(theirs.shape))
    assert node.weights["recurrent"].name == "lstm.weight_hh_l0"


def test_norms_have_scale_bias_and_running_statistics(outer):
    graph = outer[1].graph
    (norm,) = by_module(graph, "blocks.0.bn", "batch_norm")
    assert set(norm.weights) == {"scale", "bias", "running_mean", "running_var"}
    assert norm.attrs["training"] is False
    assert norm.attrs["epsilon"] == pytest.approx(1e-5)
    (norm,) = by_module(graph, "ln", "layer_norm")
    assert {role: weight.name for role, weight in norm.weights.items()} == {"scale": "ln.weight", "bias": "ln.bias"}


def test_a_module_that_is_called_twice_is_counted(outer):
    heads = by_module(outer[1].graph, "head", "linear")
    assert [node.call for node in heads] == [0, 1]
    assert {node.weights["weight"].name for node in heads} == {"head.weight"}


def test_scalar_operands_are_constants_and_vectors_are_weights(outer):
    graph = outer[1].graph
    assert [node.attrs["constant"] for node in graph if node.op == "mul"] == [0.5]
    assert [node.weights["bias"].name for node in graph if node.op == "add"] == ["shift"]


def test_the_arithmetic_of_shapes_leaves_the_graph_where_shapes_are_known(outer):
    assert all(node.is_float or node.op == "input" for node in outer[1].graph)


def test_an_eval_mode_batch_norm_is_named_in_the_notes(outer):
    assert FROZEN_NOTE in outer[1].notes
    assert outer[1].mode == "eval"


def test_a_batch_norm_that_the_exporter_folded_is_found_and_its_layer_keeps_its_path():
    file = read_onnx(export(nn.Sequential(Inner(), nn.Linear(8, 2)).eval(), (torch.randn(3, 8),), optimize=True))
    folded = [node for node in file.graph if FOLDED in node.notes]
    assert [(node.op, node.module) for node in folded] == [("linear", "0.fc")]
    assert FOLDED_NOTE in file.notes


def test_an_unrolled_rnn_uses_one_weight_at_every_step():
    file = read_onnx(export(nn.RNN(3, 4).eval(), (torch.randn(6, 2, 3),)))
    users = [node.id for node in file.graph if any(w.name == "weight_hh_l0" for w in node.weights.values())]
    assert len(users) >= 5


def test_scoped_names_give_module_paths_when_metadata_is_missing():
    model = export(nn.Sequential(Inner()).eval(), (torch.randn(3, 8),))
    for node, name in zip(model.graph.node, ("/net/net.0/fc/Gemm", "/net/net.0/bn/BatchNormalization", "/Relu"), strict=True):
        node.name = name
        del node.metadata_props[:]
    graph = read_onnx(model).graph
    assert [node.module for node in graph if node.op != "input"] == ["net.0.fc", "net.0.bn", ""]


@pytest.mark.parametrize("value", ["", "[", "[1, 2, 3]", "__import__('os').getcwd()", "('a', 'b')", "[" * 3000, "['only']", "{}"])
def test_garbled_metadata_is_ignored(value):
    model = export(nn.Linear(3, 3), (torch.randn(2, 3),))
    for node in model.graph.node:
        for entry in node.metadata_props:
            entry.value = value
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (node,) = (node for node in read_onnx(model).graph if node.op == "linear")
    assert (node.module, node.module_class, node.source) == ("", "", None)


def test_the_source_line_is_the_innermost_frame_outside_torch():
    trace = (
        'File "/home/me/net.py", line 3, in forward\n    y = self.block(x)\n'
        'File "/home/me/block.py", line 9, in forward\n    return self.fc(x)\n'
        'File "/usr/lib/python3/dist-packages/torch/nn/modules/linear.py", line 134, in forward\n    return F.linear(...)'
    )
    assert source_line(trace) == Source("/home/me/block.py", 9)
    assert source_line(r'File "C:\x\site-packages\torch\nn\a.py", line 1, in f') is None
