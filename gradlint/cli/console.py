"""How the command line writes: to what width, in which colours, to whom."""

from __future__ import annotations

import os
import shutil
import sys

import click

from gradlint.report import printable

WIDTH, WIDEST = 80, 100


def put(text: str, *, color: bool) -> None:
    """Write to stdout, whatever its encoding; a reader that has gone away, as `head` does, is no error."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        click.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=False, color=color)
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def is_colored(choice: str) -> bool:
    """Whether to colour what goes to stdout, for a choice of "auto", "always" or "never"."""
    wanted = sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return choice == "always" or (choice == "auto" and wanted)


def columns() -> int:
    """Width of the report: that of the terminal, within reason."""
    return min(shutil.get_terminal_size((WIDTH, 24)).columns, WIDEST) if sys.stdout.isatty() else WIDTH


def speaks_unicode() -> bool:
    """Whether stdout can take more than ASCII."""
    return (sys.stdout.encoding or "").lower().startswith("utf")


def complain(text: str) -> None:
    """Tell the user on stderr what is wrong."""
    click.echo(printable(f"gradlint: {text}", keep="\n"), err=True)
