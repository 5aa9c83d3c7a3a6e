"""What the report says first, on models whose fault is known."""

from __future__ import annotations

import math

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


@pytest.mark.parametrize(("cut", "verdict"), [(torch.round, "untrainable"), (torch.tanh, "healthy")])
def test_a_cut_that_nothing_gets_past_is_no_healthy_model(cut, verdict):
    report = gradlint.check(Cutting(cut), torch.randn(8, 8))
    assert report.verdict == verdict
    assert ("nothing before it can learn" in report.to("full")) is (verdict == "untrainable")


@pytest.mark.parametrize(("batch", "said"), [(4, True), (8, False)])
def test_a_batch_norm_that_sees_few_values_is_noted_in_train_mode(batch, said):
    module = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    for mode in ("train", "eval"):
        result = gradlint.check(Target(module, (torch.randn(batch, 8),)), mode=mode).result
        found = [f for f in result.findings if f.rule == "GL304"]
        assert [(f.severity, f.evidence["values"]) for f in found] == [("note", batch)] * (said and mode == "train")


def test_a_spatial_map_counts_towards_the_values_of_a_channel():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    report = gradlint.check(module, torch.randn(2, 3, 8, 8))
    assert "GL304" not in {finding.rule for finding in report.findings}


def test_a_batch_norm_on_a_single_value_is_a_warning_and_lets_no_gradient_through():
    """As ONNX has it; torch refuses to run one. The output is the bias, and the gradient of what comes before is zero."""
    weights = {name: np.ones(4, np.float32) for name in ("scale", "bias", "mean", "variance")}
    weights["w"] = np.eye(4, dtype=np.float32)[:, :, None, None] + 0.1
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"]),
        helper.make_node("BatchNormalization", ["h", "scale", "bias", "mean", "variance"], ["y"]),
    ]
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 4, 1, 1]) for name in "xy")
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    model = helper.make_model(helper.make_graph(nodes, "g", [x], [y], held), opset_imports=[helper.make_opsetid("", 18)])
    report = gradlint.check(model, mode="train").result
    assert [f.severity for f in report.findings if f.rule == "GL304"] == ["warning"]
    assert report.verdict == "untrainable"
    assert not [f for f in gradlint.check(model, mode="eval").findings if f.rule == "GL304"]


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


# verdicts of the theory -------------------------------------------------------------------------------------------------


class PostNorm(nn.Module):
    """`depth` blocks norm(x + sigmoid(W x))."""

    def __init__(self, depth: int, norm) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(depth))
        self.norms = nn.ModuleList(norm(64) for _ in range(depth))
        for layer in self.layers:
            nn.init.orthogonal_(layer.weight)

    def forward(self, x):
        for layer, norm in zip(self.layers, self.norms, strict=True):
            x = norm(x + torch.sigmoid(layer(x)))
        return x


class Residual(nn.Module):
    """`depth` blocks skip(x) + branch(x) of orthogonal weights: the last weight of a branch has gain `last`."""

    def __init__(self, depth: int, last: float, skip=None, norm: bool = False) -> None:
        super().__init__()
        self.skip = skip or (lambda x: x)
        self.branches = nn.ModuleList(
            nn.Sequential(*([nn.LayerNorm(64)] if norm else []), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
            for _ in range(depth)
        )
        for branch in self.branches:
            nn.init.orthogonal_(branch[-3].weight, gain=2.0**0.5)
            nn.init.orthogonal_(branch[-1].weight, gain=last)

    def forward(self, x):
        for branch in self.branches:
            x = self.skip(x) + branch(x)
        return x


def chain(depth, act, init):
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(64, 64), act())]
    for layer in layers[::2]:
        init(layer.weight)
        nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers, nn.Linear(64, 10))


def drawn(depth, last, **options):
    torch.manual_seed(0)
    return Residual(depth, last, **options)


MODELS = {
    "relu, He": (lambda: chain(20, nn.ReLU, nn.init.kaiming_normal_), "healthy", None),
    "relu, Glorot": (lambda: chain(20, nn.ReLU, nn.init.xavier_uniform_), "healthy", "GL102"),
    "relu, tiny": (lambda: chain(20, nn.ReLU, lambda w: nn.init.normal_(w, 0.0, 0.05)), "vanishes", "GL102"),
    "tanh, large": (lambda: chain(60, nn.Tanh, lambda w: nn.init.orthogonal_(w, gain=3.0)), "explodes", "GL101"),
    "sigmoid": (lambda: chain(20, nn.Sigmoid, nn.init.xavier_uniform_), "vanishes", "GL402"),
    "sums as large as their skips": (lambda: drawn(30, 1.0), "explodes", "GL202"),
    "sums held by a norm": (lambda: drawn(30, 1.0, norm=True), "healthy", None),
    "sums scaled down": (lambda: drawn(30, 0.1), "healthy", None),
    "branches larger than their skips": (lambda: drawn(10, 3.0), "explodes", "GL203"),
    "large branches held by a norm": (lambda: drawn(30, 3.0, norm=True), "healthy", None),
    "skips that shrink": (lambda: drawn(30, 0.2, skip=lambda x: 0.7 * x), "vanishes", "GL204"),
    "skips that grow": (lambda: drawn(30, 0.2, skip=lambda x: 1.4 * x), "explodes", "GL204"),
    "RMSNorm behind sums": (lambda: PostNorm(40, nn.RMSNorm), "vanishes", "GL303"),
    "LayerNorm behind sums": (lambda: PostNorm(40, nn.LayerNorm), "healthy", None),
    "skips through tanh": (lambda: drawn(30, 0.2, skip=torch.tanh), "healthy", None),
}


@pytest.mark.parametrize(("make", "verdict", "rule"), MODELS.values(), ids=MODELS)
def test_theory_alone_gives_the_verdict_of_the_probe_and_names_the_same_cause(make, verdict, rule):
    x = torch.randn(32, 64, generator=torch.Generator().manual_seed(0))
    measured, predicted = gradlint.check(make(), x).result, gradlint.check(make(), x, probe=False).result
    assert measured.verdict == predicted.verdict == verdict
    for report in (measured, predicted):
        causes = [f.rule for f in report.findings if f.confidence != "refuted" and f.effect is not None]
        assert (causes[:1] == [rule]) if rule else not causes
    low, high = predicted.predicted.interval or (predicted.predicted.decades - 0.5, predicted.predicted.decades + 0.5)
    assert low - 0.5 <= measured.growth.decades <= high + 0.5


def test_theory_alone_is_unsure_of_weights_that_look_trained():
    """Heavy tails come from training: what such weights have to do with one another is not in their statistics."""
    torch.manual_seed(0)
    heavy, width = torch.distributions.StudentT(3.0), {}

    def trained(weight):
        with torch.no_grad():
            weight.copy_(heavy.sample(weight.shape) * (1.2 / 3.0 / weight.shape[1]) ** 0.5)

    for name, init in (("trained", trained), ("drawn", lambda w: nn.init.normal_(w, 0.0, (1.2 / w.shape[1]) ** 0.5))):
        model, x = chain(20, nn.ReLU, init), torch.randn(32, 64)
        assert gradlint.check(model, x).verdict == "healthy"
        report = gradlint.check(model, x, probe=False).result
        assert report.verdict == {"trained": "unknown", "drawn": "healthy"}[name]
        width[name] = report.predicted.interval[1] - report.predicted.interval[0]
    assert width["trained"] > 2.0 * width["drawn"]


# attention ---------------------------------------------------------------------------------------------------------------


class Attention(nn.Module):
    def __init__(self, scale: float, *, fused: bool) -> None:
        super().__init__()
        self.project, self.head, self.scale, self.fused = nn.Linear(64, 192), nn.Linear(64, 4), scale, fused
        nn.init.normal_(self.project.weight, 0.0, 1 / 8)

    def forward(self, x):
        q, k, v = self.project(x).chunk(3, -1)
        if self.fused:
            return self.head(nn.functional.scaled_dot_product_attention(q, k, v, scale=self.scale))
        return self.head(torch.softmax(self.scale * q @ k.transpose(1, 2), -1) @ v)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("probe", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1 / 8])
def test_unscaled_attention_is_found_with_the_deviation_that_its_logits_have(scale, probe, fused):
    torch.manual_seed(0)
    model, x = Attention(scale, fused=fused), torch.randn(8, 32, 64)
    q, k, _ = model.project(x).chunk(3, -1)
    real = (scale * q @ k.transpose(1, 2)).std(-1).square().mean().sqrt().item()
    found = [f for f in gradlint.check(model, x, probe=probe).findings if f.rule == "GL404"]
    assert bool(found) is (scale == 1.0)
    assert [f.evidence["deviation"] for f in found] == pytest.approx([real] * len(found), rel=0.1)


# theory against the probe ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tied", [True, False])
def test_layers_that_all_have_the_same_symmetric_weight_are_no_random_ones(tied):
    """Independent weights of gain 1 keep a gradient; the twelfth power of a symmetric one has mean square Catalan(12)."""
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(12)])
    with torch.no_grad():
        for layer in model:
            noise = torch.randn(256, 256, generator=torch.Generator().manual_seed(0) if tied else None)
            layer.weight.copy_((noise + noise.T) / (2.0 * 256) ** 0.5)
    report = gradlint.check(model, torch.randn(32, 256)).result
    found = [f for f in report.findings if f.rule == "GL903"]
    assert [(f.severity, f.confidence) for f in found] == [("note", "measured")] * tied
    catalan = math.comb(24, 12) / 13
    for finding in found:
        assert finding.evidence["measured"] == pytest.approx(0.5 * math.log10(catalan), abs=0.15)
        assert finding.evidence["predicted"] == pytest.approx(0.0, abs=0.05)
        assert "its weight" in finding.remedy.summary


def test_a_loss_of_outputs_that_are_cut_off_is_a_verdict_and_no_mistake_of_the_user():
    class Cut(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 4)

        def forward(self, x):
            return self.layer(x).detach()

    task = {"loss": nn.functional.cross_entropy, "target": torch.zeros(8, dtype=torch.int64)}
    for more in ({}, {"recipe": "adam lr=1e-3"}):
        report = gradlint.check(Cut(), torch.randn(8, 8), seeds=1, **task, **more)
        assert (report.verdict, report.score) == ("untrainable", 0)
        assert any("the loss does not depend on the model's weights" in note for note in report.result.notes)
