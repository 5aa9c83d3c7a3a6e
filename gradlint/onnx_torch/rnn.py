"""RNN, GRU and LSTM, one time step after another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gradlint.onnx_torch.registry import op

Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]

_FIXED: dict[str, Activation] = {
    "relu": torch.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softsign": nnf.softsign,
    "softplus": nnf.softplus,
}
# the default alpha and beta of the others; None where the operator takes none
_SHAPED: dict[str, tuple[Callable[[Tensor, Any, Any], Tensor], float | None, float | None]] = {
    "affine": (lambda x, a, b: a * x + b, 1.0, 0.0),
    "leakyrelu": (lambda x, a, _: nnf.leaky_relu(x, a), 0.01, None),
    "thresholdedrelu": (lambda x, a, _: nnf.threshold(x, a, 0.0), 1.0, None),
    "scaledtanh": (lambda x, a, b: a * torch.tanh(b * x), 1.0, 1.0),
    "hardsigmoid": (lambda x, a, b: torch.clamp(a * x + b, 0.0, 1.0), 0.2, 0.5),
    "elu": (lambda x, a, _: nnf.elu(x, a), 1.0, None),
}


def _activation(name: str, alphas: Iterator[float], betas: Iterator[float], clip: float | None) -> Activation:
    """The activation called `name`, which takes its alpha and beta, if it has such, from the lists."""
    key = name.lower()
    if key in _SHAPED:
        shaped, alpha, beta = _SHAPED[key]
        a = None if alpha is None else next(alphas, alpha)
        b = None if beta is None else next(betas, beta)
        function: Activation = partial(_shape, shaped, a, b)
    elif key in _FIXED:
        function = _FIXED[key]
    else:
        raise ValueError(f"unknown activation {name!r}")
    return function if clip is None else lambda x: function(torch.clamp(x, -clip, clip))


def _shape(function: Callable[[Tensor, Any, Any], Tensor], alpha: Any, beta: Any, x: Tensor) -> Tensor:
    return function(x, alpha, beta)


@dataclass(frozen=True, slots=True)
class _Recurrent:
    """What the three operators share: the inputs after X, and the attributes."""

    weight: Tensor  # (directions, gates x hidden, inputs)
    recurrent: Tensor  # (directions, gates x hidden, hidden)
    bias: Tensor | None  # (directions, 2 x gates x hidden)
    lengths: Tensor | None
    initial: tuple[Tensor | None, ...]
    activations: tuple[Activation, ...]
    direction: str
    layout: int

    def run(self, x: Tensor, make_step: Callable[[int, tuple[Activation, ...], Tensor], Step]) -> tuple[Tensor, ...]:
        """Y and the last states. `make_step(d, activations, recurrent bias)` gives the step function of direction d."""
        x = x.transpose(0, 1) if self.layout else x  # (time, batch, inputs) from here on
        directions, hidden = self.recurrent.shape[0], self.recurrent.shape[2]
        each = len(self.activations) // directions
        sequences, finals = [], []
        for d in range(directions):
            gates = self.weight.shape[1]
            bias = x.new_zeros(2 * gates) if self.bias is None else self.bias[d]
            projected = nnf.linear(x, self.weight[d], bias[:gates])
            step = make_step(d, self.activations[d * each : (d + 1) * each], bias[gates:])
            state = tuple(self._start(value, d, x.new_zeros(x.shape[1], hidden)) for value in self.initial)
            backwards = self.direction == "reverse" or d == 1
            sequence, final = _unroll(step, projected, state, self.lengths, backwards=backwards)
            sequences.append(sequence)
            finals.append(final)
        y = torch.stack(sequences, 1)  # (time, directions, batch, hidden)
        y = y.permute(2, 0, 1, 3) if self.layout else y
        return (y, *(torch.stack(parts, 1 if self.layout else 0) for parts in zip(*finals, strict=True)))

    def _start(self, value: Tensor | None, direction: int, zeros: Tensor) -> Tensor:
        if value is None:
            return zeros
        start = value[:, direction] if self.layout else value[direction]
        if start.shape != zeros.shape:  # torch would broadcast it
            raise ValueError(f"a state of shape {list(value.shape)} does not fit (batch, hidden) = {tuple(zeros.shape)}")
        return start


def _unroll(step: Step, x: Tensor, state: State, lengths: Tensor | None, *, backwards: bool) -> tuple[Tensor, State]:
    """All first states (time, batch, hidden) and the last states; a sequence that is over keeps its state and emits 0."""
    times = range(x.shape[0])
    outputs = [state[0]] * x.shape[0]
    for t in reversed(times) if backwards else times:
        new = step(x[t], state)
        if lengths is None:
            state, outputs[t] = new, new[0]
        else:
            live = (t < lengths)[:, None]
            state = tuple(torch.where(live, after, before) for after, before in zip(new, state, strict=True))
            outputs[t] = torch.where(live, new[0], torch.zeros_like(new[0]))
    return (torch.stack(outputs) if outputs else x.new_zeros(0, *state[0].shape)), state


def _activations(
    default: Sequence[str],
    directions: int,
    *,
    names: Sequence[str] | None,
    alpha: Sequence[float] | None,
    beta: Sequence[float] | None,
    clip: float | None,
) -> tuple[Activation, ...]:
    alphas, betas = iter(alpha or ()), iter(beta or ())
    return tuple(_activation(name, alphas, betas, clip) for name in (names or list(default) * directions))


@op("RNN")
def _rnn(  # noqa: PLR0917 - so many inputs
    x: Tensor,
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    del hidden_size, output_sequence  # the weights and the outputs asked for say it
    functions = _activations(
        ["Tanh"], weight.shape[0], names=activations, alpha=activation_alpha, beta=activation_beta, clip=clip
    )
    shared = _Recurrent(weight, recurrent, bias, lengths, (initial_h,), functions, direction, layout)

    def make_step(d: int, acts: tuple[Activation, ...], rb: Tensor) -> Step:
        return lambda gates, state: (acts[0](gates + nnf.linear(state[0], recurrent[d], rb)),)

    return shared.run(x, make_step)


@op("GRU")
def _gru(  # noqa: PLR0917
    x: Tensor,
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    layout: int = 0,
    linear_before_reset: int = 0,
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    del hidden_size, output_sequence
    functions = _activations(
        ["Sigmoid", "Tanh"], weight.shape[0], names=activations, alpha=activation_alpha, beta=activation_beta, clip=clip
    )
    shared = _Recurrent(weight, recurrent, bias, lengths, (initial_h,), functions, direction, layout)
    size = recurrent.shape[2]

    def make_step(d: int, acts: tuple[Activation, ...], rb: Tensor) -> Step:
        gate, candidate = acts
        r_gates, r_hidden = recurrent[d, : 2 * size], recurrent[d, 2 * size :]
        b_gates, b_hidden = rb[: 2 * size], rb[2 * size :]

        def step(projected: Tensor, state: State) -> State:
            (h,) = state
            update, reset = (gate(part) for part in (projected[:, : 2 * size] + nnf.linear(h, r_gates, b_gates)).chunk(2, 1))
            if linear_before_reset:  # as in cuDNN and torch.nn.GRU
                memory = reset * nnf.linear(h, r_hidden, b_hidden)
            else:
                memory = nnf.linear(reset * h, r_hidden, b_hidden)
            new = candidate(projected[:, 2 * size :] + memory)
            return ((1 - update) * new + update * h,)

        return step

    return shared.run(x, make_step)


@op("LSTM")
def _lstm(  # noqa: PLR0917
    x: Tensor,
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    peephole: Tensor | None = None,
    *,
    activation_alpha: Sequence[float] | None = None,
    activation_beta: Sequence[float] | None = None,
    activations: Sequence[str] | None = None,
    clip: float | None = None,
    direction: str = "forward",
    hidden_size: int | None = None,
    input_forget: int = 0,
    layout: int = 0,
    output_sequence: int = 0,
) -> tuple[Tensor, ...]:
    del hidden_size, output_sequence
    default = ["Sigmoid", "Tanh", "Tanh"]
    functions = _activations(default, weight.shape[0], names=activations, alpha=activation_alpha, beta=activation_beta, clip=clip)
    shared = _Recurrent(weight, recurrent, bias, lengths, (initial_h, initial_c), functions, direction, layout)

    def make_step(d: int, acts: tuple[Activation, ...], rb: Tensor) -> Step:
        gate, candidate, squash = acts
        peek_i, peek_o, peek_f = (None, None, None) if peephole is None else peephole[d].chunk(3)

        def step(projected: Tensor, state: State) -> State:
            h, c = state
            i, o, f, g = (projected + nnf.linear(h, recurrent[d], rb)).chunk(4, 1)
            i = gate(i if peek_i is None else i + peek_i * c)
            f = 1 - i if input_forget else gate(f if peek_f is None else f + peek_f * c)
            c = f * c + i * candidate(g)
            o = gate(o if peek_o is None else o + peek_o * c)
            return o * squash(c), c

        return step

    return shared.run(x, make_step)
