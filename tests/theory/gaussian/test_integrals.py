"""Activations and their Gaussian integrals against torch, ONNX's reference evaluator and scipy."""

from __future__ import annotations

import itertools
import math

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx.reference import ReferenceEvaluator
from scipy.integrate import quad
from scipy.stats import multivariate_normal
from torch.nn import functional as nnf

from gradlint.ops import activation, derivative
from gradlint.theory.gaussian.integrals import (
    chi,
    critical_gain,
    fixed_point,
    moments,
    parameters,
    shared_moment,
    shared_slope,
    slope_kurtosis,
    variance_slope,
)
from gradlint.theory.gaussian.quadrature import orthant
from tests.models.versions import skip_before

IN_TORCH = {
    "relu": ({}, nnf.relu),
    "relu6": ({}, nnf.relu6),
    "leaky_relu": ({"negative_slope": 0.3}, lambda z: nnf.leaky_relu(z, 0.3)),
    "leaky_relu random": ({"lower": 0.1, "upper": 0.5, "training": False}, lambda z: nnf.rrelu(z, 0.1, 0.5)),
    "prelu": ({}, lambda z: nnf.prelu(z, z.new_tensor(0.25))),
    "elu": ({"alpha": 1.7}, lambda z: nnf.elu(z, 1.7)),
    "celu": ({"alpha": 0.4}, lambda z: nnf.celu(z, 0.4)),
    "selu": ({}, nnf.selu),
    "gelu": ({"approximate": "none"}, nnf.gelu),
    "gelu tanh": ({"approximate": "tanh"}, lambda z: nnf.gelu(z, approximate="tanh")),
    "gelu fast": ({"name": "com.microsoft::FastGelu"}, lambda z: nnf.gelu(z, approximate="tanh")),
    "gelu quick": ({"name": "com.microsoft::QuickGelu"}, lambda z: z * torch.sigmoid(1.702 * z)),
    "silu": ({}, nnf.silu),
    "silu steep": ({"alpha": 3.0}, lambda z: z * torch.sigmoid(3.0 * z)),
    "mish": ({}, nnf.mish),
    "tanh": ({}, torch.tanh),
    "hardtanh": ({"min_val": -0.5, "max_val": 2.0}, lambda z: nnf.hardtanh(z, -0.5, 2.0)),
    "sigmoid": ({}, torch.sigmoid),
    "hardsigmoid": ({}, nnf.hardsigmoid),
    "hardswish": ({}, nnf.hardswish),
    "softplus": ({"beta": 3.0, "threshold": 2.0}, lambda z: nnf.softplus(z, 3.0, 2.0)),
    "softsign": ({}, nnf.softsign),
    "logsigmoid": ({}, nnf.logsigmoid),
    "tanhshrink": ({}, nnf.tanhshrink),
    "hardshrink": ({"lambd": 0.7}, lambda z: nnf.hardshrink(z, 0.7)),
    "softshrink": ({"lambd": 0.7}, lambda z: nnf.softshrink(z, 0.7)),
    "threshold": ({"threshold": 0.3, "value": -1.0}, lambda z: nnf.threshold(z, 0.3, -1.0)),
    "erf": ({}, torch.erf),
    "abs": ({}, torch.abs),
}
CASES = {name: (name.partition(" ")[0], attrs) for name, (attrs, _) in IN_TORCH.items()}
SHAPES = pytest.mark.parametrize("name", CASES)
AT_KINKS = skip_before("torch", "2.8", "its derivative at -3 and 3 is that of the parabola between them")
NORMALS = ((0.0, 1.0), (0.0, 0.1), (0.0, 7.0), (1.5, 0.8), (-2.0, 0.5), (-0.7, 3.0))


def function(name):
    op, attrs = CASES[name]
    found = activation(op, attrs)
    assert found is not None
    return found


# functions --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [pytest.param(name, marks=AT_KINKS if name == "hardswish" else ()) for name in CASES])
def test_value_and_derivative_are_those_of_torch_at_kinks_too(name):
    phi = function(name)
    at = [*phi.kinks, *np.linspace(-12.0, 12.0, 2001), 1e-9, -1e-9, 300.0, -300.0]
    z = torch.tensor(at, dtype=torch.float64, requires_grad=True)
    values = IN_TORCH[name][1](z)
    values.sum().backward()
    assert phi(np.array(at)) == pytest.approx(values.detach().numpy(), abs=1e-12)
    assert derivative(phi)(np.array(at)) == pytest.approx(z.grad.numpy(), abs=2e-8)  # torch computes one of them in float32


@pytest.mark.parametrize(
    ("kind", "op", "attrs"),
    [
        ("LeakyRelu", "leaky_relu", {"alpha": 0.2}),
        ("Elu", "elu", {"alpha": 0.5}),
        ("Celu", "celu", {"alpha": 0.5}),
        ("Selu", "selu", {"alpha": 1.5, "gamma": 2.0}),
        ("HardSigmoid", "hardsigmoid", {"alpha": 0.2, "beta": 0.5}),
        ("HardSigmoid", "hardsigmoid", {"alpha": -0.3, "beta": 0.1}),
        ("Shrink", "softshrink", {"lambd": 0.5, "bias": 0.0}),
        ("Shrink", "softshrink", {"lambd": 0.5, "bias": 1.5}),
        ("ThresholdedRelu", "threshold", {"alpha": 0.7}),
        ("Gelu", "gelu", {"approximate": "tanh"}),
    ],
)
def test_attributes_under_their_onnx_names_give_the_function_of_onnx(kind, op, attrs):
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.DOUBLE, [None]) for name in "xy")
    graph = helper.make_graph([helper.make_node(kind, ["x"], ["y"], **attrs)], "one", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)])
    z = np.linspace(-6.0, 6.0, 501)
    (expected,) = ReferenceEvaluator(model).run(None, {"x": z})
    phi = activation(op, attrs)
    assert phi is not None
    assert phi(z) == pytest.approx(expected, abs=1e-6)
    inside = np.abs(np.subtract.outer(z, phi.kinks)).min(axis=1, initial=1.0) > 0.1
    assert phi.slope(z)[inside] == pytest.approx(derivative(phi.value)(z)[inside], abs=1e-7)


@SHAPES
def test_key_keeps_every_attribute_that_the_function_depends_on(name):
    op, attrs = CASES[name]
    again = activation(op, dict(parameters(op, {**attrs, "inplace": True, "note": "x"})))
    z = np.linspace(-5.0, 5.0, 101)
    assert again is not None
    assert (again(z) == function(name)(z)).all()


# moments ----------------------------------------------------------------------------------------------------------------


def integral(of, phi, mean, sigma):
    """E of(z) for z ~ N(mean, sigma^2), by adaptive quadrature between kinks."""

    def density(x):
        return float(of(np.array([x]))[0]) * math.exp(-0.5 * ((x - mean) / sigma) ** 2) / sigma / math.sqrt(2.0 * math.pi)

    bends = (sign * phi.scale * width for sign in (1, -1) for width in (0.0, 1.0, 2.0, 4.0, 8.0))
    spread = (mean + sigma * step for step in (-12, -6, -3, -1, 0, 1, 3, 6, 12))
    ends = sorted({point for point in (*phi.kinks, *bends, *spread) if abs(point - mean) <= 12.0 * sigma})
    return sum(quad(density, low, high, epsabs=1e-14, epsrel=1e-11)[0] for low, high in itertools.pairwise(ends))


@SHAPES
def test_moments_agree_with_adaptive_quadrature_at_every_mean(name):
    phi, (op, attrs) = function(name), CASES[name]
    for mean, sigma in NORMALS:
        expected = [integral(f, phi, mean, sigma) for f in (phi, lambda z: phi(z) ** 2, lambda z: phi.slope(z) ** 2)]
        found = moments(op, mean**2 + sigma**2, attrs, mean)
        assert found == pytest.approx(expected, rel=1e-8, abs=1e-12)


@SHAPES
def test_other_integrals_agree_with_adaptive_quadrature(name):
    phi, (op, attrs) = function(name), CASES[name]
    stretch = integral(lambda z: z * phi(z) * phi.slope(z), phi, 0.0, 1.3)
    assert variance_slope(op, 1.69, parameters(op, attrs)) == pytest.approx(stretch / 1.69, rel=1e-7)
    fourth, square = (integral(lambda z, n=n: phi.slope(z) ** n, phi, 0.4, 1.3) for n in (4, 2))
    assert slope_kurtosis(op, 0.16 + 1.69, attrs, 0.4) == pytest.approx(fourth / square**2, rel=1e-7)


@SHAPES
def test_huge_signals_see_the_slopes_far_out_and_tiny_ones_those_around_zero(name):
    phi, (op, attrs) = function(name), CASES[name]
    ends = np.array([-1.0, 1.0])
    huge, far = moments(op, 1e280, attrs), phi.slope(1e100 * ends)
    assert huge.second / 1e280 == pytest.approx(np.mean((phi(1e140 * ends) / 1e140) ** 2), rel=1e-6, abs=1e-12)
    assert huge.slope == pytest.approx(np.mean(far**2), rel=1e-6, abs=1e-12)
    tiny, near = moments(op, 1e-280, attrs), phi.slope(1e-20 * ends)
    assert tiny.second == pytest.approx(float(phi(np.zeros(1))[0]) ** 2 + 1e-280 * np.mean(near**2), rel=1e-6, abs=1e-300)
    assert tiny.slope == pytest.approx(np.mean(near**2), rel=1e-6, abs=1e-30)


@SHAPES
@pytest.mark.parametrize("q", [1e-280, 1e-40, 1e40, 1e280, math.inf, 0.0])
def test_no_size_of_signal_overflows(name, q):
    op, attrs = CASES[name]
    root = math.sqrt(min(max(q, 1e-290), 1e290))
    for mean, correlation in itertools.product((0.0, 0.6 * root, -0.9999999 * root, root), (-1.0, -0.5, 0.0, 0.3, 0.99, 1.0)):
        found = [*moments(op, q, attrs, mean), shared_moment(op, q, correlation * root**2, attrs, mean)]
        found += [shared_slope(op, q, correlation * root**2, attrs, mean), slope_kurtosis(op, q, attrs, mean)]
        assert np.isfinite(found).all()


def test_signal_that_does_not_vary_is_a_point():
    assert moments("tanh", 4.0, {}, -2.0) == pytest.approx((math.tanh(-2.0), math.tanh(2.0) ** 2, math.cosh(2.0) ** -4))
    assert moments("relu", 4.0, {}, -2.0) == (0.0, 0.0, 0.0)


def test_what_has_no_function_has_no_integrals():
    for op in ("glu", "softmax"):
        assert moments(op, 1.0, {}) is None
        assert shared_moment(op, 1.0, 0.5, {}) is None
        assert shared_slope(op, 1.0, 0.5, {}) is None
        assert slope_kurtosis(op, 1.0, {}) is None


# two inputs -------------------------------------------------------------------------------------------------------------


def on_a_grid(of, mean, sigma, rho):
    """E of(z_a) of(z_b) by the trapezoid rule over the plane."""
    x = np.linspace(-9.0, 9.0, 901)
    weights = np.exp(-0.5 * x * x)
    weights /= weights.sum()
    inner = of(mean + sigma * (rho * x[:, None] + math.sqrt(1.0 - rho * rho) * x)) @ weights
    return float(weights @ (of(mean + sigma * x) * inner))


@pytest.mark.parametrize("rho", [-0.8, 0.2, 0.7, 0.97])
@pytest.mark.parametrize("name", ["tanh", "gelu", "silu", "sigmoid", "erf", "mish", "gelu quick"])
def test_two_inputs_of_a_smooth_activation_share_what_the_integral_over_the_plane_says(name, rho):
    phi, (op, attrs) = function(name), CASES[name]
    for mean, sigma in ((0.0, 1.0), (0.8, 1.5)):
        second, c = mean**2 + sigma**2, mean**2 + rho * sigma**2
        assert shared_moment(op, second, c, attrs, mean) == pytest.approx(on_a_grid(phi, mean, sigma, rho), abs=1e-7)
        assert shared_slope(op, second, c, attrs, mean) == pytest.approx(on_a_grid(phi.slope, mean, sigma, rho), abs=1e-7)


@pytest.mark.parametrize("rho", [-0.8, 0.2, 0.7, 0.97])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "abs", "hardtanh", "elu", "hardswish", "softshrink", "threshold"])
def test_two_inputs_of_an_activation_with_kinks_do_so_too(name, rho):
    phi, (op, attrs) = function(name), CASES[name]
    for mean, sigma in ((0.0, 1.0), (0.8, 1.5)):
        second, c = mean**2 + sigma**2, mean**2 + rho * sigma**2
        assert shared_moment(op, second, c, attrs, mean) == pytest.approx(on_a_grid(phi, mean, sigma, rho), abs=1e-2)
        assert shared_slope(op, second, c, attrs, mean) == pytest.approx(on_a_grid(phi.slope, mean, sigma, rho), abs=2e-2)


@pytest.mark.parametrize("rho", [-0.9, -0.3, 0.0, 0.5, 0.99, 1.0])
def test_rectifiers_share_the_arc_cosine_kernels(rho):  # Cho, Saul 2009
    angle = math.acos(rho)
    assert shared_moment("relu", 3.0, 3.0 * rho, {}) == pytest.approx(
        3.0 / (2.0 * math.pi) * (math.sin(angle) + (math.pi - angle) * rho), abs=1e-12
    )
    assert shared_slope("relu", 3.0, 3.0 * rho, {}) == pytest.approx((math.pi - angle) / (2.0 * math.pi), abs=1e-12)


@pytest.mark.parametrize("rho", [-0.9, -0.2, 0.0, 0.6, 0.999])
def test_erf_shares_the_arc_sine_kernel(rho):  # Williams 1997
    expected = 2.0 / math.pi * math.asin(2.0 * 1.7 * rho / (1.0 + 2.0 * 1.7))
    assert shared_moment("erf", 1.7, 1.7 * rho, {}) == pytest.approx(expected, abs=1e-8)


@pytest.mark.parametrize("rho", [-0.95, -0.4, 0.0, 0.7, 0.99])
@pytest.mark.parametrize("h", [-3.0, -0.5, 0.0, 1.2, 4.0])
def test_orthant_probability_is_that_of_scipy(h, rho):
    expected = multivariate_normal([0.0, 0.0], [[1.0, rho], [rho, 1.0]]).cdf([h, h])
    assert orthant(h, rho) == pytest.approx(expected, abs=1e-8)


# properties -------------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from(sorted(CASES))
SIZES = st.floats(-8.0, 8.0).map(lambda exponent: 10.0**exponent)
SHARES = st.floats(-0.95, 0.95)


@given(NAMES, SIZES, SHARES)
def test_an_activation_varies_no_more_than_its_slope_lets_it(name, q, share):  # Poincare's inequality
    op, attrs = CASES[name]
    mean = share * math.sqrt(q)
    found = moments(op, q, attrs, mean)
    if "threshold" not in (op, *attrs) and op != "hardshrink":  # these jump
        assert found.second - found.mean**2 <= (q - mean**2) * found.slope * (1.0 + 1e-6) + 1e-9 * found.second


@given(NAMES, SIZES, SHARES, st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_inputs_that_are_more_alike_share_more_and_never_more_than_all(name, q, share, one, other):
    op, attrs = CASES[name]
    mean = share * math.sqrt(q)
    low, high = (mean**2 + rho * (q - mean**2) for rho in sorted((one, other)))
    for measure, index in ((shared_moment, 1), (shared_slope, 2)):
        most = moments(op, q, attrs, mean)[index]
        found = [measure(op, q, c, attrs, mean) for c in (mean**2, low, high, q)]
        assert found == pytest.approx(sorted(found), abs=2e-5 * most)
        assert found[-1] == pytest.approx(most, rel=1e-6)
    assert shared_moment(op, q, mean**2, attrs, mean) == pytest.approx(
        moments(op, q, attrs, mean).mean ** 2, rel=1e-6, abs=1e-12 * q
    )


@given(st.sampled_from(["relu", "leaky_relu", "prelu", "abs"]), st.floats(-200.0, 200.0), st.floats(0.05, 20.0), SHARES)
def test_rectifiers_know_no_scale(name, decades, gain, share):
    op, attrs = CASES[name]
    q, unit = 10.0**decades, moments(op, 1.0, attrs, share)
    found = moments(op, q, attrs, share * math.sqrt(q))
    assert found.second / q == pytest.approx(unit.second, rel=1e-9)
    assert found.slope == pytest.approx(unit.slope, rel=1e-9)
    assert chi(op, gain, parameters(op, attrs)) == pytest.approx(gain**2 * moments(op, 1.0, attrs).slope)


@given(NAMES, SIZES, st.floats(1.0, 1e3))
def test_larger_pre_activations_never_make_smaller_outputs(name, q, factor):
    op, attrs = CASES[name]
    if op not in {"softplus", "sigmoid", "hardsigmoid", "logsigmoid", "threshold"}:  # even parts that fall with q
        assert moments(op, factor * q, attrs).second >= moments(op, q, attrs).second * (1.0 - 1e-8)


# fixed points -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("name", ["tanh", "erf", "sigmoid", "hardtanh", "relu6", "softsign", "hardsigmoid"])
def test_bounded_activations_settle_where_the_variance_map_leaves_them(name, bias):
    op, attrs = CASES[name]
    for gain in (0.5, 1.5, 4.0):
        q = fixed_point(op, gain, parameters(op, attrs), bias)
        if q > 1e-11:
            assert gain**2 * moments(op, q, attrs).second + bias == pytest.approx(q, rel=1e-6)
        as_gaussian = 1.0
        for _ in range(300):
            as_gaussian = gain**2 * moments(op, as_gaussian, attrs).second + bias
        assert q == pytest.approx(as_gaussian, rel=1e-5, abs=1e-11)


@pytest.mark.parametrize("bias", [0.0, 0.01])
@pytest.mark.parametrize("name", ["relu", "leaky_relu", "abs", "tanh", "erf", "sigmoid", "hardtanh", "softsign", "selu", "relu6"])
def test_chi_is_one_at_the_critical_gain(name, bias):
    op, attrs = CASES[name]
    key = parameters(op, attrs)
    critical = critical_gain(op, key, bias)
    assert chi(op, critical, key, bias) == pytest.approx(1.0, abs=1e-4)
    assert chi(op, 0.9 * critical, key, bias) < 0.999
    assert chi(op, 1.2 * critical, key, bias) > 1.001


@pytest.mark.parametrize("op", ["gelu", "silu", "mish", "hardswish"])
def test_the_critical_gain_of_an_activation_whose_signal_tips_over_is_where_it_tips(op):
    critical = critical_gain(op)
    assert chi(op, critical * (1.0 - 1e-5)) < 1.0 < chi(op, critical * (1.0 + 1e-5))
    assert fixed_point(op, critical * (1.0 - 1e-3)) < 1.0 < fixed_point(op, critical * (1.0 + 1e-3))
