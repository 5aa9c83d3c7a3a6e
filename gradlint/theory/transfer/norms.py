"""Transfer rules of normalisations: a signal divided by what varies of it over some axes (THEORY section 2)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gradlint.graph import Weight
from gradlint.theory.gaussian.dispersion import NO_CHANCE, Chance, Scatter, scatter
from gradlint.theory.gaussian.pointwise_of_gaussian import spherical
from gradlint.theory.initialization import is_constant
from gradlint.theory.transfer.coherence import Coherence
from gradlint.theory.transfer.profiles import mean_product, times, without
from gradlint.theory.transfer.rule import (
    Call,
    Moved,
    Pulls,
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
from gradlint.theory.transfer.signal import Cotangent, Pull, Signal, along_signal, averaged, joined

if TYPE_CHECKING:
    from gradlint.theory.gaussian.pointwise_of_gaussian import Array
    from gradlint.theory.transfer.profiles import Profile

_EPS = 1e-5
_NOISE = 5e-4  # decades^2 that each norm adds: 90 % intervals hold for 49 networks with BatchNorm (benchmarks/theory_random.py)


@dataclass(frozen=True, slots=True)
class Over:
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
    over = statistics_of(call, signal)
    return None if over is None else _normalised(call, slot, signal, over)


def _on_batch(call: Call) -> bool:
    return bool(call.node.attrs.get("training", call.training)) or "running_var" not in call.node.weights


def statistics_of(call: Call, signal: Signal) -> Over | None:
    """What a norm on the statistics of its input normalises together; None for a norm of another kind."""
    node, sizes = call.node, signal.sizes
    rank = len(sizes)
    channel = 1 if rank > 1 else 0
    if node.op == "batch_norm":
        return Over(tuple(axis for axis in range(rank) if axis != channel), sizes)
    if node.op == "instance_norm":
        return Over(tuple(range(channel + 1, rank)), sizes)
    if node.op == "group_norm":
        groups = int(node.attrs.get("num_groups", 1))
        inside = tuple(max(size // groups, 1) if axis == channel else size for axis, size in enumerate(sizes))
        return Over(tuple(range(channel, rank)), inside)
    if node.op == "l2_normalize":
        axis = node.attrs.get("dim", node.attrs.get("axis", 1))
        return Over((int(axis) % rank,) if isinstance(axis, int) else (channel,), sizes, centred=False)
    count = _normalised_axes(node.attrs, rank)
    return Over(tuple(range(rank - count, rank)), sizes, centred=node.op != "rms_norm")


def _normalised_axes(attrs: object, rank: int) -> int:
    """How many of the last axes a layer norm runs over: `normalized_shape` in torch, `axis` in ONNX."""
    known = attrs if hasattr(attrs, "get") else {}
    shape, axis = known.get("normalized_shape"), known.get("axis")
    if isinstance(shape, Sequence) and not isinstance(shape, str):
        return min(max(len(shape), 1), rank)
    return rank - int(axis) % rank if isinstance(axis, int) else 1


def _normalised(call: Call, slot: int, signal: Signal, over: Over) -> Moved:
    """Second moment gamma^2 v / (v + eps), v the variance over the axes; the gradient loses what lies along 1 and x."""
    common = min(averaged(over.sizes, signal.shared, over.axes), 1.0 - 1e-9)
    lost = common if over.centred else 0.0
    summed = math.prod(over.sizes[axis] for axis in over.axes) if call.node.op == "l2_normalize" else 1.0
    eps = (
        0.0 if call.node.op == "l2_normalize" else float(call.node.attrs.get("eps", call.node.attrs.get("epsilon", _EPS)) or 0.0)
    )
    small = eps * 10.0 ** min(-signal.log_q, 300.0) / (1.0 - lost)
    units = _Units(call, signal, over, small)
    shared = tuple(_rest(share, lost, low=-1.0 if axis in over.axes else 0.0) for axis, share in enumerate(signal.shared))
    level = half_log(units.power) - 0.5 * math.log10(summed)
    layout = plain(signal, level=level, mean=0.0 if over.centred else signal.mean, shared=shared, variance=0.0)
    behind = replace(_with_bias(call, layout), profile=units.profile(signal.profile), variance=0.0)
    behind = replace(behind, fixed={over.axes: 10.0 ** (2.0 * (2.0 * level - 2.0 * behind.level))})
    found = _scatter(signal, over, common)
    limited = found.uneven(units.unlike(signal.chance.scaled(min(max(1.0 - signal.shared[0], 0.0) / (1.0 - lost), 1.0))))
    chance = signal.chance
    if units.whole:
        few = chance.share < 1.0 - 1e-9 and 2.0 * chance.directions < found.degrees
        inverse = Scatter((chance.directions,), (chance.share,), 1.0 - chance.share).inverse_mean() if few else 1.0
        chance = chance.evened(inverse) if few else chance.scaled(found.degrees / (found.degrees + 2.0))
    behind = replace(behind, chance=chance)
    if over.centred and behind.mean == 0.0 and behind.level == level:
        distribution = spherical(call.node.id, level, behind.shared, found.degrees)
        behind = replace(behind, distribution=replace(distribution, chance=behind.chance, near=behind.near))

    def back(pulls: Sequence[Pull]) -> Pulls:
        cotangent = joined(pulls, behind)
        factor = 10.0 ** min(-signal.log_q, 300.0) / (1.0 - lost) / summed
        gain, profile = units.pulled(cotangent.profile)
        kept = _kept(cotangent, behind, over, *along_signal(pulls, behind))
        factor *= gain * kept
        factor *= limited.inverse_mean(small)  # the units hold 1 / (1 + small)
        pulled = scaled(cotangent, factor, _centred_along(cotangent, over), variance=signal.variance + _NOISE, profile=profile)
        yield slot, Pull(replace(pulled, spent={over.axes: 1.0}, coherence=_left(cotangent, behind, over, kept)))

    return Moved(behind, back)


def _rest(share: float, lost: float, *, low: float = -1.0) -> float:
    """Correlation that is left of a share when a mean is taken off."""
    return min(max((share - lost) / (1.0 - lost), low), 1.0)


def _scatter(signal: Signal, over: Over, common: float) -> Scatter:
    """How the variance that a norm takes scatters: less by what a BatchNorm has just set of it, or by the square of a mean."""
    if over.centred:
        before = min(signal.fixed.get(over.axes, 0.0) / (1.0 - common) ** 2, 1.0)
        return scatter(over.sizes, signal.shared, over.axes, centred=True, steady=1.0 - math.sqrt(1.0 - before))
    constant = min(max(min((signal.shared[axis] for axis in over.axes), default=0.0), 0.0), 1.0 - 1e-9)
    before = min(signal.fixed.get(over.axes, 0.0) + constant**2, 1.0)
    rest = [_rest(share, constant) for share in signal.shared]
    return scatter(over.sizes, rest, over.axes, centred=False, steady=1.0 - math.sqrt(1.0 - before))


class _Units:
    """What a norm does to the axes that it keeps apart: each unit is divided by its own deviation, and scaled by its gamma."""

    def __init__(self, call: Call, signal: Signal, over: Over, small: float) -> None:
        own = {axis: values for axis, values in signal.profile.items() if axis not in over.axes}
        if signal.inside is not None and over.axes == tuple(axis for axis in range(len(signal.sizes)) if axis != 1):
            own |= {1: signal.inside}
        self._apart, self._over, self._inside = own, over.axes, over.sizes
        self._small = small
        self._axis = _scale_axis(call, over)
        self._gamma = _squares(call.node.weights.get("scale"), signal.sizes[self._axis])
        self._mean_gamma = mean_square(call.node.weights.get("scale"), 1.0)

    def _power(self, axis: int, *, slope: bool) -> Array | float:
        """Second moment behind the norm per unit along an axis, or the slope in units of 1/q."""
        own = self._apart.get(axis, 1.0)
        lead = self._gamma if axis == self._axis and self._gamma is not None else 1.0
        return lead / (own + self._small) if slope else lead * own / (own + self._small)

    def _axes(self) -> list[int]:
        return sorted({*self._apart, self._axis})

    @property
    def whole(self) -> bool:
        """Whether each channel is divided by its own deviation, which evens out the sizes of directions over samples."""
        return self._axis not in self._over

    def unlike(self, chance: Chance) -> Chance:
        """What elements normalised together have in common by chance, in square: those of one channel at other places.

        Less what is known already of the variances of channels: half of their own variance, as that of a `Scatter`.
        """
        if not any(self._inside[axis] > 1 for axis in self._over if axis != self._axis):
            return NO_CHANCE
        own = self._apart.get(self._axis)
        known = 0.5 * float(np.var(own)) if own is not None else 0.0
        return chance.less(known).scaled(1.0 if self.whole else self._inside[self._axis] ** -0.5)

    @property
    def power(self) -> float:
        """Mean second moment behind the norm."""
        flat = 1.0 if self._gamma is not None else self._mean_gamma
        return flat * math.prod(float(np.mean(self._power(axis, slope=False))) for axis in self._axes())

    def profile(self, before: Profile) -> Profile:
        """Profile behind the norm: axes that are normalised over keep theirs, the others get that of gamma."""
        return times(without(before, self._apart), self._axis, self._power(self._axis, slope=False))

    def pulled(self, profile: Profile) -> tuple[float, Profile]:
        """Mean slope under a cotangent of this profile, and the profile that it has before the norm."""
        gain = 1.0 if self._gamma is not None else self._mean_gamma
        for axis in self._axes():
            slope = self._power(axis, slope=True)
            gain *= mean_product(profile, axis, slope)
            profile = times(profile, axis, slope)
        return gain, profile


def _scale_axis(call: Call, over: Over) -> int:
    """The axis that gamma runs along."""
    rank = len(call.sizes)
    if call.node.op in {"batch_norm", "group_norm", "instance_norm"}:
        return 1 if rank > 1 else 0
    return over.axes[-1] if over.axes else rank - 1


def _kept(cotangent: Cotangent, behind: Signal, over: Over, ratio: float, alike: Sequence[float]) -> float:
    """Share of a cotangent that is orthogonal to the constant vector (where the norm centres) and to the normalised signal.

    Of what is known about the cotangent and all channels together, a norm over one group of them takes the part that each group
    has by itself.
    """
    along_one = averaged(over.sizes, cotangent.alike, over.axes) if over.centred else 0.0
    free, own = 1.0 - cotangent.spent.get(over.axes, 0.0), cotangent.coherence
    if own is None or own.axis not in over.axes or (over.centred and behind.mean != 0.0):
        return max(1.0 - along_one - free * ratio * averaged(over.sizes, alike, over.axes), 1e-6)
    inside = over.sizes[own.axis]
    groups, places = behind.sizes[own.axis] / inside, [axis for axis in over.axes if axis != own.axis]
    known = free * (1.0 - 1.0 / groups) + float(own.moments[1, 1]) / groups
    return max(1.0 - along_one - known * averaged(over.sizes, own.alike, places) / inside, 1e-6)


def _left(cotangent: Cotangent, behind: Signal, over: Over, kept: float) -> Coherence | None:
    """What a cotangent has in common with the signal before a norm over channels: nothing but, without centring, its sum."""
    own = cotangent.coherence
    if own is None or own.axis not in over.axes:
        return None
    (ones, both), (_, along) = own.moments
    moments = np.zeros((2, 2))
    if not over.centred:
        moments[0, 0] = max(ones - 2.0 * behind.mean * both + behind.mean**2 * along, 0.0) / kept
    return Coherence(moments, own.axis, own.alike)


def _centred_along(cotangent: Cotangent, over: Over) -> tuple[float, ...]:
    """Correlations of a cotangent that has lost its mean over the normalised axes: -1/(N-1) between N that were independent."""
    if not over.centred:
        return cotangent.alike
    mean = min(averaged(over.sizes, cotangent.alike, over.axes), 1.0 - 1e-9)
    return tuple(_rest(value, mean) if axis in over.axes else value for axis, value in enumerate(cotangent.alike))


def _squares(gamma: Weight | None, size: int) -> Array | None:
    """Squares of gamma for every unit along an axis of this length, None where all are equal or gamma is laid out otherwise."""
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


def _running(call: Call, slot: int, signal: Signal) -> Moved:
    """On running statistics a norm is a scale and a shift per channel."""
    node = call.node
    eps = float(node.attrs.get("eps", node.attrs.get("epsilon", _EPS)) or 0.0)
    variance = np.maximum(_values(node.weights["running_var"]) + eps, 1e-30)
    gamma = _values(node.weights["scale"]) if "scale" in node.weights else 1.0
    fit = _fit(gamma, variance)
    factors = gamma * gamma / variance if fit else mean_square(node.weights["scale"]) / float(np.mean(variance))
    axis = 1 if len(call.sizes) > 1 else 0
    factor = mean_product(signal.profile, axis, factors)
    scaled_down = plain(signal, level=signal.level + half_log(factor), profile=times(signal.profile, axis, factors))
    mean = node.weights.get("running_mean")
    if mean is not None and mean_square(mean) > 0.0:
        means = _values(mean)
        offset = float(np.mean(means * means * factors)) if _fit(means, factors) else 0.0
        spans = [axis == 1 for axis in range(len(call.sizes))]
        scaled_down = total([part_of(scaled_down), constant_part(offset, 0.0, spans)], scaled_down)
    behind = _with_bias(call, scaled_down)

    def back(cotangent: Cotangent) -> Cotangent:
        gain = mean_product(cotangent.profile, axis, factors)
        return scaled(cotangent, gain, profile=times(cotangent.profile, axis, factors))

    return Moved(behind, one(slot, behind, back))


def _values(weight: Weight) -> Array | float:
    """The values of a small weight, one number where all are equal: such a weight is not read again."""
    return weight.statistics.mean if is_constant(weight) else np.asarray(weight.vector, dtype=np.float64)


def _fit(left: Array | float, right: Array | float) -> bool:
    """Whether values per channel go together: as many of both, or one for all."""
    return np.ndim(left) == 0 or np.ndim(right) == 0 or np.shape(left) == np.shape(right)
