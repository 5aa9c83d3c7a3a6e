"""Inputs that nobody gave: by the parts of arguments, by the layers that read them, and by repair of what fails."""

from __future__ import annotations

import threading
import time

import pytest
import torch
from torch import nn

from gradlint.errors import InputError
from gradlint.frontends.torch.infer.search import infer
from gradlint.frontends.torch.infer.trial import Trial
from gradlint.frontends.torch.module import TorchRunnable


def model(forward, **children: nn.Module) -> nn.Module:
    """Return a module with the given children and `forward(self, ...)`."""
    made = type("Model", (nn.Module,), {"forward": forward})()
    for name, child in children.items():
        made.add_module(name, child)
    return made


def inferred(module: nn.Module) -> dict[str, str]:
    return {spec.name: spec.text for spec in TorchRunnable(module).inputs}


def flat_image(self, x):
    return self.head(self.conv(x).flatten(1))


def fixed_view(self, x):
    return self.head(self.conv(x).view(-1, self.head.in_features))


def timed(self, x, t):
    return self.conv(x) + self.time(t)[:, :, None, None]


def sine_time(self, x, t):
    angle = t[:, None] * torch.exp(-torch.arange(8.0))[None]
    return self.body(x) + self.time(torch.cat([angle.sin(), angle.cos()], -1))


def propagation(self, x, adj):
    return adj @ self.body(x)


def three_axes(self, h, adj_mat):
    assert adj_mat.shape[0] == h.shape[0]
    assert adj_mat.shape[2] == 1
    return adj_mat[:, :, 0] @ self.body(h)


def edges(self, x, edge_index):
    source, sink = edge_index
    h = self.body(x)
    return torch.zeros_like(h).index_add(0, sink, h[source])


def scores(self, x):
    keys = self.body(x)
    return keys, keys @ keys.transpose(1, 2)


def boolean_mask(self, x, mask):
    keys, found = scores(self, x)
    return found.masked_fill(~mask, -1e9).softmax(-1) @ keys


def added_mask(self, x, attn_mask):
    keys, found = scores(self, x)
    return (found + attn_mask).softmax(-1) @ keys


def unpacked_state(self, x, state):
    h, c = state
    return self.cell(x, (h, c))[0]


def two_states(self, x, h0, c0):
    return self.cell(x, (h0, c0))[0]


def own_cell(self, x, h):
    return self.body(torch.cat([h, x], -1)) * h


def gated_cell(self, x, h, c):
    add, keep, out = self.gates(torch.cat([h, x], -1)).sigmoid().chunk(3, -1)
    return out * (keep * c + add) + h


def by_key(self, batch):
    return self.table(batch["ids"]).mean(1) + self.body(batch["x"])


def keyword(self, x, **more):
    return self.body(x) + self.table(more["labels"])


def several(self, *xs):
    return self.body(xs[0]) + self.other(xs[1])


def joined(self, state_action, action):
    return self.body(torch.cat([state_action, action], 1))


def counted(self, x, steps: int, training: bool):
    for _ in range(steps if training else 0):
        x = self.body(x)
    return x


def unpacked_shape(self, query, key):
    _batch, _length, _width = query.shape
    return self.body(query) @ self.body(key).transpose(1, 2)


def positions(self, img):
    return self.patch(img).flatten(2).transpose(1, 2) + self.at.weight


def named_size(self, img):
    assert img.shape[-1] == self.image_size, f"the image is to be {self.image_size} wide"
    return self.conv(img)


def embedded_late(self, first, second):
    return self.body(first) + self.table(second)


def bounded(self, x, index):
    return self.body(x) + self.table.weight[index]


def waveform(self, wave):
    if wave.dim() != 2:  # no assert: pytest adds the printed tensor to its message, and sizes are read from messages
        raise ValueError("samples of several signals")
    return self.conv(wave.unsqueeze(1))


def fields(self, x):
    return self.head(self.table(x + torch.tensor([0, 10, 20])).view(-1, 12))


def pyramid(self, features: list[torch.Tensor]):
    return self.first(features[0]) + self.second(features[1])


def mixed_columns(self, cat, cont):
    return self.head(torch.cat([self.table(cat[:, 0]), cont], 1))


def frames(self, x):
    batch, steps, *rest = x.shape
    return self.conv(x.view(batch * steps, *rest)).view(batch, steps, -1)


def padded(self, input_ids, attention_mask):
    weights = attention_mask.unsqueeze(-1).float()
    return (self.table(input_ids) * weights).sum(1) / weights.sum(1)


def channels_last(self, x):
    return self.body(x).permute(0, 3, 1, 2)[:, :, :4]


SIZED = model(named_size, conv=nn.Conv2d(3, 2, 3))
SIZED.image_size = 44
LINEAR = nn.Linear(6, 6)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (model(flat_image, conv=nn.Conv2d(1, 4, 5), head=nn.Linear(4 * 24 * 24, 10)), {"x": "float32[8,1,28,28]"}),
        (model(fixed_view, conv=nn.Conv2d(1, 4, 5), head=nn.Linear(4 * 24 * 24, 10)), {"x": "float32[8,1,28,28]"}),
        (model(fixed_view, conv=nn.Conv2d(3, 4, 3, stride=2), head=nn.Linear(4 * 21 * 21, 10)), {"x": "float32[8,3,43,43]"}),
        (model(fixed_view, conv=nn.Conv1d(2, 4, 5), head=nn.Linear(4 * 96, 10)), {"x": "float32[8,2,100]"}),
        (model(fixed_view, conv=nn.Conv3d(1, 2, 3), head=nn.Linear(2 * 10**3, 3)), {"x": "float32[8,1,12,12,12]"}),
        (
            model(timed, conv=nn.Conv2d(3, 8, 3, padding=1), time=nn.Embedding(50, 8)),
            {"x": "float32[8,3,64,64]", "t": "int64[8]<50"},
        ),
        (model(sine_time, body=nn.Linear(5, 4), time=nn.Linear(16, 4)), {"x": "float32[8,5]", "t": "int64[8]<100"}),
        (model(propagation, body=nn.Linear(7, 4)), {"x": "float32[8,7]", "adj": "float32[8,8]"}),
        (model(three_axes, body=nn.Linear(7, 4)), {"h": "float32[8,7]", "adj_mat": "float32[8,8,1]"}),
        (model(edges, body=nn.Linear(7, 4)), {"x": "float32[8,7]", "edge_index": "int64[2,16]<8"}),
        (model(boolean_mask, body=LINEAR), {"x": "float32[8,16,6]", "mask": "bool[16,16]"}),
        (model(added_mask, body=LINEAR), {"x": "float32[8,16,6]", "attn_mask": "float32[16,16]"}),
        (
            model(unpacked_state, cell=nn.LSTMCell(5, 4)),
            {"x": "float32[8,5]", "state.0": "float32[8,4]", "state.1": "float32[8,4]"},
        ),
        (
            model(two_states, cell=nn.LSTM(5, 4, 2)),
            {"x": "float32[32,8,5]", "h0": "float32[2,8,4]", "c0": "float32[2,8,4]"},
        ),
        (model(own_cell, body=nn.Linear(9, 6)), {"x": "float32[8,3]", "h": "float32[8,6]"}),
        (model(gated_cell, gates=nn.Linear(9, 18)), {"x": "float32[8,3]", "h": "float32[8,6]", "c": "float32[8,6]"}),
        (
            model(by_key, table=nn.Embedding(30, 4), body=nn.Linear(6, 4)),
            {"batch.ids": "int64[8,16]<30", "batch.x": "float32[8,6]"},
        ),
        (model(keyword, body=LINEAR, table=nn.Embedding(9, 6)), {"x": "float32[8,6]", "labels": "int64[8]<9"}),
        (model(several, body=nn.Linear(6, 4), other=nn.Linear(3, 4)), {"x": "float32[8,6]", "args.1": "float32[8,3]"}),
        (model(joined, body=nn.Linear(14, 4)), {"state_action": "float32[8,7]", "action": "float32[8,7]"}),
        (model(counted, body=LINEAR), {"x": "float32[8,6]"}),
        (model(unpacked_shape, body=LINEAR), {"query": "float32[8,16,6]", "key": "float32[8,16,6]"}),
        (model(positions, patch=nn.Conv2d(3, 8, 8, 8), at=nn.Embedding(36, 8)), {"img": "float32[8,3,48,48]"}),
        (model(waveform, conv=nn.Conv1d(1, 4, 80, 16)), {"wave": "float32[8,1024]"}),
        (model(fields, table=nn.Embedding(30, 4), head=nn.Linear(12, 1)), {"x": "int64[8,3]<6"}),
        (
            model(pyramid, first=nn.Conv2d(3, 4, 3), second=nn.Conv2d(5, 4, 3)),
            {"features.0": "float32[8,3,64,64]", "features.1": "float32[8,5,64,64]"},
        ),
        (
            model(mixed_columns, table=nn.Embedding(5, 3), head=nn.Linear(7, 1)),
            {"cat": "int64[8,4]<5", "cont": "float32[8,4]"},
        ),
        (model(frames, conv=nn.Conv2d(3, 4, 3)), {"x": "float32[8,3,3,64,64]"}),
        (model(padded, table=nn.Embedding(22, 4)), {"input_ids": "int64[8,16]<22", "attention_mask": "bool[8,16]"}),
        (model(channels_last, body=nn.Linear(3, 8)), {"x": "float32[8,32,32,3]"}),
        (SIZED, {"img": "float32[8,3,44,44]"}),
        (
            model(embedded_late, body=LINEAR, table=nn.Embedding(11, 6)),
            {"first": "float32[8,16,6]", "second": "int64[8,16]<11"},
        ),
        (model(bounded, body=LINEAR, table=nn.Embedding(7, 6)), {"x": "float32[8,16,6]", "index": "int64[8,16]<7"}),
    ],
    ids=lambda value: type(value).forward.__name__ if isinstance(value, nn.Module) else "",
)
def test_inputs_of_each_kind_are_found(module, expected):
    started = time.perf_counter()
    assert inferred(module) == expected
    assert time.perf_counter() - started < 10.0


def test_a_mask_has_both_kinds_of_entries_in_each_row_and_an_added_one_changes_nothing():
    masked, added = (TorchRunnable(model(forward, body=LINEAR)).inputs[1].value for forward in (boolean_mask, added_mask))
    assert masked.any(1).all()
    assert not masked.all(1).any()
    assert not added.any()


def test_an_adjacency_matrix_keeps_the_size_of_a_signal():
    adjacency = TorchRunnable(model(propagation, body=nn.Linear(7, 4))).inputs[1].value
    assert adjacency.sum(1) == pytest.approx(1.0)


def test_sizes_of_numpy_are_sizes():
    import numpy as np

    module = nn.Sequential(nn.Linear(np.prod((3, 2)), 120), nn.ReLU(), nn.Linear(120, 4))
    assert inferred(module) == {"input": "float32[8,6]"}


def test_inputs_that_a_module_holds_are_taken():
    class Holds(nn.Linear):
        @property
        def dummy_inputs(self):
            return {"input": torch.zeros(3, 6)}

    class Breaks(nn.Linear):
        @property
        def dummy_inputs(self):
            raise RuntimeError("not built")

    exported = torch.export.export(nn.Linear(6, 2), (torch.zeros(5, 6),)).module()
    assert [inferred(module) for module in (Holds(6, 2), Breaks(6, 2), exported)] == [
        {"input": "float32[3,6]"},
        {"input": "float32[8,6]"},
        {"input": "float32[5,6]"},
    ]


def test_views_that_mix_samples_are_taken_only_if_nothing_else_runs():
    def mixes(self, x):
        return self.head(self.conv(x).view(-1, 40))

    assert inferred(model(mixes, conv=nn.Conv1d(2, 3, 5), head=nn.Linear(40, 2))) == {"x": "float32[8,2,64]"}


def test_the_search_ends_with_its_budget():
    def slow(self, x):
        while True:
            x = x + 1

    started = time.perf_counter()
    module = model(slow, body=LINEAR)
    runnable = TorchRunnable(LINEAR)
    runnable.module = module
    with pytest.raises(InputError, match=r"could not infer the inputs of Model; .* s were over"):
        infer(module, (), runnable._attempt, budget=0.3)
    assert time.perf_counter() - started < 2.0


def test_a_trial_knows_where_tensors_come_from_and_what_failed():
    module = model(joined, body=nn.Linear(14, 4))
    tensors, trial = [torch.zeros(8, 3), torch.zeros(8, 4)], Trial()
    with pytest.raises(RuntimeError), trial.watching(["a", "b"], tensors, time.perf_counter() + 10.0):
        module(*tensors)
    assert (trial.function, trial.sources(trial.args[0])) == ("linear", ("a", "b"))
    assert type(trial.layers[-1][0]) is nn.Linear
    assert trial.uses == {"a": ["cat"], "b": ["cat"]}


def test_modules_that_run_in_another_thread_are_not_taken_for_layers():
    trial, entered, done = Trial(), threading.Event(), threading.Event()

    class Waiting(nn.Module):
        def forward(self, value):
            entered.set()
            done.wait(10.0)
            return value

    other, x = Waiting(), torch.randn(2, 4)
    with trial.watching(["x"], [x], time.perf_counter() + 60.0):
        thread = threading.Thread(target=other, args=(torch.randn(1, 3),))
        thread.start()
        assert entered.wait(10.0)
        layers = list(trial.layers)
        done.set()
        thread.join()
    assert layers == []
