"""Console output: streams, width, colors and encoding."""

from __future__ import annotations

import os
import sys

import click

from gradlint.report import printable

WIDTH, WIDEST = 80, 100


def put(text: str, *, color: bool) -> None:
    """Write `text` to stdout, escaping characters that its encoding lacks. A closed pipe, as after `head`, is no error."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        click.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=False, color=color)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_colored(choice: str) -> bool:
    """Return whether to color what goes to stdout, for a `choice` of "auto", "always" or "never"."""
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return choice == "always" or (choice == "auto" and wanted)


def columns() -> int:
    """Return the width of the report in characters: that of the terminal, at most 100, and 80 if stdout is no terminal."""
    if not sys.stdout.isatty():
        return WIDTH
    import shutil  # noqa: PLC0415 - it imports five modules for archives

    return min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDEST)


def supports_unicode() -> bool:
    """Return whether the encoding of stdout is a Unicode encoding."""
    return (sys.stdout.encoding or "").lower().startswith("utf")


def print_error(text: str) -> None:
    """Print an error message on stderr."""
    click.echo(printable(f"gradlint: {text}", keep="\n"), err=True)
