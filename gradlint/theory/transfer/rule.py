"""The interface of transfer rules, and helpers that they share.

A transfer rule maps a `Call` to a `TransferResult`: the signal after the operator, and a pullback from the terms of the output's
cotangent to the terms of the operands' cotangents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from gradlint.graph import Node, Ref, Weight
from gradlint.ops import Dispatch
from gradlint.theory.gaussian.dispersion import UNCORRELATED, ChanceCorrelation, in_sum
from gradlint.theory.transfer.profiles import FLAT, flat, mixed, values_along
from gradlint.theory.transfer.signal import NOTHING, Cotangent, CotangentTerm, Signal, joined, varying

if TYPE_CHECKING:
    from gradlint.theory.gaussian.pointwise_of_gaussian import Array
    from gradlint.theory.transfer.profiles import Profile
    from gradlint.theory.transfer.signal import Fixed

OperandCotangents = Iterable[tuple[int, CotangentTerm]]
Pullback = Callable[[Sequence[CotangentTerm]], OperandCotangents]


@dataclass(frozen=True, slots=True)
class Call:
    """One application of an operator.

    Attributes:
        node: The operator.
        operands: The signal of each input slot, None for a constant or a weight.
        sizes: Length of each axis of the output.
        training: Whether the model is in train mode.
    """

    node: Node
    operands: tuple[Signal | None, ...]
    sizes: tuple[int, ...]
    training: bool

    @property
    def signals(self) -> list[tuple[int, Signal]]:
        """The slots that carry a signal, each with its signal."""
        return [(slot, signal) for slot, signal in enumerate(self.operands) if signal is not None]

    def tensor(self, slot: int) -> str:
        """Return a name for the tensor at a slot that differs from the names of other outputs of its node."""
        ref = self.ref(slot)
        return f"{ref.node}#{ref.port}" if ref.port else ref.node

    def ref(self, slot: int) -> Ref:
        """Return the reference to the tensor at a slot that carries a signal."""
        found = self.node.inputs[slot]
        assert found is not None
        return found


@dataclass(frozen=True, slots=True)
class LayerShape:
    """The connectivity of a weight layer along the channel axis `axis`.

    `full` is the number of inputs of each output without padding. `seen` is the mean number of them that are not on padding.
    """

    axis: int
    groups: int
    full: float
    seen: float


@dataclass(frozen=True, slots=True)
class TransferResult:
    """The result of a transfer rule: the signal after an operator, and the pullback to its operands.

    `because` names what the theory does not know about the operator. `layer` describes the connectivity of a weight layer.
    """

    signal: Signal
    pullback: Pullback
    because: tuple[str, ...] = field(default=())
    layer: LayerShape | None = None


Transfer = Callable[[Call], TransferResult | None]

TRANSFER: Dispatch[Transfer] = Dispatch()
"""The transfer rules of operators; those of weight tables (embeddings) are called by `prediction` itself."""


def single_operand(slot: int, output: Signal, pull_back: Callable[[Cotangent], Cotangent]) -> Pullback:
    """Build a pullback to one operand from a function of the total cotangent; `output` is the signal after the operator."""

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        yield slot, CotangentTerm(pull_back(joined(terms, output)))

    return back


def scaled(
    cotangent: Cotangent,
    factor: float,
    correlation: tuple[float, ...] | None = None,
    *,
    variance: float = 0.0,
    profile: Profile | None = None,
) -> Cotangent:
    """Return a cotangent with its energy multiplied by a squared gradient factor.

    With a new `correlation` the axes have changed, and the profile is dropped unless a new `profile` is given.
    """
    kept = cotangent.profile if correlation is None else FLAT
    return Cotangent(
        cotangent.energy + log10(factor),
        cotangent.correlation if correlation is None else correlation,
        cotangent.variance + variance,
        kept if profile is None else profile,
        overlap=cotangent.overlap,
    )


def log10(value: float) -> float:
    """Return log10, or -inf for numbers that are not positive."""
    if value <= 0.0:
        return -math.inf
    return math.log10(value) if value < math.inf else math.inf


def half_log(value: float) -> float:
    """Return 1/2 log10, the decades of an amplitude that is given by its square."""
    return 0.5 * log10(value)


def mean_square(weight: Weight | None, default: float = 0.0) -> float:
    """Return the mean square of a weight, or `default` without a weight."""
    return weight.statistics.mean_square if weight is not None else default


def mean_of(weight: Weight | None) -> float:
    """Return the mean of a weight, or 0 if it cannot be told from the mean of a random draw, or without a weight."""
    if weight is None:
        return 0.0
    found = weight.statistics
    drawn = abs(found.mean) * math.sqrt(weight.size) <= 4.0 * found.std
    return 0.0 if drawn and found.std > 0.0 else found.mean


def as_gaussian(signal: Signal, **changes: object) -> Signal:
    """Return a Gaussian signal of uniform second moment, with some fields of `signal` changed."""
    return replace(
        signal,
        **{"distribution": None, "profile": FLAT, "fixed": NOTHING, "channel_variance": None, "means": None, **changes},  # type: ignore[arg-type]
    )


@dataclass(frozen=True, slots=True)
class Part:
    """One summand: log10 of its second moment, and the other fields as in `Signal`."""

    log_q: float
    mean: float
    shared: tuple[float, ...]
    variance: float = 0.0
    profile: Profile = field(default_factory=flat)
    fixed: Fixed = field(default_factory=lambda: NOTHING)
    chance: ChanceCorrelation = UNCORRELATED
    neighbor_correlation: float = 0.0
    channel_variance: Array | None = None


def part_of(signal: Signal) -> Part:
    """Return a signal as a summand."""
    return Part(
        signal.log_q,
        signal.mean,
        signal.shared,
        signal.variance,
        signal.profile,
        signal.fixed,
        signal.chance,
        signal.neighbor_correlation,
        signal.channel_variance,
    )


def constant_part(second: float, mean: float, spans: Sequence[bool]) -> Part:
    """Return a constant tensor as a summand. It is equal over inputs and along every axis that it does not span."""
    own = mean * mean / second if second > 0.0 else 1.0
    return Part(log10(second), math.copysign(math.sqrt(min(own, 1.0)), mean), tuple(min(own, 1.0) if s else 1.0 for s in spans))


def _deviation(sizes: Sequence[float], means: Sequence[float], parts: Sequence[Part]) -> float:
    """Return the standard deviation of the second moment of a sum; the errors of summands count as fully correlated."""
    whole = sum(means)
    weights = [abs(size + mean * (whole - mean)) for size, mean in zip(sizes, means, strict=True)]
    return sum(weight * math.sqrt(part.variance) for weight, part in zip(weights, parts, strict=True))


def _channel_variance(parts: Sequence[tuple[float, Part]], like: Signal) -> Array | None:
    """Return the variance of each channel of a sum, over its mean. The variances of the summands add."""
    if len(like.sizes) < 2 or all(part.channel_variance is None for _, part in parts):
        return None
    others, found = [axis for axis in range(len(like.sizes)) if axis != 1], np.zeros(like.sizes[1])
    for size, part in parts:
        own = part.channel_variance if part.channel_variance is not None else values_along(part.profile, 1, like.sizes[1])
        if own.size != found.size or len(part.shared) != len(like.sizes):
            return None
        found = found + size * varying(like.sizes, part.shared, others) * own
    mean = float(found.mean())
    return found / mean if 0.0 < mean < math.inf else None


def neighbor_correlation_in(parts: Sequence[tuple[float, Part]]) -> float:
    """Return the correlation of neighbors in a sum, a mean weighted by the part of each summand that positions do not share."""
    weights = [size * max(1.0 - part.shared[-1], 0.0) for size, part in parts]
    whole = sum(weights)
    return (
        sum(weight * part.neighbor_correlation for weight, (_, part) in zip(weights, parts, strict=True)) / whole
        if whole > 0.0
        else 0.0
    )


def total(parts: Sequence[Part], like: Signal) -> Signal:
    """Return the sum of summands that are uncorrelated except for their means, with the axes of `like`."""
    top = max(part.log_q for part in parts)
    if not math.isfinite(top):
        return as_gaussian(like, level=0.5 * top)
    sizes = [10.0 ** (part.log_q - top) for part in parts]
    means = [math.sqrt(size) * part.mean for size, part in zip(sizes, parts, strict=True)]
    cross = sum(means) ** 2 - sum(mean * mean for mean in means)
    second = max(sum(sizes) + cross, 1e-30)
    shares = zip(*(part.shared for part in parts), strict=True)
    pairs = list(zip(sizes, parts, strict=True))
    return Signal(
        0.5 * (top + math.log10(second)),
        like.sizes,
        tuple(min(max((sum(map(_product, sizes, row)) + cross) / second, -1.0), 1.0) for row in shares),
        min(max(sum(means) / math.sqrt(second), -1.0), 1.0),
        like.channels,
        variance=_deviation(sizes, means, parts) ** 2 / second**2,
        profile=mixed([(size / sum(sizes), part.profile) for size, part in pairs]),
        fixed={
            axes: sum(size**2 * part.fixed.get(axes, 0.0) for size, part in pairs) / second**2
            for axes in {axes for part in parts for axes in part.fixed}
        },
        channel_variance=_channel_variance(pairs, like),
        neighbor_correlation=neighbor_correlation_in(pairs),
        chance=in_sum((size * max(1.0 - part.shared[0], 0.0), part.chance) for size, part in pairs),
    )


def _product(a: float, b: float) -> float:
    return a * b
