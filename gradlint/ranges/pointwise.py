"""Ranges of pointwise operators: arithmetic on two tensors and functions of one."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from gradlint.graph import Node, Ref
from gradlint.ops import Kind, attributes_of, operator
from gradlint.ranges.case import RANGES, Case, name_of
from gradlint.ranges.intervals import (
    BITS,
    REALS,
    UNKNOWN,
    Interval,
    constant,
    hull,
    inverse,
    magnitude,
    minus,
    monotone,
    plus,
    product,
    square,
    value_at,
    widened,
)
from gradlint.ranges.segments import is_shifted

_GRID = np.linspace(-12.0, 12.0, 4801)  # the minimum of an activation that is not monotone is searched on these points
_TINY = 1e-6
_ROOT = {"sqrt": 0.5, "rsqrt": -0.5, "reciprocal": -1.0}


# arithmetic -------------------------------------------------------------------------------------------------------------


@RANGES.rule(Kind.ADD)
def added(case: Case) -> Interval:
    """Return the range of a sum or difference."""
    node, name = case.node, case.name
    if name == "lerp":
        return hull(case.operands()).plain
    if name in {"addcmul", "addcdiv"}:
        return REALS
    if len(node.inputs) != 2 and name in {"Sum", "Mean"}:
        return _several(case)
    one, other = case.operands()
    step = case.number("alpha")
    if step is not None and step != 1.0:
        other = product(other, constant(step))
    if node.op == "add":
        return _shifted(plus(one, other), one, other)
    left, right = (*node.inputs, None, None)[:2]
    found = _related_difference(case, left, right)
    if found is not None:
        return found
    found = _shifted(plus(one, minus(other)), one, other)
    return replace(found, all_zero=True) if left is not None and right is not None else found


def _several(case: Case) -> Interval:
    found = constant(0.0)
    for ref in case.node.inputs:
        found = plus(found, case.other() if ref is None else case.at(ref))
    return product(found, constant(1.0 / len(case.node.inputs))) if case.name == "Mean" else found


def _shifted(found: Interval, one: Interval, other: Interval) -> Interval:
    """Return the range of a sum, with the peak of an operand to which a number is added."""
    if other.low == other.high and one.peak is not None and math.isfinite(other.low):
        return replace(
            found, peak=one.peak + (found.low - one.low if math.isfinite(one.low) else found.high - one.high), axis=one.axis
        )
    return found


def _related_difference(case: Case, left: Ref | None, right: Ref | None) -> Interval | None:
    """Return the range of a difference of related tensors, or None if they are not related.

    These are a tensor minus its maximum, minimum or mean, and E[x^2] - E[x]^2, a variance by subtraction.
    """
    if left is None or right is None:
        return None
    top = case.producer(right, "max", "maximum")
    if top is not None and any(case.same(left, ref) for ref in top.inputs if ref is not None):
        smaller = "min" in name_of(top).lower()
        low = case.at(left)
        if smaller:
            return Interval(0.0, math.inf, at_low=True, at_high=low.at_high, all_zero=True)
        whole = top.op == "max"
        axis = _axis_of(top, len(case.node.shape or ()))
        found = Interval(-math.inf, 0.0, at_low=low.at_low, at_high=True, all_zero=True)
        return replace(found, peak=0.0, axis=axis) if whole and axis is not None else found
    if _is_last(case, left, right) or is_shifted(case, left, right):
        return Interval(-math.inf, 0.0, at_low=True, at_high=True, all_zero=True)
    if case.averaged(right) is not None and case.same(case.averaged(right), left):
        spread = plus(case.at(left), minus(case.at(right)))
        return replace(spread, all_zero=case.at(left).all_zero)
    inner = case.squared(right)
    squares = case.squared(case.averaged(left))
    if inner is not None and squares is not None and case.same(case.averaged(inner), squares):
        return Interval(0.0, case.at(left).high, at_low=True, at_high=case.at(left).at_high, all_zero=True, maker=case.node.id)
    return None


def _is_last(case: Case, left: Ref, right: Ref) -> bool:
    """Return whether a difference is the last of several running sums of nonpositive numbers minus those sums."""
    sums, part = case.producer(right, "sum"), case.producer(left, "slice")
    if sums is None or part is None or name_of(sums).lower() != "cumsum" or case.found[sums.id].high > 0.0:
        return False
    index = part.attrs.get("index", ())
    return case.same(part.inputs[0], right) and isinstance(index, tuple) and bool({-1, (-1, None, None)} & set(index))


def _axis_of(node: Node, rank: int) -> int | None:
    given = next((node.attrs[key] for key in ("dim", "axis", "axes") if key in node.attrs), None)
    if isinstance(given, tuple) and len(given) == 1:
        given = given[0]
    return given % rank if isinstance(given, int) and rank else None


@RANGES.rule("mul")
def multiplied(case: Case) -> Interval:
    """Return the range of a product, or of the square of a tensor."""
    refs = [ref for ref in case.node.inputs if ref is not None]
    if len(refs) == 2 and case.same(refs[0], refs[1]):
        return square(case.x, case.node.id)
    one, other = case.operands()
    found = _scaled(product(one, other), one, other)
    for weights, values in ((one, other), (other, one)):  # an average of bounded values is bounded
        aligned = len({len(case.graph[ref.node].shape or ()) for ref in refs}) == 1
        if found.total is None and aligned and weights.total is not None and math.isfinite(values.largest):
            found = replace(found, total=weights.total * values.largest, axis=weights.axis)
    return found


def _scaled(found: Interval, one: Interval, other: Interval) -> Interval:
    """Return the range of a product, with the peak of an operand that is multiplied by a positive number."""
    if other.low == other.high and 0.0 < other.low < math.inf and one.peak is not None:
        return replace(found, peak=one.peak * other.low, axis=one.axis)
    return found


@RANGES.rule("div")
def divided(case: Case) -> Interval:
    """Return the range of a quotient. A tensor over its own norm is a unit vector."""
    one, other = case.operands()
    left, right = (*case.node.inputs, None, None)[:2]
    axes = case.norm_axes(right, left) if left is not None else None
    if axes is not None:
        axis = axes[0] if len(axes) == 1 else None
        return Interval(-1.0, 1.0, at_low=True, at_high=True, all_zero=one.all_zero, unit=axis is not None, axis=axis)
    below = inverse(other)
    found = _scaled(product(one, below), one, below)
    return replace(found, low=0.0) if one.low >= 0.0 and other.low >= 0.0 and math.isinf(found.low) else found


@RANGES.rule("neg")
def negated(case: Case) -> Interval:
    """Return the range of -x."""
    return minus(case.x)


# functions --------------------------------------------------------------------------------------------------------------


@RANGES.rule(Kind.ACTIVATION)
def activated(case: Case) -> Interval:
    """Return the range of an activation: its values at both ends, and its minimum between them if it is not monotone."""
    row = operator(case.node.op)
    function = row.of(attributes_of(case.node))
    if function is None:
        return UNKNOWN
    x = case.x

    def value(at: float) -> float:
        return value_at(function, at)

    if row.shrinks:
        return replace(x.plain, low=min(x.low, 0.0), high=max(x.high, 0.0), all_zero=True)
    if row.monotone:
        found = monotone(value, x, case.node.id if math.isfinite(value(-math.inf)) else "")
        touched = found.low == 0.0 and x.low < 0.0 and math.isfinite(x.low)
        return widened(replace(found, at_low=found.at_low or touched, all_zero=found.all_zero or touched))
    inside = _GRID[(x.low <= _GRID) & (x.high >= _GRID)]
    values = np.asarray(function(inside)) if inside.size else inside
    ends = [value(end) for end in (x.low, x.high)]
    low, high = float(values.min(initial=min(ends))), float(values.max(initial=max(ends)))
    return Interval(low - _TINY, high + _TINY, at_low=True, at_high=x.at_high, all_zero=x.all_zero)


@RANGES.rule("glu")
def gated(case: Case) -> Interval:
    """Return the range of a gated linear unit: one half of the channels times a gate in [0, 1]."""
    return replace(case.x.plain, low=min(case.x.low, 0.0), high=max(case.x.high, 0.0))


@RANGES.rule("exp")
def exponential(case: Case) -> Interval:
    """Return the range of exp, exp2 or expm1."""
    base = 2.0 if case.name == "exp2" else math.e
    shift = 1.0 if case.name == "expm1" else 0.0
    found = widened(monotone(lambda x: _power_of(base, x) - shift, case.x, case.node.id))
    vague = math.isinf(case.x.low) and not case.x.at_low
    return replace(found, at_low=found.at_low and not vague, all_zero=found.low == 0.0 and case.x.at_low)


def _power_of(base: float, exponent: float) -> float:
    try:
        return float(base**exponent)
    except OverflowError:
        return math.inf


@RANGES.rule("log")
def logarithm(case: Case) -> Interval:
    """Return the range of a logarithm.

    If the argument may reach the point at which the logarithm is infinite, the lower end does not count as reached.
    """
    if case.name not in {"log", "Log", "log2", "log10", "log1p"}:
        return UNKNOWN
    function = {"log2": math.log2, "log10": math.log10, "log1p": math.log1p}.get(case.name, math.log)
    floor = -1.0 if case.name == "log1p" else 0.0
    x = case.x

    def value(at: float) -> float:
        return -math.inf if at <= floor else function(at)

    found = widened(monotone(value, replace(x, peak=None), ""))
    return replace(found, at_low=x.at_low and x.low > floor, all_zero=x.all_zero and floor < 0.0)


@RANGES.rule("sqrt", "rsqrt", "reciprocal", "pow")
def power(case: Case) -> Interval:
    """Return the range of a power whose exponent or base is a number, of a root, or of a reciprocal."""
    exponent = _ROOT.get(case.node.op)
    if exponent is None:
        if case.node.op == "pow" and case.node.inputs and case.node.inputs[0] is None:
            return _base(case)
        exponent = case.number("constant", "exponent")
    x = case.x
    if exponent is None:
        return UNKNOWN if x.low < 0.0 else Interval(low=0.0)
    if exponent == 0.0:
        return constant(1.0)
    if exponent < 0.0:
        return inverse(to_power(x, -exponent, case.node.id))
    return to_power(x, exponent, case.node.id)


def to_power(x: Interval, exponent: float, maker: str) -> Interval:
    """Return the range of x to a positive power. For a fractional power only the nonnegative part of x counts."""
    if exponent == 1.0:
        return x
    if exponent == 2.0:
        return square(x, maker)
    if exponent % 2.0 == 0.0:
        x = magnitude(x, maker)
    elif exponent % 1.0 != 0.0 and x.low < 0.0:
        x = replace(x, low=0.0, at_low=False, peak=None)

    def value(at: float) -> float:
        try:
            return math.copysign(abs(at) ** exponent, at)
        except OverflowError:
            return math.copysign(math.inf, at)

    return widened(monotone(value, replace(x, unit=False, total=None)))


def _base(case: Case) -> Interval:
    base = case.number("constant")
    if base is None or base <= 0.0:
        return UNKNOWN
    x = case.x if base >= 1.0 else minus(case.x)
    found = widened(monotone(lambda at: _power_of(max(base, 1.0 / base), at), x, case.node.id))
    return replace(found, all_zero=found.low == 0.0 and x.at_low)


_ANGLES: dict[str, tuple[float, float, float, float]] = {  # domain, range
    "asin": (-1.0, 1.0, -math.pi / 2, math.pi / 2),
    "acos": (-1.0, 1.0, 0.0, math.pi),
    "atan": (-math.inf, math.inf, -math.pi / 2, math.pi / 2),
    "atan2": (-math.inf, math.inf, -math.pi, math.pi),
    "cosh": (-math.inf, math.inf, 1.0, math.inf),
    "acosh": (1.0, math.inf, 0.0, math.inf),
}
_RISING: dict[str, Callable[[float], float]] = {"sinh": math.sinh, "asinh": math.asinh}


@RANGES.rule("tan")
def trigonometric(case: Case) -> Interval:
    """Return the range of tan, a hyperbolic function, or an inverse trigonometric function."""
    name = case.name.lower().replace("arc", "a")
    if name in _RISING:
        return widened(monotone(lambda x: _or_infinite(_RISING[name], x), case.x))
    if name in _ANGLES:
        _, _, low, high = _ANGLES[name]
        return widened(Interval(low, high, at_low=True, at_high=math.isfinite(high), all_zero=low == 0.0))
    return UNKNOWN


def _or_infinite(function: Callable[[float], float], at: float) -> float:
    try:
        return function(at)
    except OverflowError:
        return math.copysign(math.inf, at)


@RANGES.rule("compare")
def comparison(case: Case) -> Interval:
    """Return the range of a comparison: {0, 1}. The row of the vocabulary also has operators that return sizes."""
    return BITS if case.node.dtype in {"bool", None} else UNKNOWN


@RANGES.rule("abs")
def absolute(case: Case) -> Interval:
    """Return the range of |x|."""
    return magnitude(case.x, case.node.id)


@RANGES.rule("sin")
def sine(case: Case) -> Interval:
    """Return the range of sin, cos or sinc."""
    return Interval(-1.0, 1.0, at_low=True, at_high=True, all_zero=case.x.all_zero and case.name.lower() == "sin")
