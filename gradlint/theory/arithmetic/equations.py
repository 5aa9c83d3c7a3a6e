"""Equations as sums of products, which print as a formula in symbols, the same in numbers, and a result.

Numbers are kept as their log10, so that 10^400 neither overflows nor becomes NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from gradlint.theory.transfer.signal import log_sum

_EQUAL = 2.5e-4  # decades: a factor closer to 1 is not printed, because four digits do not show it
_TYPICAL = "a typical draw, not the mean of all (Hanin, Nica 2018)"


@dataclass(frozen=True, slots=True)
class Number:
    """A positive number, given by its log10; `divides` says whether it is a divisor."""

    log: float
    divides: bool = False

    @property
    def power(self) -> float:
        """log10 of the factor on its term."""
        return -self.log if self.divides else self.log

    def __str__(self) -> str:
        return shown(self.log)


Term = tuple[Number, ...]


def number(value: float) -> Number:
    """Build a factor from its value."""
    return Number(math.log10(value) if value > 0.0 else -math.inf)


def below(value: float) -> Number:
    """Build a divisor from its value."""
    return replace(number(value), divides=True)


def shown(log: float) -> str:
    """Format a number that is given by its log10, with four significant digits."""
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
    """An equation: a formula, its terms in numbers, and corrections. All sizes are log10.

    Attributes:
        formula: The formula in symbols.
        terms: Its terms, each a product of numbers.
        because: The reason for `rest`.
        rest: The factor by which the theory differs from the formula, 0 if it does not.
        typical: The ratio of a typical draw of the weights to the mean over all draws, which the formula gives.
    """

    formula: str
    terms: tuple[Term, ...]
    because: str = ""
    rest: float = 0.0
    typical: float = 0.0

    @property
    def result(self) -> float:
        """log10 of the result, including corrections."""
        return self._value() + self.typical + self.rest

    @property
    def numbers(self) -> str:
        """The formula with numbers inserted, such as "24 x 0.2604 x 1 + 0", times its corrections."""
        text = " + ".join(_product(term) for term in self.terms)
        factors = "".join(f" x {shown(factor)}" for factor, _ in self.beside)
        return f"({text}){factors}" if factors and len(self.terms) > 1 else f"{text}{factors}"

    @property
    def beside(self) -> tuple[tuple[float, str], ...]:
        """The corrections that differ from 1, as log10, each with its reason."""
        return tuple(item for item in ((self.typical, _TYPICAL), (self.rest, self.because)) if abs(item[0]) > _EQUAL)

    def equal_to(self, log: float) -> Equation:
        """Return the equation with the `rest` that makes its result `log`; unchanged if either side is zero or not finite."""
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
