"""Transfer rules of weight layers: linear maps, convolutions, embeddings (THEORY section 2).

A layer is a number of connections: each output adds up `fan` inputs on average, each input feeds `outs` outputs. Signal and
cotangent both gain fan x E[W^2]; there is no stride term.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlint.graph import Weight
from gradlint.ops import Kind
from gradlint.theory.gaussian.dispersion import ChanceCorrelation
from gradlint.theory.transfer import fluctuation
from gradlint.theory.transfer.coherence import Taps, through_layer
from gradlint.theory.transfer.profiles import mean_product, replaced, times, values_along, without
from gradlint.theory.transfer.rule import (
    TRANSFER,
    Call,
    LayerShape,
    Part,
    TransferResult,
    as_gaussian,
    constant_part,
    half_log,
    log10,
    mean_of,
    mean_square,
    single_operand,
    total,
)
from gradlint.theory.transfer.signal import Cotangent, Signal

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from gradlint.theory.gaussian.pointwise_of_gaussian import Array
    from gradlint.theory.transfer.profiles import Profile

_FEW = 64  # inputs per output: below, the norms of the rows of a weight differ enough to matter
_LONG = 1 << 18  # pairs of position and tap: an audio signal
_SMALL = 1 << 20  # elements: rows of a larger weight are not looked at one by one


class _Layer:
    """The weight of a layer along the axis `axis` of input and output; `windows` say what a kernel visits along other axes."""

    def __init__(
        self, weight: Weight, axis: int, sizes: tuple[int, int], *, groups: int = 1, windows: Sequence[_Window] = ()
    ) -> None:
        self.weight, self.axis, self.windows = weight, axis, windows
        self.fan = sizes[0] / groups * math.prod(window.taps / window.out for window in windows)
        self.outs = sizes[1] / groups * math.prod(window.taps / window.size for window in windows)
        self.shape = LayerShape(axis, groups, weight.size / max(sizes[1], 1) if groups == 1 else weight.fan_in, self.fan)
        self.depthwise = groups == sizes[0] == sizes[1] and groups > 1
        self.rows = _rows(weight) if weight.fan_out == sizes[1] else None  # squared norms over their mean
        self.groups = groups
        self.taps = [Taps(w.axis, w.taps / w.out, w.taps / w.size, w.size) for w in windows]

    @property
    def is_orthogonal(self) -> bool:
        """Whether all rows have one length, as those of orthogonal matrices have; of random ones the squares vary by 2/fan_in."""
        return self.rows is not None and float(np.var(self.rows)) < 0.1 * 2.0 / self.weight.fan_in

    @property
    def gain(self) -> float:
        """Squared gain, fan x E[W^2]."""
        return self.fan * mean_square(self.weight)


@dataclass(frozen=True, slots=True)
class _Window:
    """What a kernel visits along one axis: `reads[o, t]` is the input position of tap t at output o, -1 on padding.

    None stands for an axis so long that its rim does not count.
    """

    axis: int
    reads: NDArray[np.int64] | None
    size: int
    out: int
    taps: int

    @property
    def still(self) -> bool:
        """Whether each output reads the input at its own position alone."""
        return self.reads is not None and self.reads.shape[1] == 1 and self.size == self.out == self.taps

    def forward(self, profile: Profile) -> tuple[Array, float]:
        """Sums over the taps of each output, and the share that its positions keep of what they have in common.

        Two outputs have in common what the same tap reads for both: a tap that reads padding for one of them has nothing.
        """
        if self.reads is None:
            return np.full(1, self.taps / self.out), 1.0
        inside, values = self.reads >= 0, values_along(profile, self.axis, self.size)
        seen = np.where(inside, values[self.reads], 0.0)
        return seen.sum(axis=1), _kept(np.sqrt(seen).mean(axis=0), seen.mean(axis=0), values)

    def backward(self, profile: Profile) -> tuple[Array, float]:
        """The same for a cotangent: sums over the outputs that read each input."""
        if self.reads is None:
            return np.full(1, self.taps), min(self.out / self.size, 1.0)
        inside, values = self.reads >= 0, values_along(profile, self.axis, self.out)
        spread = np.where(inside, values[:, None], 0.0)
        landed = np.bincount(self.reads[inside], weights=spread[inside], minlength=self.size).astype(np.float64)
        return landed, _kept(np.sqrt(spread).sum(axis=0) / self.size, spread.sum(axis=0) / self.size, values)


def _kept(amplitude: Array, square: Array, values: Array) -> float:
    """Correlation of two positions behind a kernel over that before it, from means over positions for each tap."""
    whole, before = float(square.sum()), float(np.sqrt(values).mean()) ** 2 / float(values.mean())
    return min(float((amplitude * amplitude).sum()) / whole / before, 1.0) if whole > 0.0 and before > 0.0 else 1.0


@TRANSFER.rule(Kind.LINEAR)
def linear(call: Call) -> TransferResult | None:
    """A weight matrix along one axis of the signal."""
    weight, found = call.node.weights.get("weight"), call.signals
    if weight is None or len(found) != 1 or len(weight.shape) < 2:
        return None
    signal = found[0][1]
    axis = _contracted(signal, call.sizes, weight)
    if axis is None:
        return None
    return _through(call, found[0][0], signal, _Layer(weight, axis, (signal.sizes[axis], call.sizes[axis])))


def _contracted(signal: Signal, sizes: tuple[int, ...], weight: Weight) -> int | None:
    """The axis that a weight sums over: the last one whose length fits, of those whose new length fits too."""
    rank = len(signal.sizes)
    if rank != len(sizes):
        return None
    fitting = [a for a in range(rank) if signal.sizes[a] == weight.fan_in and sizes[a] == weight.fan_out]
    others = [a for a in fitting if all(signal.sizes[b] == sizes[b] for b in range(rank) if b != a)]
    chosen = others or fitting
    return chosen[-1] if chosen else None


@TRANSFER.rule(Kind.CONV)
def conv(call: Call) -> TransferResult | None:
    """A convolution, grouped, dilated or transposed, with what falls on its padding left out."""
    weight, found = call.node.weights.get("weight"), call.signals
    if weight is None or not found or len(weight.shape) < 3:
        return None
    slot, signal = found[0]
    axis = len(call.sizes) - len(weight.shape) + 1
    if axis < 0 or len(signal.sizes) != len(call.sizes):
        return None
    groups = max(int(call.node.attrs.get("groups", call.node.attrs.get("group", 1))), 1)
    windows = [_window(call, signal, axis + 1 + index, index) for index in range(len(weight.shape) - 2)]
    return _through(
        call, slot, signal, _Layer(weight, axis, (signal.sizes[axis], call.sizes[axis]), groups=groups, windows=windows)
    )


def _window(call: Call, signal: Signal, axis: int, index: int) -> _Window:
    """The window of a kernel along one axis; a transposed one writes where a plain one reads."""
    attrs, weight = call.node.attrs, call.node.weights["weight"]
    size, out, kernel = signal.sizes[axis], call.sizes[axis], weight.shape[2 + index]
    stride, dilation = (_along(attrs, names, index, 1) for names in (("stride", "strides"), ("dilation", "dilations")))
    transposed = call.node.op == "conv_transpose"
    outer, inner = (size, out) if transposed else (out, size)
    shape = call.node.shape
    if outer * kernel > _LONG or shape is None or shape[axis] is None:
        return _Window(axis, None, size, out, outer * kernel)
    spare = max((outer - 1) * stride + dilation * (kernel - 1) + 1 - inner, 0)
    places, taps = _places(outer, inner, kernel, (stride, dilation, _padding(attrs, index, spare)))
    return _Window(axis, _inverted(places, out) if transposed else places, size, out, taps)


@lru_cache(maxsize=256)
def _places(outer: int, inner: int, kernel: int, step: tuple[int, int, int]) -> tuple[NDArray[np.int64], int]:
    """Where each tap lands at each position, -1 on padding, and how many do not; `step` is stride, dilation and padding."""
    stride, dilation, padding = step
    found = stride * np.arange(outer)[:, None] + dilation * np.arange(kernel)[None, :] - padding
    inside = (found >= 0) & (found < inner)
    return np.where(inside, found, -1), max(int(inside.sum()), 1)


def _inverted(writes: NDArray[np.int64], out: int) -> NDArray[np.int64]:
    """What each output reads, from what each input writes."""
    reads = np.full((out, writes.shape[1]), -1)
    for tap in range(writes.shape[1]):
        inside = writes[:, tap] >= 0
        reads[writes[inside, tap], tap] = np.nonzero(inside)[0]
    return reads


def _along(attrs: Mapping[str, Any], names: tuple[str, ...], index: int, default: int) -> int:
    """An attribute per axis, given as a number or a tuple."""
    value = next((attrs[name] for name in names if name in attrs), default)
    if isinstance(value, (tuple, list)):
        value = value[index] if index < len(value) else value[-1] if value else default
    return int(value) if isinstance(value, (int, float)) else default


def _padding(attrs: Mapping[str, Any], index: int, spare: int) -> int:
    """Padding before the first element; where it is not written down, half of what the sizes leave over."""
    if isinstance(attrs.get("padding"), str) or ("padding" not in attrs and "pads" not in attrs):
        return spare // 2
    return _along(attrs, ("padding", "pads"), index, 0)


def _rows(weight: Weight) -> Array | None:
    """Squared norms of the rows of a small weight over their mean."""
    if weight.fan_in >= _FEW or weight.size > _SMALL or weight.fan_out < 2:
        return None
    squares = np.square(np.abs(weight.matrix())).mean(axis=1)
    mean = float(squares.mean())
    return squares / mean if 0.0 < mean < math.inf else None


def _through(call: Call, slot: int, signal: Signal, layer: _Layer) -> TransferResult:
    axis, average = layer.axis, mean_of(layer.weight)
    gain, profile, kept = _spread(signal.profile, layer)
    shared = tuple(0.0 if index == axis else share * kept.get(index, 1.0) for index, share in enumerate(signal.shared))
    chance = _chance(signal, layer)
    spread = fluctuation.of_square(signal.distribution_at(""), signal.sizes)
    level = signal.log_q + log10(gain) + fluctuation.shift(spread)
    inside = layer.rows if axis == 1 and not layer.depthwise else None
    variance, near = signal.variance + fluctuation.decades(spread), _near(signal, layer)
    parts = [Part(level, 0.0, shared, variance, profile, chance=chance, neighbor_correlation=near, channel_variance=inside)]
    aligned = (average * signal.mean) ** 2 * layer.fan * max(layer.fan - 1.0, 0.0)
    if aligned > 0.0:
        sign = math.copysign(1.0, average * signal.mean)
        parts.append(Part(signal.log_q + log10(aligned), sign, (1.0,) * len(signal.shared), signal.variance))
    bias = call.node.weights.get("bias")
    if bias is not None and mean_square(bias) > 0.0:
        parts.append(constant_part(mean_square(bias), mean_of(bias), [index == axis for index in range(len(call.sizes))]))
    output = total(parts, as_gaussian(signal, sizes=call.sizes, channels=axis))

    share = 10.0 ** min(parts[0].log_q - output.log_q, 0.0) if math.isfinite(output.level) else 1.0  # that depends on the input

    def back(cotangent: Cotangent) -> Cotangent:
        gain, correlation, profile = _pulled(cotangent, layer)
        inputs, taps = signal.sizes[axis], math.prod(tap.lands for tap in layer.taps)
        spread, overlap = fluctuation.of_layer(cotangent.overlap, inputs, inputs // layer.groups, taps)
        factor, coherence = 1.0, None
        if average == 0.0 and layer.groups == 1:
            both = tuple(a * max(b, 0.0) for a, b in zip(cotangent.correlation, output.shared, strict=True))
            layout = axis, signal.sizes, both
            factor, coherence = through_layer(cotangent.coherence, layout, signal.mean, share, layer.taps)
        energy = cotangent.energy + log10(gain) + log10(factor * _evened(cotangent, layer)) + fluctuation.shift(spread)
        variance = cotangent.variance + fluctuation.decades(spread)
        return Cotangent(energy, correlation, variance, profile, coherence=coherence, overlap=overlap)

    return TransferResult(output, single_operand(slot, output, back), layer=layer.shape)


def _spread(profile: Profile, layer: _Layer) -> tuple[float, Profile, dict[int, float]]:
    """Squared gain, profile, and what positions keep in common: a kernel sees less at the rim, rows of a small weight differ."""
    gain = mean_square(layer.weight) * layer.fan / math.prod(window.taps / window.out for window in layer.windows)
    found = without(profile, () if layer.depthwise else (layer.axis,))
    common, shares = 1.0, dict[int, float]()
    for window in layer.windows:
        if not window.still:
            seen, share = window.forward(profile)
            common *= share  # positions that differ along several axes share what is left by all of them
            gain *= float(seen.mean())
            found = replaced(found, window.axis, seen)
        shares[window.axis] = common
    if layer.rows is not None:
        gain *= mean_product(found, layer.axis, layer.rows)
        found = times(found, layer.axis, layer.rows)
    return gain, found, shares


def _evened(cotangent: Cotangent, layer: _Layer) -> float:
    """A norm that divides each unit by its own deviation divides more where the row of W is longer: E |w|^2/v is 2/fan less.

    For v = sum of l_i w_i^2, Cov(|w|^2, v) / E |w|^2 E v is 2/fan whatever the l_i; rows that are looked at tell it exactly.
    """
    if layer.rows is not None:
        return 1.0
    units = max((share for axes, share in cotangent.projected_out.items() if layer.axis not in axes), default=0.0)
    return max(1.0 - 2.0 * units / max(layer.fan, 4.0), 0.5)


def _near(signal: Signal, layer: _Layer) -> float:
    """Neighbours behind a kernel are as like as inputs a stride apart: each tap has its own random weight."""
    if signal.neighbor_correlation == 0.0 or not layer.windows:
        return signal.neighbor_correlation
    window = layer.windows[-1]
    return float(signal.neighbor_correlation ** max(window.size / max(window.out, 1), 1.0))


def _chance(signal: Signal, layer: _Layer) -> ChanceCorrelation:
    """What two outputs have in common by chance: what inputs had, and 1/fan for inputs that are all of a kernel that there is.

    Taps of one kernel are as many more inputs as they are unlike; what neighbours had in common by chance averages out by half
    from one kernel to the next.
    """
    alone = 1.0
    for window in layer.windows:
        reads = max(window.taps / window.out, 1.0)
        alone *= 1.0 / reads + (1.0 - 1.0 / reads) * max(signal.shared[window.axis], 0.0) ** 2
    channels = max(signal.sizes[layer.axis], 1.0)
    kept = 1.0 if alone == 1.0 else 0.5 + 0.5 * alone
    anew = alone / channels
    if layer.is_orthogonal:
        distribution = signal.distribution_at("")  # such layers keep what was linear as it was
        before = distribution.chance.square
        anew *= max(1.0 - distribution.chance_left.square / before, 0.0) if before > 0.0 else 1.0
    return signal.chance.scaled(math.sqrt(kept)).plus(ChanceCorrelation(anew, anew * anew))


def _pulled(cotangent: Cotangent, layer: _Layer) -> tuple[float, tuple[float, ...], Profile]:
    """Squared gain, correlations and profile: a mean of the weight adds up what the cotangents of the units have in common."""
    average, square = mean_of(layer.weight) ** 2, mean_square(layer.weight)
    shared = max(layer.outs - 1.0, 0.0) * cotangent.correlation[layer.axis]
    own = min(average * (1.0 + shared) / (square + shared * average), 1.0) if square > 0.0 else 0.0
    gain = (square + shared * average) * layer.fan / math.prod(window.taps / window.out for window in layer.windows)
    profile = cotangent.profile
    if layer.rows is not None:
        gain *= mean_product(profile, layer.axis, layer.rows)
        profile = times(profile, layer.axis, layer.rows)
    profile = without(profile, () if layer.depthwise else (layer.axis,))
    common, shares = 1.0, {layer.axis: 0.0}
    for window in layer.windows:
        if not window.still:
            landed, share = window.backward(cotangent.profile)
            common *= share
            gain *= float(landed.sum()) / window.out
            profile = replaced(profile, window.axis, landed)
        shares[window.axis] = common
    correlation = tuple(
        own if index == layer.axis else value * shares.get(index, 1.0) for index, value in enumerate(cotangent.correlation)
    )
    return gain, correlation, profile


def embedding(call: Call, *, fed: bool) -> TransferResult | None:
    """Rows of a table, picked by what was fed (`fed`) or by fixed numbers such as positions."""
    weight = call.node.weights.get("weight")
    if weight is None or not call.sizes:
        return None
    second, mean = mean_square(weight), mean_of(weight)
    own = mean * mean / second if second > 0.0 else 1.0
    shared = [own] * len(call.sizes)
    if not fed:
        shared[0] = 1.0
    level = half_log(second)
    signal = Signal(level, call.sizes, tuple(shared), math.copysign(math.sqrt(own), mean), len(call.sizes) - 1)
    return TransferResult(signal, lambda _: ())
