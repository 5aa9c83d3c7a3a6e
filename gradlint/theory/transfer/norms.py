"""Transfer rules of normalization: a signal divided by its standard deviation, or root mean square, over some axes.

The backward factor is gamma^2 / v for the variance v that the normalization divides by. BatchNorm divides by the part of the
variance that varies over the batch (Yang et al. 2019, arXiv 1902.08129), the others by all of it (Doshi, He, Gromov 2021, arXiv
2111.12143).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gradlint.graph import Weight
from gradlint.ops import Kind
from gradlint.theory.gaussian.dispersion import UNCORRELATED, ChanceCorrelation, VarianceSpread, variance_spread
from gradlint.theory.gaussian.pointwise_of_gaussian import spherical
from gradlint.theory.initialization import is_constant
from gradlint.theory.transfer.coherence import Coherence
from gradlint.theory.transfer.profiles import mean_product, times, without
from gradlint.theory.transfer.rule import (
    TRANSFER,
    Call,
    OperandCotangents,
    TransferResult,
    as_gaussian,
    constant_part,
    half_log,
    mean_of,
    mean_square,
    part_of,
    scaled,
    single_operand,
    total,
)
from gradlint.theory.transfer.signal import Cotangent, CotangentTerm, Signal, along_signal, averaged, joined

if TYPE_CHECKING:
    from gradlint.theory.gaussian.pointwise_of_gaussian import Array
    from gradlint.theory.transfer.profiles import Profile

_EPS = 1e-5
_NOISE = 5e-4  # decades^2 that each norm adds, measured on 49 networks with BatchNorm (benchmarks/theory_random.py)


@dataclass(frozen=True, slots=True)
class NormalizedAxes:
    """The axes over which a normalization computes its statistics, and the length of each axis within one group.

    `centered` says whether the mean is subtracted.
    """

    axes: tuple[int, ...]
    sizes: tuple[int, ...]
    centered: bool = True


@TRANSFER.rule(Kind.NORM)
def norm(call: Call) -> TransferResult | None:
    """Return the transfer of a normalization."""
    found = call.signals
    if not found or len(found[0][1].sizes) != len(call.sizes) or not call.sizes:
        return None
    slot, signal = found[0]
    if call.node.op == "batch_norm" and not _on_batch(call):
        return _running(call, slot, signal)
    if call.node.op == "local_response_norm":
        return None
    over = statistics_of(call, signal)
    return None if over is None else _normalized(call, slot, signal, over)


def _on_batch(call: Call) -> bool:
    return bool(call.node.attrs.get("training", call.training)) or "running_var" not in call.node.weights


def statistics_of(call: Call, signal: Signal) -> NormalizedAxes | None:
    """Return the axes over which a normalization computes the statistics of its input."""
    node, sizes = call.node, signal.sizes
    rank = len(sizes)
    channel = 1 if rank > 1 else 0
    if node.op == "batch_norm":
        return NormalizedAxes(tuple(axis for axis in range(rank) if axis != channel), sizes)
    if node.op == "instance_norm":
        return NormalizedAxes(tuple(range(channel + 1, rank)), sizes)
    if node.op == "group_norm":
        groups = int(node.attrs.get("num_groups", 1))
        inside = tuple(max(size // groups, 1) if axis == channel else size for axis, size in enumerate(sizes))
        return NormalizedAxes(tuple(range(channel, rank)), inside)
    if node.op == "l2_normalize":
        axis = node.attrs.get("dim", node.attrs.get("axis", 1))
        return NormalizedAxes((int(axis) % rank,) if isinstance(axis, int) else (channel,), sizes, centered=False)
    count = _normalized_axes(node.attrs, rank)
    return NormalizedAxes(tuple(range(rank - count, rank)), sizes, centered=node.op != "rms_norm")


def _normalized_axes(attrs: object, rank: int) -> int:
    """Return the number of trailing axes of a layer norm, from `normalized_shape` in torch or `axis` in ONNX."""
    known = attrs if hasattr(attrs, "get") else {}
    shape, axis = known.get("normalized_shape"), known.get("axis")
    if isinstance(shape, Sequence) and not isinstance(shape, str):
        return min(max(len(shape), 1), rank)
    return rank - int(axis) % rank if isinstance(axis, int) else 1


def _normalized(call: Call, slot: int, signal: Signal, over: NormalizedAxes) -> TransferResult:
    """Return the transfer of a normalization on the statistics of its input.

    The second moment is gamma^2 v / (v + eps) for the variance v over the axes. The cotangent loses its components along the
    constant vector and along the normalized signal.
    """
    common = min(averaged(over.sizes, signal.shared, over.axes), 1.0 - 1e-9)
    lost = common if over.centered else 0.0
    summed = math.prod(over.sizes[axis] for axis in over.axes) if call.node.op == "l2_normalize" else 1.0
    eps = (
        0.0 if call.node.op == "l2_normalize" else float(call.node.attrs.get("eps", call.node.attrs.get("epsilon", _EPS)) or 0.0)
    )
    small = eps * 10.0 ** min(-signal.log_q, 300.0) / (1.0 - lost)
    units = _Units(call, signal, over, small)
    shared = tuple(_rest(share, lost, low=-1.0 if axis in over.axes else 0.0) for axis, share in enumerate(signal.shared))
    level = half_log(units.power) - 0.5 * math.log10(summed)
    layout = as_gaussian(signal, level=level, mean=0.0 if over.centered else signal.mean, shared=shared, variance=0.0)
    output = replace(_with_bias(call, layout), profile=units.profile(signal.profile), variance=0.0)
    output = replace(output, fixed={over.axes: 10.0 ** (2.0 * (2.0 * level - 2.0 * output.level))})
    found = _variance_spread(signal, over, common)
    limited = found.uneven(units.unlike(signal.chance.scaled(min(max(1.0 - signal.shared[0], 0.0) / (1.0 - lost), 1.0))))
    chance = signal.chance
    if units.whole:
        few = chance.share < 1.0 - 1e-9 and 2.0 * chance.directions < found.degrees
        inverse = VarianceSpread((chance.directions,), (chance.share,), 1.0 - chance.share).inverse_mean() if few else 1.0
        chance = chance.evened(inverse) if few else chance.scaled(found.degrees / (found.degrees + 2.0))
    output = replace(output, chance=chance)
    if over.centered and output.mean == 0.0 and output.level == level:
        distribution = spherical(call.node.id, level, output.shared, found.degrees)
        output = replace(
            output, distribution=replace(distribution, chance=output.chance, neighbor_correlation=output.neighbor_correlation)
        )

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        cotangent = joined(terms, output)
        factor = 10.0 ** min(-signal.log_q, 300.0) / (1.0 - lost) / summed
        gain, profile = units.pulled(cotangent.profile)
        kept = _kept(cotangent, output, over, *along_signal(terms, output))
        factor *= gain * kept
        factor *= limited.inverse_mean(small)  # the units hold 1 / (1 + small)
        pulled = scaled(
            cotangent, factor, _centered_correlation(cotangent, over), variance=signal.variance + _NOISE, profile=profile
        )
        yield slot, CotangentTerm(replace(pulled, projected_out={over.axes: 1.0}, coherence=_left(cotangent, output, over, kept)))

    return TransferResult(output, back)


def _rest(share: float, lost: float, *, low: float = -1.0) -> float:
    """Return the correlation that is left of a shared second moment after a mean is subtracted."""
    return min(max((share - lost) / (1.0 - lost), low), 1.0)


def _variance_spread(signal: Signal, over: NormalizedAxes, common: float) -> VarianceSpread:
    """Return the spread of the variance that a norm divides by.

    The part that a preceding BatchNorm has fixed does not vary, nor does the squared mean that an RMSNorm includes.
    """
    if over.centered:
        before = min(signal.fixed.get(over.axes, 0.0) / (1.0 - common) ** 2, 1.0)
        return variance_spread(over.sizes, signal.shared, over.axes, centered=True, steady=1.0 - math.sqrt(1.0 - before))
    constant = min(max(min((signal.shared[axis] for axis in over.axes), default=0.0), 0.0), 1.0 - 1e-9)
    before = min(signal.fixed.get(over.axes, 0.0) + constant**2, 1.0)
    rest = [_rest(share, constant) for share in signal.shared]
    return variance_spread(over.sizes, rest, over.axes, centered=False, steady=1.0 - math.sqrt(1.0 - before))


class _Units:
    """The effect of a norm on the axes that it does not run over, where each unit has its own standard deviation and gamma."""

    def __init__(self, call: Call, signal: Signal, over: NormalizedAxes, small: float) -> None:
        own = {axis: values for axis, values in signal.profile.items() if axis not in over.axes}
        if signal.channel_variance is not None and over.axes == tuple(axis for axis in range(len(signal.sizes)) if axis != 1):
            own |= {1: signal.channel_variance}
        self._apart, self._over, self._sizes = own, over.axes, over.sizes
        self._small = small
        self._axis = _scale_axis(call, over)
        self._gamma = _squares(call.node.weights.get("scale"), signal.sizes[self._axis])
        self._mean_gamma = mean_square(call.node.weights.get("scale"), 1.0)

    def _power(self, axis: int, *, slope: bool) -> Array | float:
        """Return the second moment of each unit along an axis after the norm, or its squared slope in units of 1/q."""
        own = self._apart.get(axis, 1.0)
        lead = self._gamma if axis == self._axis and self._gamma is not None else 1.0
        return lead / (own + self._small) if slope else lead * own / (own + self._small)

    def _axes(self) -> list[int]:
        return sorted({*self._apart, self._axis})

    @property
    def whole(self) -> bool:
        """Whether each channel is divided by its own standard deviation."""
        return self._axis not in self._over

    def unlike(self, chance: ChanceCorrelation) -> ChanceCorrelation:
        """Return the chance correlation of elements of one channel that are normalized together at different positions.

        Half of the variance of the channel variances is subtracted, because the profile already accounts for it.
        """
        if not any(self._sizes[axis] > 1 for axis in self._over if axis != self._axis):
            return UNCORRELATED
        own = self._apart.get(self._axis)
        known = 0.5 * float(np.var(own)) if own is not None else 0.0
        return chance.less(known).scaled(1.0 if self.whole else self._sizes[self._axis] ** -0.5)

    @property
    def power(self) -> float:
        """Mean second moment after the norm."""
        flat = 1.0 if self._gamma is not None else self._mean_gamma
        return flat * math.prod(float(np.mean(self._power(axis, slope=False))) for axis in self._axes())

    def profile(self, before: Profile) -> Profile:
        """Return the profile after the norm: axes that the norm runs over keep theirs, the others get that of gamma."""
        return times(without(before, self._apart), self._axis, self._power(self._axis, slope=False))

    def pulled(self, profile: Profile) -> tuple[float, Profile]:
        """Return the mean squared slope for a cotangent of this profile, and the profile of the cotangent before the norm."""
        gain = 1.0 if self._gamma is not None else self._mean_gamma
        for axis in self._axes():
            slope = self._power(axis, slope=True)
            gain *= mean_product(profile, axis, slope)
            profile = times(profile, axis, slope)
        return gain, profile


def _scale_axis(call: Call, over: NormalizedAxes) -> int:
    """Return the axis that gamma runs along."""
    rank = len(call.sizes)
    if call.node.op in {"batch_norm", "group_norm", "instance_norm"}:
        return 1 if rank > 1 else 0
    return over.axes[-1] if over.axes else rank - 1


def _kept(cotangent: Cotangent, output: Signal, over: NormalizedAxes, ratio: float, correlation: Sequence[float]) -> float:
    """Return the share of a cotangent that is orthogonal to the normalized signal and, if the norm centers, to a constant.

    Args:
        cotangent: The cotangent of the output.
        output: The signal after the norm.
        over: The axes of the norm.
        ratio: E (g h)^2 / (E g^2 E h^2) of cotangent and signal.
        correlation: Correlation of g h along each axis.
    """
    along_one = averaged(over.sizes, cotangent.correlation, over.axes) if over.centered else 0.0
    free, own = 1.0 - cotangent.projected_out.get(over.axes, 0.0), cotangent.coherence
    if own is None or own.axis not in over.axes or (over.centered and output.mean != 0.0):
        return max(1.0 - along_one - free * ratio * averaged(over.sizes, correlation, over.axes), 1e-6)
    inside = over.sizes[own.axis]
    groups, places = output.sizes[own.axis] / inside, [axis for axis in over.axes if axis != own.axis]
    known = free * (1.0 - 1.0 / groups) + float(own.moments[1, 1]) / groups
    return max(1.0 - along_one - known * averaged(over.sizes, own.correlation, places) / inside, 1e-6)


def _left(cotangent: Cotangent, output: Signal, over: NormalizedAxes, kept: float) -> Coherence | None:
    """Return the coherence of a cotangent before a norm over channels: zero, except for the sum over channels of an RMSNorm."""
    own = cotangent.coherence
    if own is None or own.axis not in over.axes:
        return None
    (ones, both), (_, along) = own.moments
    moments = np.zeros((2, 2))
    if not over.centered:
        moments[0, 0] = max(ones - 2.0 * output.mean * both + output.mean**2 * along, 0.0) / kept
    return Coherence(moments, own.axis, own.correlation)


def _centered_correlation(cotangent: Cotangent, over: NormalizedAxes) -> tuple[float, ...]:
    """Return the correlation of a cotangent whose mean over the axes was subtracted: -1/(N-1) for N independent elements."""
    if not over.centered:
        return cotangent.correlation
    mean = min(averaged(over.sizes, cotangent.correlation, over.axes), 1.0 - 1e-9)
    return tuple(_rest(value, mean) if axis in over.axes else value for axis, value in enumerate(cotangent.correlation))


def _squares(gamma: Weight | None, size: int) -> Array | None:
    """Return gamma^2 for each unit along an axis of this length; None if all are equal or the shape is another."""
    if gamma is None or gamma.size != size or gamma.size > 1 << 16 or is_constant(gamma):
        return None
    return np.square(_values(gamma))


def _with_bias(call: Call, layout: Signal) -> Signal:
    bias = call.node.weights.get("bias")
    if bias is None or mean_square(bias) == 0.0:
        return layout
    channel = 1 if call.node.op in {"batch_norm", "group_norm", "instance_norm"} and len(call.sizes) > 1 else len(call.sizes) - 1
    spans = [axis == channel for axis in range(len(call.sizes))]
    return total([part_of(layout), constant_part(mean_square(bias), mean_of(bias), spans)], layout)


def _running(call: Call, slot: int, signal: Signal) -> TransferResult:
    """Return the transfer of a norm on running statistics, which is a scale and a shift of each channel."""
    node = call.node
    eps = float(node.attrs.get("eps", node.attrs.get("epsilon", _EPS)) or 0.0)
    variance = np.maximum(_values(node.weights["running_var"]) + eps, 1e-30)
    gamma = _values(node.weights["scale"]) if "scale" in node.weights else 1.0
    fit = _fit(gamma, variance)
    factors = gamma * gamma / variance if fit else mean_square(node.weights["scale"]) / float(np.mean(variance))
    axis = 1 if len(call.sizes) > 1 else 0
    factor = mean_product(signal.profile, axis, factors)
    scaled_down = as_gaussian(signal, level=signal.level + half_log(factor), profile=times(signal.profile, axis, factors))
    mean = node.weights.get("running_mean")
    if mean is not None and mean_square(mean) > 0.0:
        means = _values(mean)
        offset = float(np.mean(means * means * factors)) if _fit(means, factors) else 0.0
        spans = [axis == 1 for axis in range(len(call.sizes))]
        scaled_down = total([part_of(scaled_down), constant_part(offset, 0.0, spans)], scaled_down)
    output = _with_bias(call, scaled_down)

    def back(cotangent: Cotangent) -> Cotangent:
        gain = mean_product(cotangent.profile, axis, factors)
        return scaled(cotangent, gain, profile=times(cotangent.profile, axis, factors))

    return TransferResult(output, single_operand(slot, output, back))


def _values(weight: Weight) -> Array | float:
    """Return the values of a weight, or one number if all are equal, which saves reading the weight again."""
    return weight.statistics.mean if is_constant(weight) else np.asarray(weight.vector, dtype=np.float64)


def _fit(left: Array | float, right: Array | float) -> bool:
    """Return whether two arrays of channel values have equal shapes, or one of them is a single number."""
    return np.ndim(left) == 0 or np.ndim(right) == 0 or np.shape(left) == np.shape(right)
