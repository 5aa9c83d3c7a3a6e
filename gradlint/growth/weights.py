"""How the gradients of weights, which are what moves a model, drift apart between layers of one kind.

A weight that is too large everywhere makes signals grow and gradients with them, so that the product, which is the gradient of a
weight, stays flat. Saturation, norms without skips and inputs that enter again at every layer do not.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from gradlint.growth.summary import FLOOR, UNDERFLOW, signed
from gradlint.growth.tracks import tracks
from gradlint.signal_path import is_weight_layer
from gradlint.structure import Structure

LIKE = 4
"""Weight matrices of one kind, one behind another, over which gradients are compared."""

_NUMBER = re.compile(r"\d+")
_LAYER = re.compile(r"_l(\d+)")  # in the role of a weight of a recurrent operator of several layers
_INSIDE = 1000  # layers that one operator has at most


@dataclass(frozen=True, slots=True)
class Spread:
    """How far the gradients of like weights drift apart.

    Attributes:
        decades: Sustained growth of the level towards the input, negative if it falls; see `largest_run`.
        nodes: The layers of the run that makes it, in order.
    """

    decades: float
    nodes: tuple[str, ...]


def spread(structure: Structure, levels: Mapping[str, float]) -> Spread | None:
    """Return the largest drift over all kinds of weights. Where no kind has `LIKE` weights in a row, tracks are compared.

    On a track, weights of all shapes are: by |d out / d W| / sqrt(fan_in), which is the product of the signal that enters a
    layer and the gradient that leaves it, whatever its width.

    Args:
        structure: The structure of the graph.
        levels: The level of each weight by name, in decades; -inf for a gradient of exactly zero.

    Returns:
        None if there are no `LIKE` weights, one behind another, at all.
    """
    found = [_drift(members, levels) for members in like_weights(structure)]
    if not any(found):
        fan = {weight.name: 0.5 * math.log10(max(weight.fan_out, 1)) for weight in structure.graph.weights.values()}
        scaled = {name: level + fan.get(name, 0.0) for name, level in levels.items()}
        found = [_drift(_matrices(structure, chain), scaled) for chain in tracks(structure)]
    return max((item for item in found if item is not None), key=lambda item: abs(item.decades), default=None)


def _drift(members: Iterable[tuple[str, str]], levels: Mapping[str, float]) -> Spread | None:
    nodes, values = _known(members, levels)
    if len(values) < LIKE:
        return None
    decades, _, _, run = signed(values)
    return Spread(decades, tuple(nodes[run.start : run.end + 1]))


def _matrices(structure: Structure, chain: Iterable[str]) -> list[tuple[str, str]]:
    """Return the main weights of the layers of a chain, as pairs of node and weight name, each weight once."""
    found: dict[str, str] = {}
    for node_id in chain:
        node = structure.graph[node_id]
        weight = node.weights.get("weight") if is_weight_layer(node) else None
        if weight is not None and len(weight.shape) > 1 and weight.trainable:
            found.setdefault(weight.name, node_id)
    return [(node, name) for name, node in found.items()]


def _known(members: Iterable[tuple[str, str]], levels: Mapping[str, float]) -> tuple[list[str], list[float]]:
    """Return the nodes of members with a finite level, and these levels. Where one is below UNDERFLOW, zeros have underflowed."""
    known = [(node, levels[name]) for node, name in members if name in levels and levels[name] < math.inf]
    lowest = min((level for _, level in known if level > -math.inf), default=0.0)
    pairs = [(node, max(level, FLOOR)) for node, level in known if level > -math.inf or lowest < UNDERFLOW]
    return [node for node, _ in pairs], [level for _, level in pairs]


def like_weights(structure: Structure) -> Iterator[list[tuple[str, str]]]:
    """Yield the weight matrices of each kind, `LIKE` and more, as pairs of node and weight name, one behind another.

    Weights are of one kind if operator, role, shape and module path agree, numbers in the path aside. A number that tells
    parallel parts apart (towers, experts) makes kinds of their own; one that counts along the depth does not. A weight that is
    used again counts where it is used first. The layers of one recurrent operator follow one another.
    """
    kinds: dict[tuple[object, ...], list[_Member]] = defaultdict(list)
    seen: set[str] = set()
    for node_id in structure.signal:
        node = structure.graph[node_id]
        layered = any(_LAYER.search(role) for role in node.weights)
        for role, weight in node.weights.items() if is_weight_layer(node) else ():
            layer = _LAYER.search(role)
            if len(weight.shape) < 2 or weight.name in seen or not weight.trainable or (layered and layer is None):
                continue
            seen.add(weight.name)
            path = node.module or (node_id if layered else weight.name)
            numbers = tuple(int(number) for number in _NUMBER.findall(path))
            kind = (node.op, _LAYER.sub("", role), weight.shape, _NUMBER.sub("#", path))
            depth = _INSIDE * structure.depths[node_id] + (int(layer[1]) if layer else 0)
            kinds[kind].append(_Member(node_id, weight.name, depth, numbers))
    for members in kinds.values():
        for chain in _chains(members):
            if len(chain) >= LIKE:
                yield [(member.node, member.weight) for member in chain]


@dataclass(frozen=True, slots=True)
class _Member:
    node: str
    weight: str
    depth: int
    numbers: tuple[int, ...]


def _chains(members: Sequence[_Member]) -> Iterator[list[_Member]]:
    """Split weights of one kind into those that follow one another.

    A number in the path tells parallel parts apart if, with the numbers before it fixed, depths overlap.
    """
    parallel = [place for place in range(len(members[0].numbers)) if _is_parallel(members, place)]
    groups: dict[tuple[int, ...], list[_Member]] = defaultdict(list)
    for member in sorted(members, key=lambda member: member.depth):
        chain = groups[tuple(member.numbers[place] for place in parallel)]
        if not chain or member.depth > chain[-1].depth:
            chain.append(member)
    yield from groups.values()


def _is_parallel(members: Sequence[_Member], place: int) -> bool:
    groups: dict[tuple[int, ...], dict[int, list[_Member]]] = defaultdict(lambda: defaultdict(list))
    for member in members:
        groups[member.numbers[:place]][member.numbers[place]].append(member)
    return any(_overlap(parts.values()) for parts in groups.values())


def _overlap(parts: Iterable[Sequence[_Member]]) -> bool:
    """Return whether the depths of two parts overlap."""
    ranges = sorted((min(m.depth for m in part), max(m.depth for m in part)) for part in parts)
    return any(after[0] <= before[1] for before, after in itertools.pairwise(ranges))
