"""What the sweeps of the theory share: one model predicted and measured at every operator of its signal, and the tables."""

from __future__ import annotations

import json
import math
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from gradlint.graph import Graph
from gradlint.result import Measurement
from gradlint.structure import Structure
from gradlint.theory.prediction import Predicted, predict

QUANTILE = 1.645  # standard deviations on either side of the median that hold 90 % of a normal distribution
_WORST = 99.0  # decades: stands in for an infinite error, so that percentiles stay numbers
_STEEP = 10.0  # decades of one operator's error, so that a mean stays readable

Floats = NDArray[np.float64]
Made = TypeVar("Made")
Predict = Callable[[Structure], Mapping[str, Predicted]]


def plain_predict(structure: Structure) -> Mapping[str, Predicted]:
    """What the theory says of every node, with its default options."""
    return predict(structure).nodes


@dataclass(frozen=True)
class Values:
    """One quantity in decades at some places: NaN where it was not predicted or not measured; a measured zero is -inf."""

    predicted: Floats
    sd: Floats
    measured: Floats

    @property
    def is_measured(self) -> NDArray[np.bool_]:
        """Where there is a finite measured value."""
        return np.isfinite(self.measured)

    @property
    def both(self) -> NDArray[np.bool_]:
        """Where a finite measured value meets a prediction, which may be infinite."""
        return self.is_measured & ~np.isnan(self.predicted)

    @property
    def error(self) -> Floats:
        """Predicted minus measured at every place, NaN where one of them is missing."""
        error = np.full(self.measured.shape, np.nan)
        error[self.both] = np.clip(self.predicted[self.both] - self.measured[self.both], -_WORST, _WORST)
        return error

    @property
    def inside(self) -> NDArray[np.bool_]:
        """Whether the measured value lies in the 90 % interval, False where one of them is missing."""
        error = self.error
        return self.both & (np.abs(np.nan_to_num(error)) <= QUANTILE * np.nan_to_num(self.sd) + 1e-6)  # fp32 sums

    @property
    def width(self) -> Floats:
        """Width of the 90 % interval."""
        return 2.0 * QUANTILE * self.sd

    def only(self, chosen: NDArray[np.bool_]) -> Values:
        """The values at some of the places."""
        return Values(self.predicted[chosen], self.sd[chosen], self.measured[chosen])


@dataclass(frozen=True)
class Quality:
    """How good predictions are, over any number of places; NaN where there is none."""

    count: int
    missing: int  # measured, but not predicted
    median: float
    p95: float
    coverage: float
    width: float

    @classmethod
    def of(cls, values: Iterable[Values]) -> Quality:
        """The quality over all places together."""
        items = list(values)
        both = [item.only(item.both) for item in items]
        missing = sum(int((item.is_measured & np.isnan(item.predicted)).sum()) for item in items)
        error = np.abs(np.concatenate([item.error for item in both])) if both else np.zeros(0)
        if not error.size:
            return cls(0, missing, math.nan, math.nan, math.nan, math.nan)
        inside, width = np.concatenate([item.inside for item in both]), np.concatenate([item.width for item in both])
        known = width[~np.isnan(width)]
        median, p95 = (float(value) for value in np.percentile(error, (50, 95)))
        return cls(error.size, missing, median, p95, float(inside.mean()), float(np.median(known)) if known.size else math.nan)

    @property
    def cells(self) -> tuple[str, ...]:
        """Columns of a table: count, missing, median, 95th percentile, coverage, width."""
        figures = (f"{self.median:.3f}", f"{self.p95:.3f}", f"{self.coverage:.0%}", decades(self.width, "{:.2f}"))
        return (str(self.count), str(self.missing or ""), *(figures if self.count else ("-",) * 4))


@dataclass(frozen=True)
class Compared:
    """One model, predicted and measured at every operator of its signal but the trunk outputs, where B is 0 by definition.

    `growth` has one value: the gradient at the first node of the measured chain over that at its last. `seconds` is what the
    prediction took, `because` the theory's remarks by node; the steps are the errors that single operators add, by operator.
    """

    name: str
    labels: Mapping[str, str]
    nodes: tuple[str, ...]
    ops: tuple[str, ...]
    on_spine: NDArray[np.bool_]
    backward: Values
    forward: Values
    growth: Values
    seconds: float
    because: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    backward_steps: Mapping[str, list[float]] = field(default_factory=dict)
    forward_steps: Mapping[str, list[float]] = field(default_factory=dict)

    def record(self) -> dict[str, Any]:
        """The comparison as JSON: NaN is null, infinities are strings."""
        quantities = {
            f"{name}_{part}": [_plain(value) for value in getattr(values, part)]
            for name, values in (("backward", self.backward), ("forward", self.forward))
            for part in ("predicted", "sd", "measured")
        }
        growth = {part: _plain(getattr(self.growth, part)[0]) for part in ("predicted", "sd", "measured")}
        places = {"node": self.nodes, "op": self.ops, "on_spine": self.on_spine.tolist()}
        because = {node: list(remarks) for node, remarks in self.because.items()}
        return {
            "name": self.name,
            **self.labels,
            "seconds": round(self.seconds, 6),
            "growth": growth,
            **places,
            **quantities,
            "because": because,
        }


def _plain(value: float) -> float | str | None:
    if math.isfinite(value):
        return round(float(value), 6)
    return None if math.isnan(value) else str(value)


def compare(
    name: str,
    graph: Graph,
    measurement: Measurement,
    *,
    labels: Mapping[str, str] | None = None,
    predicted_by: Predict = plain_predict,
) -> Compared:
    """Confront the prediction for a graph with what the probe measured on it.

    Raises ValueError when the probe measured nothing, or another signal than the one predicted since the run stopped half-way.
    """
    structure = Structure(graph, live=measurement.live)
    if measurement.stopped_at is not None or measurement.trunk != tuple(ref.node for ref in structure.trunk):
        raise ValueError(f"measured in part only: {measurement.stopped_at or 'other outputs'}")
    start = time.perf_counter()
    predicted = predicted_by(structure)
    seconds = time.perf_counter() - start
    joint = set(measurement.spine) if measurement.cut_gains else set()  # whose gains are those of a whole cut
    nodes = tuple(n for n in structure.signal if n not in measurement.trunk and n not in joint and n in measurement.gains)
    if not nodes:
        raise ValueError("nothing was measured between an input and the output")
    backward, forward = (_values(nodes, predicted, measurement, quantity) for quantity in ("backward", "forward"))
    spine = set(structure.spine)
    return Compared(
        name=name,
        labels=labels or {},
        nodes=nodes,
        ops=tuple(graph[node].op for node in nodes),
        on_spine=np.array([node in spine for node in nodes], bool),
        backward=backward,
        forward=forward,
        growth=_growth(structure, measurement, predicted),
        seconds=seconds,
        because={node: predicted[node].because for node in nodes if node in predicted and predicted[node].because},
        backward_steps=_steps(structure, nodes, backward, upstream=True),
        forward_steps=_steps(structure, nodes, forward, upstream=False),
    )


def _values(nodes: Sequence[str], predicted: Mapping[str, Predicted], measurement: Measurement, quantity: str) -> Values:
    said = [predicted.get(node) for node in nodes]
    return Values(
        _array(getattr(item, quantity) if item is not None else None for item in said),
        _array(getattr(item, f"{quantity}_sd") if item is not None else None for item in said),
        _array(getattr(measurement.gains[node], quantity) for node in nodes),
    )


def _array(values: Iterable[float | None]) -> Floats:
    return np.array([math.nan if value is None else value for value in values], np.float64)


def _growth(structure: Structure, measurement: Measurement, predicted: Mapping[str, Predicted]) -> Values:
    """B at the first node of the measured chain minus B at the last, as one place; the chain may be one of cuts."""
    places: Sequence[tuple[str, ...]] = [(node,) for node in measurement.spine]
    if measurement.cut_gains:
        places = structure.levels if len(structure.levels) == len(measurement.spine) else []
    gains = measurement.spine_gains
    levels = [gains[node].backward if node in gains else None for node in measurement.spine] if places else []
    known = [index for index, level in enumerate(levels) if level is not None and math.isfinite(level)]
    if len(known) < 2:
        return Values(*(np.full(1, np.nan) for _ in range(3)))
    first, last = known[0], known[-1]
    reached = [[node for node in places[index] if measurement.backward(node) is not None] for index in (first, last)]
    (first_level, first_sd), (last_level, last_sd) = (_together(cut, predicted) for cut in reached)
    measured = (levels[first] or 0.0) - (levels[last] or 0.0)
    return Values(np.array([first_level - last_level]), np.array([math.hypot(first_sd, last_sd)]), np.array([measured]))


def _together(cut: Sequence[str], predicted: Mapping[str, Predicted]) -> tuple[float, float]:
    """Decades of the root of the sum of squares over the nodes of a cut, and the standard deviation where it is largest."""
    said = [predicted.get(node) for node in cut]
    known = [(item.backward, item.backward_sd) for item in said if item is not None and item.backward is not None]
    if len(known) < len(cut) or any(math.isnan(level) for level, _ in known):
        return math.nan, math.nan
    top, sd = max(known)
    if math.isinf(top):
        return top, sd
    return top + 0.5 * math.log10(sum(10.0 ** (2.0 * (level - top)) for level, _ in known)), sd


def _steps(structure: Structure, nodes: Sequence[str], values: Values, *, upstream: bool) -> dict[str, list[float]]:
    """The error that one operator adds on the way, by operator: change of the error between its input and its output.

    Only where one tensor has one user (backward) or an operator reads one tensor (forward), so that the change is its own; what
    arises between a fork and its sum is booked as "(residual block)".
    """
    error = dict(zip(nodes, values.error, strict=True))
    error.update((ref.node, 0.0) for ref in structure.trunk if upstream)
    users: dict[str, list[str]] = {}
    for node in structure.signal:
        for parent in structure.signal_parents(node):
            users.setdefault(parent, []).append(node)
    steps: dict[str, list[float]] = {}
    for node in nodes:
        near = users.get(node, []) if upstream else structure.signal_parents(node)
        if len(near) != 1 or math.isnan(step := error[node] - error.get(near[0], math.nan)):
            continue
        steps.setdefault(structure.graph[near[0] if upstream else node].op, []).append(step)
    for residual in structure.residual_sums:
        start, end = (residual.fork, residual.node) if upstream else (residual.node, residual.fork)
        if not math.isnan(step := error.get(start, math.nan) - error.get(end, math.nan)):
            steps.setdefault("(residual block)", []).append(step)
    return steps


# tables -----------------------------------------------------------------------------------------------------------------


QUALITY = ("operators", "none", "median", "95 %", "inside", "width")
"""Headings of `Quality.cells`."""


def quality_table(title: str, rows: Iterable[tuple[str, str, Sequence[Compared]]]) -> Table:
    """One row per family (family, member, models): quality of the backward gain, then of the forward level."""
    table = Table(title=title)
    for heading in ("family", "", "models", *QUALITY, "fwd median", *QUALITY[3:]):
        table.add_column(heading, justify="left" if heading in {"family", ""} else "right")
    last = ""
    for family, member, models in rows:
        if last and family != last:
            table.add_section()
        backward, forward = Quality.of(m.backward for m in models), Quality.of(m.forward for m in models)
        table.add_row(family if family != last else "", member, str(len(models)), *backward.cells, *forward.cells[2:])
        last = family
    return table


def families(models: Sequence[Compared], labels: Sequence[str]) -> Iterable[tuple[str, str, Sequence[Compared]]]:
    """Rows of a quality table: every value of every label, then everything together."""
    for label in labels:
        for member in sorted({model.labels[label] for model in models}):
            yield label, member, [model for model in models if model.labels[label] == member]
    yield "all", "", models


def step_table(models: Sequence[Compared]) -> Table:
    """The error that each operator adds on the way: which transfer rule is off. Signed mean, and 95th percentile of its size."""
    table = Table(title="Error that one operator adds, decades (predicted - measured; where it is alone)")
    headings = ("operator", "backward, steps", "mean", "95 %", "forward, steps", "mean", "95 %")
    for heading in headings:
        table.add_column(heading, justify="left" if heading == "operator" else "right")
    merged: tuple[dict[str, list[float]], dict[str, list[float]]] = ({}, {})
    for model in models:
        for into, steps in zip(merged, (model.backward_steps, model.forward_steps), strict=True):
            for op, errors in steps.items():
                into.setdefault(op, []).extend(errors)
    ops = {op: sum(float(np.abs(steps.get(op, [])).sum()) for steps in merged) for op in {*merged[0], *merged[1]}}
    for op in sorted(ops, key=lambda op: -ops[op]):
        table.add_row(op, *(cell for steps in merged for cell in _step_cells(steps.get(op, []))))
    return table


def _step_cells(errors: Sequence[float]) -> tuple[str, str, str]:
    if not errors:
        return "-", "", ""
    steps = np.clip(errors, -_STEEP, _STEEP)
    return str(len(errors)), f"{steps.mean():+.3f}", f"{np.percentile(np.abs(steps), 95):.3f}"


def decades(value: float, style: str = "{:+.2f}") -> str:
    """A number for a table: "-" for none, cut where it is beyond sense."""
    if math.isnan(value):
        return "-"
    if abs(value) > _WORST:
        return f"{'<-' if value < 0 else '>'}{_WORST:.0f}"
    return style.format(value)


def limits(figures: Mapping[str, tuple[float, str, float]]) -> str:
    """Figures against their limits, a line each: name -> (value, "<=" or ">=", limit)."""
    parts = []
    for name, (value, sign, limit) in figures.items():
        held = value <= limit if sign == "<=" else value >= limit
        parts.append(f"{'ok ' if held else 'NOT'} {name} {value:.3f} (to reach: {sign} {limit:g})")
    return "\n".join(parts)


def quality_limits(models: Sequence[Compared], *, failed: int, median: float, p95: float) -> str:
    """The lines for errors at every operator; `failed` models could not be predicted or measured at all."""
    quality, forward = Quality.of(model.backward for model in models), Quality.of(model.forward for model in models)
    share = quality.missing / max(quality.count + quality.missing, 1)
    return limits(
        {
            "median |error| of the backward gain": (quality.median, "<=", median),
            "95th percentile": (quality.p95, "<=", p95),
            "share inside the 90 % interval": (quality.coverage, ">=", 0.9),
            "median width of the interval": (quality.width, "<=", 0.5),
            "models that could not be compared": (failed, "<=", 0.0),
            "share of operators without a prediction": (share, "<=", 0.0),
            "median |error| of the forward level": (forward.median, "<=", median),
            "forward 95th percentile": (forward.p95, "<=", p95),
            "forward share inside": (forward.coverage, ">=", 0.9),
        }
    )


def largest(values: Values, quantile: float = 95.0) -> float:
    """A percentile of |error|, by which models are ranked; NaN without any."""
    error = np.abs(values.error[values.both])
    return float(np.percentile(error, quantile)) if error.size else math.nan


def worst(models: Sequence[Compared], count: int) -> list[Compared]:
    """The models whose backward gain is predicted worst, the worst first; then those without any prediction."""
    return sorted(models, key=lambda model: -np.nan_to_num(largest(model.backward), nan=-1.0))[:count]


def attempted(console: Console, name: str, make: Callable[[], Made]) -> Made | None:
    """What `make` returns; None, and a line that says what and where, when it raises anything."""
    try:
        return make()
    except Exception as error:  # noqa: BLE001 - one model that fails must not end a sweep
        last = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{Path(last.filename).name}:{last.lineno}"
        console.print(f"{name}: {type(error).__name__} at {where}: {error}", style="red", markup=False, highlight=False)
        return None


def save(path: Path | None, models: Iterable[Compared]) -> None:
    """Write one JSON line a model; nothing without a path."""
    if path is not None:
        path.write_text("".join(json.dumps(model.record()) + "\n" for model in models), encoding="utf-8")
