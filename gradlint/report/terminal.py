"""The full report, for people: verdict first, then growth over the layers, findings, coverage; made to fit 80 columns."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console
from rich.text import Text

from gradlint.report.chart import ASCII, BLOCKS, Gap, Row, bars, fold, layer_rows, time_rows
from gradlint.report.headline import headline, is_growing, one_offs
from gradlint.report.wording import count, decimal, located, place, printable, short_path, shown, states, totals
from gradlint.result import Confidence, Finding, Severity, TargetReport, Verdict

_VERDICT_STYLE = {
    Verdict.HEALTHY: "bold green",
    Verdict.EXPLODES: "bold red",
    Verdict.VANISHES: "bold red",
    Verdict.NON_FINITE: "bold red",
    Verdict.UNKNOWN: "bold magenta",
}
_SEVERITY_STYLE = {Severity.ERROR: "bold red", Severity.WARNING: "bold dark_orange3", Severity.NOTE: "bold cyan"}
_QUIET = "dim"
_INDENT = " " * 8
_FEWEST_CELLS = 12  # a bar shorter than this gives way to nothing: columns are dropped first


def render(
    reports: Sequence[TargetReport],
    *,
    version: str,  # noqa: ARG001 - every format is given it
    width: int = 80,
    color: bool = False,
    unicode: bool = False,
    show_refuted: bool = False,
    timings: bool = True,
) -> str:
    """One block a target and a closing line, at most `width` columns wide."""
    page = _Page(width, unicode=unicode, refuted=show_refuted, timings=timings)
    lines: list[Text] = []
    for report in reports:
        lines += [*page.block(report, alone=len(reports) == 1), Text()]
    lines += page.wrapped("  ", totals(reports, refuted=show_refuted))
    out = io.StringIO()
    console = Console(
        file=out, width=width, force_terminal=color, color_system="256" if color else None, no_color=not color, legacy_windows=False
    )
    for line in lines:
        line.rstrip()
        console.print(line, soft_wrap=True, highlight=False)
    return out.getvalue()


class _Page:
    """Lines of text for one width and one set of options."""

    def __init__(self, width: int, *, unicode: bool, refuted: bool, timings: bool) -> None:
        self.width = max(width, 40)
        self.unicode = unicode
        self.glyphs = BLOCKS if unicode else ASCII
        self.refuted = refuted
        self.timings = timings

    def block(self, report: TargetReport, *, alone: bool) -> Iterator[Text]:
        """Everything about one target."""
        rows = layer_rows(report.spine)
        findings = shown(report, refuted=self.refuted)
        brief = report.verdict is Verdict.HEALTHY and not alone
        yield from self._title(report)
        if not brief:
            yield Text()
        yield from self._verdict(report, rows)
        if not brief:
            yield from self._charts(report, rows)
        for finding in findings:
            yield Text()
            yield from self._finding(finding, report)
        if findings or not brief:
            yield Text()
        for note in report.notes:
            yield from self.wrapped("  note: ", printable(note), _QUIET)
        yield from self.wrapped("  ", self._coverage(report), _QUIET)

    def wrapped(self, lead: str, text: str, style: str = "", *, lead_style: str | None = None) -> Iterator[Text]:
        """A paragraph after `lead`, its further lines indented as far."""
        body = textwrap.wrap(text, max(self.width - cell_len(lead), 20), break_on_hyphens=False) or [""]
        for index, line in enumerate(body):
            start = lead if index == 0 else " " * cell_len(lead)
            yield Text.assemble((start, style if lead_style is None else lead_style), (line, style))

    def _title(self, report: TargetReport) -> Iterator[Text]:
        inputs = ", ".join(f"{item.name}={item.spec}{'' if item.given else ' (inferred)'}" for item in report.inputs)
        seeds = count(report.seeds, "seed") if report.seeds else "not probed"
        facts = [report.frontend, f"{report.mode} mode", inputs, seeds]
        if report.capture != "full":
            facts.append(f"captured: {report.capture}")
        name, rest = printable(report.target), printable(", ".join(fact for fact in facts if fact))
        if cell_len(name) + 3 + cell_len(rest) <= self.width:
            yield Text.assemble((name, "bold"), ("   " + rest, _QUIET))
        else:
            yield Text(name, "bold")
            yield from self.wrapped("  ", rest, _QUIET)

    def _verdict(self, report: TargetReport, rows: Sequence[Row]) -> Iterator[Text]:
        verdict = report.verdict.value.upper()
        style = _VERDICT_STYLE[report.verdict]
        lead = f"  {verdict}   score {report.score}/100   "
        sentence = headline(report, rows)
        for index, line in enumerate(self.wrapped(lead, sentence, lead_style="")):
            if index == 0:
                line.stylize(style, 2, 2 + len(verdict))
                line.stylize("bold", 2 + len(verdict), len(lead))
            yield line
        if report.growth is not None and report.growth.jumps:
            yield from self.wrapped("  ", one_offs(report.growth), _QUIET)

    def _charts(self, report: TargetReport, rows: Sequence[Row]) -> Iterator[Text]:
        if any(row.value is not None for row in rows):
            yield Text()
            yield from self._chart(rows, "layer")
        for time in report.time:
            if is_growing(time.growth):
                yield Text()
                yield from self._chart(time_rows(time), f"time steps of {printable(time.node)}")

    def _chart(self, rows: Sequence[Row], heading: str) -> Iterator[Text]:
        lines = fold(rows)
        table = _Table(lines, heading, self.width - 2)
        yield Text("  " + table.head, _QUIET)
        for line, bar in zip(lines, bars(lines, table.cells, self.glyphs), strict=True):
            if isinstance(line, Gap):
                yield Text(f"  {line}", _QUIET)
            else:
                before, after = table.numbers(line)
                yield Text.assemble("  ", before, " ", (set_cell_size(bar, table.cells), _bar_style(line.value)), (after, _QUIET))

    def _finding(self, finding: Finding, report: TargetReport) -> Iterator[Text]:
        where = [part for part in (place(finding, report), located(finding)) if part]
        cause = [f"(caused by {finding.caused_by})"] if finding.caused_by else []
        tail = "   ".join([*where, finding.confidence.value, *cause])
        head = f"  {finding.severity.value} {finding.rule} {finding.name}"
        fits = cell_len(head) + 3 + cell_len(tail) <= self.width
        line = Text.assemble(head, f"   {tail}" if fits else "")
        line.stylize(_SEVERITY_STYLE[finding.severity], 2, 2 + len(finding.severity.value))
        line.stylize("bold", 2 + len(finding.severity.value), len(head))
        yield line
        if not fits:
            yield from self.wrapped(_INDENT, tail)
        if finding.caused_by:
            return
        yield from self.wrapped(_INDENT, printable(" ".join([finding.message, *_evidence(finding)])))
        if finding.remedy is not None:
            yield from self.wrapped(f"{_INDENT}fix: ", printable(finding.remedy.summary), lead_style="bold green")
            if finding.remedy.verified is not None:
                before, after = finding.remedy.verified
                yield Text(f"{_INDENT}     tried: growth {decimal(before)} -> {decimal(after)} decades")

    def _coverage(self, report: TargetReport) -> str:
        covered = report.coverage
        if covered.understood == covered.probed:
            parts = [f"{covered.understood} of {covered.nodes} operators understood and probed."]
        else:
            parts = [f"{covered.understood} of {covered.nodes} operators understood, {covered.probed} probed."]
        if covered.unknown_ops:
            unknown = ", ".join(f"{name} x{number}" if number > 1 else name for name, number in covered.unknown_ops.items())
            parts.append(f"Not understood: {printable(unknown)}.")
        skipped = f", {len(report.skipped)} did not apply" if report.skipped else ""
        parts.append(f"{count(report.rules_checked, 'rule')} checked{skipped}.")
        if self.timings and report.timings:
            parts.append(f"{sum(report.timings.values()):.1f} s")
        return " ".join(parts)


class _Table:
    """Widths of the columns around the bars, and the texts in them."""

    def __init__(self, lines: Iterable[Row | Gap], heading: str, width: int) -> None:
        rows = [line for line in lines if isinstance(line, Row)]
        self._measured = any(row.backward is not None for row in rows)
        self._label = min(max(cell_len(text) for text in [heading, *(row.label for row in rows)]), 30)
        self._where = min(max(len(_line_of(row)) for row in rows), 18)
        self._predicted = self._measured and any(row.predicted is not None for row in rows)
        self._signal = any(row.forward is not None for row in rows)
        for column in ("_signal", "_predicted", "_where", ""):
            used = self._label + 2 + (self._where + 2 if self._where else 0) + 6 + 1 + 11 * self._predicted + 8 * self._signal
            self.cells = max(width - used, _FEWEST_CELLS)
            if width - used >= _FEWEST_CELLS or not column:
                break
            setattr(self, column, 0)
        self.cells = min(self.cells, 40)
        name = "gradient, decades" if self._measured else "predicted gradient, decades"
        extra = ("  predicted" if self._predicted else "") + ("  signal" if self._signal else "")
        where = " " * (self._where + 2) if self._where else ""
        self.head = f"{set_cell_size(heading, self._label)}  {where}{set_cell_size(name, 7 + self.cells) if extra else name}{extra}"

    def numbers(self, row: Row) -> tuple[str, str]:
        """What stands before and after the bar."""
        label = row.label if cell_len(row.label) <= self._label else ".." + row.label[2 - self._label :]
        where = _line_of(row)[-self._where :].ljust(self._where) + "  " if self._where else ""
        after = f"{decimal(row.predicted):>11}" if self._predicted else ""
        after += f"{decimal(row.forward):>8}" if self._signal else ""
        return f"{set_cell_size(label, self._label)}  {where}{decimal(row.value):>6}", after


def _line_of(row: Row) -> str:
    return f"{short_path(row.source.file).rpartition('/')[2]}:{row.source.line}" if row.source else ""


def _bar_style(value: float | None) -> str:
    size = abs(value or 0.0)
    return "green" if size < 2.0 else "dark_orange3" if size < 3.5 else "red"


def _evidence(finding: Finding) -> Iterator[str]:
    """Numbers that the message does not give yet."""
    known: dict[str, Any] = dict(finding.evidence)
    decades = known.pop("decades", None)
    numbers = {key: value for key, value in known.items() if isinstance(value, int | float) and not isinstance(value, bool)}
    told = [f"{key.replace('_', ' ')} {value:.3g}" for key, value in numbers.items() if not states(finding.message, value)]
    if told:
        yield f"({', '.join(told)})"
    if isinstance(decades, int | float) and not states(finding.message, decades) and finding.confidence is not Confidence.REFUTED:
        yield f"Explains {decimal(abs(decades))} decades."
