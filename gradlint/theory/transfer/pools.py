"""Transfer rules of pooling, resampling and reductions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gradlint.graph import Node
from gradlint.ops import Kind
from gradlint.theory.gaussian.pointwise_of_gaussian import largest_of
from gradlint.theory.transfer.profiles import FLAT, renumbered, replaced
from gradlint.theory.transfer.rule import (
    TRANSFER,
    Call,
    OperandCotangents,
    TransferResult,
    as_gaussian,
    half_log,
    log10,
    scaled,
    single_operand,
)
from gradlint.theory.transfer.signal import NOTHING, Cotangent, CotangentTerm, Signal, averaged, averaged_apart, joined

if TYPE_CHECKING:
    from gradlint.theory.transfer.profiles import Profile

_OTHER = frozenset(  # reductions that are neither sums nor means
    ("cumsum", "prod", "cumprod", "logcumsumexp", "trace", "segment_reduce", "logsumexp", "reducelogsumexp", "reduceprod")
)
_NOISE = 1e-3  # decades^2 that each maximum adds, because overlapping windows share maxima
_NORMS = frozenset({"norm", "linalg_norm", "linalg_vector_norm", "reducel2", "frobenius_norm"})


@TRANSFER.rule(Kind.POOL)
def pool(call: Call) -> TransferResult | None:
    """Return the transfer of average pooling, maximum pooling or resampling over the last axes."""
    found = call.signals
    if not found or len(found[0][1].sizes) != len(call.sizes):
        return None
    slot, signal = found[0]
    if call.node.op == "upsample":
        return _resampled(call, slot, signal)
    window = window_of(call.node, signal.sizes, call.sizes)
    if call.node.op == "max_pool":
        return _largest(call, slot, signal, window)
    return _averaged(call, slot, signal, window)


def window_of(node: Node, sizes: Sequence[int], out: Sequence[int]) -> tuple[int, ...]:
    """Return the length of the window along each axis: the kernel size, or what an adaptive or global pool implies."""
    kernel = node.attrs.get("kernel_size", node.attrs.get("kernel_shape"))
    if isinstance(kernel, int):
        kernel = (kernel,) * (len(sizes) - 2)
    if not isinstance(kernel, (tuple, list)) or not kernel or not all(isinstance(item, int) for item in kernel):
        return tuple(max(math.ceil(size / new), 1) if size != new else 1 for size, new in zip(sizes, out, strict=True))
    lead = len(sizes) - len(kernel)
    return tuple(1 if axis < lead else min(kernel[axis - lead], sizes[axis]) for axis in range(len(sizes)))


def _averaged(call: Call, slot: int, signal: Signal, window: tuple[int, ...]) -> TransferResult:
    axes = [axis for axis, size in enumerate(window) if size > 1 or signal.sizes[axis] != call.sizes[axis]]
    share = averaged(window, signal.shared, axes) + _neighbors(signal, window, axes)
    shared = tuple(min(averaged_apart(window, signal.shared, axes, axis) / share, 1.0) for axis in range(len(window)))
    output = as_gaussian(
        signal,
        level=signal.level + half_log(share),
        sizes=call.sizes,
        shared=shared,
        mean=min(max(signal.mean / math.sqrt(share), -1.0), 1.0),
        profile=_pooled(signal.profile, call.sizes),
        neighbor_correlation=_overlap(signal, window, call.sizes),
    )

    def back(cotangent: Cotangent) -> Cotangent:
        # an element lies in window * out / in windows, and gets 1/window of the cotangent of each
        overlap = [max(window[axis] * call.sizes[axis] / signal.sizes[axis], 1.0) for axis in axes]
        coherent = math.prod(1.0 + (count - 1.0) * cotangent.correlation[axis] for count, axis in zip(overlap, axes, strict=True))
        correlation = tuple(
            _spread(value, window[axis], signal.sizes[axis]) if axis in axes else value
            for axis, value in enumerate(cotangent.correlation)
        )
        profile = _pooled(cotangent.profile, signal.sizes)
        return scaled(cotangent, coherent / math.prod(window[axis] for axis in axes), correlation, profile=profile)

    return TransferResult(output, single_operand(slot, output, back))


def _neighbors(signal: Signal, window: Sequence[int], axes: Sequence[int]) -> float:
    """Return the second moment that the correlation of neighbors adds to the mean over a window, over q."""
    if signal.neighbor_correlation == 0.0 or not axes:
        return 0.0
    private = 1.0 - max(signal.shared[axis] for axis in axes)
    close = math.prod(_mean_power(signal.neighbor_correlation, window[axis], 0) for axis in axes)
    return max(private, 0.0) * (close - math.prod(1.0 / window[axis] for axis in axes))


def _overlap(signal: Signal, window: Sequence[int], out: Sequence[int]) -> float:
    """Return the correlation of the means of two neighboring windows, in what distant windows do not share."""
    axis = len(window) - 1
    if window[axis] < 2 or out[axis] < 2:
        return signal.neighbor_correlation if out[axis] > 1 else 0.0
    stride = max(round(signal.sizes[axis] / out[axis]), 1)
    return _mean_power(signal.neighbor_correlation, window[axis], stride) / _mean_power(
        signal.neighbor_correlation, window[axis], 0
    )


def _mean_power(near: float, length: int, shift: int) -> float:
    """Return the mean of near^|i - j + shift| over positions i, j of two windows."""
    steps = np.abs(np.arange(length)[:, None] - np.arange(length)[None, :] + shift)
    return float(np.power(near, steps).mean())


def _pooled(profile: Profile, out: Sequence[int]) -> Profile:
    """Resample a profile: each element of a new axis gets the mean over the interval that it covers."""
    found: Profile = FLAT
    for axis, values in profile.items():
        edges = np.linspace(0, values.size, out[axis] + 1)
        heights = np.interp(edges, np.arange(values.size + 1), np.concatenate([[0.0], np.cumsum(values)]))
        found = replaced(found, axis, np.diff(heights))
    return found


def _spread(correlation: float, window: int, size: int) -> float:
    """Return the correlation of the cotangents of two elements along an axis; those in one window are equal."""
    same = min((window - 1.0) / max(size - 1.0, 1.0), 1.0)
    return same + (1.0 - same) * correlation


def _largest(call: Call, slot: int, signal: Signal, window: tuple[int, ...]) -> TransferResult:
    """Return the transfer of maximum pooling, whose cotangent goes to the maximum of each window alone."""
    axes = [axis for axis, size in enumerate(window) if size > 1]
    distribution = signal.distribution_at(call.ref(slot).node)
    correlation = min((distribution.correlation[axis] for axis in axes), default=1.0)
    largest, density = largest_of(distribution, math.prod(window), correlation)
    output = replace(
        signal,
        level=largest.level,
        mean=largest.mean,
        shared=largest.shared,
        distribution=largest,
        sizes=call.sizes,
        fixed=NOTHING,
    )
    near = _overlap(signal, window, call.sizes)
    output = replace(output, profile=_pooled(signal.profile, call.sizes), chance=signal.chance, neighbor_correlation=near)

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        total = joined(terms, output)
        sparse = tuple(
            value / window[axis] if axis in axes else value for axis, value in enumerate(total.correlation)
        )  # the maxima of two windows are at independent positions
        profile = _pooled(total.profile, signal.sizes)
        spread = replace(total, correlation=sparse, profile=profile, variance=total.variance + _NOISE, coherence=None)
        yield slot, CotangentTerm(spread, f"{call.node.id}|max", density)

    return TransferResult(output, back)


def _resampled(call: Call, slot: int, signal: Signal) -> TransferResult:
    """Return the transfer of resampling: nearest-neighbor mode copies elements, other modes also average neighbors."""
    mode = str(call.node.attrs.get("mode", "nearest")).lower()
    axes = [axis for axis, (old, new) in enumerate(zip(signal.sizes, call.sizes, strict=True)) if old != new]
    weight = 1.0 if "nearest" in mode else 2.0 / 3.0  # E (1-t)^2 + t^2 for uniform t: interpolation of independent neighbors
    level, coherent = 1.0, []
    for axis in axes:
        level *= signal.shared[axis] + (1.0 - signal.shared[axis]) * weight
        coherent.append((axis, call.sizes[axis] / signal.sizes[axis]))
    output = as_gaussian(
        signal,
        level=signal.level + half_log(level),
        sizes=call.sizes,
        shared=tuple(min(s / level, 1.0) for s in signal.shared),
        mean=signal.mean / math.sqrt(level),
        profile=_pooled(signal.profile, call.sizes),
    )

    def back(cotangent: Cotangent) -> Cotangent:
        factor = math.prod(weight + max(count - weight, 0.0) * cotangent.correlation[axis] for axis, count in coherent)
        return scaled(cotangent, factor, profile=_pooled(cotangent.profile, signal.sizes))

    return TransferResult(output, single_operand(slot, output, back))


@TRANSFER.rule(Kind.REDUCE)
def reduce(call: Call) -> TransferResult | None:
    """Return the transfer of a mean, sum, norm or maximum over axes."""
    found = call.signals
    if not found:
        return None
    slot, signal = found[0]
    axes = reduced_axes(call.node, signal.sizes, call.sizes)
    name = str(call.node.attrs.get("name", call.node.op)).lower()
    count = math.prod(signal.sizes[axis] for axis in axes)
    kept = matched_after(signal.sizes, axes, call.sizes)
    if kept is None:
        return None
    if call.node.op == "max":
        return _extreme(call, slot, signal, axes, kept)
    if name in _NORMS:
        return _norm(call, slot, signal, count, kept)
    if call.node.op not in {"mean", "sum"} or name in _OTHER:
        return None
    share = averaged(signal.sizes, signal.shared, axes)
    apart = [None if axis is None else averaged_apart(signal.sizes, signal.shared, axes, axis) for axis in kept]
    scale = float(count) if call.node.op == "sum" else 1.0
    shared = tuple(1.0 if value is None else min(value / share, 1.0) for value in apart)
    output = as_gaussian(
        signal,
        level=signal.level + half_log(share) + log10(scale),
        sizes=call.sizes,
        shared=shared,
        channels=None,
        mean=min(max(signal.mean / math.sqrt(share), -1.0), 1.0),
        profile=renumbered(signal.profile, lambda axis: kept.index(axis) if axis in kept else None),
    )

    def back(cotangent: Cotangent) -> Cotangent:
        profile = renumbered(cotangent.profile, kept.__getitem__)
        return scaled(cotangent, scale * scale / count, _widened(cotangent, signal, kept), profile=profile)

    return TransferResult(output, single_operand(slot, output, back))


def _widened(cotangent: Cotangent, signal: Signal, kept: Sequence[int | None]) -> tuple[float, ...]:
    """Return the correlation of a cotangent before a reduction; all elements that were reduced together get the same one."""
    correlation = [1.0] * len(signal.sizes)
    for value, axis in zip(cotangent.correlation, kept, strict=True):
        if axis is not None:
            correlation[axis] = value
    return tuple(correlation)


def reduced_axes(node: Node, sizes: Sequence[int], out: Sequence[int]) -> tuple[int, ...]:
    """Return the axes of a reduction from its attributes, or else the axes whose length changed or disappeared."""
    given = next((node.attrs[key] for key in ("dim", "axes", "axis") if key in node.attrs), None)
    rank = len(sizes)
    if isinstance(given, int) and not isinstance(given, bool):
        given = (given,)
    if isinstance(given, (tuple, list)) and given and all(isinstance(axis, int) for axis in given):
        return tuple(axis % rank for axis in given) if rank else ()
    if len(out) == rank:
        return tuple(axis for axis in range(rank) if out[axis] != sizes[axis])
    left = list(out)
    axes = []
    for axis, size in enumerate(sizes):
        if left and left[0] == size:
            left.pop(0)
        else:
            axes.append(axis)
    return tuple(axes) if not left else tuple(range(rank))


def matched_after(sizes: Sequence[int], axes: Sequence[int], out: Sequence[int]) -> list[int | None] | None:
    """Return the input axis of each output axis of a reduction, None for a reduced axis that was kept with length 1."""
    rest = [axis for axis in range(len(sizes)) if axis not in axes]
    if len(out) == len(sizes):
        return [None if axis in axes else axis for axis in range(len(sizes))]
    return [*rest] if len(out) == len(rest) else None


def _extreme(call: Call, slot: int, signal: Signal, axes: Sequence[int], kept: Sequence[int | None]) -> TransferResult:
    count = math.prod(signal.sizes[axis] for axis in axes)
    distribution = signal.distribution_at(call.ref(slot).node)
    largest, density = largest_of(distribution, count, min((distribution.correlation[axis] for axis in axes), default=1.0))
    shared = tuple(1.0 if axis is None else largest.shared[axis] for axis in kept)
    output = as_gaussian(signal, level=largest.level, mean=largest.mean, sizes=call.sizes, shared=shared, channels=None)

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        cotangent = joined(terms, output)
        correlation = tuple(0.0 if a in axes else value for a, value in enumerate(_widened(cotangent, signal, kept)))
        yield (
            slot,
            CotangentTerm(
                replace(cotangent, correlation=correlation, profile=FLAT, coherence=None), f"{call.node.id}|max", density
            ),
        )

    return TransferResult(output, back)


def _norm(call: Call, slot: int, signal: Signal, count: int, kept: Sequence[int | None]) -> TransferResult:
    """Return the transfer of a Euclidean norm, which is nearly constant over many elements and has a gradient of unit norm."""
    shared = tuple(1.0 for _ in kept)
    steady = math.sqrt(max(1.0 - 0.5 / count, 0.0))
    output = as_gaussian(
        signal, level=signal.level + half_log(float(count)), mean=steady, sizes=call.sizes, shared=shared, channels=None
    )

    def back(cotangent: Cotangent) -> Cotangent:
        correlation = tuple(a * s for a, s in zip(_widened(cotangent, signal, kept), signal.shared, strict=True))
        return scaled(cotangent, 1.0, correlation)

    return TransferResult(output, single_operand(slot, output, back))
