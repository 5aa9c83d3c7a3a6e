"""The ordered, critical or chaotic phase of a stack of one repeated layer: weights, biases, normalization if any, activation.

After many such layers the variance of a signal converges to q*, the correlation of two inputs converges to c*, and squared
gradients grow by chi per layer (Poole et al. 2016, arXiv 1606.05340; Schoenholz et al. 2017, arXiv 1611.01232). Depths are in
layers. They are positive, and infinite at criticality.
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

_CRITICAL = 0.01  # |log chi| below which a stack is critical: less than a factor e in a hundred layers
_ENDLESS = 1e-9  # 1 - slope below which the depth scale is infinite
_FADED, _RUNAWAY = 1.001e-12, 0.999e6  # variances at which `fixed_point` stops
_BATCH = "batch_norm"


@dataclass(frozen=True, slots=True)
class Phase:
    """The phase of a stack.

    Attributes:
        op: The activation, with its parameters in `key`. An operator that is not an activation counts as linear.
        key: Parameters of the activation, from `gradlint.theory.gaussian.integrals.parameters`.
        gain: sigma_w, the root of fan_in times the mean square of the weights.
        bias: sigma_b^2, the variance of the biases.
        norm: The normalization between weights and activation, or None.
        variance: q*, the variance of pre-activations, after the norm if there is one. 0 if the signal decays, infinite if it
            diverges.
        correlation: c*, the correlation of two inputs, from 0 to 1.
        chi: Factor on the squared gradient per layer.
        critical: The gain at which chi = 1. None if there is none, as after most norms.
        depth: xi_c, the number of layers over which a deviation of the correlation from c* decays by a factor e.
        variance_depth: xi_q, the number of layers over which a deviation of the variance decays by a factor e; 0 after a norm.
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
        """Name of the phase: "ordered" if gradients vanish, "chaotic" if they explode, "critical" if they keep their size."""
        if abs(_log(self.chi)) < _CRITICAL:
            return "critical"
        return "ordered" if self.chi < 1.0 else "chaotic"

    @property
    def decades(self) -> float:
        """Growth of the gradient per layer in decades, 1/2 log10 chi; -inf for chi = 0."""
        return 0.5 * _log(self.chi) / math.log(10.0)

    @property
    def gradient_depth(self) -> float:
        """Number of layers over which the squared gradient changes by a factor e."""
        rate = abs(_log(self.chi))
        return 1.0 / rate if rate > _ENDLESS else math.inf

    def picture(self) -> tuple[str, ...]:
        """Plot growth per layer against gain, as twelve lines of at most 60 characters, with the critical gain and this stack."""
        return _picture(self)


def phase(op: str, key: Key, gain: float, bias: float = 0.0, norm: str | None = None) -> Phase:
    """Compute the phase of a stack; the arguments are the attributes of `Phase`."""
    q = _pre_activation(op, key, gain, bias, norm)
    factor = _factor(op, key, gain, bias, norm)
    if norm is None:
        shown = 0.0 if q < _FADED else math.inf if q > _RUNAWAY else q
        if shown != q and abs(_log(gain * gain * _moments(op, 1.0, key).second + bias)) < _CRITICAL:
            shown = 1.0  # a rectifier at its critical gain, up to rounding
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
    """Return the correlation of two inputs after a layer, and its derivative with respect to `rho`, the correlation before.

    This is the correlation map of Poole et al. 2016, arXiv 1606.05340.

    Args:
        op: Canonical name of the activation.
        rho: Correlation of two inputs before the layer.
        key: Parameters of the activation.
        gain: The weight gain sigma_w, which matters only with a bias.
        bias: Variance of the biases.
        q: Variance of the pre-activations before the layer.
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
    """A critical initialization: squared weight gain, variance of the biases, and variance of the pre-activations."""

    weight: float
    bias: float
    variance: float


@lru_cache(maxsize=256)
def critical_point(op: str, key: Key = ()) -> CriticalPoint | None:
    """Return the initialization at which neither gradients nor deviations of the variance change from layer to layer.

    For piecewise linear activations it is the He initialization, at any variance; 1 is returned. For tanh and similar
    activations the gain is 1 / |phi'(0)|, at variance 0. GELU and SiLU need biases (Roberts, Yaida, Hanin 2022, The Principles
    of Deep Learning Theory, section 5.3). The result is None if there is no such point, as for the sigmoid.
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
    """Return the number of layers over which a deviation decays by a factor e, if each layer multiplies it by `slope`."""
    if slope <= 0.0:
        return 0.0
    return -1.0 / math.log(slope) if slope < 1.0 - _ENDLESS else math.inf


def _pre_activation(op: str, key: Key, gain: float, bias: float, norm: str | None) -> float:
    """Return the variance of the input of the activation, which is 1 after a norm."""
    return fixed_point(op, gain, key, bias) if norm is None else 1.0


def _factor(op: str, key: Key, gain: float, bias: float, norm: str | None) -> float:
    """Return chi, the factor on the squared gradient, which a norm divides by the variance that it normalizes.

    BatchNorm divides by the part of the variance that varies over the batch (Yang et al. 2019, arXiv 1902.08129), the others by
    all of it (Doshi, He, Gromov 2021, arXiv 2111.12143).
    """
    if norm is None:
        return chi(op, gain, key, bias)
    found, square = _moments(op, 1.0, key), gain * gain
    varying = square * (found.second - found.mean**2) if norm == _BATCH else square * found.second + bias
    return square * found.slope / varying if varying > 0.0 else 0.0


def _critical(op: str, key: Key, bias: float, norm: str | None) -> float | None:
    """Return the gain with chi = 1, or None if there is none."""
    if norm is None:
        found = critical_gain(op, key, bias)
        return found if abs(_log(chi(op, found, key, bias))) < _CRITICAL else None
    moved = _moments(op, 1.0, key)
    if norm == _BATCH or bias == 0.0 or moved.slope <= moved.second:
        return None
    return math.sqrt(bias / (moved.slope - moved.second))


def _fixed_correlation(op: str, key: Key, gain: float, bias: float, q: float) -> tuple[float, float]:
    """Return the stable fixed point of the correlation map, and the slope of the map there.

    The map is a power series with positive coefficients and hence convex. If its slope at 1 is above 1, there is one other fixed
    point, which Newton's method reaches from 0 without passing it.
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
    """Find the zero of a function that changes its sign between two points, by bisection."""
    positive = function(high) > 0.0
    for _ in range(50):
        middle = 0.5 * (low + high)
        low, high = (low, middle) if (function(middle) > 0.0) == positive else (middle, high)
    return 0.5 * (low + high)


# picture ----------------------------------------------------------------------------------------------------------------

_COLUMNS, _ROWS, _MARGIN = 52, 9, 7
_STEEPEST = 1.0  # decades per layer; larger growth is drawn at the edge
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
    """Return the line of tick labels: the gain of the stack, the critical gain and the edges, as far as there is room."""
    line = [" "] * (_MARGIN + _COLUMNS)
    wanted = [(columns[stack.gain], f"{_HERE} {stack.gain:.3g}")]
    if stack.critical is not None:
        wanted.append((columns[stack.critical], f"critical {stack.critical:.3g}"))
    for column, text in (*wanted, (0, f"{low:.3g}"), (_COLUMNS, f"{high:.3g}")):
        start = min(max(_MARGIN + column - len(text) // 2, 0), len(line) - len(text))
        if not "".join(line[max(start - 1, 0) : start + len(text) + 1]).strip():
            line[start : start + len(text)] = text
    return "".join(line).rstrip()
