"""Read the weights of recurrent nodes into matrices with one order of gates, for torch and ONNX alike."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlint.graph import Node, Weight
from gradlint.ops import activation as function_of
from gradlint.ops import by_nonlinearity, operator
from gradlint.theory.initialization import looks_drawn

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_ORDERS = {  # stored order of rows -> our order; "r" is the reset gate of a GRU, "z" its update gate; "h", "g", "c" candidates
    "rnn": {"h": "h"},
    "gru": {"rzh": "rzh", "zrh": "rzh"},
    "lstm": {"ifgo": "gifo", "iofc": "cifo"},
}
_TORCH = {"rnn": "h", "gru": "rzh", "lstm": "ifgo"}
_GATE_FUNCTIONS = {"gru": ("sigmoid", "tanh"), "lstm": ("sigmoid", "tanh", "tanh")}
_NAMES = {"identity": "linear", "affine": "linear"}
_WIDE = 256  # units; a wider cell with randomly initialized weights is represented by some of its units
_WIDEST = 1024  # units; a wider cell is represented by some of its units whatever its weights
_SUBSET = 256  # number of units that represent a wider cell
_DRAWN, _TRAINED = 0.02, 0.2  # decades: standard deviation that comes from leaving out units, for drawn and trained weights
_LEADING = 0.03  # decades per step: the same for an unbounded state, in which one direction dominates


@dataclass(frozen=True, slots=True)
class Cell:
    """One direction of one recurrent layer.

    Rows of matrices are stacked by gate, `hidden` rows each, in the order "h" (rnn), "rzh" (gru) or "gifo" (lstm).

    Attributes:
        kind: "rnn", "gru" or "lstm".
        activation: Name of the activation of a plain cell, else `kind`.
        parameters: Attributes of the activation.
        weight: Input weights of shape (gates * hidden, inputs). None if the input is added to the pre-activations directly.
        recurrent: Recurrent weights of shape (gates * hidden, outputs).
        bias: Sum of input and recurrent biases, of shape (gates * hidden,), without `candidate_bias`.
        candidate_bias: Recurrent bias of a GRU's candidate, of shape (hidden,), which the reset gate may multiply.
        projection: Output projection of shape (outputs, hidden), or None.
        reset_after: Whether the reset gate of a GRU multiplies after the recurrent weight, as in torch.
        backwards: Whether the sequence is processed from its end.
        drop: Probability of dropping an input of the layer.
    """

    kind: str
    activation: str
    parameters: Mapping[str, Any]
    weight: Array | None
    recurrent: Array
    bias: Array
    candidate_bias: Array
    projection: Array | None = None
    reset_after: bool = True
    backwards: bool = False
    drop: float = 0.0

    @property
    def outputs(self) -> int:
        """Number of output features, after the projection if there is one."""
        return int(self.recurrent.shape[1])

    @property
    def hidden(self) -> int:
        """Number of units of one gate."""
        return int(self.candidate_bias.size)

    @property
    def inputs(self) -> int:
        """Number of input features."""
        return int(self.recurrent.shape[0] if self.weight is None else self.weight.shape[1])


@dataclass(frozen=True, slots=True)
class Cells:
    """The layers of a recurrent node, each with one cell per direction.

    If units were left out, `sd` is the standard deviation that results, in decades, and `step_sd` that of the growth per step.
    """

    layers: tuple[tuple[Cell, ...], ...]
    sd: float = 0.0
    step_sd: float = 0.0


def read_cells(node: Node, *, wide: int = _WIDE) -> Cells | None:
    """Read the cells of a recurrent node.

    A cell of more than `wide` units is reduced to 256 units if its activation is bounded and its recurrent weights look randomly
    initialized; so is any cell of more than 1024 units. The remaining off-diagonal weights are scaled up so that every second
    moment stays the same.

    Returns:
        The cells, or None if a weight is missing, not finite or of an unexpected shape, or an option is not supported.
    """
    kind = node.op.removesuffix("_cell")
    order = _ORDERS.get(kind, {}).get(_order(node, kind))
    if order is None or not _usual(node, kind):
        return None
    rng = np.random.default_rng(0)
    layers: list[tuple[Cell, ...]] = []
    while found := _layer(node, len(layers)):
        cells = [_cell(node, kind, order, roles, rng) for roles in found]
        layers.append(tuple(cell for cell in cells if cell is not None))
        if len(layers[-1]) < len(found):
            return None
    if not layers or not _chained(layers):
        return None
    every = [cell for layer in layers for cell in layer]
    widest = max(cell.hidden for cell in every)
    bounded = all(cell.kind != "rnn" or operator(cell.activation).bounded for cell in every)
    if widest <= min(wide, _WIDEST) or any(cell.projection is not None for cell in every):
        return Cells(tuple(_directed(node, layers)))
    drawn = _drawn(node)
    if widest <= _WIDEST and not (drawn and bounded):
        return Cells(tuple(_directed(node, layers)))
    narrowed = _directed(node, _narrowed(layers, rng))
    return Cells(tuple(narrowed), _DRAWN if drawn else _TRAINED, 0.0 if bounded else _LEADING)


def _order(node: Node, kind: str) -> str:
    return str(node.attrs.get("gate_order", _TORCH.get(kind, "")))


def _usual(node: Node, kind: str) -> bool:
    """Return whether a cell has the standard gate functions, no clipping and no coupled gates."""
    functions = node.attrs.get("activations")
    if node.attrs.get("clip") or node.attrs.get("input_forget"):
        return False
    if kind == "rnn":
        name = _activation(node)
        return name == "linear" or function_of(name, node.attrs) is not None
    usual = _GATE_FUNCTIONS[kind]
    return functions is None or all(name.lower() == usual[index % len(usual)] for index, name in enumerate(functions))


def _activation(node: Node) -> str:
    name = str(node.attrs.get("nonlinearity", "tanh")).lower()
    return _NAMES.get(name) or by_nonlinearity(name).name


def _layer(node: Node, index: int) -> list[dict[str, Weight]]:
    """Return, for each direction of a layer, the weights by role. Roles without a layer suffix belong to layer 0."""
    found = []
    for end in (f"_l{index}", f"_l{index}_reverse"):
        roles = {role.removesuffix(end): weight for role, weight in node.weights.items() if role.endswith(end)}
        if "recurrent" in roles:
            found.append(roles)
    return [dict(node.weights)] if not found and not index and "recurrent" in node.weights else found


def _cell(node: Node, kind: str, order: str, roles: Mapping[str, Weight], rng: np.random.Generator) -> Cell | None:
    recurrent, rows = _values(roles["recurrent"], rng), _order(node, kind)
    if recurrent.ndim != 2 or recurrent.shape[0] % len(rows):
        return None
    hidden = recurrent.shape[0] // len(rows)
    take = np.concatenate([np.arange(hidden) + hidden * rows.index(gate) for gate in order])
    zeros = np.zeros(recurrent.shape[0])
    biases = [_values(roles[role], rng).reshape(-1) if role in roles else zeros for role in ("bias", "recurrent_bias")]
    weight = _values(roles["weight"], rng) if "weight" in roles else None
    projection = _values(roles["projection"], rng) if "projection" in roles else None
    shaped = [array.shape[:1] == zeros.shape for array in (*biases, zeros if weight is None else weight)]
    fits = recurrent.shape[1] == (hidden if projection is None else projection.shape[0])
    if not all(shaped) or not fits or not all(weight.statistics.finite for weight in roles.values()):
        return None
    first, second = (bias[take] for bias in biases)
    inside = np.zeros(hidden)
    if kind == "gru":
        inside, second = second[2 * hidden :].copy(), np.where(np.arange(second.size) < 2 * hidden, second, 0.0)
    return Cell(
        kind,
        _activation(node) if kind == "rnn" else kind,
        node.attrs,
        None if weight is None else weight[take],
        recurrent[take],
        first + second,
        inside,
        projection,
        reset_after="gate_order" not in node.attrs or bool(node.attrs.get("linear_before_reset", 0)),
    )


def _values(weight: Weight, rng: np.random.Generator) -> Array:
    """Return the values of a weight, drawn from its statistics if only these are known."""
    values = np.asarray(weight.array())
    values = values if values.dtype in (np.float32, np.float64) else values.astype(np.float32)
    known = weight.statistics
    if known.std > 0.0 and values.size > 1 and np.ptp(values) == 0.0:
        return known.mean + known.std * rng.standard_normal(values.shape)
    return values


def _chained(layers: Sequence[Sequence[Cell]]) -> bool:
    """Return whether the number of inputs of each layer is the number of outputs of the one before, in every direction."""
    widths = [sum(cell.outputs for cell in layer) for layer in layers]
    reads = all(cell.inputs == before for before, layer in zip(widths, layers[1:], strict=False) for cell in layer)
    return reads and all(len({(cell.inputs, cell.outputs) for cell in layer}) == 1 for layer in layers)


def _drawn(node: Node) -> bool:
    found = [weight for role, weight in node.weights.items() if role.startswith("recurrent") and "bias" not in role]
    return all(looks_drawn(weight) for weight in found)


def _narrowed(layers: Sequence[Sequence[Cell]], rng: np.random.Generator) -> list[tuple[Cell, ...]]:
    """Return cells of fewer units with the same second moments."""
    kept = [[np.sort(rng.permutation(cell.hidden)[:_SUBSET]) for cell in layer] for layer in layers]
    found: list[tuple[Cell, ...]] = []
    for index, layer in enumerate(layers):
        hidden = layer[0].hidden
        columns = np.arange(layer[0].inputs)
        if index:
            columns = np.concatenate([units + hidden * place for place, units in enumerate(kept[index - 1])])
        elif columns.size > _SUBSET:
            columns = np.sort(rng.permutation(columns)[:_SUBSET])
        found.append(tuple(_subset(cell, units, columns) for cell, units in zip(layer, kept[index], strict=True)))
    return found


def _subset(cell: Cell, units: Array, columns: Array) -> Cell:
    gates = cell.recurrent.shape[0] // cell.hidden
    rows = np.concatenate([units + cell.hidden * gate for gate in range(gates)])
    grown = math.sqrt(cell.hidden / units.size)
    recurrent = cell.recurrent[np.ix_(rows, units)] * grown
    places = np.arange(units.size)
    for gate in range(gates):
        recurrent[places + gate * units.size, places] /= grown
    weight = None
    if cell.weight is not None:
        weight = cell.weight[np.ix_(rows, columns)] * math.sqrt(cell.inputs / columns.size)
    return replace(cell, weight=weight, recurrent=recurrent, bias=cell.bias[rows], candidate_bias=cell.candidate_bias[units])


def _directed(node: Node, layers: Sequence[Sequence[Cell]]) -> Iterator[tuple[Cell, ...]]:
    drop = float(node.attrs.get("dropout", 0.0)) if node.attrs.get("training") else 0.0
    for index, layer in enumerate(layers):
        turned = node.attrs.get("direction") == "reverse"
        yield tuple(replace(cell, backwards=turned or place > 0, drop=drop if index else 0.0) for place, cell in enumerate(layer))
