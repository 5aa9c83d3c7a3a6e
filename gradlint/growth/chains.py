"""The chain of nodes along which growth is read: the spine, or cuts of the graph by depth for a model without a spine."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from gradlint.result import Gains
from gradlint.structure import Structure


def chain_of(
    structure: Structure, each: Sequence[Mapping[str, Gains]], known: Mapping[str, Gains] | None = None
) -> tuple[list[str], list[Mapping[str, Gains]]]:
    """Return the chain and, for each set of gains in `each`, the gains along it.

    If the spine represents the model, the chain is the spine and the gains are returned unchanged. Otherwise each cut of
    `Structure.levels` is one element of the chain. The backward gain of a cut is that of its tensors together, in decades: 1/2
    log10 of the sum of their squared gradients. A cut carries the name of its tensor with the largest gradient in `known`,
    which defaults to the first set.
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
    """Return the elements of the chain in order, each as its name and the tensors that it stands for; see `chain_of`."""
    if structure.spine_is_representative:
        return [(node, (node,)) for node in structure.spine]
    return list(zip(_cut_names(structure, known), structure.levels, strict=True))


def _cut_names(structure: Structure, gains: Mapping[str, Gains]) -> list[str]:
    """Choose a node to name each cut: the one with the largest gradient that names no earlier cut, else the latest one."""

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
    """Return log10 of the root of the sum of squares of amplitudes given in decades; None if none is known."""
    known = [value for value in decades if value is not None]
    if not known or not all(value < math.inf for value in known):
        return known[0] if known else None
    top = max(known)
    if top == -math.inf:
        return top
    return top + 0.5 * math.log10(sum(10.0 ** (2.0 * (value - top)) for value in known))
