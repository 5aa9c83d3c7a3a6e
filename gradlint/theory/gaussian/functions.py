"""The function that a pointwise operator applies: an activation, an elementary function, or arithmetic with one constant."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from gradlint.graph import Node
from gradlint.ops import activation, attributes_of

if TYPE_CHECKING:
    from gradlint.ops.pointwise import Function

_MATH: dict[str, Function] = {
    "exp": np.exp,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log": np.log,
    "log2": np.log2,
    "log10": np.log10,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "rsqrt": lambda z: 1.0 / np.sqrt(z),
    "reciprocal": np.reciprocal,
    "abs": np.abs,
    "sin": np.sin,
    "cos": np.cos,
    "sinc": np.sinc,
    "tan": np.tan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "atan": np.arctan,
    "arctan": np.arctan,
    "asinh": np.arcsinh,
    "square": np.square,
    "neg": np.negative,
}


def function_of(node: Node) -> Function | None:
    """Return the function that an operator applies to its one varying operand, or None if it is unknown."""
    constant = node.attrs.get("constant")
    if isinstance(constant, (int, float)) and len(node.inputs) > 1:
        return _with_constant(node, float(constant))
    if node.op == "clamp":
        low, high = (_bound(node, names) for names in (("min", "min_val"), ("max", "max_val")))
        return lambda z: np.clip(z, low, high)
    if node.op == "pow" and isinstance(node.attrs.get("exponent"), (int, float)):
        return _power(float(node.attrs["exponent"]))
    found = activation(node.op, attributes_of(node))
    name = str(node.attrs.get("name", node.op)).lower().strip("_")
    return found if found is not None else _MATH.get(name, _MATH.get(node.op))


def _bound(node: Node, names: Sequence[str]) -> float | None:
    value = next((node.attrs[name] for name in names if name in node.attrs), None)
    return float(value) if isinstance(value, (int, float)) else None


def _power(exponent: float) -> Function:
    return lambda z: np.power(z, exponent)


def _with_constant(node: Node, constant: float) -> Function | None:
    """Return the function of a binary operator with one constant operand, whose input slot is None."""
    left = node.inputs[0] is None
    step = float(node.attrs.get("alpha", 1.0)) if node.op in {"add", "sub"} else 1.0
    functions: dict[str, tuple[Function, Function]] = {  # constant on the right, constant on the left
        "add": (lambda z: z + step * constant, lambda z: constant + step * z),
        "sub": (lambda z: z - step * constant, lambda z: constant - step * z),
        "mul": (lambda z: z * constant, lambda z: z * constant),
        "div": (lambda z: z / constant, lambda z: constant / z),
        "pow": (_power(constant), lambda z: np.power(constant, z)),
    }
    if node.op == "maximum":
        smaller = "min" in str(node.attrs.get("name", "")).lower()
        return (lambda z: np.minimum(z, constant)) if smaller else (lambda z: np.maximum(z, constant))
    found = functions.get(node.op)
    return None if found is None else found[left]
