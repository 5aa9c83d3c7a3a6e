"""How far the variance that a norm divides by scatters from one set of values to the next: few values, or values that repeat."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

_WHOLE = 1e3  # times the variance: a floor beside which that counts for nothing
_SMALLEST, _LARGEST, _POINTS = -12.0, 40.0, 800  # of ln t, where E exp(-t v) has all of its integral for t v << 1 and >> 1


@dataclass(frozen=True, slots=True)
class ChanceCorrelation:
    """What pairs of elements at different samples or positions have in common by chance, beyond what all pairs share.

    `square` is its mean square over that of their variance: where k directions of the kernel of all elements hold a share p of
    their variance, and the rest is even, that is p^2 / k. `each` is the same over k. n inputs of a layer are n directions that
    hold all of the variance: its weights see no more of a kernel.
    """

    square: float = 0.0
    each: float = 0.0

    @property
    def directions(self) -> float:
        """The number k; a mean where there are several such sets."""
        return self.square / self.each if self.each > 0.0 else math.inf

    @property
    def share(self) -> float:
        """The share p."""
        return math.sqrt(self.square * self.directions) if self.each > 0.0 else 0.0

    def scaled(self, factor: float) -> ChanceCorrelation:
        """The same with another share, by a factor."""
        return ChanceCorrelation(self.square * factor**2, self.each * factor**2)

    def plus(self, other: ChanceCorrelation) -> ChanceCorrelation:
        """The same with other directions beside these, which hold no more than all of the variance."""
        square = self.square + other.square
        return ChanceCorrelation(square, max(self.each + other.each, square * square))

    def less(self, square: float) -> ChanceCorrelation:
        """The same without a part of the square that is known."""
        left = max(self.square - square, 0.0)
        return self.scaled(math.sqrt(left / self.square)) if self.square > 0.0 else self

    def evened(self, inverse: float) -> ChanceCorrelation:
        """Behind a norm that divides each channel by its own variance v, with E 1/v = inverse over 1 / E v.

        The directions keep the share E p u / (p u + 1 - p) = 1 - (1 - p) E 1/v, for u = chi^2_k / k.
        """
        if not 0.0 < self.share < 1.0 - 1e-9:
            return self
        return self.scaled(max(1.0 - (1.0 - self.share) * max(inverse, 1.0), 0.0) / self.share)


UNCORRELATED = ChanceCorrelation()


def in_sum(parts: Iterable[tuple[float, ChanceCorrelation]]) -> ChanceCorrelation:
    """What summands of these variances have in common along the same directions: pairs of them what the lesser has."""
    items = sorted(parts, key=lambda part: part[1].square)
    total = rest = sum(size for size, _ in items)
    if total * total <= 0.0:  # nothing, or too little to be squared
        return UNCORRELATED
    square = each = 0.0
    for size, chance in items:
        weight = size * (2.0 * rest - size)  # of the pairs with itself and with those that have more
        rest -= size
        square += weight * chance.square
        each += weight * chance.each
    return ChanceCorrelation(square / total**2, each / total**2)


@dataclass(frozen=True, slots=True)
class VarianceSpread:
    """A variance v over its mean: a sum of squares of normal variables, `counts` of them with each of `shares` (which add to 1).

    `steady` is the share of v that does not scatter.
    """

    counts: tuple[float, ...]
    shares: tuple[float, ...]
    steady: float = 0.0

    @property
    def degrees(self) -> float:
        """Degrees of freedom of the chi-square variable that scatters as much: 2 / Var(v)."""
        squares = sum(share * share / count for count, share in zip(self.counts, self.shares, strict=True))
        return 1.0 / squares if squares > 0.0 else math.inf

    def uneven(self, chance: ChanceCorrelation) -> VarianceSpread:
        """The scatter of values that have more in common by chance, so that fewer directions hold more of their variance.

        Some of the directions hold a share of it where there are so few, else half of them more and half of them less where the
        spread allows that, else all of it.
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
        """E (1 + floor)/(v + floor): the integral of E exp(-t v) over t, where each normal variable gives (1 + 2 t share)^(-1/2).

        k / (k - 2) for k equal values without a floor, 1 for a floor that is all.
        """
        if not floor < _WHOLE:
            return 1.0
        return (1.0 + floor) * _inverse_mean(self.counts, self.shares, round(self.steady, 6), floor)


def variance_spread(
    sizes: Sequence[int], shared: Sequence[float], axes: Sequence[int], *, centered: bool, steady: float = 0.0
) -> VarianceSpread:
    """The scatter of the mean square over `axes` of normal values that share `shared` along each; about their mean if `centred`.

    Two elements have in common what the least alike of the axes along which they differ lets them (signal.averaged): values are a
    tree, whose first branches are the axis that is least alike, and a variance is a sum of squares on each of its levels.
    """
    ordered = sorted((axis for axis in axes if sizes[axis] > 1), key=lambda axis: shared[axis])
    limits = [*(shared[axis] for axis in ordered), 1.0]
    branches = [1, *np.cumprod([sizes[axis] for axis in ordered], dtype=np.float64)]
    whole = branches[-1]
    parts = [limits[0], *np.diff(limits)]  # second moment that is drawn anew on each level, the first one once for all
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
