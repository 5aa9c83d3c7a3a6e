"""What several formats say in the same words: places, counts, growth, and which findings to show."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from gradlint.result import Confidence, Finding, Severity, TargetReport, Verdict

_NUMBER = re.compile(r"(\d+)")
_DECIMAL = re.compile(r"-?\d+(?:\.\d+)?")
_FACTORY = re.compile(r"^(?P<file>.+\.py):[A-Za-z_][\w.]*$")
_FILE_FRONTENDS = ("onnx", "pt2", "weights")


def printable(text: str) -> str:
    """The text without control characters: names come from model files and must not steer a terminal or a log."""
    return "".join(char if char.isprintable() else " " for char in text)


def count(number: int, noun: str) -> str:
    """A number with its noun: "1 error", "2 errors"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def decimal(value: float | None, places: int = 1, *, sign: bool = False) -> str:
    """A number of decades as people read it: "-" where there is none, never "-0.0"; a gradient of zero has -inf decades."""
    if value is None:
        return "-"
    if value == -math.inf:
        return "zero"
    if not math.isfinite(value):
        return "inf" if value > 0 else "nan"
    return f"{round(value, places) + 0.0:{'+' if sign else ''}.{places}f}"


def short_path(file: str) -> str:
    """A file relative to the working directory, where it lies below it."""
    path = Path(file)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        path = path.relative_to(Path.cwd())
    return path.as_posix()


def target_file(report: TargetReport) -> str | None:
    """The file that the target is or names; None for `pkg.mod:attr`, an object, and standard input."""
    if report.frontend in _FILE_FRONTENDS:
        return None if report.target == "-" else short_path(report.target)
    match = _FACTORY.match(report.target)
    return short_path(match["file"]) if match else None


def shown(report: TargetReport, *, refuted: bool) -> list[Finding]:
    """The findings to show, causes before the symptoms that they explain; refuted ones last, if at all."""
    findings = [finding for finding in report.findings if refuted or finding.confidence is not Confidence.REFUTED]
    return sorted(findings, key=lambda finding: (finding.confidence is Confidence.REFUTED, finding.caused_by is not None))


def place(finding: Finding, report: TargetReport) -> str:
    """Where a finding is, in one short phrase: `blocks.3.fc`, `blocks.0-29.fc`, `stem and 4 more`."""
    if len(finding.nodes) < 2:
        return printable(finding.module or finding.node or "")
    modules = {point.place.node: point.place.module for point in report.spine}
    labels = list(dict.fromkeys(modules.get(node) or node for node in finding.nodes))
    return printable(_merged(labels) or f"{labels[0]} and {len(labels) - 1} more")


def _merged(labels: Sequence[str]) -> str | None:
    """One label for several that differ in a single number, None where they differ in more."""
    if len(labels) == 1:
        return labels[0]
    parts = [_NUMBER.split(label) for label in labels]
    if len({len(part) for part in parts}) > 1:
        return None
    varying = [index for index, column in enumerate(zip(*parts, strict=True)) if len(set(column)) > 1]
    if len(varying) != 1 or varying[0] % 2 == 0:
        return None
    numbers = sorted({int(part[varying[0]]) for part in parts})
    strides = {after - before for before, after in zip(numbers, numbers[1:], strict=False)}
    listed = f"{numbers[0]}-{numbers[-1]}" if strides == {1} else ",".join(map(str, _abridged(numbers)))
    return "".join([*parts[0][: varying[0]], listed, *parts[0][varying[0] + 1 :]])


def _abridged(numbers: Sequence[int]) -> list[int | str]:
    return list(numbers) if len(numbers) <= 4 else [*numbers[:2], "...", numbers[-1]]


def located(finding: Finding) -> str:
    """The user's line, `net.py:14`, or nothing."""
    return f"{short_path(finding.file)}:{finding.line}" if finding.file else ""


def states(text: str, number: float) -> bool:
    """Whether a text already gives a number, to whatever number of decimal places it prints it."""
    for found in _DECIMAL.findall(text):
        places = len(found.partition(".")[2])
        if float(found) == (round(number, places) if places else number):
            return True
    return False


def totals(reports: Sequence[TargetReport], *, refuted: bool) -> str:
    """The closing sentence over all targets, and where to read about the worst finding."""
    findings = [finding for report in reports for finding in shown(report, refuted=refuted)]
    parts = [count(number, severity) for severity, number in _tally(findings) if number]
    verdicts = Counter(report.verdict for report in reports)
    models = count(len(reports), "model")
    if len(reports) > 1:
        models += f" ({', '.join(f'{verdicts[verdict]} {_AS_STATE[verdict]}' for verdict in Verdict if verdicts[verdict])})"
    closing = f"{models}: {', '.join(parts) if parts else 'no findings'}."
    worst = min(findings, key=lambda finding: finding.severity.rank, default=None)
    return f"{closing} Read more: gradlint rule {worst.rule}" if worst else closing


_AS_STATE = {
    Verdict.HEALTHY: "healthy",
    Verdict.EXPLODES: "exploding",
    Verdict.VANISHES: "vanishing",
    Verdict.NON_FINITE: "non-finite",
    Verdict.UNKNOWN: "unknown",
}


def _tally(findings: Iterable[Finding]) -> list[tuple[str, int]]:
    counts = Counter(finding.severity for finding in findings)
    return [(severity.value, counts[severity]) for severity in Severity]
