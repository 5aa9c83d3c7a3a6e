"""The chain of nodes along which growth is read: the spine, or cuts of the graph by depth where a model has none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gradlint.result import Gains
from gradlint.structure import Structure


def chain_of(
    structure: Structure, each: Sequence[Mapping[str, Gains]], known: Mapping[str, Gains] | None = None
) -> tuple[list[str], list[Mapping[str, Gains]]]:
    """The chain and the gains along it, for each of several sets of gains. A cut has the gain of all its tensors together.

    A cut is called after its tensor with the largest gradient in `known`, by default the first set.
    """
    if structure.spine_is_representative:
        return list(structure.spine), list(each)
    cuts = elements(structure, known if known is not None else each[0])
    rows: list[Mapping[str, Gains]] = [
        {
            name: Gains(
                _root_sum_square([gains[node].backward for node in cut if node in gains]),
                gains[name].forward if name in gains else None,
                _root_sum_square([gains[node].relative for node in cut if node in gains]),
            )
            for name, cut in cuts
        }
        for gains in each
    ]
    return list(dict.fromkeys(name for name, _ in cuts)), rows


def elements(structure: Structure, known: Mapping[str, Gains]) -> list[tuple[str, tuple[str, ...]]]:
    """What the chain is made of, in order: each name with the tensors that it stands for. Cuts are named as `chain_of` says."""
    if structure.spine_is_representative:
        return [(node, (node,)) for node in structure.spine]
    return list(zip(_cut_names(structure, known), structure.levels, strict=True))


def _cut_names(structure: Structure, gains: Mapping[str, Gains]) -> list[str]:
    """A node for each cut: the one with the largest gradient that has not stood for another cut yet, else the newest."""

    def weight(node: str) -> tuple[float, int]:
        backward = gains[node].backward if node in gains else None
        return -math.inf if backward is None else backward, structure.graph.position[node]

    names: dict[str, None] = {}
    chosen: list[str] = []
    for cut in structure.levels:
        chosen.append(max([node for node in cut if node not in names] or cut, key=weight))
        names[chosen[-1]] = None
    return chosen


def _root_sum_square(decades: Sequence[float | None]) -> float | None:
    """Decades of the root of the sum of squares."""
    known = [value for value in decades if value is not None]
    if not known or not all(value < math.inf for value in known):
        return known[0] if known else None
    top = max(known)
    if top == -math.inf:
        return top
    return top + 0.5 * math.log10(sum(10.0 ** (2.0 * (value - top)) for value in known))
