"""Transfer rules of operators that move, copy, select, join or average elements."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from gradlint.graph import Node
from gradlint.theory.law import largest_of
from gradlint.theory.signal import Cotangent, Pull, Signal, averaged, gathered, joined
from gradlint.theory.transfer import (
    Call,
    Moved,
    Part,
    Pulls,
    constant_part,
    log10,
    mean_of,
    mean_square,
    one,
    part_of,
    plain,
    scaled,
)

_SPREAD = 0.01  # decades^2: a selection whose share of the signal is told from sizes alone


def reshape(call: Call) -> Moved | None:
    """Views, permutations, splits and expansions."""
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
    """The axes of the input in the order of the output; None for an operator that does not say."""
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
    """The order of axes that gives these sizes, where they are all different."""
    return (
        tuple(sizes.index(size) for size in wanted) if len(set(sizes)) == len(sizes) and sorted(sizes) == sorted(wanted) else None
    )


def _permuted(call: Call, slot: int, signal: Signal, axes: Sequence[int]) -> Moved:
    law = signal.law
    if law is not None:
        law = replace(law, base=f"{law.base}|{call.node.id}", alike=tuple(law.alike[axis] for axis in axes))
    channels = axes.index(signal.channels) if signal.channels is not None and signal.channels in axes else None
    behind = replace(signal, sizes=call.sizes, shared=tuple(signal.shared[axis] for axis in axes), channels=channels, law=law)

    def back(cotangent: Cotangent) -> Cotangent:
        return replace(cotangent, alike=tuple(cotangent.alike[axes.index(axis)] for axis in range(len(axes))))

    return Moved(behind, one(slot, behind, back))


def _viewed(call: Call, slot: int, signal: Signal) -> Moved:
    groups = groups_of(signal.sizes, call.sizes)
    shared = regrouped(signal.sizes, signal.shared, groups, backwards=False)
    channels = next((new[0] for old, new in groups if old == (signal.channels,) and len(new) == 1), None)
    law = signal.law
    if law is not None:
        law = replace(law, base=f"{law.base}|{call.node.id}", alike=regrouped(signal.sizes, law.alike, groups, backwards=False))
    behind = replace(
        signal,
        sizes=call.sizes,
        shared=shared,
        channels=channels,
        law=law,
        profile=signal.profile if channels is not None else None,
    )

    def back(cotangent: Cotangent) -> Cotangent:
        alike = regrouped(call.sizes, cotangent.alike, groups, backwards=True)
        return replace(cotangent, alike=alike, profile=cotangent.profile if channels is not None else None)

    return Moved(behind, one(slot, behind, back))


Group = tuple[tuple[int, ...], tuple[int, ...]]


def groups_of(old: Sequence[int], new: Sequence[int]) -> list[Group]:
    """The axes of two shapes of one size, matched in the smallest groups whose sizes multiply to the same number."""
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
    """Shares per axis behind a view: an axis that is split hands its own on, axes that are merged make the mean over pairs."""
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


def _expanded(call: Call, slot: int, signal: Signal) -> Moved:
    """Copies along new or stretched axes: the copies are equal, and their cotangents add up."""
    rank = len(call.sizes)
    own = [1] * (rank - len(signal.sizes)) + list(signal.sizes)
    if len(own) != rank or any(size not in {1, wanted} for size, wanted in zip(own, call.sizes, strict=True)):
        return _repeated(call, slot, signal)
    shared = [1.0] * (rank - len(signal.sizes)) + list(signal.shared)
    stretched = [axis for axis in range(rank) if own[axis] != call.sizes[axis]]
    shared = [1.0 if axis in stretched else value for axis, value in enumerate(shared)]
    behind = plain(signal, sizes=call.sizes, shared=tuple(shared), channels=None)

    def back(cotangent: Cotangent) -> Cotangent:
        factor = gathered(call.sizes, cotangent.alike, stretched)
        return scaled(cotangent, factor, cotangent.alike[rank - len(signal.sizes) :])

    return Moved(behind, one(slot, behind, back))


def _repeated(call: Call, slot: int, signal: Signal) -> Moved:
    """Whole copies (repeat, tile, pixel windows that overlap): each element is used several times, by independent cotangents."""
    copies = math.prod(call.sizes) / max(signal.size, 1)
    shared = matched(signal.sizes, signal.shared, call.sizes, 0.0)
    behind = plain(signal, sizes=call.sizes, shared=shared, channels=None)

    def back(cotangent: Cotangent) -> Cotangent:
        alike = matched(call.sizes, cotangent.alike, signal.sizes, 0.0)
        coherent = 1.0 + (copies - 1.0) * min(cotangent.alike, default=0.0)
        return scaled(cotangent, coherent, alike, variance=_SPREAD)

    return Moved(behind, one(slot, behind, back))


def matched(old: Sequence[int], values: Sequence[float], new: Sequence[int], default: float) -> tuple[float, ...]:
    """Values per axis where axes were dropped, added or shortened: axes of one length in order, then those left over in order."""
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


def select(call: Call) -> Moved | None:
    """Slices, gathers and padding: a share of the elements, or some zeros more."""
    found = call.signals
    if not found:
        return None
    slot, signal = found[0]
    size = math.prod(call.sizes)
    padded = "pad" in str(call.node.attrs.get("name", "")).lower() or (
        len(call.sizes) == len(signal.sizes) and size > signal.size
    )
    share = min(signal.size / size, 1.0) if padded and size else 1.0
    shared = matched(signal.sizes, signal.shared, call.sizes, 0.0)
    layout = signal.channels if len(call.sizes) == len(signal.sizes) else None
    behind = plain(
        signal,
        level=signal.level + 0.5 * math.log10(share),
        sizes=call.sizes,
        shared=shared,
        channels=layout,
        mean=signal.mean * math.sqrt(share),
    )
    if size == signal.size and call.sizes == signal.sizes:
        behind = replace(signal)
    kept = (
        [min(new / old, 1.0) if old else 1.0 for new, old in zip(call.sizes, signal.sizes, strict=True)]
        if layout is not None
        else None
    )

    def back(cotangent: Cotangent) -> Cotangent:
        alike = matched(call.sizes, cotangent.alike, signal.sizes, 0.0)
        if kept is not None:
            alike = tuple(a * k for a, k in zip(cotangent.alike, kept, strict=True))
        return scaled(cotangent, share, alike)

    return Moved(behind, one(slot, behind, back))


def concat(call: Call) -> Moved | None:
    """Tensors side by side: second moments average by size, and each part gets its own slice of the cotangent."""
    found = call.signals
    if not found:
        return None
    first = found[0][1]
    axis = axis_of(call.node, ("dim", "axis"), len(call.sizes), 0)
    if len(first.sizes) != len(call.sizes):
        return _stacked(call, found, axis)
    weights = list(call.node.weights.values())
    shapes = [weight.shape for weight in weights if len(weight.shape) == len(call.sizes)]
    lengths = [signal.sizes[axis] for _, signal in found] + [shape[axis] for shape in shapes]
    whole = max(sum(lengths), call.sizes[axis], 1)
    parts = [part_of(signal) for _, signal in found]
    parts += [
        constant_part(mean_square(weight), mean_of(weight), [n > 1 and a != 0 for a, n in enumerate(weight.shape)])
        for weight in weights
        if len(weight.shape) == len(call.sizes)
    ]
    behind = _side_by_side(parts, [length / whole for length in lengths], plain(first, sizes=call.sizes), axis)
    if axis == (first.channels if first.channels is not None else 1) and len(parts) == len(found):
        profile = np.concatenate([_profile(signal, axis, behind) for _, signal in found])
        behind = replace(behind, channels=axis, profile=profile if profile.size == call.sizes[axis] else None)

    def back(pulls: Sequence[Pull]) -> Pulls:
        cotangent = joined(pulls, behind.law)
        start = 0
        for (slot, _), length in zip(found, lengths, strict=False):
            share, own = length / whole, None
            if cotangent.profile is not None and axis == behind.channels:
                piece = cotangent.profile[start : start + length]
                share = float(piece.sum()) / max(float(cotangent.profile.sum()), 1e-300)
                own = piece / piece.mean() if piece.size and piece.mean() > 0.0 else None
            start += length
            yield slot, Pull(replace(scaled(cotangent, share, cotangent.alike), profile=own))

    return Moved(behind, back)


def _profile(signal: Signal, axis: int, whole: Signal) -> Any:
    own = signal.profile if signal.profile is not None and signal.channels == axis else np.ones(signal.sizes[axis])
    return own * 10.0 ** min(max(signal.log_q - whole.log_q, -300.0), 300.0)


def _side_by_side(parts: Sequence[Part], shares: Sequence[float], layout: Signal, axis: int) -> Signal:
    """The mixture of parts that take these shares of the elements."""
    logs = [part.log_q + log10(share) for part, share in zip(parts, shares, strict=True)]
    top = max(logs)
    if not math.isfinite(top):
        return plain(layout, level=0.5 * top)
    sizes = [10.0 ** (value - top) for value in logs]
    second = sum(sizes)
    roots = [math.sqrt(size * share) * part.mean for size, share, part in zip(sizes, shares, parts, strict=True)]
    mean = sum(roots) / math.sqrt(second)
    shared = [
        sum(size * part.shared[a] for size, part in zip(sizes, parts, strict=True)) / second for a in range(len(layout.shared))
    ]
    inside = sum(size * share * part.shared[axis] for size, share, part in zip(sizes, shares, parts, strict=True))
    across = sum(roots) ** 2 - sum(root * root for root in roots)
    shared[axis] = min(max((inside + across) / second, 0.0), 1.0)
    variance = sum(size**2 * part.variance for size, part in zip(sizes, parts, strict=True)) / second**2
    return plain(layout, level=0.5 * (top + math.log10(second)), mean=mean, shared=tuple(shared), variance=variance)


def _stacked(call: Call, found: Sequence[tuple[int, Signal]], axis: int) -> Moved | None:
    first = found[0][1]
    if len(first.sizes) + 1 != len(call.sizes):
        return None
    share = [1.0 / len(found)] * len(found)
    layout = plain(first, sizes=call.sizes, shared=(*first.shared[:axis], 0.0, *first.shared[axis:]), channels=None)
    parts = [
        replace(part_of(s), shared=(*s.shared[:axis], s.mean**2, *s.shared[axis:]))
        for _, s in found
        if len(s.shared) == len(first.shared)
    ]
    if len(parts) != len(found):
        return None
    behind = _side_by_side(parts, share, layout, axis)

    def back(pulls: Sequence[Pull]) -> Pulls:
        cotangent = joined(pulls, behind.law)
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


def maximum_of(signal: Signal, node: str, draws: float, alike: float) -> tuple[Signal, Any]:
    """The signal of the largest of some elements, and the density of winners on the grid of their law."""
    law, density = largest_of(signal.law_at(node), draws, alike)
    return replace(signal, level=law.level, mean=law.mean, shared=law.shared, law=law), density
