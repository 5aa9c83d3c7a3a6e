"""Transfer rules that propagate the moments of single channels, for trained weights.

Each takes the result of the rule for whole tensors and replaces its moments by those of the channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gradlint.ops import Kind
from gradlint.signal_path import kind_of
from gradlint.theory.gaussian.functions import function_of
from gradlint.theory.transfer.channels import Rows, is_trained, mapped
from gradlint.theory.transfer.profiles import mean_product, replaced, times, values_along, without
from gradlint.theory.transfer.rule import Call, OperandCotangents, TransferResult, log10, mean_square
from gradlint.theory.transfer.signal import NOTHING, CotangentTerm, Signal, averaged, joined

if TYPE_CHECKING:
    from gradlint.theory.gaussian.pointwise_of_gaussian import Array


def refine_by_channel(call: Call, coarse: TransferResult) -> TransferResult:
    """Refine a transfer result channel by channel, if the weight is trained or the operands have means of single channels.

    Args:
        call: The application of the operator.
        coarse: The result of the rule for whole tensors.
    """
    kind, operands = kind_of(call.node), [signal for _, signal in call.signals]
    if kind in {Kind.LINEAR, Kind.CONV} and len(operands) == 1:
        weight = call.node.weights.get("weight")
        return _layer(call, coarse, operands[0]) if weight is not None and is_trained(weight) else coarse
    if not operands or all(signal.means is None for signal in operands):
        return coarse
    if len(operands) == 1 and kind in {Kind.ACTIVATION, Kind.MATH, Kind.ADD, Kind.MUL}:
        return _function(call, coarse, operands[0])
    if kind is Kind.ADD and len(operands) == 2 and call.node.op == "add":
        return _sum(coarse, operands)
    if kind is Kind.CONCAT:
        return _side_by_side(coarse, operands)
    if kind is Kind.NORM and call.node.op == "batch_norm":
        return _norm(call, coarse, operands[0])
    if kind in {Kind.POOL, Kind.REDUCE} and call.node.op in {"avg_pool", "mean", "upsample"}:
        return _averaged(coarse, operands[0])
    return coarse


def second_moments(signal: Signal) -> Array:
    """Return the second moment of each channel over q."""
    assert signal.channels is not None
    size = signal.sizes[signal.channels]
    return values_along(signal.profile, signal.channels, size)


def _moments(signal: Signal, size: int) -> tuple[Array, Array] | None:
    """Return mean and variance of each channel, in units of 10^level and its square; None without `size` channels."""
    if signal.channels is None or signal.sizes[signal.channels] != size or not math.isfinite(signal.level):
        return None
    means = signal.means if signal.means is not None and signal.means.size == size else np.full(size, signal.mean)
    return means, np.maximum(second_moments(signal) - means * means, 0.0)


@dataclass(frozen=True, slots=True)
class _Channels:
    """Means and second moments of channels along an axis, in units of 10^unit and its square.

    `rest` is the correlation along each axis after the means of the channels are subtracted.
    """

    axis: int
    means: Array
    second: Array
    unit: float
    rest: Sequence[float]


def _behind(coarse: TransferResult, found: _Channels) -> Signal:
    """Return the signal after an operator, with these moments of its channels."""
    axis, means, second, rest = found.axis, found.means, found.second, found.rest
    whole = float(second.mean())
    if not 0.0 < whole < math.inf:
        return coarse.signal
    scaled, constant = means / math.sqrt(whole), float(np.mean(means * means)) / whole
    shared = tuple(
        float(scaled.mean()) ** 2 if index == axis else min(max(constant + (1.0 - constant) * rest[index], -1.0), 1.0)
        for index in range(len(coarse.signal.shared))
    )
    profile = replaced(coarse.signal.profile, axis, second)
    return replace(
        coarse.signal,
        level=found.unit + 0.5 * math.log10(whole),
        mean=float(scaled.mean()),
        means=scaled,
        shared=shared,
        profile=profile,
        channels=axis,
        distribution=None,
        fixed=NOTHING,
    )


def _rest(signal: Signal) -> list[float]:
    """Return the correlation of a signal along each axis after the means of its channels are subtracted."""
    constant = float(np.mean(signal.means**2)) if signal.means is not None else signal.mean**2
    left = max(1.0 - constant, 1e-9)
    return [min(max((share - constant) / left, -1.0), 1.0) for share in signal.shared]


def _layer(call: Call, coarse: TransferResult, signal: Signal) -> TransferResult:
    layer, weight = coarse.layer, call.node.weights["weight"]
    if layer is None or (len(weight.shape) != 2 and kind_of(call.node) is Kind.LINEAR):
        return coarse
    rows = Rows(weight, layer.groups)
    found = _moments(signal if signal.channels == layer.axis else replace(signal, channels=layer.axis, means=None), rows.inputs)
    full = mean_square(weight) * layer.full
    if found is None or full <= 0.0 or coarse.signal.sizes[layer.axis] != rows.squares.shape[0]:
        return coarse
    inside = layer.seen / layer.full  # share of the taps that are not on padding
    bias = call.node.weights.get("bias")
    offset = np.asarray(bias.array(), dtype=np.float64).reshape(-1) * 10.0**-signal.level if bias is not None else 0.0
    means = rows.forward(rows.means, found[0]) * inside + offset
    second = rows.forward(rows.squares, found[1]) * inside + means * means
    output = _behind(coarse, _Channels(layer.axis, means, second, signal.level, _rest(signal)))

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        cotangent = joined(terms, output)
        own = values_along(cotangent.profile, layer.axis, second.size)
        landed = rows.backward(own)
        apart = tuple(0.0 if index == layer.axis else value for index, value in enumerate(cotangent.correlation))
        even = replace(cotangent, correlation=apart, profile=without(cotangent.profile, (layer.axis,)), coherence=None)
        for slot, term in coarse.pullback([CotangentTerm(even)]):
            energy = term.cotangent.energy + log10(float(landed.sum()) / float(own.sum()) / full)
            profile = replaced(term.cotangent.profile, layer.axis, landed)
            correlation = tuple(0.0 if index == layer.axis else value for index, value in enumerate(term.cotangent.correlation))
            yield slot, CotangentTerm(replace(term.cotangent, energy=energy, profile=profile, correlation=correlation))

    return replace(coarse, signal=output, pullback=back)


def _function(call: Call, coarse: TransferResult, signal: Signal) -> TransferResult:
    function, axis = function_of(call.node), signal.channels
    found = _moments(signal, signal.sizes[axis]) if axis is not None else None
    if function is None or found is None or axis is None or signal.sizes != coarse.signal.sizes:
        return coarse
    scale = 10.0**signal.level
    result = mapped(function, found[0] * scale, found[1] * scale * scale)
    if result is None:
        return coarse
    means, second, slopes = result
    output = _behind(coarse, _Channels(axis, means, second, 0.0, _rest(signal)))
    slot = call.signals[0][0]

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        cotangent = joined(terms, output)
        gain = mean_product(cotangent.profile, axis, slopes)
        profile = times(cotangent.profile, axis, slopes)
        yield (
            slot,
            CotangentTerm(
                replace(cotangent, energy=cotangent.energy + log10(gain), profile=profile, projected_out=NOTHING, coherence=None)
            ),
        )

    return replace(coarse, signal=output, pullback=back)


def _sum(coarse: TransferResult, operands: Sequence[Signal]) -> TransferResult:
    axis, sizes = operands[0].channels, coarse.signal.sizes
    if axis is None or any(signal.channels != axis or signal.sizes != sizes for signal in operands):
        return coarse
    unit = max(signal.level for signal in operands)
    means, variances = np.zeros(sizes[axis]), np.zeros(sizes[axis])
    for signal in operands:
        found = _moments(signal, sizes[axis])
        if found is None:
            return coarse
        means = means + found[0] * 10.0 ** (signal.level - unit)
        variances = variances + found[1] * 10.0 ** (2.0 * (signal.level - unit))
    rest = [max(pair) for pair in zip(*map(_rest, operands), strict=True)]
    return replace(coarse, signal=_behind(coarse, _Channels(axis, means, variances + means * means, unit, rest)))


def _side_by_side(coarse: TransferResult, operands: Sequence[Signal]) -> TransferResult:
    axis = operands[0].channels
    if axis is None or any(signal.channels != axis for signal in operands):
        return coarse
    if sum(signal.sizes[axis] for signal in operands) != coarse.signal.sizes[axis]:
        return coarse
    unit = max(signal.level for signal in operands)
    means, second = [], []
    for signal in operands:
        found = _moments(signal, signal.sizes[axis])
        if found is None:
            return coarse
        means.append(found[0] * 10.0 ** (signal.level - unit))
        second.append(second_moments(signal) * 10.0 ** (2.0 * (signal.level - unit)))
    rest = [min(row) for row in zip(*map(_rest, operands), strict=True)]
    return replace(coarse, signal=_behind(coarse, _Channels(axis, np.concatenate(means), np.concatenate(second), unit, rest)))


def _norm(call: Call, coarse: TransferResult, signal: Signal) -> TransferResult:
    """Refine a BatchNorm: an affine map on running statistics, or mean beta and variance gamma^2 on batch statistics."""
    axis = signal.channels
    found = _moments(signal, signal.sizes[axis]) if axis is not None else None
    weights, size = call.node.weights, signal.sizes[axis] if axis is not None else 0
    if axis is None or found is None or any(weights[role].size != size for role in weights):
        return coarse
    values = {role: np.asarray(weight.array(), dtype=np.float64).reshape(-1) for role, weight in weights.items()}
    gamma, beta = values.get("scale", np.ones(size)), values.get("bias", np.zeros(size))
    if call.node.attrs.get("training", call.training) or "running_var" not in values:
        own = _Channels(axis, beta, gamma * gamma + beta * beta, 0.0, [0.0] * len(signal.sizes))
        return replace(coarse, signal=_behind(coarse, own))
    eps = float(call.node.attrs.get("eps", call.node.attrs.get("epsilon", 1e-5)) or 0.0)
    scale = gamma / np.sqrt(np.maximum(values["running_var"] + eps, 1e-30))
    unit = 10.0**signal.level
    means = (found[0] * unit - values.get("running_mean", np.zeros(size))) * scale + beta
    second = found[1] * unit * unit * scale * scale + means * means
    return replace(coarse, signal=_behind(coarse, _Channels(axis, means, second, 0.0, _rest(signal))))


def _averaged(coarse: TransferResult, signal: Signal) -> TransferResult:
    """Refine an average over positions, which keeps the means of channels and reduces their variances."""
    axis, output = signal.channels, coarse.signal
    if axis is None or axis >= len(output.sizes) or output.sizes[axis] != signal.sizes[axis]:
        return coarse
    found = _moments(signal, signal.sizes[axis])
    if found is None:
        return coarse
    same = len(output.sizes) == len(signal.sizes)
    window = [max(old // max(new, 1), 1) for old, new in zip(signal.sizes, output.sizes, strict=True)] if same else None
    sizes = window if window is not None else [1 if index <= axis else size for index, size in enumerate(signal.sizes)]
    rest = _rest(signal)
    kept = averaged(sizes, rest, [index for index, size in enumerate(sizes) if size > 1])
    second = found[1] * kept + found[0] ** 2
    left = [min(share / max(kept, 1e-9), 1.0) for share in rest[: len(output.sizes)]]
    return replace(coarse, signal=_behind(coarse, _Channels(axis, found[0], second, signal.level, left)))
