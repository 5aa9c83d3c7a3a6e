"""Pointwise functions of a Gaussian tensor: their moments, slopes, and what two correlated elements have in common.

A distribution holds the values of a tensor on a grid over the standard normal variable that its base follows. Any chain or
join of pointwise operators over one base is exact on that grid, whatever names it goes by: x sigmoid(x) is SiLU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from gradlint.ops import derivative
from gradlint.theory.gaussian.dispersion import UNCORRELATED, ChanceCorrelation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from gradlint.ops.pointwise import Function

    Array = NDArray[np.float64]

_POINTS = 512  # an even number of midpoints: none falls on a kink at the mean, where the rule is then exact by symmetry
_WIDTH = 8.0  # standard deviations; the tail beyond weighs 1e-15
_FINE = 0.01  # z = _FINE sinh(u): spacing 3e-4 around the mean, where saturated units have all their slope, 0.03 at z = 1
_ORDERS = 40  # Hermite coefficients; what is left of the second moment counts as order 40
_HIGHEST = 3.0  # decades of a base beyond which functions are extrapolated by their degree: the grid resolves 1/sd = 1e-3
_LOWEST = -100.0
_NEAR = 0.01  # of a whole or half degree: what 1/z does between 10^2 and 10^3 standard deviations, and a little more
_MANY = 256  # dimensions from which on a coordinate on a sphere is normal
_SIMPLEX = 1e-6  # relative deviation from the correlation of two values on one sphere
_TINY = 1e-130  # values whose squares are floats lie above it, and below its inverse


@cache
def _grid() -> tuple[Array, Array]:
    """Points of the standard normal variable and their weights, which sum to 1."""
    edge = math.asinh(_WIDTH / _FINE)
    u = np.linspace(-edge, edge, 2 * _POINTS + 1)[1::2]
    z = _FINE * np.sinh(u)
    weights = np.exp(-0.5 * z * z) * np.cosh(u)
    return z, weights / weights.sum()


@cache
def _hermite() -> Array:
    """Orthonormal Hermite polynomials times the weights of the grid: this matrix times a function is its coefficients."""
    z, weights = _grid()
    rows = [np.ones_like(z), z]
    for order in range(1, _ORDERS):
        rows.append((z * rows[-1] - math.sqrt(order) * rows[-2]) / math.sqrt(order + 1))
    return np.stack(rows) * weights


@lru_cache(maxsize=4096)
def _powers(correlation: float) -> Array:
    return np.power(min(max(correlation, -1.0), 1.0), np.arange(_ORDERS + 1))


@lru_cache(maxsize=4096)
def _kept(correlation: tuple[tuple[float, int], ...]) -> Array:
    """Means of rho^k over pairs of elements, from the correlation along each axis and its length: most alike axes first."""
    found = np.ones(_ORDERS + 1)
    for rho, size in sorted(correlation, key=lambda item: -item[0]):
        found = found / size + (1.0 - 1.0 / size) * _powers(rho)
    return np.maximum(found, 0.0)


def expect(values: Array) -> float:
    """E f(z) for values on the grid."""
    return float(_grid()[1] @ values)


def products(functions: Sequence[Array]) -> Array:
    """E f(z) g(z) for every two of these functions."""
    values = np.array(functions)
    return np.asarray((values * _grid()[1]) @ values.T)


def spectrum(values: Array) -> Array | None:
    """Shares of E f(z)^2 by Hermite order, the last one of all that is left; None where E f^2 is zero or no number."""
    second = expect(values * values)
    if not 0.0 < second < math.inf:
        return None
    shares: Array = (_hermite() @ values) ** 2 / second
    shares[-1] = max(1.0 - float(shares[:-1].sum()), 0.0)
    return shares


def _in_common(shares: Array | None, correlations: Sequence[float]) -> tuple[float, ...]:
    """E f(z_a) f(z_b) / E f(z)^2 for pairs of the given correlations: the sum of a_k^2 rho^k (the dual, Daniely 2016)."""
    if shares is None:
        return tuple(1.0 for _ in correlations)
    return tuple(float(shares @ _powers(rho)) if rho != 1.0 else 1.0 for rho in correlations)


@lru_cache(maxsize=64)
def _harmonics(dimensions: int) -> tuple[Array, Array]:
    """Orthonormal polynomials of one coordinate on a sphere, times the weights of the grid, and their values at -1/dimensions.

    These are the Gegenbauer polynomials P_k with P_k(1) = 1, times the root of the number of harmonics of degree k.
    """
    n, t, apart = float(dimensions), _coordinate(dimensions) / math.sqrt(dimensions), -1.0 / dimensions
    rows, seen, counts = [np.ones_like(t), t], [1.0, apart], [1.0, n]
    for k in range(1, _ORDERS):
        rows.append(((2.0 * k + n - 2.0) * t * rows[-1] - k * rows[-2]) / (k + n - 2.0))
        seen.append(((2.0 * k + n - 2.0) * apart * seen[-1] - k * seen[-2]) / (k + n - 2.0))
        counts.append(counts[-1] * (2.0 * k + n) / (2.0 * k + n - 2.0) * (k + n - 2.0) / (k + 1.0))
    return np.stack(rows) * np.sqrt(counts)[:, None] * _grid()[1], np.array(seen)


def _on_sphere(values: Array, dimensions: int) -> float:
    """E f(a) f(b) / E f^2 for two coordinates of one point on a sphere whose axes lie -1/dimensions apart (Funk, Hecke).

    The coordinates of a point that has been centred and scaled over dimensions + 1 values are such: they sum to zero, and their
    squares to a constant, so that not only the first harmonic but the second too has the correlation -1/dimensions.
    """
    second = expect(values * values)
    if second <= 0.0 or not math.isfinite(second):
        return 1.0
    rows, seen = _harmonics(dimensions)
    squares = (rows @ values) ** 2 / second
    squares[-1] = max(1.0 - float(squares[:-1].sum()), 0.0)
    return float(squares @ seen)


@dataclass(frozen=True)
class Distribution:
    """A tensor as a function of a Gaussian one: `values` on the grid, in units of 10^shift.

    `base` names the Gaussian tensor, `alike` is the correlation of two of its elements that differ along each axis. Of a tensor
    that lies on spheres, `sphere` is their dimension: two elements of one point have the correlation -1/sphere. `chance` is what
    two of its elements have in common by chance (dispersion.Chance), in units of what samples do not
    share, `near` the correlation of neighbours in what positions do not share. `settled` is the share of the base whose sum
    of squares a norm has just set.
    """

    base: str
    values: Array
    correlation: tuple[float, ...]
    shift: float = 0.0
    sphere: int = 0
    chance: ChanceCorrelation = UNCORRELATED
    neighbor_correlation: float = 0.0
    settled: float = 0.0

    @cached_property
    def second(self) -> float:
        """E h^2 in units of 10^(2 shift)."""
        return expect(self.values * self.values)

    @cached_property
    def _spectrum(self) -> Array | None:
        return spectrum(self.values)

    @property
    def level(self) -> float:
        """1/2 log10 E h^2; -inf for a tensor of zeros."""
        return 0.5 * math.log10(self.second) + self.shift if self.second > 0.0 else -math.inf

    @property
    def mean(self) -> float:
        """E h / sqrt(E h^2)."""
        return expect(self.values) / math.sqrt(self.second) if self.second > 0.0 else 0.0

    @property
    def shared(self) -> tuple[float, ...]:
        """Per axis, the share of E h^2 that two elements have in common which differ along it."""
        return self._together(self.values, self._spectrum)

    def in_common(self, values: Array) -> tuple[float, ...]:
        """E f(a) f(b) / E f(a)^2 per axis, for a function of the base that has these values on the grid."""
        return self._together(values, spectrum(values))

    def _together(self, values: Array, shares: Array | None) -> tuple[float, ...]:
        found = _in_common(shares, self.correlation)
        if not self.sphere:
            return found
        together = _on_sphere(values, self.sphere)
        return tuple(
            together if abs(rho * self.sphere + 1.0) < _SIMPLEX else share
            for rho, share in zip(self.correlation, found, strict=True)
        )

    @property
    def chance_left(self) -> ChanceCorrelation:
        """What is left of `chance`: what samples do not share goes by the slope of E f(a) f(b) in their correlation.

        What the function makes anew is even over directions, but for what all samples share of it: the second order has the mean
        square of what they have in common by chance.
        """
        squares = self._spectrum
        if self.chance.square <= 0.0 or squares is None:
            return UNCORRELATED
        powers, orders = _powers(self.correlation[0]), np.arange(1, _ORDERS + 1)
        left = 1.0 - float(squares @ powers) - float(squares[2]) * self.chance.square
        slope = float((orders * squares[1:]) @ powers[:-1]) * (1.0 - self.correlation[0])
        return self.chance.scaled(min(slope / left, 1.0)) if left > 1e-9 else self.chance

    def kept(self, sizes: Sequence[int], axes: Iterable[int]) -> Array:
        """What each Hermite order keeps of its share in a mean over axes (signal.averaged)."""
        return _kept(tuple((self.correlation[axis], sizes[axis]) for axis in axes))

    @property
    def neighbor_correlation_left(self) -> float:
        """The correlation of neighbours behind the function."""
        if self.neighbor_correlation == 0.0:
            return 0.0
        far = min(max(self.correlation[-1], -1.0), 1.0)
        close, apart = _in_common(self._spectrum, (far + (1.0 - far) * self.neighbor_correlation, far))
        return max(close - apart, 0.0) / (1.0 - apart) if apart < 1.0 - 1e-9 else 0.0

    @property
    def finite(self) -> bool:
        """Whether the function is defined wherever its base may be."""
        return bool(np.isfinite(self.values).all())


def gaussian(
    base: str,
    level: float,
    mean: float,
    shared: Sequence[float],
    *,
    chance: ChanceCorrelation = UNCORRELATED,
    neighbor_correlation: float = 0.0,
    settled: float = 0.0,
) -> Distribution:
    """The distribution of a Gaussian tensor: rms 10^level, mean in units of the rms, shares per axis; the rest as the class."""
    mean = min(max(mean, -1.0), 1.0)
    rescaled = min(max(level, _LOWEST), _HIGHEST) if math.isfinite(level) else _LOWEST
    private = max(1.0 - mean * mean, 0.0)
    values = (mean + math.sqrt(private) * _grid()[0]) * 10.0**rescaled
    correlation = tuple(min(max((share - mean * mean) / private, -1.0), 1.0) if private > 1e-12 else 1.0 for share in shared)
    shift = level - rescaled if math.isfinite(level) else 0.0
    return Distribution(
        base, values, correlation, shift, chance=chance, neighbor_correlation=neighbor_correlation, settled=settled
    )


@lru_cache(maxsize=256)
def _coordinate(dimensions: int) -> Array:
    """One coordinate of a random point on a sphere of unit mean square, as a function of a normal variable.

    Its density is (1 - u^2 / k)^((k-3)/2) in k dimensions; values that a norm has just set lie on such a sphere.
    """
    edge = math.sqrt(dimensions)
    u = np.linspace(-edge, edge, 4 * _POINTS + 1)[1::2]
    density = (1.0 - (u / edge) ** 2) ** (0.5 * (dimensions - 3.0))
    below = np.cumsum(density) - 0.5 * density
    _, weights = _grid()
    values = np.interp(np.cumsum(weights) - 0.5 * weights, below / density.sum(), u)
    return np.asarray(values / math.sqrt(expect(values * values)))


def spherical(base: str, level: float, shared: Sequence[float], dimensions: float) -> Distribution:
    """The distribution of a tensor whose squares a norm over few values has set: mean 0, tails lighter than the normal's."""
    distribution = gaussian(base, level, 0.0, shared)
    whole = round(dimensions)
    if not 3 <= whole < _MANY:
        return distribution
    return replace(distribution, values=_coordinate(whole) * 10.0 ** (level - distribution.shift), sphere=whole)


def positive(distribution: Distribution) -> Distribution:
    """The log-normal distribution of the same two moments: of a mean of squares, which no Gaussian tail takes below zero."""
    mean, second = expect(distribution.values), expect(distribution.values * distribution.values)
    spread = math.sqrt(math.log(max(second / (mean * mean), 1.0)))
    return replace(distribution, values=mean * np.exp(spread * _grid()[0] - 0.5 * spread * spread))


@dataclass(frozen=True, slots=True)
class Mapped:
    """A distribution behind a function: `slope` is the derivative on the grid, `fade` what to add to log10 of its square."""

    distribution: Distribution
    slope: Array
    log_factor: float = 0.0


def apply(function: Function, distribution: Distribution) -> Mapped:
    """A pointwise function of a distribution.

    Outside the range that the grid resolves, value and slope follow the power of the signal that they have at its edge: 1 and 0
    for a rectifier, 0 and -1/2 for a bounded function.
    """
    with np.errstate(all="ignore"):
        values = np.asarray(function(distribution.values), dtype=np.float64)
        slope = np.asarray(derivative(function)(distribution.values), dtype=np.float64)
        if distribution.shift == 0.0:
            return Mapped(rescaled(replace(distribution, values=values)), *_rescaled_slope(slope, 0.0))
        inside = distribution.values * (0.1 if distribution.shift > 0.0 else 10.0)
        step = -1.0 if distribution.shift > 0.0 else 1.0
        degree = _limit((_half(function(inside)) - _half(values)) / step)
        bend = _limit(2.0 * (_half(derivative(function)(inside)) - _half(slope)) / step)
    if not (math.isfinite(degree) and math.isfinite(bend)):
        degree, bend = 1.0, 0.0
    return Mapped(
        rescaled(replace(distribution, values=values, shift=degree * distribution.shift)),
        *_rescaled_slope(slope, bend * distribution.shift),
    )


def _limit(degree: float) -> float:
    """The degree of a function far out, from that at the edge of the grid: corrections of order 1/z still show in it there."""
    near = round(2.0 * degree) / 2.0 if math.isfinite(degree) else degree
    return near if abs(degree - near) < _NEAR else degree


def _rescaled_slope(slope: Array, fade: float) -> tuple[Array, float]:
    largest = float(np.abs(slope).max())
    if not math.isfinite(largest) or largest < 1.0 / _TINY:
        return slope, fade
    return slope / largest, fade + 2.0 * math.log10(largest)


def rescaled(distribution: Distribution) -> Distribution:
    """The same distribution in units in which the squares of its values stay in the range of floats."""
    largest = float(np.abs(distribution.values).max())
    if not math.isfinite(largest) or _TINY < largest < 1.0 / _TINY or largest == 0.0:
        return distribution
    moved = math.log10(largest) - (_HIGHEST if largest > 1.0 else _LOWEST)
    whole = 0.5 * moved  # in two factors: one alone may not be a float
    return replace(distribution, values=distribution.values * 10.0**-whole * 10.0**-whole, shift=distribution.shift + moved)


def _half(values: Array) -> float:
    second = expect(values * values)
    return 0.5 * math.log10(second) if 0.0 < second < math.inf else math.nan


def largest_of(distribution: Distribution, draws: float, correlation: float) -> tuple[Distribution, Array]:
    """The largest of `draws` elements with correlation `alike`, and the density of the winners' slopes.

    The second result is sqrt(w'/w): an element drawn from it is the winner among its competitors. Holds for functions that do
    not decrease; competitors of correlation rho count as draws^(1 - rho) independent ones.
    """
    _, weights = _grid()
    count = max(draws, 1.0) ** (1.0 - min(max(correlation, 0.0), 1.0))
    below = np.cumsum(weights)
    won = np.diff(np.concatenate([[0.0], np.minimum(below, 1.0) ** count]))
    density = np.sqrt(np.maximum(won, 0.0) / weights)
    mean, second = float(won @ distribution.values), float(won @ (distribution.values * distribution.values))
    spread = math.sqrt(max(second - mean * mean, 0.0))
    z, _ = _grid()
    return replace(distribution, base=f"{distribution.base}|max", values=mean + spread * z, sphere=0), density
