"""Pointwise activations as numpy functions: value and derivative of each row of the vocabulary that is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Function = Callable[[Array], Array]

_STEP = 1e-6  # central difference on float64: error near 1e-11 for curvature of order one
_SMALLEST = 1e-290  # step at 0 itself
_KNOTS = 1000  # of the table of erf, per unit: cubic interpolation errs by h^4/384 times its fourth derivative, 2e-14


def _sigmoid(z: Array) -> Array:
    return 0.5 * (1.0 + np.tanh(0.5 * z))


def _softplus(z: Array) -> Array:
    return np.logaddexp(0.0, z)


@cache
def _erf_table() -> tuple[Array, Array]:
    """erf, and its slope per knot, on a uniform grid over [-6, 6]; beyond it erf is 1 in double precision."""
    knots = np.linspace(-6.0, 6.0, 12 * _KNOTS + 1)
    values = np.array([math.erf(knot) for knot in knots])
    return values, np.exp(-knots * knots) * (2.0 / math.sqrt(math.pi) / _KNOTS)


def _erf(z: Array) -> Array:
    """The error function by cubic Hermite interpolation, near 0 by its Taylor series; relative error below 1e-10."""
    values, slopes = _erf_table()
    place = (np.clip(z, -6.0, 6.0) + 6.0) * _KNOTS
    left = np.minimum(place.astype(np.int64), values.size - 2)
    t, step = place - left, values[left + 1] - values[left]
    bend = (slopes[left] - step) * (1.0 - t) + (step - slopes[left + 1]) * t
    near = z * (2.0 / math.sqrt(math.pi)) * (1.0 - z * z / 3.0)
    return np.where(np.abs(z) < 1e-3, near, values[left] + t * step + t * (1.0 - t) * bend)


def _gelu(z: Array) -> Array:
    return np.asarray(0.5 * z * (1.0 + _erf(z / math.sqrt(2.0))))


def _elu(alpha: float, scale: float = 1.0) -> Function:
    return lambda z: scale * np.where(z > 0, z, alpha * np.expm1(np.minimum(z, 0.0)))


def _leaky(slope: float) -> Function:
    return lambda z: np.where(z > 0, z, slope * z)


_PLAIN: dict[str, Function] = {
    "relu": lambda z: np.maximum(z, 0.0),
    "relu6": lambda z: np.clip(z, 0.0, 6.0),
    "selu": _elu(1.6732632423543772, 1.0507009873554805),  # Klambauer 2017
    "gelu": _gelu,
    "silu": lambda z: z * _sigmoid(z),
    "mish": lambda z: z * np.tanh(_softplus(z)),
    "tanh": np.tanh,
    "hardtanh": lambda z: np.clip(z, -1.0, 1.0),
    "sigmoid": _sigmoid,
    "hardsigmoid": lambda z: np.clip(z / 6.0 + 0.5, 0.0, 1.0),
    "hardswish": lambda z: z * np.clip(z / 6.0 + 0.5, 0.0, 1.0),
    "softplus": _softplus,
    "softsign": lambda z: z / (1.0 + np.abs(z)),
    "logsigmoid": lambda z: -_softplus(-z),
    "tanhshrink": lambda z: z - np.tanh(z),
    "erf": _erf,
    "abs": np.abs,
}


def activation(op: str, attrs: Mapping[str, Any]) -> Function | None:
    """The function of an activation with its parameters (`negative_slope`, `alpha`); None for an operator that is not one."""
    if op == "leaky_relu":
        return _leaky(float(attrs.get("negative_slope", attrs.get("alpha", 0.01))))
    if op == "prelu":
        return _leaky(float(attrs.get("negative_slope", 0.25)))
    if op in {"elu", "celu"}:
        return _elu(float(attrs.get("alpha", 1.0)))
    return _PLAIN.get(op)


def derivative(function: Function) -> Function:
    """Derivative by central differences, right everywhere but within a millionth of a kink other than one at 0.

    Points nearer to 0 take a smaller step, so that none straddles a kink there: signals under rectifiers fade to any size. A
    function that is not 0 at 0 is smooth there, and keeps the step that its rounding needs.
    """
    through_origin = float(function(np.zeros(1))[0]) == 0.0

    def slope(z: Array) -> Array:
        step = _STEP * np.maximum(np.abs(z), 1.0)
        if through_origin:
            step = np.maximum(np.minimum(0.5 * np.abs(z), step), _SMALLEST)
        return (function(z + step) - function(z - step)) / (2.0 * step)

    return slope
