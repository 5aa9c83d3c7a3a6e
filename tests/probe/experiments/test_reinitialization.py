"""Chaotic networks against mis-scaled ones, redraws of the weights, and how many seeds a verdict takes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import gradlint
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.growth import LIMIT
from gradlint.probe import jacobian
from gradlint.probe.experiments import reinitialization
from gradlint.probe.measure import measure
from gradlint.process.messages import pack, unpack
from gradlint.result import Growth, Measurement


class Sine(nn.Module):
    def forward(self, x):
        return torch.sin(x)


def stack(depth, width, gain, act, norm=None):
    layers = []
    for _ in range(depth):
        layers += [nn.Linear(width, width), *([norm(width)] if norm else []), act()]
        nn.init.normal_(layers[-2 - bool(norm)].weight, 0.0, gain / width**0.5)
    return nn.Sequential(*layers, nn.Linear(width, 10))


HE = math.sqrt(2.0)
MIS_SCALED = {
    "relu x2": (30, 128, 2.0 * HE, nn.ReLU),
    "relu x1.5": (30, 128, 1.5 * HE, nn.ReLU),
    "linear x2": (20, 128, 2.0, nn.Identity),
    "gelu x2": (30, 128, 3.0, nn.GELU),
    "elu x2": (30, 128, 2.0, nn.ELU),
    "leaky relu x2": (30, 128, 2.5, nn.LeakyReLU),
}
CHAOTIC = {
    "tanh gain 3": (40, 128, 3.0, nn.Tanh),
    "tanh gain 2.5": (50, 128, 2.5, nn.Tanh),
    "sine gain 3": (30, 128, 3.0, Sine),
    "BatchNorm, ReLU, no skip": (60, 128, HE, nn.ReLU, nn.BatchNorm1d),
}


def findings(arguments):
    torch.manual_seed(0)
    report = gradlint.check(stack(*arguments), torch.randn(16, arguments[1]), seeds=2)
    assert report.verdict == "explodes"
    return {f.rule: f for f in report.findings if f.confidence is not gradlint.Confidence.REFUTED}


@pytest.mark.parametrize("arguments", MIS_SCALED.values(), ids=MIS_SCALED)
def test_a_mis_scaled_network_is_not_called_chaotic_and_is_to_be_scaled(arguments):
    found = findings(arguments)
    assert "GL803" not in found
    assert "only the scale is wrong" in found["GL801"].remedy.summary
    assert found["GL801"].evidence["relative_decades"] < 0.15 * found["GL801"].decades


@pytest.mark.parametrize("arguments", CHAOTIC.values(), ids=CHAOTIC)
def test_a_chaotic_network_is_called_so_and_is_to_get_skips(arguments):
    found = findings(arguments)
    assert found["GL803"].severity is gradlint.Severity.ERROR
    assert found["GL803"].evidence["share"] > 0.9
    assert "skip connections" in found["GL803"].remedy.summary
    assert "only the scale" not in found["GL801"].remedy.summary
    assert ("lower the weight gain" in found["GL803"].remedy.summary) == (len(arguments) == 4)


def test_chaos_is_what_the_relative_gain_says_it_is():
    """Two inputs that hardly differ are driven apart by 10^relative; a mis-scaled network keeps them together."""
    for arguments, factor in ((CHAOTIC["sine gain 3"], 1e5), (MIS_SCALED["relu x2"], 10.0)):
        torch.manual_seed(0)
        module = stack(*arguments).double()
        x, step = torch.randn(16, 128).double(), torch.randn(16, 128).double()
        with torch.no_grad():
            y, moved = module(x), module(x + 1e-12 * step)
        apart = float((moved - y).norm() / y.norm()) / 1e-12
        assert (apart > 1e5) == (factor == 1e5)
        assert apart < 10.0 or factor == 1e5


# redraws ----------------------------------------------------------------------------------------------------------------


def test_redraws_are_other_draws_of_the_same_distribution_and_leave_no_trace():
    """torch's default tanh stack decays by itself: its growth under other seeds is what building it anew under them shows."""
    torch.manual_seed(0)
    module = nn.Sequential(*[layer for _ in range(14) for layer in (nn.Linear(64, 64), nn.Tanh())], nn.Linear(64, 4))
    x = torch.randn(16, 64)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    found = measure(TorchRunnable(module, (), args=(x,)))
    assert abs(abs(found.growth.decades) - LIMIT) <= reinitialization.NEAR
    assert found.redraws is not None
    assert len(set(found.redraws.growths)) == reinitialization.DRAWS
    assert found.redraws.median == pytest.approx(found.growth.decades, abs=0.5)
    assert found.redraws.spread < 0.5
    assert any("drawn anew" in note for note in found.notes)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert unpack(Measurement, pack(found)).redraws == found.redraws


def test_healthy_growth_is_not_redrawn():
    found = measure(TorchRunnable(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 4))))
    assert found.redraws is None


def test_weights_that_were_drawn_in_another_way_are_not_redrawn():
    module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 64))
    assert reinitialization.redraw(module, 1)
    nn.init.orthogonal_(module[0].weight)
    assert not reinitialization.redraw(module, 2)


class Owner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4))


def tied():
    first, second = nn.Linear(8, 8), nn.Linear(8, 8)
    second.weight = first.weight
    return nn.Sequential(first, second)


@pytest.mark.parametrize("build", [tied, Owner, nn.ReLU, lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))])
def test_modules_that_cannot_draw_every_weight_again_are_left(build):
    assert not reinitialization.can_redraw(build())
    assert reinitialization.can_redraw(nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.LSTM(4, 4)))


# seeds ------------------------------------------------------------------------------------------------------------------


def wide(decades, spread):
    return Measurement(gains={}, spine=(), trunk=(), growth=Growth(decades, spread=spread), seeds=2)


@pytest.mark.parametrize(
    ("decades", "spread", "open_"),
    [(3.3, 0.3, True), (-3.6, 0.2, True), (3.55, None, True), (3.0, 0.3, False), (3.9, None, False), (0.0, 1.0, False)],
)
def test_a_verdict_is_open_where_the_seeds_lie_on_both_sides_of_the_limit(decades, spread, open_):
    assert jacobian._is_undecided(wide(decades, spread)) is open_


def near_the_limit():
    """A chain of orthogonal layers, 0.1 decades each, of which the largest step is left out: just on the limit."""
    module = nn.Sequential(*[nn.Linear(32, 32, bias=False) for _ in range(36)])
    for layer in module:
        nn.init.orthogonal_(layer.weight, gain=10**0.1)
    return module


def test_more_seeds_are_drawn_near_the_limit_up_to_a_bound_and_the_report_says_so():
    torch.manual_seed(0)
    found = measure(TorchRunnable(near_the_limit()), seeds=1)
    assert found.growth.decades == pytest.approx(LIMIT, abs=1e-3)
    assert 1 < found.seeds <= jacobian.MOST_SEEDS
    assert any("near the limit" in note for note in found.notes)


def test_far_from_the_limit_no_more_seeds_are_drawn():
    torch.manual_seed(0)
    found = measure(TorchRunnable(near_the_limit()[:20]), seeds=2)
    assert found.seeds == 2
    assert not any("more seeds" in note for note in found.notes)


def test_a_finding_near_the_limit_says_so():
    class Wavering(nn.Module):
        """Growth that depends on the input: 3 to 4 decades."""

        def __init__(self) -> None:
            super().__init__()
            self.layers = near_the_limit()

        def forward(self, x):
            factor = float(1.01 + 0.03 * x[0, 1].detach().clamp(-1.0, 1.0))
            for layer in self.layers:
                x = factor * layer(x)
            return x

    torch.manual_seed(0)
    report = gradlint.check(Wavering())
    assert report.result.seeds == jacobian.MOST_SEEDS
    assert report.growth.spread > 0.3
    assert report.growth.decades >= LIMIT
    (finding,) = [finding for finding in report.findings if finding.rule == "GL801"]
    assert f"near the limit of {LIMIT}" in finding.message
    assert f"{jacobian.MOST_SEEDS} seeds" in finding.message
