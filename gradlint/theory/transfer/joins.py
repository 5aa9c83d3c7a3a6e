"""Transfer rules of concatenation and dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gradlint.graph import Node
from gradlint.ops import Kind
from gradlint.theory.gaussian.dispersion import in_sum
from gradlint.theory.gaussian.pointwise_of_gaussian import Distribution, expect
from gradlint.theory.transfer.profiles import FLAT, along, mixed, replaced, values_along, without
from gradlint.theory.transfer.rule import (
    TRANSFER,
    Call,
    OperandCotangents,
    Part,
    TransferResult,
    as_gaussian,
    constant_part,
    log10,
    mean_of,
    mean_square,
    neighbor_correlation_in,
    part_of,
    scaled,
    single_operand,
)
from gradlint.theory.transfer.signal import NOTHING, Cotangent, CotangentTerm, Signal, joined, varying

if TYPE_CHECKING:
    from gradlint.theory.gaussian.pointwise_of_gaussian import Array
    from gradlint.theory.transfer.profiles import Profile


_SAME = 1e-3  # mean squared difference below which two distributions of unit level count as equal
_EVEN = 0.05  # decades between the levels of parts that share one distribution
_NOISE = 4e-3  # decades^2 that each concatenation adds, because its parts differ in more than their level
_LONGEST = 1 << 20  # elements of an axis along which the profile of a concatenation is kept


@TRANSFER.rule(Kind.CONCAT)
def concat(call: Call) -> TransferResult | None:
    """Return the transfer of a concatenation or stack.

    Its second moment is the mean over the parts, weighted by size. Each part gets its own slice of the cotangent.
    """
    found = call.signals
    if not found:
        return None
    first = found[0][1]
    axis = axis_of(call.node, ("dim", "axis"), len(call.sizes), 0)
    if len(first.sizes) != len(call.sizes):
        return _stacked(call, found, axis)
    pieces = _pieces(call, axis)
    parts, lengths = [part for _, part, _ in pieces], [length for _, _, length in pieces]
    whole = sum(lengths)
    output = _side_by_side(parts, [length / whole for length in lengths], as_gaussian(first, sizes=call.sizes), axis)
    if whole == call.sizes[axis]:
        output = replace(output, profile={**output.profile, **_lengthwise(parts, lengths, axis)})
        output = replace(output, channel_variance=_channel_variance([signal for _, signal in found], output, axis))
    if len(pieces) == len(found):
        output = replace(output, distribution=_one_distribution(call, output, [signal for _, signal in found], axis))

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        for term in terms if output.distribution is not None else [CotangentTerm(joined(terms, output))]:
            cotangent, start = term.cotangent, 0
            values = values_along(cotangent.profile, axis, whole)
            for slot, _, length in pieces:
                piece = values[start : start + length]
                start += length
                if slot is not None:
                    profile = replaced(cotangent.profile, axis, piece)
                    share = float(piece.sum()) / max(whole, call.sizes[axis])
                    own = scaled(cotangent, share, variance=_NOISE, profile=profile)
                    yield slot, CotangentTerm(own, term.root, term.slope, term.values)

    return TransferResult(output, back)


def _channel_variance(parts: Sequence[Signal], output: Signal, axis: int) -> Array | None:
    """Return the variance of each channel over samples and positions, over its mean, for a concatenation of channels."""
    if axis != 1 or output.sizes[axis] != sum(part.sizes[axis] for part in parts) or not math.isfinite(output.level):
        return None
    others = [other for other in range(len(output.sizes)) if other != axis]
    pieces = []
    for part in parts:
        own = part.channel_variance if part.channel_variance is not None else values_along(part.profile, axis, part.sizes[axis])
        pieces.append(own * varying(part.sizes, part.shared, others) * 10.0 ** (part.log_q - output.log_q))
    values = np.concatenate(pieces)
    mean = float(values.mean())
    return values / mean if 0.0 < mean < math.inf else None


def _one_distribution(call: Call, output: Signal, parts: Sequence[Signal], axis: int) -> Distribution | None:
    """Return the common distribution of all parts, or None if they differ. Concatenated ReLU outputs stay ReLU outputs."""
    distributions = [part.distribution for part in parts]
    first = distributions[0]
    if first is None or not all(math.isfinite(part.level) for part in (output, *parts)):
        return None
    shape = first.values * 10.0 ** (first.shift - parts[0].level)
    for distribution, part in zip(distributions, parts, strict=True):
        if distribution is None or abs(part.level - output.level) > _EVEN:
            return None
        if expect((distribution.values * 10.0 ** (distribution.shift - part.level) - shape) ** 2) > _SAME:
            return None
    shares = [part.sizes[axis] / call.sizes[axis] for part in parts]
    correlation = [
        sum(
            share * distribution.correlation[a] * (share if a == axis else 1.0)
            for share, distribution in zip(shares, distributions, strict=True)
            if distribution is not None
        )
        for a in range(len(call.sizes))
    ]
    made = replace(first, base=call.node.id, values=shape, shift=output.level, correlation=tuple(correlation), sphere=0)
    return replace(made, chance=output.chance, neighbor_correlation=output.neighbor_correlation)


def _pieces(call: Call, axis: int) -> list[tuple[int | None, Part, int]]:
    """Return input slot, moments and length of each part in order. Weights fill the slots that carry no signal."""
    rank = len(call.sizes)
    weights = iter([weight for weight in call.node.weights.values() if len(weight.shape) == rank])
    pieces: list[tuple[int | None, Part, int]] = []
    for slot, signal in enumerate(call.operands):
        weight = None if signal is not None else next(weights, None)
        if signal is not None and len(signal.sizes) == rank:
            pieces.append((slot, part_of(signal), signal.sizes[axis]))
        elif weight is not None:
            spans = [size > 1 and index != 0 for index, size in enumerate(weight.shape)]
            pieces.append((None, constant_part(mean_square(weight), mean_of(weight), spans), weight.shape[axis]))
    return pieces


def _side_by_side(parts: Sequence[Part], shares: Sequence[float], layout: Signal, axis: int) -> Signal:
    """Return the signal of a concatenation of parts, given the share of the elements of each."""
    logs = [part.log_q + log10(share) for part, share in zip(parts, shares, strict=True)]
    top = max(logs)
    if not math.isfinite(top):
        return as_gaussian(layout, level=0.5 * top)
    sizes = [10.0 ** (value - top) for value in logs]
    second = sum(sizes)
    roots = [math.sqrt(size * share) * part.mean for size, share, part in zip(sizes, shares, parts, strict=True)]
    shared = [
        sum(size * part.shared[a] for size, part in zip(sizes, parts, strict=True)) / second for a in range(len(layout.shared))
    ]
    inside = sum(size * share * part.shared[axis] for size, share, part in zip(sizes, shares, parts, strict=True))
    across = sum(roots) ** 2 - sum(root * root for root in roots)
    shared[axis] = min(max((inside + across) / second, 0.0), 1.0)
    return as_gaussian(
        layout,
        level=0.5 * (top + math.log10(second)),
        mean=sum(roots) / math.sqrt(second),
        shared=tuple(shared),
        variance=sum(size**2 * part.variance for size, part in zip(sizes, parts, strict=True)) / second**2,
        neighbor_correlation=neighbor_correlation_in(list(zip(sizes, parts, strict=True))),
        chance=in_sum((size * max(1.0 - part.shared[0], 0.0), part.chance) for size, part in zip(sizes, parts, strict=True)),
        profile=without(mixed([(size / second, part.profile) for size, part in zip(sizes, parts, strict=True)]), (axis,)),
    )


def _lengthwise(parts: Sequence[Part], lengths: Sequence[int], axis: int) -> Profile:
    """Return the profile along the axis of a concatenation; a flat one for an axis that is too long to be kept."""
    top = max(part.log_q for part in parts)
    if not math.isfinite(top) or sum(lengths) > _LONGEST:
        return FLAT
    pieces = [
        10.0 ** (part.log_q - top) * values_along(part.profile, axis, length) for part, length in zip(parts, lengths, strict=True)
    ]
    return along(axis, np.concatenate(pieces))


def _stacked(call: Call, found: Sequence[tuple[int, Signal]], axis: int) -> TransferResult | None:
    first = found[0][1]
    if len(first.sizes) + 1 != len(call.sizes) or any(len(s.shared) != len(first.shared) for _, s in found):
        return None
    share = [1.0 / len(found)] * len(found)
    layout = as_gaussian(first, sizes=call.sizes, shared=(*first.shared[:axis], 0.0, *first.shared[axis:]), channels=None)
    parts = [
        replace(part_of(s), shared=(*s.shared[:axis], s.mean**2, *s.shared[axis:]), profile=FLAT, fixed=NOTHING) for _, s in found
    ]
    output = _side_by_side(parts, share, layout, axis)

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        cotangent = joined(terms, output)
        correlation = (*cotangent.correlation[:axis], *cotangent.correlation[axis + 1 :])
        for slot, _ in found:
            yield slot, CotangentTerm(scaled(cotangent, 1.0 / len(found), correlation))

    return TransferResult(output, back)


def axis_of(node: Node, names: Sequence[str], rank: int, default: int) -> int:
    """Return an axis that is given as an attribute, as a nonnegative index."""
    value = next((node.attrs[name] for name in names if isinstance(node.attrs.get(name), int)), default)
    return int(value) % max(rank, 1)


@TRANSFER.rule(Kind.DROPOUT)
def dropout(call: Call) -> TransferResult | None:
    """Return the transfer of dropout: q grows by 1/(1-p), and shared second moments stay the same (Schoenholz et al. 2017)."""
    found = call.signals
    if not found:
        return None
    slot, signal = found[0]
    active = bool(call.node.attrs.get("training", call.node.attrs.get("train", call.training)))
    p = float(call.node.attrs.get("p", 0.0)) if active else 0.0
    if not 0.0 < p < 1.0:
        return TransferResult(signal, lambda terms: ((slot, term) for term in terms))
    keep = 1.0 - p
    output = as_gaussian(
        signal,
        level=signal.level - 0.5 * math.log10(keep),
        mean=signal.mean * math.sqrt(keep),
        shared=tuple(share * keep for share in signal.shared),
        profile=signal.profile,
    )

    def back(cotangent: Cotangent) -> Cotangent:
        return replace(
            cotangent, energy=cotangent.energy - math.log10(keep), correlation=tuple(a * keep for a in cotangent.correlation)
        )

    return TransferResult(output, single_operand(slot, output, back))
