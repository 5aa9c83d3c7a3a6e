"""What a recurrent operator does to a signal and its gradient: the real cell on a white input, and its exact pullback.

The cell is run from rest with its own weights, and three cotangents are pulled back through that run: independent over steps,
equal at all steps, and on the last step alone. The last one gives the response a_j, the squared gradient at the input j steps
before the end for a unit cotangent at the end; its slope over j is the growth per time step (THEORY section 4). Runs are bounded;
what a longer sequence would add follows from a_j, continued at the slope of its middle:

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

STEPS = 100  # assumed where the length is not known, as in the experiments of Pascanu 2013
_SAMPLES = 4  # at least; a narrow cell differs more between samples, and more of them cost little
_UNITS = 512  # samples times hidden units
_MEASURED = 8  # samples of a probe
_LONGEST = 128
_ENDLESS = 1_000_000  # steps: a longer sequence is taken for this
_SHORTEST = 24
_WORK = 4e8  # multiplications of one run and its pullback
_LOUDEST = 30.0  # decades of a signal that is simulated as it is
_RANGE = 1e100  # of a state that is run on: its square and its gradient's must fit a float
_FAINT = {np.float32: 1e-30, np.float64: 1e-200}  # of the largest response: below, precision ends
_GROWN = 0.5  # decades of the second moment over the second half of a run that are no noise
_PATIENCE = 3.0  # times the budget for a cell that keeps or grows its gradient
_DECAYED = -0.04  # decades of a_j per step: what lies beyond a run adds little
_LEAST = 0.01  # decades: inputs are neither Gaussian nor white


@dataclass(frozen=True, slots=True)
class CellResponse:
    """A recurrent operator at work; decades are 1/2 log10 of a ratio of squares unless said otherwise.

    `level`, `mean`, `over_time` and `over_batch` describe the output sequence: 1/2 log10 E h^2, E h / rms, and the shares of
    E h^2 that two steps of a sample and two samples at a step have in common. `factor` is log10 of total squared gradient at
    the input over that at the output for the cotangent asked for; `independent`, `equal` and `last` are its values for
    cotangents that are independent over steps, equal at all steps, and on the last step alone (a slice, or the final state).
    For a single step (`lstm_cell` and kin) `factor` is that of one application, the gradient at its x for one at its h.
    `step` is the growth of the gradient per time step, in decades, as a probe of that many steps sees it, `drift` the same once
    it is steady: the largest Lyapunov exponent over ln 10. `sd` is the standard deviation of factor / 2, `level_sd` of the level.
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
        """The factor for cotangents of which two time steps share this much of their energy; exact between the two ends."""
        share = min(max(over_time, 0.0), 1.0)
        low, high = self.independent, self.equal
        top = max(low, high)
        if not math.isfinite(top):
            return top
        return top + math.log10((1.0 - share) * 10.0 ** (low - top) + share * 10.0 ** (high - top) + 1e-300)


@dataclass(frozen=True, slots=True)
class Drive:
    """The white Gaussian input: 1/2 log10 of its second moment, mean over rms, and shares over time and batch."""

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
    """How a recurrent operator passes a signal of 1/2 log10 q = `level` and a gradient; None where its weights are unknown.

    `mean` is that of the input over its rms, `over_time` and `over_batch` the shares of q that two steps and two samples have
    in common, `steps` the length of the sequence, `cotangent_over_time` the share that two steps of the cotangent have in
    common. Deterministic.
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
    """Run cells over the sequence, or as much of it as `effort` pays for, and read the response off the run.

    None where the state leaves the range of floats at the first step.
    """
    with np.errstate(over="ignore", invalid="ignore", under="ignore", divide="ignore"):
        window = min(steps, _window(cells, effort))
        found, tail = _within(cells, drive, window, steps, single=single)
        longer = min(steps, _window(cells, effort * _PATIENCE))
        if tail > _DECAYED and longer > window and not single:  # what comes later counts
            found, _ = _within(cells, drive, longer, steps, single=single)
    return found


def _within(cells: Cells, drive: Drive, window: int, steps: int, *, single: bool) -> tuple[CellResponse | None, float]:
    """The response read off a run of `window` steps, or as many as floats can hold, and decades of a_j per step at its end."""
    while window >= 1:
        run = _run(cells, drive, window)
        if run is not None:
            found = _summary(*run, cells=cells, drive=drive, steps=steps, single=single)
            return found, 2.0 * found.steady_step if run[0].shape[0] == window else -math.inf
        window //= 2
    return None, -math.inf


def _window(cells: Cells, effort: float) -> int:
    """Steps that the budget allows: a run and the pullback of three cotangents."""
    every = [cell for layer in cells.layers for cell in layer]
    work = 4.0 * _samples(cells) * sum(cell.recurrent.size + (0 if cell.weight is None else cell.weight.size) for cell in every)
    return int(min(max(_WORK / max(work, 1.0), _SHORTEST), _LONGEST) * effort)


def _samples(cells: Cells) -> int:
    width = max(cell.hidden for layer in cells.layers for cell in layer)
    return min(max(_UNITS // width, _SAMPLES), 4 * _SAMPLES)


def _run(cells: Cells, drive: Drive, steps: int) -> tuple[Array, Array] | None:
    """Output (steps, samples, features) and squared gradients (kinds, steps, samples) of unit output energy, or None.

    None stands for a state that has left the range of floats.
    """
    rng = np.random.default_rng(0)
    x = _input(drive, (steps, _samples(cells), cells.layers[0][0].inputs), rng).astype(precision(cells.layers[0][0]))
    y, pull = run_layers(cells.layers, x, rng)
    if not float(np.abs(y).max(initial=0.0)) < _RANGE:
        return None
    gradient = pull(_cotangents(y.shape, rng).astype(y.dtype))
    return y.astype(np.float64), np.einsum("ktsf,ktsf->kts", gradient, gradient).astype(np.float64)


def _input(drive: Drive, shape: tuple[int, ...], rng: np.random.Generator) -> Array:
    """Gaussian of second moment 10^(2 level): a mean that all share, and parts that time, batch, both or neither share."""
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
    """Three cotangents, each of unit norm per sample: independent over steps, equal, last step alone."""
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
    """log10 of a total over a run, and what a longer sequence adds; from the response itself where the total left the range."""
    if total == 0.0:
        return -math.inf
    return math.log10(total) + more if math.isfinite(total) else _weighed(late, late.size)


def _known(response: Array, faint: float) -> int:
    """How many of the first entries are finite and not faint."""
    good = np.isfinite(response) & (response > faint * np.maximum.accumulate(np.nan_to_num(response, posinf=0.0)))
    return int(good.size if good.all() else np.argmin(good))


def _steady(logs: Array) -> Array:
    """The middle: later entries are of a run that has just left rest, earlier ones of a cotangent that has not turned yet."""
    return logs if logs.size < 8 else logs[logs.size // 3 : logs.size - logs.size // 4]


def _slope(logs: Array) -> float:
    return float(np.polyfit(np.arange(logs.size), logs, 1)[0]) if logs.size > 1 and logs[0] > -math.inf else 0.0


def _continued(logs: Array, slope: float, steps: int) -> Array:
    """log10 a_j for j < steps: what was seen, then a straight line from the end of what was seen."""
    if steps <= logs.size:
        return logs[:steps]
    end = float(np.mean(logs[-8:])) + slope * (min(logs.size, 8) - 1) / 2.0
    return np.concatenate([logs, end + slope * np.arange(1, steps - logs.size + 1)])


def _weighed(logs: Array, steps: int) -> float:
    """log10 of the sum of (1 - j/T) a_j."""
    return _log_sum(logs + np.log10(1.0 - np.arange(logs.size) / steps))


def _log_sum(logs: Array) -> float:
    top = float(logs.max())
    return top + math.log10(float(np.sum(10.0 ** (logs - top)))) if math.isfinite(top) else top


def _shared(y: Array, axis: int, q: float, length: int) -> float:
    """The share of q that two entries along an axis have in common, for an axis that is `length` long.

    What the halves of a run share stays; the rest is memory, which counts for less in a longer run.
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
    """1/2 log10 of the mean square over a sequence, from that at each step of a shorter one: it stays, or grows on."""
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
    """Standard deviation of half the factor: of its mean over samples, here and in a probe, and of the slope that goes on."""
    profile = squares[2, ::-1]
    half = profile[profile.shape[0] // 2 :]
    fine = np.isfinite(half).all(axis=0) & (half > 0.0).all(axis=0)
    slopes = [0.5 * _slope(np.log10(half[:, sample])) for sample in np.flatnonzero(fine)]
    longer = max(steps - squares.shape[1], 0) if tail > _DECAYED else 0
    drift = longer * float(np.std(slopes, ddof=1)) if len(slopes) > 1 else 0.0
    return math.hypot(_LEAST, _spread(squares[0].sum(axis=0)), _means(len(slopes), _MEASURED) * drift)


def _spread(totals: Array) -> float:
    """Standard deviation of 1/2 log10 of a mean over samples, this one's against that of a probe.

    A mean of n values that differ by decades is that of few of them: n is (sum x)^2 / sum x^2.
    """
    known = totals[np.isfinite(totals) & (totals > 0.0)]
    if known.size < 2:
        return 0.5
    known = known / known.max()
    share = float(known.sum() ** 2 / np.square(known).sum()) / known.size
    return _means(share * known.size, share * _MEASURED) * float(np.std(0.5 * np.log10(known), ddof=1))


def _means(here: float, there: float) -> float:
    return math.sqrt(1.0 / max(here, 1.0) + 1.0 / max(there, 1.0))
