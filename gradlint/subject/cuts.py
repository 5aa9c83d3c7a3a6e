"""Which weights operators cut off from every gradient, as far as the graph tells without a probe."""

from __future__ import annotations

from collections import defaultdict

from gradlint.graph import Graph
from gradlint.measurements.trainability import Trainability
from gradlint.measurements.units import Cut
from gradlint.signal_path import first_cut, is_weight_layer, leading_to


def expected_cuts(graph: Graph) -> tuple[Cut, ...]:
    """Return the operators that pass no gradient whatever their operands, with the weights of layers that lie behind them alone.

    A file for inference may end in an argmax: only a model in training mode is looked at.
    """
    if graph.mode != "train":
        return ()
    useful, taught = leading_to(graph, graph.outputs), _taught(graph)
    starved: dict[tuple[str, str], dict[str, None]] = defaultdict(dict)
    for node in graph:
        if node.id in useful and node.id not in taught and is_weight_layer(node) and (end := first_cut(graph, node)) is not None:
            cause = "no-grad region" if "no-grad" in end.notes else end.op
            names = [weight.name for weight in node.weights.values() if weight.trainable]
            starved[end.id, cause].update(dict.fromkeys(names))
    learning = {weight.name for node in graph if node.id in taught for weight in node.weights.values()}
    kept = {place: tuple(name for name in names if name not in learning) for place, names in starved.items()}
    return tuple(Cut(node, cause, names, on_spine=True) for (node, cause), names in kept.items() if names)


def expected_trainability(graph: Graph, sizes: dict[str, int], frozen: int) -> Trainability:
    """Return which parameters learn, as far as the graph tells.

    Args:
        graph: The graph.
        sizes: Number of elements of each trainable parameter of the model, by name.
        frozen: Number of elements of the parameters that do not require grad.
    """
    stuck = tuple(dict.fromkeys(name for cut in expected_cuts(graph) for name in cut.starved if name in sizes))
    return Trainability(sizes, frozen, stuck=stuck, unused=tuple(name for name in sizes if name not in graph.weights))


def _taught(graph: Graph) -> set[str]:
    """Return the nodes whose weights a gradient can reach."""
    reached = leading_to(graph, graph.outputs, passing=True)
    return {node.id for node in graph if node.id in reached and "no-grad" not in node.notes and node.is_float}
