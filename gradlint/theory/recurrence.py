"""Loops over time: which weight they apply, through which activation, and how fast that multiplies a gradient."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from gradlint.flow import is_weight_layer, kind_of
from gradlint.graph import Graph, Node, Weight
from gradlint.ops import Kind
from gradlint.ops.activations import activation as function_of
from gradlint.ops.activations import derivative
from gradlint.structure import Structure
from gradlint.theory.branches import normalises
from gradlint.theory.propagation import squared_gain

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradlint.ops.activations import Function

_FUSED = frozenset({"rnn", "lstm", "gru"})
_GATED = frozenset({"lstm", "gru", "lstm_cell", "gru_cell"})
_WIDEST = 1024  # units: eigenvalues of a wider matrix take seconds
_LONGEST = 1000  # steps simulated; growth is linear in time long before
_SAMPLES = 8


@dataclass(frozen=True)
class Loop:
    """One recurrence: `node` is where the probe files its growth over time, `nodes` all its applications.

    `activation` is None for a linear loop, "lstm" or "gru" for a gated one. `weights` are the recurrent matrices,
    `input_square` the squared gain from a unit input to the pre-activation, `steps` None where the length is not known.
    """

    node: str
    nodes: tuple[str, ...]
    activation: str | None
    weights: tuple[Weight, ...]
    input_square: float
    steps: int | None

    @cached_property
    def radius(self) -> float | None:
        """Largest spectral radius of the recurrent matrices, of each gate on its own; None for one too wide to look at."""
        return max((float(np.abs(np.linalg.eigvals(block)).max()) for block in self._blocks()), default=None)

    def exponent(self, steps: int) -> float | None:
        """Predicted decades of gradient growth per step of an ungated loop; None for a gated or a too wide one.

        A finite-time Lyapunov exponent of the real matrix: the tangent of h' = phi(W h + input) is followed along a run from
        rest under white noise (Engelken 2020, 2006.02427). Deterministic.
        """
        phi = (lambda z: z) if self.activation is None else function_of(self.activation, {})
        if phi is None or self.activation in _GATED:
            return None
        length = max(min(steps, _LONGEST), 1)
        noise = math.sqrt(max(self.input_square, 1e-4))
        grown = (_tangent_growth(block, phi, derivative(phi), noise, length) for block in self._blocks())
        return max((decades / length for decades in grown), default=None)

    def _blocks(self) -> Iterator[NDArray[np.float64]]:
        """The finite square matrices that the recurrent weights stack: gates, directions."""
        for weight in self.weights:
            width = weight.shape[-1]
            if width <= _WIDEST:
                blocks = np.asarray(weight.array(), dtype=np.float64).reshape(-1, width, width)
                yield from (block for block in blocks if np.isfinite(block).all())


def loops(structure: Structure) -> list[Loop]:
    """Every recurrence on the signal that applies square matrices to its own state: fused ones, then unrolled ones."""
    graph = structure.graph
    found = [_fused(graph, graph[node]) for node in structure.signal if graph[node].op in _FUSED]
    unrolled = (_unrolled(structure, item.nodes) for item in structure.recurrences)
    return [loop for loop in (*found, *unrolled) if loop is not None and loop.weights]


def _fused(graph: Graph, node: Node) -> Loop:
    source = next(iter(graph.parents(node.id)), None)
    axis = int(node.attrs.get("time_axis", 0))
    shape = source.shape if source is not None and source.shape is not None else ()
    steps = shape[axis] if axis < len(shape) else None
    return Loop(node.id, (node.id,), _nonlinearity(node), _recurrent(node), _input_square(node), steps)


def _unrolled(structure: Structure, nodes: tuple[str, ...]) -> Loop | None:
    """A loop in Python: one cell, or one square layer with nothing but pointwise operators between its uses."""
    graph, first = structure.graph, structure.graph[nodes[0]]
    if kind_of(first) is Kind.RNN:
        return Loop(nodes[0], nodes, _nonlinearity(first), _recurrent(first), _input_square(first), len(nodes))
    weight = first.weights.get("weight")
    if kind_of(first) is not Kind.LINEAR or weight is None or weight.fan_in != weight.fan_out:
        return None
    ends = {nodes[0], nodes[1]}
    if any(is_weight_layer(graph[node]) for node in structure.spine_between(nodes[0], nodes[1]) if node not in ends):
        return None
    between = [graph[node] for node in structure.between(nodes[0], nodes[1])]
    if any(is_weight_layer(node) or normalises(graph, node) or structure.residual_sum(node.id) for node in between):
        return None
    acts = [node.op for node in between if kind_of(node) is Kind.ACTIVATION]
    return Loop(nodes[0], nodes, acts[0] if acts else None, (weight,), 1.0, len(nodes))


def _nonlinearity(node: Node) -> str:
    return str(node.attrs.get("nonlinearity", "tanh")) if node.op.startswith("rnn") else node.op.removesuffix("_cell")


def _recurrent(node: Node) -> tuple[Weight, ...]:
    found = {weight.name: weight for role, weight in node.weights.items() if role.startswith("recurrent") and "bias" not in role}
    return tuple(weight for weight in found.values() if len(weight.shape) >= 2)


def _input_square(node: Node) -> float:
    weight = node.weights.get("weight")
    return squared_gain(weight) if weight is not None else 1.0


def _tangent_growth(block: NDArray[np.float64], phi: Function, slope: Function, noise: float, length: int) -> float:
    """Decades by which a random tangent grows over `length` steps, from the mean square over samples."""
    rng = np.random.default_rng(0)
    width = block.shape[0]
    state, tangent = np.zeros((_SAMPLES, width)), rng.standard_normal((_SAMPLES, width))
    logs = -np.log10(np.linalg.norm(tangent, axis=1))
    for _ in range(length):
        before = np.clip(state, -1e6, 1e6) @ block.T + noise * rng.standard_normal(state.shape)
        state, tangent = phi(before), slope(before) * (tangent @ block.T)
        size = np.maximum(np.linalg.norm(tangent, axis=1), 1e-300)
        tangent, logs = tangent / size[:, None], logs + np.log10(size)
    top = float(logs.max())
    return top + 0.5 * math.log10(float(np.mean(10.0 ** (2.0 * (logs - top)))))
