"""Text that several formats share: places, counts, numbers, totals, and the order of the findings."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from gradlint.report import printable
from gradlint.result import Confidence, Finding, Growth, Severity, TargetReport, Verdict

_NUMBER = re.compile(r"(\d+)")
_LETTER = re.compile(r"[^\W\d_]")
_DECIMAL = re.compile(r"-?\d+(?:\.\d+)?")
_FACTORY = re.compile(r"^(?P<file>.+\.py):[A-Za-z_][\w.]*$")
_FILE_FRONTENDS = ("onnx", "pt2", "weights")


def count(number: int, noun: str) -> str:
    """Return a number with its noun: "1 error", "2 errors"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def decimal(value: float | None, places: int = 1, *, sign: bool = False) -> str:
    """Format a number of decades: "-" for None, "zero" for -inf (a gradient that is exactly zero), and never "-0.0"."""
    if value is None:
        return "-"
    if value == -math.inf:
        return "zero"
    if not math.isfinite(value):
        return "inf" if value > 0 else "nan"
    return f"{round(value, places) + 0.0:{'+' if sign else ''}.{places}f}"


def short_path(file: str) -> str:
    """Return a path relative to the working directory if it lies below it, and unchanged otherwise."""
    path = Path(file)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return path.as_posix()


def growths(report: TargetReport) -> tuple[Growth | None, Growth | None]:
    """Return the measured and the predicted growth. Without a probe, the growth of a report is the predicted one."""
    if report.seeds:
        return report.growth, report.predicted
    return None, report.predicted or report.growth


def target_file(report: TargetReport) -> str | None:
    """Return the file that the target is or names. None for `pkg.mod:attr`, an object and standard input."""
    if report.frontend in _FILE_FRONTENDS:
        return None if report.target == "-" else short_path(report.target)
    match = _FACTORY.match(report.target)
    return short_path(match["file"]) if match else None


def shown(report: TargetReport, *, refuted: bool) -> list[Finding]:
    """Return the findings to show, in the order of the report.

    A symptom follows the finding that explains it. Refuted findings come last if `refuted`, and are left out otherwise.
    """
    findings = [finding for finding in report.findings if refuted or finding.confidence is not Confidence.REFUTED]
    last = {finding.rule: index for index, finding in enumerate(findings)}
    order = {id(finding): index for index, finding in enumerate(findings)}

    def key(finding: Finding) -> tuple[bool, int, bool]:
        behind = last.get(finding.caused_by or "", order[id(finding)])
        return finding.confidence is Confidence.REFUTED, behind, finding.caused_by is not None

    return sorted(findings, key=key)


def place(finding: Finding) -> str:
    """Return a short phrase that says where a finding is: `blocks.3.fc`, `/blocks.0-29/fc/Gemm`, `stem and 4 more`."""
    if finding.module or len(finding.nodes) < 2:
        return _named(finding.module or finding.node or "")
    return _named(merged(finding.nodes) or f"{finding.nodes[0]} and {len(finding.nodes) - 1} more")


def _named(label: str) -> str:
    return printable(label if not label or _LETTER.search(label) else f"module {label}")


def merged(labels: Sequence[str], *, filled: bool = False) -> str | None:
    """Merge labels that differ in a single number into one, `blocks.0-29.fc`. None if they differ in more than that.

    `filled` says that the labels are the ends of a range, which includes all numbers between them.
    """
    parts = [_NUMBER.split(label) for label in labels]
    if len({len(part) for part in parts}) > 1:
        return None
    varying = [index for index, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    if len(varying) != 1 or varying[0] % 2 == 0:
        return None
    numbers = sorted({int(part[varying[0]]) for part in parts})
    strides = {after - before for before, after in itertools.pairwise(numbers)}
    listed = f"{numbers[0]}-{numbers[-1]}" if filled or strides == {1} else ",".join(map(str, _abridged(numbers)))
    return "".join([*parts[0][: varying[0]], listed, *parts[0][varying[0] + 1 :]])


def _abridged(numbers: Sequence[int]) -> list[int | str]:
    return list(numbers) if len(numbers) <= 4 else [*numbers[:2], "...", numbers[-1]]


def located(finding: Finding) -> str:
    """Return the user's line, as in `net.py:14`, or "" if the finding has none."""
    return f"{short_path(finding.file)}:{finding.line}" if finding.file else ""


def states(text: str, number: float) -> bool:
    """Return whether a text contains a number, rounded to any number of decimal places."""
    for found in _DECIMAL.findall(text):
        places = len(found.partition(".")[2])
        if float(found) == (round(number, places) if places else number):
            return True
    return False


def scored(report: TargetReport) -> str:
    """Return the score in words."""
    return "no score" if report.score is None else f"score {report.score}/100"


def totals(reports: Sequence[TargetReport], *, refuted: bool) -> tuple[str, str]:
    """Return the closing sentence over all targets, and a pointer to the rule of the most severe finding ("" if none)."""
    findings = [finding for report in reports for finding in shown(report, refuted=refuted)]
    parts = [count(number, severity) for severity, number in _tally(findings) if number]
    verdicts = Counter(report.verdict for report in reports)
    models = count(len(reports), "model")
    if len(reports) > 1:
        models += f" ({', '.join(f'{verdicts[verdict]} {_AS_STATE[verdict]}' for verdict in Verdict if verdicts[verdict])})"
    worst = min(findings, key=lambda finding: finding.severity.rank, default=None)
    pointer = f"Read more: gradlint rule {worst.rule}" if worst else ""
    return f"{models}: {', '.join(parts) if parts else 'no findings'}.", pointer


_AS_STATE = {
    Verdict.HEALTHY: "healthy",
    Verdict.EXPLODES: "exploding",
    Verdict.VANISHES: "vanishing",
    Verdict.NON_FINITE: "non-finite",
    Verdict.UNTRAINABLE: "untrainable",
    Verdict.UNSTABLE: "unstable",
    Verdict.NOTHING_TO_TRAIN: "with nothing to train",
    Verdict.UNKNOWN: "unknown",
}


def _tally(findings: Iterable[Finding]) -> list[tuple[str, int]]:
    counts = Counter(finding.severity for finding in findings)
    return [(severity.value, counts[severity]) for severity in Severity]
