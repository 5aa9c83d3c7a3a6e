"""Sustained growth along runs of predicted steps, and which layer of a run does what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    """Predicted sustained growth of consecutive steps; `decades` > 0 explodes towards the input, < 0 vanishes."""

    decades: float
    steps: tuple[Step, ...]

    @property
    def span(self) -> tuple[str, str] | None:
        """First and last node of the run, None when it is empty."""
        return (self.steps[0].node, self.steps[-1].node) if self.steps else None

    def share(self, decades: Mapping[str, float]) -> float:
        """How much of the trend is due to decades that are laid to some of its steps, by node; its one largest step aside."""
        sign = -1.0 if self.decades < 0.0 else 1.0
        largest = max(self.steps, key=lambda step: sign * (step.decades or 0.0), default=None)
        laid = sum(value for node, value in decades.items() if largest is None or node != largest.node)
        return laid / self.decades if self.decades else 0.0

    def factor(self, parts: int) -> float:
        """The factor of the gradient at each of so many like parts; under 1 it shrinks towards the input."""
        return float(10 ** (self.decades / parts))

    def pace(self, parts: int) -> str:
        """What that factor does, for a message: "grows x1.30", "shrinks x0.70"."""
        return f"{'grows' if self.decades > 0.0 else 'shrinks'} x{self.factor(parts):.2f}"


@dataclass(frozen=True, slots=True)
class Layer:
    """A weight layer of a plain chain with the activation that it works with.

    `gain` is sqrt(fan_in x mean square), `critical` the gain at which that activation neither grows nor shrinks a gradient.
    """

    node: str
    activation: Node | None
    gain: float
    critical: float


def rise(steps: Sequence[Step]) -> Trend:
    """The run of steps with the largest sustained growth; `decades` is 0 or more. Every step must have decades."""
    return _trend(steps, 1.0)


def fall(steps: Sequence[Step]) -> Trend:
    """The run of steps with the largest sustained decay; `decades` is 0 or less. Every step must have decades."""
    return _trend(steps, -1.0)


def _trend(steps: Sequence[Step], sign: float) -> Trend:
    backwards = [sign * (step.decades or 0.0) for step in reversed(steps)]
    run = largest_run([*accumulate(backwards, initial=0.0)][::-1])
    return Trend(sign * run.decades, tuple(steps[run.start : run.end]))


def is_plain(structure: Structure, step: Step) -> bool:
    """Whether a step is one operator with one input: no skip goes round it."""
    return len(structure.signal_parents(step.node)) == 1


def layers(structure: Structure, steps: Sequence[Step]) -> list[Layer]:
    """The weight layers among plain steps, each with the activation behind it, or before it where it is the last."""
    found = []
    for step in steps:
        weight = main_weight(structure.graph[step.node])
        if weight is None:
            continue
        place, length = structure.spine_index[step.node], len(structure.spine)
        act = _activation(structure, range(place + 1, length)) or _activation(structure, range(place - 1, -1, -1))
        critical = critical_gain(act.op, parameters(act.op, act.attrs)) if act else 1.0
        found.append(Layer(step.node, act, squared_gain(weight) ** 0.5, critical))
    return found


def _activation(structure: Structure, places: range) -> Node | None:
    """The first activation on the way along the spine, None when another weight layer comes first."""
    for place in places:
        node = structure.graph[structure.spine[place]]
        if kind_of(node) is Kind.ACTIVATION:
            return node
        if is_weight_layer(node):
            return None
    return None
