"""Signal propagation against the reference values of the literature and against torch."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradlint.ops import activation, derivative
from gradlint.rule import GraphBuilder
from gradlint.structure import Structure
from gradlint.theory.branches import has_norm, normalizes, starts_at_zero
from gradlint.theory.gaussian.integrals import chi, critical_gain, moments, parameters, shared_moment
from gradlint.theory.prediction import predict
from gradlint.theory.reading.steps import propagate
from gradlint.theory.reading.trends import fall, is_plain, layers, rise
from gradlint.theory.recurrence.loops import loops

SQRT2 = math.sqrt(2.0)


def decades(builder: GraphBuilder) -> list[float]:
    found = [step.decades for step in propagate(Structure(builder.graph))]
    assert None not in found
    return [value for value in found if value is not None]


# gaussian ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("op", "squared_gain", "attrs", "factor"),
    [
        ("relu", 2.0, {}, 1.0),  # He 2015
        ("relu", 1.0, {}, 0.5),
        ("leaky_relu", 2.0, {"negative_slope": 0.25}, 1.0625),
        ("relu", 1.0 / 3.0, {}, 1.0 / 6.0),  # torch.nn.Linear
    ],
)
def test_rectifiers_multiply_the_variance_of_gradient_by_the_reference_factor(op, squared_gain, attrs, factor):
    assert chi(op, math.sqrt(squared_gain), parameters(op, attrs)) == pytest.approx(factor, rel=1e-6)


@pytest.mark.parametrize(("square", "expected"), [(0.5, 0.43199), (1.76, 0.99980), (4.0, 1.34240), (9.0, 1.85136)])
def test_chi_of_tanh_with_bias_variance_0_05(square, expected):  # Schoenholz 2017
    assert chi("tanh", math.sqrt(square), bias=0.05) == pytest.approx(expected, rel=1e-4)


def test_tanh_at_gain_5_over_3_settles_at_its_fixed_point():
    assert chi("tanh", 5.0 / 3.0) == pytest.approx(1.20983, abs=1e-5)
    builder = GraphBuilder(width=10**6)
    last = builder.linear(builder.stack(40, "tanh", gain=5.0 / 3.0), gain=5.0 / 3.0)
    assert 10 ** (2 * predict(Structure(builder.graph)).signals[last].level) == pytest.approx(1.1785, abs=1e-4)


def test_chi_of_sigmoid_at_unit_gain():
    assert chi("sigmoid", 1.0) == pytest.approx(0.055721, abs=1e-6)


@pytest.mark.parametrize(("op", "expected"), [("gelu", 0.91170), ("silu", 0.75896)])
def test_he_initialization_at_unit_variance(op, expected):
    found = moments(op, 1.0, {})
    assert found is not None
    assert 2.0 * found.slope == pytest.approx(expected, abs=1e-5)


def test_gelu_is_critical_where_roberts_yaida_hanin_say():
    weight, bias, kernel = 1.98306, 0.17292, 3.56155
    found = moments("gelu", kernel, {})
    assert found is not None
    assert weight * found.second + bias == pytest.approx(kernel, abs=1e-4)
    assert weight * found.slope == pytest.approx(1.0, abs=1e-4)


def test_selu_has_the_fixed_point_that_it_was_made_for():  # Klambauer 2017
    found = moments("selu", 1.0, {})
    assert found is not None
    assert found == pytest.approx((0.0, 1.0, 1.071575), abs=2e-5)


def test_correlation_map_of_relu():
    assert shared_moment("relu", 2.0, 0.0, {}) == pytest.approx(1.0 / math.pi, abs=2e-4)
    near = shared_moment("relu", 2.0, 2.0 * (1.0 - 1e-3), {})
    assert near is not None
    assert (1.0 - near) / 1e-3 == pytest.approx(1.0, abs=0.02)


def test_the_error_function_and_its_slope_are_those_of_the_standard_library():
    z = np.concatenate([np.linspace(-7.0, 7.0, 20_001), *(sign * np.logspace(-30.0, 0.5, 2001) for sign in (1.0, -1.0))])
    erf = activation("erf", {})
    assert erf(z) == pytest.approx([math.erf(value) for value in z], rel=1e-11, abs=0.0)
    assert derivative(erf)(z) == pytest.approx(2.0 / math.sqrt(math.pi) * np.exp(-z * z), abs=1e-8)


@pytest.mark.parametrize("op", ["relu", "leaky_relu", "tanh", "sigmoid", "gelu", "silu", "selu", "softplus", "hardswish", "elu"])
def test_moments_agree_with_sampling_torch_functions(op):
    generator = torch.Generator().manual_seed(0)
    z = (1.3**0.5 * torch.randn(400_000, generator=generator, dtype=torch.float64)).requires_grad_()
    values = getattr(nn.functional, op)(z)
    values.sum().backward()
    assert z.grad is not None
    sampled = (values.mean().item(), (values**2).mean().item(), (z.grad**2).mean().item())
    assert moments(op, 1.3, {}) == pytest.approx(sampled, abs=0.01)


@pytest.mark.parametrize("op", ["relu", "leaky_relu", "tanh", "softsign", "selu", "elu"])
def test_gradient_fades_under_the_critical_gain_and_grows_over_it(op):
    critical = critical_gain(op)
    assert chi(op, 0.9 * critical) < 1.0 < chi(op, 1.15 * critical)


@pytest.mark.parametrize(("op", "expected"), [("relu", SQRT2), ("tanh", 1.0), ("erf", math.sqrt(math.pi) / 2.0)])
def test_critical_gain_without_bias_has_a_closed_form(op, expected):
    assert critical_gain(op) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("q", [1e-60, 1e-12, 1e12])
def test_rectifiers_keep_their_slope_at_any_size_of_signal(q):
    found = moments("leaky_relu", q, {"negative_slope": 0.5})
    assert found is not None
    assert found.slope == pytest.approx(0.625, rel=1e-6)


def test_what_is_no_activation_has_no_moments_and_critical_gain_one():
    assert moments("softmax", 1.0, {}) is None
    assert critical_gain("softmax") == pytest.approx(1.0, abs=1e-5)


# propagation ------------------------------------------------------------------------------------------------------------


def test_dropout_that_keeps_half_doubles_the_squared_gradient():
    builder = GraphBuilder()
    builder.op("dropout", builder.linear(builder.input(8, 64)), shape=(8, 64), p=0.5)
    assert 10 ** (2 * decades(builder)[-1]) == pytest.approx(2.0)


def test_dropout_is_nothing_in_eval_mode():
    builder = GraphBuilder(mode="eval")
    builder.op("dropout", builder.linear(builder.input(8, 64)), shape=(8, 64), p=0.5)
    assert decades(builder)[-1] == 0.0


@pytest.mark.parametrize("gain", [0.3, SQRT2, 4.0])
def test_batch_norm_relu_chain_explodes_by_pi_over_pi_minus_one_at_any_gain(gain):  # Yang 2019
    builder = GraphBuilder(batch=10**6, width=10**6)
    builder.stack(10, "relu", gain=gain, norm="batch_norm")
    assert 10 ** (2 * sum(decades(builder)[-6:-3])) == pytest.approx(math.pi / (math.pi - 1.0), rel=1e-3)
    assert math.pi / (math.pi - 1.0) == pytest.approx(1.46694, abs=1e-5)


@pytest.mark.parametrize(("act", "factor"), [("relu", 1.0), ("tanh", 1.17781)])
def test_layer_norm_on_pre_activations(act, factor):  # Doshi 2021
    builder = GraphBuilder(width=10**6)
    builder.stack(10, act, gain=1.7, norm="layer_norm")
    assert 10 ** (2 * sum(decades(builder)[-6:-3])) == pytest.approx(factor, abs=2e-4)


def test_residual_block_without_norm_doubles_the_second_moment():  # Fixup
    builder = GraphBuilder(width=10**7)
    builder.blocks(3)
    prediction, steps = predict(Structure(builder.graph)), propagate(Structure(builder.graph))
    assert [10 ** (2 * prediction.signals[step.node].level) for step in steps] == pytest.approx([2.0, 4.0, 8.0], rel=1e-6)
    assert [10 ** (2 * (step.decades or 0.0)) for step in steps] == pytest.approx([2.0] * 3, rel=1e-6)


def test_variance_of_residual_batch_norm_network_grows_linearly():  # De and Smith 2020
    builder = GraphBuilder(batch=10**6)
    builder.blocks(5, norm="batch_norm")
    signals = [predict(Structure(builder.graph)).signals[step.node] for step in propagate(Structure(builder.graph))]
    variance = [10 ** (2 * signal.level) * (1 - signal.shared[0]) for signal in signals]
    assert np.diff(variance) == pytest.approx([1.0 - 1.0 / math.pi] * 4, rel=1e-3)


def test_batch_norm_in_eval_mode_divides_by_its_running_variance():
    builder = GraphBuilder(mode="eval")
    running = builder.array(np.full(64, 4.0), "running_var")
    builder.op("batch_norm", builder.linear(builder.input(8, 64)), weights={"running_var": running}, shape=(8, 64), eps=0.0)
    assert decades(builder)[-1] == pytest.approx(-math.log10(2.0))


def test_step_that_is_not_understood_has_no_decades_and_those_behind_it_have():
    builder = GraphBuilder()
    builder.linear(builder.op("fft", builder.linear(builder.input(8, 64)), shape=(8, 64)))
    found = [step.decades for step in propagate(Structure(builder.graph))]
    assert [value is None for value in found] == [False, True, False]


@pytest.mark.parametrize(("act", "gain"), [("tanh", 2.0), ("relu", 1.0), ("gelu", 1.5), ("sigmoid", 3.0)])
def test_prediction_meets_autograd_on_a_wide_network(act, gain):
    generator = torch.Generator().manual_seed(1)
    width, depth = 400, 12
    weights = [gain / width**0.5 * torch.randn(width, width, generator=generator) for _ in range(depth)]
    x = torch.randn(16, width, generator=generator).requires_grad_()
    h = x
    for weight in weights:
        h = getattr(torch, act)(h @ weight.T) if hasattr(torch, act) else getattr(nn.functional, act)(h @ weight.T)
    cotangent = torch.randn(h.shape, generator=generator)
    (gradient,) = torch.autograd.grad(h, x, cotangent)
    measured = math.log10(gradient.norm().item() / cotangent.norm().item())
    builder = GraphBuilder()
    y = builder.input(16, width)
    for weight in weights:
        y = builder.op(act, builder.linear(y, width, weight=builder.array(weight.numpy())), shape=(16, width))
    builder.linear(y, width, weight=builder.array(np.eye(width)))
    assert sum(decades(builder)) == pytest.approx(measured, abs=0.1)


# trends -----------------------------------------------------------------------------------------------------------------


def test_rise_and_fall_leave_the_one_largest_step_out():
    builder = GraphBuilder(width=10**7)
    x = builder.input(8, 10**7)
    for gain in (0.5, 10.0, 100.0, 10.0, 0.5):
        x = builder.linear(x, gain=gain)
    steps = propagate(Structure(builder.graph))
    assert rise(steps).decades == pytest.approx(2.0)
    assert rise(steps).span == ("linear1", "linear3")
    assert fall(steps[1:3]).decades == 0.0
    assert fall(steps[1:3]).span is None


def test_layers_know_the_activation_behind_them_and_the_last_one_the_one_before():
    builder = GraphBuilder()
    builder.linear(builder.stack(2, "tanh", gain=2.0), gain=3.0)
    structure = Structure(builder.graph)
    found = layers(structure, propagate(structure))
    assert [layer.activation.id for layer in found if layer.activation] == ["tanh0", "tanh1", "tanh1"]
    assert [layer.gain for layer in found] == pytest.approx([2.0, 2.0, 3.0])
    assert found[0].critical == critical_gain("tanh")


def test_step_over_a_residual_sum_is_not_plain():
    builder = GraphBuilder()
    builder.linear(builder.blocks(1))
    structure = Structure(builder.graph)
    assert [is_plain(structure, step) for step in propagate(structure)] == [False, True]


# branches ---------------------------------------------------------------------------------------------------------------


def rms(builder: GraphBuilder, x: str) -> str:
    square = builder.op("pow", x, constant=2.0)
    inverse = builder.op("rsqrt", builder.op("add", builder.op("mean", square), None, constant=1e-6))
    return builder.op("mul", x, inverse, shape=(8, 64))


def test_norm_that_is_spelled_out_is_recognized():
    builder = GraphBuilder()
    node = rms(builder, builder.input(8, 64))
    assert normalizes(builder.graph, builder.graph[node])


def test_softmax_that_is_spelled_out_is_no_norm():
    builder = GraphBuilder()
    x = builder.op("exp", builder.input(8, 64))
    node = builder.op("div", x, builder.op("sum", x), shape=(8, 64))
    assert not normalizes(builder.graph, builder.graph[node])


def test_gate_is_no_norm():
    builder = GraphBuilder()
    x = builder.input(8, 64)
    node = builder.op("mul", x, builder.op("sigmoid", builder.linear(builder.op("mean", x))), shape=(8, 64))
    assert not normalizes(builder.graph, builder.graph[node])


def test_residual_sum_knows_its_norm_and_its_zero_start():
    normed, zero = GraphBuilder(), GraphBuilder()
    x = normed.input(8, 64)
    normed.op("add", x, normed.linear(rms(normed, x)), shape=(8, 64))
    y = zero.input(8, 64)
    zero.op("add", y, zero.linear(zero.linear(y), gain=0.0), shape=(8, 64))
    structures = [Structure(builder.graph) for builder in (normed, zero)]
    sums = [structure.residual_sums[0] for structure in structures]
    assert [has_norm(*pair) for pair in zip(structures, sums, strict=True)] == [True, False]
    assert [starts_at_zero(*pair) for pair in zip(structures, sums, strict=True)] == [False, True]


# recurrence -------------------------------------------------------------------------------------------------------------


def rnn(recurrent: np.ndarray, nonlinearity: str = "relu", steps: int = 100) -> GraphBuilder:
    builder = GraphBuilder()
    width = recurrent.shape[1]
    weights = {"weight": builder.weight(width, 4, gain=0.01), "recurrent": builder.array(recurrent)}
    builder.op(
        "rnn", builder.input(steps, 2, 4), weights=weights, shape=(steps, 2, width), nonlinearity=nonlinearity, time_axis=0
    )
    return builder


@pytest.mark.parametrize(("radius", "expected"), [(1.1, 13780.6), (0.9, 2.656e-5)])
def test_linear_recurrence_multiplies_the_gradient_by_its_radius_at_every_step(radius, expected):  # Pascanu 2013
    builder = GraphBuilder()
    h, weight = builder.input(8, 16), builder.array(radius * np.eye(16), "w")
    for _ in range(100):
        h = builder.linear(h, weight=weight)
    (loop,) = loops(Structure(builder.graph))
    assert loop.activation is None
    assert loop.steps == 100
    assert loop.radius == pytest.approx(radius)
    assert 10 ** (100 * (loop.exponent(100) or 0.0)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(("gain", "expected"), [(2.0, 0.15472), (3.0, 0.31028)])
def test_lyapunov_exponent_of_random_tanh_networks(gain, expected):  # Engelken 2020
    matrix = gain / math.sqrt(500) * np.random.default_rng(0).standard_normal((500, 500))
    (loop,) = loops(Structure(rnn(matrix, "tanh", 400).graph))
    assert (loop.exponent(400) or 0.0) * math.log(10.0) == pytest.approx(expected, abs=0.03)


def test_exponent_of_a_relu_recurrence_meets_autograd():
    generator = torch.Generator().manual_seed(0)
    matrix = 2.0 / 8.0 * torch.randn(64, 64, generator=generator)
    h = start = torch.randn(16, 64, generator=generator).requires_grad_()
    for _ in range(40):
        h = torch.relu(h @ matrix.T + torch.randn(16, 64, generator=generator))
    cotangent = torch.randn(h.shape, generator=generator)
    (gradient,) = torch.autograd.grad(h, start, cotangent)
    measured = math.log10(gradient.norm().item() / cotangent.norm().item())
    builder = rnn(matrix.numpy(), steps=40)
    (loop,) = loops(Structure(builder.graph))
    assert 40 * (loop.exponent(40) or 0.0) == pytest.approx(measured, abs=0.5)


def test_radius_is_that_of_the_largest_gate():
    builder = GraphBuilder()
    stacked = np.concatenate([factor * np.eye(8) for factor in (0.5, 0.7, 1.4, 0.9)])
    builder.op("lstm", builder.input(20, 2, 8), weights={"recurrent": builder.array(stacked)}, shape=(20, 2, 8))
    (loop,) = loops(Structure(builder.graph))
    assert loop.radius == pytest.approx(1.4)


def test_layers_shared_over_depth_with_a_norm_between_are_no_loop():
    builder = GraphBuilder()
    h, weight = builder.input(8, 64), builder.weight(64, 64, name="shared")
    for _ in range(3):
        h = builder.norm(builder.linear(h, weight=weight))
    assert loops(Structure(builder.graph)) == []
