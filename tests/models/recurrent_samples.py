"""Recurrent models that more than one test measures."""

from __future__ import annotations

import torch
from torch import nn


class Scan(nn.Module):
    """A diagonal state-space model, h' = a h + x, written as a loop."""

    def __init__(self, width, decay):
        super().__init__()
        self.decay = nn.Parameter(torch.full((width,), decay))
        self.out = nn.Linear(width, width)

    def forward(self, x):
        h, ys = torch.zeros_like(x[:, 0]), []
        for t in range(x.shape[1]):
            h = self.decay * h + x[:, t]
            ys.append(h)
        return self.out(torch.stack(ys, 1))


class Outputs(nn.Module):
    """The output sequence of a recurrent layer, so that a cotangent on all of it would not do."""

    def __init__(self, rnn):
        super().__init__()
        self.rnn = rnn

    def forward(self, x, *state):
        return self.rnn(x, *state)[0]
