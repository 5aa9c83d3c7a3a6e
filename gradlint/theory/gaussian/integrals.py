"""Gaussian integrals of activations: moments, variance map, critical gain and gradient factor of a layer of random weights.

Piecewise linear activations have closed forms, and so has the second moment of erf. All other integrals are computed by
`quadrature`, to nine digits at any size of the signal. The pre-activation is z ~ N(mean, q - mean^2), where q is its second
moment.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from gradlint.ops import Pointwise, activation, operator
from gradlint.theory.gaussian.quadrature import grid, hermite, normal, orthant, product

if TYPE_CHECKING:
    from numpy.typing import NDArray

Key = tuple[tuple[str, float | str], ...]
"""The parameters of an activation in hashable form."""

_LEAST, _MOST = 1e-290, 1e290  # second moments whose square roots and inverses are finite floats
_FAR = 1e6  # standard deviation, relative to the scale of an activation, above which it counts as piecewise linear
_STILL = 1e-13  # relative variance below which a pre-activation counts as constant
_FADED, _RUNAWAY = 1e-12, 1e6  # variances that stand for a fixed point at 0 and at infinity
_SETTLED = 1e-9  # change of log q per layer below which the variance map has converged
_ROOT_2PI = math.sqrt(2.0 * math.pi)


class Moments(NamedTuple):
    """The moments E phi(z), E phi(z)^2 and E phi'(z)^2 of an activation phi."""

    mean: float
    second: float
    slope: float


def parameters(op: str, attrs: Mapping[str, Any]) -> Key:
    """Return the attributes that an activation depends on, as the `key` argument of `chi` and `critical_gain`."""
    given = {name: attrs[name] for name in operator(op).parameters if isinstance(attrs.get(name), (int, float, str))}
    return tuple((name, value if isinstance(value, str) else float(value)) for name, value in given.items())


def moments(op: str, q: float, attrs: Mapping[str, Any], mean: float = 0.0) -> Moments | None:
    """Return the moments of an activation for a Gaussian pre-activation.

    Args:
        op: Canonical name of the activation.
        q: Second moment of the pre-activation.
        attrs: Attributes of the activation.
        mean: Mean of the pre-activation.

    Returns:
        The moments, or None for an unknown activation.
    """
    return _moments(op, q, parameters(op, attrs), mean)


def _moments(op: str, q: float, key: Key, mean: float = 0.0) -> Moments | None:
    sides = _sides(op, key)
    mean, sigma = _normal(q, mean)
    if sides is not None:
        return _rectified(*sides, mean, sigma)
    found = _integrals(op, _rounded(mean), _rounded(sigma), key)
    return found and found[0]


def shared_moment(op: str, q: float, c: float, attrs: Mapping[str, Any], mean: float = 0.0) -> float | None:
    """Return E phi(z_a) phi(z_b), the second moment that an activation of two inputs a and b shares.

    z_a and z_b are Gaussian pre-activations of mean `mean` and second moment q with E z_a z_b = c (Poole et al. 2016, arXiv
    1606.05340). The result is None for an unknown activation.
    """
    return _shared(op, q, c, parameters(op, attrs), mean, slope=False)


def shared_slope(op: str, q: float, c: float, attrs: Mapping[str, Any], mean: float = 0.0) -> float | None:
    """Return E phi'(z_a) phi'(z_b), with the arguments of `shared_moment`.

    It is the factor that the activation applies to the shared second moment of two gradients. Times the squared gain of the
    weights it is the slope of the covariance map (Schoenholz et al. 2017, arXiv 1611.01232).
    """
    return _shared(op, q, c, parameters(op, attrs), mean, slope=True)


def _shared(op: str, q: float, c: float, key: Key, mean: float = 0.0, *, slope: bool) -> float | None:
    found = _moments(op, q, key, mean)
    if found is None:
        return None
    mean, sigma = _normal(q, mean)
    rho = min(max((c - mean * mean) / sigma**2, -1.0), 1.0) if sigma else 1.0
    rho = math.copysign(1.0, rho) if 1.0 - abs(rho) < _STILL else rho
    if rho == 1.0:
        return found.slope if slope else found.second
    sides = _sides(op, key)
    if sides is not None:
        both = _rectified_slopes(*sides, mean / sigma, rho) if slope else _rectified_pair(*sides, mean, sigma, rho)
        return min(both, found.slope if slope else found.second)
    return _product(op, _rounded(mean), _rounded(sigma), key, _rounded(rho), slope=slope)


def slope_kurtosis(op: str, q: float, attrs: Mapping[str, Any], mean: float = 0.0) -> float | None:
    """Return E phi'^4 / (E phi'^2)^2, the relative second moment of squared slopes: 1 for a linear function, 2 for ReLU.

    It measures how much squared gradients vary from unit to unit. The result is None for an unknown activation.
    """
    phi = activation(op, attrs)
    if phi is None:
        return None
    mean, sigma = _normal(q, mean)
    if not sigma:
        return 1.0
    found = grid(phi, np.array([mean]), sigma)
    squares = phi.slope(found.x[0]) ** 2
    second = float(found.weights[0] @ squares)
    return float(found.weights[0] @ squares**2) / second**2 if second > 1e-150 else 1.0


@lru_cache(maxsize=256)
def critical_gain(op: str, key: Key = (), bias: float = 0.0) -> float:
    """Return the weight gain sigma_w at which chi = sigma_w^2 E phi'(z)^2 is 1, so that gradients neither grow nor shrink.

    z has the variance at the fixed point of the layer's own variance map (Schoenholz et al. 2017, arXiv 1611.01232). If that
    variance is 0, as for tanh without biases, the gain is 1 / |phi'(0)|. Otherwise the smallest gain with chi >= 1 is found by
    bisection. The result is 1 for an unknown activation.

    Args:
        op: Canonical name of the activation.
        key: Its parameters, from `parameters`.
        bias: Variance of the biases.
    """
    sides = _sides(op, key)
    if sides is not None and any(sides):
        return math.sqrt(2.0) / math.hypot(*sides)
    slope = None if bias else _slope_at_zero(op, key)
    if slope is not None:
        return 1.0 / slope
    low, high = 0.05, 20.0
    if chi(op, high, key, bias) < 1.0:
        return 1.0
    while high > low * (1.0 + 1e-7):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if chi(op, middle, key, bias) < 1.0 else (low, middle)
    return high


def _slope_at_zero(op: str, key: Key) -> float | None:
    """Return |phi'(0)| if phi is smooth at 0, phi(0) = 0 and E phi^2 <= phi'(0)^2 q at q = 1, so that q* = 0; else None."""
    phi, found = activation(op, dict(key)), _moments(op, 1.0, key)
    if phi is None or found is None:
        return None
    below, middle, above = (float(value) for value in phi.slope(np.array([-1e-9, 0.0, 1e-9])))
    smooth = float(phi(np.zeros(1))[0]) == 0.0 and abs(above - below) < 1e-6
    return abs(middle) if smooth and middle != 0.0 and found.second <= middle**2 else None


@lru_cache(maxsize=4096)
def chi(op: str, gain: float, key: Key = (), bias: float = 0.0) -> float:
    """Return chi = gain^2 E phi'(z)^2, the squared gradient factor of one layer (Schoenholz et al. 2017, arXiv 1611.01232).

    z has the variance of `fixed_point`. Decades of growth per layer are 1/2 log10 chi.

    Args:
        op: Canonical name of the activation; an unknown one counts as linear.
        gain: The weight gain sigma_w, the root of fan_in times the mean square of the weights.
        key: Parameters of the activation, from `parameters`.
        bias: Variance of the biases.
    """
    found = _moments(op, fixed_point(op, gain, key, bias), key)
    return gain * gain * (1.0 if found is None else found.slope)


@lru_cache(maxsize=4096)
def fixed_point(op: str, gain: float, key: Key = (), bias: float = 0.0) -> float:
    """Return the fixed point q* of the variance map q -> gain^2 E phi^2 + bias, starting from unit variance (Poole et al. 2016).

    The result is at least 1e-12, which stands for 0, and at most 1e6, which stands for infinity. The map is iterated in log q,
    with steps lengthened as in Newton's method and bisected if they pass the fixed point. Arguments are those of `chi`.
    """
    log_q, low, high = 0.0, math.log(_FADED), math.log(_RUNAWAY)
    lowest, highest, reach = -math.inf, math.inf, 1.0
    for _ in range(200):
        log_after, elasticity = _variance_map(op, gain, key, bias, math.exp(log_q))
        move = log_after - log_q
        lowest, highest = (log_q, highest) if move > 0.0 else (lowest, log_q)
        if abs(move) < _SETTLED or highest - lowest < _SETTLED or lowest >= high or highest <= low:
            break
        longer = min(abs(move) / max(1.0 - elasticity, 1e-9), reach)
        after = min(max(log_q + math.copysign(max(abs(move), longer), move), low), high)
        log_q = after if lowest < after < highest else 0.5 * (lowest + highest)
        reach *= 1.2
    return math.exp(log_q)


def _variance_map(op: str, gain: float, key: Key, bias: float, q: float) -> tuple[float, float]:
    """Return the natural logarithm of the variance one layer later, and its derivative with respect to log q."""
    square = gain * gain
    found, stretch = _moments(op, q, key), variance_slope(op, q, key)
    second = q if found is None else found.second
    after = square * second + bias
    if after < _FADED * _FADED:
        return math.log(_FADED), 0.0
    return math.log(after), square * stretch * q / after


def variance_slope(op: str, q: float, key: Key = ()) -> float:
    """Return the derivative of E phi^2 with respect to q at mean 0, which is E[z phi phi'] / q.

    Times the squared gain it is the factor by which a layer multiplies a small change of q.
    """
    sides = _sides(op, key)
    if sides is not None:
        return 0.5 * (sides[0] ** 2 + sides[1] ** 2)
    found = _integrals(op, 0.0, _rounded(_normal(q, 0.0)[1]), key)
    return 1.0 if found is None else found[1]


# closed forms and quadrature --------------------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def _sides(op: str, key: Key) -> tuple[float, float] | None:
    phi = activation(op, dict(key))
    return None if phi is None else phi.sides


def _rounded(value: float) -> float:
    """Round to nine digits, so that almost equal layers share cached integrals."""
    return float(f"{value:.9g}")


def _normal(q: float, mean: float) -> tuple[float, float]:
    """Return mean and standard deviation of a Gaussian of second moment q, which is clamped to what floats can square."""
    q = min(max(q, _LEAST), _MOST)
    root = math.sqrt(q)
    mean = min(max(mean, -root), root)
    variance = q - mean * mean
    return mean, math.sqrt(variance) if variance > _STILL * q else 0.0


@lru_cache(maxsize=8192)
def _integrals(op: str, mean: float, sigma: float, key: Key) -> tuple[Moments, float] | None:
    """Return the moments and E[(z - mean) phi phi'] / variance, by quadrature."""
    phi = activation(op, dict(key))
    if phi is None:
        return None
    if not sigma:
        value, slope = (float(part(np.array([mean]))[0]) for part in (phi.value, phi.slope))
        return Moments(value, value * value, slope * slope), slope * slope
    found = grid(phi, np.array([mean]), sigma)
    z, weights, x = (part[0] for part in found)
    values, slopes = phi(x), phi.slope(x)
    second = float(weights @ values**2)
    if op == "erf" and mean == 0.0:
        second = 2.0 / math.pi * math.asin(2.0 * sigma**2 / (1.0 + 2.0 * sigma**2))  # Williams 1997
    moved = Moments(float(weights @ values), second, float(weights @ slopes**2))
    return moved, float(weights @ (z * values * slopes)) / sigma


def _rectified(below: float, above: float, mean: float, sigma: float) -> Moments:
    """Return the moments of the piecewise linear function with slope `below` for z < 0 and `above` for z > 0."""
    square = mean * mean
    if not sigma:
        side = above if mean > 0.0 else below
        return Moments(side * mean, side * side * square, side * side)
    h = mean / sigma
    up, density = normal(h), math.exp(-0.5 * h * h) / _ROOT_2PI
    down, edge = normal(-h), sigma * density
    first = above * (mean * up + edge) + below * (mean * down - edge)
    upper = max((square + sigma**2) * up + mean * edge, 0.0)
    lower = max((square + sigma**2) * down - mean * edge, 0.0)
    return Moments(first, above**2 * upper + below**2 * lower, above**2 * up + below**2 * down)


def _rectified_slopes(below: float, above: float, h: float, rho: float) -> float:
    """Return E phi'(z_a) phi'(z_b) of the same function, at a mean of h standard deviations."""
    jump = above - below
    return below * below + 2.0 * below * jump * normal(h) + jump * jump * orthant(h, rho)


def _rectified_pair(below: float, above: float, mean: float, sigma: float, rho: float) -> float:
    """Return E phi(z_a) phi(z_b) for phi(z) = below * z + (above - below) * ReLU(z), by truncated moments (Rosenbaum 1961)."""
    jump, h = above - below, mean / sigma
    up, edge = normal(h), math.exp(-0.5 * h * h) / _ROOT_2PI
    inner = normal(h * math.sqrt((1.0 - rho) / (1.0 + rho))) if rho > -1.0 else normal(math.copysign(math.inf, h))
    corner = math.sqrt(1.0 - rho * rho) * math.exp(-h * h / (1.0 + rho)) / (2.0 * math.pi) if rho > -1.0 else 0.0
    both = (h * h + rho) * orthant(h, rho) + 2.0 * h * edge * inner + corner
    cross = (1.0 - rho) * h * (h * up + edge) + rho * ((h * h + 1.0) * up + h * edge)
    return sigma**2 * (below * below * (h * h + rho) + 2.0 * below * jump * cross + jump * jump * max(both, 0.0))


@lru_cache(maxsize=4096)
def _expansion(op: str, mean: float, sigma: float, key: Key, *, slope: bool) -> tuple[Pointwise, NDArray[np.float64], float]:
    """Return the activation or its derivative, the squares of its Hermite coefficients, and its second moment."""
    phi, found = activation(op, dict(key)), _integrals(op, mean, sigma, key)
    assert phi is not None
    assert found is not None
    function = Pointwise(phi.slope, phi.slope, phi.kinks, phi.scale) if slope else phi
    return function, hermite(function, mean, sigma), found[0].slope if slope else found[0].second


@lru_cache(maxsize=8192)
def _product(op: str, mean: float, sigma: float, key: Key, rho: float, *, slope: bool) -> float:
    function, squares, second = _expansion(op, mean, sigma, key, slope=slope)
    far = function.scale * _FAR
    if sigma <= far:
        return product(function, mean, sigma, rho, squares=squares, second=second)
    least = _expansion(op, mean * far / sigma, far, key, slope=slope)[2]
    return second * (_product(op, mean * far / sigma, far, key, rho, slope=slope) / least) if least > 0.0 else 0.0
