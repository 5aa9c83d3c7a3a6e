"""Formulas of operators that mix elements of one or two tensors: attention, matrix products, concatenation, means."""

from __future__ import annotations

import math
from dataclasses import replace

from gradlint.ops import Kind
from gradlint.theory.arithmetic.equations import Equation, Number, below, number
from gradlint.theory.arithmetic.formulas import FORMULAS, Case, Formulas
from gradlint.theory.transfer.attention import attention_scale, attention_weights, concentration, row_sharpness, scaled_logits
from gradlint.theory.transfer.joins import axis_of
from gradlint.theory.transfer.pools import reduced_axes, window_of
from gradlint.theory.transfer.signal import Signal, averaged

_BROADCAST = "axes that are broadcast"
ATTENTION = "Noci et al. 2022, arXiv 2206.03126"


@FORMULAS.rule(Kind.SOFTMAX)
def softmax(case: Case) -> Formulas | None:
    """Return the formulas of softmax."""
    if case.node.op == "log_softmax":
        return None
    axis = axis_of(case.node, ("dim", "axis"), len(case.output.sizes), len(case.output.sizes) - 1)
    sharp, length = concentration(case.first, axis), max(case.output.sizes[axis], 1)
    first, second = number(sharp), below(length)
    passed = (number(row_sharpness(case.first, axis).passed), number(1.0 - case.correlation(axis)))
    return Formulas(
        Equation("q' = S / T, S = E sum A^2 of T weights", ((first, second),)),
        (Equation("P (1-r), P = E |J^T g|^2 / E g^2, r what gradients share along it", (passed,)),),
        ATTENTION,
    )


@FORMULAS.rule(Kind.ATTENTION)
def attend(case: Case) -> Formulas | None:
    """Return the formulas of scaled dot-product attention as one operator."""
    found, node, sizes = dict(case.call.signals), case.node, case.output.sizes
    if not {0, 1, 2} <= set(found) or any(len(found[slot].sizes) != len(sizes) for slot in (0, 1, 2)):
        return None
    query, key, value = found[0], found[1], found[2]
    scale = attention_scale(node, query)
    logits = scaled_logits(query, key, sizes, scale)
    causal, rows = bool(node.attrs.get("is_causal", False)), sizes[-2]
    sharp, passed = map(number, row_sharpness(logits, len(sizes) - 1, causal=causal))
    q, r = Number(value.log_q), max(value.shared[-2], 0.0)
    forward = Equation(
        "q' = q_v S (1-r) + q_v r, r what tokens share, S = E sum A^2", ((q, sharp, number(1.0 - r)), (q, number(r))), "dropout"
    )
    seen = max(attention_weights(logits, len(sizes) - 1, causal=causal).shared[-2], 0.0) * max(
        case.correlation(len(sizes) - 2), 0.0
    )
    averaged_over = Equation(
        "S + S (T-1) r, r what gradients share", ((sharp,), (sharp, number(rows - 1.0), number(seen))), "dropout"
    )
    through = [
        Equation(
            "P T q_v q_k d a^2, P of the softmax" if factor is key else "P T q_v q_q d a^2, P of the softmax",
            ((passed, number(key.sizes[-2]), q, Number(factor.log_q), number(query.sizes[-1]), number(scale * scale)),),
            "what keys, values and gradients share",
        )
        for factor in (key, query)
    ]
    return Formulas(forward, (*through, averaged_over), ATTENTION)


@FORMULAS.rule(Kind.MATMUL)
def product(case: Case) -> Formulas | None:
    """Return the formulas of a matrix product of two signals."""
    found = case.call.signals
    if len(found) != 2 or len(found[0][1].sizes) < 2 or len(found[1][1].sizes) < 2 or case.node.attrs.get("equation"):
        return None
    (_, left), (_, right) = found
    length, (rows, columns) = left.sizes[-1], case.output.sizes[-2:]
    n, q1, q2 = number(length), Number(left.log_q), Number(right.log_q)
    together = number((length - 1.0) * left.shared[-1] * right.shared[-2])
    forward = Equation(
        "q' = n q1 q2 (1 + (n-1) r), n terms in a sum, r what they share", ((n, q1, q2), (n, q1, q2, together)), _BROADCAST
    )
    rank = len(case.output.sizes)
    sides = tuple(
        Equation(f"n q{index} (1 + (k-1) r), k sums it enters, r what they share", ((n, q), (n, q, number(beside))), _BROADCAST)
        for index, q, beside in (
            (2, q2, (columns - 1.0) * case.correlation(rank - 1) * right.shared[-1]),
            (1, q1, (rows - 1.0) * case.correlation(rank - 2) * left.shared[-2]),
        )
    )
    return Formulas(forward, sides, ATTENTION)


@FORMULAS.rule(Kind.CONCAT)
def concat(case: Case) -> Formulas | None:
    """Return the formulas of a concatenation."""
    found = case.call.signals
    whole = sum(signal.size for _, signal in found)
    if not whole or whole != case.output.size:
        return None
    shares = [number(signal.size / whole) for _, signal in found]
    terms = tuple((share, Number(signal.log_q)) for share, (_, signal) in zip(shares, found, strict=True))
    return Formulas(
        Equation("q' = the mean of q by size", terms), tuple(Equation("its share of the size", ((share,),)) for share in shares)
    )


@FORMULAS.rule(Kind.POOL)
def pool(case: Case) -> Formulas | None:
    """Return the formulas of average pooling."""
    signal = case.first
    if case.node.op in {"upsample", "max_pool"} or len(signal.sizes) != len(case.output.sizes):
        return None
    window = window_of(case.node, signal.sizes, case.output.sizes)
    axes = [axis for axis, size in enumerate(window) if size > 1]
    return _mean(signal, math.prod(window), averaged(window, signal.shared, axes))


@FORMULAS.rule(Kind.REDUCE)
def reduce(case: Case) -> Formulas | None:
    """Return the formulas of a mean or sum over axes."""
    signal = case.first
    axes = reduced_axes(case.node, signal.sizes, case.output.sizes)
    count = math.prod(signal.sizes[axis] for axis in axes)
    name = str(case.node.attrs.get("name", case.node.op)).lower()
    if name.removeprefix("reduce") not in {"mean", "sum", "nanmean", "nansum"}:
        return None
    return _mean(signal, count, averaged(signal.sizes, signal.shared, axes), total=case.node.op == "sum")


def _mean(signal: Signal, count: int, share: float, *, total: bool = False) -> Formulas:
    """Return the formulas of a mean of `count` elements that keeps `share` of q, or of their sum (`total`)."""
    common = number(min(max((share * count - 1.0) / (count - 1.0), 0.0), 1.0)) if count > 1 else number(1.0)
    other = number(1.0 - 10.0**common.log)
    k, q = number(count), Number(signal.log_q)
    over = replace(k, divides=True)
    if total:
        return Formulas(
            Equation("q' = k q (1-r) + k^2 q r, k elements, r what they share", ((k, q, other), (k, k, q, common))),
            (Equation("k", ((k,),)),),
        )
    forward = Equation("q' = q (1-r) / k + q r, k elements, r what they share", ((q, other, over), (q, common)))
    return Formulas(forward, (Equation("1 / k", ((over,),), "windows that overlap"),))
