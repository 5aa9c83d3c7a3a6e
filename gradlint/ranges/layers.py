"""Ranges of weight layers, normalization, softmax, reductions, pooling, reshapes, selections and concatenation."""

from __future__ import annotations

import math
from dataclasses import replace

from gradlint.ops import Kind, by_nonlinearity, operator
from gradlint.ranges import segments
from gradlint.ranges.case import NORMS, PERMUTATIONS, RANGES, Case, is_nonnegative, name_of, permuted_axis, weight_interval
from gradlint.ranges.intervals import (
    BITS,
    REALS,
    UNKNOWN,
    Interval,
    constant,
    hull,
    monotone,
    product,
    square,
    value_at,
    widened,
)

_STORES = frozenset(
    {"setitem", "copy", "masked_scatter", "scatter", "index_put", "index_copy", "slice_scatter", "select_scatter"}
)
_FILLS = frozenset({"pad", "Pad", "constant_pad_nd", "tril", "triu", "Trilu", "diag", "diag_embed"})
_RUNNING = frozenset({"cumsum", "CumSum", "logcumsumexp", "cumprod", "CumProd"})


# layers -----------------------------------------------------------------------------------------------------------------


@RANGES.rule(Kind.LINEAR, Kind.CONV)
def layer(case: Case) -> Interval:
    """Return the range of a weight layer.

    The output may be any number if training can change the weight or there is a bias. A frozen layer without a bias has the
    range of a sum of products. So does a layer whose weight and input are nonnegative, such as a bank of filters.
    """
    weight, x = case.node.weights.get("weight"), case.x
    if weight is None or any("bias" in role for role in case.node.weights):
        return REALS
    if weight.trainable and not (x.low >= 0.0 and is_nonnegative(weight)):
        return REALS
    if x == UNKNOWN:
        return UNKNOWN
    values = weight_interval(weight, kept=True)
    found = product(replace(x, at_low=True, at_high=True), values)
    low = 0.0 if found.low >= 0.0 else found.low * weight.fan_in
    high = 0.0 if found.high <= 0.0 else found.high * weight.fan_in
    return Interval(low, high, at_low=x.all_zero if low == 0.0 else x.at_low, at_high=x.at_high, all_zero=x.all_zero)


@RANGES.rule(Kind.MATMUL)
def matmul(case: Case) -> Interval:
    """Return the range of a matrix product of two signals.

    A product of unit vectors is a cosine in [-1, 1]. Bounds and signs of the operands carry over; otherwise the product may be
    any number.
    """
    if case.name in {"cdist", "CDist"}:
        return Interval(0.0, math.inf, at_low=True, at_high=True, all_zero=True)
    if case.node.weights or len([ref for ref in case.node.inputs if ref is not None]) < 2:
        return replace(REALS, all_zero=case.x.all_zero) if case.node.weights else UNKNOWN
    one, other = (case.at(ref) for ref in case.node.inputs[:2])
    if one.unit and other.unit and _sums_over_unit_axes(case, one.axis, other.axis):
        return Interval(-1.0, 1.0, at_low=True, at_high=True)
    found = product(one, other)
    low = 0.0 if found.low >= 0.0 else -math.inf
    sizes = case.sizes()
    inner = sizes[-1] if sizes and case.name not in {"einsum", "Einsum", "tensordot"} else None
    if inner is not None and math.isfinite(found.low) and math.isfinite(found.high):
        return replace(found, low=min(inner * found.low, found.low), high=max(inner * found.high, found.high), total=None)
    return Interval(low, math.inf, at_low=found.at_low if low else found.all_zero, at_high=found.at_high, all_zero=found.all_zero)


def _sums_over_unit_axes(case: Case, left: int | None, right: int | None) -> bool:
    """Return whether a product sums over axis `left` of its first factor and axis `right` of its second."""
    first, second = (case.graph[ref.node].shape or () for ref in case.node.inputs[:2] if ref is not None)
    if left is None or right is None:
        return False
    terms = str(case.node.attrs.get("equation", "")).replace(" ", "").partition("->")
    if terms[0]:
        one, _, other = terms[0].partition(",")
        known = len(one) == len(first) and len(other) == len(second) and "." not in terms[0]
        return known and one[left] == other[right] and one[left] not in terms[2]
    return left == len(first) - 1 and right == max(len(second) - 2, 0)


@RANGES.rule(Kind.EMBEDDING)
def embedding(case: Case) -> Interval:
    """Return the range of the rows of an embedding table, which training may give any value."""
    del case
    return REALS


@RANGES.rule(Kind.RNN)
def recurrent(case: Case) -> Interval:
    """Return the range of hidden states: [-1, 1] for tanh, gated or not, and nonnegative for ReLU."""
    row = by_nonlinearity(str(case.node.attrs.get("nonlinearity", "tanh")))
    if case.node.op.startswith("rnn") and not row.bounded:
        function = row.of({})
        return REALS if function is None or not row.monotone else monotone(lambda at: value_at(function, at), REALS)
    if any("projection" in role for role in case.node.weights) or case.node.op.endswith("_cell"):
        return REALS
    return Interval(-1.0, 1.0, at_low=True, at_high=True)


@RANGES.rule(Kind.ATTENTION)
def attention(case: Case) -> Interval:
    """Return the range of attention: that of the values it averages, or any number after an output projection."""
    if case.node.op != "attention" or len(case.node.inputs) < 3:
        return REALS
    values = case.at(case.node.inputs[2])
    return values.plain if not case.number("dropout_p") else _dropped(values, float(case.number("dropout_p") or 0.0))


@RANGES.rule(Kind.NORM)
def normed(case: Case) -> Interval:
    """Return the range of a normalization.

    n values of unit variance lie within sqrt(n) of their mean (Samuelson 1968). The bound is that times the largest scale, plus
    the largest bias.
    """
    node = case.node
    if node.op == "l2_normalize":
        eps = case.x.all_zero
        axis = case.axes()
        unit = case.number("p") in {None, 2.0} and axis is not None and len(axis) == 1
        return Interval(-1.0, 1.0, at_low=True, at_high=True, all_zero=eps, unit=unit, axis=axis[0] if unit and axis else None)
    if node.op == "local_response_norm":
        return case.x.plain
    count = _normalized(case)
    scale, bias = (node.weights.get(role) for role in ("scale", "bias"))
    if count is None:
        return REALS
    bound = math.sqrt(count) * (1.0 if scale is None else scale.statistics.max_abs) + (bias.statistics.max_abs if bias else 0.0)
    return Interval(-bound, bound, at_low=True, at_high=True)


def _normalized(case: Case) -> int | None:
    """Return the number of values that are normalized together, or None if it is unknown."""
    node, sizes = case.node, case.sizes()
    if not sizes or None in sizes:
        return None
    shape = [size or 1 for size in sizes]
    if node.op in {"layer_norm", "rms_norm"}:
        given = node.attrs.get("normalized_shape")
        return math.prod(given) if isinstance(given, tuple) else shape[-1]
    if node.op == "batch_norm":
        trained = node.attrs.get("training", case.graph.mode == "train")
        return math.prod(shape) // max(shape[1], 1) if trained and len(shape) > 1 else None
    return math.prod(shape[1:])


@RANGES.rule(Kind.DROPOUT)
def dropout(case: Case) -> Interval:
    """Return the range of dropout: zeros, and the other elements divided by 1 - p."""
    active = case.node.attrs.get("training", case.graph.mode == "train")
    p = case.number("p", "ratio")
    return _dropped(case.x, 0.5 if p is None else p) if active else case.x


def _dropped(x: Interval, p: float) -> Interval:
    if not 0.0 < p < 1.0:
        return x.plain if p == 0.0 else constant(0.0)
    kept = product(x.plain, constant(1.0 / (1.0 - p)))
    return replace(hull([kept, constant(0.0)]), all_zero=x.all_zero)


@RANGES.rule(Kind.SOFTMAX)
def softmax(case: Case) -> Interval:
    """Return the range of softmax or log_softmax.

    n probabilities sum to 1, so one of them is at least 1/n. The others may round to 0 if the logits are not bounded.
    """
    x, axes, count = case.x, case.axes(), case.count()
    sizes = case.sizes()
    if case.axes() is not None and sizes and axes:
        count = sizes[axes[0]]
    spread = x.high - x.low
    others = (count or 2) - 1
    low = 1.0 / (1.0 + others * math.exp(min(spread, 700.0))) if math.isfinite(spread) and count else 0.0
    if spread > 700.0:
        low = 0.0
    if case.node.op == "log_softmax":
        least = -(spread + math.log(count or 1)) if math.isfinite(spread) and count else -math.inf
        return widened(Interval(least, 0.0, at_low=True, at_high=True, all_zero=True))
    peak, axis = (1.0 / count, axes[0]) if count and axes else (None, None)
    found = Interval(
        low, 1.0, at_low=True, at_high=True, all_zero=low == 0.0, peak=peak, total=1.0, axis=axis, maker=case.node.id
    )
    return found if count != 1 else constant(1.0)


# reductions -------------------------------------------------------------------------------------------------------------


@RANGES.rule("sum")
def summed(case: Case) -> Interval:
    """Return the range of a sum, norm, product, log-sum-exp or distance over axes."""
    name, x, count = case.name, case.x, case.count()
    if name in NORMS or name == "pairwise_distance":
        return _norm(case, x, count)
    if name == "cosine_similarity":
        return Interval(-1.0, 1.0, at_low=True, at_high=True)
    if name in {"logsumexp", "ReduceLogSumExp"}:
        more = math.log(count) if count else math.inf
        return Interval(x.low, x.high + more, at_low=x.at_low, at_high=x.at_high)
    if name in {"prod", "ReduceProd", "cumprod", "CumProd"}:
        ends = (0.0, 1.0 if x.high <= 1.0 else math.inf) if x.low >= 0.0 else (-math.inf, math.inf)
        return Interval(*ends, at_low=x.at_low, at_high=x.at_high, all_zero=x.all_zero)
    if name == "ReduceSumSquare":
        return sum_interval(case, square(x, case.node.id), count)
    if name in _RUNNING:
        whole = sum_interval(case, x.plain, None if case.sizes() is None else count)
        return replace(hull([x.plain, whole]), all_zero=True)
    if name in {"ReduceLogSum", "trace", "segment_reduce"}:
        return UNKNOWN
    return sum_interval(case, x, count)


def _norm(case: Case, x: Interval, count: int | None) -> Interval:
    if name_of(case.node) == "dist" or case.name == "pairwise_distance":
        return Interval(0.0, math.inf, at_low=case.name == "dist", at_high=True, all_zero=True)
    high = x.largest * (1.0 if x.unit else math.sqrt(count) if count else math.inf)
    if case.node.attrs.get("p", 2) not in {2, "fro", None} or case.name == "ReduceL1":
        high = x.largest * count if count else math.inf
    at_low = x.all_zero or (count == 1 and x.crosses_zero)
    return Interval(0.0, high, at_low=at_low, at_high=x.at_high or x.at_low, all_zero=x.all_zero, maker=case.node.id)


def sum_interval(case: Case, x: Interval, count: int | None) -> Interval:
    """Return the range of a sum of `count` elements, with the bounds that hold along the summed axes."""
    low = _sum_bound(x.low, count, up=False)
    high = _sum_bound(x.high, count, up=True)
    axes = case.axes()
    if x.peak is not None and x.low >= 0.0 and axes is not None and x.axis in axes:
        low = max(low, x.peak + (_sum_bound(x.low, count - 1, up=False) if count else 0.0))
    if x.total is not None:
        along = x.axis is None or (axes is not None and axes == (x.axis,))
        low, high = (max(low, -x.total), min(high, x.total)) if along else (low, high)
    alone = count == 1
    at_low = (x.at_low if alone else x.all_zero) if low == 0.0 else x.at_low
    at_high = (x.at_high if alone else x.all_zero) if high == 0.0 else x.at_high
    return Interval(low, high, at_low=at_low, at_high=at_high, all_zero=x.all_zero, maker=x.maker)


def _sum_bound(end: float, count: int | None, *, up: bool) -> float:
    """Return the lower or upper (`up`) bound of a sum of `count` elements, each bounded by `end`; None counts as one or more."""
    if end == 0.0 or math.isinf(end):
        return end
    if count is not None:
        return end * count
    return math.copysign(math.inf, end) if (end > 0.0) == up else end


@RANGES.rule("mean")
def averaged(case: Case) -> Interval:
    """Return the range of a mean. A nonnegative tensor with a peak has a mean of at least its share of the peak."""
    x, count, axes = case.x, case.count(), case.axes()
    low = x.low
    if x.peak is not None and x.low >= 0.0 and count and axes is not None and x.axis in axes:
        low = max(low, (x.peak + (count - 1) * x.low) / count)
    alone = count == 1
    at_low = (x.at_low if alone else x.all_zero) if low == 0.0 else x.at_low
    at_high = (x.at_high if alone else x.all_zero) if x.high == 0.0 else x.at_high
    return Interval(low, x.high, at_low=at_low, at_high=at_high, all_zero=x.all_zero, maker=x.maker)


@RANGES.rule("var")
def variance(case: Case) -> Interval:
    """Return the range of a variance or standard deviation, which is zero if all elements are equal."""
    x, count = case.x, case.count()
    most = ((x.high - x.low) / 2.0) ** 2 if math.isfinite(x.high - x.low) else math.inf
    most *= 2.0 if count is None else count / max(count - 1, 1)
    if "std" in case.name:
        most = math.sqrt(most)
    if case.name.endswith("_mean"):  # the mean is another output of the same node
        return UNKNOWN
    return Interval(0.0, most, at_low=x.all_zero, at_high=x.at_high, all_zero=x.all_zero, maker=case.node.id)


@RANGES.rule("max")
def extremum(case: Case) -> Interval:
    """Return the range of the largest, smallest or sorted elements."""
    x, axes = case.x, case.axes()
    if len([ref for ref in case.node.inputs if ref is not None]) > 1 and case.name in {"max", "min"}:
        one, other = (case.at(ref) for ref in case.node.inputs[:2])
        return hull([one, other]).plain
    name = case.name.lower()
    if name in {"topk", "sort"}:
        largest = case.node.attrs.get("largest", True)
        return x if largest else x.plain
    if "max" in name and x.peak is not None and axes is not None and x.axis in axes:
        return replace(x.plain, low=max(x.low, x.peak), at_low=True, all_zero=False)
    return x.plain


# reshapes, selections, joins --------------------------------------------------------------------------------------------


@RANGES.rule("reshape")
def reshaped(case: Case) -> Interval:
    """Return the range of a reshape or permutation: that of its input."""
    if case.name in {"fold", "col2im", "Col2Im"}:  # overlapping positions are summed
        return Interval(
            0.0 if case.x.low >= 0.0 else -math.inf, math.inf, at_low=case.x.all_zero, at_high=case.x.at_high, all_zero=True
        )
    return _keep_axis(case, case.x)


def _keep_axis(case: Case, x: Interval) -> Interval:
    """Return the range of a tensor after its elements were moved, with its facts about an axis if that axis is still whole."""
    before, after = case.sizes(), case.node.shape
    if x.axis is None:
        return x
    axis: int | None = x.axis
    if case.name in PERMUTATIONS:
        axis = permuted_axis(case.node, x.axis)
    elif before is None or after is None or len(before) != len(after) or before[x.axis] != after[x.axis]:
        axis = None
    return replace(x, axis=axis) if axis is not None else x.plain


@RANGES.rule("cast", "detach")
def cast(case: Case) -> Interval:
    """Return the range of a cast, before rounding to its dtype."""
    return case.x


def selected(case: Case) -> Interval:
    """Return the range of an operator that slices, gathers, pads or writes into a tensor."""
    name, x = case.name, case.x
    refs = [ref for ref in case.node.inputs if ref is not None and case.graph[ref.node].is_float]
    if name in segments.ACCUMULATES:
        return segments.accumulated(case)
    if name in {"put", "diff"}:
        return replace(REALS, all_zero=x.all_zero)
    if name in _STORES:
        return hull([case.at(ref).plain for ref in refs]) if len(refs) > 1 else UNKNOWN
    if name in _FILLS:
        value = case.number("value", "constant_value") or 0.0
        mode = str(case.node.attrs.get("mode", "constant"))
        return hull([x.plain, constant(value)]) if mode == "constant" else x.plain
    again = segments.gathered(case)
    if again is not None:
        return again
    return x.plain if len(case.node.inputs) > 1 else _keep_axis(case, x)  # an index may select an element twice


@RANGES.rule(Kind.CONCAT)
def concatenated(case: Case) -> Interval:
    """Return the range of a concatenation: the hull of its operands. An unknown constant among them may be any number."""
    weights = [weight_interval(weight) for weight in case.node.weights.values()]
    parts = [case.at(ref).plain for ref in case.node.inputs if ref is not None]
    missing = sum(ref is None for ref in case.node.inputs) > len(weights)
    found = hull([*parts, *weights, *([UNKNOWN] if missing else [])])
    axes = {case.at(ref).axis if case.at(ref).unit else None for ref in case.node.inputs if ref is not None}
    along = case.axes() or ()
    axis = axes.pop() if len(axes) == 1 and not weights and not missing else None
    return found if axis is None or axis in along else replace(found, unit=True, axis=axis)


@RANGES.rule(Kind.POOL)
def pooled(case: Case) -> Interval:
    """Return the range of pooling: the mean of a window, which may include zero padding, or its largest element."""
    name = case.name
    if name.lower().startswith("lp_pool"):
        return Interval(0.0, math.inf, at_low=case.x.all_zero, at_high=case.x.at_high, all_zero=case.x.all_zero)
    if "bicubic" in name or case.node.attrs.get("mode") in {"bicubic", "cubic"}:
        return UNKNOWN
    if case.node.op == "avg_pool" and "adaptive" not in name and not name.startswith("Global"):
        return replace(hull([case.x.plain, constant(0.0)]), all_zero=case.x.all_zero)
    return case.x.plain


def unknown(case: Case) -> Interval:
    """Return the range of an operator without a rule: `UNKNOWN`, or [0, 1] for comparisons and one-hot encodings."""
    kind = operator(case.node.op).kind
    if case.node.op == "one_hot" or case.name in {"one_hot", "OneHot"}:
        return BITS
    return BITS if kind is Kind.CUT and case.node.op == "compare" else UNKNOWN
