"""Recurrences without a recurrent layer: state-space models, linear attention, and what one operator hides."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gradlint.frontends.torch.module import TorchRunnable
from gradlint.probe.measure import measure
from tests.models.recurrent_samples import Scan


def over_time(module, *args):
    return measure(TorchRunnable(module, args=args), seeds=1).time


def only(module, *args):
    (found,) = over_time(module, *args)
    return found


def test_a_state_space_model_in_a_loop_decays_as_its_diagonal():
    found = only(Scan(6, 0.8), torch.randn(3, 20, 6))
    assert (found.axis, found.direction) == (1, "forward")
    assert found.slope == pytest.approx(math.log10(0.8), abs=1e-5)


class Retention(nn.Module):
    """Linear attention with decay in its parallel form: (Q K^T * gamma^(n-m)) V."""

    def __init__(self, width, gamma):
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(width, width, bias=False) for _ in range(3))
        self.gamma = gamma

    def forward(self, x):
        place = torch.arange(x.shape[1])
        distance = place[:, None] - place[None]
        decay = torch.where(distance >= 0, self.gamma ** distance.float(), torch.zeros(()))
        return (self.q(x) @ self.k(x).transpose(1, 2) * decay) @ self.v(x)


def test_the_time_axis_of_linear_attention_is_the_causal_one_and_its_slope_the_decay():
    torch.manual_seed(0)
    found = only(Retention(16, 0.7), torch.randn(16, 32, 16))
    assert found.axis == 1
    assert found.slope == pytest.approx(math.log10(0.7), abs=0.02)


class Opaque(torch.autograd.Function):
    """A scan in one operator, of which nothing but its gradient is seen."""

    @staticmethod
    def forward(ctx, x):
        h, ys = torch.zeros_like(x[0]), []
        for piece in x:
            h = 0.5 * h + piece
            ys.append(h)
        return torch.stack(ys)

    @staticmethod
    def backward(ctx, gradient):
        h, found = torch.zeros_like(gradient[0]), []
        for piece in gradient.flip(0):
            h = 0.5 * h + piece
            found.append(h)
        return torch.stack(found[::-1])


def test_the_axis_of_a_recurrence_hidden_in_one_operator_is_the_one_along_which_its_gradient_is_causal():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.before, self.after = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.after(Opaque.apply(self.before(x)))

    found = only(Model(), torch.randn(16, 3, 4))
    assert (found.axis, found.direction) == (0, "forward")
    assert found.slope == pytest.approx(math.log10(0.5), abs=1e-5)


@pytest.mark.parametrize(
    "module",
    [
        nn.Conv1d(4, 4, 3, padding=1),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), 2, enable_nested_tensor=False),
        nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)),
    ],
)
def test_models_without_recurrence_have_no_time_axis(module):
    shape = (2, 4, 16) if isinstance(module, nn.Conv1d) else (2, 16, 4) if isinstance(module, nn.TransformerEncoder) else (2, 16)
    assert over_time(module, torch.randn(shape)) == ()
