"""Layers that an exporter folded a BatchNorm into: nothing is claimed from their weights, and no norm is missing."""

from __future__ import annotations

import copy
import functools
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from onnx import helper, numpy_helper
from torch import nn

import gradlint
from gradlint import Confidence, Severity
from gradlint.frontends.onnx.file import read_onnx
from gradlint.frontends.onnx.folded import FOLDED, MAYBE_FOLDED
from gradlint.graph import Graph, Node, Weight
from gradlint.rule import GraphBuilder, Subject
from gradlint.theory.branches import are_unsettled, hides_norm, normalizes
from tests.models.exports import by_dynamo, by_torchscript

DEPTH = 24
CAUSES = {
    "GL101",
    "GL102",
    "GL103",
    "GL104",
    "GL201",
    "GL202",
    "GL301",
    "GL302",
    "GL402",
}  # what rules claim from weights and norms
WAYS = list(itertools.product(("dynamo", "script"), ("optimized", "plain")))


def convolutions(*, bias=False):
    channels = [3, *[8] * DEPTH]
    layers = [
        layer
        for fan_in, fan_out in itertools.pairwise(channels)
        for layer in (nn.Conv2d(fan_in, fan_out, 3, padding=1, bias=bias), nn.BatchNorm2d(fan_out), nn.ReLU())
    ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)), torch.randn(8, 3, 12, 12)


def linears(*, bias=True):
    layers = [layer for _ in range(DEPTH) for layer in (nn.Linear(24, 24, bias=bias), nn.BatchNorm1d(24), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(24, 4)), torch.randn(64, 24)


def untouched(model, x):
    """As built: every BatchNorm has mean 0 and variance 1."""


def trained(model, x):
    """A few steps, too few for the running averages to arrive."""
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for _ in range(4):
        optimizer.zero_grad()
        (model.train()(x).square().mean()).backward()
        optimizer.step()


def fed(model, x):
    """Running averages that have arrived, then each moved by a few percent."""
    norms = [layer for layer in model if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d))]
    with torch.no_grad():
        for _ in range(40):
            model.train()(x)
        for norm in norms:
            norm.running_var *= 1 + 0.1 * torch.randn_like(norm.running_var)
            norm.running_mean += 0.05 * torch.randn_like(norm.running_mean)


def export(model, x, exporter, optimized):
    if exporter == "dynamo":
        return by_dynamo(model, (x,), optimize=optimized == "optimized")
    return by_torchscript(model, (x,), opset_version=17, do_constant_folding=optimized == "optimized")


@functools.cache
def exported(build, state, exporter, optimized, *, bias=None):
    """A stack in a state, as exported; the same for all tests that ask for it, none of which writes to it."""
    torch.manual_seed(0)
    model, x = build() if bias is None else build(bias=bias)
    state(model, x)
    return export(model, x, exporter, optimized)


def standing(proto, **options):
    findings = gradlint.check(proto, seeds=1, **options).findings
    return {finding.rule: finding for finding in findings if finding.confidence is not Confidence.REFUTED}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.mark.parametrize(("exporter", "optimized"), WAYS)
@pytest.mark.parametrize("state", [untouched, trained, fed], ids=lambda state: state.__name__)
@pytest.mark.parametrize("build", [convolutions, linears], ids=lambda build: build.__name__)
def test_a_stack_with_batch_norms_shows_no_error_however_it_is_exported(build, state, exporter, optimized):
    proto = exported(build, state, exporter, optimized)
    left = sum(node.op == "batch_norm" for node in read_onnx(proto).graph)
    hidden = Counter(note for node in read_onnx(proto).graph for note in node.notes)
    for probe in (False, True):
        found = standing(proto, probe=probe)
        assert [str(finding) for finding in found.values() if finding.severity is Severity.ERROR] == []
        assert ("GL306" in found) is (left == 0)
        if left == 0:
            assert not CAUSES & found.keys()
            assert found["GL306"].evidence["layers"] == DEPTH
    assert left in {0, DEPTH}
    assert hidden == ({} if left else {FOLDED if exporter == "dynamo" else MAYBE_FOLDED: DEPTH})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("build", [convolutions, linears], ids=lambda build: build.__name__)
def test_a_layer_hides_its_norm_with_a_bias_of_its_own_and_without_one(build, bias):
    own = None if bias is (build is linears) else bias  # what it has anyway
    graph = read_onnx(exported(build, untouched, "dynamo", "optimized", bias=own)).graph
    assert sum(FOLDED in node.notes for node in graph) == DEPTH
    assert not any(normalizes(graph, node) for node in graph if node.op == "linear" and node.shape[-1] == 4)


@pytest.mark.parametrize("build", [convolutions, linears], ids=lambda build: build.__name__)
def test_what_is_measured_on_statistics_without_data_is_a_warning(build):
    for optimized in ("optimized", "plain"):
        finding = standing(exported(build, untouched, "dynamo", optimized))["GL802"]
        assert finding.severity is Severity.WARNING
        assert "statistics" in finding.message


def test_growth_through_norms_that_have_arrived_stays_an_error():
    """BatchNorm with ReLU and no skip explodes by itself, also in eval mode and folded."""
    layers = [layer for _ in range(60) for layer in (nn.Linear(24, 24, bias=False), nn.BatchNorm1d(24), nn.ReLU())]
    model, x = nn.Sequential(*layers, nn.Linear(24, 4)), torch.randn(64, 24)
    for norm in model:
        if isinstance(norm, nn.BatchNorm1d):
            norm.momentum = None
    with torch.no_grad():
        for _ in range(8):
            model.train()(torch.randn(256, 24))
    for optimized in ("optimized", "plain"):
        report = gradlint.check(export(model, x, "dynamo", optimized), seeds=1)
        assert report.verdict == "explodes"
        assert {finding.rule: finding.severity for finding in report.findings}["GL801"] is Severity.ERROR


def test_a_stack_without_norms_is_not_excused():
    layers = [layer for _ in range(DEPTH) for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    model, x = nn.Sequential(*layers), torch.randn(2, 8, 8, 8)
    for exporter, optimized in WAYS:
        found = standing(export(model, x, exporter, optimized), probe=False)
        assert found["GL103"].severity is Severity.ERROR
        assert "GL306" not in found


def test_the_torchscript_exporter_leaves_the_names_of_what_it_did_not_fold():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.plain = nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3)
            self.folded, self.norm = nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4)
            self.scaled = nn.utils.parametrizations.weight_norm(nn.Conv2d(4, 4, 1))

        def forward(self, x):
            return self.scaled(torch.relu(self.norm(self.folded(torch.relu(self.plain(self.first(x)))))))

    graph = read_onnx(export(Mixed(), torch.randn(2, 3, 9, 9), "script", "optimized")).graph
    assert [node.module for node in graph if MAYBE_FOLDED in node.notes] == ["folded"]
    assert sum(node.op == "batch_norm" for node in graph) == 1


def test_a_file_whose_nodes_say_nothing_may_hide_a_norm_in_every_layer_with_a_bias():
    proto = copy.deepcopy(exported(linears, untouched, "dynamo", "optimized"))
    for node in proto.graph.node:
        del node.metadata_props[:]
    assert sum(MAYBE_FOLDED in node.notes for node in read_onnx(proto).graph) == DEPTH + 1


def test_a_zero_layer_that_a_norm_was_folded_into_is_no_constant_init():
    """The last BatchNorm of a residual branch often starts with gamma 0."""
    tensors = [numpy_helper.from_array(np.zeros((4, 4, 1), np.float32), f"w{k}") for k in range(2)]
    tensors += [numpy_helper.from_array(np.ones(4, np.float32), f"b{k}") for k in range(2)]
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["h"], name="c0"),
        helper.make_node("Conv", ["h", "w1", "b1"], ["y"], name="c1"),
    ]
    x, y = (helper.make_tensor_value_info(name, 1, [8, 4, 9]) for name in "xy")
    proto = helper.make_model(helper.make_graph(nodes, "g", [x], [y], tensors), opset_imports=[helper.make_opsetid("", 18)])
    assert {"GL104", "GL306"} & standing(proto, probe=False).keys() == {"GL306"}


def norm(gamma, beta, *, training=False):
    arrays = {"scale": gamma, "bias": beta, "running_mean": 0.0, "running_var": 1.0}
    weights = {role: Weight(role, (4,), "float32", lambda value=value: np.full(4, value)) for role, value in arrays.items()}
    return Node("n", "batch_norm", weights=weights, attrs={"training": training})


@pytest.mark.parametrize(
    ("node", "level", "unsettled"),
    [
        (norm(1.0, 0.0), 0.0, False),
        (norm(1.0, 0.0), -0.6, True),
        (norm(1.0, 0.0), 0.6, True),
        (norm(1.0, 0.0), -0.4, False),
        (norm(0.1, 0.0), -1.0, False),
        (norm(0.1, 1.0), -1.0, True),
        (norm(0.0, 0.0), -np.inf, False),
        (norm(1.0, 0.0), -np.inf, True),
        (norm(1.0, 0.0), None, False),
        (norm(1.0, 0.0, training=True), -0.6, False),
        (Node("n", "conv", notes=frozenset({FOLDED})), -0.6, True),
        (Node("n", "conv", notes=frozenset({MAYBE_FOLDED})), 0.1, False),
        (Node("n", "conv"), -0.6, False),
    ],
)
def test_a_norm_is_settled_where_its_output_has_the_size_that_training_gives_it(node, level, unsettled):
    assert are_unsettled(Graph([node], [], mode="eval"), [node], {"n": level}) is unsettled


def test_a_layer_that_hides_a_norm_breaks_a_chain_and_counts_as_one():
    builder = GraphBuilder(mode="eval")
    x = builder.input(8, 64)
    for note in ((), (FOLDED,), (MAYBE_FOLDED,), ()):
        x = builder.op("linear", x, weights={"weight": builder.weight(64, 64)}, notes=note)
    subject = Subject(builder.graph)
    assert [hides_norm(node) for node in builder.graph] == [False, False, True, True, False]
    for norms in (False, True):
        assert [[step.node for step in chain] for chain in subject.chains(norms=norms)] == [["linear0"], ["linear3"]]
