"""RNN, GRU and LSTM, computed step by step."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from gradlint.onnx_torch.registry import KERNELS, op
from gradlint.ops import by_nonlinearity

Activation = Callable[[Tensor], Tensor]
State = tuple[Tensor, ...]
Step = Callable[[Tensor, State], State]

_OWN: dict[str, Callable[..., Tensor]] = {  # activations of the recurrent operators that are no operators themselves
    "affine": lambda x, alpha=1.0, beta=0.0: alpha * x + beta,
    "scaledtanh": lambda x, alpha=1.0, beta=1.0: alpha * torch.tanh(beta * x),
}


def _activation(name: str, alphas: Iterator[float], betas: Iterator[float], clip: float | None) -> Activation:
    """Return the activation `name`. If it has parameters, they are the next ones of `alphas` and `betas`.

    Raises ValueError if the name is unknown.
    """
    function, takes = _named(name)
    lists = {key: values for key, values in (("alpha", alphas), ("beta", betas)) if key in takes}
    given = {key: value for key, values in lists.items() if (value := next(values, None)) is not None}
    ready: Activation = partial(function, **given) if given else function
    return ready if clip is None else lambda x: ready(torch.clamp(x, -clip, clip))


def _named(name: str) -> tuple[Callable[..., Tensor], Collection[str]]:
    """Return the function of an activation and the names of its attributes, by its ONNX name in any case."""
    key = name.lower()
    if key in _OWN:
        return _OWN[key], ("alpha", "beta")
    types = {type_.lower(): type_ for type_ in by_nonlinearity(name).kernels}
    if key not in types:
        raise ValueError(f"unknown activation {name!r}")
    kernel = KERNELS[types[key]]
    return kernel.function, kernel.attributes


@dataclass(frozen=True, slots=True)
class _Recurrent:
    """The inputs after X and the attributes, which the three operators have in common."""

    weight: Tensor  # (directions, gates x hidden, inputs)
    recurrent: Tensor  # (directions, gates x hidden, hidden)
    bias: Tensor | None  # (directions, 2 x gates x hidden)
    lengths: Tensor | None
    initial: tuple[Tensor | None, ...]
    activations: tuple[Activation, ...]
    direction: str
    layout: int

    def run(self, x: Tensor, make_step: Callable[[int, tuple[Activation, ...], Tensor], Step]) -> tuple[Tensor, ...]:
        """Return Y and the final states. `make_step(d, activations, recurrent bias)` makes the step function of direction d."""
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
        if start.shape != zeros.shape:  # torch would broadcast a state that does not fit
            raise ValueError(f"a state of shape {list(value.shape)} does not fit (batch, hidden) = {tuple(zeros.shape)}")
        return start


def _unroll(step: Step, x: Tensor, state: State, lengths: Tensor | None, *, backwards: bool) -> tuple[Tensor, State]:
    """Return the hidden states, of shape (time, batch, hidden), and the final states.

    After its end, a shorter sequence keeps its state and has output 0.
    """
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
def _rnn(  # noqa: PLR0917 - one parameter per input of the operator
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
    del hidden_size, output_sequence  # implied by the weights and the outputs
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


def lstm(  # noqa: PLR0917
    x: Tensor,
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None,
    lengths: Tensor | None,
    initial: tuple[Tensor | None, Tensor | None],
    peephole: Tensor | None,
    read: Activation,
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
    """Return Y and the final states of an LSTM. The recurrent weights multiply `read(h)`."""
    del hidden_size, output_sequence
    default = ["Sigmoid", "Tanh", "Tanh"]
    functions = _activations(default, weight.shape[0], names=activations, alpha=activation_alpha, beta=activation_beta, clip=clip)
    shared = _Recurrent(weight, recurrent, bias, lengths, initial, functions, direction, layout)

    def make_step(d: int, acts: tuple[Activation, ...], rb: Tensor) -> Step:
        gate, candidate, squash = acts
        peek_i, peek_o, peek_f = (None, None, None) if peephole is None else peephole[d].chunk(3)

        def step(projected: Tensor, state: State) -> State:
            h, c = state
            i, o, f, g = (projected + nnf.linear(read(h), recurrent[d], rb)).chunk(4, 1)
            i = gate(i if peek_i is None else i + peek_i * c)
            f = 1 - i if input_forget else gate(f if peek_f is None else f + peek_f * c)
            c = f * c + i * candidate(g)
            o = gate(o if peek_o is None else o + peek_o * c)
            return o * squash(c), c

        return step

    return shared.run(x, make_step)


@op("LSTM", like=lstm)
def _lstm(  # noqa: PLR0917
    x: Tensor,
    weight: Tensor,
    recurrent: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_h: Tensor | None = None,
    initial_c: Tensor | None = None,
    peephole: Tensor | None = None,
    **attributes: Any,
) -> tuple[Tensor, ...]:
    return lstm(x, weight, recurrent, bias, lengths, (initial_h, initial_c), peephole, lambda h: h, **attributes)
