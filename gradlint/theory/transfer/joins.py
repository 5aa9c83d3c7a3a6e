"""Transfer rules of concatenation and dropout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gradlint.graph import Node
from gradlint.theory.gaussian.dispersion import in_sum
from gradlint.theory.gaussian.pointwise_of_gaussian import Distribution, expect
from gradlint.theory.transfer.profiles import FLAT, along, mixed, replaced, values_along, without
from gradlint.theory.transfer.rule import (
    Call,
    Moved,
    Part,
    Pulls,
    constant_part,
    log10,
    mean_of,
    mean_square,
    near_in,
    one,
    part_of,
    plain,
    scaled,
)
from gradlint.theory.transfer.signal import NOTHING, Cotangent, Pull, Signal, joined, varying

if TYPE_CHECKING:
    from gradlint.theory.gaussian.pointwise_of_gaussian import Array
    from gradlint.theory.transfer.profiles import Profile


_SAME = 1e-3  # mean square of what two distributions of unit level differ by, where they count as one
_EVEN = 0.05  # decades between the levels of such parts: the profile knows them, the distribution does not
_NOISE = 4e-3  # decades^2 that each concatenation adds: its parts differ in more than their size


def concat(call: Call) -> Moved | None:
    """Tensors side by side: second moments average by size, and each part gets its own slice of the cotangent."""
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
    behind = _side_by_side(parts, [length / whole for length in lengths], plain(first, sizes=call.sizes), axis)
    if whole == call.sizes[axis]:
        behind = replace(behind, profile={**behind.profile, **_lengthwise(parts, lengths, axis)})
        behind = replace(behind, inside=_inside([signal for _, signal in found], behind, axis))
    if len(pieces) == len(found):
        behind = replace(behind, distribution=_one_distribution(call, behind, [signal for _, signal in found], axis))

    def back(pulls: Sequence[Pull]) -> Pulls:
        for pull in pulls if behind.distribution is not None else [Pull(joined(pulls, behind))]:
            cotangent, start = pull.cotangent, 0
            values = values_along(cotangent.profile, axis, whole)
            for slot, _, length in pieces:
                piece = values[start : start + length]
                start += length
                if slot is not None:
                    profile = replaced(cotangent.profile, axis, piece)
                    share = float(piece.sum()) / max(whole, call.sizes[axis])
                    own = scaled(cotangent, share, variance=_NOISE, profile=profile)
                    yield slot, Pull(own, pull.root, pull.slope, pull.values)

    return Moved(behind, back)


def _inside(parts: Sequence[Signal], behind: Signal, axis: int) -> Array | None:
    """Variance of each channel around its own mean, for parts that share unlike amounts over samples and positions."""
    if axis != 1 or behind.sizes[axis] != sum(part.sizes[axis] for part in parts) or not math.isfinite(behind.level):
        return None
    others = [other for other in range(len(behind.sizes)) if other != axis]
    pieces = []
    for part in parts:
        own = part.inside if part.inside is not None else values_along(part.profile, axis, part.sizes[axis])
        pieces.append(own * varying(part.sizes, part.shared, others) * 10.0 ** (part.log_q - behind.log_q))
    values = np.concatenate(pieces)
    mean = float(values.mean())
    return values / mean if 0.0 < mean < math.inf else None


def _one_distribution(call: Call, behind: Signal, parts: Sequence[Signal], axis: int) -> Distribution | None:
    """The distribution of parts that all have the same one: rectified units stay rectified, whichever branch they come from."""
    distributions = [part.distribution for part in parts]
    first = distributions[0]
    if first is None or not all(math.isfinite(part.level) for part in (behind, *parts)):
        return None
    shape = first.values * 10.0 ** (first.shift - parts[0].level)
    for distribution, part in zip(distributions, parts, strict=True):
        if distribution is None or abs(part.level - behind.level) > _EVEN:
            return None
        if expect((distribution.values * 10.0 ** (distribution.shift - part.level) - shape) ** 2) > _SAME:
            return None
    shares = [part.sizes[axis] / call.sizes[axis] for part in parts]
    alike = [
        sum(
            share * distribution.alike[a] * (share if a == axis else 1.0)
            for share, distribution in zip(shares, distributions, strict=True)
            if distribution is not None
        )
        for a in range(len(call.sizes))
    ]
    made = replace(first, base=call.node.id, values=shape, shift=behind.level, alike=tuple(alike), sphere=0)
    return replace(made, chance=behind.chance, near=behind.near)


def _pieces(call: Call, axis: int) -> list[tuple[int | None, Part, int]]:
    """Slot, moments and length of each part in order; weights stand in the slots that carry no signal."""
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
    """The mixture of parts that take these shares of the elements."""
    logs = [part.log_q + log10(share) for part, share in zip(parts, shares, strict=True)]
    top = max(logs)
    if not math.isfinite(top):
        return plain(layout, level=0.5 * top)
    sizes = [10.0 ** (value - top) for value in logs]
    second = sum(sizes)
    roots = [math.sqrt(size * share) * part.mean for size, share, part in zip(sizes, shares, parts, strict=True)]
    shared = [
        sum(size * part.shared[a] for size, part in zip(sizes, parts, strict=True)) / second for a in range(len(layout.shared))
    ]
    inside = sum(size * share * part.shared[axis] for size, share, part in zip(sizes, shares, parts, strict=True))
    across = sum(roots) ** 2 - sum(root * root for root in roots)
    shared[axis] = min(max((inside + across) / second, 0.0), 1.0)
    return plain(
        layout,
        level=0.5 * (top + math.log10(second)),
        mean=sum(roots) / math.sqrt(second),
        shared=tuple(shared),
        variance=sum(size**2 * part.variance for size, part in zip(sizes, parts, strict=True)) / second**2,
        near=near_in(list(zip(sizes, parts, strict=True))),
        chance=in_sum((size * max(1.0 - part.shared[0], 0.0), part.chance) for size, part in zip(sizes, parts, strict=True)),
        profile=without(mixed([(size / second, part.profile) for size, part in zip(sizes, parts, strict=True)]), (axis,)),
    )


def _lengthwise(parts: Sequence[Part], lengths: Sequence[int], axis: int) -> Profile:
    """The profile along the axis of a concatenation."""
    top = max(part.log_q for part in parts)
    if not math.isfinite(top):
        return FLAT
    pieces = [
        10.0 ** (part.log_q - top) * values_along(part.profile, axis, length) for part, length in zip(parts, lengths, strict=True)
    ]
    return along(axis, np.concatenate(pieces))


def _stacked(call: Call, found: Sequence[tuple[int, Signal]], axis: int) -> Moved | None:
    first = found[0][1]
    if len(first.sizes) + 1 != len(call.sizes) or any(len(s.shared) != len(first.shared) for _, s in found):
        return None
    share = [1.0 / len(found)] * len(found)
    layout = plain(first, sizes=call.sizes, shared=(*first.shared[:axis], 0.0, *first.shared[axis:]), channels=None)
    parts = [
        replace(part_of(s), shared=(*s.shared[:axis], s.mean**2, *s.shared[axis:]), profile=FLAT, fixed=NOTHING) for _, s in found
    ]
    behind = _side_by_side(parts, share, layout, axis)

    def back(pulls: Sequence[Pull]) -> Pulls:
        cotangent = joined(pulls, behind)
        alike = (*cotangent.alike[:axis], *cotangent.alike[axis + 1 :])
        for slot, _ in found:
            yield slot, Pull(scaled(cotangent, 1.0 / len(found), alike))

    return Moved(behind, back)


def axis_of(node: Node, names: Sequence[str], rank: int, default: int) -> int:
    """An axis given as an attribute, counted from the front."""
    value = next((node.attrs[name] for name in names if isinstance(node.attrs.get(name), int)), default)
    return int(value) % max(rank, 1)


def dropout(call: Call) -> Moved | None:
    """Zeros at random: q grows by 1/(1-p), what elements share does not."""
    found = call.signals
    if not found:
        return None
    slot, signal = found[0]
    active = bool(call.node.attrs.get("training", call.node.attrs.get("train", call.training)))
    p = float(call.node.attrs.get("p", 0.0)) if active else 0.0
    if not 0.0 < p < 1.0:
        return Moved(signal, lambda pulls: ((slot, pull) for pull in pulls))
    keep = 1.0 - p
    behind = plain(
        signal,
        level=signal.level - 0.5 * math.log10(keep),
        mean=signal.mean * math.sqrt(keep),
        shared=tuple(share * keep for share in signal.shared),
        profile=signal.profile,
    )

    def back(cotangent: Cotangent) -> Cotangent:
        return replace(cotangent, energy=cotangent.energy - math.log10(keep), alike=tuple(a * keep for a in cotangent.alike))

    return Moved(behind, one(slot, behind, back))
