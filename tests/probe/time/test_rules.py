"""What rules make of growth along time: notes on usual starts, warnings on what cannot work, errors on what explodes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

import gradlint
from tests.models.recurrent_samples import Outputs, Scan


class LastStep(Outputs):
    def forward(self, x):
        return super().forward(x)[:, -1]


def told(module, *args):
    report = gradlint.check(module, args, seeds=1, select=("GL5",))
    return {finding.rule: finding.severity.value for finding in report.findings if finding.confidence == "measured"}


@pytest.mark.parametrize(
    ("rnn_class", "expected"),
    [
        (nn.LSTM, {"GL503": "note", "GL506": "note"}),
        (nn.GRU, {"GL506": "note"}),
        (nn.RNN, {"GL504": "note", "GL506": "note"}),
    ],
)
def test_default_cells_over_many_steps_are_no_errors(rnn_class, expected):
    torch.manual_seed(0)
    assert told(Outputs(rnn_class(16, 64, batch_first=True)), torch.randn(4, 150, 16)) == expected
    assert told(Outputs(rnn_class(16, 64, batch_first=True)), torch.randn(4, 20, 16)) == {}


def test_an_lstm_read_at_its_last_step_has_to_remember():
    torch.manual_seed(0)
    rnn, x = nn.LSTM(16, 64, batch_first=True), torch.randn(4, 100, 16)
    assert told(LastStep(rnn), x) == {"GL503": "warning", "GL506": "warning"}
    with torch.no_grad():
        rnn.bias_ih_l0[64:128] = 3.0
    assert told(LastStep(rnn), x) == {}


def test_a_state_space_model_that_grows_is_an_error_whose_cause_is_its_factor():
    assert told(Scan(6, 1.3), torch.randn(3, 40, 6)) == {"GL502": "error", "GL505": "error"}


def test_a_chaotic_network_is_explained_by_its_spectral_radius():
    generator = torch.Generator().manual_seed(0)
    rnn = nn.RNN(1, 64, bias=False)
    rnn.weight_hh_l0.data = 3.0 / math.sqrt(64) * torch.randn(64, 64, generator=generator)
    module, start = Outputs(rnn), torch.randn(1, 2, 64, generator=generator)
    report = gradlint.check(module, (torch.zeros(60, 2, 1), start), seeds=1, select=("GL5",))
    (symptom,) = (finding for finding in report.findings if finding.rule == "GL505")
    assert symptom.caused_by == "GL502"
    assert symptom.evidence["lyapunov"][0] == pytest.approx(0.31, abs=0.1)
