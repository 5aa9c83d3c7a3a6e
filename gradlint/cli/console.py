"""Console output: streams, width, colors and encoding."""

from __future__ import annotations

import os
import sys
from contextlib import suppress

import click

from gradlint.errors import ForwardError, GradlintError
from gradlint.report import printable

WIDTH, WIDEST = 80, 100


def put(text: str, *, color: bool) -> None:
    """Write `text` to stdout, escaping characters that its encoding lacks. A closed pipe, as after `head`, is no error."""
    encoding = sys.stdout.encoding or "utf-8"
    try:
        click.echo(text.encode(encoding, "backslashreplace").decode(encoding), nl=False, color=color)
        sys.stdout.flush()
    except BrokenPipeError:
        give_up_stdout()


def give_up_stdout() -> None:
    """Send to nowhere what stdout did not take, so that Python does not try again when it ends."""
    with suppress(OSError, ValueError):  # it may be closed, or no file
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
    """Print an error message or a remark on stderr. Its lines are kept: what they name has to be printable before."""
    with suppress(OSError):  # there is nobody to tell
        click.echo(printable(f"gradlint: {text}", keep="\n"), err=True)


def said(message: str, *more: str | None) -> str:
    """Return a message with a line for each of `more`. A line break in one of them cannot make it look like another line."""
    first, *rest = message.split("\n")
    quoted = [f"  | {printable(line)}" for line in rest if line.strip()]
    return "\n".join([printable(first), *quoted, *(f"  {printable(text)}" for text in more if text)])


def explained(error: GradlintError, target: str = "") -> str:
    """Return the error message for one target, or for all: what is wrong, where, and what to do next."""
    message = str(error.args[0])
    about = "" if message.startswith(target) else ": "
    message = f"{printable(target)}{about}{message.removeprefix(target)}"
    where = error.where if isinstance(error, ForwardError) else None
    return said(message, f"at {where}" if where and where not in message else None, error.hint)


def print_traceback() -> None:
    """Print the traceback of the exception that is handled."""
    import traceback  # noqa: PLC0415 - for --debug

    with suppress(OSError):
        click.echo(printable(traceback.format_exc(), keep="\n"), err=True, nl=False)
