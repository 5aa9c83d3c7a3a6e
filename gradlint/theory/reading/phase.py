"""Order, criticality and chaos of a stack of one repeated layer: weights, biases, a normalisation if any, an activation.

A signal that goes through many such layers settles at a variance q*, two inputs at a correlation c*, and gradients grow by chi a
layer (Poole 2016, 1606.05340; Schoenholz 2017, 1611.01232). Depths are in layers, always more than 0 and infinite at criticality.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

from gradlint.theory.gaussian.integrals import (
    Key,
    Moments,
    chi,
    critical_gain,
    fixed_point,
    moments,
    shared_moment,
    shared_slope,
    variance_slope,
)

_CRITICAL = 0.01  # of log chi: less than a factor e in a hundred layers
_ENDLESS = 1e-9  # of 1 - slope: no depth scale
_FADED, _RUNAWAY = 1.001e-12, 0.999e6  # where `fixed_point` stops
_BATCH = "batch_norm"


@dataclass(frozen=True, slots=True)
class Phase:
    """Where a stack stands.

    Attributes:
        op: The activation, with its parameters in `key`; an operator that is not one counts as linear.
        key: What `gradlint.theory.gaussian.integrals.parameters` made of its attributes.
        gain: sigma_w, the root of fan_in x mean square of the weights.
        bias: sigma_b^2, the variance of the biases.
        norm: The normalisation between weights and activation, None for none.
        variance: q* of pre-activations, behind the norm; 0 where the signal fades, infinite where it runs away.
        correlation: c* of two inputs, between 0 and 1.
        chi: Squared factor of the gradient per layer.
        critical: The gain with chi = 1; None where no gain has it, as behind most norms.
        depth: xi_c, layers over which what two inputs differ by, or have in common, changes by a factor e.
        variance_depth: xi_q, layers over which a deviation of the variance fades by a factor e; 0 behind a norm.
    """

    op: str
    key: Key
    gain: float
    bias: float
    norm: str | None
    variance: float
    correlation: float
    chi: float
    critical: float | None
    depth: float
    variance_depth: float

    @property
    def name(self) -> str:
        """Either "ordered" (gradients vanish), "critical" or "chaotic" (they explode)."""
        if abs(_log(self.chi)) < _CRITICAL:
            return "critical"
        return "ordered" if self.chi < 1.0 else "chaotic"

    @property
    def decades(self) -> float:
        """Growth of the gradient per layer, 1/2 log10 chi; -inf where nothing passes."""
        return 0.5 * _log(self.chi) / math.log(10.0)

    @property
    def gradient_depth(self) -> float:
        """Layers over which the squared gradient changes by a factor e."""
        rate = abs(_log(self.chi))
        return 1.0 / rate if rate > _ENDLESS else math.inf

    def picture(self) -> tuple[str, ...]:
        """Gain against growth per layer as twelve lines of at most sixty characters, with the critical line and this stack."""
        return _picture(self)


def phase(op: str, key: Key, gain: float, bias: float = 0.0, norm: str | None = None) -> Phase:
    """The phase of a stack; arguments as the attributes of `Phase`."""
    q = _pre_activation(op, key, gain, bias, norm)
    factor = _factor(op, key, gain, bias, norm)
    if norm is None:
        shown = 0.0 if q < _FADED else math.inf if q > _RUNAWAY else q
        if shown != q and abs(_log(gain * gain * _moments(op, 1.0, key).second + bias)) < _CRITICAL:
            shown = 1.0  # a rectifier at its critical gain but for rounding
        lasting = _depth(gain * gain * variance_slope(op, q, key))
    else:
        shown, lasting = 1.0, 0.0
    if norm == _BATCH:
        correlation, slope = 0.0, 0.0
    else:
        correlation, slope = _fixed_correlation(op, key, gain, bias, q)
    critical = _critical(op, key, bias, norm)
    return Phase(op, key, gain, bias, norm, shown, correlation, factor, critical, _depth(slope), lasting)


def correlation_map(
    op: str, rho: float, key: Key = (), *, gain: float = 1.0, bias: float = 0.0, q: float = 1.0
) -> tuple[float, float]:
    """Correlation of two inputs a layer after it was `rho`, and its derivative by `rho` (Poole 2016).

    `q` is the variance of the pre-activations before; the gain matters only beside a bias.
    """
    square = gain * gain
    attrs = dict(key)
    shared, slope = shared_moment(op, q, rho * q, attrs), shared_slope(op, q, rho * q, attrs)
    if shared is None or slope is None:
        shared, slope = rho * q, 1.0
    after = square * _moments(op, q, key).second + bias
    if after <= 0.0:
        return rho, 1.0
    return min((square * shared + bias) / after, 1.0), square * slope * q / after


class CriticalPoint(NamedTuple):
    """Squared gain of weights, variance of biases and the variance of pre-activations at which nothing grows or shrinks."""

    weight: float
    bias: float
    variance: float


@lru_cache(maxsize=256)
def critical_point(op: str, key: Key = ()) -> CriticalPoint | None:
    """The initialisation at which neither a gradient nor a deviation of the variance changes from layer to layer.

    For rectifiers it is He's, at any variance (1 is returned), for tanh and its like that of the slope at 0, at variance 0, for
    GELU and SiLU one with biases (Roberts, Yaida, Hanin 2022, Principles of Deep Learning Theory, section 5.3). None where there
    is none, as for the sigmoid.
    """

    def excess(log_q: float) -> float:
        q = math.exp(log_q)
        return _moments(op, q, key).slope - variance_slope(op, q, key)

    small = _moments(op, 1e-12, key)
    grid = [-4.0 + 0.25 * step for step in range(41)]
    found = [excess(log_q) for log_q in grid]
    if max(map(abs, found)) < 1e-9:
        return CriticalPoint(1.0 / small.slope, 0.0, 1.0)
    if small.slope > 0.0 and abs(small.second / (1e-12 * small.slope) - 1.0) < 1e-5 and min(found) > -1e-9:
        return CriticalPoint(1.0 / small.slope, 0.0, 0.0)
    for index in range(len(grid) - 1):
        if found[index] * found[index + 1] < 0.0:
            log_q = _root(excess, grid[index], grid[index + 1])
            q = math.exp(log_q)
            there = _moments(op, q, key)
            bias = q - there.second / there.slope
            return CriticalPoint(1.0 / there.slope, bias, q) if bias >= 0.0 else None
    return None


# parts ------------------------------------------------------------------------------------------------------------------


def _moments(op: str, q: float, key: Key) -> Moments:
    return moments(op, q, dict(key)) or Moments(0.0, q, 1.0)


def _log(value: float) -> float:
    return math.log(value) if value > 0.0 else -math.inf


def _depth(slope: float) -> float:
    """Layers over which a deviation that a layer multiplies by `slope` fades by a factor e."""
    if slope <= 0.0:
        return 0.0
    return -1.0 / math.log(slope) if slope < 1.0 - _ENDLESS else math.inf


def _pre_activation(op: str, key: Key, gain: float, bias: float, norm: str | None) -> float:
    """Variance of what the activation reads: 1 behind a norm."""
    return fixed_point(op, gain, key, bias) if norm is None else 1.0


def _factor(op: str, key: Key, gain: float, bias: float, norm: str | None) -> float:
    """Squared factor of the gradient: a norm divides it by the variance that it takes away.

    BatchNorm takes only what varies over the batch (Yang 2019, 1902.08129), the others all of it (Doshi 2021, 2111.12143).
    """
    if norm is None:
        return chi(op, gain, key, bias)
    found, square = _moments(op, 1.0, key), gain * gain
    varying = square * (found.second - found.mean**2) if norm == _BATCH else square * found.second + bias
    return square * found.slope / varying if varying > 0.0 else 0.0


def _critical(op: str, key: Key, bias: float, norm: str | None) -> float | None:
    """The gain with chi = 1."""
    if norm is None:
        found = critical_gain(op, key, bias)
        return found if abs(_log(chi(op, found, key, bias))) < _CRITICAL else None
    moved = _moments(op, 1.0, key)
    if norm == _BATCH or bias == 0.0 or moved.slope <= moved.second:
        return None
    return math.sqrt(bias / (moved.slope - moved.second))


def _fixed_correlation(op: str, key: Key, gain: float, bias: float, q: float) -> tuple[float, float]:
    """The stable fixed point of the correlation map, and the slope there.

    The map is a power series with positive coefficients, hence convex: where it leaves 1 with a slope above 1 there is one other
    fixed point, which Newton's method reaches from 0 without passing it.
    """
    _, slope = correlation_map(op, 1.0, key, gain=gain, bias=bias, q=q)
    if slope <= 1.0 + _ENDLESS:
        return 1.0, slope
    rho = 0.0
    for _ in range(60):
        after, slope = correlation_map(op, rho, key, gain=gain, bias=bias, q=q)
        step = (after - rho) / max(1.0 - slope, 1e-6)
        if step < 1e-10:
            break
        rho = min(rho + step, 1.0 - 1e-9)
    return rho, slope


def _root(function: Callable[[float], float], low: float, high: float) -> float:
    """Where a function that changes its sign between two points is zero, by bisection."""
    positive = function(high) > 0.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if (function(middle) > 0.0) == positive else (middle, high)
    return 0.5 * (low + high)


# picture ----------------------------------------------------------------------------------------------------------------

_COLUMNS, _ROWS, _MARGIN = 52, 9, 7
_STEEPEST = 1.0  # decades a layer; what is beyond is drawn at the edge
_HALVES = "\N{UPPER HALF BLOCK}\N{LOWER HALF BLOCK}"
_LEVEL, _CRITICAL_LINE = "\N{BOX DRAWINGS LIGHT TRIPLE DASH HORIZONTAL}", "\N{BOX DRAWINGS LIGHT TRIPLE DASH VERTICAL}"
_LEFT, _BELOW, _CORNER = (
    "\N{BOX DRAWINGS LIGHT VERTICAL}",
    "\N{BOX DRAWINGS LIGHT HORIZONTAL}",
    "\N{BOX DRAWINGS LIGHT UP AND RIGHT}",
)
_HERE = "\N{BLACK CIRCLE}"


def _picture(stack: Phase) -> tuple[str, ...]:
    middle = stack.critical or stack.gain
    low, high = min(middle / 4.0, stack.gain / 1.5), max(middle * 4.0, stack.gain * 1.5)
    gains = [low * (high / low) ** (column / (_COLUMNS - 1)) for column in range(_COLUMNS)]
    growth = [_clipped(_factor(stack.op, stack.key, gain, stack.bias, stack.norm)) for gain in gains]
    columns = {
        gain: round((_COLUMNS - 1) * math.log(gain / low) / math.log(high / low)) for gain in (stack.gain, stack.critical) if gain
    }
    growth[columns[stack.gain]] = _clipped(stack.chi)
    top, bottom = max(*growth, 0.01), min(*growth, -0.01)
    unit = (top - bottom) / (_ROWS - 1)
    zero = round(top / unit)
    rows = [[" "] * _COLUMNS for _ in range(_ROWS)]
    rows[zero] = [_LEVEL] * _COLUMNS
    if stack.critical is not None:
        for row in rows:
            row[columns[stack.critical]] = _CRITICAL_LINE
    for column, value in enumerate(growth):
        row_index, half = divmod(min(max(2 * zero + 1 - round(2.0 * value / unit + 0.5), 0), 2 * _ROWS - 1), 2)
        rows[row_index][column] = _HERE if column == columns[stack.gain] else _HALVES[half]
    labels = {0: f"{zero * unit:+.2f}", _ROWS - 1: f"{(zero - _ROWS + 1) * unit:+.2f}", zero: "0"}
    return (
        "growth of the gradient in decades a layer, by weight gain",
        *(f"{labels.get(index, ''):>{_MARGIN - 2}} {_LEFT}{''.join(row)}" for index, row in enumerate(rows)),
        " " * (_MARGIN - 1) + _CORNER + _BELOW * _COLUMNS,
        _ticks(stack, columns, low, high),
    )


def _clipped(factor: float) -> float:
    return min(max(0.5 * _log(factor) / math.log(10.0), -_STEEPEST), _STEEPEST)


def _ticks(stack: Phase, columns: Mapping[float, int], low: float, high: float) -> str:
    """The gains of the stack, of criticality and of the edges, the later ones only where there is room."""
    line = [" "] * (_MARGIN + _COLUMNS)
    wanted = [(columns[stack.gain], f"{_HERE} {stack.gain:.3g}")]
    if stack.critical is not None:
        wanted.append((columns[stack.critical], f"critical {stack.critical:.3g}"))
    for column, text in (*wanted, (0, f"{low:.3g}"), (_COLUMNS, f"{high:.3g}")):
        start = min(max(_MARGIN + column - len(text) // 2, 0), len(line) - len(text))
        if not "".join(line[max(start - 1, 0) : start + len(text) + 1]).strip():
            line[start : start + len(text)] = text
    return "".join(line).rstrip()
