"""From reports to text. Each module of `gradlint.report.formats` is an output format."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlint.result import TargetReport

DEFAULT = "full"
_FORMATS = "gradlint.report.formats"
_DISTRIBUTION = "gradlint-nn"


def format_names() -> tuple[str, ...]:
    """Return the names of the output formats, the one for people first. They are the modules of `gradlint.report.formats`."""
    names = {path.stem for folder in import_module(_FORMATS).__path__ for path in Path(folder).glob("[a-z]*.py")}
    return tuple(sorted(names, key=lambda name: (name != DEFAULT, name)))


def render(output_format: str, reports: Sequence[TargetReport], **options: Any) -> str:
    """Return the reports as text in `output_format`, one of `format_names()`. The module of the format is imported on first use.

    Every format takes the options `version`, `show_refuted` and `timings`. The full report also takes `width` (in characters),
    `color` and `unicode`. Raises KeyError if the format is unknown.
    """
    if output_format not in format_names():
        raise KeyError(output_format)
    module = import_module(f"{_FORMATS}.{output_format}")
    text: str = module.render(reports, **{"version": tool_version()} | options)
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

        project = Path(__file__).parents[2] / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
