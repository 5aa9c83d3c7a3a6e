"""From reports to text. Each module of `gradlint.report.formats` is an output format."""

from __future__ import annotations

import re
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradlint.result import TargetReport

DEFAULT = "full"
_FORMATS = "gradlint.report.formats"
_DISTRIBUTION = "gradlint-nn"
# What CI systems read out of a log, with or without a word in between: ::error::, ##[error], ##vso[...], ##teamcity[...]. The
# colons of std::move stay, unless a word that GitHub knows follows them.
_COMMAND = re.compile(
    r"(?<!\w)::|::(?!\w)|::(?=(?:debug|echo|endgroup|error|group|notice|warning)\b|(?:add|remove|save|set|stop)-)|##(?=[\w.]*\[)",
    re.IGNORECASE,
)
# Letters and marks that show nothing, although Unicode calls them printable
_INVISIBLE = frozenset(map(chr, (0x34F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0))) | frozenset(
    map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0)))
)


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
    r"""Return a text that neither a terminal nor a CI system obeys, for everything that a file or a user's model names.

    Characters that are not seen as themselves (controls, line breaks, marks of direction, surrogates, blanks other than the
    plain one), except those in `keep`, become their escapes, as in `\x1b`. So does the second sign of what starts a workflow
    command. Texts that are printable already are returned unchanged.
    """
    if not text.isprintable() or not (text.isascii() or _INVISIBLE.isdisjoint(text)):
        text = "".join(
            char if char in keep or (char.isprintable() and char not in _INVISIBLE) else _escape(char) for char in text
        )
    return _COMMAND.sub(lambda found: f"{found[0][0]}\\x{ord(found[0][1]):02x}", text)


def _escape(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # how Python keeps a byte of a file name that is not text
        return f"\\x{code - 0xDC00:02x}"
    return char.encode("unicode_escape").decode()


def tool_version() -> str:
    """Return the version of gradlint, from the metadata of the installed distribution or else from `pyproject.toml`."""
    from importlib import metadata  # noqa: PLC0415 - slow, and not needed to show help

    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        import tomllib  # noqa: PLC0415

        project = Path(__file__).parents[2] / "pyproject.toml"
        return str(tomllib.loads(project.read_text(encoding="utf-8"))["project"]["version"])
