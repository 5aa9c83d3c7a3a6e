"""Transfer rules of normalisations: a signal divided by what varies of it over some axes (THEORY section 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gradlint.graph import Weight
from gradlint.theory.signal import Cotangent, Signal, averaged
from gradlint.theory.transfer import (
    Call,
    Moved,
    constant_part,
    half_log,
    mean_of,
    mean_square,
    one,
    part_of,
    plain,
    scaled,
    total,
)

if TYPE_CHECKING:
    from gradlint.theory.law import Array

_EPS = 1e-5


@dataclass(frozen=True, slots=True)
class _Over:
    """What is normalised together: lengths and shares of all axes as the statistics see them, and the axes they run over."""

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    centred: bool = True


def norm(call: Call) -> Moved | None:
    """Any normalisation layer."""
    found = call.signals
    if not found or len(found[0][1].sizes) != len(call.sizes) or not call.sizes:
        return None
    slot, signal = found[0]
    if call.node.op == "batch_norm" and not _on_batch(call):
        return _running(call, slot, signal)
    if call.node.op == "local_response_norm":
        return None
    over = _over(call, signal)
    return None if over is None else _normalised(call, slot, signal, over)


def _on_batch(call: Call) -> bool:
    return bool(call.node.attrs.get("training", call.training)) or "running_var" not in call.node.weights


def _over(call: Call, signal: Signal) -> _Over | None:
    node, sizes = call.node, signal.sizes
    rank = len(sizes)
    channel = 1 if rank > 1 else 0
    if node.op == "batch_norm":
        return _Over(tuple(axis for axis in range(rank) if axis != channel), sizes)
    if node.op == "instance_norm":
        return _Over(tuple(range(channel + 1, rank)), sizes)
    if node.op == "group_norm":
        groups = int(node.attrs.get("num_groups", 1))
        inside = tuple(max(size // groups, 1) if axis == channel else size for axis, size in enumerate(sizes))
        return _Over(tuple(range(channel, rank)), inside)
    if node.op == "l2_normalize":
        axis = node.attrs.get("dim", node.attrs.get("axis", 1))
        return _Over((int(axis) % rank,) if isinstance(axis, int) else (channel,), sizes, centred=False)
    count = _normalised_axes(node.attrs, rank)
    return _Over(tuple(range(rank - count, rank)), sizes, centred=node.op != "rms_norm")


def _normalised_axes(attrs: object, rank: int) -> int:
    """How many of the last axes a layer norm runs over: `normalized_shape` in torch, `axis` in ONNX."""
    known = attrs if hasattr(attrs, "get") else {}
    shape, axis = known.get("normalized_shape"), known.get("axis")
    if isinstance(shape, Sequence) and not isinstance(shape, str):
        return min(max(len(shape), 1), rank)
    return rank - int(axis) % rank if isinstance(axis, int) else 1


def _normalised(call: Call, slot: int, signal: Signal, over: _Over) -> Moved:
    """Second moment gamma^2 v / (v + eps), v the variance over the axes; the gradient loses what lies along 1 and x."""
    mean = averaged(over.sizes, signal.shared, over.axes) if over.centred else 0.0
    lost = min(mean, 1.0 - 1e-9)
    squared = call.node.op == "l2_normalize"
    eps = 0.0 if squared else float(call.node.attrs.get("eps", call.node.attrs.get("epsilon", _EPS)) or 0.0)
    gamma = call.node.weights.get("scale")
    rows, profile = _scales(
        gamma, signal, eps * 10.0 ** min(-signal.log_q, 300.0) / (1.0 - lost), per_channel=call.node.op == "batch_norm"
    )
    shift = math.prod(over.sizes[axis] for axis in over.axes) if squared else 1.0  # an L2 norm sums where others average
    shared = tuple(
        min(max((share - lost) / (1.0 - lost), -1.0), 1.0)
        if axis in over.axes
        else min(max((share - lost) / (1.0 - lost), 0.0), 1.0)
        for axis, share in enumerate(signal.shared)
    )
    layout = plain(
        signal, level=half_log(rows) - 0.5 * math.log10(shift), mean=0.0 if over.centred else signal.mean, shared=shared
    )
    behind = replace(_with_bias(call, layout), profile=profile, variance=0.0, channels=signal.channels)
    effective = 1.0 / max(_centred(over, signal, lost), 1e-9)

    def back(cotangent: Cotangent) -> Cotangent:
        factor = 10.0 ** min(-signal.log_q, 300.0) / (1.0 - lost) / shift
        kept = _kept(cotangent, over, shared)
        inflated = (effective - over.centred) / (effective - 2.0 - over.centred) if effective > 4.0 else 3.0
        gain, left = _slopes(
            gamma,
            signal,
            eps * 10.0 ** min(-signal.log_q, 300.0) / (1.0 - lost),
            cotangent,
            per_channel=call.node.op == "batch_norm",
        )
        pulled = scaled(cotangent, factor * kept * inflated * gain, _centred_along(cotangent, over), variance=signal.variance)
        return replace(pulled, profile=left)

    return Moved(behind, one(slot, behind, back))


def _centred(over: _Over, signal: Signal, lost: float) -> float:
    """One over the number of independent values that a statistic averages."""
    rest = [max(share - lost, 0.0) / (1.0 - lost) for share in signal.shared]
    return averaged(over.sizes, rest, over.axes)


def _kept(cotangent: Cotangent, over: _Over, shared: Sequence[float]) -> float:
    """Share of a cotangent that is orthogonal to the constant vector (where the norm centres) and to the normalised signal."""
    along_one = averaged(over.sizes, cotangent.alike, over.axes) if over.centred else 0.0
    along_signal = averaged(over.sizes, [a * b for a, b in zip(cotangent.alike, shared, strict=True)], over.axes)
    return max(1.0 - along_one - along_signal, 1e-6)


def _centred_along(cotangent: Cotangent, over: _Over) -> tuple[float, ...]:
    """Correlations of a cotangent that has lost its mean over the normalised axes: -1/(N-1) between N that were independent."""
    if not over.centred:
        return cotangent.alike
    mean = min(averaged(over.sizes, cotangent.alike, over.axes), 1.0 - 1e-9)
    return tuple(
        min(max((value - mean) / (1.0 - mean), -1.0), 1.0) if axis in over.axes else value
        for axis, value in enumerate(cotangent.alike)
    )


def _scales(gamma: Weight | None, signal: Signal, eps: float, *, per_channel: bool) -> tuple[float, Array | None]:
    """Second moment behind the norm, and its profile over channels."""
    own = signal.profile if per_channel and signal.profile is not None else None
    squares = _squares(gamma)
    power = (own / (own + eps) if own is not None else 1.0 / (1.0 + eps)) * (
        squares if squares is not None else mean_square(gamma, 1.0)
    )
    if not isinstance(power, np.ndarray):
        return float(power), None
    mean = float(power.mean())
    return mean, power / mean if mean > 0.0 and float(power.std()) > 1e-6 * mean else None


def _slopes(
    gamma: Weight | None, signal: Signal, eps: float, cotangent: Cotangent, *, per_channel: bool
) -> tuple[float, Array | None]:
    """Mean over channels of gamma^2 / (v + eps) in units of 1/q, and its profile."""
    own = signal.profile if per_channel and signal.profile is not None else None
    squares = _squares(gamma)
    power = (1.0 / (own + eps) if own is not None else 1.0 / (1.0 + eps)) * (
        squares if squares is not None else mean_square(gamma, 1.0)
    )
    if cotangent.profile is not None and (not isinstance(power, np.ndarray) or power.shape == cotangent.profile.shape):
        power = power * cotangent.profile
    if not isinstance(power, np.ndarray):
        return float(power), None
    mean = float(power.mean())
    return mean, power / mean if mean > 0.0 and per_channel else None


def _squares(gamma: Weight | None) -> Array | None:
    """gamma^2 of every channel, None where all are equal."""
    if gamma is None or gamma.size > 1 << 16 or gamma.statistics.std <= 1e-6 * abs(gamma.statistics.mean):
        return None
    return np.square(np.asarray(gamma.array(), dtype=np.float64).reshape(-1))


def _with_bias(call: Call, layout: Signal) -> Signal:
    bias = call.node.weights.get("bias")
    if bias is None or mean_square(bias) == 0.0:
        return layout
    channel = 1 if call.node.op in {"batch_norm", "group_norm", "instance_norm"} and len(call.sizes) > 1 else len(call.sizes) - 1
    spans = [axis == channel for axis in range(len(call.sizes))]
    return total([part_of(layout), constant_part(mean_square(bias), mean_of(bias), spans)], layout)


def _running(call: Call, slot: int, signal: Signal) -> Moved:
    """On running statistics a norm is a scale and a shift per channel."""
    node = call.node
    eps = float(node.attrs.get("eps", node.attrs.get("epsilon", _EPS)) or 0.0)
    variance = np.maximum(_vector(node.weights["running_var"]) + eps, 1e-30)
    gamma = _vector(node.weights["scale"]) if "scale" in node.weights else np.ones_like(variance)
    factors = (
        gamma * gamma / variance
        if gamma.shape == variance.shape
        else np.full_like(variance, mean_square(node.weights["scale"]) / variance.mean())
    )
    factor = float(factors.mean())
    scaled_down = plain(signal, level=signal.level + half_log(factor))
    mean = node.weights.get("running_mean")
    if mean is not None and mean_square(mean) > 0.0:
        offset = float(np.mean(_vector(mean) ** 2 * factors)) if _vector(mean).shape == factors.shape else 0.0
        spans = [axis == 1 for axis in range(len(call.sizes))]
        scaled_down = total([part_of(scaled_down), constant_part(offset, 0.0, spans)], scaled_down)
    behind = _with_bias(call, scaled_down)

    def back(cotangent: Cotangent) -> Cotangent:
        weighted = (
            factors * cotangent.profile if cotangent.profile is not None and cotangent.profile.shape == factors.shape else factors
        )
        return scaled(cotangent, float(weighted.mean()))

    return Moved(behind, one(slot, behind, back))


def _vector(weight: Weight) -> Array:
    return np.asarray(weight.array(), dtype=np.float64).reshape(-1)
