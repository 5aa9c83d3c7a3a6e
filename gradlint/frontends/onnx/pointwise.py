"""What function a few pointwise operators are together, found by evaluating them."""

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
"""Operators that one of which stands in every activation that is spelled out."""


def known_function(region: Sequence[Node], start: Ref) -> str | None:
    """The activation that the last node of a region is of the tensor `start`, None when it is none that is known.

    `region` holds pointwise nodes in execution order, each of which reads `start`, an earlier one, or a scalar.
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
    """The result of a node on known operands, None for an operator that is not evaluated."""
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
