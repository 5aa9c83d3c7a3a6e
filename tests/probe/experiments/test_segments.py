"""Jacobians of segments against torch.autograd.functional.jacobian and its singular values."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import gradlint
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.probe.experiments import segments
from gradlint.probe.experiments.segments import segment
from gradlint.probe.measure import measure
from gradlint.process.messages import pack, unpack
from gradlint.result import Measurement


def between(module, x, start, end, mode="eval", **options):
    """The segment between the nodes at two positions of the graph."""
    runnable = TorchRunnable(module, (), args=(x,), mode=mode)
    with runnable.untouched(), torch.enable_grad():
        runnable.forward([x.numpy()])
        nodes = [node.id for node in runnable.graph]
        return segment(runnable, nodes[start], nodes[end], **options)


def exact(function, x):
    jacobian = torch.autograd.functional.jacobian(function, x)
    matrix = jacobian.reshape(-1, x.numel()).double()
    return float(matrix.norm()), torch.linalg.svdvals(matrix)


def stack(depth, width, act, gain=1.5):
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), act())]
    for layer in layers[::2]:
        nn.init.normal_(layer.weight, 0.0, gain / width**0.5)
    return nn.Sequential(*layers)


@pytest.mark.parametrize("act", [nn.Tanh, nn.ReLU, nn.GELU])
@pytest.mark.parametrize(("depth", "width", "batch"), [(1, 4, 1), (3, 8, 2), (6, 16, 2), (10, 32, 1), (20, 64, 4)])
def test_frobenius_norm_and_largest_singular_value_are_those_of_the_whole_jacobian(depth, width, batch, act):
    torch.manual_seed(depth)
    module, x = stack(depth, width, act), torch.randn(batch, width)
    found = between(module, x, 0, -1)
    frobenius, values = exact(module, x)
    assert found.frobenius == pytest.approx(frobenius, rel=0.01)
    assert found.largest == pytest.approx(float(values[0]), rel=1e-3)
    assert not found.by_differences


def test_a_segment_is_what_lies_between_its_ends():
    torch.manual_seed(0)
    module, x = stack(6, 12, nn.Tanh), torch.randn(1, 12)
    found = between(module, x, 4, 8)
    frobenius, values = exact(module[4:8], module[:4](x).detach())
    assert (found.inside, found.outside) == (12, 12)
    assert (found.frobenius, found.largest) == pytest.approx((frobenius, float(values[0])), rel=1e-4)


def test_condition_is_exact_where_every_direction_was_reached_and_a_lower_bound_elsewhere():
    torch.manual_seed(0)
    small, x = stack(2, 6, nn.Tanh), torch.randn(1, 6)
    values = exact(small, x)[1]
    assert between(small, x, 0, -1).condition == pytest.approx(float(values[0] / values[-1]), rel=1e-3)
    large, x = stack(2, 48, nn.Tanh), torch.randn(1, 48)
    values = exact(large, x)[1]
    found = between(large, x, 0, -1)
    assert found.steps == segments.STEPS
    assert 1.0 < found.condition <= float(values[0] / values[-1])


def test_writes_in_place_and_samples_that_interact_are_followed():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 6), nn.BatchNorm1d(6), nn.ReLU(inplace=True), nn.Linear(6, 6), nn.ReLU(inplace=True))
    x = torch.randn(4, 6)
    frobenius, values = exact(module.train(), x)
    found = between(module, x, 0, -1, mode="train")
    assert (found.frobenius, found.largest) == pytest.approx((frobenius, float(values[0])), rel=1e-3)
    behind = module[:3](x).detach()
    frobenius, values = exact(nn.Sequential(module[3], nn.ReLU()), behind)
    found = between(module, x, 3, -1, mode="train")
    assert (found.frobenius, found.largest) == pytest.approx((frobenius, float(values[0])), rel=1e-3)


class Once(torch.autograd.Function):
    """A tanh without a second derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y * y)


class OnceTanh(nn.Module):
    def forward(self, x):
        return Once.apply(x)


def test_without_a_second_derivative_products_are_taken_by_differences():
    torch.manual_seed(0)
    module, x = stack(3, 12, OnceTanh), torch.randn(2, 12)
    found = between(module, x, 0, -1)
    reference = nn.Sequential(*[nn.Tanh() if isinstance(layer, OnceTanh) else layer for layer in module])
    frobenius, values = exact(reference, x)
    assert found.by_differences
    assert found.frobenius == pytest.approx(frobenius, rel=0.01)
    assert found.largest == pytest.approx(float(values[0]), rel=0.01)


def test_attention_is_followed():
    torch.manual_seed(0)
    module = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    x = torch.randn(1, 3, 8)
    found = between(module, x, 0, -1, mode="train")
    frobenius, values = exact(module, x)
    assert (found.frobenius, found.largest) == pytest.approx((frobenius, float(values[0])), rel=0.01)


def test_nodes_that_do_not_reach_one_another_have_no_segment():
    module, x = stack(3, 4, nn.Tanh), torch.randn(1, 4)
    assert between(module, x, 4, 2) is None


def test_a_finding_about_growth_has_the_jacobian_of_its_segment():
    torch.manual_seed(0)
    module, x = stack(30, 32, nn.ReLU, gain=2.5), torch.randn(4, 32)
    report = gradlint.check(module, x)
    (finding,) = [finding for finding in report.findings if finding.rule == "GL801"]
    norms = finding.evidence["jacobian"]
    assert math.log10(norms["frobenius"]) > 0.8 * finding.decades
    assert norms["largest"] <= norms["frobenius"] * (1.0 + 1e-6)
    assert '"stable_rank"' in report.to("json")


def test_growth_that_is_no_cause_for_concern_has_no_segment():
    assert measure(TorchRunnable(stack(3, 16, nn.Tanh, gain=1.0)), seeds=1).segments == ()


def test_segments_survive_the_way_between_processes():
    torch.manual_seed(0)
    found = measure(TorchRunnable(stack(20, 32, nn.ReLU, gain=2.5)), seeds=1)
    assert len(found.segments) == 1
    assert unpack(Measurement, pack(found)).segments == found.segments
