"""Fluctuations at finite width: the difference between one draw of the weights and the mean over all draws.

The squared level of a signal is a product of means over the n channels of each layer. The logarithm of such a mean has the
expectation log E - v/2 and the variance v, where v is its relative variance. Over depth, v/2 accumulates to a bias and v to a
variance. In the forward pass v = (E y^4 / (E y^2)^2 - 1) / n, which is 5/n for a ReLU. In the backward pass the mean is over the
directions that the cotangent still has. v is 1/n while these are many and approaches 5/n over depth, as they become few (Hanin
2018, arXiv 1801.03744; Hanin and Nica 2018, arXiv 1812.05994).
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
    """The overlap tr(A B) / (tr A tr B) of the covariances A, B of a cotangent over n channels at two positions.

    It is 1/n for isotropic covariances.

    Attributes:
        own: Overlap of a position with itself, the inverse of the effective number of directions.
        mean: Mean overlap over all pairs of positions.
    """

    own: float
    mean: float

    def between(self, places: int) -> float:
        """Return the mean overlap of two different positions."""
        return _between(self.own, self.mean, places)

    def at_least(self, own: float, shared: float) -> Overlap:
        """Return the overlap, raised to at least `own` for one direction whose correlation between positions is `shared`."""
        return Overlap(min(max(self.own, own), 1.0), min(max(self.mean, own * max(shared, 0.0) ** 2), 1.0))


def isotropic(count: int) -> Overlap:
    """Return the overlap of isotropic cotangents of `count` channels."""
    return Overlap(1.0 / max(count, 1), 1.0 / max(count, 1))


def shift(variance: float) -> float:
    """Return E log10 X - log10 E X for a log-normal X of this relative variance."""
    return -0.5 * math.log1p(max(variance, 0.0)) / math.log(10.0)


def decades(variance: float) -> float:
    """Return the variance, in decades^2, of an amplitude whose square has this relative variance."""
    return math.log1p(max(variance, 0.0)) / (2.0 * math.log(10.0)) ** 2


def shift_of(variance: float) -> float:
    """Return the `shift` of log10 of a square whose amplitude has this variance, in decades^2."""
    return -2.0 * math.log(10.0) * variance


def _of_mean(shares: Array | None, kept: Array, settled: float = 0.0) -> float:
    """Return the relative variance of a mean of f over draws.

    `shares` are the shares of E f^2 by Hermite order, and `kept` what a mean keeps of each. The second order does not vary for
    the share `settled` of the base whose sum of squares is fixed.
    """
    if shares is None or shares[0] <= 0.0:
        return 0.0
    return float(shares[1:] @ kept[1:] - settled * shares[2] * kept[2]) / float(shares[0])


def of_square(distribution: Distribution, sizes: Sequence[int]) -> float:
    """Return the relative variance of the mean square of a tensor."""
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
    """Return the relative variance that a slope adds to the square of a cotangent, and the overlap after it.

    For r directions, n channels and K = E slope^4 / (E slope^2)^2 at one position, the variance is (K - 1) (1 + 2/r) / n. At
    several positions it is smaller if their slopes are less correlated.

    Args:
        before: Overlap before the slope. None for an isotropic cotangent.
        slope: Derivative of the function on the grid.
        distribution: Distribution of the operand.
        layout: The axis of the channels, and the length of each axis.
    """
    axis, sizes = layout
    sites = [index for index in range(len(sizes)) if index != axis]
    count, places, second = sizes[axis], math.prod(sizes[index] for index in sites), expect(slope * slope)
    before = before or isotropic(count)
    if not 0.0 < second < math.inf or places < 1 or count < 1:
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
    """Return the mean over pairs of different positions, from the value at equal positions and the mean over all pairs."""
    return max((places * mean - own) / (places - 1.0), 0.0) if places > 1 else own


def _bent(overlap: float, same: float, variance: float, count: int) -> float:
    """Return the overlap of two positions after slopes, where `same` is (E s s')^2 and `variance` is E s^2 s'^2 - 1.

    Off-diagonal elements of the covariances are multiplied by E s s' twice, diagonal elements by E s^2 s'^2. A diagonal element
    of a cotangent with r directions has the relative variance 2/r.
    """
    diagonal = (1.0 + 2.0 * overlap) / count
    return min((same * overlap + (1.0 + variance - same) * diagonal) / (1.0 + variance * diagonal), 1.0)


def of_layer(before: Overlap | None, count: int, group: int, taps: float) -> tuple[float, Overlap]:
    """Return the relative variance that W^T adds to the square of a cotangent, and the overlap after it.

    For r directions and n inputs the variance is 2 / (r n). Orthogonal weights count as Gaussian ones, which overestimates it.

    Args:
        before: Overlap at the output of the layer. None for an isotropic cotangent.
        count: Number of input channels.
        group: Number of input channels that one output reads.
        taps: Number of outputs that one input reaches along other axes. Different taps have independent weights.
    """
    before, group = before or isotropic(count), max(group, 1)
    own, mean = (_mixed(value / max(taps, 1.0), group) for value in (before.own, before.mean))
    return 2.0 * before.mean / (max(taps, 1.0) * group), Overlap(own, mean)


def _mixed(overlap: float, count: int) -> float:
    """Return E tr((W^T A W)^2) / E (tr W^T A W)^2 for Gaussian W, where A has this overlap and W has `count` inputs.

    A single direction stays a single one; many directions become at most `count`.
    """
    return min((overlap * (1.0 + 1.0 / count) + 1.0 / count) / (1.0 + 2.0 * overlap / count), 1.0)


def joined(parts: Sequence[tuple[float, Overlap | None]], count: int) -> Overlap:
    """Return the overlap of a sum of independent cotangents, given the share of the energy and the overlap of each."""
    known = [(share * share, part or isotropic(count)) for share, part in parts]
    crossed = (1.0 - sum(square for square, _ in known)) / max(count, 1)
    own, mean = (crossed + sum(square * getattr(part, name) for square, part in known) for name in ("own", "mean"))
    return Overlap(min(own, 1.0), min(mean, 1.0))
