"""Tracks: the chains of weight layers beside the spine, in a tower, the inner path of a U-Net, or from a second input.

A spine says nothing of the parts that some paths go round. A track is a chain that every path from its first to its last node
passes, within a part of the graph that no other track has.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from gradlint.growth.summary import HEALTHY, JUMP, LIMIT, place, summarize
from gradlint.measurements.learning import BLOWN, SPREAD, Learning
from gradlint.result import Gains, Growth, Track
from gradlint.signal_path import is_weight_layer
from gradlint.structure import Structure, passed

LEAST = 3
"""Weight layers, one after another, that make a track."""

_NESTED = 12  # parts within parts that are searched: a U-Net has one for each level


class Places:
    """Where nodes stand on a set of chains. A node on more than one of them stands on the last."""

    def __init__(self, chains: Iterable[Sequence[str]]) -> None:
        self._places = {node: (chain, index) for chain in chains for index, node in enumerate(chain)}

    def chain(self, node: str) -> Sequence[str]:
        """Return the chain that a node stands on, or no nodes."""
        return self._places[node][0] if node in self._places else ()

    def between(self, span: tuple[str, str]) -> Sequence[str]:
        """Return the nodes of a chain from the one before the start of a span to its end, or none if no chain has both ends."""
        (chain, first), (other, last) = (self._places.get(node, ((), 0)) for node in span)
        return chain[max(first - 1, 0) : last + 1] if chain is other else ()


def read_tracks(structure: Structure, gains: Mapping[str, Gains], each: Sequence[Mapping[str, Gains]] = ()) -> tuple[Track, ...]:
    """Return the growth along every track, from gains by node in decades; `each` are those of single seeds."""
    seeds = [{node: one.backward for node, one in seed.items()} for seed in each]
    return tuple(Track(chain, summarize(structure.graph, chain, gains, seeds)) for chain in tracks(structure))


def decisive(structure: Structure, main: Track, others: Sequence[Track], learning: Learning) -> Track:
    """Return the track that decides: the one with the most growth that gradients of weights bear out, or else the main one.

    Beside the main track, growth counts only where gradients of weights could be compared. Where only the weights drift apart,
    it is the track that passes most of their layers, with their drift as its growth. Where the output of a drawn model is too
    large, it is the track that rises most.
    """
    compared = others if learning.spread is not None else ()
    large = [track for track in (main, *compared) if abs(track.growth.decades) >= LIMIT]
    borne_out = [track for track in large if learning.bears_out(track.growth.decades)]
    if borne_out:
        return max(borne_out, key=lambda track: abs(track.growth.decades))
    if learning.drifts and learning.spread is not None:
        drifting = set(learning.run)
        track = max((main, *others), key=lambda track: len(drifting.intersection(track.nodes)))
        ends = place(structure.graph, learning.run[0]), place(structure.graph, learning.run[-1])
        rise, fall = max(learning.spread, 0.0), max(-learning.spread, 0.0)
        return Track(track.nodes, Growth(learning.spread, rise, fall, learning.spread, start=ends[0], end=ends[1]))
    if learning.drawn and (learning.output or 0.0) >= BLOWN:
        parts = (main, *others) if structure.spine_is_representative or not others else others
        return max(parts, key=lambda track: track.growth.decades)
    return main


def counted(decades: float, learning: Learning) -> float:
    """Return the growth that counts, on a scale on which LIMIT is as likely to fail as not.

    Gradients of activations move nothing: growth over HEALTHY counts if gradients of weights bear it out. These count by
    themselves where they drift apart, and so does the output of a drawn model along whose layers the gradient rises.

    Args:
        decades: Growth of the gradient along the track that decides.
        learning: The gradients of weights, and the level of the output.
    """
    drift = (learning.spread or 0.0) * LIMIT / SPREAD
    activations = decades
    if abs(decades) > HEALTHY and not learning.bears_out(decades):
        activations = math.copysign(HEALTHY, decades)
    rises = learning.drawn and decades >= JUMP and learning.output is not None
    level = (learning.output or 0.0) * LIMIT / BLOWN if rises else 0.0
    return max((activations, drift, level), key=abs)


def tracks(structure: Structure) -> tuple[tuple[str, ...], ...]:
    """Return the tracks of a model, each as node ids in execution order. Tracks share no node.

    The spine comes first if it is representative. What it leaves is searched part by part: the deepest chain of a part is a
    track, and what that leaves is searched likewise. The cost is linear in the graph.
    """
    spine = structure.spine if structure.spine_is_representative else ()
    on_spine = set(spine)
    waiting = [(part, 0) for part in _parts(structure, [node for node in structure.learning if node not in on_spine])]
    found: list[tuple[str, ...]] = []
    while waiting:
        part, level = waiting.pop()
        chain, depth = _deepest(structure, part)
        if depth < LEAST:
            continue
        found.append(chain)
        if level < _NESTED:
            taken = set(chain)
            waiting += [(rest, level + 1) for rest in _parts(structure, [node for node in part if node not in taken])]
    found.sort(key=lambda chain: structure.graph.position[chain[0]])
    return (spine, *found) if spine else tuple(found)


def _parts(structure: Structure, nodes: Sequence[str]) -> list[list[str]]:
    """Return the connected parts of some nodes of the signal, each in execution order."""
    root = {node: node for node in nodes}

    def find(node: str) -> str:
        while root[node] != node:
            root[node] = root[root[node]]
            node = root[node]
        return node

    for node in nodes:
        for parent in structure.signal_parents(node):
            if parent in root:
                root[find(node)] = find(parent)
    parts: dict[str, list[str]] = defaultdict(list)
    for node in nodes:
        parts[find(node)].append(node)
    return list(parts.values())


def _deepest(structure: Structure, part: Sequence[str]) -> tuple[tuple[str, ...], int]:
    """Return the nodes that every path passes from the start to the end of the deepest chain, and its number of weight layers.

    A weight that is used again counts once.
    """
    within, graph = set(part), structure.graph
    parents = {node: [parent for parent in structure.signal_parents(node) if parent in within] for node in part}
    depth: dict[str, int] = {}
    start: dict[str, str] = {}
    seen: set[str] = set()
    for node in part:
        above = max(parents[node], key=depth.__getitem__, default=None)
        names = {weight.name for weight in graph[node].weights.values()} if is_weight_layer(graph[node]) else set()
        depth[node] = (depth[above] if above is not None else 0) + bool(names - seen)
        start[node] = start[above] if above is not None else node
        seen |= names
    end = max(reversed(part), key=depth.__getitem__)
    between = dict.fromkeys(_between(part, parents, start[end], end))
    inside = {node: [parent for parent in parents[node] if parent in between] for node in between}
    return tuple(passed(inside, [start[end]], [end])), depth[end]


def _between(part: Sequence[str], parents: Mapping[str, Sequence[str]], start: str, end: str) -> list[str]:
    """Return the nodes on the paths from `start` to `end`, in execution order."""
    below, above = {start}, {end}
    for node in part:
        if any(parent in below for parent in parents[node]):
            below.add(node)
    for node in reversed(part):
        if node in above:
            above.update(parents[node])
    return [node for node in part if node in below and node in above]
