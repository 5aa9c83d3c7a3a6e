"""Transfer rules of weight layers: linear maps, convolutions, embeddings.

Each output of a layer sums `fan` inputs on average, and each input reaches `outs` outputs. The second moment of the signal and
the energy of the cotangent are both multiplied by fan x E[W^2], because the energy is summed over elements; a stride does not
enter (He et al. 2015, arXiv 1502.01852).
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

_FEW = 64  # inputs per output below which the row norms of a weight are computed one by one
_LONG = 1 << 18  # pairs of position and tap above which padding is neglected, as for audio
_SMALL = 1 << 20  # largest number of elements of a weight whose row norms are computed


class _Layer:
    """The weight of a layer that sums over `axis` of its input; `windows` describe the kernel along the other axes."""

    def __init__(
        self, weight: Weight, axis: int, sizes: tuple[int, int], *, groups: int = 1, windows: Sequence[_Window] = ()
    ) -> None:
        self.weight, self.axis, self.windows = weight, axis, windows
        self.fan = sizes[0] / groups * math.prod(window.taps / window.out for window in windows)
        self.outs = sizes[1] / groups * math.prod(window.taps / window.size for window in windows)
        self.shape = LayerShape(axis, groups, weight.size / max(sizes[1], 1) if groups == 1 else weight.fan_in, self.fan)
        self.depthwise = groups == sizes[0] == sizes[1] and groups > 1
        self.rows = _rows(weight) if weight.fan_out == sizes[1] else None  # squared row norms over their mean
        self.groups = groups
        self.taps = [Taps(w.axis, w.taps / w.out, w.taps / w.size, w.size) for w in windows]

    @property
    def is_orthogonal(self) -> bool:
        """Whether all rows have equal norms, as in an orthogonal matrix; squared norms of random rows have variance 2/fan_in."""
        return self.rows is not None and float(np.var(self.rows)) < 0.1 * 2.0 / self.weight.fan_in

    @property
    def gain(self) -> float:
        """Squared gain of the layer, fan x E[W^2]."""
        return self.fan * mean_square(self.weight)


@dataclass(frozen=True, slots=True)
class _Window:
    """The connections of a kernel along one axis.

    Attributes:
        axis: The axis.
        reads: Array of shape (outputs, taps); `reads[o, t]` is the input position of tap t at output o, or -1 on padding. None
            for an axis so long that padding is neglected.
        size: Length of the axis in the input.
        out: Length of the axis in the output.
        taps: Number of connections that are not on padding.
    """

    axis: int
    reads: NDArray[np.int64] | None
    size: int
    out: int
    taps: int

    @property
    def still(self) -> bool:
        """Whether each output reads only the input at its own position."""
        return self.reads is not None and self.reads.shape[1] == 1 and self.size == self.out == self.taps

    def forward(self, profile: Profile) -> tuple[Array, float]:
        """Return the sum of the profile over the taps of each output, and the factor on the correlation of two positions.

        Two outputs are correlated through equal taps. A tap that is on padding for one of them contributes nothing.
        """
        if self.reads is None:
            return np.full(1, self.taps / self.out), 1.0
        inside, values = self.reads >= 0, values_along(profile, self.axis, self.size)
        seen = np.where(inside, values[self.reads], 0.0)
        return seen.sum(axis=1), _kept(np.sqrt(seen).mean(axis=0), seen.mean(axis=0), values)

    def backward(self, profile: Profile) -> tuple[Array, float]:
        """Return the same for a cotangent: the sum of the profile over the outputs that read each input, and the factor."""
        if self.reads is None:
            return np.full(1, self.taps), min(self.out / self.size, 1.0)
        inside, values = self.reads >= 0, values_along(profile, self.axis, self.out)
        spread = np.where(inside, values[:, None], 0.0)
        landed = np.bincount(self.reads[inside], weights=spread[inside], minlength=self.size).astype(np.float64)
        return landed, _kept(np.sqrt(spread).sum(axis=0) / self.size, spread.sum(axis=0) / self.size, values)


def _kept(amplitude: Array, square: Array, values: Array) -> float:
    """Return the correlation of two positions after a kernel over that before it, from means over positions for each tap."""
    whole, before = float(square.sum()), float(np.sqrt(values).mean()) ** 2 / float(values.mean())
    return min(float((amplitude * amplitude).sum()) / whole / before, 1.0) if whole > 0.0 and before > 0.0 else 1.0


@TRANSFER.rule(Kind.LINEAR)
def linear(call: Call) -> TransferResult | None:
    """Return the transfer of a linear layer along one axis of the signal."""
    weight, found = call.node.weights.get("weight"), call.signals
    if weight is None or len(found) != 1 or len(weight.shape) < 2:
        return None
    signal = found[0][1]
    axis = _contracted(signal, call.sizes, weight)
    if axis is None:
        return None
    return _through(call, found[0][0], signal, _Layer(weight, axis, (signal.sizes[axis], call.sizes[axis])))


def _contracted(signal: Signal, sizes: tuple[int, ...], weight: Weight) -> int | None:
    """Return the axis that a weight sums over: the last one whose old and new lengths are fan_in and fan_out, or None."""
    rank = len(signal.sizes)
    if rank != len(sizes):
        return None
    fitting = [a for a in range(rank) if signal.sizes[a] == weight.fan_in and sizes[a] == weight.fan_out]
    others = [a for a in fitting if all(signal.sizes[b] == sizes[b] for b in range(rank) if b != a)]
    chosen = others or fitting
    return chosen[-1] if chosen else None


@TRANSFER.rule(Kind.CONV)
def conv(call: Call) -> TransferResult | None:
    """Return the transfer of a convolution, which may be grouped, dilated or transposed. Taps on padding do not count."""
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
    """Return the connections of a kernel along one axis; a transposed convolution swaps inputs and outputs."""
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
    """Return the position of each tap at each outer position, -1 on padding, and the number that are not on padding.

    `step` holds stride, dilation and padding.
    """
    stride, dilation, padding = step
    found = stride * np.arange(outer)[:, None] + dilation * np.arange(kernel)[None, :] - padding
    inside = (found >= 0) & (found < inner)
    return np.where(inside, found, -1), max(int(inside.sum()), 1)


def _inverted(writes: NDArray[np.int64], out: int) -> NDArray[np.int64]:
    """Return the input that each tap reads at each output, from the output that each tap writes at each input."""
    reads = np.full((out, writes.shape[1]), -1)
    for tap in range(writes.shape[1]):
        inside = writes[:, tap] >= 0
        reads[writes[inside, tap], tap] = np.nonzero(inside)[0]
    return reads


def _along(attrs: Mapping[str, Any], names: tuple[str, ...], index: int, default: int) -> int:
    """Return an attribute for one axis, which is stored as one number or as a tuple."""
    value = next((attrs[name] for name in names if name in attrs), default)
    if isinstance(value, (tuple, list)):
        value = value[index] if index < len(value) else value[-1] if value else default
    return int(value) if isinstance(value, (int, float)) else default


def _padding(attrs: Mapping[str, Any], index: int, spare: int) -> int:
    """Return the padding before the first element; if it is not given, half of the padding that the sizes imply."""
    if isinstance(attrs.get("padding"), str) or ("padding" not in attrs and "pads" not in attrs):
        return spare // 2
    return _along(attrs, ("padding", "pads"), index, 0)


def _rows(weight: Weight) -> Array | None:
    """Return the squared row norms of a small weight over their mean, or None for a large one."""
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

    share = 10.0 ** min(parts[0].log_q - output.log_q, 0.0) if math.isfinite(output.level) else 1.0  # second moment without bias

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
    """Return the squared gain, the profile of the output, and by axis the factor on the correlation of positions.

    A kernel reads fewer inputs at the border, and the rows of a small weight have different norms.
    """
    gain = mean_square(layer.weight) * layer.fan / math.prod(window.taps / window.out for window in layer.windows)
    found = without(profile, () if layer.depthwise else (layer.axis,))
    common, shares = 1.0, dict[int, float]()
    for window in layer.windows:
        if not window.still:
            seen, share = window.forward(profile)
            common *= share  # positions that differ along several axes are correlated by the product
            gain *= float(seen.mean())
            found = replaced(found, window.axis, seen)
        shares[window.axis] = common
    if layer.rows is not None:
        gain *= mean_product(found, layer.axis, layer.rows)
        found = times(found, layer.axis, layer.rows)
    return gain, found, shares


def _evened(cotangent: Cotangent, layer: _Layer) -> float:
    """Return the factor on the gradient that a later normalization of each unit causes.

    A normalization divides a unit by its standard deviation, which is larger for a larger row w of W, so E[|w|^2 / v] is smaller
    than E|w|^2 / E v by 2/fan. For v = sum of l_i w_i^2, Cov(|w|^2, v) / (E|w|^2 E v) is 2/fan for any l_i. The factor is 1 if
    row norms were computed one by one.
    """
    if layer.rows is not None:
        return 1.0
    units = max((share for axes, share in cotangent.projected_out.items() if layer.axis not in axes), default=0.0)
    return max(1.0 - 2.0 * units / max(layer.fan, 4.0), 0.5)


def _near(signal: Signal, layer: _Layer) -> float:
    """Return the correlation of neighbors after a kernel, which is that of inputs one stride apart."""
    if signal.neighbor_correlation == 0.0 or not layer.windows:
        return signal.neighbor_correlation
    window = layer.windows[-1]
    return float(signal.neighbor_correlation ** max(window.size / max(window.out, 1), 1.0))


def _chance(signal: Signal, layer: _Layer) -> ChanceCorrelation:
    """Return the chance correlation of two outputs: that of the inputs, and 1/fan that the random weights add.

    The taps of a kernel count as additional inputs to the extent that they are uncorrelated. Half of the chance correlation of
    neighbors averages out in each kernel.
    """
    alone = 1.0
    for window in layer.windows:
        reads = max(window.taps / window.out, 1.0)
        alone *= 1.0 / reads + (1.0 - 1.0 / reads) * max(signal.shared[window.axis], 0.0) ** 2
    channels = max(signal.sizes[layer.axis], 1.0)
    kept = 1.0 if alone == 1.0 else 0.5 + 0.5 * alone
    anew = alone / channels
    if layer.is_orthogonal:
        distribution = signal.distribution_at("")  # an orthogonal layer preserves the linear part of its input
        before = distribution.chance.square
        anew *= max(1.0 - distribution.chance_left.square / before, 0.0) if before > 0.0 else 1.0
    return signal.chance.scaled(math.sqrt(kept)).plus(ChanceCorrelation(anew, anew * anew))


def _pulled(cotangent: Cotangent, layer: _Layer) -> tuple[float, tuple[float, ...], Profile]:
    """Return the squared gain, correlation and profile of the cotangent; a nonzero mean of W adds correlated cotangents up."""
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
    """Return the transfer of an embedding; its indices come from an input (`fed`) or are fixed, such as positions."""
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
