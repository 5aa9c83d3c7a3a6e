"""Why parameters get no gradient: what the probe saw, corrected by which parameters learn on the inputs as they were given."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from gradlint.graph import Graph, Node
from gradlint.growth import LIMIT
from gradlint.measurements.trainability import Trainability
from gradlint.measurements.units import ASIDE, ONE_POSITION, Cut, Units, ZeroGradient
from gradlint.ops import Kind
from gradlint.result import Measurement
from gradlint.signal_path import first_cut, is_weight_layer, kind_of, leading_to
from gradlint.theory.initialization import looks_initialized

REENTRANT = "re-entrant checkpoint of an input that needs no gradient"
SHUT = "zeros that never open"
LEFT = "Python numbers or arrays"

_UNITS = 16
"""Units of a drawn layer that are all silent by chance once in 2^16 layers."""


def explain_starved(found: Measurement, graph: Graph, learn: Trainability, *, training: bool) -> Measurement:
    """Return a measurement whose cuts are those of parameters that never learn, and whose zeros by design are named as such.

    Args:
        found: What the probe measured, with the cuts that it saw on inputs that require grad.
        graph: The graph of the model.
        learn: Which parameters learn on the inputs as they were given.
        training: Whether the model is one that is trained as it is. An exported file may end in an argmax, or hold both sides of
            a condition.
    """
    learn = _without_noise(found, learn) if training else learn
    stuck = set(learn.stuck)
    kept = (replace(cut, starved=tuple(name for name in cut.starved if name in stuck)) for cut in found.cuts)
    calm = training and abs(found.growth.decades) < LIMIT  # a signal that explodes saturates what is in its way
    cuts = [replace(cut, lasting=calm and _lasts(graph, cut, found.units)) for cut in kept if cut.starved]
    idle = [replace(zero, weights=tuple(name for name in zero.weights if _is_idle(zero, name, learn))) for zero in found.idle]
    idle = [zero for zero in idle if zero.weights]
    harmless = {name for zero in idle for name in zero.weights}
    explained = harmless.union(*(cut.starved for cut in cuts))
    unexplained = [name for name in learn.stuck if training and name not in explained]
    cuts += _cuts(graph, learn, unexplained, alone=not cuts)
    designed = [name for name in learn.opened if name not in harmless]
    return replace(
        found,
        cuts=tuple(cuts),
        idle=tuple(sorted((*idle, *_designed(graph, designed)), key=lambda item: graph.position[item.node])),
        dead=found.dead and not opens_layers(graph, learn),
        trainability=learn,
    )


def _without_noise(found: Measurement, learn: Trainability) -> Trainability:
    """Count parameters behind a norm over one value as stuck: rounding is all the gradient that it ever passes."""
    behind = {name for cut in found.cuts if cut.cause.endswith("norm with zero gradient") for name in cut.starved}
    noise = tuple(name for name in learn.opened if name in behind)
    opened = {name: step for name, step in learn.opened.items() if name not in behind}
    return replace(learn, opened=opened, stuck=(*learn.stuck, *noise))


def _lasts(graph: Graph, cut: Cut, units: Sequence[Units]) -> bool:
    """Return whether an operator that passed no gradient in any draw of inputs will not pass one either for others.

    The layers before it must look drawn: a trained one may be silent on inputs that are drawn at random. An activation must have
    so many units that they are not all silent by chance. Other operands must be constants: a gate may open.
    """
    node = graph[cut.node]
    before = (weight for weight in graph.weights.values() if weight.name in cut.starved and len(weight.shape) > 1)
    if not cut.depends_on_values or cut.cause == ONE_POSITION or not looks_initialized(before):
        return False
    if kind_of(node) is Kind.ACTIVATION or node.op == "clamp":
        count = next((one.count for one in units if one.node == node.id), (node.shape or (0,))[-1])
        return (count or 0) >= _UNITS
    return len({parent.id for parent in graph.parents(node.id)}) == 1


def _is_idle(zero: ZeroGradient, name: str, learn: Trainability) -> bool:
    """Return whether a weight is what the cause of its zero gradient says: one that opens later, or a bias without effect."""
    return name not in learn.stuck or zero.cause == "bias before a norm"


def opens_layers(graph: Graph, learn: Trainability) -> bool:
    """Return whether a weight matrix of a layer gets a gradient after virtual steps; a bias alone trains nothing."""
    layers = (node for node in graph if is_weight_layer(node))
    return any(weight.name in learn.opened and len(weight.shape) > 1 for node in layers for weight in node.weights.values())


def _cuts(graph: Graph, learn: Trainability, starved: Sequence[str], *, alone: bool) -> Iterator[Cut]:
    """Yield the cuts that leave parameters without gradient although the pass of the probe, on other inputs, saw none."""
    useful, taught = leading_to(graph, graph.outputs), leading_to(graph, graph.outputs, passing=True)
    layers = {weight.name for node in graph if is_weight_layer(node) for weight in node.weights.values() if len(weight.shape) > 1}
    owners = _owners(graph)
    escapes = any(name not in owners for name in learn.sizes if name not in learn.unused)
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for name in starved:
        node = owners[name]
        if "checkpoint" in node.notes:
            groups[node.id, REENTRANT].append(name)
        elif node.id not in useful and (escapes or learn.numbers):
            groups[node.id, LEFT].append(name)
        elif node.id not in taught and (end := first_cut(graph, node)) is not None:
            groups[end.id, end.op].append(name)
        elif node.id not in useful:
            groups[node.id, ASIDE].append(name)
        elif node.id in useful and name in layers and _is_shut(node, learn):
            groups[node.id, SHUT].append(name)
    for (node_id, cause), names in groups.items():
        if cause != SHUT or alone:  # what lies behind a cut may be zero because of it
            yield Cut(node_id, cause, tuple(names), on_spine=cause != ASIDE)


def _owners(graph: Graph) -> dict[str, Node]:
    """Return the first node that uses each weight, by its name."""
    return {weight.name: node for node in reversed(list(graph)) for weight in node.weights.values()}


def _is_shut(node: Node, learn: Trainability) -> bool:
    """Return whether no weight matrix of a layer learns. One direction of a recurrence may read a single step alone."""
    matrices = [weight.name for weight in node.weights.values() if len(weight.shape) > 1 and weight.trainable]
    return all(name in learn.stuck for name in matrices) and 0 not in (node.shape or ())


def _designed(graph: Graph, names: Sequence[str]) -> Iterator[ZeroGradient]:
    """Yield one entry for each node whose parameters get a gradient after virtual steps only."""
    owners, groups = _owners(graph), defaultdict[str, list[str]](list)
    for name in names:
        if name in owners:
            groups[owners[name].id].append(name)
    for node_id, waiting in groups.items():
        yield ZeroGradient(node_id, "zero start", tuple(waiting))
