"""Loops over time: exponents against autograd, analytic rates and mean-field values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from gradlint.graph_builder import GraphBuilder
from gradlint.structure import Structure
from gradlint.theory.recurrence.loops import loops
from tests.models.theory_cases import graph_of, measured


def loop_of(module, *args):
    (loop,) = loops(Structure(graph_of(module, *args)))
    return loop


def rnn_loop(matrix, nonlinearity, steps):
    builder = GraphBuilder()
    width = matrix.shape[0]
    weights = {"weight": builder.weight(width, 4, gain=0.01), "recurrent": builder.array(matrix)}
    builder.op(
        "rnn", builder.input(steps, 2, 4), weights=weights, shape=(steps, 2, width), nonlinearity=nonlinearity, time_axis=0
    )
    (loop,) = loops(Structure(builder.graph))
    return loop


@pytest.mark.parametrize(("gain", "expected"), [(2.0, 0.15472), (3.0, 0.31028)])
def test_lyapunov_exponent_of_random_tanh_networks_within_five_percent(gain, expected):  # Engelken 2020
    matrix = gain / math.sqrt(500) * np.random.default_rng(0).standard_normal((500, 500))
    assert rnn_loop(matrix, "tanh", 400).lyapunov() == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize(("radius", "expected"), [(1.1, 13780.6), (0.9, 2.656e-5)])
def test_a_linear_recurrence_multiplies_the_gradient_by_its_radius(radius, expected):  # Pascanu 2013
    loop = rnn_loop(radius * np.eye(16), "linear", 100)
    assert 10.0 ** (100 * loop.exponent(100)) == pytest.approx(expected, rel=1e-3)
    assert loop.radius == loop.norm == pytest.approx(radius)
    assert loop.horizon() == pytest.approx(3.0 / abs(math.log10(radius)), rel=1e-3)
    assert loop.lyapunov() == pytest.approx(math.log(radius), rel=1e-3)


def test_norm_is_the_largest_singular_value_and_radius_the_largest_eigenvalue():
    loop = rnn_loop(np.array([[0.5, 100.0], [0.0, 0.25]]), "tanh", 10)
    assert loop.radius == pytest.approx(0.5)
    assert loop.norm == pytest.approx(torch.linalg.matrix_norm(torch.tensor([[0.5, 100.0], [0.0, 0.25]]), 2).item())


def test_a_loop_that_keeps_the_size_of_its_gradient_has_no_horizon():
    assert rnn_loop(np.eye(8), "linear", 100).horizon() == math.inf


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_gated_loop_has_an_exponent(kind):
    torch.manual_seed(0)
    module = kind(24, 128)
    loop = loop_of(module, torch.randn(80, 2, 24))
    assert loop.exponent(80) == pytest.approx(measured(module, 80)["step"], abs=0.01)
    assert loop.horizon() == pytest.approx(3.0 / abs(loop.exponent(80)))


class Cells(nn.Module):
    """A cell in a Python loop, spelled out or torch's, from rest."""

    def __init__(self, kind, width=64):
        super().__init__()
        self.kind, self.width = kind, width
        if kind == "LSTMCell":
            self.cell = nn.LSTMCell(width, width)
        gates = {"written lstm": 4, "written tanh": 1}.get(kind, 0)
        self.state = nn.Linear(width, gates * width) if gates else None

    def forward(self, x):
        h = c = x.new_zeros(x.shape[1], self.width)
        for step in x:
            if self.kind == "LSTMCell":
                h, c = self.cell(step, (h, c))
            elif self.kind == "written tanh":
                h = torch.tanh(self.state(h) + step)
            else:
                i, f, g, o = (self.state(h) + torch.cat([step] * 4, -1)).chunk(4, -1)
                c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
                h = torch.sigmoid(o) * torch.tanh(c)
        return h


@pytest.mark.parametrize("kind", ["LSTMCell", "written tanh", "written lstm"])
def test_a_loop_in_python_has_an_exponent(kind):
    torch.manual_seed(0)
    module, steps = Cells(kind), 40
    x = torch.randn(steps, 16, 64, requires_grad=True)
    y = module(x)
    (gradient,) = torch.autograd.grad(y, x, torch.randn_like(y))
    squares = gradient.square().sum((1, 2)).log10().numpy()[::-1]
    loop = loop_of(module, x.detach())
    assert loop.steps in {steps, steps - 1}  # the first state is zero: a constant
    assert loop.exponent(steps) == pytest.approx(0.5 * np.polyfit(np.arange(steps), squares, 1)[0], abs=0.015)
