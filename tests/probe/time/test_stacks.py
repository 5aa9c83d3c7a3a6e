"""Stacks of bidirectional layers and packed sequences: the pace of each direction, its length, and what is made of them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import gradlint
from gradlint.frontends.torch.module import TorchRunnable
from gradlint.probe.measure import measure
from gradlint.report.formats.full import render

LENGTHS = (60, 41, 52, 20)


class Read(nn.Module):
    """A recurrent layer and the outputs of its steps, or two classes from its last states; packed where lengths are given."""

    def __init__(self, rnn, lengths=None, *, classes=False):
        super().__init__()
        self.rnn, self.lengths = rnn, lengths
        self.head = nn.Linear(rnn.hidden_size * (1 + rnn.bidirectional), 2) if classes else None

    def forward(self, x):
        if self.lengths is None:
            outputs, state = self.rnn(x)
        else:
            packed, state = self.rnn(pack_padded_sequence(x, torch.tensor(self.lengths), batch_first=True, enforce_sorted=False))
            outputs, _ = pad_packed_sequence(packed, batch_first=True)
        if self.head is None:
            return outputs
        last = state[0] if isinstance(state, tuple) else state
        return self.head(last[-2:].transpose(0, 1).flatten(1))


def scaled(rates, width=6):
    """Two bidirectional ReLU layers whose recurrent matrices are multiples of the identity, with states that stay on."""
    rnn = nn.RNN(3, width, num_layers=2, nonlinearity="relu", bias=False, batch_first=True, bidirectional=True)
    names = [f"l{layer}{end}" for layer, end in itertools.product(range(2), ("", "_reverse"))]
    for name, rate in zip(names, rates, strict=True):
        getattr(rnn, f"weight_hh_{name}").data = rate * torch.eye(width)
        getattr(rnn, f"weight_ih_{name}").data.abs_()
    return rnn


def sampled(lengths=None, **options):
    torch.manual_seed(0)
    return Read(scaled((0.9, 0.8, 0.7, 0.85)), lengths, **options), torch.rand(4, 60, 3)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_each_direction_of_a_stack_has_the_pace_of_its_slowest_layer(lengths):
    module, x = sampled(lengths)
    forward, reverse = measure(TorchRunnable(module, args=(x,)), seeds=1, seed=0).time
    assert [(item.direction, item.steps) for item in (forward, reverse)] == [("forward", 60), ("reverse", 60)]
    assert forward.slope == pytest.approx(math.log10(0.9), abs=0.01)
    assert reverse.slope == pytest.approx(math.log10(0.85), abs=0.01)


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_stack_is_asked_layer_by_layer_as_its_layers_are_on_their_own(kind):
    torch.manual_seed(0)
    stack, layer = (kind(3, 5, num_layers=layers, batch_first=True, bidirectional=True).double() for layers in (2, 1))
    first = {name: weight for name, weight in stack.state_dict().items() if "_l0" in name}
    for name, weight in stack.named_parameters():
        if "weight_hh_l1" in name:
            weight.data.zero_()  # the second layer forgets first, so that the first one is told of
    layer.load_state_dict(first)
    x = torch.randn(8, 40, 3, dtype=torch.float64)
    found, alone = (measure(TorchRunnable(Read(rnn), args=(x,)), seeds=1, seed=0).time for rnn in (stack, layer))
    for item, other in zip(found, alone, strict=True):
        assert item.slope == pytest.approx(other.slope, abs=3 * other.slope_error)


def broken(lengths):
    torch.manual_seed(0)
    rnn = nn.RNN(8, 32, num_layers=2, nonlinearity="relu", batch_first=True, bidirectional=True)
    for name, weight in rnn.named_parameters():
        if "weight_hh" in name:
            nn.init.normal_(weight, std=0.4)
    x, target = torch.randn(4, 60, 8), torch.tensor([0, 1, 0, 1])
    recipe = gradlint.Recipe("sgd", lr=0.1)
    return gradlint.check(Read(rnn, lengths, classes=True), (x,), target=target, loss=F.cross_entropy, recipe=recipe, seeds=1)


@pytest.mark.parametrize("lengths", [None, LENGTHS])
def test_a_packed_recurrence_that_explodes_gets_the_rules_that_a_padded_one_gets(lengths):
    report = broken(lengths)
    causes = {finding.rule: finding.caused_by for finding in report.findings}
    assert causes.keys() >= {"GL501", "GL502", "GL505", "GL701"}
    assert (causes["GL501"], causes["GL502"], causes["GL505"]) == (None, "GL501", "GL501")
    (clipping,) = (finding for finding in report.findings if finding.rule == "GL701")
    assert clipping.evidence["steps"] == 60
    page = render([report.result], version="0")
    assert "time steps of rnn:rnn  " in page
    assert "time steps of rnn:rnn backwards " in page


def test_the_gradient_before_a_packed_recurrence_is_predicted():
    torch.manual_seed(0)
    rnn = nn.LSTM(8, 32, num_layers=2, batch_first=True, bidirectional=True)
    module = nn.Sequential(nn.Linear(8, 8), Read(rnn, LENGTHS, classes=True))
    report = gradlint.check(module, (torch.randn(4, 60, 8),), target=torch.tensor([0, 1, 0, 1]), loss=F.cross_entropy, seeds=1)
    first = report.spine[1]
    assert first.backward < -0.8
    assert first.predicted_backward == pytest.approx(first.backward, abs=0.4)
    assert "GL903" not in {finding.rule for finding in report.findings}


class Gates(nn.Module):
    """An LSTM written out with ReLU where tanh belongs."""

    def __init__(self, activation):
        super().__init__()
        self.gates, self.activation = nn.Linear(2 + 32, 4 * 32), activation
        nn.init.orthogonal_(self.gates.weight, gain=5.0)

    def forward(self, x):
        hidden = cell = x.new_zeros(len(x), 32)
        for step in x.unbind(1):
            update, keep, candidate, show = self.gates(torch.cat((step, hidden), -1)).chunk(4, -1)
            cell = keep.sigmoid() * cell + update.sigmoid() * self.activation(candidate)
            hidden = show.sigmoid() * self.activation(cell)
        return hidden


def test_growth_through_an_unbounded_activation_of_a_written_cell_names_it():
    torch.manual_seed(0)
    report = gradlint.check(Gates(nn.ReLU()), (torch.randn(4, 60, 2),), seeds=1)
    (growth,) = (finding for finding in report.findings if finding.rule == "GL505")
    assert growth.message.endswith("through relu, which does not bound the state")
    assert growth.remedy.summary.startswith("use tanh in place of relu")


def test_growth_of_a_state_space_model_is_mended_at_its_decay():
    class Scan(nn.Module):
        def __init__(self):
            super().__init__()
            self.decay = nn.Parameter(torch.full((6,), 1.3))
            self.out = nn.Linear(6, 6)

        def forward(self, x):
            h = torch.zeros_like(x[:, 0])
            for t in range(x.shape[1]):
                h = self.decay * h + x[:, t]
            return self.out(h)

    report = gradlint.check(Scan(), (torch.randn(3, 40, 6),), seeds=1)
    (growth,) = (finding for finding in report.findings if finding.rule == "GL505")
    assert "decay of the state below one" in growth.remedy.summary


@pytest.mark.parametrize(("steps", "said"), [(6, "decades over all its 6 steps"), (60, "three decades in")])
def test_a_horizon_beyond_the_sequence_is_told_by_what_the_sequence_loses(steps, said):
    torch.manual_seed(0)
    report = gradlint.check(Read(nn.GRU(3, 16, batch_first=True)), (torch.randn(4, steps, 3),), seeds=1)
    assert said in " ".join(render([report.result], version="0").split())
