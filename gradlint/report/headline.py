"""Compose the sentence next to the verdict: what the gradient does, over how many layers, and at what rate."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from gradlint.growth import LIMIT
from gradlint.measurements.reach import shortest_reach
from gradlint.report import printable
from gradlint.report.chart import Row
from gradlint.report.wording import count, decimal, growths, merged, place
from gradlint.result import Finding, Growth, Place, Severity, TargetReport, Verdict
from gradlint.score import failing

_GROWING = 1.0  # smallest growth over a time axis that gets a chart, in decades


def headline(report: TargetReport, rows: Sequence[Row]) -> str:
    """Return one sentence without a final period, for readers who do not know the theory.

    Args:
        report: The report.
        rows: The rows of its chart, from input to output.
    """
    if report.verdict is Verdict.NON_FINITE:
        return _non_finite(report, rows)
    if report.verdict is Verdict.NOTHING_TO_TRAIN:
        return "nothing here is trainable"
    learn = report.trainability
    if report.verdict is Verdict.UNTRAINABLE and learn is not None and learn.learns_nothing and not learn.sizes:
        return f"all {learn.frozen:,} parameters are frozen, and nothing can learn"
    if report.verdict is Verdict.UNTRAINABLE and (cut := next(_made_by(report, Verdict.UNTRAINABLE), None)) is not None:
        return f"no gradient passes {place(cut)}, and nothing before it can learn"
    measured, predicted = growths(report)
    growth, origin = (measured, "") if measured is not None else (predicted, "predicted: ")
    if growth is None:
        return "the gradient was not measured" if report.seeds == 0 else "the gradient could not be measured"
    starved = [row.label for row in rows if row.value == -math.inf]
    if report.verdict is Verdict.UNTRAINABLE:
        return f"no gradient reaches {starved[-1]} or anything before it" if starved else "no weight gets a gradient"
    rehearsed = report.observed.get("rehearsal")
    if report.verdict is Verdict.UNSTABLE and rehearsed is not None:
        return f"{_size(Verdict.HEALTHY, growth)} at first, but training fails within {count(rehearsed.steps, 'update')}"
    if not math.isfinite(growth.decades):
        return "gradient overflows" if growth.decades > 0 else "no gradient reaches the input"
    if report.verdict is Verdict.HEALTHY and abs(growth.decades) >= LIMIT and rehearsed is not None and rehearsed.learned:
        return f"{_size(Verdict.EXPLODES, growth)}, but the recipe trains it: loss {rehearsed.first:.3g} -> {rehearsed.last:.3g}"
    pace = _pace(growth, rows, report.verdict, alone=not report.tracks)
    return f"{origin}{_size(report.verdict, growth)}{pace}{_memory(report)}"


def one_offs(growth: Growth) -> str:
    """Return a line that lists the jumps of a growth, in decades."""
    steps = ", ".join(f"{decimal(jump.decades, sign=True)} at {printable(_name(jump.place))}" for jump in growth.jumps)
    return f"one-off steps, not counted as growth: {steps}"


def is_growing(growth: Growth) -> bool:
    """Return whether growth over time is large enough for a chart. Decay gets none, because most recurrences decay."""
    return not growth.decades < _GROWING


def _made_by(report: TargetReport, verdict: Verdict) -> Iterator[Finding]:
    """Return the errors whose rule declares `verdict`, in the order of the report."""
    return (finding for finding in report.findings if finding.verdict is verdict and failing(finding, Severity.ERROR))


def _non_finite(report: TargetReport, rows: Sequence[Row]) -> str:
    found = [place(finding) for finding in _made_by(report, Verdict.NON_FINITE)]
    broken = [row.label for row in rows if row.forward is not None and not row.forward < math.inf]
    where = next(iter([*found, *broken]), "")
    return f"NaN or infinity, first at {where}" if where else "NaN or infinity in the pass"


def _size(verdict: Verdict, growth: Growth) -> str:
    spread = _spread(growth)
    if verdict is Verdict.HEALTHY:
        return f"gradient stays within 10^{decimal(abs(growth.decades))}{spread}"
    verb = "grows" if growth.decades > 0 else "shrinks to"
    return f"gradient {verb} 10^{decimal(growth.decades)}{spread}"


def _spread(growth: Growth) -> str:
    """Return the spread over seeds or the half width of a predicted 90 % interval, such as " (+-0.3)"; "" if it is small."""
    half = (growth.interval[1] - growth.interval[0]) / 2.0 if growth.interval is not None else growth.spread
    return f" (+-{half:.1f})" if half is not None and 0.05 <= half < math.inf else ""


def _pace(growth: Growth, rows: Sequence[Row], verdict: Verdict, *, alone: bool) -> str:
    """How many layers it takes, which ones if they are not all of the model, and the factor of each."""
    if growth.per_step is not None and math.isfinite(growth.per_step):
        return f", x{_factor(growth.per_step)} a time step"
    if verdict is Verdict.HEALTHY:
        return f" over {count(len(rows) - 1, 'layer')}" if len(rows) > 1 else ""
    first, last = _index(growth.start, rows), _index(growth.end, rows)
    if first is None or last is None or last <= first:
        return ""
    layers = last - first
    where = f" over {count(layers, 'layer')}"
    if layers < len(rows) - 2 or not alone:
        ends = rows[first].label, rows[last].label
        where += f" ({merged(ends, filled=True) or ' to '.join(ends)})"
    upper, lower = rows[first].value, rows[last].value
    if upper is None or lower is None or not math.isfinite(upper - lower):
        return where
    return f"{where}, x{_factor((upper - lower) / layers)} a layer"


def _memory(report: TargetReport) -> str:
    """What becomes of the gradient along time, where that is the worst of a model that is not said to fail."""
    reach = shortest_reach(report.time, report.findings)
    told = report.verdict in {Verdict.HEALTHY, Verdict.UNKNOWN} and reach is not None and reach.is_short
    return f", but {reach}" if told else ""


def _factor(decades: float) -> str:
    factor = 10**decades
    return f"{factor:.2f}" if 0.1 <= factor < 100 else f"{factor:.2g}"


def _index(spot: Place | None, rows: Sequence[Row]) -> int | None:
    if spot is None:
        return None
    return next((index for index, row in enumerate(rows) if spot.node in row.nodes), None)


def _name(spot: Place) -> str:
    return spot.module or spot.node
