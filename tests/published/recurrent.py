"""Failures along time: what a recurrence multiplies, forgets, or throws off the rails in one step."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tests.published.case import Fails, Setup, cross_entropy, mse, published


class _LastState(nn.Module):
    """A recurrence, and a linear read-out of its last state."""

    def __init__(self, cell: nn.RNNBase, outputs: int) -> None:
        super().__init__()
        self.cell, self.head = cell, nn.Linear(cell.hidden_size, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cell(x)[0][:, -1])


def _adding_problem(samples: int, steps: int) -> tuple[Tensor, Tensor]:
    """Two of many numbers are marked, and their sum is asked for (Hochreiter and Schmidhuber 1997)."""
    values, marks = torch.rand(samples, steps), torch.zeros(samples, steps)
    for half in (0, steps // 2):
        marks.scatter_(1, torch.randint(half, half + steps // 2, (samples, 1)), 1.0)
    return torch.stack((values, marks), -1), (values * marks).sum(1, keepdim=True)


def _first_bit(samples: int, steps: int) -> tuple[Tensor, Tensor]:
    """The class is shown at the first step, and nothing thereafter."""
    labels = torch.arange(samples) % 2
    x = torch.zeros(samples, steps, 2)
    x[:, 0] = 2.0 * nn.functional.one_hot(labels, 2).float()
    return x, labels


@published(
    "relu-rnn-without-identity", kind="recurrence", fails=Fails.DIVERGES, expects="GL501 GL502 GL505 GL801 GL807", steps=30
)
def relu_rnn(fixed: bool) -> Setup:
    """A ReLU network with a random recurrent matrix multiplies its state at every step and overflows over a long sequence.

    The fix starts the recurrent matrix at the identity, with zero biases and clipped gradients.

    Source: Le, Jaitly and Hinton, "A Simple Way to Initialize Recurrent Networks of Rectified Linear Units", 2015, arXiv
    1504.00941.
    """
    cell = nn.RNN(2, 48, nonlinearity="relu", batch_first=True)
    nn.init.zeros_(cell.bias_ih_l0)
    nn.init.zeros_(cell.bias_hh_l0)
    nn.init.normal_(cell.weight_ih_l0, std=0.05)
    if fixed:
        nn.init.eye_(cell.weight_hh_l0)
    else:
        nn.init.normal_(cell.weight_hh_l0, std=2.0 / math.sqrt(48))
    x, target = _adding_problem(32, 80)
    return Setup(_LastState(cell, 1), x, target, mse, {"optimizer": "sgd", "lr": 0.02, "clip_norm": 1.0 if fixed else None})


class _ReluLstm(nn.Module):
    """An LSTM written out, with the activation of cell and output as a choice."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.gates, self.head, self.activation = nn.Linear(2 + 32, 4 * 32), nn.Linear(32, 1), activation

    def forward(self, x: Tensor) -> Tensor:
        hidden = cell = x.new_zeros(len(x), 32)
        for step in x.unbind(1):
            update, keep, candidate, show = self.gates(torch.cat((step, hidden), -1)).chunk(4, -1)
            cell = keep.sigmoid() * cell + update.sigmoid() * self.activation(candidate)
            hidden = show.sigmoid() * self.activation(cell)
        return self.head(hidden)


@published("lstm-with-relu", kind="recurrence", fails=Fails.DIVERGES, expects="GL501 GL502 GL505 GL703 GL801 GL807", steps=30)
def relu_lstm(fixed: bool) -> Setup:
    """An LSTM layer is given ReLU in place of tanh; nothing bounds its state, and the loss explodes.

    The fix goes back to tanh.

    Source: AlexanderVNikitin/tsgm issue 59, "Loss explosion issue in ConvnLSTMnArchitecture", 2024; keras-team/keras issue
    2194, 2016.
    """
    model = _ReluLstm(nn.Tanh() if fixed else nn.ReLU())
    nn.init.orthogonal_(model.gates.weight, gain=5.0)
    x, target = _adding_problem(32, 60)
    return Setup(model, x, target, mse, {"optimizer": "sgd", "lr": 0.05})


@published("plain-rnn-long-memory", kind="recurrence", fails=Fails.STUCK, expects="GL504 GL506 GL802", steps=60)
def plain_rnn(fixed: bool) -> Setup:
    """A tanh network must remember its first input over 60 steps; the gradient from there is gone long before it arrives.

    The fix is an LSTM whose forget gates start with time constants as long as the sequence.

    Source: Bengio, Simard and Frasconi, "Learning long-term dependencies with gradient descent is difficult", 1994; Tallec and
    Ollivier, "Can recurrent neural networks warp time?", 2018, arXiv 1804.11188.
    """
    cell = _chrono(nn.LSTM(2, 16, batch_first=True), 60) if fixed else nn.RNN(2, 16, batch_first=True)
    x, labels = _first_bit(32, 60)
    return Setup(_LastState(cell, 2), x, labels, cross_entropy, {"optimizer": "adam", "lr": 1e-2, "clip_norm": 1.0})


@published("lstm-that-forgets", kind="recurrence", fails=Fails.STUCK, expects="GL503 GL506 GL802", steps=60)
def forgetful_lstm(fixed: bool) -> Setup:
    """The forget gates start at one half, so an LSTM loses a factor of two at every step and learns nothing over 60 of them.

    The fix starts the forget-gate biases high.

    Source: Jozefowicz, Zaremba and Sutskever, "An Empirical Exploration of Recurrent Network Architectures", 2015; Gers,
    Schmidhuber and Cummins, "Learning to forget", 2000.
    """
    cell = nn.LSTM(2, 16, batch_first=True)
    if fixed:
        _chrono(cell, 60)
    x, labels = _first_bit(32, 60)
    return Setup(_LastState(cell, 2), x, labels, cross_entropy, {"optimizer": "adam", "lr": 1e-2, "clip_norm": 1.0})


def _chrono(cell: nn.LSTM, steps: int) -> nn.LSTM:
    """Forget gates whose time constants spread to the length of the sequence."""
    memory = torch.linspace(2.0, float(steps), cell.hidden_size).log()
    with torch.no_grad():
        for bias in (cell.bias_ih_l0, cell.bias_hh_l0):
            bias.zero_()
        cell.bias_ih_l0[: cell.hidden_size] = -memory
        cell.bias_ih_l0[cell.hidden_size : 2 * cell.hidden_size] = memory
    return cell


class _LanguageModel(nn.Module):
    def __init__(self, words: int, size: int) -> None:
        super().__init__()
        self.embed, self.cell = nn.Embedding(words, size), nn.RNN(size, size, batch_first=True)
        self.head = nn.Linear(size, words)
        nn.init.uniform_(self.embed.weight, -0.1, 0.1)
        nn.init.uniform_(self.head.weight, -0.1, 0.1)
        nn.init.zeros_(self.head.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.cell(self.embed(tokens))[0])


@published("language-model-without-clipping", kind="clipping", fails=Fails.BEHIND, expects="GL701 GL703 GL807")
def unclipped(fixed: bool) -> Setup:
    """A character model is trained by SGD with the large step that word-level examples use, but without their clipping.

    The fix clips the norm of the gradient.

    Source: pytorch/pytorch issue 2623, "How to handle exploding/vanishing gradient in Pytorch", 2017; Pascanu, Mikolov and
    Bengio, "On the difficulty of training recurrent neural networks", 2013, arXiv 1211.5063.
    """
    text = (torch.arange(25)[None, :] * torch.tensor([1, 2, 3, 5])[:, None] + torch.arange(4)[:, None]) % 20
    recipe = {"optimizer": "sgd", "lr": 10.0, "clip_norm": 0.1 if fixed else None}
    return Setup(_LanguageModel(20, 32), text[:, :-1], text[:, 1:], cross_entropy, recipe)
