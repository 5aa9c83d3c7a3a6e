"""Attribute growth to operators: predicted steps of the spine, grouped by the kind of step."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from gradlint.graph import Node
from gradlint.ops import Kind
from gradlint.signal_path import is_weight_layer, kind_of
from gradlint.structure import Structure, block_name
from gradlint.theory.prediction import Prediction
from gradlint.theory.reading.steps import Step

_INTERVAL = 1.645  # standard deviations on each side that hold 90 % of a normal distribution
_SAMPLING = 0.05  # decades: the spread of measurements of the same weights
_JUMP = 1.0  # decades that a one-off step exceeds
_OUTLIER = 2.0  # factor by which a one-off step exceeds the next largest one
_PER_LAYER = 0.01  # decades per layer of systematic error, because narrow layers of one kind have errors of one sign
_NAMED = 4  # largest number of operators in one line
_SMALL = 0.05  # share of the largest contribution below which an operator is not named


@dataclass(frozen=True, slots=True)
class Share:
    """The contribution of one kind of step: `factor` is the geometric mean of the gradient factors of its `count` steps."""

    op: str
    factor: float
    count: int

    @property
    def decades(self) -> float:
        """Growth over all of its steps, in decades."""
        return self.count * math.log10(self.factor) if self.factor > 0.0 else -math.inf


@dataclass(frozen=True, slots=True)
class Attribution:
    """Predicted growth of a segment of the spine by kind of step, in the order of the model.

    `layers` is the number of layers or blocks (`unit`) in the segment. A one-off step is left out, as in sustained growth.
    """

    shares: tuple[Share, ...]
    layers: int
    unit: str = "layer"

    @property
    def decades(self) -> float:
        """Growth over the whole segment, in decades."""
        return sum(share.decades for share in self.shares)

    @property
    def per_layer(self) -> float:
        """Growth per layer or block, in decades."""
        return self.decades / self.layers

    def document(self) -> list[dict[str, str | float | int]]:
        """Return the shares as plain data for JSON."""
        return [{"op": share.op, "factor": share.factor, "count": share.count} for share in self.shares]

    def __str__(self) -> str:
        least = _SMALL * max(abs(share.decades) for share in self.shares)
        named = [share for share in self.shares if abs(share.decades) >= least]
        largest = sorted(named, key=lambda share: -abs(share.decades))[:_NAMED]
        parts = [_share_text(share, self.layers, self.unit) for share in named if share in largest]
        rest = sum(share.decades for share in self.shares if share not in largest) / self.layers
        parts += [f"the rest x{_factor_text(10.0**rest)}"] if abs(rest) * self.layers >= least else []
        each = f"{self.per_layer:+.{2 if abs(self.per_layer) >= 0.095 else 3}f} decades a {self.unit}"
        return f"{', '.join(parts)}: {each}, {self.layers} {self.unit}s"


def _share_text(share: Share, layers: int, unit: str) -> str:
    text = f"{share.op} x{_factor_text(share.factor)}"
    often, rest = divmod(share.count, layers)
    if often > 1 and rest <= 1:
        return f"{text} ({often} a {unit})"
    return text if abs(share.count - layers) <= 1 else f"{text} ({share.count} in all)"


def _factor_text(factor: float) -> str:
    return f"{factor:.2f}" if 0.1 <= factor < 100.0 else f"{factor:.2g}"


def attribute(structure: Structure, steps: Sequence[Step], start: str, end: str) -> Attribution | None:
    """Attribute the predicted growth between two nodes of the spine to operators.

    Nodes beside the spine belong to the step that joins them to it. A residual block is a "residual sum", or "residual
    attention" if it contains attention.

    Args:
        structure: The structure of the graph.
        steps: Predicted steps of the whole spine, in order.
        start: First node of the segment, nearer to the input.
        end: Last node of the segment.

    Returns:
        The attribution, or None if a step is unknown or the segment does not repeat a layer or block.
    """
    index = structure.spine_index
    if start not in index or end not in index or index[end] - index[start] < 2:
        return None
    within = [*steps[index[start] : index[end]]]
    if any(step.decades is None for step in within):
        return None
    skipped = _one_off(within)
    members = [_members(structure, step) for step in within]
    layers, unit = _repeats(structure, within, members)
    found: dict[str, list[float]] = {}
    for position, (step, inside) in enumerate(zip(within, members, strict=True)):
        if position != skipped:
            found.setdefault(_name(structure, step, inside), []).append(step.decades or 0.0)
    if layers < 2:
        return None
    return Attribution(
        tuple(Share(op, 10.0 ** (sum(decades) / len(decades)), len(decades)) for op, decades in found.items()), layers, unit
    )


def interval(prediction: Prediction, start: str, end: str) -> tuple[float, float] | None:
    """Return the interval, in decades, that holds the growth between two nodes with 90 % probability; None if it is unknown."""
    before, after = prediction.nodes.get(start), prediction.nodes.get(end)
    if before is None or after is None or before.backward is None or after.backward is None:
        return None
    expected = before.backward - after.backward
    spread = _INTERVAL * math.sqrt(max(before.backward_sd**2 - after.backward_sd**2, 0.0)) + _SAMPLING
    return expected - spread, expected + spread


def is_within(structure: Structure, prediction: Prediction, start: str, end: str, *, measured: float, spread: float) -> bool:
    """Return whether a measured growth between two nodes, in decades, lies in its predicted interval.

    The interval is widened by the spread of the measurement, and by a systematic error per layer.
    """
    bounds = interval(prediction, start, end)
    if bounds is None:
        return False
    first, last = (structure.spine_index.get(node, 0) for node in (start, end))
    layers = sum(is_weight_layer(structure.graph[node]) for node in structure.spine[first:last])
    slack = _PER_LAYER * layers + spread
    return bounds[0] - slack <= measured <= bounds[1] + slack


def _one_off(steps: Sequence[Step]) -> int | None:
    """Return the index of a step that is much larger than all others, which sustained growth leaves out, or None."""
    sign = math.copysign(1.0, sum(step.decades or 0.0 for step in steps))
    signed = [sign * (step.decades or 0.0) for step in steps]
    order = sorted(range(len(signed)), key=lambda index: -signed[index])
    largest, second = signed[order[0]], signed[order[1]]
    return order[0] if largest > _JUMP and largest > _OUTLIER * max(second, 0.0) else None


def _members(structure: Structure, step: Step) -> list[Node]:
    """Return the nodes of a step: those of the signal after the previous node of the spine, up to its own."""
    graph, signal, spine = structure.graph, structure.signal, structure.spine
    before = spine[structure.spine_index[step.node] - 1]
    first, last = (bisect_right(signal, graph.position[end], key=graph.position.__getitem__) for end in (before, step.node))
    return [graph[node] for node in signal[first:last]]


def _name(structure: Structure, step: Step, inside: Sequence[Node]) -> str:
    kinds = {kind_of(node) for node in inside}
    attends = not kinds.isdisjoint({Kind.ATTENTION, Kind.SOFTMAX})
    if step.residual is not None:
        return "residual attention" if attends else "residual sum"
    op = str(structure.graph[step.node].attrs.get("name", step.node)) if Kind.UNKNOWN in kinds else structure.graph[step.node].op
    if len(inside) == 1:
        return op
    return "attention" if attends else f"branches into {op}"


def _repeats(structure: Structure, steps: Sequence[Step], members: Sequence[Sequence[Node]]) -> tuple[int, str]:
    """Return the number of repetitions in the segment and their name: numbered modules, residual sums, or weight layers."""
    layers = [node for inside in members for node in inside if is_weight_layer(node)]
    names = [block_name(node.module) for node in layers]
    blocks = len({name for name in names if name in structure.blocks})
    covered = sum(name in structure.blocks for name in names)
    sums = sum(step.residual is not None for step in steps)
    if blocks < 2 or 2 * covered < len(layers) or sums > 2 * blocks:
        return (sums, "block") if sums > 1 else (len(layers), "layer")
    return blocks, "layer" if len(layers) <= blocks + 1 else "block"
