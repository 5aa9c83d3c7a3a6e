"""Coherence: the component of a cotangent along the tensor that it belongs to.

The weights of active units point along their input x, so that W^T maps the component of a cotangent along phi(W x) to a component
along x. In residual sums x + phi(W x) without a normalization, nothing removes this component. It adds up coherently over layers
and grows faster than the rest, which the usual assumption of independent weights in the backward pass misses. The recursion is
closed by two functionals of a cotangent: its product with the tensor and its sum over channels. By Stein's lemma all others
follow from these. This module propagates their second moments at one position of the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gradlint.theory.gaussian.pointwise_of_gaussian import expect, products

if TYPE_CHECKING:
    from gradlint.theory.gaussian.pointwise_of_gaussian import Array

_FEWEST = 4  # smallest number of channels for which two directions are a small part of all
_RANK = 1e-6  # distance of the cosine from 1 below which the tensor is proportional to a constant


@dataclass(frozen=True, slots=True)
class Source:
    """The sum at which paths join: `moments` are those of the products of its cotangent with (1, each summand)."""

    name: str
    moments: Array


@dataclass(frozen=True, slots=True)
class Coherence:
    """Second moments of s = (g.1, g.h / rms h) / sqrt(n E g^2) for a cotangent g of a tensor h, summed over n channels.

    Attributes:
        moments: The 2 x 2 matrix E s s^T. It is [[1, m], [m, 1]] for a g that is independent of h, where m is the mean of h over
            its root mean square.
        axis: The axis of the channels.
        correlation: For each axis, the correlation of s at two positions that differ along it.
        source: The sum, later in the network, on whose functionals a part of s depends linearly. None if there is none.
        rows: The matrix of that linear map. Two paths to one source add these parts before they are squared.
    """

    moments: Array
    axis: int
    correlation: tuple[float, ...]
    source: Source | None = None
    rows: Array = field(default_factory=lambda: np.zeros((2, 0)))


def gram(mean: float) -> Array:
    """Return the moments of a cotangent that is independent of a tensor of this mean over root mean square."""
    return np.array([[1.0, mean], [mean, 1.0]])


def _independent(basis: Array) -> bool:
    return bool(abs(basis[0, 1]) < 1.0 - _RANK)


def _inverse(basis: Array) -> Array:
    """Return the inverse, or pseudo-inverse, of a Gram matrix of two unit vectors."""
    cosine = float(basis[0, 1])
    if not _independent(basis):
        return 0.25 * np.array([[1.0, math.copysign(1.0, cosine)], [math.copysign(1.0, cosine), 1.0]])
    return np.array([[1.0, -cosine], [-cosine, 1.0]]) / (1.0 - cosine * cosine)


def _parts(moments: Array, basis: Array, count: int) -> tuple[Array, float]:
    """Decompose a cotangent g as c0 + c1 h + rest; return n E c c^T and E rest^2, both over E g^2."""
    inverse = _inverse(basis)
    rank = 2.0 if _independent(basis) else 1.0
    rest = (1.0 - float(np.trace(inverse @ moments)) / count) / (1.0 - rank / count)
    rest = min(max(rest, 0.0), 1.0 / (1.0 - rank / count))  # above 1 if g has less along them than an independent vector
    return inverse @ (moments - rest * basis) @ inverse, rest


def through_slope(
    own: Coherence | None, slope: Array, values: tuple[Array | None, Array], layout: tuple[int, Sequence[int], Sequence[float]]
) -> tuple[float, Coherence | None]:
    """Return E (slope g)^2 / E g^2 and the coherence of slope * g, for a function of a Gaussian tensor.

    Args:
        own: Coherence of g with the output of the function.
        slope: Derivative of the function on the grid.
        values: Values on the grid of the output of the function (None if unknown) and of its input.
        layout: The axis of the channels, the length of each axis, and the correlation along each of slope * g times the tensor.
    """
    output, before = values
    axis, sizes, correlation = layout
    second, power = expect(slope * slope), expect(before * before)
    if not (second > 0.0 and power > 0.0) or sizes[axis] < _FEWEST:
        return second, None
    functions = [slope, slope * (before / math.sqrt(power))]
    known = own is not None and own.axis == axis and output is not None and (scale := expect(output * output)) > 0.0
    if not known or own is None or output is None:
        return second, Coherence(products(functions) / second, axis, tuple(correlation))
    tensor = output / math.sqrt(scale)
    found = products([*functions, np.ones_like(tensor), tensor, slope * tensor])
    whole, first, bent = found[:2, :2], found[2:4, 2:4], found[::4, ::4]  # bent: the basis (1, tensor) times the slope
    along, rest = _parts(own.moments, first, sizes[axis])
    factor = max(rest * second + float((along * bent).sum()) / sizes[axis], second / sizes[axis])
    images = _inverse(first) @ found[2:4, :2]  # coordinates of the functions in the basis
    moments = images.T @ own.moments @ images + whole - images.T @ first @ images
    return factor, Coherence(moments / factor, axis, own.correlation, own.source, images.T @ own.rows / math.sqrt(factor))


@dataclass(frozen=True, slots=True)
class Taps:
    """The taps of a kernel along one axis of length `size`: inputs read by each output, and outputs reached by each input."""

    axis: int
    reads: float
    lands: float
    size: int


def through_layer(
    own: Coherence | None,
    layout: tuple[int, Sequence[int], Sequence[float]],
    mean: float,
    share: float,
    taps: Sequence[Taps],
) -> tuple[float, Coherence | None]:
    """Return the factor on |W^T g|^2 relative to independent weights, and the coherence of W^T g with the input x.

    For z = W x + b, the component of W^T g along x is (W^T g).x = g.(W x). The other components come from weights that are
    independent of z and g.

    Args:
        own: Coherence of the cotangent g with z.
        layout: The axis that W sums over, the length of each axis of x, and for each axis the product of the correlations of g
            and of z.
        mean: Mean of x over its root mean square.
        share: Share of the variance of z that comes from W x.
        taps: The taps of the kernel along its axes.
    """
    axis, sizes, both = layout
    if sizes[axis] < _FEWEST:
        return 1.0, None
    if own is not None and own.axis != axis:
        own = None
    reads, lands = math.prod(tap.reads for tap in taps), math.prod(tap.lands for tap in taps)
    before = own.moments[1, 1] if own is not None else 1.0
    correlation = own.correlation if own is not None else both
    along = float(share * before * _together(correlation, taps) / reads)
    total = along + max(1.0 - share * _together(both, taps) / reads, 0.0)
    factor = max(1.0 + (total - 1.0) / sizes[axis], 1.0 / sizes[axis])
    weight = along / total if total > 0.0 else 0.0
    mixed = [weight * a + (1.0 - weight) * b for a, b in zip(correlation, both, strict=True)]
    if taps and total > 0.0:
        kept = share * before * lands / reads * _even(correlation, taps) + (1.0 - share) * _even(both, taps)
        for tap, value in _evened(correlation, taps, kept / total):
            mixed[tap.axis] = value
    direction = np.array([mean, 1.0])
    moments = total * np.outer(direction, direction)
    moments[0, 0] += 1.0 - mean * mean
    if own is None:
        return factor, Coherence(moments / factor, axis, tuple(mixed))
    image = math.sqrt(max(share, 0.0) / (reads * lands)) * _together(correlation, taps) / math.sqrt(factor) * own.rows[1]
    return factor, Coherence(moments / factor, axis, tuple(mixed), own.source, np.outer(direction, image))


def _together(correlation: Sequence[float], taps: Sequence[Taps]) -> float:
    """Return E (sum over the outputs that one input reaches)^2 over E (one output)^2."""
    return math.prod(1.0 + (tap.lands - 1.0) * correlation[tap.axis] for tap in taps)


def _even(correlation: Sequence[float], taps: Sequence[Taps]) -> float:
    """Return the share of the squares of outputs that is constant over positions, which a kernel passes on unchanged."""
    counts = [tap.size * tap.lands / tap.reads for tap in taps]
    return math.prod((1.0 + (count - 1.0) * correlation[tap.axis]) / count for tap, count in zip(taps, counts, strict=True))


def _evened(correlation: Sequence[float], taps: Sequence[Taps], kept: float) -> Iterator[tuple[Taps, float]]:
    """Yield the correlation along each axis such that the share `kept` is constant over positions; all axes change alike."""
    shares = [(1.0 + (tap.size - 1.0) * correlation[tap.axis]) / tap.size for tap in taps]
    change = (kept / math.prod(shares)) ** (1.0 / len(taps))
    for tap, share in zip(taps, shares, strict=True):
        yield (
            tap,
            min(max((share * change * tap.size - 1.0) / (tap.size - 1.0), 0.0), 1.0) if tap.size > 1 else correlation[tap.axis],
        )


@dataclass(frozen=True, slots=True)
class Summand:
    """A summand: its root mean square over that of the sum, its mean over its root mean square with its sign, and that sign."""

    size: float
    mean: float
    sign: float


def at_sum(
    own: Coherence | None, name: str, layout: tuple[int, Sequence[int], Sequence[float]], mean: float, summands: Sequence[Summand]
) -> list[Coherence | None]:
    """Return the coherence of the cotangent of a sum with each summand.

    Summands are uncorrelated except for their means.

    Args:
        own: Coherence of the cotangent with the sum.
        name: Name of the sum, as the `Source` of the result.
        layout: The axis of the channels, the length of each axis, and the correlation along each.
        mean: Mean of the sum over its root mean square.
        summands: The summands.
    """
    axis, sizes, correlation = layout
    if sizes[axis] < _FEWEST or any(abs(item.mean) > 1.0 for item in summands):
        return [None] * len(summands)
    moments = own.moments if own is not None and own.axis == axis else gram(mean)
    along, rest = _parts(moments, gram(mean), sizes[axis])
    total = sum(item.size * item.mean for item in summands)
    views = [[1.0, mean]]  # mean products of (1, each summand) with (1, the sum)
    views += [[item.mean, item.size + item.mean * (total - item.size * item.mean)] for item in summands]
    ones = np.array([1.0, *(item.mean for item in summands)])
    among = np.outer(ones, ones)
    np.fill_diagonal(among, 1.0)
    seen = np.array(views)
    source = Source(name, seen @ along @ seen.T + rest * among)
    found: list[Coherence | None] = []
    for index, item in enumerate(summands):
        rows = np.zeros((2, len(summands) + 1))
        rows[0, 0], rows[1, index + 1] = item.sign, 1.0
        found.append(
            Coherence(
                rows @ source.moments @ rows.T, axis, own.correlation if own is not None else tuple(correlation), source, rows
            )
        )
    return found


def added(
    parts: Sequence[tuple[float, Coherence | None]], mean: float, layout: tuple[int, Sequence[int]]
) -> tuple[float, Coherence | None]:
    """Return the energy of a sum of cotangents of one tensor, over the sum of their energies, and its coherence.

    Args:
        parts: The share of the energy and the coherence of each cotangent.
        mean: Mean of the tensor over its root mean square.
        layout: The axis of the channels, and the length of each axis.
    """
    channels, sizes = layout
    count = sizes[channels]
    known = [(share, own) for share, own in parts if own is not None]
    if not known or count < _FEWEST:
        return 1.0, None
    axis = known[0][1].axis
    if any(own.axis != axis for _, own in known):
        return 1.0, None
    basis = gram(mean)
    unknown = 1.0 - sum(share for share, _ in known)
    moments = unknown * basis + sum(share * own.moments for share, own in known)
    crossed = np.zeros((2, 2))
    heard = [(max(share * float(own.moments[1, 1]), 1e-300), own.correlation) for share, own in known]
    source = known[0][1].source
    rows = np.zeros((2, source.moments.shape[0])) if source is not None else np.zeros((2, 0))
    for index, (share, own) in enumerate(known):
        if _same(source, own.source):
            rows = rows + math.sqrt(share) * own.rows
        for other, second in known[index + 1 :]:
            if own.source is not None and _same(own.source, second.source):
                half = math.sqrt(share * other) * own.rows @ own.source.moments @ second.rows.T
                crossed += half + half.T
                even = math.sqrt(heard[index][0] * other * float(second.moments[1, 1])) / max(float(half[1, 1]), 1e-300)
                heard.append((max(2.0 * float(half[1, 1]), 0.0), _crossed(own, second, even, sizes)))
    factor = max(1.0 + float(np.trace(_inverse(basis) @ crossed)) / count, 1e-6)
    whole = sum(weight for weight, _ in heard)
    columns = zip(*(correlation for _, correlation in heard), strict=True)
    correlation = tuple(sum(weight * a for (weight, _), a in zip(heard, column, strict=True)) / whole for column in columns)
    return factor, Coherence((moments + crossed) / factor, axis, correlation, source, rows / math.sqrt(factor))


def _crossed(left: Coherence, right: Coherence, ratio: float, sizes: Sequence[int]) -> tuple[float, ...]:
    """Return the correlation along each axis of the product of two coherences of one source.

    `ratio` is the product of their standard deviations over the product's own. The parts that are constant over positions are
    common to both, so a larger share of the product is constant than of each factor.
    """
    correlation = [max(a, b) for a, b in zip(left.correlation, right.correlation, strict=True)]
    axes = [index for index, value in enumerate(correlation) if value > 0.0 and index != left.axis and sizes[index] > 1]
    shares = [
        [(1.0 + (sizes[index] - 1.0) * own[index]) / sizes[index] for index in axes]
        for own in (left.correlation, right.correlation)
    ]
    highest = [max(pair) for pair in zip(*shares, strict=True)]
    even = min(ratio * math.sqrt(math.prod(shares[0]) * math.prod(shares[1])), 1.0)
    change = max(even / math.prod(highest), 1.0) ** (1.0 / max(len(axes), 1))
    for index, share in zip(axes, highest, strict=True):
        correlation[index] = min((share * change * sizes[index] - 1.0) / (sizes[index] - 1.0), 1.0)
    return tuple(correlation)


def _same(left: Source | None, right: Source | None) -> bool:
    return left is not None and right is not None and left.name == right.name
