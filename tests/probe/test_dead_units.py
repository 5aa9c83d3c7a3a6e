"""Dead and constant units against direct counts, and gradients that are zero by construction told as what they are."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

import gradlint
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.probe.measure import measure
from gradlint.process.messages import pack, unpack
from gradlint.result import Measurement


def probe(module, *args, **options):
    return measure(TorchRunnable(module, (), args=args), **options)


def mlp(depth, width, *, bias=0.0, act=nn.ReLU, gain=2**0.5):
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), act()]
        nn.init.normal_(layers[-2].weight, 0.0, gain / width**0.5)
        nn.init.constant_(layers[-2].bias, bias)
    return nn.Sequential(*layers, nn.Linear(width, 4))


def errors_and_warnings(report):
    found = (f for f in report.findings if f.confidence is not gradlint.Confidence.REFUTED)
    return {f.rule for f in found if f.severity is not gradlint.Severity.NOTE}


def counted(module, x, index, axis):
    """Share of units whose slope is zero for the whole batch, from the gradient of a sum with respect to what the layer reads."""
    with torch.no_grad():
        before = module[:index](x)
    before = before.requires_grad_()
    module[index](before).sum().backward()
    others = [dim for dim in range(before.ndim) if dim != axis]
    return float((before.grad.abs().amax(others) == 0.0).double().mean())


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Sigmoid, nn.Tanh, nn.Hardsigmoid])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_dead_share_is_that_of_units_whose_slope_is_zero_for_the_whole_batch(act, scale):
    torch.manual_seed(1)
    module = nn.Sequential(nn.Linear(16, 200), act(), nn.Linear(200, 2))
    nn.init.normal_(module[0].weight, 0.0, 0.25 * scale)
    nn.init.normal_(module[0].bias, -1.0 * scale, 1.0 * scale)
    x = torch.randn(6, 16)
    (units,) = probe(module, x, seeds=1).units
    assert (units.count, units.samples) == (200, 6)
    assert units.dead == units.always == pytest.approx(counted(module, x, 1, 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_units_of_a_convolution_are_its_channels(dtype):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)).to(dtype)
    x = torch.randn(4, 3, 8, 8).to(dtype)
    module(x)
    with torch.no_grad():
        module[0].bias[:10] = -50.0
    (units,) = probe(module, x, seeds=2).units
    assert (units.count, units.samples) == (24, 4 * 6 * 6)
    assert units.always == pytest.approx(10 / 24) == counted(module.float(), x.float(), 1, 1)


def test_units_of_tokens_are_their_features():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8))
    nn.init.constant_(module[0].bias[:5], -50.0)
    with torch.no_grad():
        module[0].bias[:5] = -50.0
    (units,) = probe(module, torch.randn(4, 7, 8)).units
    assert (units.count, units.samples) == (32, 28)
    assert units.always == pytest.approx(5 / 32)


def test_always_counts_units_that_are_dead_in_every_seed():
    torch.manual_seed(0)
    module = TorchRunnable(mlp(1, 64, bias=-1.5))
    found = measure(module, seeds=3).units[0]
    assert 0.0 < found.always < found.dead


def test_constant_units_need_not_be_dead():
    module = nn.Sequential(nn.Linear(8, 20), nn.ReLU(), nn.Linear(20, 2))
    with torch.no_grad():
        module[0].weight[:5] = 0.0
        module[0].bias[:5] = 1.0
    (units,) = probe(module, torch.randn(16, 8)).units
    assert units.constant >= 0.25
    assert units.dead < 0.25


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("depth", "width"), [(3, 64), (10, 32), (30, 64), (30, 16), (20, 256)])
def test_he_initialized_networks_are_silent_however_alike_their_samples(depth, width, seed):
    torch.manual_seed(seed)
    assert "GL403" not in {finding.rule for finding in gradlint.check(mlp(depth, width), seeds=2).findings}


def test_a_large_negative_bias_is_an_error_that_names_it():
    torch.manual_seed(0)
    report = gradlint.check(nn.Sequential(*mlp(1, 128, bias=-4.0)[:2], nn.Linear(128, 4)), torch.randn(8, 128))
    (finding,) = [finding for finding in report.findings if finding.rule == "GL403"]
    assert finding.severity is gradlint.Severity.ERROR
    assert "biases have a mean of -4" in finding.message
    assert finding.evidence["share"] > 0.9


def test_a_trained_model_on_drawn_inputs_is_left_alone():
    torch.manual_seed(0)
    module = mlp(1, 128, bias=-4.0)
    spectrum = np.diag(np.linspace(6.0, 0.001, 128)).astype(np.float32)  # no draw of independent numbers
    with torch.no_grad():
        module[0].weight.copy_(torch.from_numpy(spectrum))
    assert "GL403" not in {finding.rule for finding in gradlint.check(module).findings}


# zero by construction ---------------------------------------------------------------------------------------------------


class Branch(nn.Module):
    def __init__(self, body, scale=None) -> None:
        super().__init__()
        self.body = body
        self.scale = nn.Parameter(scale) if scale is not None else None

    def forward(self, x):
        branch = self.body(x)
        return x + (branch if self.scale is None else self.scale * branch)


def zero_gamma():
    blocks = []
    for _ in range(6):
        norm = nn.BatchNorm2d(8)
        nn.init.zeros_(norm.weight)
        convs = (nn.Conv2d(8, 8, 3, padding=1, bias=False) for _ in range(2))
        blocks += [Branch(nn.Sequential(next(convs), nn.BatchNorm2d(8), nn.ReLU(), next(convs), norm)), nn.ReLU()]
    return nn.Sequential(nn.Conv2d(3, 8, 3), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)), (8, 3, 12, 12)


def layer_scale():
    bodies = (nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16)) for _ in range(8))
    return nn.Sequential(nn.Linear(4, 16), *[Branch(body, torch.zeros(16)) for body in bodies], nn.Linear(16, 3)), (8, 4)


def rezero():
    bodies = (nn.Sequential(nn.Linear(16, 16), nn.Tanh()) for _ in range(8))
    return nn.Sequential(nn.Linear(4, 16), *[Branch(body, torch.zeros(1)) for body in bodies], nn.Linear(16, 3)), (8, 4)


def zero_head():
    head = nn.Linear(16, 3)
    nn.init.zeros_(head.weight)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), head), (8, 4)


def bias_before_norm():
    layers = [(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(*[layer for group in layers for layer in group], nn.Linear(16, 3)), (16, 16)


CASES = {
    "zero-initialized branch": (zero_gamma, layer_scale, rezero),
    "zero-initialized head": (zero_head,),
    "bias before a norm": (bias_before_norm,),
}


@pytest.mark.parametrize(("cause", "build"), [(cause, build) for cause, builds in CASES.items() for build in builds])
def test_what_is_zero_by_construction_is_named_and_never_called_vanishing(cause, build):
    torch.manual_seed(0)
    module, shape = build()
    x = torch.randn(shape)
    report = gradlint.check(module, x)
    assert report.verdict == "healthy"
    assert not errors_and_warnings(report)
    (note,) = [finding for finding in report.findings if finding.rule == "GL806"]
    assert note.evidence["cause"] == cause
    module(x).square().sum().backward()
    gradients = {name: float(weight.grad.abs().max()) for name, weight in module.named_parameters()}
    largest = max(gradients.values())
    assert set(note.evidence["idle"]) == {name for name, size in gradients.items() if size <= 1e-5 * largest}


def test_a_bias_before_a_norm_in_eval_mode_is_not_idle():
    module, shape = bias_before_norm()
    assert measure(TorchRunnable(module, (), args=(torch.randn(shape),), mode="eval")).idle == ()


def test_a_dead_activation_is_not_excused_as_zero_by_construction():
    module = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    nn.init.constant_(module[0].bias, -100.0)
    found = probe(module, torch.randn(8, 4))
    assert found.idle == ()
    assert found.dead or found.cuts


def test_units_and_idle_weights_survive_the_way_between_processes():
    module, shape = zero_gamma()
    found = probe(module, torch.randn(shape), seeds=1)
    again = unpack(Measurement, pack(found))
    assert found.units
    assert found.idle
    assert (again.units, again.idle, again.inputs) == (found.units, found.idle, found.inputs)
