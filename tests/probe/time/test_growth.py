"""Growth along the time axis of torch models, against analytic rates, explicit Jacobians and mean-field exponents."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from gradlint.frontends.torch.module import TorchRunnable
from gradlint.probe.measure import measure
from gradlint.probe.time.growth import horizon_of, slope_of
from tests.models.recurrent_samples import Outputs


def over_time(module, *args, seeds=1, seed=0):
    return measure(TorchRunnable(module, args=args), seeds=seeds, seed=seed).time


def only(module, *args, **options):
    (found,) = over_time(module, *args, **options)
    return found


class Loop(nn.Module):
    """A cell applied step by step, in each of the ways that people write it."""

    WAYS: ClassVar = {
        "index": lambda x: [x[:, t] for t in range(x.shape[1])],
        "ellipsis": lambda x: [x[..., t, :] for t in range(x.shape[1])],
        "unbind": lambda x: x.unbind(1),
        "chunk": lambda x: [piece.squeeze(1) for piece in x.chunk(x.shape[1], dim=1)],
        "split": lambda x: [piece[:, 0] for piece in x.split(1, dim=1)],
        "select": lambda x: [x.select(1, t) for t in range(x.shape[1])],
        "narrow": lambda x: [x.narrow(1, t, 1).squeeze(1) for t in range(x.shape[1])],
        "unfold": lambda x: [window.flatten(1) for window in x.unfold(1, 1, 1).unbind(1)],
    }

    def __init__(self, cell, way="index"):
        super().__init__()
        self.cell, self.way = cell, way

    def forward(self, x):
        state = None
        for piece in self.WAYS[self.way](x):
            state = self.cell(piece, state)
        return state[0] if isinstance(state, tuple) else state


class Linear(nn.Module):
    """h' = W h + x, without activation."""

    def __init__(self, matrix):
        super().__init__()
        self.hidden = nn.Linear(len(matrix), len(matrix), bias=False)
        self.hidden.weight.data.copy_(matrix)

    def forward(self, x):
        h = torch.zeros_like(x[:, 0])
        for t in range(x.shape[1]):
            h = self.hidden(h) + x[:, t]
        return h


def orthogonal(size, seed=0):
    return torch.linalg.qr(torch.randn(size, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]


@pytest.mark.parametrize(("rho", "total"), [(1.1, 13780.6), (0.9, 2.656e-5)])
def test_a_linear_recurrence_grows_as_its_spectral_radius_to_the_power_of_the_steps(rho, total):
    found = only(Linear(rho * orthogonal(6)).double(), torch.randn(4, 101, 6, dtype=torch.float64))
    assert found.slope == pytest.approx(math.log10(rho), abs=1e-6)
    assert found.slope_error == pytest.approx(0.0, abs=1e-6)
    assert 10.0 ** (found.backward[0] - found.backward[-1]) == pytest.approx(rho**100, rel=1e-6)
    assert rho**100 == pytest.approx(total, rel=1e-3)
    assert found.horizon == pytest.approx(3.0 / abs(math.log10(rho)), rel=1e-5)


def random_rnn(gain, width, seed):
    rnn = nn.RNN(1, width, bias=False)
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(width, width, generator=generator) / math.sqrt(width)
    if gain < 1.0:  # the edge of the spectrum, 1 in theory, is a matter of luck at any width
        matrix /= torch.linalg.eigvals(matrix).abs().max()
    rnn.weight_hh_l0.data = gain * matrix
    return Outputs(rnn), torch.randn(1, 2, width, generator=generator)


@pytest.mark.parametrize(("gain", "exponent"), [(0.8, math.log(0.8)), (2.0, 0.15472), (3.0, 0.31028)])
def test_random_tanh_networks_have_the_lyapunov_exponent_of_mean_field_theory(gain, exponent):
    """Engelken 2020: 0.15472 and 0.31028 nats per step; under gain 1 the origin is stable and contracts by the gain."""
    module, start = random_rnn(gain, 512, seed=1)
    found = only(module, torch.zeros(400, 2, 1), start)
    assert found.lyapunov[0] == pytest.approx(exponent, rel=0.05)
    assert list(found.lyapunov) == sorted(found.lyapunov, reverse=True)
    assert found.slope * math.log(10.0) == pytest.approx(exponent, rel=0.05)


def explicit(cell, x, cotangent):
    """1/2 log10 of |J_t^T v|^2 / |v|^2 from the whole Jacobian of the last state by every step, unrolled by hand."""

    def last(x):
        state = None
        for t in range(x.shape[0]):
            state = cell(x[t][None], state)
        return (state[0] if isinstance(state, tuple) else state)[0]

    squares = 0.0
    for sample, v in enumerate(cotangent):
        jacobian = torch.autograd.functional.jacobian(last, x[:, sample])  # (units, steps, inputs)
        squares = squares + torch.einsum("u,uti->ti", v, jacobian).square().sum(1)
    return 0.5 * torch.log10(squares / cotangent.square().sum())


@pytest.mark.parametrize(("rnn_class", "cell_class"), [(nn.LSTM, nn.LSTMCell), (nn.GRU, nn.GRUCell), (nn.RNN, nn.RNNCell)])
def test_the_slope_of_a_fused_layer_is_that_of_its_unrolled_jacobian(rnn_class, cell_class):
    torch.manual_seed(0)
    rnn, cell = rnn_class(3, 8).double(), cell_class(3, 8).double()
    for name, weight in cell.named_parameters():
        weight.data.copy_(getattr(rnn, f"{name}_l0"))
    x = torch.randn(30, 4, 3, dtype=torch.float64)
    found = only(Outputs(rnn), x)
    cotangent = torch.randn(1, 4, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)[0]
    levels = explicit(cell, x, cotangent).tolist()
    assert found.backward == pytest.approx(levels, abs=1e-9)
    assert found.slope == pytest.approx(-np.polyfit(range(30), levels, 1)[0], abs=1e-4)


@pytest.mark.parametrize("rnn_class", [nn.LSTM, nn.GRU, nn.RNN])
def test_exponents_of_a_cell_are_those_of_its_jacobians_by_autograd(rnn_class):
    torch.manual_seed(0)
    size, steps = 6, 200
    cell = {nn.LSTM: nn.LSTMCell, nn.GRU: nn.GRUCell, nn.RNN: nn.RNNCell}[rnn_class](3, size).double()
    with torch.no_grad():
        cell.weight_hh.mul_(4.0)
    x = torch.randn(1, steps, 3, dtype=torch.float64)
    found = only(Loop(cell), x)

    def step(state, piece):
        new = cell(piece[None], tuple(state[None].chunk(2, 1)) if rnn_class is nn.LSTM else state[None])
        return torch.cat(new, 1)[0] if rnn_class is nn.LSTM else new[0]

    state = torch.zeros(size * (2 if rnn_class is nn.LSTM else 1), dtype=torch.float64)
    basis, logs = torch.eye(len(state), dtype=torch.float64), []
    for piece in x[0]:
        jacobian = torch.autograd.functional.jacobian(lambda s, piece=piece: step(s, piece), state)
        state = step(state, piece).detach()
        basis, triangle = torch.linalg.qr(jacobian @ basis)
        logs.append(triangle.diagonal().abs().log())
    expected = torch.stack(logs[steps // 4 :]).mean(0)
    assert found.lyapunov[:2] == pytest.approx(expected[:2].tolist(), abs=0.02)


# which axis is time ---------------------------------------------------------------------------------------------------------


def place(found):
    return found.axis, found.steps, found.direction


@pytest.mark.parametrize("rnn_class", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_axis_of_fused_layers(rnn_class):
    assert place(only(Outputs(rnn_class(3, 5)), torch.randn(12, 4, 3))) == (0, 12, "forward")
    assert place(only(Outputs(rnn_class(3, 5, batch_first=True)), torch.randn(4, 12, 3))) == (1, 12, "forward")
    assert place(only(Outputs(rnn_class(3, 5)), torch.randn(12, 3))) == (0, 12, "forward")
    assert only(Outputs(rnn_class(3, 5, num_layers=3)), torch.randn(12, 4, 3)).steps == 12


def test_the_two_layouts_of_a_layer_measure_the_same():
    torch.manual_seed(0)
    first, second = nn.LSTM(3, 5), nn.LSTM(3, 5, batch_first=True)
    second.load_state_dict(first.state_dict())
    x = torch.randn(12, 4, 3)
    one, other = only(Outputs(first), x), only(Outputs(second), x.transpose(0, 1).contiguous())
    assert one.backward == pytest.approx(other.backward, abs=1e-4)
    assert one.lyapunov == pytest.approx(other.lyapunov, abs=1e-6)


@pytest.mark.parametrize("samples", [1, 4])
def test_each_direction_of_a_bidirectional_layer_is_measured_from_its_own_end(samples):
    torch.manual_seed(0)
    rnn = nn.RNN(3, 16, bidirectional=True, nonlinearity="relu", bias=False)
    matrix = orthogonal(16).float()
    rnn.weight_hh_l0.data, rnn.weight_hh_l0_reverse.data = 0.9 * torch.eye(16), 0.8 * torch.eye(16)
    for weight in (rnn.weight_ih_l0, rnn.weight_ih_l0_reverse):
        weight.data = matrix[:, :3].abs()
    forward, reverse = over_time(Outputs(rnn), torch.rand(20, samples, 3))
    assert (place(forward), place(reverse)) == ((0, 20, "forward"), (0, 20, "reverse"))
    assert forward.slope == pytest.approx(math.log10(0.9), abs=1e-5)
    assert reverse.slope == pytest.approx(math.log10(0.8), abs=1e-5)
    assert forward.lyapunov[0] == pytest.approx(math.log(0.9), abs=1e-6)
    assert reverse.lyapunov[0] == pytest.approx(math.log(0.8), abs=1e-6)


def test_a_projection_and_a_stack_are_measured():
    torch.manual_seed(0)
    found = only(Outputs(nn.LSTM(3, 8, num_layers=2, proj_size=4)), torch.randn(30, 4, 3))
    assert place(found) == (0, 30, "forward")
    assert found.slope < 0.0
    assert len(found.lyapunov) == 3


class Packed(nn.Module):
    def __init__(self, rnn, lengths):
        super().__init__()
        self.rnn, self.lengths = rnn, lengths

    def forward(self, x):
        packed = pack_padded_sequence(x, self.lengths, batch_first=True, enforce_sorted=False)
        return pad_packed_sequence(self.rnn(packed)[0], batch_first=True)[0]


def test_packed_sequences_are_measured_from_the_end_of_each():
    rnn = nn.RNN(3, 8, nonlinearity="relu", bias=False)
    rnn.weight_hh_l0.data = 0.9 * torch.eye(8)
    rnn.weight_ih_l0.data = torch.rand(8, 3)
    found = only(Packed(rnn, [25, 9, 17]), torch.rand(3, 25, 3))
    assert place(found) == (0, 25, "forward")
    assert found.slope == pytest.approx(math.log10(0.9), abs=0.02)
    assert found.backward[-1] - found.backward[-9] == pytest.approx(-8 * math.log10(0.9), abs=1e-5)


@pytest.mark.parametrize("way", Loop.WAYS)
def test_the_axis_that_a_loop_over_a_cell_walks_along_is_found_in_the_graph(way):
    torch.manual_seed(0)
    found = only(Loop(nn.GRUCell(3, 5), way), torch.randn(6, 12, 3))
    assert (found.axis, found.steps, found.direction) == (1, 12, "forward")


def test_a_loop_over_a_cell_measures_what_the_fused_layer_does():
    torch.manual_seed(0)
    rnn, cell = nn.GRU(3, 8).double(), nn.GRUCell(3, 8).double()
    for name, weight in cell.named_parameters():
        weight.data.copy_(getattr(rnn, f"{name}_l0"))
    x = torch.randn(60, 8, 3, dtype=torch.float64)
    fused, spelled = only(Outputs(rnn), x), only(Loop(cell), x.transpose(0, 1).contiguous())
    assert spelled.slope == pytest.approx(fused.slope, abs=3 * fused.slope_error)
    assert spelled.lyapunov == pytest.approx(fused.lyapunov, abs=1e-9)


def test_a_loop_from_the_end_to_the_start_is_told():
    class Backwards(Linear):
        def forward(self, x):
            return super().forward(torch.stack([x[:, t] for t in reversed(range(x.shape[1]))], 1))

    class Walk(Linear):
        def forward(self, x):
            h = torch.zeros_like(x[:, 0])
            for t in reversed(range(x.shape[1])):
                h = self.hidden(h) + x[:, t]
            return h

    assert only(Walk(0.9 * orthogonal(4)), torch.randn(2, 10, 4)).direction == "reverse"
    assert only(Backwards(0.9 * orthogonal(4)), torch.randn(2, 10, 4)).axis == 1


def test_layers_of_cells_in_one_loop_are_measured_each():
    class Stack(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.GRUCell(3, 5), nn.GRUCell(5, 5)

        def forward(self, x):
            one = two = torch.zeros(x.shape[0], 5)
            for t in range(x.shape[1]):
                one = self.first(x[:, t], one)
                two = self.second(one, two)
            return two

    found = over_time(Stack(), torch.randn(4, 15, 3))
    assert [place(item) for item in found] == [(1, 15, "forward")] * 2


def test_a_weight_that_is_shared_over_depth_walks_along_no_axis():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            for _ in range(6):
                x = torch.tanh(self.layer(x))
            return x

    found = only(Tied(), torch.randn(4, 8))
    assert (found.axis, found.steps) == (None, 6)


# what is left behind --------------------------------------------------------------------------------------------------------


def test_asking_for_the_time_axis_leaves_the_gains_of_the_general_pass_alone(monkeypatch):
    torch.manual_seed(0)
    module, x = Outputs(nn.LSTM(3, 5)), torch.randn(12, 4, 3)
    with_time = measure(TorchRunnable(module, args=(x,)), seeds=1)
    monkeypatch.setattr("gradlint.probe.time.growth.time_profiles", lambda *_: [])
    without = measure(TorchRunnable(module, args=(x,)), seeds=1)
    assert with_time.time
    assert not without.time
    assert with_time.gains == without.gains


def test_a_backward_pass_that_fails_over_time_is_a_note(monkeypatch):
    def fail(*_):
        raise RuntimeError("no kernel")

    monkeypatch.setattr("gradlint.probe.time.growth.time_profiles", fail)
    found = measure(TorchRunnable(Outputs(nn.LSTM(3, 5)), args=(torch.randn(12, 4, 3),)), seeds=1)
    assert found.notes == ("time axis: not measured, no kernel",)
    assert found.growth.decades is not None


@pytest.mark.parametrize("flushed", [True, False])
def test_the_treatment_of_denormal_numbers_is_handed_back_as_it_was(flushed):
    supported = torch.set_flush_denormal(flushed)
    try:
        only(Outputs(nn.GRU(3, 8)), torch.randn(200, 4, 3))
        assert bool(torch.full((), 1e-40) * 1.0 == 0.0) is (flushed and supported)
    finally:
        torch.set_flush_denormal(False)


def test_half_precision_is_measured():
    found = only(Outputs(nn.GRU(3, 8)).bfloat16(), torch.randn(20, 4, 3).bfloat16())
    assert found.slope < 0.0


def test_the_slope_of_a_random_walk_lies_within_its_error_as_often_as_it_should():
    rng = np.random.default_rng(0)
    walks = (-0.05 * np.arange(200) + np.cumsum(rng.normal(0, 0.1, 200)) for _ in range(400))
    inside = [abs(slope - 0.05) < 1.645 * error for slope, error in map(slope_of, walks)]
    assert 0.83 < np.mean(inside) < 0.95


def test_a_slope_within_its_error_has_no_horizon():
    assert horizon_of(0.01, 0.02) == math.inf
    assert horizon_of(-0.03, 0.001) == pytest.approx(100.0)
