"""The full report, for people: verdict, growth over the layers, findings, coverage. It fits 80 columns."""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from gradlint.growth import HEALTHY
from gradlint.report import printable
from gradlint.report.chart import ASCII, BLOCKS, Row, bars, fold, layer_rows, picture, time_rows
from gradlint.report.headline import headline, is_growing, one_offs
from gradlint.report.measurements import remarks
from gradlint.report.table import Table
from gradlint.report.wording import count, decimal, growths, located, place, scored, shown, states, totals
from gradlint.result import Confidence, Finding, Severity, TargetReport, Verdict

_VERDICT_STYLE = {
    Verdict.HEALTHY: "bold green",
    Verdict.EXPLODES: "bold red",
    Verdict.VANISHES: "bold red",
    Verdict.NON_FINITE: "bold red",
    Verdict.UNTRAINABLE: "bold red",
    Verdict.UNSTABLE: "bold red",
    Verdict.NOTHING_TO_TRAIN: "bold",
    Verdict.UNKNOWN: "bold magenta",
}
_SEVERITY_STYLE = {Severity.ERROR: "bold red", Severity.WARNING: "bold dark_orange3", Severity.NOTE: "bold cyan"}
_SOUND = 10  # points under the best score from which on a healthy model is not green
_DIM = "dim"
_INDENT = " " * 8

Line = tuple[tuple[str, str], ...]
"""The parts of a line, each as its text and the name of its style ("" for none)."""

_BLANK: Line = ()


def render(
    reports: Sequence[TargetReport],
    *,
    version: str,  # noqa: ARG001 - every format takes it
    width: int = 80,
    color: bool = False,
    unicode: bool = False,
    show_refuted: bool = False,
    timings: bool = True,
) -> str:
    """Return one block of text per target and a closing line, at most `width` characters wide (40 at least)."""
    page = _Page(width, unicode=unicode, refuted=show_refuted, timings=timings)
    lines: list[Line] = []
    for report in reports:
        lines += [*page.block(report, alone=len(reports) == 1), _BLANK]
    closing, pointer = totals(reports, refuted=show_refuted)
    apart = len(closing) + len(pointer) + 3 > page.width
    lines += [line for text in ((closing, pointer) if apart else (f"{closing} {pointer}",)) for line in page.wrapped("  ", text)]
    if color:
        return _colored(lines, width)
    return "".join("".join(text for text, _ in line).rstrip() + "\n" for line in lines)


def _colored(lines: Sequence[Line], width: int) -> str:
    """Return the lines with escape sequences for a terminal with 256 colors."""
    from rich.console import Console  # noqa: PLC0415 - slow to import, and not needed for plain text
    from rich.text import Text  # noqa: PLC0415

    out = io.StringIO()
    settings: dict[str, Any] = {"force_terminal": True, "force_jupyter": False, "no_color": False, "legacy_windows": False}
    console = Console(file=out, width=width, color_system="256", **settings)
    for line in lines:
        text = Text.assemble(*line)
        text.rstrip()
        console.print(text, soft_wrap=True, highlight=False)
    return out.getvalue()


def _cells(text: str) -> int:
    """Return the width of a text in columns of the terminal; wide characters, as in Chinese, take two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # noqa: PLC0415

    return cell_len(text)


class _Page:
    """Format reports as lines of text, for one width and one set of options."""

    def __init__(self, width: int, *, unicode: bool, refuted: bool, timings: bool) -> None:
        self.width = max(width, 40)
        self.unicode = unicode
        self.glyphs = BLOCKS if unicode else ASCII
        self.refuted = refuted
        self.timings = timings

    def block(self, report: TargetReport, *, alone: bool) -> Iterator[Line]:
        """Yield all lines about one target. `alone` says whether it is the only one: a healthy one among several is brief."""
        rows = layer_rows(report.spine)
        findings = shown(report, refuted=self.refuted)
        brief = report.verdict is Verdict.HEALTHY and not alone
        yield from self._title(report)
        if not brief:
            yield _BLANK
        yield from self._verdict(report, rows)
        if not brief:
            yield from self._why(report)
            yield from self._charts(report, rows)
            yield from self._phase(report)
        for finding in findings:
            if not finding.caused_by:
                yield _BLANK
            yield from self._finding(finding, report)
        if findings or not brief:
            yield _BLANK
        for note in report.notes:
            yield from self.wrapped("  note: ", note, _DIM)
        yield from self.wrapped("  ", self._coverage(report), _DIM)

    def wrapped(self, lead: str, text: str, style: str = "", *, lead_style: str | None = None) -> Iterator[Line]:
        """Yield a paragraph that starts with `lead`; its further lines are indented by the width of `lead`."""
        body = textwrap.wrap(printable(text.replace("\n", " ")), max(self.width - _cells(lead), 20), break_on_hyphens=False) or [
            ""
        ]
        for index, line in enumerate(body):
            start = lead if index == 0 else " " * _cells(lead)
            yield (start, style if lead_style is None else lead_style), (printable(line), style)  # it may have a new beginning

    def _title(self, report: TargetReport) -> Iterator[Line]:
        inputs = ", ".join(f"{item.name}={item.spec}{'' if item.given else ' (inferred)'}" for item in report.inputs)
        seeds = count(report.seeds, "seed") if report.seeds else "not probed"
        facts = [report.frontend, f"{report.mode} mode", inputs, seeds]
        if report.capture != "full":
            facts.append(f"captured: {report.capture}")
        name, rest = printable(report.target), printable(", ".join(fact for fact in facts if fact))
        if _cells(name) + 3 + _cells(rest) <= self.width:
            yield (name, "bold"), ("   " + rest, _DIM)
        else:
            yield ((name, "bold"),)
            yield from self.wrapped("  ", rest, _DIM)

    def _verdict(self, report: TargetReport, rows: Sequence[Row]) -> Iterator[Line]:
        verdict = report.verdict.value.upper()
        best = report.made.best if report.made is not None else 100
        doubtful = report.verdict is Verdict.HEALTHY and (report.score or 0) < best - _SOUND
        style = "bold dark_orange3" if doubtful else _VERDICT_STYLE[report.verdict]
        score, sentence = f"   {scored(report)}", printable(headline(report, rows))
        fits = len(verdict + score + sentence) + 5 <= self.width
        yield ("  ", ""), (verdict, style), (score, "bold"), (f"   {sentence}" if fits else "", "")
        if not fits:
            yield from self.wrapped("  ", sentence)
        growth = next(filter(None, growths(report)), None)
        if growth is not None and growth.jumps:
            yield from self.wrapped("  ", one_offs(growth), _DIM)

    def _why(self, report: TargetReport) -> Iterator[Line]:
        if report.attribution is not None:
            yield from self.wrapped("  due to ", str(report.attribution))
        if report.stack is not None:
            yield from self.wrapped("  phase: ", str(report.stack))
        for label, text in remarks(report):
            yield from self.wrapped(f"  {label}: ", text)

    def _charts(self, report: TargetReport, rows: Sequence[Row]) -> Iterator[Line]:
        if any(row.value is not None for row in rows):
            yield _BLANK
            yield from self._chart(rows, "layer")
        for time in report.time:
            if is_growing(time.growth) or any(time.node in finding.nodes for finding in shown(report, refuted=False)):
                yield _BLANK
                back = " backwards" if time.direction == "reverse" else ""
                yield from self._chart(time_rows(time), f"time steps of {printable(time.node)}{back}")

    def _phase(self, report: TargetReport) -> Iterator[Line]:
        """Yield the plot of the stack's phase, if growth is beyond the healthy range and the plot fits the width."""
        growth = next(filter(None, growths(report)), None)
        if report.stack is None or report.stack.phase.critical is None or growth is None or abs(growth.decades) < HEALTHY:
            return
        lines = [f"  {line}" for line in picture(report.stack.phase, unicode=self.unicode)]
        if max(_cells(line) for line in lines) <= self.width:
            yield _BLANK
            yield from (((line, _DIM),) for line in lines)

    def _chart(self, rows: Sequence[Row], heading: str) -> Iterator[Line]:
        lines = fold(rows)
        table = Table(lines, heading, self.width - 2)
        yield (("  " + table.head, _DIM),)
        for line, bar in zip(lines, bars(lines, table.cells, self.glyphs), strict=True):
            left, right = table.left(line), table.right(line)
            if isinstance(line, Row):
                yield ("  ", ""), (left, ""), (f"{bar:<{table.cells}}", _bar_style(line.value)), (right, _DIM)
            else:
                yield ((f"  {left}{bar if len(left) == table.before else ''}", _DIM),)

    def _finding(self, finding: Finding, report: TargetReport) -> Iterator[Line]:
        where = [part for part in (place(finding), located(finding)) if part]
        cause = finding.caused_by
        tail = printable("   ".join([*where[:1], f"(caused by {cause})"] if cause else [*where, finding.confidence.value]))
        severity, name = finding.severity.value, printable(f" {finding.rule} {finding.name}")
        fits = 2 + _cells(severity + name) + 3 + _cells(tail) <= self.width
        style = _SEVERITY_STYLE[finding.severity]
        yield ("  ", ""), (severity, style), (name, "bold"), (f"   {tail}" if fits else "", "")
        if not fits:
            yield from self.wrapped(_INDENT, tail)
        if cause:
            return
        yield from self.wrapped(_INDENT, finding.message)
        if evidence := _evidence(finding, report):
            yield from self.wrapped(_INDENT, evidence, _DIM)
        if finding.remedy is not None:
            yield from self.wrapped(f"{_INDENT}fix: ", finding.remedy.summary, lead_style="bold green")
            if finding.remedy.verified is not None:
                before, after = finding.remedy.verified
                yield ((f"{_INDENT}     tried: growth {decimal(before)} -> {decimal(after)} decades", ""),)

    def _coverage(self, report: TargetReport) -> str:
        covered = report.coverage
        if covered.nodes == covered.understood == covered.probed:
            parts = [f"All {covered.nodes} operators understood and probed."]
        else:
            parts = [f"{covered.understood} of {covered.nodes} operators understood, {covered.probed} probed."]
        if covered.unknown_ops:
            unknown = ", ".join(f"{name} x{number}" if number > 1 else name for name, number in covered.unknown_ops.items())
            parts.append(f"Not understood: {unknown}.")
        skipped = f", {len(report.skipped)} skipped" if report.skipped else ""
        parts.append(f"{count(report.rules_checked, 'rule')} checked{skipped}.")
        if self.timings and report.timings:
            parts.append(f"{sum(report.timings.values()):.1f} s")
        return " ".join(parts)


def _bar_style(value: float | None) -> str:
    size = abs(value or 0.0)
    return "green" if size < 2.0 else "dark_orange3" if size < 3.5 else "red"


def _evidence(finding: Finding, report: TargetReport) -> str:
    """Return the numbers of the evidence that the message does not already contain."""
    known: dict[str, Any] = dict(finding.evidence)
    decades = known.pop("decades", None)
    numbers = {key: value for key, value in known.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    told = [f"{key.replace('_', ' ')} {value:.3g}" for key, value in numbers.items() if not states(finding.message, value)]
    finite = isinstance(decades, int | float) and math.isfinite(decades)
    if finite and not states(finding.message, decades) and finding.confidence is not Confidence.REFUTED:
        growth = next(filter(None, growths(report)), None)
        of_all = f" of {decimal(abs(growth.decades))}" if growth else ""
        told.insert(0, f"explains {decimal(abs(decades))}{of_all} decades")
    return ", ".join(told)
