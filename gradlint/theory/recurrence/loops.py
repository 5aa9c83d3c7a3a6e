"""Loops over time: the weight that they apply, the activation, and how fast they grow or shrink a gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gradlint.graph import Graph, Node, Weight
from gradlint.ops import Kind
from gradlint.signal_path import is_weight_layer, kind_of
from gradlint.structure import Structure, elementwise_factor
from gradlint.theory.branches import normalizes
from gradlint.theory.recurrence.cells import STEPS, CellResponse, Drive, simulate
from gradlint.theory.recurrence.read import Cells, read_cells
from gradlint.theory.recurrence.readout import Readout, readout

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FUSED = frozenset({"rnn", "lstm", "gru"})
_HARMLESS = frozenset({Kind.ADD, Kind.ACTIVATION, Kind.SHAPE, Kind.DROPOUT})  # between two products with the state
_GATED = {4: "lstm", 3: "gru"}  # by the rows of a recurrent weight per unit
_WHOLE = 512  # units; a wider cell with randomly initialized weights is represented by some of its units
_WIDEST = 1024  # units; the eigenvalues of a wider matrix take seconds
_LONGEST = 400  # largest number of simulated steps; growth is linear in time long before
_EFFORT = 4.0  # factor on the budget of a simulation, because loops are few
_HORIZON = 3.0  # decades
_STILL = 1e-4  # decades per step below which a simulation cannot tell growth from none


class TimeGrowthRate(NamedTuple):
    """The rate at which a recurrence changes the gradient from its last step to its first.

    Attributes:
        slope: Decades per step, negative if the gradient decays.
        horizon: Number of steps that change the gradient by three decades; infinite if it keeps its size.
        steps: Number of steps of the recurrence.
        measured: Whether the probe measured the slope.
    """

    slope: float
    horizon: float
    steps: int
    measured: bool

    @classmethod
    def predicted(cls, slope: float, steps: int) -> TimeGrowthRate:
        """Build the rate of a predicted slope."""
        return cls(slope, _HORIZON / abs(slope) if abs(slope) > _STILL else math.inf, steps, measured=False)

    @property
    def horizons(self) -> float:
        """Number of times that the gradient decays by three decades over all steps; 0 if it does not decay."""
        return self.steps / self.horizon if self.slope < 0.0 and self.horizon > 0.0 else 0.0


@dataclass(frozen=True)
class Loop:
    """One recurrence in a graph.

    Attributes:
        node: Id of the node under which the probe reports its growth over time.
        nodes: Ids of all applications of the recurrent weight.
        activation: Name of the activation, "lstm" or "gru" for a gated loop, or None for a linear one.
        weights: The recurrent matrices.
        steps: Number of time steps, or None if it is unknown.
        cell: The operator that is simulated.
        reads: Which states the model reads.
        elementwise: Whether the state is multiplied unit by unit, by a matrix that is diagonal.
    """

    node: str
    nodes: tuple[str, ...]
    activation: str | None
    weights: tuple[Weight, ...]
    steps: int | None
    cell: Node
    reads: Readout = Readout.EVERY
    elementwise: bool = False

    @cached_property
    def radius(self) -> float | None:
        """Largest spectral radius of the recurrent matrices, each gate by itself; None if all are too wide to decompose."""
        return max((float(np.abs(np.linalg.eigvals(block)).max()) for block in self._blocks), default=None)

    @cached_property
    def norm(self) -> float | None:
        """Largest singular value of the recurrent matrices, each gate by itself; None if all are too wide to decompose."""
        return max((float(np.linalg.norm(block, 2)) for block in self._blocks), default=None)

    def response(self, steps: int, level: float = 0.0) -> CellResponse | None:
        """Simulate the loop for `steps` steps on white noise of `level` decades; return None for a cell that cannot be run."""
        key = (max(min(steps, _LONGEST), 1), level)
        if self._cells is not None and key not in self._responses:
            try:
                self._responses[key] = simulate(self._cells, Drive(level), key[0], effort=_EFFORT)
            except ValueError:  # a file may state weights of any shape
                self._responses[key] = None
        return self._responses.get(key)

    def exponent(self, steps: int, level: float = 0.0) -> float | None:
        """Return the predicted growth of the gradient in decades per step, as a probe over `steps` steps measures it.

        It is the slope over time of the exact gradient of the real cell, run from a state of zeros on white noise of `level`
        decades. The result is deterministic, and None for a cell that cannot be simulated.
        """
        found = self.response(steps, level)
        return None if found is None else found.step

    def lyapunov(self, level: float = 0.0) -> float | None:
        """Return the largest Lyapunov exponent in nats per step (Engelken et al. 2020, arXiv 2006.02427).

        It is the growth of the gradient once the state is steady. The result is None for a cell that cannot be simulated.
        """
        found = self.response(max(self.steps or STEPS, STEPS), level)
        return None if found is None else found.steady_step * math.log(10.0)

    def horizon(self, level: float = 0.0) -> float | None:
        """Return the number of steps over which the gradient gains or loses three decades, infinite if it keeps its size."""
        found = self.exponent(self.steps or STEPS, level)
        return None if found is None else TimeGrowthRate.predicted(found, self.steps or STEPS).horizon

    @cached_property
    def forget_bias(self) -> float | None:
        """Mean bias of the forget gates of an LSTM, both bias vectors added, the lowest over layers; None for another cell."""
        cells = self._cells
        if self.activation != "lstm" or cells is None:
            return None
        gates = [cell for layer in cells.layers for cell in layer if cell.weight is not None]  # composed cells have no weight
        return min((float(cell.bias[2 * cell.hidden : 3 * cell.hidden].mean()) for cell in gates), default=None)

    @property
    def final(self) -> bool:
        """Whether only the last state is read, so that gradients reach early steps through the recurrence alone."""
        return self.reads is Readout.LAST

    @cached_property
    def is_plain(self) -> bool:
        """Whether the loop has an activation and no gates."""
        return self.activation not in {None, "lstm", "gru", "linear"}

    @cached_property
    def _cells(self) -> Cells | None:
        return read_cells(self.cell, wide=_WHOLE)

    @cached_property
    def _responses(self) -> dict[tuple[int, float], CellResponse | None]:
        return {}

    @cached_property
    def _blocks(self) -> tuple[NDArray[np.float64], ...]:
        """The finite square matrices that the recurrent weights stack, one for each gate and direction."""
        found: list[NDArray[np.float64]] = []
        for weight in self.weights:
            width = weight.shape[-1]
            if 0 < width <= _WIDEST and weight.size % (width * width) == 0:
                blocks = np.asarray(weight.array(), dtype=np.float64).reshape(-1, width, width)
                found.extend(block for block in blocks if np.isfinite(block).all())
        return tuple(found)


def loops(structure: Structure) -> list[Loop]:
    """Return the recurrences on the signal that apply square or diagonal matrices to their own state, fused ones first."""
    graph = structure.graph
    found = [_fused(graph, graph[node]) for node in structure.signal if graph[node].op in _FUSED]
    unrolled = (
        _diagonal(structure, item.nodes) if item.elementwise else _unrolled(structure, item.nodes)
        for item in structure.recurrences
    )
    known = [loop for loop in (*found, *unrolled) if loop is not None and loop.weights]
    return [replace(loop, reads=readout(structure, loop.nodes, loop.steps)) for loop in known]


def _fused(graph: Graph, node: Node) -> Loop:
    source = next(iter(graph.parents(node.id)), None)
    axis = int(node.attrs.get("time_axis", 0))
    shape = source.shape if source is not None and source.shape is not None else ()
    sizes = node.attrs.get("batch_sizes")  # of a packed sequence, whose axis 0 holds the steps of every sample
    steps = len(sizes) if sizes else shape[axis] if axis < len(shape) else None
    return Loop(node.id, (node.id,), _nonlinearity(node), _recurrent(node), steps, node)


def _unrolled(structure: Structure, nodes: tuple[str, ...]) -> Loop | None:
    """Return an unrolled loop: one cell, or one linear layer from the state to itself or its gates, with pointwise operators."""
    graph, first = structure.graph, structure.graph[nodes[0]]
    if kind_of(first) is Kind.RNN:
        return Loop(nodes[0], nodes, _nonlinearity(first), _recurrent(first), len(nodes), first)
    weight = first.weights.get("weight")
    if kind_of(first) is not Kind.LINEAR or weight is None:
        return None
    ends = {nodes[0], nodes[1]}
    if any(is_weight_layer(graph[node]) for node in structure.spine_between(nodes[0], nodes[1]) if node not in ends):
        return None
    between = [graph[node] for node in structure.between(nodes[0], nodes[1])]
    if any(is_weight_layer(node) or normalizes(graph, node) for node in between):
        return None
    acts = [node for node in between if kind_of(node) is Kind.ACTIVATION]
    gated = _GATED.get(weight.fan_out // weight.fan_in) if {"sigmoid", "tanh"} <= {act.op for act in acts} else None
    if gated is not None and weight.fan_out % weight.fan_in == 0:
        return Loop(nodes[0], nodes, gated, (weight,), len(nodes), _spelled(first, weight, gated, {}))
    if weight.fan_in != weight.fan_out or _skips(structure, first, between) or _is_bypassed(structure, nodes):
        return None
    attrs = {**acts[0].attrs, "nonlinearity": acts[0].op} if acts else {"nonlinearity": "linear"}
    cell = _spelled(first, weight, "rnn", attrs)
    return Loop(nodes[0], nodes, acts[0].op if acts else None, (weight,), len(nodes), cell)


def _diagonal(structure: Structure, nodes: tuple[str, ...]) -> Loop | None:
    """Return an unrolled loop h = act(x_t + r * h) in which nothing else happens to the state."""
    graph, first = structure.graph, structure.graph[nodes[0]]
    factor, width = elementwise_factor(first), (first.shape or (None,))[-1]
    if factor is None or not width or width > _WIDEST or factor.size not in {1, width}:
        return None
    between = [graph[node] for node in structure.between(nodes[0], nodes[1])]
    acts = [node for node in between if kind_of(node) is Kind.ACTIVATION]
    if len(acts) > 1 or any(kind_of(node) not in _HARMLESS for node in between) or _is_bypassed(structure, nodes):
        return None
    name = acts[0].op if acts else None
    diagonal = Weight(
        factor.name, (width, width), factor.dtype, lambda: np.diag(np.broadcast_to(factor.array().reshape(-1), (width,)))
    )
    attrs = {**acts[0].attrs, "nonlinearity": name} if acts else {"nonlinearity": "linear"}
    cell = Node(first.id, "rnn_cell", weights={"recurrent": diagonal}, attrs=attrs)
    return Loop(nodes[0], nodes, name, (diagonal,), len(nodes), cell, elementwise=True)


def _skips(structure: Structure, first: Node, between: Sequence[Node]) -> bool:
    """Return whether a skip connection adds the state to itself between two applications of the weight."""
    inside = {node.id for node in between} | set(structure.signal_parents(first.id))
    sums = (structure.residual_sum(node.id) for node in between)
    return any(found.fork in inside for found in sums if found is not None)


def _is_bypassed(structure: Structure, nodes: tuple[str, ...]) -> bool:
    """Return whether a state reaches the next one past the weight too, as through the leak of h' = a h + (1 - a) tanh(W h)."""
    if len(nodes) < 3:
        return False
    before, after = (structure.signal_parents(node) for node in nodes[1:3])
    position = structure.graph.position
    first = min(position[node] for node in before)
    seen, stack = {nodes[1]}, after
    while stack:
        here = stack.pop()
        if here in before:
            return True
        if here not in seen and position[here] > first:
            seen.add(here)
            stack.extend(structure.signal_parents(here))
    return False


def _spelled(node: Node, weight: Weight, kind: str, attrs: Mapping[str, Any]) -> Node:
    """Build the cell of a loop composed of operators: `weight` multiplies its state, white noise replaces its input."""
    rows = weight if weight.out_axis == 0 else Weight(weight.name, weight.shape[::-1], weight.dtype, weight.matrix)
    bias = {"bias": node.weights["bias"]} if "bias" in node.weights else {}
    return Node(node.id, f"{kind}_cell", weights={"recurrent": rows, **bias}, attrs=attrs)


def _nonlinearity(node: Node) -> str:
    return str(node.attrs.get("nonlinearity", "tanh")) if node.op.startswith("rnn") else node.op.removesuffix("_cell")


def _recurrent(node: Node) -> tuple[Weight, ...]:
    found = {weight.name: weight for role, weight in node.weights.items() if role.startswith("recurrent") and "bias" not in role}
    return tuple(weight for weight in found.values() if len(weight.shape) >= 2)
