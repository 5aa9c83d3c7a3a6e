"""Lyapunov exponents of the recurrent cells of a model, on the sequences that they read in a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradlint.graph import Graph, Node
from gradlint.probe.time.lyapunov import exponents
from gradlint.probe.time.steps import Fed, TimeProfile
from gradlint.theory.recurrence.read import read_cells

Array = NDArray[np.float64]

_WIDEST = 1024  # units: wider cells are not measured
_FEWEST = 20  # steps: an exponent is a mean over many steps
_FUSED = frozenset({"rnn", "lstm", "gru"})


def cell_exponents(graph: Graph, profiles: Sequence[TimeProfile], fed: Fed) -> dict[tuple[str, str], tuple[float, ...]]:
    """Return the largest Lyapunov exponents, in nats per step, by node and direction.

    The cells are those of fused operators (RNN, LSTM, GRU), and cells that the model applies step by step. The exponents are
    measured on the first sample of the batch, from the initial states of the model. `fed` are the inputs of recurrent nodes.
    """
    found: dict[tuple[str, str], tuple[float, ...]] = {}
    for profile in profiles:
        node = graph[profile.node]
        fused = node.op in _FUSED
        cells = read_cells(node, wide=_WIDEST) if fused or node.op.endswith("_cell") else None
        run = _sequence(node, fed) if fused else _steps(profile.nodes, fed)
        if cells is None or cells.sd or run is None or (profile.node, profile.direction) in found:
            continue
        x, start = run
        if len(x) < _FEWEST or x.shape[1] != cells.layers[0][0].inputs:
            continue
        with np.errstate(over="ignore", invalid="ignore"):
            each = exponents(cells, x, start)
        found.update({(profile.node, name if fused else profile.direction): values for name, values in each.items()})
    return found


def _sequence(node: Node, fed: Fed) -> tuple[Array, list[Array]] | None:
    """Return the input (steps, inputs) and the initial states (layers x directions, units) of a fused operator.

    None if the recorder did not keep them, or if their layout is not known.
    """
    held = fed.get(node.id, ())
    x = held[0] if held else None
    if x is None:
        return None
    onnx = "gate_order" in node.attrs
    if node.attrs.get("packed"):
        sizes = node.attrs.get("batch_sizes", ())
        if not sizes or sum(sizes) != len(x):
            return None
        x = x[np.cumsum([0, *sizes[:-1]]).tolist()]
    elif x.ndim == 3:
        x = x[0] if int(node.attrs.get("time_axis", 0)) else x[:, 0]
    else:
        return None
    first = onnx and bool(node.attrs.get("batch_first"))
    states = [state for state in held[5 if onnx else 1 :] if state is not None and state.ndim == 3]
    return _array(x), [_array(state[0] if first else state[:, 0]) for state in states]


def _steps(nodes: Sequence[str], fed: Fed) -> tuple[Array, list[Array]] | None:
    """Return the same as `_sequence` for a cell that is applied step by step by `nodes`."""
    pieces = [held[0] for node in nodes if (held := fed.get(node, ())) and held[0] is not None]
    if not pieces or len(pieces) < len(nodes) or len({piece.shape for piece in pieces}) > 1:
        return None
    states = [state for state in list(fed[nodes[0]])[1:] if state is not None]
    return np.stack([_first(piece) for piece in pieces]), [_first(state)[None] for state in states]


def _first(piece: Tensor) -> Array:
    return _array(piece[0] if piece.ndim > 1 else piece)


def _array(tensor: Tensor) -> Array:
    return np.asarray(tensor.double().cpu().numpy())
