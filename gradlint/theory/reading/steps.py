"""The spine as a chain of predicted steps: what each does to the gradient, and how sure that is."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

from gradlint.graph import Node, Weight
from gradlint.signal_path import is_weight_layer
from gradlint.structure import ResidualSum, Structure
from gradlint.theory.prediction import Predicted, Prediction, predict

_MOST = 150.0  # decades: a factor of zero, which sums of steps must stay finite with
_UNSURE = 0.5  # decades^2 that one step adds: theory has no rule for something on it


@dataclass(frozen=True, slots=True)
class Step:
    """From one spine node to the next: `decades` is 1/2 log10 of the squared gradient factor, None where unknown.

    `via` holds the nodes of the step in order, the spine node it ends in last.
    """

    node: str
    via: tuple[str, ...]
    decades: float | None
    residual: ResidualSum | None = None


def main_weight(node: Node) -> Weight | None:
    """The weight that a weight layer multiplies by, None when it has none."""
    return node.weights.get("weight") if is_weight_layer(node) else None


def squared_gain(weight: Weight) -> float:
    """fan_in times mean square: the sum of squares per output unit (THEORY section 2)."""
    return weight.fan_in * weight.statistics.mean_square


def propagate(structure: Structure, prediction: Prediction | None = None) -> tuple[Step, ...]:
    """Predicted steps of the spine, one per pair of neighbours."""
    found = prediction or predict(structure)
    return tuple(_step(structure, found, before, after) for before, after in itertools.pairwise(structure.spine))


def _step(structure: Structure, prediction: Prediction, before: str, after: str) -> Step:
    decades = difference(prediction.nodes.get(before), prediction.nodes.get(after))
    residual = structure.residual_sum(after) if structure.signal_parents(after) != [before] else None
    if residual is None or residual.fork != before:
        return Step(after, (after,), decades)
    return Step(after, (*residual.skip, *residual.branch, after), decades, residual)


def difference(before: Predicted | None, after: Predicted | None) -> float | None:
    """Decades that the gradient gains from `after` back to `before`; None where theory cannot tell."""
    if before is None or after is None or before.backward is None or after.backward is None:
        return None
    unsure = before.backward_sd**2 - after.backward_sd**2 >= _UNSURE
    decades = before.backward - after.backward
    return None if unsure or math.isnan(decades) else min(max(decades, -_MOST), _MOST)
