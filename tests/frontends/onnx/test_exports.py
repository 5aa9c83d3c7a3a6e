"""The verdict survives the way a model is exported, and folded norms are named as what they are."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

import gradlint
from gradlint.frontends.onnx.file import read_onnx
from gradlint.frontends.onnx.folded import EXPORT_NOTE, FOLDED_NOTE, FROZEN_NOTE, MAYBE_FOLDED
from gradlint.frontends.onnx.metadata import FOLDED
from tests.models.exports import EXPORTER, by_dynamo

ROOT = Path(__file__).resolve().parents[3]


def _load():
    sys.path.insert(0, str(ROOT / "benchmarks"))  # where a script finds the modules beside it
    try:
        return importlib.import_module("export_matrix")
    finally:
        sys.path.remove(str(ROOT / "benchmarks"))


matrix = _load()
SOME = ["batch_norm_no_skip_broken", "relu_rnn_broken", "tanh_gain_healthy"]
WAYS = [matrix.Way(True, False, True, 18), matrix.Way(True, True, False, 20), matrix.Way(False, True, True, 13)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", [pytest.param(way, marks=EXPORTER if way.dynamo else ()) for way in WAYS], ids=str)
@pytest.mark.parametrize("name", SOME)
def test_the_verdict_does_not_depend_on_the_export(name, way):
    assert gradlint.check(way.export(name), seeds=1).verdict == matrix.EXPECTED[name]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("way", [pytest.param(way, marks=EXPORTER if way.dynamo else ()) for way in matrix.ways(list)], ids=str)
def test_the_verdict_of_every_sample_does_not_depend_on_the_export(way):
    found = matrix.tally(way, list(matrix.EXPECTED))
    assert found.wrong == []
    assert found.exported == len(matrix.EXPECTED)


class Vision(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 4)
        nn.init.normal_(self.bn.bias)

    def forward(self, x):
        return self.fc(torch.relu(self.bn(self.conv(x))).mean((2, 3)))


def vision(**options):
    return by_dynamo(Vision(), (torch.randn(2, 3, 8, 8),), **options)


def rules(proto):
    return {finding.rule: finding for finding in gradlint.check(proto, probe=False).findings}


def test_a_folded_batch_norm_is_reported_with_its_layer():
    proto = vision()
    file = read_onnx(proto)
    assert file.notes == (FOLDED_NOTE, EXPORT_NOTE)
    assert [node.op for node in file.graph if FOLDED in node.notes] == ["conv"]
    finding = rules(proto)["GL306"]
    assert (finding.severity, finding.module) == (gradlint.Severity.NOTE, "conv")


def test_a_folded_batch_norm_is_found_by_the_signature_of_the_graph_alone():
    proto = vision()
    for node in proto.graph.node:
        del node.metadata_props[:]
    assert [node.op for node in read_onnx(proto).graph if FOLDED in node.notes] == ["conv"]


def test_without_any_metadata_a_convolution_with_a_bias_may_hide_a_norm():
    proto = vision()
    for item in (proto, proto.graph, *proto.graph.node):
        del item.metadata_props[:]
    assert [node.op for node in read_onnx(proto).graph if MAYBE_FOLDED in node.notes] == ["conv"]
    assert "may be folded" in rules(proto)["GL306"].message


def test_an_export_for_linting_keeps_the_norm_and_says_that_it_is_frozen():
    proto = vision(optimize=False)
    assert read_onnx(proto).notes == (FROZEN_NOTE,)
    assert "GL306" not in rules(proto)


def test_a_model_without_norm_and_convolution_has_no_note():
    assert read_onnx(by_dynamo(nn.Linear(4, 4), (torch.randn(2, 4),))).notes == ()
