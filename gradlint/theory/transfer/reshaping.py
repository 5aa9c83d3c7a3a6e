"""Transfer rules of operators that reorder, copy or select elements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlint.graph import Node
from gradlint.theory.transfer.profiles import FLAT, renumbered, replaced, without
from gradlint.theory.transfer.rule import (
    TRANSFER,
    Call,
    OperandCotangents,
    TransferResult,
    as_gaussian,
    log10,
    part_of,
    scaled,
    single_operand,
    total,
)
from gradlint.theory.transfer.selection import padding, taken
from gradlint.theory.transfer.signal import NOTHING, Cotangent, CotangentTerm, Signal, averaged, coherent_sum, joined

if TYPE_CHECKING:
    from gradlint.theory.gaussian.pointwise_of_gaussian import Array
    from gradlint.theory.transfer.profiles import Profile

_CHOSEN = 0.05  # decades^2 that a condition adds, because it may select nearly all elements or nearly none
_SPREAD = 0.01  # decades^2 that a copy adds, because its use of the signal is inferred from sizes alone


@TRANSFER.rule("reshape", "cast")
def reshape(call: Call) -> TransferResult | None:
    """Return the transfer of a view, permutation, split or expansion."""
    found = call.signals
    if not found:
        return None
    slot, signal = found[0]
    axes = permutation(call.node, len(signal.sizes))
    if axes is not None and tuple(signal.sizes[axis] for axis in axes) == call.sizes:
        return _permuted(call, slot, signal, axes)
    if signal.size == math.prod(call.sizes):
        ordered = _by_size(signal.sizes, call.sizes) if axes is None and _permutes(call.node) else None
        return _permuted(call, slot, signal, ordered) if ordered else _viewed(call, slot, signal)
    if math.prod(call.sizes) > signal.size:
        return _expanded(call, slot, signal)
    return select(call)


def permutation(node: Node, rank: int) -> tuple[int, ...] | None:
    """Return the axes of the input in the order of the output, or None if the attributes do not give it."""
    attrs = node.attrs
    name = str(attrs.get("name", "")).lower()
    order = attrs.get("dims", attrs.get("perm")) if name in {"permute", "transpose", ""} else None
    if isinstance(order, (tuple, list)) and len(order) == rank and all(isinstance(item, int) for item in order):
        return tuple(axis % rank for axis in order) if sorted(axis % rank for axis in order) == list(range(rank)) else None
    first, second = attrs.get("dim0", attrs.get("axis0")), attrs.get("dim1", attrs.get("axis1"))
    if name in {"t", "mt", "h", "mh", "adjoint"} and rank >= 2:
        first, second = rank - 2, rank - 1
    if not isinstance(first, int) or not isinstance(second, int) or rank == 0:
        return None
    axes = list(range(rank))
    axes[first % rank], axes[second % rank] = axes[second % rank], axes[first % rank]
    return tuple(axes)


def _permutes(node: Node) -> bool:
    return str(node.attrs.get("name", "")).lower() in {"permute", "transpose", "movedim", "moveaxis", "swapaxes", "swapdims"}


def _by_size(sizes: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...] | None:
    """Return the order of axes that gives these sizes, or None if two sizes are equal."""
    return (
        tuple(sizes.index(size) for size in wanted) if len(set(sizes)) == len(sizes) and sorted(sizes) == sorted(wanted) else None
    )


def _permuted(call: Call, slot: int, signal: Signal, axes: Sequence[int]) -> TransferResult:
    distribution = signal.distribution
    if distribution is not None:
        distribution = replace(
            distribution,
            base=f"{distribution.base}|{call.node.id}",
            correlation=tuple(distribution.correlation[axis] for axis in axes),
        )
    channels = axes.index(signal.channels) if signal.channels is not None and signal.channels in axes else None
    shared = tuple(signal.shared[axis] for axis in axes)
    profile = renumbered(signal.profile, axes.index)
    fixed = {tuple(sorted(axes.index(axis) for axis in over)): share for over, share in signal.fixed.items()}
    output = replace(
        signal, sizes=call.sizes, shared=shared, channels=channels, distribution=distribution, profile=profile, fixed=fixed
    )

    def back(cotangent: Cotangent) -> Cotangent:
        correlation = tuple(cotangent.correlation[axes.index(axis)] for axis in range(len(axes)))
        own = cotangent.coherence
        if own is not None:
            own = replace(
                own, axis=axes[own.axis], correlation=tuple(own.correlation[axes.index(axis)] for axis in range(len(axes)))
            )
        projected_out = {tuple(sorted(axes[axis] for axis in over)): share for over, share in cotangent.projected_out.items()}
        profile = renumbered(cotangent.profile, axes.__getitem__)
        return replace(cotangent, correlation=correlation, profile=profile, projected_out=projected_out, coherence=own)

    return TransferResult(output, single_operand(slot, output, back))


def _viewed(call: Call, slot: int, signal: Signal) -> TransferResult:
    groups = groups_of(signal.sizes, call.sizes)
    shared = regrouped(signal.sizes, signal.shared, groups, backwards=False)
    channels = next((new[0] for old, new in groups if old == (signal.channels,) and len(new) == 1), None)
    distribution = signal.distribution
    if distribution is not None:
        distribution = replace(
            distribution,
            base=f"{distribution.base}|{call.node.id}",
            correlation=regrouped(signal.sizes, distribution.correlation, groups, backwards=False),
        )
    kept = {old[0]: new[0] for old, new in groups if len(old) == len(new) == 1}
    back_to = {new: old for old, new in kept.items()}
    profile = renumbered(signal.profile, kept.get)
    output = replace(
        signal, sizes=call.sizes, shared=shared, channels=channels, distribution=distribution, profile=profile, fixed=NOTHING
    )

    def back(cotangent: Cotangent) -> Cotangent:
        correlation = regrouped(call.sizes, cotangent.correlation, groups, backwards=True)
        profile, projected_out = renumbered(cotangent.profile, back_to.get), _before_view(cotangent.projected_out, groups)
        coherence = cotangent.coherence if call.sizes == signal.sizes else None
        return replace(cotangent, correlation=correlation, profile=profile, projected_out=projected_out, coherence=coherence)

    return TransferResult(output, single_operand(slot, output, back))


Group = tuple[tuple[int, ...], tuple[int, ...]]


def _before_view(projected_out: Mapping[tuple[int, ...], float], groups: Sequence[Group]) -> dict[tuple[int, ...], float]:
    """Map shares by axes of a view's output to shares by axes of its input; a split axis counts only with all of its parts."""
    found = {}
    for axes, share in projected_out.items():
        whole = [(old, new) for old, new in groups if set(new) <= set(axes)]
        if {axis for _, new in whole for axis in new} == set(axes):
            found[tuple(sorted(axis for old, _ in whole for axis in old))] = share
    return found


def groups_of(old: Sequence[int], new: Sequence[int]) -> list[Group]:
    """Match the axes of two shapes of equal size in the smallest groups whose lengths have the same product."""
    groups: list[Group] = []
    left: list[int] = []
    right: list[int] = []
    i = j = 0
    while i < len(old) or j < len(new):
        a, b = math.prod(old[axis] for axis in left), math.prod(new[axis] for axis in right)
        if left and right and a == b:
            groups.append((tuple(left), tuple(right)))
            left, right = [], []
        elif j >= len(new) or (i < len(old) and (not left or a < b)):
            left.append(i)
            i += 1
        else:
            right.append(j)
            j += 1
    if left and right:
        groups.append((tuple(left), tuple(right)))
    elif (left or right) and groups:  # axes of length 1 at the end
        groups[-1] = (groups[-1][0] + tuple(left), groups[-1][1] + tuple(right))
    elif left or right:
        groups.append((tuple(left), tuple(right)))
    return groups


def regrouped(sizes: Sequence[int], values: Sequence[float], groups: Sequence[Group], *, backwards: bool) -> tuple[float, ...]:
    """Return the correlation along each axis after a view.

    The parts of a split axis get its correlation. A merged axis gets the mean over pairs of elements.
    """
    found: dict[int, float] = {}
    for pair in groups:
        old, new = reversed(pair) if backwards else pair
        for axis in new:
            found[axis] = _merged(sizes, values, old)
    return tuple(found[axis] for axis in sorted(found))


def _merged(sizes: Sequence[int], values: Sequence[float], axes: Iterable[int]) -> float:
    kept = [axis for axis in axes if sizes[axis] > 1]
    if len(kept) < 2:
        return values[kept[0]] if kept else 1.0
    count = math.prod(sizes[axis] for axis in kept)
    return max((count * averaged(sizes, values, kept) - 1.0) / (count - 1.0), 0.0)


def _expanded(call: Call, slot: int, signal: Signal) -> TransferResult:
    """Return the transfer of a broadcast along new or stretched axes, whose cotangents are summed over the copies."""
    rank = len(call.sizes)
    own = [1] * (rank - len(signal.sizes)) + list(signal.sizes)
    if len(own) != rank or any(size not in {1, wanted} for size, wanted in zip(own, call.sizes, strict=True)):
        return _repeated(call, slot, signal)
    shared = [1.0] * (rank - len(signal.sizes)) + list(signal.shared)
    stretched = [axis for axis in range(rank) if own[axis] != call.sizes[axis]]
    shared = [1.0 if axis in stretched else value for axis, value in enumerate(shared)]
    lead = rank - len(signal.sizes)
    profile = renumbered(signal.profile, lambda axis: axis + lead)
    output = as_gaussian(signal, sizes=call.sizes, shared=tuple(shared), channels=None, profile=profile)

    def back(cotangent: Cotangent) -> Cotangent:
        factor = coherent_sum(call.sizes, cotangent.correlation, stretched)
        left = renumbered(without(cotangent.profile, stretched), lambda axis: axis - lead if axis >= lead else None)
        return scaled(cotangent, factor, cotangent.correlation[lead:], profile=left)

    return TransferResult(output, single_operand(slot, output, back))


def _repeated(call: Call, slot: int, signal: Signal) -> TransferResult:
    """Return the transfer of repeat, tile or overlapping windows, which use each element several times."""
    copies = math.prod(call.sizes) / max(signal.size, 1)
    shared = matched(signal.sizes, signal.shared, call.sizes, 0.0)
    output = as_gaussian(signal, sizes=call.sizes, shared=shared, channels=None)

    def back(cotangent: Cotangent) -> Cotangent:
        correlation = matched(call.sizes, cotangent.correlation, signal.sizes, 0.0)
        coherent = 1.0 + (copies - 1.0) * min(cotangent.correlation, default=0.0)
        return scaled(cotangent, coherent, correlation, variance=_SPREAD)

    return TransferResult(output, single_operand(slot, output, back))


def matched(old: Sequence[int], values: Sequence[float], new: Sequence[int], default: float) -> tuple[float, ...]:
    """Assign values by axis to a shape whose axes were dropped, added or shortened.

    Axes of equal length are matched in order, and the remaining axes by position if the rank is the same. Others get `default`.
    """
    found: list[float | None] = [None] * len(new)
    used: set[int] = set()
    for index, size in enumerate(new):
        start = max(used, default=-1) + 1
        axis = next((a for a in range(start, len(old)) if old[a] == size), None)
        if axis is not None:
            found[index] = values[axis]
            used.add(axis)
    if len(old) == len(new):
        found = [values[i] if value is None else value for i, value in enumerate(found)]
    return tuple(default if value is None else value for value in found)


@TRANSFER.rule("slice")
def select(call: Call) -> TransferResult | None:
    """Return the transfer of a slice, gather, padding or `where`."""
    found = call.signals
    if not found:
        return None
    slot, signal = found[0]
    if str(call.node.attrs.get("name", "")).lower() == "where" and len(found) > 1:
        return _chosen(call, found)
    known = _padded(call, slot, signal) or _picked(call, slot, signal)
    if known is not None:
        return known
    size = math.prod(call.sizes)
    same_rank = len(call.sizes) == len(signal.sizes)
    padded = "pad" in str(call.node.attrs.get("name", "")).lower() or (same_rank and size > signal.size)
    copies = not {"reflect", "replicate", "replication", "circular", "edge", "wrap"}.isdisjoint(_words(call.node))
    share = min(signal.size / size, 1.0) if padded and size and not copies else 1.0
    kept = [min(new / old, 1.0) if old else 1.0 for new, old in zip(call.sizes, signal.sizes, strict=True)] if same_rank else []
    even = {axis for axis in range(len(kept)) if call.sizes[axis] == signal.sizes[axis]}
    output = as_gaussian(
        signal,
        level=signal.level + 0.5 * math.log10(share),
        sizes=call.sizes,
        shared=matched(signal.sizes, signal.shared, call.sizes, 0.0),
        channels=signal.channels if same_rank else None,
        mean=signal.mean * math.sqrt(share),
        profile=without(signal.profile, set(signal.profile) - even),
    )
    if size == signal.size and call.sizes == signal.sizes:
        output = signal

    def back(cotangent: Cotangent) -> Cotangent:
        correlation = matched(call.sizes, cotangent.correlation, signal.sizes, 0.0)
        if same_rank:
            correlation = tuple(a * k for a, k in zip(cotangent.correlation, kept, strict=True))
        return scaled(cotangent, share, correlation, profile=without(cotangent.profile, set(cotangent.profile) - even))

    return TransferResult(output, single_operand(slot, output, back))


def _words(node: Node) -> set[str]:
    """Return the words of an operator's name and its mode."""
    name = str(node.attrs.get("name", "")).lower().replace("pad", "_pad_")
    return {*name.split("_"), str(node.attrs.get("mode", "")).lower()}


def _chosen(call: Call, found: Sequence[tuple[int, Signal]]) -> TransferResult | None:
    """Return the transfer of `where`, which counts as taking an equal share of elements from each tensor."""
    if any(signal.sizes != call.sizes for _, signal in found):
        return None
    count = float(len(found))
    parts = [replace(part_of(signal), log_q=signal.log_q - math.log10(count), fixed=NOTHING) for _, signal in found]
    output = replace(total(parts, as_gaussian(found[0][1])), variance=max(part.variance for part in parts) + _CHOSEN)

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        cotangent = joined(terms, output)
        correlation = tuple(value / count for value in cotangent.correlation)
        for slot, _ in found:
            yield slot, CotangentTerm(scaled(cotangent, 1.0 / count, correlation, variance=_CHOSEN, profile=cotangent.profile))

    return TransferResult(output, back, ("which elements a condition picks",))


def _picked(call: Call, slot: int, signal: Signal) -> TransferResult | None:
    """Return the transfer of a slice that gives the elements it selects, with their part of the profile; else None."""
    items = taken(call.node, signal.sizes)
    if items is None or any(isinstance(i, int) and not -n <= i < n for i, n in zip(items, signal.sizes, strict=True)):
        return None
    places = [np.arange(size)[item] for item, size in zip(items, signal.sizes, strict=True)]
    left = [axis for axis, item in enumerate(items) if isinstance(item, slice)]
    if tuple(np.size(places[axis]) for axis in left) != call.sizes or 0 in call.sizes:
        return None
    level, profile = signal.log_q, FLAT
    for axis, values in signal.profile.items():
        chosen = np.atleast_1d(values[places[axis]])
        level += log10(float(chosen.mean()))
        profile = replaced(profile, left.index(axis), chosen) if axis in left else profile
    output = as_gaussian(
        signal,
        level=0.5 * level,
        sizes=call.sizes,
        shared=tuple(signal.shared[axis] for axis in left),
        channels=left.index(signal.channels) if signal.channels in left else None,
        profile=profile,
    )

    def back(cotangent: Cotangent) -> Cotangent:
        return _put_back(cotangent, signal.sizes, places, left)

    return TransferResult(output, single_operand(slot, output, back))


def _padded(call: Call, slot: int, signal: Signal) -> TransferResult | None:
    """Return the transfer of a constant padding with zeros; None for any other operator."""
    before = padding(call.node, len(signal.sizes))
    if before is None or any(new < old + pad for new, old, pad in zip(call.sizes, signal.sizes, before, strict=True)):
        return None
    share = signal.size / max(math.prod(call.sizes), 1)
    profile: Profile = FLAT
    for axis, (old, new) in enumerate(zip(signal.sizes, call.sizes, strict=True)):
        values = np.zeros(new)
        values[before[axis] : before[axis] + old] = signal.profile.get(axis, 1.0)
        profile = replaced(profile, axis, values)
    output = as_gaussian(
        signal,
        level=signal.level + 0.5 * math.log10(share),
        sizes=call.sizes,
        shared=tuple(s * old / new for s, old, new in zip(signal.shared, signal.sizes, call.sizes, strict=True)),
        mean=signal.mean * math.sqrt(share),
        profile=profile,
    )

    def back(cotangent: Cotangent) -> Cotangent:
        energy, left = 0.0, FLAT
        for axis, (old, new) in enumerate(zip(signal.sizes, call.sizes, strict=True)):
            inside = cotangent.profile.get(axis, np.ones(new))[before[axis] : before[axis] + old]
            energy += log10(float(inside.sum()) / new)
            left = replaced(left, axis, inside)
        return replace(cotangent, energy=cotangent.energy + energy, profile=left, coherence=None)

    return TransferResult(output, single_operand(slot, output, back))


def _put_back(cotangent: Cotangent, sizes: Sequence[int], places: Sequence[Any], left: Sequence[int]) -> Cotangent:
    """Return the cotangent of the operand of a slice, which is zero except at the selected elements."""
    correlation = [float(size == 1) for size in sizes]
    profile: Profile = FLAT
    for axis, size in enumerate(sizes):
        own: Array | float = 1.0
        if axis in left:
            at = left.index(axis)
            own = cotangent.profile.get(at, 1.0)
            correlation[axis] = cotangent.correlation[at] * np.size(places[axis]) / max(size, 1)
        landed = np.zeros(size)
        landed[places[axis]] = own
        profile = replaced(profile, axis, landed)
    return scaled(cotangent, 1.0, tuple(correlation), profile=profile)
