"""Functions of one variable in numpy, of which rows of the vocabulary are made: value, derivative and kinks."""

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
        """The value at every point of z."""
        return self.value(z)

    @property
    def has_floor(self) -> bool:
        """Whether it is constant below its lowest kink, so that no gradient passes there."""
        return bool(self.kinks) and float(self.slope(np.array([min(self.kinks) - 1.0]))[0]) == 0.0


def sigmoid(z: Array) -> Array:
    """1 / (1 + exp(-z)), which is 0 where exp overflows."""
    with np.errstate(over="ignore"):
        return np.asarray(1.0 / (1.0 + np.exp(-z)))


def sigmoids(z: Array) -> tuple[Array, Array]:
    """The sigmoids of z and of -z, by one exponential and without the cancellation of 1 - sigmoid(z)."""
    with np.errstate(over="ignore", divide="ignore"):
        fade = np.exp(-z)
        return np.asarray(1.0 / (1.0 + fade)), np.asarray(1.0 / (1.0 + 1.0 / fade))


def softplus(z: Array) -> Array:
    """log(1 + exp(z)), which does not overflow."""
    return np.asarray(np.logaddexp(0.0, z))


def sech2(z: Array) -> Array:
    """The derivative of tanh, without the cancellation of 1 - tanh^2."""
    fade = np.exp(-2.0 * np.abs(z))
    return np.asarray(4.0 * fade / (1.0 + fade) ** 2)


@cache
def _erf_table() -> Array:
    """Cubics that meet erf and its slope at the knots of a uniform grid over [-6, 6]; beyond, erf is 1 in double precision."""
    knots = np.linspace(-6.0, 6.0, 12 * _KNOTS + 1)
    values = np.array([math.erf(knot) for knot in knots])
    slopes = np.exp(-knots * knots) * (2.0 / math.sqrt(math.pi) / _KNOTS)
    step, left, right = np.diff(values), slopes[:-1], slopes[1:]
    return np.stack([values[:-1], left, 3.0 * step - 2.0 * left - right, left + right - 2.0 * step])


def erf(z: Array) -> Array:
    """The error function by cubic Hermite interpolation, near 0 by its Taylor series; relative error below 1e-10."""
    place = (np.minimum(np.maximum(z, -6.0), 6.0) + 6.0) * _KNOTS
    left = np.minimum(place.astype(np.int64), 12 * _KNOTS - 1)
    t = place - left
    constant, linear, square, cubic = _erf_table().take(left, axis=1)
    near = np.minimum(np.maximum(z, -1e-3), 1e-3)
    series = near * (2.0 / math.sqrt(math.pi)) * (1.0 - near * near / 3.0)
    return np.where(np.abs(z) < 1e-3, series, constant + t * (linear + t * (square + t * cubic)))


def rectifier(below: float, above: float, kink: float | None = None) -> Pointwise:
    """Slope `below` under 0 and `above` over it; `kink` is the slope at 0, by default `below`."""
    middle = below if kink is None else kink
    return Pointwise(
        lambda z: np.where(z > 0.0, above * z, below * z),
        lambda z: np.where(z > 0.0, above, np.where(z < 0.0, below, middle)),
        (0.0,),
        sides=(below, above),
    )


def clipped(low: float, high: float) -> Pointwise:
    """The identity between two limits."""
    kinks = tuple(limit for limit in (low, high) if math.isfinite(limit))
    return Pointwise(lambda z: np.clip(z, low, high), lambda z: ((z > low) & (z < high)).astype(np.float64), kinks)


def derivative(function: Function) -> Function:
    """The derivative of an activation; of any other function that by central differences.

    The differences are right everywhere but within a millionth of a kink other than one at 0. Points nearer to 0 take a smaller
    step, so that none straddles a kink there: signals under rectifiers fade to any size. A function that is not 0 at 0 is smooth
    there, and keeps the step that its rounding needs.
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
    """A function and its derivative at every point of z."""
    if isinstance(function, Pointwise) and function.both is not None:
        return function.both(z)
    return function(z), derivative(function)(z)
