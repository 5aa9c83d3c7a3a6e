"""Functions of one variable in numpy, with value, derivative and kinks. The rows of the vocabulary are made of these."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Function = Callable[[Array], Array]

_STEP = 1e-6  # central difference on float64: error near 1e-11 for curvature of order one
_SMALLEST = 1e-290  # step at 0 itself
_KNOTS = 1000  # of the table of erf, per unit: cubic interpolation errs by h^4/384 times its fourth derivative, 2e-14


@dataclass(frozen=True, slots=True)
class Pointwise:
    """A function of one variable with its derivative, which at a kink is the one that torch takes.

    `kinks` are the points where value or derivative are not smooth, `scale` is the length over which they bend elsewhere. `sides`
    holds the slopes below and above 0 of a function that is linear on either side, None for any other. `both` returns value and
    slope at once, where they have work in common.
    """

    value: Function
    slope: Function
    kinks: tuple[float, ...] = ()
    scale: float = 1.0
    sides: tuple[float, float] | None = None
    both: Callable[[Array], tuple[Array, Array]] | None = None

    def __call__(self, z: Array) -> Array:
        """Return the value at every point of z."""
        return self.value(z)

    @property
    def has_floor(self) -> bool:
        """Whether the function is constant below its lowest kink, so that no gradient passes there."""
        return bool(self.kinks) and float(self.slope(np.array([min(self.kinks) - 1.0]))[0]) == 0.0


def sigmoid(z: Array) -> Array:
    """Return 1 / (1 + exp(-z)). The result is 0 if exp overflows."""
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-z)))


def sigmoids(z: Array) -> tuple[Array, Array]:
    """Return sigmoid(z) and sigmoid(-z). They share one exponential and avoid the cancellation of 1 - sigmoid(z)."""
    with np.errstate(over="ignore", divide="ignore"):
        fade = np.exp(-z)
        return np.asarray(1.0 / (1.0 + fade)), np.asarray(1.0 / (1.0 + 1.0 / fade))


def softplus(z: Array) -> Array:
    """Return log(1 + exp(z)) without overflow."""
    return np.asarray(np.logaddexp(0.0, z))


def sech2(z: Array) -> Array:
    """Return the derivative of tanh without the cancellation of 1 - tanh^2."""
    fade = np.exp(-2.0 * np.abs(z))
    return np.asarray(4.0 * fade / (1.0 + fade) ** 2)


@cache
def _erf_table() -> Array:
    """Return cubic coefficients that interpolate erf and its slope on a uniform grid over [-6, 6], of shape (4, intervals).

    Beyond 6, erf is 1 in float64.
    """
    knots = np.linspace(-6.0, 6.0, 12 * _KNOTS + 1)
    values = np.array([math.erf(knot) for knot in knots])
    slopes = np.exp(-knots * knots) * (2.0 / math.sqrt(math.pi) / _KNOTS)
    step, left, right = np.diff(values), slopes[:-1], slopes[1:]
    return np.stack([values[:-1], left, 3.0 * step - 2.0 * left - right, left + right - 2.0 * step])


def erf(z: Array) -> Array:
    """Return the error function by cubic Hermite interpolation, and by its Taylor series near 0. Relative error below 1e-10."""
    place = (np.minimum(np.maximum(z, -6.0), 6.0) + 6.0) * _KNOTS
    left = np.minimum(place.astype(np.int64), 12 * _KNOTS - 1)
    t = place - left
    constant, linear, square, cubic = _erf_table().take(left, axis=1)
    near = np.minimum(np.maximum(z, -1e-3), 1e-3)
    series = near * (2.0 / math.sqrt(math.pi)) * (1.0 - near * near / 3.0)
    return np.where(np.abs(z) < 1e-3, series, constant + t * (linear + t * (square + t * cubic)))


def rectifier(below: float, above: float, kink: float | None = None) -> Pointwise:
    """Return the function with slope `below` for z < 0 and `above` for z > 0. `kink` is the slope at 0, by default `below`."""
    middle = below if kink is None else kink
    return Pointwise(
        lambda z: np.where(z > 0.0, above * z, below * z),
        lambda z: np.where(z > 0.0, above, np.where(z < 0.0, below, middle)),
        (0.0,),
        sides=(below, above),
    )


def clipped(low: float, high: float) -> Pointwise:
    """Return the function that clips z to [low, high]."""
    kinks = tuple(limit for limit in (low, high) if math.isfinite(limit))
    return Pointwise(lambda z: np.clip(z, low, high), lambda z: ((z > low) & (z < high)).astype(np.float64), kinks)


def derivative(function: Function) -> Function:
    """Return the derivative of a function: exact for a `Pointwise`, otherwise by central differences.

    Differences are inaccurate only within 1e-6 of a kink that is not at 0. If the function is 0 at 0, the step shrinks near 0, so
    that no step crosses a kink there, because signals behind rectifiers become arbitrarily small. Any other function is smooth
    at 0, and a smaller step would only add rounding error.
    """
    if isinstance(function, Pointwise):
        return function.slope
    through_origin = float(function(np.zeros(1))[0]) == 0.0

    def slope(z: Array) -> Array:
        step = _STEP * np.maximum(np.abs(z), 1.0)
        if through_origin:
            step = np.maximum(np.minimum(0.5 * np.abs(z), step), _SMALLEST)
        return (function(z + step) - function(z - step)) / (2.0 * step)

    return slope


def with_slope(function: Function, z: Array) -> tuple[Array, Array]:
    """Return the values and the derivative of a function at every point of z."""
    if isinstance(function, Pointwise) and function.both is not None:
        return function.both(z)
    return function(z), derivative(function)(z)
