"""The effect of a recurrent operator on a signal and its gradient: the real cell is run on a white input and differentiated.

The cell is run from a state of zeros with its own weights, and three cotangents are pulled back through that run: independent
over steps, equal at all steps, and on the last step alone. The last one gives the response a_j, the squared gradient at the input
j steps before the end for a unit cotangent at the end. Half the slope of log10 a_j over j is the growth per time step in decades,
the Lyapunov exponent over ln 10 (Engelken et al. 2020, arXiv 2006.02427). The length of a run is bounded. What a longer sequence
adds follows from a_j, continued at the slope of its middle:

    last step alone:    sum over j < T of a_j
    independent steps:  sum over j < T of (1 - j/T) a_j
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from gradlint.graph import Node
from gradlint.theory.recurrence.read import Cells, read_cells
from gradlint.theory.recurrence.run import precision, run_layers

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

STEPS = 100  # length of a sequence of unknown length, as in the experiments of Pascanu, Mikolov, Bengio 2013, arXiv 1211.5063
_SAMPLES = 4  # smallest number of samples; narrow cells get more, because they vary more and cost less
_UNITS = 512  # samples times hidden units
_MEASURED = 8  # samples of a probe
_LONGEST = 128  # largest number of simulated steps
_ENDLESS = 1_000_000  # steps; a longer sequence is cut to this
_SHORTEST = 24  # smallest number of simulated steps, unless the sequence is shorter
_WORK = 4e8  # multiplications of one run and its pullback
_LOUDEST = 30.0  # largest level in decades, up or down, that is simulated as it is
_RANGE = 1e100  # largest state of a run: its square and that of its gradient must be floats
_FAINT = {np.float32: 1e-30, np.float64: 1e-200}  # share of the largest response below which precision is lost
_GROWN = 0.5  # decades that the second moment must change over the second half of a run to count as growth
_PATIENCE = 3.0  # factor on the budget for a cell whose gradient does not decay
_DECAYED = -0.04  # decades of a_j per step below which the response decays
_LEAST = 0.01  # decades: smallest standard deviation, because inputs are neither Gaussian nor white


@dataclass(frozen=True, slots=True)
class CellResponse:
    """The response of a recurrent operator to a white input.

    Attributes:
        level: Root mean square of the output sequence in decades, 1/2 log10 E h^2.
        mean: Mean of the output over its root mean square.
        over_time: Shared second moment of two steps of one sample, over E h^2.
        over_batch: Shared second moment of two samples at one step, over E h^2.
        factor: log10 of the squared gradient at the input over that at the output, for the cotangent that was asked for. For a
            single step (`lstm_cell` and its relatives) it relates the gradient at its x to that at its h.
        step: Growth of the gradient per time step in decades, as a probe over the whole sequence measures it.
        sd: Standard deviation of factor / 2, in decades.
        level_sd: Standard deviation of `level`, in decades.
        independent: `factor` for cotangents that are independent over steps.
        equal: `factor` for cotangents that are equal at all steps.
        last: `factor` for a cotangent on the last step alone.
        steady_step: Growth per time step in decades once the state is steady: the largest Lyapunov exponent over ln 10.
    """

    level: float
    mean: float
    over_time: float
    over_batch: float
    factor: float
    step: float
    sd: float
    level_sd: float
    independent: float
    equal: float
    last: float
    steady_step: float

    def factor_for(self, over_time: float) -> float:
        """Return the factor for cotangents of which two time steps share this part of their second moment, from 0 to 1."""
        share = min(max(over_time, 0.0), 1.0)
        low, high = self.independent, self.equal
        top = max(low, high)
        if not math.isfinite(top):
            return top
        return top + math.log10((1.0 - share) * 10.0 ** (low - top) + share * 10.0 ** (high - top) + 1e-300)


@dataclass(frozen=True, slots=True)
class Drive:
    """A white Gaussian input: level in decades, mean over root mean square, and shared second moments over time and batch."""

    level: float = 0.0
    mean: float = 0.0
    over_time: float = 0.0
    over_batch: float = 0.0


def respond(
    node: Node,
    *,
    level: float,
    mean: float = 0.0,
    over_time: float = 0.0,
    over_batch: float = 0.0,
    steps: int | None = None,
    cotangent_over_time: float = 0.0,
) -> CellResponse | None:
    """Return the response of a recurrent operator, or None if its weights are unknown or the level is not finite.

    The result is deterministic.

    Args:
        node: The recurrent operator.
        level: Root mean square of the input in decades, 1/2 log10 q.
        mean: Mean of the input over its root mean square.
        over_time: Shared second moment of two steps of the input, over q.
        over_batch: Shared second moment of two samples of the input, over q.
        steps: Length of the sequence; None for an unknown length.
        cotangent_over_time: Share of the second moment that two steps of the cotangent have in common.
    """
    cells = read_cells(node)
    if cells is None or not math.isfinite(level):
        return None
    single = node.op.endswith("_cell")
    length = STEPS if single or steps is None else min(max(steps, 1), _ENDLESS)
    found = simulate(cells, Drive(level, mean, over_time, over_batch), length, single=single)
    if found is None or not cotangent_over_time or single:
        return found
    return replace(found, factor=found.factor_for(cotangent_over_time))


def simulate(cells: Cells, drive: Drive, steps: int, *, single: bool = False, effort: float = 1.0) -> CellResponse | None:
    """Run cells over a sequence and return their response.

    The run is shortened to the budget, which `effort` multiplies, and extrapolated. The result is None if the state leaves the
    range of floats at the first step.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore"):
        window = min(steps, _window(cells, effort))
        found, tail = _within(cells, drive, window, steps, single=single)
        longer = min(steps, _window(cells, effort * _PATIENCE))
        if tail > _DECAYED and longer > window and not single:  # later steps contribute
            found, _ = _within(cells, drive, longer, steps, single=single)
    return found


def _within(cells: Cells, drive: Drive, window: int, steps: int, *, single: bool) -> tuple[CellResponse | None, float]:
    """Return the response from a run of `window` steps, halved until its values are floats, and decades of a_j per step."""
    while window >= 1:
        run = _run(cells, drive, window)
        if run is not None:
            found = _summary(*run, cells=cells, drive=drive, steps=steps, single=single)
            return found, 2.0 * found.steady_step if run[0].shape[0] == window else -math.inf
        window //= 2
    return None, -math.inf


def _window(cells: Cells, effort: float) -> int:
    """Return the number of steps that the budget allows for a run and the pullback of three cotangents."""
    every = [cell for layer in cells.layers for cell in layer]
    work = 4.0 * _samples(cells) * sum(cell.recurrent.size + (0 if cell.weight is None else cell.weight.size) for cell in every)
    return int(min(max(_WORK / max(work, 1.0), _SHORTEST), _LONGEST) * effort)


def _samples(cells: Cells) -> int:
    width = max(cell.hidden for layer in cells.layers for cell in layer)
    return min(max(_UNITS // width, _SAMPLES), 4 * _SAMPLES)


def _run(cells: Cells, drive: Drive, steps: int) -> tuple[Array, Array] | None:
    """Return the output (steps, samples, features) and squared gradients (3, steps, samples) for cotangents of unit norm.

    The result is None if the state left the range of floats.
    """
    rng = np.random.default_rng(0)
    x = _input(drive, (steps, _samples(cells), cells.layers[0][0].inputs), rng).astype(precision(cells.layers[0][0]))
    y, pull = run_layers(cells.layers, x, rng)
    if not float(np.abs(y).max(initial=0.0)) < _RANGE:
        return None
    gradient = pull(_cotangents(y.shape, rng).astype(y.dtype))
    return y.astype(np.float64), np.einsum("ktsf,ktsf->kts", gradient, gradient).astype(np.float64)


def _input(drive: Drive, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Draw an input of second moment 10^(2 level): a mean, and parts shared over time, over the batch, over both, or neither."""
    mean = min(max(drive.mean, -1.0), 1.0)
    square = mean * mean
    time, batch = (min(max(share, square), 1.0) for share in (drive.over_time, drive.over_batch))
    both = min(time, batch)
    steps, samples, features = shape
    x = rng.standard_normal(shape, dtype=np.float32)
    x *= np.float32(math.sqrt(max(1.0 - time - batch + both, 0.0)))
    for share, part in (
        (both - square, (1, 1, features)),
        (time - both, (1, samples, features)),
        (batch - both, (steps, 1, features)),
    ):
        if share > 0.0:
            x += np.float32(math.sqrt(share)) * rng.standard_normal(part, dtype=np.float32)
    scaled: Array = (x + np.float32(mean)) * 10.0 ** min(max(drive.level, -_LOUDEST), _LOUDEST)
    return scaled


def _cotangents(shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Draw three cotangents of unit norm per sample: independent over steps, equal at all steps, and on the last step alone."""
    found = np.zeros((3, *shape), np.float32)
    found[0] = rng.standard_normal(shape, dtype=np.float32)
    found[1] = rng.standard_normal((1, *shape[1:]), dtype=np.float32)
    found[2, -1] = rng.standard_normal(shape[1:], dtype=np.float32)
    found /= np.sqrt(np.einsum("ktsf,ktsf->ks", found, found))[:, None, :, None]
    return found


def _summary(y: Array, squares: Array, *, cells: Cells, drive: Drive, steps: int, single: bool) -> CellResponse:
    response = squares[2, ::-1].mean(axis=1)
    known = _known(response, _FAINT[precision(cells.layers[0][0])])
    logs = np.log10(response[:known]) if known else np.full(1, -math.inf)
    tail = _slope(_steady(logs))
    late = _continued(logs, tail, steps)
    window = squares.shape[1]
    more = _weighed(late, steps) - _weighed(late[:window], window) if known else 0.0
    independent, equal = (_total(float(kind.sum(axis=0).mean()), more, late) for kind in squares[:2])
    q = float(np.square(y).mean())
    level = _level(np.square(y).mean(axis=(1, 2)), steps)
    excess = drive.level - min(max(drive.level, -_LOUDEST), _LOUDEST)
    if excess and (level < -_LOUDEST / 2 or level > _LOUDEST / 2):
        level += excess
    factor = float(logs[0]) if single else independent
    doubt = cells.step_sd * steps if tail > _DECAYED else 0.0
    return CellResponse(
        level=level,
        mean=float(y.mean()) / math.sqrt(q) if q > 0.0 else 0.0,
        over_time=_shared(y, 0, q, steps),
        over_batch=_shared(y, 1, q, y.shape[1]),
        factor=factor,
        step=0.5 * _slope(late),
        sd=math.hypot(cells.sd, doubt, _deviation(squares, tail, steps)),
        level_sd=math.hypot(_LEAST, doubt, _spread(np.square(y).mean(axis=(0, 2)))),
        independent=independent,
        equal=equal,
        last=_log_sum(late),
        steady_step=0.5 * tail,
    )


def _total(total: float, more: float, late: Array) -> float:
    """Return log10 of a total over a run plus what a longer sequence adds, or that of the response if the total is not finite."""
    if total == 0.0:
        return -math.inf
    return math.log10(total) + more if math.isfinite(total) else _weighed(late, late.size)


def _known(response: Array, faint: float) -> int:
    """Return the number of leading entries that are finite and not faint."""
    good = np.isfinite(response) & (response > faint * np.maximum.accumulate(np.nan_to_num(response, posinf=0.0)))
    return int(good.size if good.all() else np.argmin(good))


def _steady(logs: Array) -> Array:
    """Return the middle of a response: early entries depend on the direction of the cotangent, late ones on the initial state."""
    return logs if logs.size < 8 else logs[logs.size // 3 : logs.size - logs.size // 4]


def _slope(logs: Array) -> float:
    return float(np.polyfit(np.arange(logs.size), logs, 1)[0]) if logs.size > 1 and logs[0] > -math.inf else 0.0


def _continued(logs: Array, slope: float, steps: int) -> Array:
    """Return log10 a_j for j < steps, continued along a straight line of this slope."""
    if steps <= logs.size:
        return logs[:steps]
    end = float(np.mean(logs[-8:])) + slope * (min(logs.size, 8) - 1) / 2.0
    return np.concatenate([logs, end + slope * np.arange(1, steps - logs.size + 1)])


def _weighed(logs: Array, steps: int) -> float:
    """Return log10 of the sum of (1 - j/T) a_j."""
    return _log_sum(logs + np.log10(1.0 - np.arange(logs.size) / steps))


def _log_sum(logs: Array) -> float:
    top = float(logs.max())
    return top + math.log10(float(np.sum(10.0 ** (logs - top)))) if math.isfinite(top) else top


def _shared(y: Array, axis: int, q: float, length: int) -> float:
    """Return the shared second moment of two entries along an axis of length `length`, over q.

    The part that both halves of a run share is kept. The rest comes from correlations over a few steps and shrinks as 1/length.
    """
    count = y.shape[axis]
    if count < 2 or q <= 0.0:
        return 1.0 if q > 0.0 else 0.0
    found = (float(np.square(y.sum(axis=axis)).mean()) / count - q) / ((count - 1) * q)
    if length > count:
        halves = np.array_split(y, 2, axis=axis)
        lasting = float(np.mean(halves[0].mean(axis=axis) * halves[1].mean(axis=axis))) / q
        found = lasting + (found - lasting) * count / length
    return float(min(max(found, 0.0), 1.0))


def _level(squares: Array, steps: int) -> float:
    """Return 1/2 log10 of the mean square over `steps` steps, from that at each step of a run, constant or growing at its end."""
    if not squares.any():
        return -math.inf
    logs = np.log10(np.maximum(squares, 1e-300))
    half = logs[logs.size // 2 :]
    slope = _slope(half)
    if abs(slope) * half.size < _GROWN:
        slope = 0.0
        end = math.log10(float(np.mean(10.0 ** (half - half.max())))) + float(half.max())
        late = np.concatenate([logs, np.full(max(steps - logs.size, 0), end)])
    else:
        late = _continued(logs, slope, steps)
    return 0.5 * (_log_sum(late) - math.log10(late.size))


def _deviation(squares: Array, tail: float, steps: int) -> float:
    """Return the standard deviation of factor / 2: of means over samples, here and in a probe, and of the continued slope."""
    profile = squares[2, ::-1]
    half = profile[profile.shape[0] // 2 :]
    fine = np.isfinite(half).all(axis=0) & (half > 0.0).all(axis=0)
    slopes = [0.5 * _slope(np.log10(half[:, sample])) for sample in np.flatnonzero(fine)]
    longer = max(steps - squares.shape[1], 0) if tail > _DECAYED else 0
    drift = longer * float(np.std(slopes, ddof=1)) if len(slopes) > 1 else 0.0
    return math.hypot(_LEAST, _spread(squares[0].sum(axis=0)), _means(len(slopes), _MEASURED) * drift)


def _spread(totals: Array) -> float:
    """Return the standard deviation of 1/2 log10 of a mean over samples, relative to that of a probe.

    A mean of values that differ by decades is determined by few of them, so their number is (sum x)^2 / sum x^2.
    """
    known = totals[np.isfinite(totals) & (totals > 0.0)]
    if known.size < 2:
        return 0.5
    known = known / known.max()
    share = float(known.sum() ** 2 / np.square(known).sum()) / known.size
    return _means(share * known.size, share * _MEASURED) * float(np.std(0.5 * np.log10(known), ddof=1))


def _means(here: float, there: float) -> float:
    return math.sqrt(1.0 / max(here, 1.0) + 1.0 / max(there, 1.0))
