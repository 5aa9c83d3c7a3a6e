"""Interval arithmetic (Moore 1966) with the rounding of the floating-point type of each tensor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from gradlint.ops.pointwise import Function

_LARGEST = {"float16": 65504.0, "bfloat16": 3.3895313892515355e38, "float64": 1.7976931348623157e308}
_FLOAT32 = 3.4028234663852886e38
_SMALLEST = {"float16": 2.0**-14, "float64": 2.0**-1022}
_MARGIN = 1e-6  # relative error of library functions: some units in the last place of float32


@dataclass(frozen=True, slots=True)
class Interval:
    """Bounds of the elements of a tensor, and how close training may bring the elements to them.

    Attributes:
        low: Lower bound of every element.
        high: Upper bound of every element.
        at_low: Whether training can plausibly bring an element to `low`, or arbitrarily far down for an infinite bound. False
            for an operand of which nothing is known.
        at_high: The same for `high`.
        all_zero: Whether all elements may be 0 at once, as for dead units, a difference of equal tensors, or padding. A weight
            layer with a bias has no such output.
        peak: Along `axis`, at least one element is this large. None if unknown.
        total: Along `axis`, the sum is at most this in absolute value. None if unknown.
        axis: The axis of `peak`, `total` and `unit`.
        unit: Whether the vectors along `axis` have length 1 or less.
        maker: Id of the node that set the bounds, or "".
    """

    low: float = -math.inf
    high: float = math.inf
    at_low: bool = False
    at_high: bool = False
    all_zero: bool = False
    peak: float | None = None
    total: float | None = None
    axis: int | None = None
    unit: bool = False
    maker: str = ""

    @property
    def largest(self) -> float:
        """Largest absolute value in the interval."""
        return max(abs(self.low), abs(self.high))

    @property
    def crosses_zero(self) -> bool:
        """Whether training may bring an element to 0 or arbitrarily close to it."""
        if self.low == 0.0:
            return self.at_low
        return self.at_high if self.high == 0.0 else self.low < 0.0 < self.high and self.at_low and self.at_high

    @property
    def plain(self) -> Interval:
        """The same bounds without the facts about one axis."""
        return replace(self, peak=None, total=None, axis=None, unit=False)


UNKNOWN = Interval()
REALS = Interval(at_low=True, at_high=True)
BITS = Interval(0.0, 1.0, at_low=True, at_high=True, all_zero=True)


def bounds(low: float, high: float) -> str:
    """Format an interval, such as "[0, 1]" or "[0, inf)"."""
    left = "(-inf" if math.isinf(low) and low < 0 else f"[{low:.3g}"
    return f"{left}, inf)" if math.isinf(high) and high > 0 else f"{left}, {high:.3g}]"


def constant(value: float) -> Interval:
    """Return the interval that holds one number."""
    return Interval(value, value, at_low=True, at_high=True, all_zero=value == 0.0)


def largest_of(dtype: str | None) -> float:
    """Return the largest finite number of a dtype; float32 for an unknown one."""
    return _LARGEST.get(dtype or "", _FLOAT32)


def smallest_of(dtype: str | None) -> float:
    """Return the smallest positive normal number of a dtype; float32 for an unknown one."""
    return _SMALLEST.get(dtype or "", 2.0**-126)


def rounded(value: float, dtype: str | None) -> float:
    """Round a number to a dtype. Numbers out of range become 0 or infinite, and unknown dtypes count as float32."""
    if dtype == "float64" or not math.isfinite(value):
        return value
    with np.errstate(over="ignore", under="ignore"):
        if dtype == "float16":
            return float(np.float16(value))
        single = np.float32(value)
    if dtype != "bfloat16":
        return float(single)
    bits = int(single.view(np.uint32))
    bits += 0x7FFF + ((bits >> 16) & 1)  # round to nearest, ties to even
    return float(np.uint32(bits & 0xFFFF0000).view(np.float32))


def times(x: float, y: float) -> float:
    """Return x * y with 0 * inf = 0, the bound of a product of finite numbers."""
    return 0.0 if x == 0.0 or y == 0.0 else x * y


def plus(a: Interval, b: Interval) -> Interval:
    """Return the range of a + b."""
    low, high = a.low + b.low, a.high + b.high
    at_low, at_high = a.at_low and b.at_low, a.at_high and b.at_high
    if a.low == b.low == 0.0 and a.high > 0.0 and b.high > 0.0:
        at_low = a.all_zero and b.all_zero  # two nonnegative operands seldom reach 0 at the same element
    touches = (low == 0.0 and at_low) or (high == 0.0 and at_high)
    all_zero = (a.all_zero and b.all_zero) or (touches and low != high)
    return Interval(low, high, at_low=at_low, at_high=at_high, all_zero=all_zero, maker=a.maker or b.maker)


def minus(a: Interval) -> Interval:
    """Return the range of -a, without its peak."""
    return replace(a, low=-a.high, high=-a.low, at_low=a.at_high, at_high=a.at_low, peak=None)


def product(a: Interval, b: Interval) -> Interval:
    """Return the range of a * b for operands that are independent of one another."""
    corners = [
        (times(x, y), (at_x or y == 0.0) and (at_y or x == 0.0))
        for x, at_x in ((a.low, a.at_low), (a.high, a.at_high))
        for y, at_y in ((b.low, b.at_low), (b.high, b.at_high))
    ]
    low, high = min(value for value, _ in corners), max(value for value, _ in corners)
    return Interval(
        low,
        high,
        at_low=any(at for value, at in corners if value == low),
        at_high=any(at for value, at in corners if value == high),
        all_zero=a.all_zero or b.all_zero,
        total=1.0 if a.unit and b.unit and a.axis == b.axis else None,
        axis=a.axis if a.unit and b.unit and a.axis == b.axis else None,
        maker=a.maker or b.maker,
    )


def square(a: Interval, maker: str = "") -> Interval:
    """Return the range of a * a."""
    top = a.largest * a.largest
    at_top = a.at_high if a.high >= -a.low else a.at_low
    if a.low > 0.0 or a.high < 0.0:
        least = min(abs(a.low), abs(a.high))
        return Interval(least * least, top, at_low=a.at_low if a.low > 0 else a.at_high, at_high=at_top, maker=a.maker)
    return Interval(
        0.0,
        top,
        at_low=a.crosses_zero,
        at_high=at_top,
        all_zero=a.all_zero,
        total=1.0 if a.unit else None,
        axis=a.axis if a.unit else None,
        maker=maker,
    )


def magnitude(a: Interval, maker: str = "") -> Interval:
    """Return the range of |a|."""
    found = square(a, maker)
    return replace(found, low=math.sqrt(found.low), high=a.largest, total=None)


def inverse(a: Interval) -> Interval:
    """Return the range of 1 / a. If a may be 0, only the sign of the result is known."""
    if a.low > 0.0 or a.high < 0.0:
        ends = [math.copysign(0.0, end) if math.isinf(end) else 1.0 / end for end in (a.high, a.low)]
        return Interval(ends[0], ends[1], at_low=a.at_high, at_high=a.at_low, maker=a.maker)
    return Interval(0.0 if a.low == 0.0 else -math.inf, 0.0 if a.high == 0.0 else math.inf, maker=a.maker)


def hull(intervals: Iterable[Interval]) -> Interval:
    """Return the smallest interval that contains all of several intervals."""
    found = list(intervals)
    if not found:
        return UNKNOWN
    low, high = min(one.low for one in found), max(one.high for one in found)
    return Interval(
        low,
        high,
        at_low=any(one.at_low for one in found if one.low == low),
        at_high=any(one.at_high for one in found if one.high == high),
        all_zero=any(one.all_zero for one in found),
        maker=next((one.maker for one in found if one.low == low and one.maker), ""),
    )


def monotone(function: Callable[[float], float], a: Interval, maker: str = "") -> Interval:
    """Return the range of a nondecreasing function of a.

    A finite end that the function approaches at infinity counts as reached, because rounding reaches it.
    """
    low, high = function(a.low), function(a.high)
    return Interval(
        low,
        high,
        at_low=a.at_low or (math.isinf(a.low) and math.isfinite(low)),
        at_high=a.at_high or (math.isinf(a.high) and math.isfinite(high)),
        all_zero=(a.all_zero and function(0.0) == 0.0) or (low == 0.0 and math.isinf(a.low)),
        peak=None if a.peak is None else function(a.peak),
        axis=None if a.peak is None else a.axis,
        maker=maker or a.maker,
    )


def value_at(function: Function, at: float) -> float:
    """Return the value of a numpy function at a point, or its limit at an infinite one; limits above 1e20 count as infinite."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        found = float(np.asarray(function(np.array([math.copysign(1e30, at) if math.isinf(at) else at])))[0])
    return math.copysign(math.inf, found) if math.isinf(at) and abs(found) > 1e20 else found


def widened(a: Interval) -> Interval:
    """Widen an interval by the rounding error of library functions. Ends of 0, 1 and -1 stay exact."""

    def shifted(end: float, sign: float) -> float:
        return end if end in {0.0, 1.0, -1.0} or math.isinf(end) else end + sign * _MARGIN * abs(end)

    return replace(a, low=shifted(a.low, -1.0), high=shifted(a.high, 1.0))


def within(a: Interval, dtype: str | None) -> Interval:
    """Round the ends of an interval to a dtype."""
    low, high = rounded(a.low, dtype), rounded(a.high, dtype)
    return (
        a if (low, high) == (a.low, a.high) else replace(a, low=low, high=high, all_zero=a.all_zero or (low == 0.0 and a.at_low))
    )
