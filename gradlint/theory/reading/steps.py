"""The spine as a chain of predicted steps: the factor of each on the gradient, in decades."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from gradlint.graph import Node, Weight
from gradlint.signal_path import is_weight_layer
from gradlint.structure import ResidualSum, Structure
from gradlint.theory.prediction import Predicted, Prediction, predict

_MOST = 150.0  # decades: steps are clamped to this, so that sums with a factor of zero stay finite
_UNSURE = 0.5  # decades^2: a step that adds more variance contains an operator without a rule


@dataclass(frozen=True, slots=True)
class Step:
    """The step from one node of the spine to the next.

    Attributes:
        node: Id of the spine node at which the step ends, nearer to the output.
        via: Ids of the nodes of the step in order, including `node` and excluding the one before.
        decades: 1/2 log10 of the factor on the squared gradient, from `node` back to the node before. None if it is unknown.
        residual: The residual sum that the step consists of, or None.
        before: Id of the node at which the step starts.
    """

    node: str
    via: tuple[str, ...]
    decades: float | None
    residual: ResidualSum | None = None
    before: str = ""


def main_weight(node: Node) -> Weight | None:
    """Return the weight matrix of a weight layer, or None for any other node."""
    return node.weights.get("weight") if is_weight_layer(node) else None


def squared_gain(weight: Weight) -> float:
    """Return fan_in times the mean square of a weight, which is |W|_F^2 per output unit (He et al. 2015, arXiv 1502.01852).

    A linear layer multiplies the second moment of its input, and the squared norm of its cotangent, by this factor.
    """
    return weight.fan_in * weight.statistics.mean_square


def propagate(structure: Structure, prediction: Prediction | None = None, chain: Sequence[str] | None = None) -> tuple[Step, ...]:
    """Return the predicted steps of a chain of nodes, one for each pair of neighbors, from the input to the output.

    Without a `prediction` the graph is propagated first. Without a `chain` the steps are those of the spine.
    """
    found = prediction or predict(structure)
    nodes = structure.spine if chain is None else chain
    return tuple(_step(structure, found, before, after) for before, after in itertools.pairwise(nodes))


def _step(structure: Structure, prediction: Prediction, before: str, after: str) -> Step:
    decades = difference(prediction.nodes.get(before), prediction.nodes.get(after))
    residual = structure.residual_sum(after) if structure.signal_parents(after) != [before] else None
    if residual is None or residual.fork != before:
        return Step(after, (after,), decades, before=before)
    return Step(after, (*residual.skip, *residual.branch, after), decades, residual, before)


def difference(before: Predicted | None, after: Predicted | None) -> float | None:
    """Return the decades that the gradient gains from `after` back to `before`, or None if that is unknown or uncertain."""
    if before is None or after is None or before.backward is None or after.backward is None:
        return None
    unsure = before.backward_sd**2 - after.backward_sd**2 >= _UNSURE
    decades = before.backward - after.backward
    return None if unsure or math.isnan(decades) else min(max(decades, -_MOST), _MOST)
