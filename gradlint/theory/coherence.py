"""What a cotangent has in common with the tensor that it belongs to.

The weights of active units point along their input x, so that W^T sends what a cotangent has along phi(W x) back along x. Where
nothing takes it off, as in sums x + phi(W x) without a norm, it adds up coherently over layers and outgrows all else: no layer of
independent weights would do that. Two functionals close the recursion: a cotangent's product with the tensor, and with the ones
(Stein's lemma makes every other one of these). Their second moments are followed here, at one place of the tensor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from gradlint.theory.law import expect

if TYPE_CHECKING:
    from gradlint.theory.law import Array

_FEWEST = 4  # channels for which "two directions out of all" makes sense
_RANK = 1e-6  # of the Gram matrix of tensor and ones: a tensor that is nearly constant has one direction


@dataclass(frozen=True, slots=True)
class Source:
    """The tensor at which paths part: `moments` of the functionals (1, each summand) of its cotangent there."""

    name: str
    moments: Array


@dataclass(frozen=True, slots=True)
class Coherence:
    """Second moments of s = (g.1, g.h / rms h) / sqrt(n E g^2) for a cotangent g of a tensor h, summed over n channels.

    [[1, m], [m, 1]] for a cotangent that knows nothing of a tensor of mean m. `alike` is the correlation of s at two places that
    differ along each axis. `source` and `rows` say which part of s is a linear image of the functionals at a tensor farther on:
    two paths from there add their parts before they are squared.
    """

    moments: Array
    axis: int
    alike: tuple[float, ...]
    source: Source | None = None
    rows: Array = field(default_factory=lambda: np.zeros((2, 0)))


def gram(mean: float) -> Array:
    """Moments of a cotangent that knows nothing of a tensor of this mean over rms."""
    return np.array([[1.0, mean], [mean, 1.0]])


def _parts(moments: Array, basis: Array, count: int) -> tuple[Array, float]:
    """A cotangent as c0 + c1 h + rest: n times the moments of c, and E rest^2, both over E g^2."""
    inverse = np.linalg.pinv(basis, _RANK, hermitian=True)
    rank = float(np.trace(inverse @ basis))
    rest = (1.0 - float(np.trace(inverse @ moments)) / count) / (1.0 - rank / count)
    rest = min(max(rest, 0.0), 1.0 / (1.0 - rank / count))  # above 1 where it has less along them than by chance
    return inverse @ (moments - rest * basis) @ inverse, rest


def through_slope(
    own: Coherence | None, slope: Array, values: tuple[Array | None, Array], layout: tuple[int, Sequence[int], Sequence[float]]
) -> tuple[float, Coherence | None]:
    """E (slope g)^2 / E g^2, and the coherence of slope g, for a function of a Gaussian tensor.

    `values` are those of the function behind which `own` is known (None where it is not) and of the tensor before it; `layout` is
    the axis of the channels, the lengths of all axes and the correlations of the cotangent along them.
    """
    behind, before = values
    axis, sizes, alike = layout
    second, power = expect(slope * slope), expect(before * before)
    if not (second > 0.0 and power > 0.0) or sizes[axis] < _FEWEST:
        return second, None
    wanted = np.stack([slope, slope * before / math.sqrt(power)])
    whole = _products(wanted, wanted)
    known = own is not None and own.axis == axis and behind is not None and (scale := expect(behind * behind)) > 0.0
    if not known or own is None or behind is None:
        return second, Coherence(whole / second, axis, tuple(alike))
    basis = np.stack([np.ones_like(behind), behind / math.sqrt(scale)])
    first = _products(basis, basis)
    along, rest = _parts(own.moments, first, sizes[axis])
    bent = slope * basis
    factor = max(rest * second + float((along * _products(bent, bent)).sum()) / sizes[axis], second / sizes[axis])
    images = np.linalg.pinv(first, _RANK, hermitian=True) @ _products(basis, wanted)  # of the wanted functions in the basis
    moments = images.T @ own.moments @ images + whole - images.T @ first @ images
    return factor, Coherence(moments / factor, axis, own.alike, own.source, images.T @ own.rows / math.sqrt(factor))


def _products(left: Array, right: Array) -> Array:
    return np.array([[expect(a * b) for b in right] for a in left])


@dataclass(frozen=True, slots=True)
class Taps:
    """What a kernel visits along one axis: `reads` inputs for each output, `lands` outputs from each input of `size`."""

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
    """What a layer of random weights W makes of g: |W^T g|^2 over what independent weights would, and the coherence with x.

    `share` of the variance of z = W x + b is that of W x, which is what z tells of it; `mean` is that of x over rms. (W^T g).x is
    g.(W x), and all of W^T g that is not along x comes from weights that neither z nor g knows. `layout` is the axis that W sums
    over, the lengths of the axes of x, and what two places have in common along each of the cotangent and of x together.
    """
    axis, sizes, both = layout
    if sizes[axis] < _FEWEST:
        return 1.0, None
    if own is not None and own.axis != axis:
        own = None
    reads, lands = math.prod(tap.reads for tap in taps), math.prod(tap.lands for tap in taps)
    before = own.moments[1, 1] if own is not None else 1.0
    alike = list(own.alike) if own is not None else [0.0] * len(sizes)
    together = math.prod(1.0 + (tap.lands - 1.0) * alike[tap.axis] for tap in taps)
    along = float(share * before * together / reads)
    total = along + max(1.0 - share * together / reads, 0.0)
    factor = max(1.0 + (total - 1.0) / sizes[axis], 1.0 / sizes[axis])
    for tap in taps:
        alike[tap.axis] = _smoothed(alike[tap.axis], tap)
    anew = {tap.axis: _smoothed(both[tap.axis], tap) for tap in taps}
    weight = along / total if total > 0.0 else 0.0
    mixed = tuple(weight * a + (1.0 - weight) * anew.get(index, both[index]) for index, a in enumerate(alike))
    direction = np.array([mean, 1.0])
    moments = total * np.outer(direction, direction)
    moments[0, 0] += 1.0 - mean * mean
    if own is None:
        return factor, Coherence(moments / factor, axis, mixed)
    image = math.sqrt(max(share, 0.0) / (reads * lands)) * together / math.sqrt(factor) * own.rows[1]
    return factor, Coherence(moments / factor, axis, mixed, own.source, np.outer(direction, image))


def _smoothed(alike: float, tap: Taps) -> float:
    """Correlation of sums over taps: what all places share adds up as it did, what neighbours do not averages out."""
    if tap.size < 2:
        return alike
    shared = (1.0 + (tap.size - 1.0) * alike) / tap.size
    grown = shared * tap.lands / (1.0 + (tap.lands - 1.0) * alike)
    return min(max((grown * tap.size - 1.0) / (tap.size - 1.0), 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class Summand:
    """A summand: its rms over that of the sum, its mean over its rms as it enters the sum, and the sign that it enters with."""

    size: float
    mean: float
    sign: float


def at_sum(
    own: Coherence | None, name: str, layout: tuple[int, Sequence[int], Sequence[float]], mean: float, summands: Sequence[Summand]
) -> list[Coherence | None]:
    """Coherence of the cotangent of a sum with each summand; these have nothing in common but their means."""
    axis, sizes, alike = layout
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
            Coherence(rows @ source.moments @ rows.T, axis, own.alike if own is not None else tuple(alike), source, rows)
        )
    return found


def added(parts: Sequence[tuple[float, Coherence | None]], mean: float, count: int) -> tuple[float, Coherence | None]:
    """Coherence of a sum of cotangents of one tensor, each with its share of the energies; first, its energy over their sum."""
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
    source = known[0][1].source
    rows = np.zeros((2, source.moments.shape[0])) if source is not None else np.zeros((2, 0))
    for index, (share, own) in enumerate(known):
        if source is not None and own.source is not None and own.source.name == source.name:
            rows = rows + math.sqrt(share) * own.rows
        for other, second in known[index + 1 :]:
            if own.source is not None and second.source is not None and own.source.name == second.source.name:
                half = math.sqrt(share * other) * own.rows @ own.source.moments @ second.rows.T
                crossed += half + half.T
    factor = 1.0 + float(np.trace(np.linalg.pinv(basis, _RANK, hermitian=True) @ crossed)) / count
    factor = max(factor, 1e-6)
    heard = [max(share * float(own.moments[1, 1]), 1e-300) for share, own in known]
    alike = tuple(
        sum(w * a for w, a in zip(heard, column, strict=True)) / sum(heard)
        for column in zip(*(own.alike for _, own in known), strict=True)
    )
    return factor, Coherence((moments + crossed) / factor, axis, alike, source, rows / math.sqrt(factor))
