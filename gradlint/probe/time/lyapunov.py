"""Lyapunov exponents of recurrent cells, from the tangent map of the cell along a real sequence.

Tangent vectors are propagated together with the state, and orthogonalized by a QR decomposition every few steps. The exponents
are the mean logarithms of the diagonal of R, per step (Benettin 1980; Engelken, Wolf and Abbott 2020, arXiv 2006.02427).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlint.ops import activation as function_of
from gradlint.ops import derivative
from gradlint.theory.recurrence.read import Cell, Cells

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]
    Step = Callable[[Array, Array, Array], tuple[Array, Array]]

LEADING = 3
"""The number of exponents to measure."""

_EVERY = 5  # steps between two orthogonalizations
_SETTLE = 0.25  # of the run, which is discarded: tangent vectors still turn toward the leading directions
_LONGEST = 200  # the most steps
_WORK = 1e9  # the most multiplications


def exponents(cells: Cells, x: Array, start: Sequence[Array] = ()) -> dict[str, tuple[float, ...]]:
    """Return the largest Lyapunov exponents of each direction ("forward", "reverse"), in nats per step, largest first.

    The exponents of a stack are those of all its layers, each of which reads the output of the layer before. Tangent directions
    that become exactly zero, as behind an inactive ReLU, have no exponent.

    Args:
        cells: The cells of the layers.
        x: One sequence of shape (steps, inputs). Long sequences are truncated to bound the cost.
        start: The initial states, each of shape (layers x directions, units); zeros for those that are left out.
    """
    every = [cell for layer in cells.layers for cell in layer]
    cost = sum(cell.recurrent.size * (LEADING + 1) for cell in every)
    x = x[: min(_LONGEST, int(_WORK / max(cost, 1)))]
    found: dict[str, list[float]] = {}
    place = 0
    for layer in cells.layers:
        outputs = []
        for cell in layer:
            y, values = _run_cell(cell, x[::-1] if cell.backwards else x, [state[place] for state in start if len(state) > place])
            found.setdefault("reverse" if cell.backwards else "forward", []).extend(values)
            outputs.append(y[::-1] if cell.backwards else y)
            place += 1
        x = np.concatenate(outputs, axis=-1)
    return {name: tuple(sorted(values, reverse=True)[:LEADING]) for name, values in found.items() if values}


def _run_cell(cell: Cell, x: Array, start: Sequence[Array]) -> tuple[Array, list[float]]:
    """Run one cell along a sequence; return its outputs (steps, outputs) and its exponents."""
    before = (x if cell.weight is None else x @ cell.weight.T) + cell.bias
    size = cell.outputs + (cell.hidden if cell.kind == "lstm" else 0)
    state = np.zeros(size)
    for part, place in zip(start, (slice(0, cell.outputs), slice(cell.outputs, size)), strict=False):
        state[place] = part
    tangent = np.linalg.qr(np.random.default_rng(0).standard_normal((size, min(LEADING, size))))[0]
    advance = _STEPS[cell.kind](cell)
    y = np.zeros((len(x), cell.outputs))
    taken: list[Array] = []
    for t, fed in enumerate(before):
        state, tangent = advance(fed, state, tangent)
        y[t] = state[: cell.outputs]
        if t % _EVERY == _EVERY - 1:
            if not np.isfinite(tangent).all():
                break
            tangent, triangle = np.linalg.qr(tangent)
            taken.append(np.abs(np.diagonal(triangle)))
    kept = taken[math.ceil(_SETTLE * len(taken)) :]
    if not kept:
        return y, []
    with np.errstate(divide="ignore"):
        values = np.log(np.array(kept)).mean(axis=0) / _EVERY
    return y, [float(value) for value in values if math.isfinite(value)]


def _rnn(cell: Cell) -> Step:
    matrix = cell.recurrent.astype(float)
    phi = None if cell.activation == "linear" else function_of(cell.activation, cell.parameters)
    slope = None if phi is None else derivative(phi)

    def step(fed: Array, h: Array, tangent: Array) -> tuple[Array, Array]:
        z, turned = fed + matrix @ h, matrix @ tangent
        if phi is None or slope is None:
            return z, turned
        return np.asarray(phi(z)), np.asarray(slope(z))[:, None] * turned

    return step


def _lstm(cell: Cell) -> Step:
    """Return the step of an LSTM, whose rows are in the order g, i, f, o. The state is (h, c)."""
    matrix, size, outputs = cell.recurrent.astype(float), cell.hidden, cell.outputs

    def step(fed: Array, state: Array, tangent: Array) -> tuple[Array, Array]:
        z = fed + matrix @ state[:outputs]
        g, (i, f, o) = np.tanh(z[:size]), _sigmoid(z[size:]).reshape(3, size)
        slopes = np.concatenate([1.0 - g * g, i * (1.0 - i), f * (1.0 - f), o * (1.0 - o)])
        dg, di, df, do = (slopes[:, None] * (matrix @ tangent[:outputs])).reshape(4, size, -1)
        old = state[outputs:]
        c = f * old + i * g
        dc = f[:, None] * tangent[outputs:] + old[:, None] * df + i[:, None] * dg + g[:, None] * di
        out = np.tanh(c)
        h, dh = o * out, out[:, None] * do + (o * (1.0 - out * out))[:, None] * dc
        if cell.projection is not None:
            h, dh = cell.projection @ h, cell.projection @ dh
        return np.concatenate([h, c]), np.concatenate([dh, dc])

    return step


def _gru(cell: Cell) -> Step:
    """Return the step of a GRU, whose rows are in the order r, z, n."""
    size = cell.hidden
    gate_rows, new_rows = (rows.astype(float) for rows in (cell.recurrent[: 2 * size], cell.recurrent[2 * size :]))

    def step(fed: Array, h: Array, tangent: Array) -> tuple[Array, Array]:
        gates = _sigmoid(fed[: 2 * size] + gate_rows @ h)
        dr, dz = ((gates * (1.0 - gates))[:, None] * (gate_rows @ tangent)).reshape(2, size, -1)
        r, z = gates.reshape(2, size)
        if cell.reset_after:
            inner = new_rows @ h + cell.candidate_bias
            pushed, dpushed = r * inner, inner[:, None] * dr + r[:, None] * (new_rows @ tangent)
        else:
            pushed = new_rows @ (r * h) + cell.candidate_bias
            dpushed = new_rows @ (h[:, None] * dr + r[:, None] * tangent)
        n = np.tanh(fed[2 * size :] + pushed)
        dn = (1.0 - n * n)[:, None] * dpushed
        return n + z * (h - n), (1.0 - z)[:, None] * dn + z[:, None] * tangent + (h - n)[:, None] * dz

    return step


def _sigmoid(z: Array) -> Array:
    return 0.5 + 0.5 * np.tanh(0.5 * z)


_STEPS: dict[str, Callable[[Cell], Step]] = {"rnn": _rnn, "lstm": _lstm, "gru": _gru}
