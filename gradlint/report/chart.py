"""The chart of growth along the spine: rows with numbers and bars, as plain text without color."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from gradlint.graph import Source
from gradlint.ops import Kind, operator
from gradlint.report import printable
from gradlint.report.wording import decimal
from gradlint.result import SpinePoint, TimeGrowth

if TYPE_CHECKING:
    from gradlint.theory.reading.phase import Phase

MAX_LINES = 16
_NEVER_FOLDED = 9  # a chart of at most this many rows is not folded
_ENDS = 3  # rows that folding keeps at each end
_FULL_SCALE = 4.0  # the scale spans at least this many decades: models that fail by growth start near there
_NEGLIGIBLE = 1e-6  # a range of fewer decades is drawn as empty
_LEAST_SHARE = 0.1  # the smaller side of the axis is drawn from this share of the larger side on
_TOLERANCE = 0.15  # folding hides rows that lie within this many decades of a straight line
_FOLLOWERS = {Kind.ACTIVATION, Kind.DROPOUT, Kind.SHAPE, Kind.SOFTMAX, Kind.MATH, Kind.MUL, Kind.POOL, Kind.REDUCE, Kind.CUT}
_NORM_FOLLOWS = {Kind.LINEAR, Kind.CONV}


class Glyphs(NamedTuple):
    """The characters of a chart.

    `bar` is a full cell, `right` and `left` are the half cells that end a bar on that side, `axis` is the zero line, and
    `folded` is a cell in the bar of a `Gap`.
    """

    bar: str
    right: str
    left: str
    axis: str
    folded: str


ASCII = Glyphs("#", "", "", "|", ":")
BLOCKS = Glyphs("\u2588", "\u258c", "\u2590", "\u2502", "\u2591")


@dataclass(frozen=True, slots=True)
class Row:
    """One layer of the chart. All values are in decades, at the layer's output.

    `backward` is the measured gradient, `predicted` the predicted one and `forward` the measured signal. `nodes` are the spine
    nodes that the row stands for.
    """

    label: str
    backward: float | None
    predicted: float | None = None
    forward: float | None = None
    source: Source | None = None
    nodes: frozenset[str] = frozenset()

    @property
    def value(self) -> float | None:
        """The value that the bar shows: the measured gradient, or the predicted one if there is no measured one."""
        return self.predicted if self.backward is None else self.backward


@dataclass(frozen=True, slots=True)
class Gap:
    """Rows that are folded into one line.

    `rows` is their number, `value` the mean of the values at both ends, and `step` the mean change per row toward the input, in
    decades. `value` and `step` are None if some value is missing or not finite. `even` says whether the change is about the
    same at every row.
    """

    rows: int
    value: float | None
    step: float | None
    even: bool

    def __str__(self) -> str:
        if self.step is None:
            return f"... {self.rows} more ..."
        if abs(self.step) < 0.005 and self.even:
            return f"... {self.rows} more, flat ..."
        return f"... {self.rows} more, {decimal(self.step, 2, sign=True)} {'each' if self.even else 'on average'} ..."


def layer_rows(spine: Sequence[SpinePoint]) -> list[Row]:
    """Group the points of the spine into layers and return one row per layer.

    A layer is a run of points of one module, together with the activations, norms and reshapes that follow a weight layer.
    """
    groups: list[list[SpinePoint]] = []
    for point in spine:
        if groups and _continues(groups[-1], point):
            groups[-1].append(point)
        else:
            groups.append([point])
    return [_row(group) for group in groups]


def _continues(group: Sequence[SpinePoint], point: SpinePoint) -> bool:
    kind, first = operator(point.op).kind, operator(group[0].op).kind
    if point.place.module and point.place.module == group[-1].place.module:
        return True
    if first is Kind.INPUT:
        return False
    return kind in _FOLLOWERS or (kind is Kind.NORM and first in _NORM_FOLLOWS and len(group) == 1)


def _row(group: Sequence[SpinePoint]) -> Row:
    first, last = group[0], group[-1]
    label = first.place.module or first.place.node.removeprefix("input:")
    return Row(
        label=printable(label if re.search(r"[^\W\d_]", label) else f"{label} {first.op}"),
        backward=last.backward,
        predicted=last.predicted_backward,
        forward=last.forward,
        source=first.source,
        nodes=frozenset(point.place.node for point in group),
    )


def time_rows(time: TimeGrowth) -> list[Row]:
    """Return one row per time step of a recurrence."""
    return [Row(f"step {step}", backward) for step, backward in enumerate(time.backward)]


def fold(rows: Sequence[Row], limit: int = MAX_LINES) -> list[Row | Gap]:
    """Fold rows so that at most `limit` lines remain.

    Both ends stay, and between them the rows that deviate most from the straight line through the rows that stay.
    """
    if len(rows) <= min(_NEVER_FOLDED, limit):
        return list(rows)
    levels = _levels(rows)
    kept = {*range(_ENDS), *range(len(rows) - _ENDS, len(rows))}
    tolerance = max(_TOLERANCE, 0.06 * (max(levels) - min(levels)))
    while True:
        off, index = max(_deviations(levels, sorted(kept)))
        wider = {*kept, index}
        if off <= tolerance or _lines(sorted(wider)) > limit:
            break
        kept = wider
    return list(_folded(rows, levels, sorted(kept)))


def _levels(rows: Sequence[Row]) -> list[float]:
    """Return one finite number per row: an infinite value lies one decade beyond the finite ones, a missing one repeats."""
    finite = [row.value for row in rows if row.value is not None and math.isfinite(row.value)] or [0.0]
    levels: list[float] = []
    for row in rows:
        if row.value is None:
            levels.append(levels[-1] if levels else 0.0)
        elif math.isfinite(row.value):
            levels.append(row.value)
        else:
            levels.append(min(finite) - 1.0 if row.value < 0 else max(finite) + 1.0)
    return levels


def _deviations(levels: Sequence[float], kept: Sequence[int]) -> Iterator[tuple[float, int]]:
    """Yield the distance of every row from the straight line between its nearest kept rows, and the index of the row."""
    yield 0.0, kept[0]
    for low, high in itertools.pairwise(kept):
        slope = (levels[high] - levels[low]) / (high - low)
        for index in range(low + 1, high):
            yield abs(levels[index] - levels[low] - slope * (index - low)), index


def _lines(kept: Sequence[int]) -> int:
    return len(kept) + sum(after - before > 1 for before, after in itertools.pairwise(kept))


def _folded(rows: Sequence[Row], levels: Sequence[float], kept: Sequence[int]) -> Iterator[Row | Gap]:
    previous = -1
    for index in kept:
        hidden = index - previous - 1
        if hidden == 1:
            yield rows[index - 1]
        elif hidden > 1:
            steps = [levels[at] - levels[at + 1] for at in range(previous, index)]
            known = all(row.value is not None and math.isfinite(row.value) for row in rows[previous : index + 1])
            mean = sum(steps) / len(steps)
            even = all(abs(step - mean) <= max(0.1, 0.3 * abs(mean)) for step in steps)
            yield Gap(hidden, (levels[previous] + levels[index]) / 2 if known else None, mean if known else None, even)
        yield rows[index]
        previous = index


def bars(rows: Sequence[Row | Gap], width: int, glyphs: Glyphs) -> list[str]:
    """Draw a bar for each row, at most `width` characters wide including the axis.

    A positive value extends from the axis to the right, a negative one to the left.
    """
    values = [row.value for row in rows if isinstance(row, Row) and row.value is not None and math.isfinite(row.value)]
    low, high = min([0.0, *values]), max([0.0, *values])
    low, high = (0.0 if -low < _LEAST_SHARE * high else low), (0.0 if high < -_LEAST_SHARE * low else high)
    stretch = max(1.0, _FULL_SCALE / max(high - low, _NEGLIGIBLE))
    low, high = (low * stretch, high * stretch) if high - low > _NEGLIGIBLE else (0.0, _FULL_SCALE)
    cells = width - 1
    zero = round(cells * -low / (high - low))
    scale = cells / (high - low)
    faint = glyphs._replace(bar=glyphs.folded, left="", right="")
    return [_bar(row.value, scale, zero, cells, glyphs if isinstance(row, Row) else faint) for row in rows]


def picture(phase: Phase, *, unicode: bool) -> list[str]:
    """Return the lines of `Phase.picture`, a plot of growth per layer against gain, in ASCII unless `unicode`."""
    return [line if unicode else line.translate(_PLAIN) for line in phase.picture()]


_PLAIN = str.maketrans("\u2580\u2584\u2504\u2506\u2502\u2500\u2514\u25cf", "'.-:|-+o")


def _bar(value: float | None, scale: float, zero: int, cells: int, glyphs: Glyphs) -> str:
    if value is None or math.isnan(value) or value == -math.inf:
        return " " * zero + glyphs.axis
    room = cells - zero if value > 0 else zero
    length = min(room, scale * abs(value))  # an infinite value fills the room
    halves = round(2 * length) if glyphs.right else 2 * round(length)
    if value < 0:
        return f"{(glyphs.left if halves % 2 else '') + glyphs.bar * (halves // 2):>{zero}}{glyphs.axis}"
    return f"{' ' * zero}{glyphs.axis}{glyphs.bar * (halves // 2)}{glyphs.right if halves % 2 else ''}"
