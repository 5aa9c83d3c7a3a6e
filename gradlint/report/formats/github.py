"""The GitHub format: workflow commands, which GitHub shows as annotations next to the lines of a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradlint.report import printable
from gradlint.report.wording import place, scored, short_path, shown, target_file
from gradlint.result import Finding, Severity, TargetReport

_COMMAND = {Severity.ERROR: "error", Severity.WARNING: "warning", Severity.NOTE: "notice"}
_BREAK = "\n"  # the command says it as %0A
_DATA = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
_PROPERTY = _DATA | str.maketrans({":": "%3A", ",": "%2C"})


def render(reports: Sequence[TargetReport], *, version: str, show_refuted: bool = False, **_: Any) -> str:  # noqa: ARG001
    """Return one command per finding, and one plain line per target with the verdict, for the log.

    A command points at the user's line, or at the model file if the finding has no line.
    """
    lines = []
    for report in reports:
        lines += [_annotation(finding, report) for finding in shown(report, refuted=show_refuted)]
        lines.append(printable(f"{report.target}: {report.verdict}, {scored(report)}"))
    return "\n".join([*lines, ""])


def _annotation(finding: Finding, report: TargetReport) -> str:
    properties = {"title": f"{finding.rule} {finding.name}"}
    if finding.file:
        properties = {"file": short_path(finding.file), "line": str(finding.line)} | properties
    elif file := target_file(report):
        properties = {"file": file} | properties
    written = ",".join(f"{key}={printable(value).translate(_PROPERTY)}" for key, value in properties.items())
    where = place(finding)
    fix = f"\nfix: {finding.remedy.summary}" if finding.remedy else ""
    message = f"{where}: {finding.message}{fix}" if where else f"{finding.message}{fix}"
    return f"::{_COMMAND[finding.severity]} {written}::{printable(message, keep=_BREAK).translate(_DATA)}"
