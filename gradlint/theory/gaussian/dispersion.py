"""The spread of the variance that a normalization divides by.

A normalization computes a variance v over finitely many values. v differs from one set of values to the next, the more so the
fewer or the more correlated the values are. Since E 1/v > 1/E v, the spread increases the gradient.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

_WHOLE = 1e3  # a floor above this multiple of the variance makes the variance negligible
_SMALLEST, _LARGEST, _POINTS = -12.0, 40.0, 800  # grid of ln t that covers the integral of E exp(-t v)


@dataclass(frozen=True, slots=True)
class ChanceCorrelation:
    """Chance correlation of pairs of elements at different samples or positions, beyond the correlation that all pairs share.

    Suppose that k directions of the kernel (the Gram matrix of all elements) hold a share p of their variance and the rest is
    isotropic. The chance correlation of a pair then has mean square p^2 / k. After a layer with n inputs, p is 1 and k is n.

    Attributes:
        square: Mean square of the chance correlation, p^2 / k.
        each: `square` over k.
    """

    square: float = 0.0
    each: float = 0.0

    @property
    def directions(self) -> float:
        """The number of directions k, a mean if there are several sets of directions."""
        return self.square / self.each if self.each > 0.0 else math.inf

    @property
    def share(self) -> float:
        """The share p of the variance that the directions hold."""
        return math.sqrt(self.square * self.directions) if self.each > 0.0 else 0.0

    def scaled(self, factor: float) -> ChanceCorrelation:
        """Return the chance correlation with the share p multiplied by a factor."""
        return ChanceCorrelation(self.square * factor**2, self.each * factor**2)

    def plus(self, other: ChanceCorrelation) -> ChanceCorrelation:
        """Return the chance correlation with further directions, which together hold at most all of the variance."""
        square = self.square + other.square
        return ChanceCorrelation(square, max(self.each + other.each, square * square))

    def less(self, square: float) -> ChanceCorrelation:
        """Return the chance correlation with `square` reduced by a part that is already accounted for."""
        left = max(self.square - square, 0.0)
        return self.scaled(math.sqrt(left / self.square)) if self.square > 0.0 else self

    def evened(self, inverse: float) -> ChanceCorrelation:
        """Return the chance correlation after a normalization that divides each channel by its own variance v.

        `inverse` is E[1/v] E[v]. The directions keep the share E[p u / (p u + 1 - p)] = 1 - (1 - p) E[1/v], where u = chi^2_k / k
        and E[v] = 1.
        """
        if not 0.0 < self.share < 1.0 - 1e-9:
            return self
        return self.scaled(max(1.0 - (1.0 - self.share) * max(inverse, 1.0), 0.0) / self.share)


UNCORRELATED = ChanceCorrelation()


def in_sum(parts: Iterable[tuple[float, ChanceCorrelation]]) -> ChanceCorrelation:
    """Return the chance correlation of a sum, given the variance and the chance correlation of each summand.

    Two summands are assumed to share the chance correlation of the one that has less of it.
    """
    items = sorted(parts, key=lambda part: part[1].square)
    total = rest = sum(size for size, _ in items)
    if total * total <= 0.0:  # zero, or too small for a square
        return UNCORRELATED
    square = each = 0.0
    for size, chance in items:
        weight = size * (2.0 * rest - size)  # pairs with itself and with the summands that have more
        rest -= size
        square += weight * chance.square
        each += weight * chance.each
    return ChanceCorrelation(square / total**2, each / total**2)


@dataclass(frozen=True, slots=True)
class VarianceSpread:
    """The distribution of a variance v over its mean: a weighted sum of chi-square variables.

    Attributes:
        counts: Degrees of freedom of each chi-square variable.
        shares: Share of each in the mean of v. The shares sum to 1.
        steady: Share of v that does not vary.
    """

    counts: tuple[float, ...]
    shares: tuple[float, ...]
    steady: float = 0.0

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the chi-square variable of the same relative variance: 2 / Var(v)."""
        squares = sum(share * share / count for count, share in zip(self.counts, self.shares, strict=True))
        return 1.0 / squares if squares > 0.0 else math.inf

    def uneven(self, chance: ChanceCorrelation) -> VarianceSpread:
        """Return the spread for values with a chance correlation, whose variance is concentrated in fewer directions.

        If the directions of `chance` are few, they are added as one more chi-square variable with their share. Otherwise the
        degrees of freedom are split into halves of unequal share, or reduced if the chance correlation is too large for that.
        """
        squares, whole = sum(share * share for share in self.shares), sum(self.counts)
        if chance.square <= 0.0 or squares <= 0.0:
            return self
        bulk = chance.share
        if bulk < 1.0 and 2.0 * chance.directions < whole:
            return replace(
                self, counts=(*self.counts, chance.directions), shares=(*(s * (1.0 - bulk) for s in self.shares), bulk)
            )
        spread = math.sqrt(whole * chance.square)
        if len(self.counts) == 1 and spread < 1.0:
            return replace(self, counts=(0.5 * whole, 0.5 * whole), shares=(0.5 * (1.0 + spread), 0.5 * (1.0 - spread)))
        return replace(self, counts=tuple(1.0 / (1.0 / count + chance.square / squares) for count in self.counts))

    def inverse_mean(self, floor: float = 0.0) -> float:
        """Return E[(1 + floor) / (v + floor)], the integral over t of E exp(-t v) times exp(-t floor).

        Each normal variable contributes (1 + 2 t share)^(-1/2) to the integrand. The result is k / (k - 2) for k equal shares
        without a floor, and 1 for a floor much larger than the variance.
        """
        if not floor < _WHOLE:
            return 1.0
        return (1.0 + floor) * _inverse_mean(self.counts, self.shares, round(self.steady, 6), floor)


def variance_spread(
    sizes: Sequence[int], shared: Sequence[float], axes: Sequence[int], *, centered: bool, steady: float = 0.0
) -> VarianceSpread:
    """Return the spread of a variance that is computed over `axes` of a tensor of normal values.

    The correlation of two elements is that of the least correlated axis along which they differ; see `signal.averaged`. The
    elements therefore form a tree whose first branching is the least correlated axis, and the variance is a sum of squares over
    the levels of that tree.

    Args:
        sizes: Length of each axis.
        shared: Shared second moment of two elements that differ along each axis, relative to their second moment.
        axes: Axes over which the variance is computed.
        centered: Whether the mean over the axes is subtracted first.
        steady: Share of the variance that does not vary.
    """
    ordered = sorted((axis for axis in axes if sizes[axis] > 1), key=lambda axis: shared[axis])
    limits = [*(shared[axis] for axis in ordered), 1.0]
    branches = [1, *np.cumprod([sizes[axis] for axis in ordered], dtype=np.float64)]
    whole = branches[-1]
    parts = [limits[0], *np.diff(limits)]  # second moment drawn at each level of the tree; the first part is common to all
    counts, sums, below = [], [], 0.0
    for level in range(len(ordered), -1, -1):
        below += parts[level] * whole / branches[level]
        if level == 0 and centered:
            break
        counts.append(branches[level] - branches[level - 1] if level else 1.0)
        sums.append(max(below, 0.0) * counts[-1])
    total = sum(sums)
    if total <= 0.0:
        return VarianceSpread((1.0,), (1.0,), steady)
    return VarianceSpread(tuple(map(float, counts)), tuple(float(item) / float(total) for item in sums), steady)


@lru_cache(maxsize=1024)
def _inverse_mean(counts: tuple[float, ...], shares: tuple[float, ...], steady: float, floor: float) -> float:
    part = 1.0 - steady
    if len(counts) == 1 and steady == 0.0 and floor < 1e-3 and counts[0] > 4.0:
        return counts[0] / (counts[0] - 2.0)
    logs = np.linspace(_SMALLEST, _LARGEST, _POINTS)
    t = np.exp(logs)
    exponent = -t * (steady + floor)
    for count, share in zip(counts, shares, strict=True):
        exponent = exponent - 0.5 * count * np.log1p(2.0 * t * part * share / count)
    return float(np.exp(exponent + logs).sum() * (logs[1] - logs[0]))
