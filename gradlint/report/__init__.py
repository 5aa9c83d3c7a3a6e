"""One module per output format, each `render(reports, *, version, **options) -> str`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlint.result import TargetReport

FORMATS = {
    "full": "gradlint.report.terminal",
    "concise": "gradlint.report.concise",
    "json": "gradlint.report.json_report",
    "github": "gradlint.report.github",
}
_DISTRIBUTION = "gradlint-nn"


def render(output_format: str, reports: Sequence[TargetReport], **options: Any) -> str:
    """The reports as text in one of FORMATS; the module of the format is imported when it is asked for.

    Every format takes `version`, `show_refuted` and `timings`; the full report also `width`, `color` and `unicode`.
    """
    text: str = import_module(FORMATS[output_format]).render(reports, **{"version": tool_version()} | options)
    return text


def printable(text: str, *, keep: str = "") -> str:
    """The text without control characters but those in `keep`: names from model files must not steer a terminal or a log."""
    return "".join(char if char.isprintable() or char in keep else " " for char in text)


def tool_version() -> str:
    """The version of gradlint, from the installed distribution or from the checkout it runs in."""
    from importlib import metadata  # noqa: PLC0415 - slow, and not needed to show help

    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        import tomllib  # noqa: PLC0415
        from pathlib import Path  # noqa: PLC0415

        project = Path(__file__).parents[2] / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
