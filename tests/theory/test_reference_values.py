"""Every reference value of the theory, one test each: what the literature says, and what our functions and predictions say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from gradlint.rule import GraphBuilder
from gradlint.structure import Structure
from gradlint.theory.gaussian.integrals import chi, fixed_point, moments, parameters, shared_moment
from gradlint.theory.prediction import predict
from gradlint.theory.reading.phase import correlation_map, critical_point, phase
from gradlint.theory.recurrence.loops import loops
from tests.models.finite_width import batch_norm_growth, fourth_moment, largest_singular_value
from tests.models.schemes import deepnet, fixup

ANALYTIC, LIMIT = 0.01, 0.05
QUARTER = parameters("leaky_relu", {"negative_slope": 0.25})


def default_linear():
    """The squared gain of a layer of torch as it is constructed."""
    torch.manual_seed(0)
    return 1024 * torch.nn.Linear(1024, 1024).weight.square().mean().item()


def selu(index):
    return moments("selu", 1.0, {})[index]


VALUES = {
    "ReLU, Var W = 2/n (He 2015)": (lambda: chi("relu", math.sqrt(2.0)), 1.0),
    "ReLU, Var W = 1/n": (lambda: chi("relu", 1.0), 0.5),
    "leaky ReLU 0.25, Var W = 2/n": (lambda: chi("leaky_relu", math.sqrt(2.0), QUARTER), 1.0625),
    "n Var W of torch's default Linear": (default_linear, 1.0 / 3.0),
    "ReLU at torch's default": (lambda: chi("relu", math.sqrt(1.0 / 3.0)), 1.0 / 6.0),
    "tanh, bias 0.05, 0.5 (Schoenholz 2017)": (lambda: chi("tanh", math.sqrt(0.5), bias=0.05), 0.43199),
    "tanh, bias 0.05, 1.76": (lambda: chi("tanh", math.sqrt(1.76), bias=0.05), 0.99980),
    "tanh, bias 0.05, 4": (lambda: chi("tanh", 2.0, bias=0.05), 1.34240),
    "tanh, bias 0.05, 9": (lambda: chi("tanh", 3.0, bias=0.05), 1.85136),
    "tanh at gain 5/3: q*": (lambda: fixed_point("tanh", 5.0 / 3.0), 1.1785),
    "tanh at gain 5/3: chi": (lambda: chi("tanh", 5.0 / 3.0), 1.20983),
    "sigmoid at gain 1": (lambda: chi("sigmoid", 1.0), 0.055721),
    "BatchNorm and ReLU, squared (Yang 2019)": (lambda: phase("relu", (), 1.0, norm="batch_norm").chi, 1.46694),
    "BatchNorm and ReLU, amplitude": (lambda: 10 ** phase("relu", (), 1.0, norm="batch_norm").decades, 1.21117),
    "BatchNorm alone, batch 5 (Yang 2019)": (lambda: batch_norm_growth(5), 1.5),
    "BatchNorm alone, batch 8": (lambda: batch_norm_growth(8), 1.2),
    "BatchNorm alone, batch 16": (lambda: batch_norm_growth(16), 1.0769),
    "BatchNorm alone, batch 64": (lambda: batch_norm_growth(64), 1.0164),
    "LayerNorm and ReLU (Doshi 2021)": (lambda: phase("relu", (), 1.7, norm="layer_norm").chi, 1.0),
    "LayerNorm and tanh": (lambda: phase("tanh", (), 1.7, norm="layer_norm").chi, 1.17781),
    "GELU, critical squared gain (Roberts 2022)": (lambda: critical_point("gelu").weight, 1.98306),
    "GELU, critical bias": (lambda: critical_point("gelu").bias, 0.17292),
    "GELU, critical kernel": (lambda: critical_point("gelu").variance, 3.56155),
    "GELU with He weights": (lambda: 2.0 * moments("gelu", 1.0, {}).slope, 0.91170),
    "SiLU with He weights": (lambda: 2.0 * moments("silu", 1.0, {}).slope, 0.75896),
    "SELU, mean (Klambauer 2017)": (lambda: 1.0 + selu(0), 1.0),
    "SELU, variance": (lambda: selu(1), 1.0),
    "SELU, squared slope": (lambda: selu(2), 1.071575),
    "tanh RNN at gain 2: Lyapunov exponent (Engelken 2020)": (lambda: 0.5 * math.log(chi("tanh", 2.0)), 0.15472),
    "tanh RNN at gain 3": (lambda: 0.5 * math.log(chi("tanh", 3.0)), 0.31028),
    "Fixup, m = 2, L = 40 (Zhang 2019)": (lambda: fixup(40, 2), 0.158114),
    "DeepNet alpha, N = 18 (Wang 2022)": (lambda: deepnet(18).skip, 2.44949),
    "DeepNet beta": (lambda: deepnet(18).branch, 0.288675),
    "ReLU correlation map at 0": (lambda: correlation_map("relu", 0.0)[0], 1.0 / math.pi),
    "ReLU correlation map: slope at 1": (lambda: correlation_map("relu", 1.0)[1], 1.0),
    "ReLU correlation map near 1": (lambda: (1.0 - 2.0 * shared_moment("relu", 1.0, 1.0 - 1e-6, {})) / 1e-6, 1.0),
    "four Gaussian layers: largest singular value (Pennington 2017)": (lambda: largest_singular_value(4), 12.207),
    "fourth moment of ReLU networks, n = 50, L = 10 (Hanin 2018)": (lambda: fourth_moment([50] * 10), 2.59374),
}


@pytest.mark.parametrize("name", VALUES)
def test_function_gives_the_reference_value(name):
    found, expected = VALUES[name]
    assert found() == pytest.approx(expected, rel=ANALYTIC)


# predictions ------------------------------------------------------------------------------------------------------------

BATCH, WIDTH = 4096, 256


class Net(GraphBuilder):
    """A builder on a batch so large that it counts as infinite; `layer` is a weight layer of any gain."""

    def __init__(self, batch=BATCH, width=WIDTH):
        super().__init__()
        self.batch, self.width = batch, width

    def start(self, scale=1.0):
        x = self.input(self.batch, self.width)
        return x if scale == 1.0 else self.then("mul", x, None, constant=scale)

    def then(self, op, *inputs, **attrs):
        return self.op(op, *inputs, shape=(self.batch, self.width), **attrs)

    def layer(self, x, gain=1.0):
        return self.then("linear", x, weights={"weight": self.weight(self.width, self.width, gain=gain)})

    @property
    def predicted(self):
        return predict(Structure(self.graph))


def growth(net, before, after):
    """Squared factor of the gradient from one node back to another."""
    found = net.predicted
    return 10 ** (2.0 * (found[before].backward - found[after].backward))


def test_dropout_that_keeps_half_doubles_the_squared_gradient():
    net = Net()
    x = net.layer(net.start())
    y = net.layer(net.then("dropout", x, p=0.5))
    assert growth(net, x, y) == pytest.approx(2.0, rel=ANALYTIC)


@pytest.mark.parametrize("gain", [0.3, 1.0, 4.0])
def test_batch_norm_and_relu_grow_by_pi_over_pi_minus_one(gain):  # Yang 2019
    net, ends = Net(), []
    x = net.start()
    for _ in range(8):
        ends.append(x)
        x = net.then("relu", net.then("batch_norm", net.layer(x, gain), eps=0.0))
    factor = growth(net, ends[4], ends[6]) ** 0.5
    assert factor == pytest.approx(1.46694, rel=ANALYTIC)
    assert math.sqrt(factor) == pytest.approx(1.21117, rel=ANALYTIC)


@pytest.mark.parametrize(("batch", "expected"), [(5, 1.5), (8, 1.2), (16, 1.0769), (64, 1.0164)])
def test_batch_norm_without_activation_grows_on_small_batches(batch, expected):  # Yang 2019
    net, ends = Net(batch), []
    x = net.start()
    for _ in range(8):
        ends.append(x)
        x = net.then("batch_norm", net.layer(x), eps=0.0)
    assert growth(net, ends[4], ends[6]) ** 0.5 == pytest.approx(expected, rel=LIMIT)


@pytest.mark.parametrize(("act", "expected"), [("relu", 1.0), ("tanh", 1.17781)])
def test_layer_norm_on_pre_activations(act, expected):  # Doshi 2021
    net, ends = Net(), []
    x = net.start()
    for _ in range(8):
        ends.append(x)
        x = net.then(act, net.then("layer_norm", net.layer(x, 1.7), eps=0.0))
    assert growth(net, ends[4], ends[6]) ** 0.5 == pytest.approx(expected, rel=ANALYTIC)


def test_residual_block_without_norm_doubles_the_second_moment():  # Zhang 2019
    net, sums = Net(), []
    x = net.start()
    for _ in range(6):
        branch = net.layer(net.then("relu", net.layer(x, math.sqrt(2.0))))
        x = net.then("add", x, branch)
        sums.append(x)
    found = net.predicted
    assert 100 ** (found[sums[4]].forward - found[sums[3]].forward) == pytest.approx(2.0, rel=ANALYTIC)
    assert growth(net, sums[3], sums[4]) == pytest.approx(2.0, rel=ANALYTIC)


def test_variance_of_residual_batch_norm_networks_grows_linearly():  # De, Smith 2020
    net, sums = Net(), []
    x = net.start()
    for _ in range(6):
        normed = net.then("batch_norm", x, eps=0.0)
        x = net.then("add", x, net.layer(net.then("relu", normed), math.sqrt(2.0)))
        sums.append(x)
    signals = net.predicted.signals
    variance = [10 ** signals[node].log_q * (1.0 - signals[node].shared[0]) for node in sums]
    assert np.diff(variance) == pytest.approx([1.0 - 1.0 / math.pi] * 5, rel=ANALYTIC)


def last_gradient(blocks, *, post):
    """|dL/dW2| of the last feed-forward block of a transformer-like stack, for a unit cotangent behind its last norm."""
    net = Net()
    x = net.start(0.1)
    for _ in range(blocks):
        h = x if post else net.then("layer_norm", x, eps=0.0)
        hidden = net.then("relu", net.layer(h))
        branch = net.layer(hidden)
        x = net.then("add", x, branch)
        x = net.then("layer_norm", x, eps=0.0) if post else x
    x = x if post else net.then("layer_norm", x, eps=0.0)
    net.layer(x)
    found = net.predicted
    return 10 ** (found[branch].backward + found[hidden].forward)


@pytest.mark.parametrize(("post", "expected"), [(True, 1.0), (False, 0.5)])
def test_gradient_of_the_last_block_depends_on_depth_in_pre_norm_alone(post, expected):  # Xiong 2020
    assert last_gradient(24, post=post) / last_gradient(6, post=post) == pytest.approx(expected, rel=LIMIT)


@pytest.mark.parametrize(("radius", "expected"), [(1.1, 13780.6), (0.9, 2.656e-5)])
def test_linear_recurrence_over_a_hundred_steps(radius, expected):  # Pascanu 2013
    builder = GraphBuilder()
    h, weight = builder.input(8, 16), builder.array(radius * np.eye(16), "w")
    for _ in range(100):
        h = builder.linear(h, weight=weight)
    (loop,) = loops(Structure(builder.graph))
    assert 10 ** (100 * loop.exponent(100)) == pytest.approx(expected, rel=ANALYTIC)


@pytest.mark.parametrize(("gain", "expected"), [(2.0, 0.15472), (3.0, 0.31028)])
def test_lyapunov_exponent_of_a_wide_tanh_recurrence(gain, expected):  # Engelken 2020
    builder, width, steps = GraphBuilder(), 500, 400
    recurrent = gain / math.sqrt(width) * np.random.default_rng(0).standard_normal((width, width))
    weights = {"weight": builder.weight(width, 4, gain=0.01), "recurrent": builder.array(recurrent)}
    x = builder.input(steps, 2, 4)
    builder.op("rnn", x, weights=weights, shape=(steps, 2, width), nonlinearity="tanh", time_axis=0)
    (loop,) = loops(Structure(builder.graph))
    assert loop.lyapunov() == pytest.approx(expected, rel=LIMIT)
