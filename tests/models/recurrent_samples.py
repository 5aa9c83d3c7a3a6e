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


class Factor(nn.Module):
    """h = act(U x_t + r h): the input is projected inside the loop, the state is multiplied unit by unit.

    `order` is that of the steps; `reads` is which states the head reads: "last", "every" or "pooled".
    """

    def __init__(self, factor, act=torch.relu, *, reads="last", order=1):
        super().__init__()
        self.u, self.r, self.head = nn.Linear(4, 24), nn.Parameter(torch.full((24,), factor)), nn.Linear(24, 2)
        self.act, self.reads, self.order = act, reads, order

    def forward(self, x):
        h, states = torch.zeros(x.shape[0], 24), []
        for t in range(x.shape[1])[:: self.order]:
            h = self.act(self.u(x[:, t]) + self.r * h)
            states.append(h)
        return self.head(h if self.reads == "last" else torch.stack(states, 1) if self.reads == "every" else sum(states))
