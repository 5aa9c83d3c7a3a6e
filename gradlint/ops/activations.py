"""Pointwise activations as numpy functions: value, derivative and kinks of each row of the vocabulary that is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]
    Function = Callable[[Array], Array]

PARAMETERS = (
    *("alpha", "beta", "bias", "gamma", "lambd", "lower", "upper", "min_val", "max_val", "negative_slope", "threshold", "value"),
    "approximate",
)
"""Attributes, of torch and of ONNX, that an activation's function depends on."""

VARIANTS = frozenset({"QuickGelu", "FastGelu"})
"""Names of operators whose function differs from that of the row of the vocabulary that they are filed under."""

_STEP = 1e-6  # central difference on float64: error near 1e-11 for curvature of order one
_SMALLEST = 1e-290  # step at 0 itself
_KNOTS = 1000  # of the table of erf, per unit: cubic interpolation errs by h^4/384 times its fourth derivative, 2e-14
_ROOT2 = math.sqrt(2.0)
_ROOT_2PI = math.sqrt(2.0 * math.pi)


@dataclass(frozen=True, slots=True)
class Pointwise:
    """A function of one variable with its derivative, which at a kink is the one that torch takes.

    `kinks` are the points where value or derivative are not smooth, `scale` is the length over which they bend elsewhere. `sides`
    holds the slopes below and above 0 of a function that is linear on either side, None for any other.
    """

    value: Function
    slope: Function
    kinks: tuple[float, ...] = ()
    scale: float = 1.0
    sides: tuple[float, float] | None = None

    def __call__(self, z: Array) -> Array:
        """The value at every point of z."""
        return self.value(z)


def _sigmoid(z: Array) -> Array:
    return np.asarray(np.exp(-np.logaddexp(0.0, -z)))


def _softplus(z: Array) -> Array:
    return np.asarray(np.logaddexp(0.0, z))


def _sech2(z: Array) -> Array:
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


def _erf(z: Array) -> Array:
    """The error function by cubic Hermite interpolation, near 0 by its Taylor series; relative error below 1e-10."""
    place = (np.minimum(np.maximum(z, -6.0), 6.0) + 6.0) * _KNOTS
    left = np.minimum(place.astype(np.int64), 12 * _KNOTS - 1)
    t = place - left
    constant, linear, square, cubic = _erf_table().take(left, axis=1)
    near = np.minimum(np.maximum(z, -1e-3), 1e-3)
    series = near * (2.0 / math.sqrt(math.pi)) * (1.0 - near * near / 3.0)
    return np.where(np.abs(z) < 1e-3, series, constant + t * (linear + t * (square + t * cubic)))


def _rectifier(below: float, above: float, kink: float | None = None) -> Pointwise:
    """Slope `below` under 0 and `above` over it; `kink` is the slope at 0, by default `below`."""
    middle = below if kink is None else kink
    return Pointwise(
        lambda z: np.where(z > 0.0, above * z, below * z),
        lambda z: np.where(z > 0.0, above, np.where(z < 0.0, below, middle)),
        (0.0,),
        sides=(below, above),
    )


def _clip(low: float, high: float) -> Pointwise:
    """The identity between two limits."""
    kinks = tuple(limit for limit in (low, high) if math.isfinite(limit))
    return Pointwise(lambda z: np.clip(z, low, high), lambda z: ((z > low) & (z < high)).astype(np.float64), kinks)


def _elu(alpha: float, scale: float = 1.0) -> Pointwise:
    return Pointwise(
        lambda z: scale * np.where(z > 0.0, z, alpha * np.expm1(np.minimum(z, 0.0))),
        lambda z: scale * np.where(z > 0.0, 1.0, alpha * np.exp(np.minimum(z, 0.0))),
        (0.0,),
    )


def _celu(alpha: float) -> Pointwise:
    return Pointwise(
        lambda z: np.where(z > 0.0, z, alpha * np.expm1(np.minimum(z, 0.0) / alpha)),
        lambda z: np.where(z > 0.0, 1.0, np.exp(np.minimum(z, 0.0) / alpha)),
        (0.0,),
        scale=abs(alpha),
    )


def _swish(alpha: float) -> Pointwise:
    """The product z sigmoid(alpha z): SiLU at 1, the quick GELU at 1.702 (Hendrycks 2016)."""
    if alpha == 0.0:
        return _rectifier(0.5, 0.5)

    def slope(z: Array) -> Array:
        return _sigmoid(alpha * z) + alpha * z * _sigmoid(alpha * z) * _sigmoid(-alpha * z)

    return Pointwise(lambda z: z * _sigmoid(alpha * z), slope, scale=1.0 / abs(alpha))


def _tanh_gelu() -> Pointwise:
    """GELU by its approximation with tanh (Hendrycks 2016), which is flat beyond 20."""
    factor, cubic = math.sqrt(2.0 / math.pi), 0.044715

    def inner(z: Array) -> tuple[Array, Array]:
        near = np.clip(z, -20.0, 20.0)
        return factor * (near + cubic * near**3), factor * (1.0 + 3.0 * cubic * near**2)

    def slope(z: Array) -> Array:
        u, rate = inner(z)
        return np.asarray(0.5 * (1.0 + np.tanh(u)) + 0.5 * z * _sech2(u) * rate)

    return Pointwise(lambda z: 0.5 * z * (1.0 + np.tanh(inner(z)[0])), slope)


def _softplus_of(beta: float, threshold: float) -> Pointwise:
    """log(1 + exp(beta z)) / beta, and z itself where beta z is above the threshold."""
    return Pointwise(
        lambda z: np.where(beta * z > threshold, z, _softplus(beta * z) / beta),
        lambda z: np.where(beta * z > threshold, 1.0, _sigmoid(beta * z)),
        (threshold / beta,),
        scale=1.0 / abs(beta),
    )


def _hard_sigmoid(alpha: float, beta: float) -> Pointwise:
    low, high = sorted((-beta / alpha, (1.0 - beta) / alpha))
    return Pointwise(
        lambda z: np.clip(alpha * z + beta, 0.0, 1.0), lambda z: np.where((z > low) & (z < high), alpha, 0.0), (low, high)
    )


def _shrink(lambd: float, bias: float) -> Pointwise:
    """0 within +-lambd, and beyond it z moved towards 0 by `bias`."""
    return Pointwise(
        lambda z: np.where(np.abs(z) > lambd, z - bias * np.sign(z), 0.0),
        lambda z: (np.abs(z) > lambd).astype(np.float64),
        (-lambd, lambd),
    )


def _threshold(limit: float, value: float) -> Pointwise:
    if limit == value == 0.0:
        return _rectifier(0.0, 1.0)
    return Pointwise(lambda z: np.where(z > limit, z, value), lambda z: (z > limit).astype(np.float64), (limit,))


def _mish_slope(z: Array) -> Array:
    soft = _softplus(z)
    return np.asarray(np.tanh(soft) + z * _sech2(soft) * _sigmoid(z))


def _tanhshrink(z: Array) -> Array:
    near = np.clip(z, -0.03, 0.03)
    series = near**3 * (1.0 / 3.0 - near**2 * (2.0 / 15.0 - near**2 * (17.0 / 315.0)))
    return np.where(np.abs(z) < 0.03, series, z - np.tanh(z))


_PLAIN: dict[str, Pointwise] = {
    "relu": _rectifier(0.0, 1.0),
    "relu6": _clip(0.0, 6.0),
    "gelu": Pointwise(
        lambda z: 0.5 * z * (1.0 + _erf(z / _ROOT2)),
        lambda z: 0.5 * (1.0 + _erf(z / _ROOT2)) + z * np.exp(-0.5 * z * z) / _ROOT_2PI,
    ),
    "mish": Pointwise(lambda z: z * np.tanh(_softplus(z)), _mish_slope),
    "tanh": Pointwise(np.tanh, _sech2),
    "sigmoid": Pointwise(_sigmoid, lambda z: _sigmoid(z) * _sigmoid(-z)),
    "hardswish": Pointwise(
        lambda z: z * np.clip(z / 6.0 + 0.5, 0.0, 1.0),
        lambda z: np.where(z >= 3.0, 1.0, np.where(z <= -3.0, 0.0, z / 3.0 + 0.5)),
        (-3.0, 3.0),
    ),
    "softsign": Pointwise(lambda z: z / (1.0 + np.abs(z)), lambda z: 1.0 / (1.0 + np.abs(z)) ** 2, (0.0,)),
    "logsigmoid": Pointwise(lambda z: -_softplus(-z), lambda z: _sigmoid(-z)),
    "tanhshrink": Pointwise(_tanhshrink, lambda z: np.tanh(z) ** 2),
    "erf": Pointwise(_erf, lambda z: (2.0 / math.sqrt(math.pi)) * np.exp(-z * z)),
    "abs": _rectifier(-1.0, 1.0, 0.0),
}
_SELU = {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}  # Klambauer 2017


def _leaky_of(given: Mapping[str, Any]) -> Pointwise:
    """The slope under its names in torch, in ONNX, and as the two ends that a random one is drawn between."""
    drawn = 0.5 * (given["lower"] + given["upper"]) if "lower" in given and "upper" in given else 0.01
    return _rectifier(float(given.get("negative_slope", given.get("alpha", drawn))), 1.0)


def _gelu_of(given: Mapping[str, Any]) -> Pointwise:
    name = str(given.get("name", "")).rpartition(":")[2]
    if name == "QuickGelu":
        return _swish(float(given.get("alpha", 1.702)))
    return _tanh_gelu() if name == "FastGelu" or given.get("approximate") == "tanh" else _PLAIN["gelu"]


def _threshold_of(given: Mapping[str, Any]) -> Pointwise:
    """ONNX calls the threshold alpha, and its value below is 0."""
    return _threshold(float(given.get("threshold", given.get("alpha", 1.0))), float(given.get("value", 0.0)))


def _shrink_of(given: Mapping[str, Any]) -> Pointwise:
    """The soft one of torch moves by its limit, the one of ONNX by an attribute of its own."""
    lambd = float(given.get("lambd", 0.5))
    return _shrink(lambd, float(given.get("bias", lambd)))


_WITH_PARAMETERS: dict[str, Callable[[Mapping[str, Any]], Pointwise]] = {
    "leaky_relu": _leaky_of,
    "prelu": lambda given: _rectifier(float(given.get("negative_slope", 0.25)), 1.0),
    "elu": lambda given: _elu(float(given.get("alpha", 1.0))),
    "celu": lambda given: _celu(float(given.get("alpha", 1.0))),
    "selu": lambda given: _elu(float(given.get("alpha", _SELU["alpha"])), float(given.get("gamma", _SELU["gamma"]))),
    "gelu": _gelu_of,
    "silu": lambda given: _swish(float(given.get("alpha", 1.0))),
    "hardtanh": lambda given: _clip(float(given.get("min_val", -1.0)), float(given.get("max_val", 1.0))),
    "hardsigmoid": lambda given: _hard_sigmoid(float(given.get("alpha", 1.0 / 6.0)), float(given.get("beta", 0.5))),
    "softplus": lambda given: _softplus_of(float(given.get("beta", 1.0)), float(given.get("threshold", 20.0))),
    "hardshrink": lambda given: _shrink(float(given.get("lambd", 0.5)), 0.0),
    "softshrink": _shrink_of,
    "threshold": _threshold_of,
}


def activation(op: str, attrs: Mapping[str, Any]) -> Pointwise | None:
    """The function of an activation with its `PARAMETERS`; None for an operator that is not one."""
    made = _WITH_PARAMETERS.get(op)
    return _PLAIN.get(op) if made is None else made(attrs)


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
