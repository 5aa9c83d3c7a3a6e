"""Phases of stacks of one repeated layer: against wide networks that are really run, and against the literature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from gradlint.theory.gaussian.integrals import chi, moments, parameters
from gradlint.theory.reading.phase import correlation_map, critical_point, phase
from tests.models.finite_width import batch_norm_growth, decades_deviation, fourth_moment, largest_singular_value
from tests.models.schemes import deepnet, fixup

WIDTH = 500


def stack(act, gain, depth, *, bias=0.0, norm=None, width=WIDTH, seed=0):
    generator = torch.Generator().manual_seed(seed)
    layers = []
    for _ in range(depth):
        linear = nn.Linear(width, width)
        nn.init.normal_(linear.weight, std=gain / width**0.5, generator=generator)
        nn.init.normal_(linear.bias, std=bias**0.5, generator=generator)
        layers += [linear, norm(width) if norm else nn.Identity(), act]
    return nn.ModuleList(layers)


@torch.no_grad()
def settled(layers, first, second):
    """Variance and correlation of pre-activations behind the last layer of weights, of two inputs."""
    h = torch.stack([first, second])
    for index, layer in enumerate(layers):
        h = layer(h)
        if index % 3 == 1:
            z = h
    return (z**2).mean().item(), (z[0] @ z[1] / (z[0].norm() * z[1].norm())).item()


# values -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("square", "expected", "name"),
    [(0.5, 0.43199, "ordered"), (1.76, 0.99980, "critical"), (4.0, 1.34240, "chaotic"), (9.0, 1.85136, "chaotic")],
)
def test_phases_of_tanh_with_bias_variance_0_05(square, expected, name):  # Schoenholz 2017
    found = phase("tanh", (), math.sqrt(square), 0.05)
    assert found.chi == pytest.approx(expected, rel=1e-4)
    assert found.name == name
    assert found.critical == pytest.approx(1.327010, abs=1e-5)
    assert found.decades == pytest.approx(0.5 * math.log10(expected), abs=1e-4)


def test_depth_scale_of_the_ordered_phase_is_that_of_chi():
    found = phase("tanh", (), 1.0, 0.05)
    assert found.correlation == 1.0
    assert found.depth == pytest.approx(-1.0 / math.log(found.chi))
    assert found.gradient_depth == pytest.approx(found.depth)


@pytest.mark.parametrize(("gain", "bias"), [(0.8, 0.05), (1.5, 0.05), (3.0, 0.05), (2.0, 0.3)])
def test_tanh_networks_settle_at_the_predicted_variance_and_correlation(gain, bias):
    found = phase("tanh", (), gain, bias)
    measured = []
    for seed in range(8):
        first, other = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(100 + seed))
        layers = stack(nn.Tanh(), gain, 30, bias=bias, seed=seed)
        measured.append(settled(layers, first, 0.5 * first + 0.75**0.5 * other))
    variance, correlation = np.mean(measured, axis=0)
    assert variance == pytest.approx(found.variance, rel=0.05)
    assert correlation == pytest.approx(found.correlation, abs=0.08)


@pytest.mark.parametrize(
    ("op", "act", "gain", "norm", "made"),
    [
        ("relu", nn.ReLU(), 2.0**0.5, None, None),
        ("tanh", nn.Tanh(), 2.0, None, None),
        ("sigmoid", nn.Sigmoid(), 3.0, None, None),
        ("relu", nn.ReLU(), 0.7, "layer_norm", nn.LayerNorm),
        ("tanh", nn.Tanh(), 3.0, "layer_norm", nn.LayerNorm),
        ("gelu", nn.GELU(), 1.0, "rms_norm", nn.RMSNorm),
        ("relu", nn.ReLU(), 1.0, "batch_norm", nn.BatchNorm1d),
        ("tanh", nn.Tanh(), 1.0, "batch_norm", nn.BatchNorm1d),
    ],
)
def test_gradients_of_wide_networks_grow_as_predicted(op, act, gain, norm, made):
    width, depth, skip = 400, 16, 6
    measured = []
    for seed in range(4):
        generator = torch.Generator().manual_seed(100 + seed)
        h, taps = torch.randn(128, width, generator=generator), []
        for index, layer in enumerate(stack(act, gain, depth, norm=made, width=width, seed=seed)):
            if index in {3 * skip, 3 * depth - 3}:
                h = h if taps else h.detach().requires_grad_()
                taps.append(h)
            h = layer(h)
        gradients = torch.autograd.grad(h, taps, torch.randn(h.shape, generator=generator))
        measured.append(math.log10(gradients[0].norm() / gradients[1].norm()) / (depth - 1 - skip))
    assert phase(op, (), gain, norm=norm).decades == pytest.approx(np.mean(measured), abs=0.01)


def test_batch_norm_has_no_critical_gain_and_layer_norm_only_beside_a_bias():
    assert phase("relu", (), 0.1, norm="batch_norm").critical is None
    assert phase("tanh", (), 0.1, norm="layer_norm").critical is None
    found = phase("tanh", (), 1.0, 0.1, "layer_norm").critical
    assert found is not None
    assert phase("tanh", (), found, 0.1, "layer_norm").chi == pytest.approx(1.0)


def test_rectifier_keeps_fades_or_runs_away_and_two_inputs_grow_alike():
    found = [phase("relu", (), gain) for gain in (1.0, math.sqrt(2.0) * (1.0 - 1e-7), 2.0)]
    assert [stand.variance for stand in found] == [0.0, 1.0, math.inf]
    assert [stand.name for stand in found] == ["ordered", "critical", "chaotic"]
    assert {stand.correlation for stand in found} == {1.0}
    assert {stand.depth for stand in found} == {math.inf}


def test_selu_stands_where_it_was_made_to_stand():  # Klambauer 2017
    found = phase("selu", (), 1.0)
    assert found.variance == pytest.approx(1.0, abs=1e-4)
    assert found.chi == pytest.approx(1.071575, abs=1e-5)


@pytest.mark.parametrize("op", ["relu", "leaky_relu", "abs", "tanh", "gelu", "silu", "mish", "hardswish", "erf"])
def test_nothing_changes_at_the_critical_point(op):
    weight, bias, variance = critical_point(op)
    q = max(variance, 1e-6)
    found = moments(op, q, {})
    assert weight * found.second + bias == pytest.approx(q, rel=1e-4)
    assert weight * found.slope == pytest.approx(1.0, rel=1e-4)
    near = moments(op, q * (1.0 + 1e-3), {})
    assert (weight * near.second + bias) / q - 1.0 == pytest.approx(1e-3, rel=2e-2)


@pytest.mark.parametrize("op", ["sigmoid", "softplus", "tanhshrink"])
def test_some_activations_have_no_critical_point(op):
    assert critical_point(op) is None


@pytest.mark.parametrize(("gain", "bias"), [(1.0, 0.05), (2.0, 0.05), (3.0, 0.2)])
def test_correlations_approach_their_fixed_point_by_a_factor_e_every_depth(gain, bias):
    found = phase("tanh", (), gain, bias)
    rho, away = 0.5, []
    for _ in range(12):
        rho, _ = correlation_map("tanh", rho, gain=gain, bias=bias, q=found.variance)
        away.append(abs(rho - found.correlation))
    assert away[-1] / away[-2] == pytest.approx(math.exp(-1.0 / found.depth), rel=0.02)


# picture ----------------------------------------------------------------------------------------------------------------


def place(picture, mark):
    return next((row, line.index(mark)) for row, line in enumerate(picture[1:10]) if mark in line)


@pytest.mark.parametrize(("gain", "growing"), [(0.5, False), (2.5, True), (100.0, True)])
def test_picture_marks_the_stack_on_its_side_of_criticality(gain, growing):
    picture = phase("tanh", (), gain).picture()
    row, column = place(picture, "●")
    zero = next(index for index, line in enumerate(picture[1:10]) if line.startswith("    0 "))
    critical = place(picture, "┆")[1]
    assert (column > critical, row < zero) == (growing, growing)
    assert f"● {gain:.3g}" in picture[-1]
    assert "critical 1" in picture[-1]


def test_picture_of_a_norm_is_flat_and_has_no_critical_line():
    picture = phase("relu", (), 1.0, norm="batch_norm").picture()
    assert not any("┆" in line for line in picture)
    assert sum("▀" in line or "▄" in line for line in picture) == 1


OPS = st.sampled_from(["relu", "leaky_relu", "tanh", "erf", "sigmoid", "gelu", "silu", "selu", "hardtanh", "softplus", "linear"])
GAINS = st.floats(-3.0, 3.0).map(lambda exponent: 10.0**exponent)
NORMS = st.sampled_from([None, "layer_norm", "rms_norm", "group_norm", "batch_norm"])


@given(OPS, GAINS, st.sampled_from([0.0, 1e-6, 0.05, 10.0]), NORMS)
def test_no_stack_is_without_a_phase(op, gain, bias, norm):
    found = phase(op, (), gain, bias, norm)
    numbers = [
        found.variance,
        found.correlation,
        found.chi,
        found.depth,
        found.variance_depth,
        found.gradient_depth,
        found.decades,
    ]
    assert not np.isnan(numbers).any()
    assert 0.0 <= found.correlation <= 1.0
    assert found.variance >= 0.0
    assert found.depth >= 0.0
    assert found.name in {"ordered", "critical", "chaotic"}


@given(OPS, GAINS, st.sampled_from([0.0, 0.05]), NORMS)
def test_picture_is_twelve_lines_of_at_most_sixty_characters(op, gain, bias, norm):
    picture = phase(op, (), gain, bias, norm).picture()
    assert len(picture) == 12
    assert max(map(len, picture)) <= 60
    assert sum("●" in line for line in picture) == 2


@given(OPS, GAINS, GAINS, st.sampled_from(["layer_norm", "rms_norm", "batch_norm"]))
def test_a_norm_makes_growth_independent_of_the_gain(op, one, other, norm):
    assert phase(op, (), one, norm=norm).chi == pytest.approx(phase(op, (), other, norm=norm).chi)


@given(st.sampled_from(["tanh", "erf", "softsign", "relu", "leaky_relu", "linear"]), GAINS, st.floats(1.01, 3.0))
def test_larger_gains_never_make_gradients_grow_less(op, gain, factor):
    assert phase(op, (), gain * factor).chi >= phase(op, (), gain).chi * (1.0 - 1e-6)


@given(GAINS, st.floats(0.01, 100.0))
def test_scaling_weights_moves_the_growth_of_a_homogeneous_stack_by_the_logarithm(gain, scale):
    for op, attrs in (("relu", {}), ("leaky_relu", {"negative_slope": 0.3})):
        one, other = (phase(op, parameters(op, attrs), value) for value in (gain, gain * scale))
        assert other.decades - one.decades == pytest.approx(math.log10(scale), abs=1e-9)


# finite width and schemes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("op", "kurtosis"), [(nn.ReLU(), 2.0), (nn.Identity(), 1.0)])
def test_gradient_norms_vary_over_initializations_as_predicted(op, kurtosis):
    width, depth = 24, 6
    logs = []
    for seed in range(300):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(1, width, generator=generator).requires_grad_()
        h = x
        for _ in range(depth):
            h = op(h @ torch.randn(width, width, generator=generator).mul(width**-0.5))
        (gradient,) = torch.autograd.grad(h, x, torch.randn(1, width, generator=generator))
        logs.append(math.log10(gradient.norm().item()))
    own = 0.5 * math.sqrt(2.0 / width) / math.log(10.0)  # of the cotangent
    expected = math.hypot(decades_deviation([width] * depth, kurtosis), own)
    assert np.std(logs) == pytest.approx(expected, rel=0.2)


def test_largest_direction_of_a_product_of_gaussian_matrices():
    measured = []
    for seed in range(4):
        layers = np.random.default_rng(seed).standard_normal((4, 600, 600)) * (0.9 / math.sqrt(600))
        measured.append(np.linalg.norm(np.linalg.multi_dot(layers), 2) ** 2)
    assert np.mean(measured) == pytest.approx(largest_singular_value(4, 0.9), rel=0.07)


def test_limits_that_floats_cannot_hold_are_infinite():
    assert largest_singular_value(1000, 2.0) == math.inf
    assert fourth_moment([1] * 1000) == math.inf
    assert batch_norm_growth(3) == math.inf
    assert largest_singular_value(0) == 1.0
    assert largest_singular_value(3, 0.0) == 0.0


def test_schemes_refuse_what_has_no_layers():
    with pytest.raises(ValueError, match="two layers"):
        fixup(10, 1)
    with pytest.raises(ValueError, match="one layer"):
        deepnet(0)


@given(st.integers(1, 1000))
def test_schemes_scale_less_the_deeper_a_network_is(layers):
    assert fixup(layers + 1) < fixup(layers) <= 1.0
    now, deeper = deepnet(layers), deepnet(layers + 1)
    assert deeper.skip > now.skip
    assert deeper.branch < now.branch
    assert now.skip * now.branch == pytest.approx(4.0**-0.25)


def test_chi_of_what_is_no_activation_is_its_squared_gain():
    assert phase("softmax", (), 1.5).chi == chi("softmax", 1.5) == pytest.approx(2.25)
