"""Identify the activation that several pointwise operators compute together, by evaluating them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlint.graph import Node, Ref
from gradlint.ops import OPERATORS, activation

if TYPE_CHECKING:
    from numpy.typing import NDArray

_GRID = np.array([-7.3, -4.1, -2.7, -1.9, -1.1, -0.6, -0.2, 0.3, 0.7, 1.3, 2.2, 3.4, 5.6])
_SPELLED = sorted(
    ((row, row.spelling) for row in OPERATORS.values() if row.spelling is not None), key=lambda item: item[1].within
)

ANCHORS = frozenset(op for _, spelling in _SPELLED for op in spelling.at)
"""Canonical names of operators. Every activation that exporters spell out contains at least one of them."""


def known_function(region: Sequence[Node], start: Ref) -> str | None:
    """Return the canonical name of the activation that a region computes from the tensor `start`, or None.

    The region is evaluated on 13 points in [-7.3, 5.6] and compared with every activation that exporters spell out. The largest
    difference must be within the tolerance of the row; see `gradlint.ops.operator.Spelling`.

    Args:
        region: Pointwise nodes in execution order. Each reads `start`, earlier nodes of the region, or scalars.
        start: The input of the region.
    """
    values = {start: _GRID}
    with np.errstate(all="ignore"):
        for node in region:
            result = _apply(node, values)
            if result is None:
                return None
            values[Ref(node.id)] = result
        found = values[Ref(region[-1].id)]
        for row, spelling in _SPELLED:
            function = row.of({})
            if function is not None and np.abs(found - function(_GRID)).max() <= spelling.within:
                return row.name
    return None


def _apply(node: Node, values: dict[Ref, NDArray[np.float64]]) -> NDArray[np.float64] | None:
    """Return the result of a node for known operands, or None if its operator or an operand is unknown."""
    constant: Any = node.attrs.get("constant")
    operands = [np.asarray(float(constant)) if ref is None and _is_number(constant) else values.get(ref) for ref in node.inputs]  # type: ignore[arg-type]
    present = [operand for operand in operands if operand is not None]
    if node.op in _BINARY:
        return _BINARY[node.op](present[0], present[1]) if len(operands) == len(present) == 2 else None
    if not present:
        return None
    if node.op == "clamp":
        low, high = node.attrs.get("min", -np.inf), node.attrs.get("max", np.inf)
        return np.clip(present[0], low, high) if _is_number(low) and _is_number(high) else None
    if node.op in _UNARY:
        return np.asarray(_UNARY[node.op](present[0]))
    function = activation(node.op, node.attrs)
    return None if function is None else np.asarray(function(present[0]))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float))


_BINARY = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "pow": np.power}
_UNARY = {"neg": np.negative, "exp": np.exp, "log": np.log}
