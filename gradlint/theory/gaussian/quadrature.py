"""Integrals over Gaussian variables, exact to about ten digits, by Gauss-Legendre panels that end at every kink.

The width of a panel is at most the length over which the Gaussian varies and at most the length over which the function bends.
The result is therefore accurate at kinks, where Gauss-Hermite quadrature is not, and at variances from 1e-280 to 1e280.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from gradlint.ops import Pointwise

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[np.float64]

_ORDER = 12  # points per panel
_WIDTH = 10.0  # standard deviations; the tail beyond has probability 1e-23
_DEVIATIONS = np.linspace(-_WIDTH, _WIDTH, 17)
_BENDS = 2.0 ** np.array([0, 1, 2, *range(3, 62, 2)])  # panel ends; beyond 2^61 times its scale a function is a power of z
_TERMS = 64  # terms of the Hermite expansion
_NEGLIGIBLE = 1e-8  # share of the second moment that a truncated expansion may miss


@cache
def _legendre() -> tuple[Array, Array]:
    """Return the Gauss-Legendre points and weights on [-1, 1]."""
    return np.polynomial.legendre.leggauss(_ORDER)


class Grid(NamedTuple):
    """Points z of a standard Gaussian, their weights, and the points x = mean + sigma z, each of shape (means, points)."""

    z: Array
    weights: Array
    x: Array


def grid(phi: Pointwise, mean: Array, sigma: float, blur: float = 0.0) -> Grid:
    """Return the points and weights that integrate `phi`, its derivative and their products over N(mean, sigma^2).

    Args:
        phi: The function, whose kinks become ends of panels.
        mean: Means, of shape (rows,).
        sigma: Standard deviation, greater than 0.
        blur: Length over which the integrand smooths the kinks, 0 for none.

    Returns:
        A grid of shape (rows, points).
    """
    center = mean[:, None]
    bends = phi.scale * _BENDS
    bends = bends[bends < np.abs(mean).max() + _WIDTH * sigma]
    spread = blur * np.array([-8.0, -4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 8.0]) if blur else np.zeros(1)
    kinks = np.add.outer(np.array(phi.kinks), spread).ravel()
    features = (np.concatenate([-bends, [0.0], bends, kinks]) - center) / sigma
    ends = np.concatenate([np.clip(features, -_WIDTH, _WIDTH), np.broadcast_to(_DEVIATIONS, (mean.size, 17))], axis=1)
    ends.sort(axis=1)
    points, shares = _legendre()
    half = 0.5 * np.diff(ends, axis=1)[..., None]
    z = (ends[:, :-1, None] + half * (1.0 + points)).reshape(mean.size, -1)
    weights = (half * shares).reshape(mean.size, -1) * np.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    return Grid(z, weights, center + sigma * z)


def smoothed(phi: Pointwise, mean: Array, sigma: float) -> Array:
    """Return E phi(z) for z ~ N(mean, sigma^2), for each of several means."""
    found = grid(phi, mean, sigma)
    return np.asarray((phi(found.x) * found.weights).sum(axis=1))


def hermite(phi: Pointwise, mean: float, sigma: float) -> Array:
    """Return the squares of the first 64 coefficients of phi(mean + sigma z) in orthonormal Hermite polynomials.

    Their sum converges to E phi^2. Weighted by rho^k, it converges to E phi(z_a) phi(z_b) at correlation rho (Mehler's formula).
    """
    found = grid(phi, np.array([mean]), sigma)
    z, weighted = found.z[0], (phi(found.x) * found.weights)[0]
    before, now = np.zeros_like(z), np.ones_like(z)
    squares = np.empty(_TERMS)
    for k in range(_TERMS):
        squares[k] = (now @ weighted) ** 2
        before, now = now, (z * now - math.sqrt(k) * before) / math.sqrt(k + 1)
    return squares


def product(phi: Pointwise, mean: float, sigma: float, rho: float, *, squares: Array, second: float) -> float:
    """Return E phi(z_a) phi(z_b) for two Gaussians of equal mean and standard deviation at correlation `rho`.

    Mehler's formula is used if its truncated expansion suffices. Otherwise, as near rho = 1 for a function with a kink, z is
    split into a shared part s and a private part t, and the result is E_s[(E_t phi(s + t))^2].

    Args:
        phi: The function.
        mean: Mean of both Gaussians.
        sigma: Standard deviation of both Gaussians.
        rho: Correlation, from -1 to 1.
        squares: Squared Hermite coefficients of `phi`; see `hermite`.
        second: E phi^2.
    """
    tail = max(second - float(squares.sum()), 0.0) * rho**_TERMS
    if abs(tail) <= _NEGLIGIBLE * second:
        return float(np.polynomial.polynomial.polyval(rho, squares)) + tail
    shared, private = sigma * math.sqrt(abs(rho)), sigma * math.sqrt(1.0 - abs(rho))
    if private <= 1e-8 * sigma:
        shared, private = sigma, 0.0
    found = grid(phi, np.array([mean]), shared, private)
    part = found.x[0]
    here = smoothed(phi, part, private) if private else phi(part)
    there = here if rho > 0.0 else smoothed(phi, 2.0 * mean - part, private) if private else phi(2.0 * mean - part)
    return float(found.weights[0] @ (here * there))


def orthant(h: float, rho: float) -> float:
    """Return P(x > -h, y > -h) for standard Gaussians x, y at correlation `rho`, by Owen's T function (Owen 1956)."""
    if rho <= -1.0:
        return max(math.erf(h / math.sqrt(2.0)), 0.0)
    angle = math.atan(math.sqrt((1.0 - rho) / (1.0 + rho)))
    points, shares = _owen()
    theta = 0.5 * angle * (1.0 + points)
    exponent = np.minimum(0.5 * h * h / np.cos(theta) ** 2, 700.0)
    owen = 0.5 * angle * float(shares @ np.exp(-exponent)) / (2.0 * math.pi)
    return max(normal(h) - 2.0 * owen, 0.0)


@cache
def _owen() -> tuple[Array, Array]:
    return np.polynomial.legendre.leggauss(32)


def normal(h: float) -> float:
    """Return P(x < h) for a standard Gaussian x."""
    return 0.5 * math.erfc(-h / math.sqrt(2.0))
