"""Transfer rules of pointwise operators: functions of one tensor, and sums and products of two.

Operands that are functions of one Gaussian tensor are combined exactly on its grid. Other operands count as independent.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from gradlint.ops import Kind, Pointwise, activation
from gradlint.theory.gaussian.functions import function_of
from gradlint.theory.gaussian.pointwise_of_gaussian import Distribution, Mapped, apply, expect, positive, rescaled
from gradlint.theory.transfer.coherence import Coherence, Summand, at_sum
from gradlint.theory.transfer.profiles import FLAT, both, mean_product, power, renumbered, times, without
from gradlint.theory.transfer.rule import (
    TRANSFER,
    Call,
    OperandCotangents,
    Part,
    TransferResult,
    as_gaussian,
    constant_part,
    half_log,
    log10,
    mean_of,
    mean_square,
    total,
)
from gradlint.theory.transfer.signal import (
    NOTHING,
    Cotangent,
    CotangentTerm,
    Signal,
    coherent_sum,
    joined,
    of_distribution,
    varying,
)

if TYPE_CHECKING:
    from gradlint.ops.pointwise import Function
    from gradlint.theory.gaussian.pointwise_of_gaussian import Array
    from gradlint.theory.transfer.profiles import Profile

_STEADY = 0.7  # mean over rms above which a signal counts as one that does not cross zero
_SKEWED = 0.3  # mean over rms of a summand above which a sum is far from normal (0.56 after a ReLU)
_UNLIKE_NORMAL = 1.8e-3  # decades^2 that each such sum adds: the error is 0.33 decades over the 16 sums of ResNet-50
_UNKNOWN_FACTOR = 0.25  # decades^2 that an unknown constant factor, such as a mask, adds


@TRANSFER.rule(Kind.ACTIVATION, Kind.MATH, "neg")
def mapped(call: Call) -> TransferResult | None:
    """Return the transfer of a function of one tensor, exact on the grid of its distribution.

    The backward factor is E phi'(z)^2 (Poole et al. 2016; Schoenholz et al. 2017).
    """
    found = call.signals
    function = function_of(call.node)
    if function is None or not found:
        return None
    slot, signal = found[0]
    distribution = signal.distribution_at(call.tensor(slot))
    result = _applied(function, distribution, steady=signal.mean > _STEADY)
    if result is None:
        return None
    linear = call.node.op == "neg" or (isinstance(function, Pointwise) and function.sides is not None)
    value, bend = _degrees(function, distribution) if signal.profile and not linear else (1.0, 0.0)
    output = of_distribution(result.distribution, signal, power(signal.profile, value), _degree(result, distribution))

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        for term in terms:
            slope, values = (
                (result.slope, result.distribution.values) if term.slope is None else (term.slope * result.slope, term.values)
            )
            cotangent = replace(term.cotangent, energy=term.cotangent.energy + result.log_factor, projected_out=NOTHING)
            if signal.profile and bend:
                cotangent = _bent(cotangent, signal.profile, bend)
            yield slot, CotangentTerm(cotangent, term.root, slope, values)

    return TransferResult(output, back)


def _applied(function: Function, distribution: Distribution, *, steady: bool) -> Mapped | None:
    """Apply a function to a distribution, or to a log-normal one if it is not finite and the signal is positive (`steady`)."""
    for candidate in (distribution, positive(distribution)) if steady else (distribution,):
        result = apply(function, candidate)
        if result.distribution.finite and np.isfinite(result.slope).all():
            return result
    return None


def _degree(result: Mapped, distribution: Distribution) -> float:
    """Return the power with which a function scales: d log rms of the output by d log rms of the input, clamped to [-3, 3]."""
    second = result.distribution.second
    degree = expect(result.distribution.values * result.slope * distribution.values) / second if second > 0.0 else 1.0
    return float(min(max(degree, -3.0), 3.0))


def _degrees(function: Function, distribution: Distribution) -> tuple[float, float]:
    """Return the powers of q with which the second moments of a function and of its slope scale near this signal."""
    near, far = (apply(function, distribution.with_values(distribution.values * factor)) for factor in (0.8, 1.25))
    step = 2.0 * math.log10(1.25 / 0.8)
    found = [
        2.0 * (far.distribution.level - near.distribution.level) / step,
        (log10(expect(far.slope * far.slope)) - log10(expect(near.slope * near.slope))) / step,
    ]
    value, bend = (0.0 if not math.isfinite(item) or abs(item) < 1e-3 else min(max(item, -3.0), 3.0) for item in found)
    return value, bend


def _bent(cotangent: Cotangent, profile: Profile, exponent: float) -> Cotangent:
    """Return a cotangent after a slope whose square scales as a power of the signal's second moment."""
    energy, own = cotangent.energy, cotangent.profile
    for axis, values in power(profile, exponent).items():
        energy += log10(mean_product(own, axis, values))
        own = times(own, axis, values)
    return replace(cotangent, energy=energy, profile=own)


@TRANSFER.rule(Kind.ADD)
def add(call: Call) -> TransferResult | None:
    """Return the transfer of a sum; second moments of summands that are uncorrelated except for their means add."""
    found = call.signals
    if len(found) == 1:
        return _add_constant(call, *found[0])
    scale = float(call.node.attrs.get("alpha", 1.0)) if isinstance(call.node.attrs.get("alpha"), (int, float)) else 1.0
    signs = [1.0, *([-scale if call.node.op == "sub" else scale] * (len(found) - 1))]
    together = _same_base(call, found)
    if together is not None:
        distributions = [distribution.values * sign for distribution, sign in zip(together, signs, strict=True)]
        slopes = [np.full_like(distributions[0], sign) for sign in signs]
        return _combined(call, found, replace(together[0], values=sum(distributions[1:], distributions[0])), slopes)
    parts = [_spread(call, signal, sign) for (_, signal), sign in zip(found, signs, strict=True)]
    widest = max((signal for _, signal in found), key=lambda signal: signal.size)
    output = total(parts, as_gaussian(widest, sizes=call.sizes, shared=parts[0].shared))
    skewed = any(signal.distribution is not None and abs(signal.mean) > _SKEWED for _, signal in found)

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        cotangent = joined(terms, output)
        cotangent = replace(cotangent, variance=cotangent.variance + _UNLIKE_NORMAL) if skewed else cotangent
        views = _views(call, cotangent, output, parts, signs)
        for (slot, signal), sign, part, view in zip(found, signs, parts, views, strict=True):
            projected_out = {
                axes: share * _angle(part, output, call.sizes, axes) for axes, share in cotangent.projected_out.items()
            }
            own = replace(cotangent, projected_out=projected_out, coherence=view)
            yield slot, CotangentTerm(unbroadcast(own, call.sizes, signal, sign * sign))

    return TransferResult(output, back)


def _angle(part: Part, output: Signal, sizes: tuple[int, ...], axes: tuple[int, ...]) -> float:
    """Return the squared cosine between a summand and the sum, both centered over axes: the ratio of their variances."""
    varies = varying(sizes, part.shared, axes) / max(varying(sizes, output.shared, axes), 1e-12)
    return float(min(10.0 ** min(part.log_q - output.log_q, 300.0) * varies, 1.0))


def _views(
    call: Call, cotangent: Cotangent, output: Signal, parts: Sequence[Part], signs: Sequence[float]
) -> Sequence[Coherence | None]:
    """Return the coherence of the cotangent of a sum with each summand."""
    if output.channels is None or not math.isfinite(output.level):
        return [None] * len(parts)
    layout = output.channels, call.sizes, [a * b for a, b in zip(cotangent.correlation, output.shared, strict=True)]
    sizes = [10.0 ** min(0.5 * (part.log_q - output.log_q), 100.0) for part in parts]
    summands = [Summand(*item) for item in zip(sizes, (part.mean for part in parts), signs, strict=True)]
    return at_sum(cotangent.coherence, call.node.id, layout, output.mean, summands)


def _add_constant(call: Call, slot: int, signal: Signal) -> TransferResult | None:
    weight = next(iter(call.node.weights.values()), None)
    if weight is None and isinstance(call.node.attrs.get("constant"), (int, float)):
        return mapped(call)
    negative = call.node.op == "sub" and slot == 1
    parts: list[Part] = []
    if weight is None or mean_square(weight) == 0.0:  # a mask, or a bias of zeros
        output = replace(signal, mean=-signal.mean, distribution=None) if negative else signal
    else:
        part = _spread(call, signal, -1.0 if negative else 1.0)
        spans = [size > 1 for size in _aligned(weight.shape, len(call.sizes))]
        bias = constant_part(mean_square(weight), mean_of(weight), spans)
        parts = [part, bias]
        output = total(parts, as_gaussian(signal, sizes=call.sizes, shared=part.shared))
    if output.sizes != call.sizes:
        output = as_gaussian(output, sizes=call.sizes, shared=_spread(call, signal).shared, profile=_spread(call, signal).profile)

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        if output is signal:
            yield from ((slot, term) for term in terms)
        else:
            cotangent = joined(terms, output)
            view = _views(call, cotangent, output, parts, [-1.0 if negative else 1.0, 1.0])[0] if parts else None
            yield slot, CotangentTerm(unbroadcast(replace(cotangent, coherence=view), call.sizes, signal))

    return TransferResult(output, back)


def _same_base(call: Call, found: Sequence[tuple[int, Signal]]) -> list[Distribution] | None:
    """Return the distributions of operands that are functions of one Gaussian tensor, or None if they are not."""
    bases = {call.tensor(slot) if signal.distribution is None else signal.distribution.base for slot, signal in found}
    if len(bases) > 1 or any(signal.sizes != found[0][1].sizes for _, signal in found):
        return None
    distributions = [signal.distribution_at(call.tensor(slot)) for slot, signal in found]
    return distributions if all(distribution.shift == distributions[0].shift for distribution in distributions) else None


def _combined(
    call: Call, found: Sequence[tuple[int, Signal]], made: Distribution, slopes: Sequence[Array]
) -> TransferResult | None:
    """Return the transfer of an operator whose operands are functions of one Gaussian tensor, given its output and slopes."""
    made = rescaled(made)
    if not (made.finite and all(np.isfinite(slope).all() for slope in slopes)):
        return None
    output = of_distribution(made, found[0][1])
    if len({call.ref(slot) for slot, _ in found}) < len(found) and len(found) == 2:
        slopes = [slopes[0] + slopes[1]]
        found = found[:1]

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        for (slot, _), slope in zip(found, slopes, strict=True):
            for term in terms:
                own, values = (slope, made.values) if term.slope is None else (term.slope * slope, term.values)
                yield slot, CotangentTerm(term.cotangent, term.root, own, values)

    return TransferResult(output, back)


@TRANSFER.rule(Kind.MUL)
def multiply(call: Call) -> TransferResult | None:
    """Return the transfer of a product or quotient; the second moments of independent factors multiply."""
    found = call.signals
    if len(found) != 2:
        return _scale(call, *found[0]) if found else None
    division = call.node.op == "div"
    together = _same_base(call, found)
    with np.errstate(all="ignore"):
        if together is not None:
            a, b = (distribution.values for distribution in together)
            slopes = [1.0 / b, -a / (b * b)] if division else [b, a]
            made = replace(together[0], values=a / b if division else a * b, shift=(0.0 if division else 2.0) * together[0].shift)
            return _combined(call, found, made, slopes)
    (_, left), (_, right) = found
    if division:
        inverse = inverted(right, call.tensor(found[1][0]))
        if inverse is None:
            return None
        right = inverse
    return _product(call, found, left, right, division=division)


def inverted(signal: Signal, node: str) -> Signal | None:
    """Return the reciprocal of a signal that does not cross zero, or None for any other signal."""
    if abs(signal.mean) < _STEADY:
        return None
    distribution = signal.distribution_at(node)
    result = apply(
        np.reciprocal,
        distribution if (distribution.values > 0.0).all() or (distribution.values < 0.0).all() else positive(distribution),
    )
    return of_distribution(result.distribution, signal) if result.distribution.finite else None


def _product(call: Call, found: Sequence[tuple[int, Signal]], left: Signal, right: Signal, *, division: bool) -> TransferResult:
    parts = [_spread(call, signal) for signal in (left, right)]
    shared = tuple(a * b for a, b in zip(parts[0].shared, parts[1].shared, strict=True))
    widest = max((left, right), key=lambda signal: signal.size)
    output = as_gaussian(
        widest,
        level=left.level + right.level,
        mean=left.mean * right.mean,
        shared=shared,
        sizes=call.sizes,
        variance=left.variance + right.variance,
        profile=both(parts[0].profile, parts[1].profile),
    )

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        cotangent = joined(terms, output)
        factors = [right.log_q, left.log_q + (2.0 * right.log_q if division else 0.0)]
        for (slot, signal), factor, other in zip(found, factors, (parts[1], parts[0]), strict=True):
            correlation = tuple(a * b for a, b in zip(cotangent.correlation, other.shared, strict=True))
            energy = cotangent.energy + factor
            for axis, values in other.profile.items():
                energy += log10(mean_product(cotangent.profile, axis, values))
            grown = Cotangent(energy, correlation, cotangent.variance + other.variance, both(cotangent.profile, other.profile))
            yield slot, CotangentTerm(unbroadcast(grown, call.sizes, signal))

    return TransferResult(output, back)


def _scale(call: Call, slot: int, signal: Signal) -> TransferResult | None:
    """Return the transfer of a product with a weight or a constant."""
    weight = next(iter(call.node.weights.values()), None)
    if weight is None:
        if isinstance(call.node.attrs.get("constant"), (int, float)) or call.node.op == "neg":
            return mapped(call)
        if call.node.op == "div" and slot == 1:
            return None
        part = _spread(call, signal)
        spread = signal.variance + _UNKNOWN_FACTOR
        output = as_gaussian(signal, sizes=call.sizes, shared=part.shared, variance=spread, profile=part.profile)
        name = call.node.op
        return TransferResult(output, _flat(call, slot, output, 0.0, _UNKNOWN_FACTOR), (f"a constant operand of {name}",))
    second = mean_square(weight)
    if call.node.op == "div":
        if slot == 1 or second == 0.0:
            return None
        values = np.square(np.asarray(weight.array(), dtype=np.float64)) if weight.size < 1 << 16 else np.array([second])
        with np.errstate(divide="ignore"):
            second = float(np.mean(1.0 / values))
    mean = mean_of(weight) / math.sqrt(mean_square(weight)) if mean_square(weight) > 0.0 else 1.0
    part = _spread(call, signal)
    level = signal.level + half_log(second)
    output = as_gaussian(signal, level=level, mean=signal.mean * mean, sizes=call.sizes, shared=part.shared, profile=part.profile)
    return TransferResult(output, _flat(call, slot, output, log10(second), 0.0))


def _flat(
    call: Call, slot: int, output: Signal, factor: float, variance: float
) -> Callable[[Sequence[CotangentTerm]], OperandCotangents]:
    """Build a pullback through a factor that does not depend on the signal, given as log10 of its square."""

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        cotangent, signal = joined(terms, output), call.operands[slot]
        assert signal is not None
        grown = replace(cotangent, energy=cotangent.energy + factor, variance=cotangent.variance + variance, coherence=None)
        yield slot, CotangentTerm(unbroadcast(grown, call.sizes, signal))

    return back


def _aligned(shape: Sequence[int], rank: int) -> list[int]:
    return [1] * (rank - len(shape)) + list(shape[-rank:] if rank else ())


def _spread(call: Call, signal: Signal, sign: float = 1.0) -> Part:
    """Return a signal broadcast to the shape of the result, as a summand; elements along a stretched axis are equal."""
    rank = len(call.sizes)
    sizes, shared = _aligned(signal.sizes, rank), [1.0] * (rank - len(signal.shared)) + list(signal.shared)
    stretched = tuple(1.0 if a == 1 and b > 1 else s for a, b, s in zip(sizes, call.sizes, shared, strict=False))
    profile = renumbered(signal.profile, lambda axis: axis + rank - len(signal.sizes))
    level = signal.log_q + 2.0 * log10(abs(sign))
    return Part(
        level,
        math.copysign(signal.mean, signal.mean * sign),
        stretched,
        signal.variance,
        profile,
        signal.fixed,
        signal.chance,
        signal.neighbor_correlation,
        signal.channel_variance,
    )


def unbroadcast(cotangent: Cotangent, sizes: tuple[int, ...], signal: Signal, factor: float = 1.0) -> Cotangent:
    """Return the cotangent of an operand that was broadcast to `sizes`, summed over the stretched axes."""
    if signal.sizes == sizes and factor == 1.0:
        return cotangent
    rank = len(sizes)
    own = _aligned(signal.sizes, rank)
    stretched = [axis for axis in range(rank) if own[axis] == 1 and sizes[axis] > 1]
    energy = cotangent.energy + log10(factor * coherent_sum(sizes, cotangent.correlation, stretched))
    lead = rank - len(signal.sizes)
    profile = renumbered(without(cotangent.profile, stretched), lambda axis: axis - lead if axis >= lead else None)
    correlation, coherence = cotangent.correlation[lead:], cotangent.coherence if signal.sizes == sizes else None
    return replace(cotangent, energy=energy, correlation=correlation, profile=profile, coherence=coherence)


@TRANSFER.rule("glu")
def glu(call: Call) -> TransferResult | None:
    """Return the transfer of a gated linear unit: one half of the channels times the sigmoid of the other."""
    found, function = call.signals, activation("sigmoid", {})
    if not found or function is None:
        return None
    slot, signal = found[0]
    gate = apply(function, signal.distribution_at(call.ref(slot).node))
    open_ = 10.0 ** (2.0 * gate.distribution.level)
    bend = expect(gate.slope * gate.slope) * 10.0 ** min(signal.log_q, 300.0)
    shared = tuple(a * b for a, b in zip(signal.shared, gate.distribution.shared, strict=True))
    output = as_gaussian(
        signal,
        level=signal.level + gate.distribution.level,
        sizes=call.sizes,
        shared=shared,
        mean=signal.mean * gate.distribution.mean,
    )

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        cotangent = joined(terms, output)
        yield slot, CotangentTerm(replace(cotangent, energy=cotangent.energy + log10(open_ + bend), profile=FLAT, coherence=None))

    return TransferResult(output, back)
