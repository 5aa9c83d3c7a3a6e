"""Output formats: one module per format, each with a function `render(reports, *, version, **options) -> str`."""

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
    """Return the reports as text in `output_format`, one of `FORMATS`. The module of the format is imported on first use.

    Every format takes the options `version`, `show_refuted` and `timings`. The full report also takes `width` (in characters),
    `color` and `unicode`. Raises KeyError if the format is unknown.
    """
    text: str = import_module(FORMATS[output_format]).render(reports, **{"version": tool_version()} | options)
    return text


def printable(text: str, *, keep: str = "") -> str:
    """Replace control characters, except those in `keep`, by blanks: a name in a model file must not control a terminal."""
    return "".join(char if char.isprintable() or char in keep else " " for char in text)


def tool_version() -> str:
    """Return the version of gradlint, from the metadata of the installed distribution or else from `pyproject.toml`."""
    from importlib import metadata  # noqa: PLC0415 - slow, and not needed to show help

    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        import tomllib  # noqa: PLC0415
        from pathlib import Path  # noqa: PLC0415

        project = Path(__file__).parents[2] / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
