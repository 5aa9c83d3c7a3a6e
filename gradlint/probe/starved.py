"""Why parameters get no gradient: what the probe saw, corrected by which parameters learn on the inputs as they were given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from gradlint.graph import Graph, Node, Ref
from gradlint.measurements.trainability import Trainability
from gradlint.measurements.units import Cut, ZeroGradient
from gradlint.ops import operator
from gradlint.probe.trainability import carries
from gradlint.result import Measurement
from gradlint.signal_path import is_weight_layer

REENTRANT = "re-entrant checkpoint of an input that needs no gradient"
LEFT = "Python numbers or arrays"


def explain_starved(found: Measurement, graph: Graph, learn: Trainability) -> Measurement:
    """Return a measurement whose cuts are those of parameters that never learn, and whose zeros by design are named as such.

    Args:
        found: What the probe measured, with the cuts that it saw on inputs that require grad.
        graph: The graph of the model.
        learn: Which parameters learn on the inputs as they were given.
    """
    stuck = set(learn.stuck)
    kept = (replace(cut, starved=tuple(name for name in cut.starved if name in stuck)) for cut in found.cuts)
    cuts = [cut for cut in kept if cut.starved]
    harmless = {name for idle in found.idle for name in idle.weights}
    explained = harmless.union(*(cut.starved for cut in cuts))
    cuts += _cuts(graph, learn, [name for name in learn.stuck if name not in explained])
    designed = [name for name in learn.opened if name not in harmless]
    return replace(
        found,
        cuts=tuple(cuts),
        idle=tuple(sorted((*found.idle, *_designed(graph, designed)), key=lambda item: graph.position[item.node])),
        dead=found.dead and not opens_layers(graph, learn),
        trainability=learn,
    )


def opens_layers(graph: Graph, learn: Trainability) -> bool:
    """Return whether a weight matrix of a layer gets a gradient after virtual steps; a bias alone trains nothing."""
    layers = (node for node in graph if is_weight_layer(node))
    return any(weight.name in learn.opened and len(weight.shape) > 1 for node in layers for weight in node.weights.values())


def _cuts(graph: Graph, learn: Trainability, starved: Sequence[str]) -> Iterator[Cut]:
    """Yield the cuts that leave parameters without gradient although the pass of the probe, on other inputs, saw none."""
    useful, taught = _leading_to(graph, graph.outputs), _leading_to(graph, [ref for ref in graph.outputs if carries(graph, ref)])
    known = {weight.name for node in graph for weight in node.weights.values()}
    escapes = any(name not in known for name in learn.sizes if name not in learn.unused)
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in starved:
        node = next(node for node in graph if any(weight.name == name for weight in node.weights.values()))
        if "checkpoint" in node.notes:
            groups[node.id, REENTRANT].append(name)
        elif node.id not in useful and escapes:
            groups[node.id, LEFT].append(name)
        elif node.id in useful - taught:
            end = _cutting(graph, next(ref for ref in graph.outputs if node.id in _leading_to(graph, [ref])))
            groups[end.id, end.op].append(name)
    for (node_id, cause), names in groups.items():
        yield Cut(node_id, cause, tuple(names), on_spine=True)


def _cutting(graph: Graph, ref: Ref) -> Node:
    """Return the operator on the way to an output that passes no gradient, the last one."""
    node = graph[ref.node]
    while not operator(node.op).cuts and "no-grad" not in node.notes and graph.parents(node.id):
        node = graph.parents(node.id)[0]
    return node


def _leading_to(graph: Graph, ends: Iterable[Ref]) -> set[str]:
    useful = {ref.node for ref in ends}
    for node in reversed(list(graph)):
        if node.id in useful:
            useful.update(parent.id for parent in graph.parents(node.id))
    return useful


def _designed(graph: Graph, names: Sequence[str]) -> Iterator[ZeroGradient]:
    """Yield one entry for each node whose parameters get a gradient after virtual steps only."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name in names:
        node = next((node for node in graph if any(weight.name == name for weight in node.weights.values())), None)
        if node is not None:
            groups[node.id].append(name)
    for node_id, waiting in groups.items():
        yield ZeroGradient(node_id, "zero start", tuple(waiting))
