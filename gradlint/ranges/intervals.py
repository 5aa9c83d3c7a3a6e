"""Intervals that values cannot leave, in the arithmetic of the type that computes them."""

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
_MARGIN = 1e-6  # functions that are not rounded correctly err by some units in the last place of float32


@dataclass(frozen=True, slots=True)
class Interval:
    """Where the elements of a tensor lie, and what training may do with them.

    `at_low` and `at_high` say that training can plausibly bring an element to that end, or as far as one likes where the end is
    infinite; of what is not known nothing is expected. `null` says that all elements of a tensor may be 0 at once, as those of
    dead units, of a difference or of padding, but not those of a weight layer with a bias. Along `axis` one element at least is
    `peak` or more, and the sum is at most `total` in absolute value. `unit` vectors have at most length 1. `maker` is the node
    that set the bounds.
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
        """The largest absolute value."""
        return max(abs(self.low), abs(self.high))

    @property
    def crosses_zero(self) -> bool:
        """Whether training may bring an element to exactly 0, or as near as one likes."""
        if self.low == 0.0:
            return self.at_low
        return self.at_high if self.high == 0.0 else self.low < 0.0 < self.high and self.at_low and self.at_high

    @property
    def plain(self) -> Interval:
        """The same bounds, without what is known along an axis."""
        return replace(self, peak=None, total=None, axis=None, unit=False)


UNKNOWN = Interval()
REALS = Interval(at_low=True, at_high=True)
BITS = Interval(0.0, 1.0, at_low=True, at_high=True, all_zero=True)


def bounds(low: float, high: float) -> str:
    """Two ends as people write them: "[0, 1]", "[0, inf)"."""
    left = "(-inf" if math.isinf(low) and low < 0 else f"[{low:.3g}"
    return f"{left}, inf)" if math.isinf(high) and high > 0 else f"{left}, {high:.3g}]"


def constant(value: float) -> Interval:
    """One number."""
    return Interval(value, value, at_low=True, at_high=True, all_zero=value == 0.0)


def largest_of(dtype: str | None) -> float:
    """The largest finite number of a type."""
    return _LARGEST.get(dtype or "", _FLOAT32)


def smallest_of(dtype: str | None) -> float:
    """The smallest positive number of a type that has all its digits."""
    return _SMALLEST.get(dtype or "", 2.0**-126)


def rounded(value: float, dtype: str | None) -> float:
    """A number as a type holds it; what a type does not hold becomes 0 or infinite. Types that are not known are float32."""
    if dtype == "float64" or not math.isfinite(value):
        return value
    with np.errstate(over="ignore", under="ignore"):
        if dtype == "float16":
            return float(np.float16(value))
        single = np.float32(value)
    if dtype != "bfloat16":
        return float(single)
    comparison = int(single.view(np.uint32))
    comparison += 0x7FFF + ((comparison >> 16) & 1)  # to nearest, ties to even
    return float(np.uint32(comparison & 0xFFFF0000).view(np.float32))


def times(x: float, y: float) -> float:
    """A product in which 0 wins over infinity: the bound of a product of finite numbers."""
    return 0.0 if x == 0.0 or y == 0.0 else x * y


def plus(a: Interval, b: Interval) -> Interval:
    """A + b."""
    low, high = a.low + b.low, a.high + b.high
    at_low, at_high = a.at_low and b.at_low, a.at_high and b.at_high
    if a.low == b.low == 0.0 and a.high > 0.0 and b.high > 0.0:
        at_low = a.all_zero and b.all_zero  # two that cross zero seldom do so together
    touches = (low == 0.0 and at_low) or (high == 0.0 and at_high)
    all_zero = (a.all_zero and b.all_zero) or (touches and low != high)
    return Interval(low, high, at_low=at_low, at_high=at_high, all_zero=all_zero, maker=a.maker or b.maker)


def minus(a: Interval) -> Interval:
    """-a; a peak does not stay one."""
    return replace(a, low=-a.high, high=-a.low, at_low=a.at_high, at_high=a.at_low, peak=None)


def product(a: Interval, b: Interval) -> Interval:
    """The product of a and b, independent of one another."""
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
    """The square of a."""
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
    """The absolute value of a."""
    found = square(a, maker)
    return replace(found, low=math.sqrt(found.low), high=a.largest, total=None)


def inverse(a: Interval) -> Interval:
    """1/a; where a may be 0 nothing but the sign is known."""
    if a.low > 0.0 or a.high < 0.0:
        ends = [math.copysign(0.0, end) if math.isinf(end) else 1.0 / end for end in (a.high, a.low)]
        return Interval(ends[0], ends[1], at_low=a.at_high, at_high=a.at_low, maker=a.maker)
    return Interval(0.0 if a.low == 0.0 else -math.inf, 0.0 if a.high == 0.0 else math.inf, maker=a.maker)


def hull(intervals: Iterable[Interval]) -> Interval:
    """What is in one of some intervals."""
    found = list(intervals)
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
    """A function that does not fall, of a. An end that the function only nears at infinity is reached by rounding."""
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
    """The value of a numpy function at a point; at an infinite one the limit, or infinity where it grows beyond 1e20."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        found = float(np.asarray(function(np.array([math.copysign(1e30, at) if math.isinf(at) else at])))[0])
    return math.copysign(math.inf, found) if math.isinf(at) and abs(found) > 1e20 else found


def widened(a: Interval) -> Interval:
    """The interval with a margin for functions that a library rounds in its own way; 0, 1 and -1 stay what they are."""

    def reshaped(end: float, sign: float) -> float:
        return end if end in {0.0, 1.0, -1.0} or math.isinf(end) else end + sign * _MARGIN * abs(end)

    return replace(a, low=reshaped(a.low, -1.0), high=reshaped(a.high, 1.0))


def within(a: Interval, dtype: str | None) -> Interval:
    """The interval with ends as a type holds them."""
    low, high = rounded(a.low, dtype), rounded(a.high, dtype)
    return (
        a if (low, high) == (a.low, a.high) else replace(a, low=low, high=high, all_zero=a.all_zero or (low == 0.0 and a.at_low))
    )
