"""Transfer rules of products of two signals, softmax and attention.

E sum A^2 of a softmax over T logits is 1/T for uniform attention and 1 for attention to a single token; see `gaussian.sharpness`.
The output of attention to tokens of correlation r has the second moment q (r + (1 - r) E sum A^2) (Noci et al. 2022, arXiv
2206.03126).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from gradlint.graph import Node
from gradlint.ops import Kind
from gradlint.theory.gaussian.sharpness import Sharpness, sharpness
from gradlint.theory.transfer.profiles import both, renumbered, without
from gradlint.theory.transfer.rule import (
    TRANSFER,
    Call,
    OperandCotangents,
    TransferResult,
    as_gaussian,
    half_log,
    log10,
    mean_square,
    scaled,
    single_operand,
)
from gradlint.theory.transfer.signal import Cotangent, CotangentTerm, Signal, averaged, coherent_sum, joined

if TYPE_CHECKING:
    from gradlint.theory.transfer.profiles import Profile


_LOGITS = 0.03  # decades^2 that the gradient through logits adds, because causal masks and similar keys change it


@dataclass(frozen=True, slots=True)
class Product:
    """A contraction of two tensors as in einsum, with one letter for each axis of both factors and the result."""

    left: str
    right: str
    out: str

    @property
    def summed(self) -> list[str]:
        """Letters of both factors that the result does not have."""
        return [letter for letter in self.left if letter in self.right and letter not in self.out]


@TRANSFER.rule(Kind.MATMUL)
def matmul(call: Call) -> TransferResult | None:
    """Return the transfer of a matrix product or einsum of two signals, or of one with a constant."""
    found = call.signals
    if len(found) == 1:
        return _with_constant(call, *found[0])
    if len(found) != 2:
        return None
    (i, left), (j, right) = found
    product = _letters(call.node, left, right, call.sizes)
    if product is None:
        return None
    output = contracted(product, left, right, call.sizes)
    scale = _scale_of(call.node)
    output = replace(output, level=output.level + log10(scale))

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        cotangent = joined(terms, output)
        cotangent = replace(cotangent, energy=cotangent.energy + 2.0 * log10(scale))
        yield i, CotangentTerm(left_cotangent(product, cotangent, left, right, call.sizes))
        yield (
            j,
            CotangentTerm(left_cotangent(Product(product.right, product.left, product.out), cotangent, right, left, call.sizes)),
        )

    return TransferResult(output, back)


def _scale_of(node: Node) -> float:
    alpha = node.attrs.get("alpha")
    return abs(float(alpha)) if isinstance(alpha, (int, float)) and alpha else 1.0


def _with_constant(call: Call, slot: int, signal: Signal) -> TransferResult | None:
    """Return the transfer of a product with a weight that is not a layer; None for a constant tensor."""
    weight = next(iter(call.node.weights.values()), None)
    if weight is None or len(signal.sizes) != len(call.sizes):
        return None
    changed = [axis for axis, (old, new) in enumerate(zip(signal.sizes, call.sizes, strict=True)) if old != new]
    axis = changed[0] if len(changed) == 1 else len(call.sizes) - 1
    fan = signal.sizes[axis]
    gain = fan * mean_square(weight)
    shared = tuple(0.0 if a == axis else share for a, share in enumerate(signal.shared))
    output = as_gaussian(signal, level=signal.level + half_log(gain), sizes=call.sizes, shared=shared, mean=0.0, channels=axis)

    def back(cotangent: Cotangent) -> Cotangent:
        return scaled(cotangent, gain, tuple(0.0 if a == axis else value for a, value in enumerate(cotangent.correlation)))

    return TransferResult(output, single_operand(slot, output, back))


def _letters(node: Node, left: Signal, right: Signal, sizes: tuple[int, ...]) -> Product | None:
    """Return the contraction of an operator, or None if its equation or shapes are not supported."""
    equation = str(node.attrs.get("equation", "")).replace(" ", "")
    inputs, arrow, out = equation.partition("->")
    if arrow and "." not in inputs and inputs.count(",") == 1:
        a, b = inputs.split(",")
        fits = len(a) == len(left.sizes) and len(b) == len(right.sizes) and len(out) == len(sizes)
        return Product(a, b, out) if fits else None
    if equation or len(left.sizes) < 2 or len(right.sizes) < 2:
        return None
    batch = "abcdefgh"[: len(sizes) - 2]  # factors with more axes do not fit
    a, b = batch[len(batch) - len(left.sizes) + 2 :] + "ik", batch[len(batch) - len(right.sizes) + 2 :] + "kj"
    fits = len(sizes) >= 2 and left.sizes[-1] == right.sizes[-2]
    return Product(a, b, batch + "ij") if fits else None


def _share(letters: str, signal: Signal, letter: str) -> float:
    """Return the shared second moment along a letter, over q; 1 for a tensor without it or of length 1 along it."""
    if letter not in letters:
        return 1.0
    axis = letters.index(letter)
    return signal.shared[axis] if signal.sizes[axis] > 1 else 1.0


def _lengths(product: Product, left: Signal, right: Signal, sizes: Sequence[int]) -> dict[str, int]:
    lengths: dict[str, int] = {}
    for letters, own in ((product.left, left.sizes), (product.right, right.sizes), (product.out, sizes)):
        for letter, size in zip(letters, own, strict=True):
            lengths[letter] = max(size, lengths.get(letter, 1))
    return lengths


def contracted(product: Product, left: Signal, right: Signal, sizes: tuple[int, ...]) -> Signal:
    """Return the signal of a contraction, of second moment q_a q_b n [1 + (n-1) rho_a rho_b] for a sum of n terms."""
    lengths = _lengths(product, left, right, sizes)
    summed = product.summed
    counts = [lengths[letter] for letter in summed]
    ours = [_share(product.left, left, letter) for letter in summed]
    theirs = [_share(product.right, right, letter) for letter in summed]
    both = [a * b for a, b in zip(ours, theirs, strict=True)]
    sums = coherent_sum(counts, both, range(len(counts)))
    shared = []
    for letter in product.out:
        a, b = _share(product.left, left, letter), _share(product.right, right, letter)
        limited = [min(a, x) * min(b, y) for x, y in zip(ours, theirs, strict=True)]
        common = averaged(counts, limited, range(len(counts)), same=a * b)
        shared.append(min(max(common * math.prod(counts) / sums, -1.0), 1.0))
    number = math.prod(counts)
    mean = left.mean * right.mean * math.sqrt(number / sums) if sums > 0.0 else 0.0
    return Signal(
        left.level + right.level + half_log(sums * number),
        sizes,
        tuple(shared),
        min(max(mean, -1.0), 1.0),
        len(sizes) - 1,
        variance=left.variance + right.variance,
        profile=_outer(product, left.profile, right.profile),
    )


def _outer(product: Product, left: Profile, right: Profile) -> Profile:
    """Return the profile of a contraction along the axes of its result."""
    out = product.out
    first = renumbered(left, lambda axis: out.index(product.left[axis]) if product.left[axis] in out else None)
    return both(first, renumbered(right, lambda axis: out.index(product.right[axis]) if product.right[axis] in out else None))


def left_cotangent(product: Product, cotangent: Cotangent, left: Signal, right: Signal, sizes: Sequence[int]) -> Cotangent:
    """Return the cotangent of the left factor: that of the result contracted with the right factor."""
    lengths = _lengths(product, left, right, sizes)
    correlation = dict(zip(product.out, cotangent.correlation, strict=True))
    gone = [
        letter for letter in product.out if letter not in product.left or left.sizes[product.left.index(letter)] < lengths[letter]
    ]
    together = coherent_sum(
        [lengths[letter] for letter in gone],
        [correlation[letter] * _share(product.right, right, letter) for letter in gone],
        range(len(gone)),
    )
    factor = math.prod(lengths[letter] for letter in product.summed) * together
    own = tuple(
        (correlation.get(letter, 1.0) if letter not in gone else 1.0) * _share(product.right, right, letter)
        for letter in product.left
    )
    result, axes = Product(product.out, product.right, product.left), without(cotangent.profile, _places(product.out, gone))
    profile = _outer(result, axes, right.profile)
    return Cotangent(cotangent.energy + log10(factor) + right.log_q, own, cotangent.variance + right.variance, profile)


def _places(letters: str, chosen: Sequence[str]) -> list[int]:
    return [index for index, letter in enumerate(letters) if letter in chosen]


@TRANSFER.rule(Kind.SOFTMAX)
def softmax(call: Call) -> TransferResult | None:
    """Return the transfer of softmax or log_softmax over the axis `dim`."""
    found = call.signals
    if not found or not call.sizes:
        return None
    slot, logits = found[0]
    axis = call.node.attrs.get("dim", call.node.attrs.get("axis", -1))
    axis = (int(axis) if isinstance(axis, int) else -1) % len(call.sizes)
    output = attention_weights(logits, axis)
    if call.node.op == "log_softmax":
        return _log_softmax(slot, logits, axis)

    def back(cotangent: Cotangent) -> Cotangent:
        return logits_cotangent(cotangent, logits, output, axis)

    return TransferResult(output, single_operand(slot, output, back))


def _private(logits: Signal, axis: int) -> float:
    """Return the variance of logits along an axis."""
    return float(10.0 ** min(logits.log_q, 60.0)) * max(1.0 - logits.shared[axis], 0.0)


def concentration(logits: Signal, axis: int, *, causal: bool = False) -> float:
    """Return E sum A^2 of a softmax over an axis."""
    return row_sharpness(logits, axis, causal=causal).squares


def row_sharpness(logits: Signal, axis: int, *, causal: bool = False) -> Sharpness:
    """Return the concentration of a softmax over an axis; for causal attention, the mean over rows of 1, 2, ... T entries."""
    count, variance = max(logits.sizes[axis], 1), _private(logits, axis)
    if not causal:
        return sharpness(variance, count)
    lengths = np.unique(np.geomspace(1, count, min(count, 24)).astype(np.int64))  # other lengths are interpolated
    found = [sharpness(variance, int(length)) for length in lengths]
    rows = np.arange(1, count + 1)
    squares, passed = (np.interp(rows, lengths, values) for values in zip(*found, strict=True))
    return Sharpness(float(squares.mean()), float((passed * rows).mean()) / count)


def attention_weights(logits: Signal, axis: int, *, causal: bool = False) -> Signal:
    """Return attention weights as a signal of mean 1/T, whose sum of squares is `concentration`."""
    peak, count = concentration(logits, axis, causal=causal), max(logits.sizes[axis], 1)
    along = max((1.0 / peak - 1.0) / max(count - 1, 1), 0.0)
    private = max(1.0 - logits.shared[axis], 1e-12)
    shared = []
    for other, share in enumerate(logits.shared):
        common = min(max((share - min(share, logits.shared[axis])) / private, 0.0), 1.0)
        together = sharpness(_private(logits, axis) * common, count).squares / peak
        shared.append(min(together, 1.0) if other != axis else min(along, 1.0))
    level = half_log(peak / count)
    mean = min(1.0 / math.sqrt(count * peak), 1.0)
    return as_gaussian(logits, level=level, mean=mean, shared=tuple(shared), variance=0.0, channels=None)


def logits_cotangent(cotangent: Cotangent, logits: Signal, weights: Signal, axis: int, *, causal: bool = False) -> Cotangent:
    """Return the cotangent of logits, A (g - sum A g), in which the mean of g along the softmax cancels."""
    factor = row_sharpness(logits, axis, causal=causal).passed * max(1.0 - cotangent.correlation[axis], 0.0)
    correlation = tuple(
        0.0 if other == axis else a * s for other, (a, s) in enumerate(zip(cotangent.correlation, weights.shared, strict=True))
    )
    return scaled(cotangent, factor, correlation, profile=without(cotangent.profile, (axis,)))


def _log_softmax(slot: int, logits: Signal, axis: int) -> TransferResult:
    count = logits.sizes[axis]
    offset = math.log(max(count, 1)) ** 2
    level = half_log(10.0 ** min(logits.log_q, 300.0) * (1.0 - logits.shared[axis]) + offset)
    output = as_gaussian(logits, level=level, mean=0.0)

    def back(cotangent: Cotangent) -> Cotangent:
        return scaled(cotangent, 1.0 + cotangent.correlation[axis] * count)

    return TransferResult(output, single_operand(slot, output, back))


@dataclass(frozen=True, slots=True)
class _Heads:
    """Queries, keys and values of one attention, each of shape (..., T, d)."""

    query: Signal
    key: Signal
    value: Signal


@TRANSFER.rule(Kind.ATTENTION)
def attention(call: Call) -> TransferResult | None:
    """Return the transfer of scaled dot-product attention as one operator."""
    found = dict(call.signals)
    if not {0, 1, 2} <= set(found):
        return None
    query, key, value = found[0], found[1], found[2]
    rank = len(query.sizes)
    if not 2 <= rank <= 8 or len(key.sizes) != rank or len(value.sizes) != rank or len(call.sizes) != rank:
        return None
    scale = attention_scale(call.node, query)
    causal = bool(call.node.attrs.get("is_causal", False))
    drop = float(call.node.attrs.get("dropout_p", 0.0) or 0.0) if call.training else 0.0
    return attend(_Heads(query, key, value), call.sizes, scale, causal=causal, drop=drop)


def attention_scale(node: Node, query: Signal) -> float:
    """Return the factor on the logits of a fused attention, 1/sqrt(d) by default."""
    given = node.attrs.get("scale")
    return abs(float(given)) if isinstance(given, (int, float)) and given else 1.0 / math.sqrt(max(query.sizes[-1], 1))


def scores(sizes: Sequence[int]) -> Product:
    """Return the contraction of queries and keys for an attention output of these sizes."""
    batch = "abcdefgh"[: len(sizes) - 2]
    return Product(batch + "ik", batch + "jk", batch + "ij")


def scaled_logits(query: Signal, key: Signal, sizes: Sequence[int], scale: float) -> Signal:
    """Return the logits of an attention whose output has these sizes."""
    logits = contracted(scores(sizes), query, key, (*sizes[:-1], key.sizes[-2]))
    return replace(logits, level=logits.level + log10(scale))


def attend(heads: _Heads, sizes: tuple[int, ...], scale: float, *, causal: bool, drop: float) -> TransferResult:
    """Return the transfer of attention: the average of the values, and gradients through the values and through the logits.

    `sizes` are those of the output, `scale` is the factor on the logits, and `drop` the dropout probability of the weights. The
    pullback yields queries, keys and values as slots 0, 1 and 2.
    """
    query, key, value = heads.query, heads.key, heads.value
    pairs = scores(sizes)
    mixing = Product(pairs.out, pairs.out[:-2] + "jv", pairs.out[:-1] + "v")
    logits = scaled_logits(query, key, sizes, scale)
    square = logits.sizes
    weights = attention_weights(logits, len(square) - 1, causal=causal)
    keep = 1.0 - min(max(drop, 0.0), 0.99)
    dropped = replace(
        weights,
        level=weights.level + half_log(1.0 / keep),
        shared=tuple(s * keep for s in weights.shared),
        mean=weights.mean * math.sqrt(keep),
    )
    output = contracted(mixing, dropped, value, sizes)

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        cotangent = joined(terms, output)
        yield 2, CotangentTerm(left_cotangent(Product(mixing.right, mixing.left, mixing.out), cotangent, value, dropped, sizes))
        on_weights = left_cotangent(mixing, cotangent, dropped, value, sizes)
        on_logits = logits_cotangent(on_weights, logits, weights, len(square) - 1, causal=causal)
        on_logits = replace(on_logits, energy=on_logits.energy + 2.0 * log10(scale), variance=on_logits.variance + _LOGITS)
        yield 0, CotangentTerm(_centered(left_cotangent(pairs, on_logits, query, key, square), key))
        yield 1, CotangentTerm(left_cotangent(Product(pairs.right, pairs.left, pairs.out), on_logits, key, query, square))

    return TransferResult(output, back)


def _centered(cotangent: Cotangent, key: Signal) -> Cotangent:
    """Remove the mean of the keys from the cotangent of queries, because the cotangents of logits sum to zero over the keys."""
    return replace(cotangent, energy=cotangent.energy + log10(max(1.0 - key.shared[-2], 1e-12)))


@TRANSFER.rule("multi_head_attention")
def multi_head(call: Call) -> TransferResult | None:
    """Return the transfer of torch's fused multi-head attention (time, batch, width): projections, attention, projection."""
    found, weights = call.signals, call.node.weights
    entry = weights.get("in_proj") or weights.get("q_proj")
    out = weights.get("out_proj")
    if not found or entry is None or out is None or len(found[0][1].sizes) != 3 or len(call.sizes) != 3:
        return None
    heads = max(int(call.node.attrs.get("num_heads", 1)), 1)
    slots = [slot for slot, _ in found[:3]]
    signals = [signal for _, signal in found[:3]]
    slots, signals = (slots * 3)[:3], (signals * 3)[:3]
    gain = entry.fan_in * mean_square(entry)
    inner = [_per_head(signal, gain, heads) for signal in signals]
    sizes = (call.sizes[1], heads, call.sizes[0], max(signals[2].sizes[2] // heads, 1))
    drop = float(call.node.attrs.get("dropout_p", 0.0) or 0.0) if call.node.attrs.get("training", call.training) else 0.0
    causal = bool(call.node.attrs.get("is_causal", False))
    inside = attend(_Heads(*inner), sizes, 1.0 / math.sqrt(max(sizes[3], 1)), causal=causal, drop=drop)
    last = out.fan_in * mean_square(out)
    mixed = inside.signal
    shared = (mixed.shared[2], mixed.shared[0], 0.0)
    output = as_gaussian(
        signals[0], level=mixed.level + half_log(last), mean=0.0, sizes=call.sizes, shared=shared, variance=mixed.variance
    )

    def back(terms: Sequence[CotangentTerm]) -> OperandCotangents:
        cotangent = joined(terms, output)
        inner_cotangent = scaled(cotangent, last, (cotangent.correlation[1], 0.0, cotangent.correlation[0], 0.0))
        for place, term in inside.pullback([CotangentTerm(inner_cotangent)]):
            correlation = term.cotangent.correlation
            yield slots[place], CotangentTerm(scaled(term.cotangent, gain, (correlation[2], correlation[0], 0.0)))

    return TransferResult(output, back)


def _per_head(signal: Signal, gain: float, heads: int) -> Signal:
    """Return the projection of a (time, batch, width) signal, as (batch, heads, time, width per head)."""
    steps, batch, width = signal.sizes
    sizes = (batch, heads, steps, max(width // heads, 1))
    shared = (signal.shared[1], 0.0, signal.shared[0], 0.0)
    return as_gaussian(signal, level=signal.level + half_log(gain), mean=0.0, sizes=sizes, shared=shared, channels=3)
