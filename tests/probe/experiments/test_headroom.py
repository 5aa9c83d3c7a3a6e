"""What half precision holds of a training step, against torch's own casts."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from gradlint import Recipe, Severity, check
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.probe.experiments.numerics import exponent_histogram
from gradlint.probe.measure import measure
from gradlint.process.messages import pack, unpack
from gradlint.recipe import Task
from gradlint.result import Measurement


class Scaled(nn.Module):
    """An MLP whose hidden activations are multiplied, and whose loss is divided, by given factors."""

    def __init__(self, hidden=1.0, out=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)
        self.hidden, self.out = hidden, out

    def forward(self, x):
        return self.second(self.first(x).relu() * self.hidden / self.hidden) * self.out


def findings(model, precision="fp16", **settings):
    torch.manual_seed(1)
    recipe = Recipe(precision=precision, **settings)
    target = torch.randn(32, 4)
    report = check(
        model, torch.randn(32, 8), loss=F.mse_loss, target=target, recipe=recipe, select=["GL605"], rehearse=0, seeds=1
    )
    assert not [note for note in report.result.notes if "headroom" in note]
    return report.findings


def test_a_healthy_step_has_headroom():
    assert not findings(Scaled(), loss_scale=1024.0)


@pytest.mark.parametrize(("factor", "severity"), [(3e3, None), (2e4, Severity.WARNING), (1e6, Severity.ERROR)])
def test_activations_are_held_against_the_largest_number(factor, severity):
    assert {finding.severity for finding in findings(Scaled(hidden=factor), loss_scale=1024.0)} == (
        {severity} if severity else set()
    )


def test_gradients_that_overflow_at_the_loss_scale_are_an_error():
    (finding,) = findings(Scaled(out=300.0), loss_scale=2.0**24)
    assert finding.severity is Severity.ERROR
    assert finding.evidence["best_scale"] < 2.0**24


def test_gradients_that_vanish_without_loss_scaling_are_told_with_the_scale_that_saves_them():
    (finding,) = findings(Scaled(out=1e-7))
    assert finding.severity is Severity.WARNING
    assert finding.evidence["lost"] > 0.5
    assert finding.evidence["saved"] < 0.05
    assert not findings(Scaled(out=1e-7), loss_scale=finding.evidence["best_scale"] / 4)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_formats_with_the_range_of_float32_are_not_looked_at(precision):
    assert not findings(Scaled(hidden=1e6, out=1e-6), precision)


def test_the_share_that_is_lost_is_what_a_cast_loses():
    gradient = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 1e-7
    for scale in (1.0, 4.0, 64.0):
        flushed = float(((gradient * scale).half() == 0).float().mean())
        assert exponent_histogram(gradient).lost(2.0**-24, scale) == pytest.approx(flushed, abs=0.01)


def test_weight_gradients_are_those_of_the_loss():
    model = Scaled()
    torch.manual_seed(1)
    x, target = torch.randn(32, 8), torch.randn(32, 4)
    task = Task(F.mse_loss, target, Recipe(precision="fp16"), 0)
    found = measure(TorchRunnable(model, args=(x,)), seeds=1, task=task).headroom
    F.mse_loss(model(x), target).backward()
    for name, weight in model.named_parameters():
        largest = float(weight.grad.abs().max())
        assert found.weights[name].gradient == pytest.approx(largest)
    assert found.nodes["first:linear"].activation == pytest.approx(model.first(x).abs().max().item())


def test_what_was_measured_survives_the_way_between_processes():
    model, x, target = Scaled(), torch.randn(32, 8), torch.randn(32, 4)

    def by_hand(output, wanted):
        return (wanted * output.sigmoid().log()).sum()

    task = Task(by_hand, target, Recipe(precision="fp16"), 0)
    found = measure(TorchRunnable(model, args=(x,)), seeds=1, task=task)
    again = unpack(Measurement, pack(found))
    assert found.suspects
    assert (again.ranges, again.suspects, again.headroom) == (found.ranges, found.suspects, found.headroom)
