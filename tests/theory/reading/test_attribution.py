"""Growth by operator, and stacks with their phase, against products of factors that are known beforehand and against torch."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import nn

import gradlint
from gradlint.graph import Graph
from gradlint.load import load
from gradlint.result import Growth
from gradlint.rule import GraphBuilder, Subject
from gradlint.structure import Structure
from gradlint.theory.gaussian.integrals import chi
from gradlint.theory.prediction import predict
from gradlint.theory.reading.attribution import Attribution, Share, attribute, interval
from gradlint.theory.reading.phase import phase
from gradlint.theory.reading.stacks import stack
from gradlint.theory.reading.steps import propagate


def found(graph: Graph, start: str | None = None, end: str | None = None) -> Attribution | None:
    structure = Structure(graph)
    return attribute(structure, propagate(structure), start or structure.spine[0], end or structure.spine[-1])


def stacked(graph: Graph):
    structure = Structure(graph)
    return stack(structure, propagate(structure))


# attribution ------------------------------------------------------------------------------------------------------------


def test_a_plain_stack_is_broken_down_to_its_gain_and_the_slope_of_its_activation():
    builder = GraphBuilder(width=256)
    builder.stack(30, "tanh", gain=2.5)
    shares = {share.op: share for share in found(builder.graph).shares}
    assert shares["linear"].factor == pytest.approx(2.5, rel=0.01)
    assert shares["linear"].factor * shares["tanh"].factor == pytest.approx(math.sqrt(chi("tanh", 2.5)), rel=0.02)
    assert {share.count for share in shares.values()} == {30}


def test_the_shares_multiply_to_the_predicted_growth():
    builder = GraphBuilder()
    builder.stack(20, "relu", gain=2.0, norm="layer_norm")
    structure = Structure(builder.graph)
    nodes = predict(structure).nodes
    expected = nodes[structure.spine[0]].backward - nodes[structure.spine[-1]].backward
    assert found(builder.graph).decades == pytest.approx(expected, abs=1e-9)


def test_the_line_reads_as_people_write_it():
    shares = (Share("linear", 2.5, 30), Share("tanh", 0.61, 30))
    assert str(Attribution(shares, 30)) == "linear x2.50, tanh x0.61: +0.18 decades a layer, 30 layers"


def test_what_hardly_matters_is_not_named_and_what_is_rarer_is_counted():
    shares = (Share("reshape", 1.0, 40), Share("linear", 2.0, 20), Share("relu", 0.5, 10), Share("max_pool", 0.2, 3))
    expected = "linear x2.00 (2 a block), relu x0.50, max_pool x0.20 (3 in all): +0.091 decades a block, 10 blocks"
    assert str(Attribution(shares, 10, "block")) == expected


def test_many_operators_are_summed_up_behind_the_four_that_matter_most():
    shares = tuple(Share(f"op{index}", 1.0 + 0.1 * index, 10) for index in range(1, 8))
    text = str(Attribution(shares, 10))
    assert [f"op{index}" in text for index in range(1, 8)] == [False] * 3 + [True] * 4
    assert f"the rest x{1.1 * 1.2 * 1.3:.2f}" in text


def test_a_residual_block_is_one_step():
    builder = GraphBuilder()
    builder.blocks(12, "relu")
    attribution = found(builder.graph)
    assert [share.op for share in attribution.shares] == ["residual sum"]
    assert attribution.shares[0].factor == pytest.approx(math.sqrt(2.0), rel=0.02)  # Fixup: the second moment doubles
    assert (attribution.layers, attribution.unit) == (12, "block")


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = x + layer.self_attn(x, x, x)[0]
            x = x + layer.linear2(torch.relu(layer.linear1(x)))
        return x


def test_attention_blocks_are_told_from_other_residual_sums():
    attribution = found(load((Attends(), (torch.randn(4, 6, 16),)), probe=False).graph_of())
    assert {share.op: share.count for share in attribution.shares} == {"residual attention": 4, "residual sum": 4}
    assert (attribution.layers, attribution.unit) == (4, "block")


def test_a_single_step_unlike_all_others_is_left_out_as_in_sustained_growth():
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, 64), gain=100.0)
    for index in range(10):
        x = builder.op("tanh", builder.linear(x, gain=1.5, module=f"layers.{index}"))
    attribution = found(builder.graph)
    assert next(share for share in attribution.shares if share.op == "linear").factor == pytest.approx(1.5, rel=0.01)


def test_nothing_is_said_where_theory_has_no_rule_or_nothing_repeats():
    builder = GraphBuilder()
    x = builder.stack(6, "tanh", gain=2.0)
    x = builder.op("unknown", x, name="Warp")
    builder.linear(x)
    assert found(builder.graph) is None
    assert found(builder.graph, "x", "tanh5") is not None
    assert found(builder.graph, "x", "linear0") is None
    assert found(builder.graph, "x", "nowhere") is None


def test_the_interval_of_a_stretch_is_that_of_its_own_layers():
    builder = GraphBuilder(width=16)
    builder.stack(30, "relu", gain=math.sqrt(2.0))
    structure = Structure(builder.graph)
    prediction = predict(structure)
    (low, high), (near, far) = (interval(prediction, start, "relu29") for start in ("x", "relu27"))
    assert high - low > 2.0 * (far - near) > 0.0
    assert interval(prediction, "x", "nowhere") is None


# in reports -------------------------------------------------------------------------------------------------------------


def tanh_stack(gain: float, width: int = 64, depth: int = 30) -> nn.Module:
    torch.manual_seed(0)
    layers = []
    for _ in range(depth):
        layer = nn.Linear(width, width)
        nn.init.normal_(layer.weight, std=gain / math.sqrt(width))
        nn.init.zeros_(layer.bias)
        layers += [layer, nn.Tanh()]
    return nn.Sequential(*layers)


def test_the_report_names_operators_and_phase_of_a_stack_that_explodes():
    report = gradlint.check(tanh_stack(3.5), torch.randn(8, 64))
    shares = {share.op: share.factor for share in report.result.attribution.shares}
    assert shares["linear"] == pytest.approx(3.5, rel=0.05)
    assert report.result.stack.phase.name == "chaotic"
    text = report.to("full")
    assert f"due to {report.result.attribution}" in text
    assert str(report.result.attribution).startswith("linear x3.4")  # 3.5 less what a typical draw of 64 units takes off
    assert "phase: chaotic, gain 3.5" in text
    assert "by weight gain" in text
    (target,) = json.loads(report.to("json"))["targets"]
    assert target["growth"]["attribution"][0]["op"] == "linear"
    assert target["phase"]["name"] == "chaotic"
    (growth,) = (finding for finding in report.findings if finding.rule == "GL801")
    assert growth.evidence["attribution"][0]["op"] == "linear"


def test_a_healthy_stack_has_a_phase_and_no_attribution_and_no_picture():
    report = gradlint.check(tanh_stack(1.0), torch.randn(8, 64))
    assert report.result.attribution is None
    assert report.result.stack.phase.name == "critical"
    assert "by weight gain" not in report.to("full")


class Linked(nn.Module):
    """Layers whose weights are all the same matrix: a product that theory, which takes them for independent, gets wrong."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        matrix = torch.randn(32, 32) / math.sqrt(32)
        matrix = matrix + matrix.T
        self.layers = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(16))
        for layer in self.layers:
            layer.weight = nn.Parameter(matrix.clone())

    def forward(self, x):
        for layer in self.layers:
            x = torch.tanh(0.01 * layer(x))
        return x


def test_a_measured_growth_that_theory_does_not_expect_is_not_explained():
    report = gradlint.check(Linked(), torch.randn(8, 32))
    expected, measured = report.result.predicted, report.growth
    assert abs(expected.decades - measured.decades) > expected.interval[1] - expected.decades
    assert report.result.attribution is None
    assert report.result.stack is None


def test_without_a_probe_the_predicted_growth_is_explained():
    report = gradlint.check(tanh_stack(2.5), torch.randn(8, 64), probe=False)
    assert isinstance(report.growth, Growth)
    assert report.result.attribution is not None


# stacks -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "gain", "name"), [("tanh", 2.5, "chaotic"), ("tanh", 0.7, "ordered"), ("relu", math.sqrt(2.0), "critical")]
)
def test_a_plain_stack_has_the_phase_of_its_gain(act, gain, name):
    builder = GraphBuilder(width=512)
    builder.stack(24, act, gain=gain)
    result = stacked(builder.graph)
    assert result.phase.name == name
    assert result.phase.gain == pytest.approx(gain, rel=1e-6)
    assert (result.layers, result.start, result.end) == (24, "linear0", f"{act}23")
    assert result.depth == pytest.approx(2.0 * phase(act, (), gain).gradient_depth)


def test_behind_a_batch_norm_every_gain_is_chaotic():
    builder = GraphBuilder(width=512, batch=256)
    builder.stack(16, "relu", gain=0.6, norm="batch_norm")
    result = stacked(builder.graph)
    assert (result.phase.name, result.phase.norm, result.phase.critical) == ("chaotic", "batch_norm", None)
    assert str(result).startswith("chaotic at any gain behind batch_norm (gain 0.60): e-fold growth every")


def test_an_activation_without_a_critical_gain_is_said_to_have_none():
    builder = GraphBuilder(width=512)
    builder.stack(16, "gelu", gain=0.6)
    assert str(stacked(builder.graph)).startswith("ordered, gain 0.60, no gain is critical: e-fold decay every")


def test_a_bias_that_is_an_operator_of_its_own_belongs_to_the_layer():
    builder = GraphBuilder(width=256)
    x = builder.input(8, 256)
    for _ in range(10):
        x = builder.linear(x, gain=1.2)
        x = builder.op("add", x, None, weights={"bias": builder.weight(256, gain=math.sqrt(0.05))})
        x = builder.op("tanh", x)
    result = stacked(builder.graph)
    assert result.layers == 10
    assert result.phase.bias == pytest.approx(0.05, rel=1e-6)


def _residual() -> GraphBuilder:
    builder = GraphBuilder()
    builder.blocks(12, "relu")
    return builder


def _short() -> GraphBuilder:
    builder = GraphBuilder()
    builder.stack(7, "tanh")
    return builder


def _mixed() -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for index in range(16):
        x = builder.op("tanh" if index % 2 else "relu", builder.linear(x))
    return builder


def _unlike() -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for index in range(16):
        x = builder.op("tanh", builder.linear(x, gain=1.0 + index % 2))
    return builder


def _trained() -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for _ in range(16):
        x = builder.op("tanh", builder.linear(x, weight=builder.weight(64, 64, gain=1.0, mean=0.05)))
    return builder


def _scaled_norm() -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for _ in range(16):
        x = builder.op("layer_norm", builder.linear(x), weights={"scale": builder.weight(64, gain=8.0)})
        x = builder.op("tanh", x)
    return builder


def _norm_behind() -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for _ in range(16):
        x = builder.norm(builder.op("tanh", builder.linear(x, gain=2.0)))
    return builder


@pytest.mark.parametrize("build", [_residual, _short, _mixed, _unlike, _trained, _scaled_norm, _norm_behind])
def test_no_phase_rather_than_a_wrong_one(build):
    assert stacked(build().graph) is None


def test_a_batch_norm_on_stored_statistics_is_no_norm_of_a_phase():
    torch.manual_seed(0)
    layers = [layer for _ in range(12) for layer in (nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU())]
    model = nn.Sequential(*layers)
    x = torch.randn(256, 32)
    assert gradlint.check(model, x).result.stack is not None
    assert gradlint.check(model, x, mode="eval").result.stack is None


def test_a_little_off_criticality_counts_as_near_it_over_few_layers():
    builder = GraphBuilder(width=512)
    builder.stack(10, "relu", gain=1.45)
    assert str(stacked(builder.graph)).startswith("near critical (chaotic), gain 1.45, critical 1.41: e-fold growth every")


def test_a_subject_without_layers_has_neither():
    builder = GraphBuilder()
    builder.op("relu", builder.input(8, 64))
    subject = Subject(builder.graph)
    assert stack(subject.structure, subject.steps) is None
    assert attribute(subject.structure, subject.steps, "x", "relu0") is None
