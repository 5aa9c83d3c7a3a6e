"""Loops that people write out: the input is projected inside, the state is multiplied by a matrix, a vector or a number."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import gradlint
from tests.models.recurrent_samples import Factor, Outputs

EXPLODING = {"GL501", "GL502", "GL505"}


def checked(module, *args, **options):
    torch.manual_seed(0)
    return gradlint.check(module, args or (torch.randn(16, 50, 4),), seeds=1, **options)


def errors(report):
    return {finding.rule for finding in report.findings if finding.severity == "error" and finding.confidence != "refuted"}


class Ways(Factor):
    """The same loop in other words."""

    WAYS = ("flipped", "outside", "number", "addcmul", "encoder", "cell", "together")

    def __init__(self, factor, way):
        super().__init__(factor)
        self.way = way
        self.encoder = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 24))
        self.w = nn.Parameter(torch.full((24,), 0.5))

    def forward(self, x):
        h = k = torch.zeros(x.shape[0], 24)
        for t in range(x.shape[1]):
            piece = x[:, t]
            if self.way == "flipped":
                h = torch.relu(h * self.r + self.u(piece))
            elif self.way == "outside":
                h = self.r * torch.relu(self.u(piece) + h)
            elif self.way == "number":
                h = torch.relu(self.u(piece) + self.r[0].item() * h)
            elif self.way == "addcmul":
                h = torch.relu(torch.addcmul(self.u(piece), self.r, h))
            elif self.way == "encoder":
                h = torch.relu(self.encoder(piece) + self.r * h)
            else:
                h = torch.relu(self.u(piece) + self.r * h)
                k = torch.tanh(h + self.w * k)
        return self.head(h + k)


@pytest.mark.parametrize("probe", [True, False])
def test_a_state_that_is_multiplied_by_more_than_one_explodes(probe):
    report = checked(Factor(2.2), probe=probe)
    assert report.verdict == "explodes"
    assert errors(report) & EXPLODING
    assert checked(Factor(0.98), probe=probe).verdict == "healthy"
    assert not errors(checked(Factor(0.98), probe=probe))


@pytest.mark.parametrize("way", Ways.WAYS)
def test_however_the_loop_is_written(way):
    report = checked(Ways(2.2, way))
    assert report.verdict == "explodes"
    assert errors(report) & EXPLODING
    assert not errors(checked(Ways(0.98, way)))


@pytest.mark.parametrize("order", [1, -1])
def test_an_exported_loop_is_measured_in_its_own_order(order, tmp_path):
    torch.manual_seed(0)
    path = tmp_path / "model.onnx"
    torch.onnx.export(Factor(0.5, torch.tanh, order=order), (torch.randn(16, 30, 4),), path, dynamo=False)
    report = gradlint.check(path, seeds=1)
    (time,) = report.result.time
    assert (report.verdict, time.direction, time.steps) == ("healthy", "forward" if order > 0 else "reverse", 30)
    assert time.slope < 0.0


def test_a_loop_that_embeds_its_tokens_one_by_one_has_a_time_axis():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.cell = nn.Embedding(20, 8), nn.GRUCell(8, 8)

        def forward(self, ids):
            h = torch.zeros(len(ids), 8)
            for t in range(ids.shape[1]):
                h = self.cell(self.embed(ids[:, t]), h)
            return h

    (time,) = checked(Tokens(), torch.randint(0, 20, (4, 30))).result.time
    assert (time.axis, time.steps) == (1, 30)
    assert time.slope < 0.0


def test_blocks_that_share_a_scale_and_read_slices_are_no_loop_over_time():
    class Blocks(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers, self.shared = nn.ModuleList(nn.Linear(24, 24) for _ in range(8)), nn.Linear(8, 24)
            self.scale, self.stem = nn.Parameter(torch.full((24,), 0.1)), nn.Linear(4, 24)
            self.pieces = nn.Linear(4, 64)

        def forward(self, x):
            pieces, x = self.pieces(x).reshape(-1, 8, 8), self.stem(x)
            for index, layer in enumerate(self.layers):
                x = x + self.scale * torch.relu(layer(x)) + 0.3 * self.shared(pieces[:, index])
            return x

    assert checked(Blocks(), torch.randn(16, 4)).result.time == ()


# which states are read, and what a short reach costs -------------------------------------------------------------------------


def costs(report) -> int:
    """The points that a short memory takes from the score, as a negative number."""
    return dict(report.result.made.moved).get("reach", 0)


@pytest.mark.parametrize("probe", [True, False])
def test_the_verdict_says_how_far_the_gradient_reaches_where_the_last_state_is_read(probe):
    report = checked(Factor(0.5, torch.tanh), probe=probe)
    assert report.verdict == "healthy"
    assert costs(report) < 0
    assert "shrinks 1000-fold within" in " ".join(str(report).split())
    assert {"GL504", "GL506"} <= {finding.rule for finding in report.findings if finding.severity == "warning"}


def test_decay_costs_half_as_much_where_every_state_is_read_and_nothing_where_all_are_pooled():
    last, every, pooled = (checked(Factor(0.5, torch.tanh, reads=reads)) for reads in ("last", "every", "pooled"))
    assert [report.result.time[0].reads for report in (last, every, pooled)] == ["last", "every", "pooled"]
    assert costs(last) < costs(every) < costs(pooled) == 0
    assert "1000-fold" not in str(pooled)
    assert not [finding for finding in every.findings if finding.severity == "warning"]


@pytest.mark.parametrize("rnn_class", [nn.LSTM, nn.GRU, nn.RNN])
def test_default_cells_over_twenty_steps_keep_their_score(rnn_class):
    report = checked(Outputs(rnn_class(16, 64, batch_first=True)), torch.randn(4, 20, 16))
    assert costs(report) == 0
    assert "1000-fold" not in str(report)


def test_a_leak_past_the_matrix_is_predicted_no_decay():
    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.u, self.w = nn.Linear(4, 24), nn.Linear(24, 24)

        def forward(self, x):
            h = torch.zeros(x.shape[0], 24)
            for t in range(x.shape[1]):
                h = 0.9 * h + 0.1 * torch.tanh(self.u(x[:, t]) + self.w(h))
            return h

    for probe in (True, False):
        assert costs(checked(Leaky(), torch.randn(8, 60, 4), probe=probe)) == 0
