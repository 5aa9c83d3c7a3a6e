"""The concise format, for editors and grep: one line per finding, `net.py:14: GLnnn error name [place] message`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gradlint.report import printable
from gradlint.report.wording import located, place, scored, shown, totals
from gradlint.result import TargetReport


def render(reports: Sequence[TargetReport], *, version: str, show_refuted: bool = False, **_: Any) -> str:  # noqa: ARG001
    """Return one line per finding and one per target, then the totals. A finding without a line of code shows its target."""
    lines = []
    for report in reports:
        for finding in shown(report, refuted=show_refuted):
            where, message = place(finding), finding.message.replace("\n", " ")
            spot = f" [{where}]" if where else ""
            cause = f" (caused by {finding.caused_by})" if finding.caused_by else ""
            code = f"{finding.rule} {finding.severity} {finding.name}"
            lines.append(printable(f"{located(finding) or report.target}: {code}{spot} {message}{cause}"))
        lines.append(printable(f"{report.target}: {report.verdict}, {scored(report)}"))
    return "\n".join([*lines, " ".join(filter(None, totals(reports, refuted=show_refuted))), ""])
