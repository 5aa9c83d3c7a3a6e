"""Transfer rules of weight layers: linear maps, convolutions, embeddings (THEORY section 2).

A layer is a number of connections: each output adds up `fan` inputs on average, each input feeds `outs` outputs. Signal and
cotangent both gain fan x E[W^2]; there is no stride term.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlint.graph import Weight
from gradlint.theory.signal import Cotangent, Signal
from gradlint.theory.transfer import (
    Call,
    Moved,
    Part,
    constant_part,
    half_log,
    log10,
    mean_of,
    mean_square,
    one,
    plain,
    scaled,
    total,
)

if TYPE_CHECKING:
    from gradlint.theory.law import Array

_NOISE = 0.5 / math.log(10.0) ** 2
"""Variance in decades^2, times fan, that a layer of finite width adds to a level (benchmarks/theory_random.py measures it)."""

_FEW = 64  # inputs per output: below, the norms of the rows of a weight differ enough to matter
_SMALL = 1 << 20  # elements: rows of a larger weight are not looked at one by one


@dataclass(frozen=True, slots=True)
class _Layer:
    """The weight of a layer along the axis `axis` of input and output."""

    weight: Weight
    axis: int
    fan: float
    outs: float
    rows: Array | None  # squared norm of each row over their mean
    depthwise: bool = False

    @property
    def gain(self) -> float:
        """Squared gain, fan x E[W^2]."""
        return self.fan * mean_square(self.weight)


def linear(call: Call) -> Moved | None:
    """A weight matrix along one axis of the signal."""
    weight, found = call.node.weights.get("weight"), call.signals
    if weight is None or len(found) != 1 or len(weight.shape) < 2:
        return None
    signal = found[0][1]
    axis = _contracted(signal, call.sizes, weight)
    if axis is None:
        return None
    layer = _Layer(weight, axis, signal.sizes[axis], call.sizes[axis], _rows(weight))
    return _through(call, found[0][0], signal, layer)


def _contracted(signal: Signal, sizes: tuple[int, ...], weight: Weight) -> int | None:
    """The axis that a weight sums over: the last one whose length fits, of those whose new length fits too."""
    rank = len(signal.sizes)
    if rank != len(sizes):
        return None
    fitting = [a for a in range(rank) if signal.sizes[a] == weight.fan_in and sizes[a] == weight.fan_out]
    others = [a for a in fitting if all(signal.sizes[b] == sizes[b] for b in range(rank) if b != a)]
    chosen = others or fitting
    return chosen[-1] if chosen else None


def conv(call: Call) -> Moved | None:
    """A convolution, grouped, dilated or transposed, with what falls on its padding left out."""
    weight, found = call.node.weights.get("weight"), call.signals
    if weight is None or not found or len(weight.shape) < 3:
        return None
    slot, signal = found[0]
    kernel = weight.shape[2:]
    axis = len(call.sizes) - len(kernel) - 1
    if axis < 0 or len(signal.sizes) != len(call.sizes):
        return None
    groups = max(int(call.node.attrs.get("groups", call.node.attrs.get("group", 1))), 1)
    transposed = call.node.op == "conv_transpose"
    taps = math.prod(_taps(call, signal.sizes[axis + 1 + i], size, i, transposed=transposed) for i, size in enumerate(kernel))
    pixels = [math.prod(sizes[axis + 1 :]) for sizes in (call.sizes, signal.sizes)]
    fan = taps / pixels[0] * signal.sizes[axis] / groups
    outs = taps / pixels[1] * call.sizes[axis] / groups
    depthwise = not transposed and groups == call.sizes[axis] == signal.sizes[axis]
    return _through(call, slot, signal, _Layer(weight, axis, fan, outs, _rows(weight), depthwise))


def _taps(call: Call, size: int, kernel: int, index: int, *, transposed: bool) -> int:
    """Number of (position, tap) pairs along one axis that fall inside the signal."""
    attrs = call.node.attrs
    stride, dilation = (_along(attrs, names, index, 1) for names in (("stride", "strides"), ("dilation", "dilations")))
    out = call.sizes[len(call.sizes) - (len(call.node.weights["weight"].shape) - 2) + index]
    spare = max((out - 1) * stride + dilation * (kernel - 1) + 1 - size, 0)
    first = -_padding(attrs, index, spare)
    outer, inner = (size, out) if transposed else (out, size)  # the kernel steps over `outer` and lands in `inner`
    starts = first + stride * np.arange(outer)[:, None] + dilation * np.arange(kernel)[None, :]
    return max(int(((starts >= 0) & (starts < inner)).sum()), 1)


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


def _through(call: Call, slot: int, signal: Signal, layer: _Layer) -> Moved:
    weight, axis = layer.weight, layer.axis
    average, noise = mean_of(weight), _NOISE / max(layer.fan, 1.0)
    layout = plain(signal, sizes=call.sizes, channels=axis)
    parts = [
        Part(
            signal.log_q + log10(layer.gain),
            0.0,
            tuple(0.0 if index == axis else share for index, share in enumerate(signal.shared)),
            signal.variance,
        )
    ]
    aligned = (average * signal.mean) ** 2 * layer.fan * max(layer.fan - 1.0, 0.0)
    if aligned > 0.0:
        sign = math.copysign(1.0, average * signal.mean)
        parts.append(Part(signal.log_q + log10(aligned), sign, (1.0,) * len(signal.shared), signal.variance))
    bias = call.node.weights.get("bias")
    if bias is not None and mean_square(bias) > 0.0:
        parts.append(constant_part(mean_square(bias), mean_of(bias), [index == axis for index in range(len(call.sizes))]))
    behind = total(parts, layout)
    profile = layer.rows
    if profile is not None and layer.depthwise and signal.profile is not None:
        profile = _normal(profile * signal.profile)
    behind = replace(behind, profile=profile, variance=behind.variance + noise)

    def back(cotangent: Cotangent) -> Cotangent:
        return _pulled(cotangent, layer)

    return Moved(behind, one(slot, behind, back))


def _normal(values: Array) -> Array | None:
    mean = float(values.mean())
    return values / mean if 0.0 < mean < math.inf else None


def _pulled(cotangent: Cotangent, layer: _Layer) -> Cotangent:
    """A mean of the weight adds up what the cotangents of the units have in common; random weights do not."""
    average, square = mean_of(layer.weight) ** 2, mean_square(layer.weight)
    shared = max(layer.outs - 1.0, 0.0) * cotangent.alike[layer.axis]
    own = min(average * (1.0 + shared) / (square + shared * average), 1.0) if square > 0.0 else 0.0
    gain = layer.fan * (square + shared * average)
    profile = None
    if layer.rows is not None and cotangent.profile is not None and len(cotangent.profile) == len(layer.rows):
        product = cotangent.profile * layer.rows
        gain *= float(product.mean())
        profile = _normal(product) if layer.depthwise else None
    elif layer.depthwise:
        profile = layer.rows
    alike = tuple(own if index == layer.axis else value for index, value in enumerate(cotangent.alike))
    pulled = scaled(cotangent, gain, alike, variance=_NOISE / max(layer.outs, 1.0))
    return replace(pulled, profile=profile)


def embedding(call: Call, *, fed: bool) -> Moved | None:
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
    return Moved(signal, lambda _: ())
