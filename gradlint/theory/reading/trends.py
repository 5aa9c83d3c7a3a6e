"""Sustained growth along runs of predicted steps, and the gains of the layers in a run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate

from gradlint.graph import Node
from gradlint.ops import Kind
from gradlint.signal_path import is_weight_layer, kind_of
from gradlint.structure import Structure
from gradlint.theory.gaussian.integrals import critical_gain, parameters
from gradlint.theory.reading.steps import Step, main_weight, squared_gain
from gradlint.theory.reading.sustained import largest_run


@dataclass(frozen=True, slots=True)
class Trend:
    """Predicted sustained growth of a run of consecutive steps, in decades.

    Positive `decades` explode towards the input, negative ones vanish.
    """

    decades: float
    steps: tuple[Step, ...]

    @property
    def span(self) -> tuple[str, str] | None:
        """First and last node of the run, or None if it is empty."""
        return (self.steps[0].node, self.steps[-1].node) if self.steps else None

    def share(self, decades: Mapping[str, float]) -> float:
        """Return the share of the trend that given decades of some steps, by node, explain; its largest step does not count."""
        sign = -1.0 if self.decades < 0.0 else 1.0
        largest = max(self.steps, key=lambda step: sign * (step.decades or 0.0), default=None)
        laid = sum(value for node, value in decades.items() if largest is None or node != largest.node)
        return laid / self.decades if self.decades else 0.0

    def factor(self, parts: int) -> float:
        """Return the factor on the gradient for each of `parts` equal parts; below 1 if it shrinks towards the input."""
        return float(10 ** (self.decades / parts))

    def pace(self, parts: int) -> str:
        """Return `factor` as the words of a message, such as "grows x1.30" or "shrinks x0.70"."""
        return f"{'grows' if self.decades > 0.0 else 'shrinks'} x{self.factor(parts):.2f}"


@dataclass(frozen=True, slots=True)
class Layer:
    """A weight layer of a plain chain with its activation.

    Attributes:
        node: Id of the weight layer.
        activation: The activation after it, or before it for the last layer. None for a linear chain.
        gain: The weight gain sigma_w, sqrt(fan_in * mean square of the weights).
        critical: The gain at which this activation neither grows nor shrinks gradients; see `integrals.critical_gain`.
    """

    node: str
    activation: Node | None
    gain: float
    critical: float


def rise(steps: Sequence[Step]) -> Trend:
    """Return the run of steps with the largest sustained growth, whose decades are at least 0. Each step must be known."""
    return _trend(steps, 1.0)


def fall(steps: Sequence[Step]) -> Trend:
    """Return the run of steps with the largest sustained decay, whose decades are at most 0. Each step must be known."""
    return _trend(steps, -1.0)


def _trend(steps: Sequence[Step], sign: float) -> Trend:
    backwards = [sign * (step.decades or 0.0) for step in reversed(steps)]
    run = largest_run([*accumulate(backwards, initial=0.0)][::-1])
    return Trend(sign * run.decades, tuple(steps[run.start : run.end]))


def is_plain(structure: Structure, step: Step) -> bool:
    """Return whether a step is a single operator that no path goes round. Other inputs, such as a condition, may enter it."""
    if len(structure.signal_parents(step.node)) == 1:
        return True
    readers = [child.id for child in structure.graph.children(step.before)] if step.before in structure.graph else []
    return readers == [step.node]


def layers(structure: Structure, steps: Sequence[Step], chain: Sequence[str] | None = None) -> list[Layer]:
    """Return the weight layers of plain steps, each with the activation after it, or before it for the last layer.

    The steps are those of `chain`, by default the spine.
    """
    nodes = structure.spine if chain is None else chain
    index = {node: place for place, node in enumerate(nodes)}
    found = []
    for step in steps:
        weight = main_weight(structure.graph[step.node])
        if weight is None:
            continue
        place = index[step.node]
        behind, before = range(place + 1, len(nodes)), range(place - 1, -1, -1)
        act = _activation(structure, map(nodes.__getitem__, behind)) or _activation(structure, map(nodes.__getitem__, before))
        critical = critical_gain(act.op, parameters(act.op, act.attrs)) if act else 1.0
        found.append(Layer(step.node, act, squared_gain(weight) ** 0.5, critical))
    return found


def _activation(structure: Structure, nodes: Iterable[str]) -> Node | None:
    """Return the first activation of some nodes, or None if a weight layer comes first."""
    for node_id in nodes:
        node = structure.graph[node_id]
        if kind_of(node) is Kind.ACTIVATION:
            return node
        if is_weight_layer(node):
            return None
    return None
