"""How far one draw of the weights lies from the average over all: layers of finite width.

The square of a level is a product of means over the n channels of each layer. The logarithm of such a mean lies below that of
its expectation by half its relative variance v, and scatters by v: over depth the first makes a bias, the second a deviation.
Forward v = (E y^4 / (E y^2)^2 - 1) / n, 5/n for a rectifier. Backward the mean runs over the directions that a cotangent still
has: few of them after many layers, when v reaches 5/n too (Hanin, Nica 2018, 1812.05994), but 1/n while they are many.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gradlint.theory.gaussian.pointwise_of_gaussian import expect, spectrum

if TYPE_CHECKING:
    from gradlint.theory.gaussian.pointwise_of_gaussian import Array, Distribution


@dataclass(frozen=True, slots=True)
class Overlap:
    """tr(A B) / (tr A tr B) for the covariances A, B of a cotangent over the channels at two places, 1/n when all n are alike.

    `own` is that of a place with itself, so the inverse of the number of directions there; `mean` is that over all pairs.
    """

    own: float
    mean: float

    def between(self, places: int) -> float:
        """The overlap of two places that differ."""
        return _between(self.own, self.mean, places)

    def at_least(self, own: float, shared: float) -> Overlap:
        """The overlap of a cotangent that has at least this one, in a direction that two places share so far."""
        return Overlap(min(max(self.own, own), 1.0), min(max(self.mean, own * max(shared, 0.0) ** 2), 1.0))


def isotropic(count: int) -> Overlap:
    """The overlap of cotangents that have as many directions as channels."""
    return Overlap(1.0 / max(count, 1), 1.0 / max(count, 1))


def shift(variance: float) -> float:
    """Expected log10 of a square whose relative variance this is, less log10 of its mean: that of the log-normal."""
    return -0.5 * math.log1p(max(variance, 0.0)) / math.log(10.0)


def decades(variance: float) -> float:
    """Variance in decades^2 of an amplitude whose square has this relative variance."""
    return math.log1p(max(variance, 0.0)) / (2.0 * math.log(10.0)) ** 2


def shift_of(variance: float) -> float:
    """The shift that came with this much variance in decades^2 of an amplitude."""
    return -2.0 * math.log(10.0) * variance


def _of_mean(shares: Array | None, kept: Array, settled: float = 0.0) -> float:
    """Relative variance of a mean of f from draw to draw: from shares of E f^2 by Hermite order and what a mean keeps of each.

    Of a base whose sum of squares is `settled` the second order does not vary.
    """
    if shares is None or shares[0] <= 0.0:
        return 0.0
    return float(shares[1:] @ kept[1:] - settled * shares[2] * kept[2]) / float(shares[0])


def of_square(distribution: Distribution, sizes: Sequence[int]) -> float:
    """Relative variance of the mean square of a tensor."""
    if not 0.0 < distribution.second < math.inf or 0 in sizes:
        return 0.0
    return _of_mean(
        spectrum(distribution.values * distribution.values / distribution.second),
        distribution.kept(sizes, range(len(sizes))),
        distribution.settled,
    )


def of_slope(
    before: Overlap | None, slope: Array, distribution: Distribution, layout: tuple[int, Sequence[int]]
) -> tuple[float, Overlap]:
    """Relative variance that a slope adds to the square of a cotangent, and the overlap behind it.

    With r directions and K = E slope^4 / (E slope^2)^2 it is (K - 1) (1 + 2/r) / n; places whose slopes have less in common share
    less of it. `layout` is the axis of the channels and the lengths of all.
    """
    axis, sizes = layout
    sites = [index for index in range(len(sizes)) if index != axis]
    count, places, second = sizes[axis], math.prod(sizes[index] for index in sites), expect(slope * slope)
    before = before or isotropic(count)
    if not 0.0 < second < math.inf or places < 1:
        return 0.0, before
    slope = slope / math.sqrt(second)
    squares = slope * slope
    own, shares, kept = expect(squares * squares) - 1.0, spectrum(squares), distribution.kept(sizes, sites)
    apart, linear = _between(own, _of_mean(shares, kept), places), spectrum(slope)
    same = _between(1.0, float(linear @ kept), places) ** 2 if places > 1 and linear is not None else 1.0
    between = before.between(places)
    few = 2.0 * (own * before.own + (places - 1.0) * apart * between) / places / count
    alone = _bent(before.own, 1.0, own, count)
    crossed = _bent(between, same, apart, count)
    mean = (alone + (places - 1.0) * crossed) / places
    return _of_mean(shares, distribution.kept(sizes, range(len(sizes))), distribution.settled) + few, Overlap(alone, mean)


def _between(own: float, mean: float, places: int) -> float:
    """What two places have in common, from what one has with itself and the mean over all pairs."""
    return max((places * mean - own) / (places - 1.0), 0.0) if places > 1 else own


def _bent(overlap: float, same: float, variance: float, count: int) -> float:
    """The overlap of two places behind slopes: `same` is (E slope slope')^2, `variance` E slope^2 slope'^2 - 1.

    Off the diagonals of the covariances both slopes meet twice, on them their squares do; a diagonal element of r directions has
    the relative variance 2/r.
    """
    diagonal = (1.0 + 2.0 * overlap) / count
    return min((same * overlap + (1.0 + variance - same) * diagonal) / (1.0 + variance * diagonal), 1.0)


def of_layer(before: Overlap | None, count: int, group: int, taps: float) -> tuple[float, Overlap]:
    """Relative variance that W^T adds to the square of a cotangent, 2 / (r n) over r directions, and the overlap behind it.

    `count` are the inputs of the layer, `group` those that one output sees, `taps` the outputs that one input reaches along other
    axes: different taps have independent weights. Orthogonal weights are taken for Gaussian ones, which is a little too much.
    """
    before, group = before or isotropic(count), max(group, 1)
    own, mean = (_mixed(value / max(taps, 1.0), group) for value in (before.own, before.mean))
    return 2.0 * before.mean / (max(taps, 1.0) * group), Overlap(own, mean)


def _mixed(overlap: float, count: int) -> float:
    """E tr(W^T A W)^2 over E (tr W^T A W)^2 for Gaussian W: one direction stays one, many become the number of inputs at most."""
    return min((overlap * (1.0 + 1.0 / count) + 1.0 / count) / (1.0 + 2.0 * overlap / count), 1.0)


def joined(parts: Sequence[tuple[float, Overlap | None]], count: int) -> Overlap:
    """The overlap of a sum of independent cotangents, each with its share of the energy."""
    known = [(share * share, part or isotropic(count)) for share, part in parts]
    crossed = (1.0 - sum(square for square, _ in known)) / max(count, 1)
    own, mean = (crossed + sum(square * getattr(part, name) for square, part in known) for name in ("own", "mean"))
    return Overlap(min(own, 1.0), min(mean, 1.0))
