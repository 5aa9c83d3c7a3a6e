"""The state that the theory propagates along an edge: a signal forward, a cotangent backward.

A tensor h is treated as random over inputs and units. Its second moment is q = E h^2. Two elements that differ along an axis
share the second moment E h_a h_b, such as the kernel q_ab of two inputs in mean-field theory (Poole et al. 2016, arXiv
1606.05340; Schoenholz et al. 2017, arXiv 1611.01232; Martens et al. 2021, arXiv 2110.01765). All sizes are kept as logarithms, so
that 10^400 does not overflow.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

from gradlint.theory.gaussian.dispersion import UNCORRELATED, ChanceCorrelation
from gradlint.theory.gaussian.pointwise_of_gaussian import Distribution, expect, gaussian
from gradlint.theory.transfer import fluctuation
from gradlint.theory.transfer.coherence import Coherence, added, through_slope
from gradlint.theory.transfer.profiles import FLAT, flat, mixed

if TYPE_CHECKING:
    from gradlint.theory.gaussian.pointwise_of_gaussian import Array
    from gradlint.theory.transfer.fluctuation import Overlap
    from gradlint.theory.transfer.profiles import Profile


Fixed = Mapping[tuple[int, ...], float]
NOTHING: Fixed = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Signal:
    """The predicted statistics of a tensor h with second moment q = E h^2.

    Attributes:
        level: Root mean square in decades, 1/2 log10 q.
        sizes: Length of each axis.
        shared: For each axis, E h_a h_b / q for two elements that differ along it. 1 - shared[0] is the share of q that varies
            over samples, and shared[channels] is `mean` squared.
        mean: Mean over root mean square, E h / sqrt(q).
        channels: The axis that weights act on, or None.
        distribution: The tensor as a function of a Gaussian tensor, or None for a Gaussian one.
        profile: How q varies along axes.
        variance: Variance of the prediction of `level`, in decades^2.
        fixed: By the axes of a preceding normalization, the squared share of q whose variance along them it has fixed. That part
            does not vary from one set of values to the next.
        chance: Chance correlation of samples and positions, relative to q (1 - shared[0]).
        neighbor_correlation: Correlation of neighbors along the axes after the channels, in what distant positions do not share.
        channel_variance: Variance of each channel over samples and positions, over its mean over channels. None if `profile`
            gives it.
        means: Mean of each channel over the root mean square, for trained weights; see `channels`. Otherwise None.
    """

    level: float
    sizes: tuple[int, ...]
    shared: tuple[float, ...]
    mean: float = 0.0
    channels: int | None = None
    distribution: Distribution | None = None
    profile: Profile = field(default_factory=flat)
    variance: float = 0.0
    fixed: Fixed = field(default_factory=lambda: NOTHING)
    chance: ChanceCorrelation = UNCORRELATED
    neighbor_correlation: float = 0.0
    channel_variance: Array | None = None
    means: Array | None = None

    def distribution_at(self, node: str) -> Distribution:
        """Return the distribution of the signal; by default a Gaussian whose base is the tensor at `node`."""
        settled = math.sqrt(min(max(self.fixed.values()), 1.0)) if self.fixed else 0.0
        if self.distribution is not None:
            return replace(self.distribution, settled=settled) if settled else self.distribution
        return gaussian(
            node,
            self.level,
            self.mean,
            self.shared,
            chance=self.chance,
            neighbor_correlation=self.neighbor_correlation,
            settled=settled,
        )

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)

    @property
    def log_q(self) -> float:
        """log10 of the second moment q."""
        return 2.0 * self.level


@dataclass(frozen=True, slots=True)
class Cotangent:
    """The predicted statistics of the gradient g at a tensor.

    Attributes:
        energy: log10 E |g|^2, summed over all elements of the tensor.
        correlation: For each axis, the correlation of the gradients of two elements that differ along it.
        variance: Variance of the prediction of energy / 2, in decades^2.
        profile: How E g^2 varies along axes.
        projected_out: By the axes of a later normalization, the share of the component along the tensor itself that the
            normalization has removed, unit by unit.
        coherence: Second moments of the component along the tensor over all channels. None if g is independent of the tensor.
        overlap: The number of directions of g. None if it has as many as there are channels.
    """

    energy: float
    correlation: tuple[float, ...]
    variance: float = 0.0
    profile: Profile = field(default_factory=flat)
    projected_out: Fixed = field(default_factory=lambda: NOTHING)
    coherence: Coherence | None = None
    overlap: Overlap | None = None


@dataclass(frozen=True, slots=True)
class CotangentTerm:
    """The term that one operator contributes to the gradient of one operand: a random cotangent times a slope.

    Attributes:
        cotangent: The cotangent before it is multiplied by the slope.
        root: Name of the random cotangent. Terms of one root are the same random cotangent times different functions of one
            Gaussian tensor, so they add before they are squared.
        slope: Values of the slope on the grid of the operand's distribution. None for a slope of 1.
        values: Values of the tensor at the root on that grid, or None.
        whole: The cotangent including the slope, once that is computed.
    """

    cotangent: Cotangent
    root: str = ""
    slope: Array | None = None
    values: Array | None = None
    whole: Cotangent | None = None


def averaged(sizes: Sequence[int], shared: Sequence[float], axes: Iterable[int], same: float = 1.0) -> float:
    """Return E (mean over axes)^2 / E h^2.

    `shared` holds E h_a h_b / E h^2 for two elements that differ along each axis, `same` that of an element with itself. Two
    elements share the second moment of the least correlated axis along which they differ, so the mean is taken along the most
    correlated axis first.
    """
    value = same
    for axis in sorted(axes, key=lambda axis: -shared[axis]):
        value = value / sizes[axis] + (1.0 - 1.0 / sizes[axis]) * shared[axis]
    return value


def averaged_apart(sizes: Sequence[int], shared: Sequence[float], axes: Iterable[int], apart: int) -> float:
    """Return the shared second moment of two means over axes that differ along another axis `apart`, over E h^2."""
    limit = shared[apart]
    return averaged(sizes, [min(value, limit) for value in shared], axes, same=limit)


def varying(sizes: Sequence[int], shared: Sequence[float], axes: Iterable[int]) -> float:
    """Return the variance around the mean over axes, over E h^2."""
    return max(1.0 - averaged(sizes, shared, axes), 0.0)


def coherent_sum(sizes: Sequence[int], correlation: Sequence[float], axes: Iterable[int]) -> float:
    """Return E |sum over axes|^2 / sum of E g^2: 1 for independent elements, their number for equal ones."""
    chosen = list(axes)
    return math.prod(sizes[axis] for axis in chosen) * averaged(sizes, correlation, chosen)


def log_sum(values: Iterable[float]) -> float:
    """Return log10 of a sum of numbers that are given by their log10."""
    known = [value for value in values if value > -math.inf]
    top = max(known, default=-math.inf)
    if not math.isfinite(top):
        return top
    return top + math.log10(sum(10.0 ** (value - top) for value in known))


def of_distribution(distribution: Distribution, like: Signal, profile: Profile = FLAT, degree: float = 1.0) -> Signal:
    """Return the signal of a distribution, with the axes of `like`.

    `degree` is the power of `like` that the distribution follows; the variance of the level is multiplied by its square.
    """
    return Signal(
        distribution.level,
        like.sizes,
        distribution.shared,
        distribution.mean,
        like.channels,
        distribution,
        profile,
        like.variance * degree**2,
        chance=distribution.chance_left,
        neighbor_correlation=distribution.neighbor_correlation_left,
    )


def joined(terms: Sequence[CotangentTerm], signal: Signal) -> Cotangent:
    """Return the total cotangent of several terms: terms of one root add before they are squared, the squares of others add."""
    parts = [cotangent_of_term(term, signal) for term in merged(terms)]
    parts = [part for part in parts if not math.isnan(part.energy)] or parts[:1]  # without terms that are 0/0
    if len(parts) == 1:
        return parts[0]
    energy = log_sum(part.energy for part in parts)
    if not math.isfinite(energy):
        return replace(parts[0], energy=energy)
    shares = [10.0 ** (part.energy - energy) for part in parts]
    correlation = tuple(
        sum(s * a for s, a in zip(shares, column, strict=True)) for column in zip(*(p.correlation for p in parts), strict=True)
    )
    variance = sum(share * part.variance for share, part in zip(shares, parts, strict=True))
    profile = mixed([(share, part.profile) for share, part in zip(shares, parts, strict=True)])
    projected_out = {
        axes: sum(share * part.projected_out.get(axes, 0.0) for share, part in zip(shares, parts, strict=True))
        for axes in {axes for part in parts for axes in part.projected_out}
    }
    together, coherence, overlap = 1.0, None, None
    if signal.channels is not None:
        known = [(share, part.coherence) for share, part in zip(shares, parts, strict=True)]
        together, coherence = added(known, signal.mean, (signal.channels, signal.sizes))
        overlap = fluctuation.joined(
            [(share, part.overlap) for share, part in zip(shares, parts, strict=True)], signal.sizes[signal.channels]
        )
        if coherence is not None:
            along = float(coherence.moments[1, 1]) / signal.sizes[signal.channels]
            overlap = overlap.at_least(along * along, min(signal.shared, default=1.0))
    return Cotangent(energy + math.log10(together), correlation, variance, profile, projected_out, coherence, overlap)


def along_signal(terms: Sequence[CotangentTerm], signal: Signal) -> tuple[float, tuple[float, ...]]:
    """Return E (g h)^2 / (E g^2 E h^2) and the correlation of g h along each axis, for a cotangent g and a centered signal h."""
    distribution = signal.distribution_at("")
    values = distribution.values - expect(distribution.values)
    second = expect(values * values)
    found = []
    for items in _by_root(terms).values():
        (term,) = merged(items)
        slope = term.slope if term.slope is not None else 1.0
        square = expect(np.broadcast_to(slope * slope, values.shape))
        together = slope * values
        size = expect(together * together)
        common = distribution.in_common(together)
        weight = 10.0 ** min(term.cotangent.energy, 300.0) * square
        correlation = tuple(a * b for a, b in zip(term.cotangent.correlation, common, strict=True))
        found.append((weight, size / (square * second) if square * second > 0.0 else 1.0, correlation))
    total = sum(weight for weight, _, _ in found) or 1.0
    ratio = sum(weight * size for weight, size, _ in found) / total
    columns = zip(*(correlation for _, _, correlation in found), strict=True)
    shares = [weight / total for weight, _, _ in found]
    return ratio, tuple(sum(s * a for s, a in zip(shares, column, strict=True)) for column in columns)


def _by_root(terms: Sequence[CotangentTerm]) -> dict[str, list[CotangentTerm]]:
    roots: dict[str, list[CotangentTerm]] = defaultdict(list)
    for index, term in enumerate(terms):
        roots[term.root or f"#{index}"].append(term)
    return roots


def merged(terms: Sequence[CotangentTerm]) -> list[CotangentTerm]:
    """Add the terms of each root, so that there is one term per root."""
    if len(terms) == 1:
        return list(terms)
    found = []
    for items in _by_root(terms).values():
        if len(items) == 1:
            found.append(items[0])
            continue
        slopes = [item.slope for item in items if item.slope is not None]
        slope = sum(slopes[1:], slopes[0]) + (len(items) - len(slopes)) if slopes else None
        if slope is None:
            first = items[0].cotangent
            grown = replace(first, energy=first.energy + 2.0 * math.log10(len(items)))
            found.append(replace(items[0], cotangent=grown, whole=None))
        else:
            values = next((item.values for item in items if item.values is not None), None)
            found.append(replace(items[0], slope=slope, values=values, whole=None))
    return found


def cotangent_of_term(term: CotangentTerm, signal: Signal) -> Cotangent:
    """Return the cotangent of one term, including its slope."""
    if term.slope is None or term.whole is not None:
        return term.whole or term.cotangent
    distribution, coherence = signal.distribution_at(""), None
    seen = distribution.in_common(term.slope)
    correlation = tuple(a * b for a, b in zip(term.cotangent.correlation, seen, strict=True))
    overlap, spread = term.cotangent.overlap, 0.0
    if signal.channels is None:
        second = expect(term.slope * term.slope)
    else:
        along = distribution.in_common(term.slope * distribution.values)
        layout = signal.channels, signal.sizes, [a * b for a, b in zip(term.cotangent.correlation, along, strict=True)]
        second, coherence = through_slope(term.cotangent.coherence, term.slope, (term.values, distribution.values), layout)
        spread, overlap = fluctuation.of_slope(overlap, term.slope, distribution, (signal.channels, signal.sizes))
    energy = term.cotangent.energy + math.log10(second) + fluctuation.shift(spread) if second > 0.0 else -math.inf
    variance = term.cotangent.variance + fluctuation.decades(spread)
    return Cotangent(energy, correlation, variance, term.cotangent.profile, term.cotangent.projected_out, coherence, overlap)
