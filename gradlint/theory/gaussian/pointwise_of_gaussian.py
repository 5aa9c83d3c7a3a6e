"""Pointwise functions of a Gaussian tensor: their moments, their slopes, and the correlation of two elements.

A `Distribution` holds the values of a tensor as a function of a standard normal variable, on a grid. The underlying Gaussian
tensor is called its base. Every composition of pointwise operators over one base is exact on the grid, so that x * sigmoid(x)
gives the same result as SiLU.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cache, cached_property, lru_cache
from typing import TYPE_CHECKING

import numpy as np

from gradlint.ops import with_slope
from gradlint.theory.gaussian.dispersion import UNCORRELATED, ChanceCorrelation

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from numpy.typing import NDArray

    from gradlint.ops.pointwise import Function

    Array = NDArray[np.float64]

_POINTS = 512  # an even number of midpoints: none lies on a kink at the mean, where the rule is then exact by symmetry
_WIDTH = 8.0  # standard deviations; the tail beyond has probability 1e-15
_FINE = 0.01  # z = _FINE sinh(u): the spacing is 3e-4 at the mean, where saturated units have all their slope, and 0.03 at 1
_ORDERS = 40  # Hermite coefficients; the rest of the second moment counts as order 40
_HIGHEST = 3.0  # decades: for a larger base functions are extrapolated by their degree, because the grid resolves 1/sd = 1e-3
_LOWEST = -100.0
_NEAR = 0.01  # distance to an integer or half-integer degree that corrections of order 1/z cause at 10^3 standard deviations
_MANY = 256  # number of dimensions from which a coordinate on a sphere counts as normal
_SIMPLEX = 1e-6  # relative deviation from the correlation of two values on one sphere
_TINY = 1e-130  # the squares of values between this and its inverse are floats


@cache
def _grid() -> tuple[Array, Array]:
    """Return the grid points of the standard normal variable and their weights, which sum to 1; both of shape (512,)."""
    edge = math.asinh(_WIDTH / _FINE)
    u = np.linspace(-edge, edge, 2 * _POINTS + 1)[1::2]
    z = _FINE * np.sinh(u)
    weights = np.exp(-0.5 * z * z) * np.cosh(u)
    return z, weights / weights.sum()


@cache
def _hermite() -> Array:
    """Return orthonormal Hermite polynomials times the grid weights: this matrix maps a function to its coefficients."""
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
    """Return the mean of rho^k over pairs of elements for each order k, from the correlation along each axis and its length."""
    found = np.ones(_ORDERS + 1)
    for rho, size in sorted(correlation, key=lambda item: -item[0]):
        found = found / size + (1.0 - 1.0 / size) * _powers(rho)
    return np.maximum(found, 0.0)


def expect(values: Array) -> float:
    """Return E f(z) for the values of f on the grid."""
    return float(_grid()[1] @ values)


def products(functions: Sequence[Array]) -> Array:
    """Return the matrix of E f(z) g(z) for every two of these functions on the grid."""
    values = np.array(functions)
    return np.asarray((values * _grid()[1]) @ values.T)


def spectrum(values: Array) -> Array | None:
    """Return the shares of E f(z)^2 by Hermite order, the last one for all higher orders; None if E f^2 is 0 or not finite."""
    second = expect(values * values)
    if not 0.0 < second < math.inf:
        return None
    shares: Array = (_hermite() @ values) ** 2 / second
    shares[-1] = max(1.0 - float(shares[:-1].sum()), 0.0)
    return shares


def _in_common(shares: Array | None, correlations: Sequence[float]) -> tuple[float, ...]:
    """Return E f(z_a) f(z_b) / E f(z)^2 for pairs of the given correlations.

    It is the sum of a_k^2 rho^k over Hermite coefficients a_k, the dual activation of Daniely et al. 2016, arXiv 1602.05897.
    """
    if shares is None:
        return tuple(1.0 for _ in correlations)
    return tuple(float(shares @ _powers(rho)) if rho != 1.0 else 1.0 for rho in correlations)


@lru_cache(maxsize=64)
def _harmonics(dimensions: int) -> tuple[Array, Array]:
    """Return orthonormal polynomials of one coordinate on a sphere times the grid weights, and P_k(-1 / dimensions).

    P_k are the Gegenbauer polynomials with P_k(1) = 1. They are orthonormal times the root of the number of harmonics of degree
    k.
    """
    n, t, apart = float(dimensions), _coordinate(dimensions) / math.sqrt(dimensions), -1.0 / dimensions
    rows, seen, counts = [np.ones_like(t), t], [1.0, apart], [1.0, n]
    for k in range(1, _ORDERS):
        rows.append(((2.0 * k + n - 2.0) * t * rows[-1] - k * rows[-2]) / (k + n - 2.0))
        seen.append(((2.0 * k + n - 2.0) * apart * seen[-1] - k * seen[-2]) / (k + n - 2.0))
        counts.append(counts[-1] * (2.0 * k + n) / (2.0 * k + n - 2.0) * (k + n - 2.0) / (k + 1.0))
    return np.stack(rows) * np.sqrt(counts)[:, None] * _grid()[1], np.array(seen)


def _on_sphere(values: Array, dimensions: int) -> float:
    """Return E f(a) f(b) / E f^2 for two values a, b that were normalized together over dimensions + 1 values (Funk-Hecke).

    Centered and scaled values sum to zero, and their squares sum to a constant. They are coordinates of one point on a sphere,
    along directions of cosine -1 / dimensions. Both their first and their second harmonic have the correlation -1 / dimensions.
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
    """A tensor as a function of a Gaussian tensor, its base.

    Attributes:
        base: Name of the Gaussian tensor.
        values: Values of the function on the grid, in units of 10^shift.
        correlation: For each axis, the correlation of two elements of the base that differ along it.
        shift: Decades that `values` are scaled by.
        sphere: Dimension of the spheres on which the base lies after a normalization, 0 for a Gaussian base. Two values that
            were normalized together have the correlation -1 / sphere.
        chance: Chance correlation of two elements of the base, relative to the second moment that samples do not share.
        neighbor_correlation: Correlation of neighbors along the last axis, in what distant positions do not share.
        settled: Share of the base whose sum of squares the last normalization has fixed.
    """

    base: str
    values: Array
    correlation: tuple[float, ...]
    shift: float = 0.0
    sphere: int = 0
    chance: ChanceCorrelation = UNCORRELATED
    neighbor_correlation: float = 0.0
    settled: float = 0.0

    def with_values(self, values: Array) -> Distribution:
        """Return another function of the same base. It is made for every operator, and `replace` takes three times as long."""
        return Distribution(
            self.base,
            values,
            self.correlation,
            self.shift,
            self.sphere,
            self.chance,
            self.neighbor_correlation,
            self.settled,
        )

    @cached_property
    def second(self) -> float:
        """Second moment E h^2, in units of 10^(2 shift)."""
        return expect(self.values * self.values)

    @cached_property
    def _spectrum(self) -> Array | None:
        return spectrum(self.values)

    @property
    def level(self) -> float:
        """Root mean square in decades, 1/2 log10 E h^2; -inf for a tensor of zeros."""
        return 0.5 * math.log10(self.second) + self.shift if self.second > 0.0 else -math.inf

    @property
    def mean(self) -> float:
        """Mean over root mean square, E h / sqrt(E h^2)."""
        return expect(self.values) / math.sqrt(self.second) if self.second > 0.0 else 0.0

    @property
    def shared(self) -> tuple[float, ...]:
        """For each axis, E h_a h_b / E h^2 for two elements a, b that differ along it."""
        return self._together(self.values, self._spectrum)

    def in_common(self, values: Array) -> tuple[float, ...]:
        """Return E f(a) f(b) / E f(a)^2 for each axis, for the function of the base that has these values on the grid."""
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
        """Chance correlation after the function.

        The function multiplies the part that samples do not share by the slope of E f(a) f(b) in their correlation. The parts
        of higher order that it creates are isotropic, except for the share of the second order that comes from the chance
        correlation itself.
        """
        squares = self._spectrum
        if self.chance.square <= 0.0 or squares is None:
            return UNCORRELATED
        powers, orders = _powers(self.correlation[0]), np.arange(1, _ORDERS + 1)
        left = 1.0 - float(squares @ powers) - float(squares[2]) * self.chance.square
        slope = float((orders * squares[1:]) @ powers[:-1]) * (1.0 - self.correlation[0])
        return self.chance.scaled(min(slope / left, 1.0)) if left > 1e-9 else self.chance

    def kept(self, sizes: Sequence[int], axes: Iterable[int]) -> Array:
        """Return the share of E f^2 that each Hermite order keeps in a mean over axes; see `signal.averaged`."""
        return _kept(tuple((self.correlation[axis], sizes[axis]) for axis in axes))

    @property
    def neighbor_correlation_left(self) -> float:
        """Correlation of neighbors after the function."""
        if self.neighbor_correlation == 0.0:
            return 0.0
        far = min(max(self.correlation[-1], -1.0), 1.0)
        close, apart = _in_common(self._spectrum, (far + (1.0 - far) * self.neighbor_correlation, far))
        return max(close - apart, 0.0) / (1.0 - apart) if apart < 1.0 - 1e-9 else 0.0

    @property
    def finite(self) -> bool:
        """Whether all values on the grid are finite."""
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
    """Return the distribution of a Gaussian tensor.

    Args:
        base: Name of the tensor.
        level: Root mean square in decades.
        mean: Mean over root mean square.
        shared: For each axis, the shared second moment of two elements that differ along it, over the second moment.
        chance: As in `Distribution`.
        neighbor_correlation: As in `Distribution`.
        settled: As in `Distribution`.
    """
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
    """Return one coordinate of a random point on a sphere of unit mean square, as a function of a normal variable on the grid.

    In k dimensions its density is proportional to (1 - u^2 / k)^((k - 3) / 2). Normalized values lie on such a sphere.
    """
    edge = math.sqrt(dimensions)
    u = np.linspace(-edge, edge, 4 * _POINTS + 1)[1::2]
    density = (1.0 - (u / edge) ** 2) ** (0.5 * (dimensions - 3.0))
    below = np.cumsum(density) - 0.5 * density
    _, weights = _grid()
    values = np.interp(np.cumsum(weights) - 0.5 * weights, below / density.sum(), u)
    return np.asarray(values / math.sqrt(expect(values * values)))


def spherical(base: str, level: float, shared: Sequence[float], dimensions: float) -> Distribution:
    """Return the distribution of a tensor after a normalization over few values: mean 0, tails lighter than Gaussian."""
    distribution = gaussian(base, level, 0.0, shared)
    whole = round(dimensions)
    if not 3 <= whole < _MANY:
        return distribution
    return replace(distribution, values=_coordinate(whole) * 10.0 ** (level - distribution.shift), sphere=whole)


def positive(distribution: Distribution) -> Distribution:
    """Return the log-normal distribution of the same mean and second moment, for a tensor that is never negative."""
    mean, second = expect(distribution.values), expect(distribution.values * distribution.values)
    spread = math.sqrt(math.log(max(second / (mean * mean), 1.0)))
    return replace(distribution, values=mean * np.exp(spread * _grid()[0] - 0.5 * spread * spread))


@dataclass(frozen=True, slots=True)
class Mapped:
    """The result of applying a function to a distribution.

    `slope` is the derivative of the function on the grid, and `log_factor` is added to log10 of its square.
    """

    distribution: Distribution
    slope: Array
    log_factor: float = 0.0


def apply(function: Function, distribution: Distribution) -> Mapped:
    """Apply a pointwise function to a distribution.

    If the signal is larger than the grid resolves, value and slope are extrapolated as powers of the signal. Their exponents are
    measured at the largest resolved signal: 1 and 0 for a rectifier, 0 and -1/2 for a bounded function.
    """
    with np.errstate(all="ignore"):
        found = with_slope(function, distribution.values)
        values, slope = (np.asarray(item, dtype=np.float64) for item in found)
        if distribution.shift == 0.0:
            return Mapped(rescaled(distribution.with_values(values)), *_rescaled_slope(slope, 0.0))
        inside = distribution.values * (0.1 if distribution.shift > 0.0 else 10.0)
        step = -1.0 if distribution.shift > 0.0 else 1.0
        near = with_slope(function, inside)
        degree = _limit((_half(near[0]) - _half(values)) / step)
        bend = _limit(2.0 * (_half(near[1]) - _half(slope)) / step)
    if not (math.isfinite(degree) and math.isfinite(bend)):
        degree, bend = 1.0, 0.0
    return Mapped(
        rescaled(replace(distribution, values=values, shift=degree * distribution.shift)),
        *_rescaled_slope(slope, bend * distribution.shift),
    )


def _limit(degree: float) -> float:
    """Round the degree of a function at the edge of the grid to the integer or half-integer that it approaches, if close."""
    near = round(2.0 * degree) / 2.0 if math.isfinite(degree) else degree
    return near if abs(degree - near) < _NEAR else degree


def _rescaled_slope(slope: Array, fade: float) -> tuple[Array, float]:
    largest = float(np.abs(slope).max())
    if not math.isfinite(largest) or largest < 1.0 / _TINY:
        return slope, fade
    return slope / largest, fade + 2.0 * math.log10(largest)


def rescaled(distribution: Distribution) -> Distribution:
    """Return the same distribution in units in which the squares of its values are finite, nonzero floats."""
    largest = float(np.abs(distribution.values).max())
    if not math.isfinite(largest) or _TINY < largest < 1.0 / _TINY or largest == 0.0:
        return distribution
    moved = math.log10(largest) - (_HIGHEST if largest > 1.0 else _LOWEST)
    whole = 0.5 * moved  # two factors, because one alone may overflow
    return replace(distribution, values=distribution.values * 10.0**-whole * 10.0**-whole, shift=distribution.shift + moved)


def _half(values: Array) -> float:
    second = expect(values * values)
    return 0.5 * math.log10(second) if 0.0 < second < math.inf else math.nan


def largest_of(distribution: Distribution, draws: float, correlation: float) -> tuple[Distribution, Array]:
    """Return the distribution of the largest of `draws` elements of pairwise correlation `correlation`, and its slope.

    The slope is sqrt(w'/w) on the grid, where w' is the distribution of the element that is the maximum; E slope^2 g^2 is then
    the second moment over the maxima. Elements of correlation rho count as draws^(1 - rho) independent ones. The result holds
    for nondecreasing functions of the base.
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
