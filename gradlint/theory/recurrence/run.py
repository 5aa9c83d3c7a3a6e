"""Run recurrent cells over a sequence in numpy, and pull cotangents back through the run exactly.

A sequence has shape (steps, samples, features). Cotangents and gradients have shape (kinds, steps, samples, features), so that
several cotangents are pulled back through one run at once.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlint.ops import activation as function_of
from gradlint.ops import derivative
from gradlint.theory.recurrence.read import Cell

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Pullback = Callable[[Array], Array]


def precision(cell: Cell) -> type[np.floating[Any]]:
    """Return the dtype of a run: float32 for gated cells, whose state is bounded, and float64 for plain ones."""
    return np.float64 if cell.kind == "rnn" else np.float32


def run_layers(layers: Sequence[Sequence[Cell]], x: Array, rng: np.random.Generator) -> tuple[Array, Pullback]:
    """Return the output sequence of stacked layers, with directions concatenated, and the pullback to `x`."""
    pullbacks = []
    for layer in layers:
        x, pullback = _run_layer(layer, x, rng)
        pullbacks.append(pullback)

    def pull(cotangent: Array) -> Array:
        for pullback in reversed(pullbacks):
            cotangent = pullback(cotangent)
        return cotangent

    return x, pull


def _run_layer(layer: Sequence[Cell], x: Array, rng: np.random.Generator) -> tuple[Array, Pullback]:
    keep = 1.0 - layer[0].drop
    mask = (rng.random(x.shape) < keep) / max(keep, 1e-6) if keep < 1.0 else None
    x = (x if mask is None else x * mask).astype(precision(layer[0]), copy=False)
    runs = [_run_cell(cell, x) for cell in layer]
    ends = np.cumsum([0, *(cell.outputs for cell in layer)])

    def pull(cotangent: Array) -> Array:
        parts = (cotangent[..., low:high] for low, high in itertools.pairwise(ends))
        gradient = sum(pullback(part) for (_, pullback), part in zip(runs, parts, strict=True))
        return np.asarray(gradient if mask is None else gradient * mask)

    return np.concatenate([y for y, _ in runs], axis=-1), pull


def _run_cell(cell: Cell, x: Array) -> tuple[Array, Pullback]:
    order = slice(None, None, -1 if cell.backwards else 1)
    dtype = precision(cell)
    weight = None if cell.weight is None else cell.weight.astype(dtype)
    bias = cell.bias.astype(dtype)
    before = (x if weight is None else _times(x, weight.T)) + bias
    y, pull_gates = _RUNS[cell.kind](cell, before[order])

    def pull(cotangent: Array) -> Array:
        gates = pull_gates(cotangent[:, order])[:, order]
        return gates if weight is None else _times(gates, weight)

    return y[order], pull


def _times(stack: Array, matrix: Array) -> Array:
    """Return `stack @ matrix`, computed as one matrix product rather than one for each step."""
    return np.asarray((stack.reshape(-1, stack.shape[-1]) @ matrix).reshape(*stack.shape[:-1], -1))


def _run_rnn(cell: Cell, before: Array) -> tuple[Array, Pullback]:
    """Run the plain cell h' = phi(x + R h)."""
    recurrent = cell.recurrent.astype(before.dtype)
    phi, slope = _function(cell)
    y, slopes = np.empty_like(before), np.empty_like(before)
    h = np.zeros_like(before[0])
    for t, here in enumerate(before):
        z = here + h @ recurrent.T
        h = y[t] = phi(z)
        slopes[t] = slope(z, h)

    def pull(cotangent: Array) -> Array:
        gates = np.empty_like(cotangent)
        back = np.zeros_like(cotangent[:, 0])
        for t in range(len(slopes) - 1, -1, -1):
            gates[:, t] = (cotangent[:, t] + back) * slopes[t]
            back = gates[:, t] @ recurrent
        return gates

    return y, pull


def _function(cell: Cell) -> tuple[Callable[[Array], Array], Callable[[Array, Array], Array]]:
    """Return phi(z), and phi'(z) as a function of z and phi(z)."""
    if cell.activation == "tanh":
        return np.tanh, lambda _, h: 1.0 - h * h
    if cell.activation == "relu":
        return lambda z: np.maximum(z, 0.0), lambda z, _: (z > 0.0).astype(z.dtype)
    if cell.activation == "linear":
        return lambda z: z, lambda z, _: np.ones_like(z)
    phi = function_of(cell.activation, cell.parameters)
    assert phi is not None
    slope = derivative(phi)
    return phi, lambda z, _: slope(z)


def _run_lstm(cell: Cell, before: Array) -> tuple[Array, Pullback]:
    """Run the LSTM cell c' = f c + i g, h' = P (o tanh c'), with rows g, i, f, o.

    A sigmoid is (1 + tanh(z/2)) / 2, so one call of tanh computes all gates.
    """
    steps, samples, _ = before.shape
    size, dtype = cell.hidden, before.dtype
    half = np.where(np.arange(4 * size) < size, 1.0, 0.5).astype(dtype)
    scaled = np.ascontiguousarray((cell.recurrent.astype(dtype) * half[:, None]).T)
    before *= half
    projection = None if cell.projection is None else cell.projection.astype(dtype)
    gates = np.empty((steps, samples, 4, size), dtype)
    memory = np.zeros((steps + 1, samples, size), dtype)
    squashed = np.empty((steps, samples, size), dtype)
    y = np.empty((steps, samples, cell.outputs), dtype)
    h = np.zeros((samples, cell.outputs), dtype)
    for t in range(steps):
        here = gates[t]
        np.tanh(before[t] + h @ scaled, out=here.reshape(samples, -1))
        here[:, 1:] += 1.0
        here[:, 1:] *= 0.5
        memory[t + 1] = here[:, 2] * memory[t] + here[:, 1] * here[:, 0]
        np.tanh(memory[t + 1], out=squashed[t])
        h = here[:, 3] * squashed[t]
        h = y[t] = h if projection is None else h @ projection.T
    g, i, f, o = (gates[:, :, gate] for gate in range(4))
    through = o * (1.0 - squashed * squashed)
    slopes = np.stack((i * (1.0 - g * g), g * i * (1.0 - i), memory[:-1] * f * (1.0 - f), squashed * o * (1.0 - o)), axis=2)
    recurrent = cell.recurrent.astype(dtype)

    def pull(cotangent: Array) -> Array:
        kinds = cotangent.shape[0]
        found = np.empty((kinds, steps, samples, 4, size), dtype)
        back, dc = np.zeros_like(cotangent[:, 0]), np.zeros((kinds, samples, size), dtype)
        for t in range(steps - 1, -1, -1):
            dh = cotangent[:, t] + back
            dh = dh if projection is None else dh @ projection
            dc += dh * through[t]
            here = found[:, t]
            np.multiply(dc[:, :, None], slopes[t, :, :3], out=here[:, :, :3])
            np.multiply(dh, slopes[t, :, 3], out=here[:, :, 3])
            dc *= f[t]
            back = (here.reshape(kinds * samples, -1) @ recurrent).reshape(back.shape)
        return found.reshape(kinds, steps, samples, -1)

    return y, pull


def _run_gru(cell: Cell, before: Array) -> tuple[Array, Pullback]:
    """Run the GRU cell h' = (1 - z) n + z h with n = tanh(x + r (R h + b)) or tanh(x + R (r h) + b), with rows r, z, n."""
    steps, samples, _ = before.shape
    size, dtype = cell.hidden, before.dtype
    recurrent, inside = cell.recurrent.astype(dtype), cell.candidate_bias.astype(dtype)
    gate_rows, new_rows = recurrent[: 2 * size], recurrent[2 * size :]
    half = np.where(np.arange(3 * size) < 2 * size, 0.5, 1.0).astype(dtype)
    scaled = np.ascontiguousarray((recurrent * half[:, None]).T)
    before *= half
    gates = np.empty((steps, samples, 2, size), dtype)
    inner = np.empty((steps, samples, size), dtype)
    new = np.empty_like(inner)
    y = np.zeros((steps + 1, samples, size), dtype)
    for t in range(steps):
        h, here = y[t], gates[t]
        pushed = h @ (scaled if cell.reset_after else scaled[:, : 2 * size])
        np.tanh(before[t, :, : 2 * size] + pushed[:, : 2 * size], out=here.reshape(samples, -1))
        here += 1.0
        here *= 0.5
        if cell.reset_after:
            inner[t] = pushed[:, 2 * size :] + inside
            np.tanh(before[t, :, 2 * size :] + here[:, 0] * inner[t], out=new[t])
        else:
            np.tanh(before[t, :, 2 * size :] + (here[:, 0] * h) @ new_rows.T + inside, out=new[t])
        y[t + 1] = new[t] + here[:, 1] * (h - new[t])
    r, z = gates[:, :, 0], gates[:, :, 1]
    to_new, to_update = (1.0 - z) * (1.0 - new * new), (y[:-1] - new) * z * (1.0 - z)
    to_reset = (inner if cell.reset_after else y[:-1]) * r * (1.0 - r)

    def pull(cotangent: Array) -> Array:
        kinds = cotangent.shape[0]
        found = np.empty((kinds, steps, samples, 3, size), dtype)
        back = np.zeros_like(cotangent[:, 0])
        for t in range(steps - 1, -1, -1):
            dh, here = cotangent[:, t] + back, found[:, t]
            np.multiply(dh, to_new[t], out=here[:, :, 2])
            np.multiply(dh, to_update[t], out=here[:, :, 1])
            if cell.reset_after:
                np.multiply(here[:, :, 2], to_reset[t], out=here[:, :, 0])
                pulled = (here[:, :, 2] * r[t]) @ new_rows
            else:
                pulled = here[:, :, 2] @ new_rows
                np.multiply(pulled, to_reset[t], out=here[:, :, 0])
                pulled *= r[t]
            pulled += (here[:, :, :2].reshape(kinds * samples, -1) @ gate_rows).reshape(back.shape)
            back = dh * z[t] + pulled
        return found.reshape(kinds, steps, samples, -1)

    return y[1:], pull


_RUNS: dict[str, Callable[[Cell, Array], tuple[Array, Pullback]]] = {"rnn": _run_rnn, "lstm": _run_lstm, "gru": _run_gru}
