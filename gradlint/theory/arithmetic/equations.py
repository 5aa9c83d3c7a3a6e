"""Arithmetic that people can follow: sums of products, printed as a formula, as numbers and as a result.

Every number is kept as its log10, so that 10^400 neither overflows nor becomes NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gradlint.theory.transfer.signal import log_sum

_EQUAL = 2.5e-4  # decades: a factor so near to 1 is not printed, nor would four digits tell
_TYPICAL = "a typical draw, not the mean of all (Hanin, Nica 2018)"


@dataclass(frozen=True, slots=True)
class Number:
    """A positive number by its log10; `divides` where it stands below the line."""

    log: float
    divides: bool = False

    @property
    def power(self) -> float:
        """log10 of what it multiplies its term by."""
        return -self.log if self.divides else self.log

    def __str__(self) -> str:
        return shown(self.log)


Term = tuple[Number, ...]


def number(value: float) -> Number:
    """A number of ordinary size."""
    return Number(math.log10(value) if value > 0.0 else -math.inf)


def below(value: float) -> Number:
    """A divisor of ordinary size."""
    return replace(number(value), divides=True)


def shown(log: float) -> str:
    """Four digits of a number given by its log10."""
    if not math.isfinite(log):
        return "0" if log < 0.0 else "inf" if log > 0.0 else "nan"
    if -4.0 <= log < 6.0:
        value = 10.0**log
        return f"{value:.0f}" if value >= 9999.5 else f"{value:.4g}"
    exponent = math.floor(log)
    mantissa = f"{10.0 ** (log - exponent):.3f}"
    return f"1.000e{exponent + 1:+03d}" if mantissa == "10.000" else f"{mantissa}e{exponent:+03d}"


@dataclass(frozen=True, slots=True)
class Equation:
    """`formula` in symbols, the same in numbers, and `result` as log10.

    The formula is of a mean over all draws of the weights; `typical` is log10 of what one draw has of that. `rest` is log10 of
    what theory multiplies both by besides, for the reason `because`; 0 where the formula is all.
    """

    formula: str
    terms: tuple[Term, ...]
    because: str = ""
    rest: float = 0.0
    typical: float = 0.0

    @property
    def result(self) -> float:
        """log10 of the value."""
        return self._value() + self.typical + self.rest

    @property
    def numbers(self) -> str:
        """The formula with numbers put in, "24 x 0.2604 x 1 + 0"; what is beside it multiplies all of it."""
        text = " + ".join(_product(term) for term in self.terms)
        factors = "".join(f" x {shown(factor)}" for factor, _ in self.beside)
        return f"({text}){factors}" if factors and len(self.terms) > 1 else f"{text}{factors}"

    @property
    def beside(self) -> tuple[tuple[float, str], ...]:
        """The factors beside the formula that differ from 1, as log10, each with its reason."""
        return tuple(item for item in ((self.typical, _TYPICAL), (self.rest, self.because)) if abs(item[0]) > _EQUAL)

    def equal_to(self, log: float) -> Equation:
        """The equation with the rest that makes it this; unchanged where either side is zero or unknown."""
        value = self._value()
        return replace(self, rest=log - value - self.typical) if math.isfinite(log) and math.isfinite(value) else self

    def _value(self) -> float:
        return log_sum(sum(item.power for item in term) for term in self.terms)


def _product(term: Term) -> str:
    text = ""
    for item in term:
        lead = (" / " if item.divides else " x ") if text else "1 / " if item.divides else ""
        text += f"{lead}{item}"
    return text
