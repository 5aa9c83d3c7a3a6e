"""Exit codes, and what a process of one command does with its streams. A program that calls gradlint keeps its own."""

from __future__ import annotations

import errno
import gc
import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import click

from gradlint.report import printable

CLEAN, FAILED, NOT_ANALYZED, INTERRUPTED = 0, 1, 2, 130
_SELDOM = (100_000, 50, 100)


class _Closed(io.StringIO):
    """Stands for a stdout that is closed: to lose a report is an error."""

    encoding = "utf-8"

    def write(self, _: str) -> int:
        raise OSError(errno.EBADF, "stdout is closed")


def begin(arguments: Sequence[str]) -> None:
    """Occupy standard streams that are closed, and make warnings printable.

    Garbage is collected seldom where nothing is probed: modules and graphs stay until the end.
    """
    for number in range(3):  # else the next file to be opened would be taken for a stream
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    sys.stdout = sys.stdout or _Closed()
    sys.stderr = sys.stderr or open(os.devnull, "w", encoding="utf-8")  # noqa: PTH123, SIM115 - until the end
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    if "--no-probe" in arguments or arguments[:1] == ["rule"] or any(argument.endswith(".onnx") for argument in arguments):
        gc.set_threshold(*_SELDOM)


def end() -> None:
    """Leave everything to the operating system: the passes that Python makes when it ends cost a tenth of a short run."""
    gc.freeze()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:  # it was told, or there is nobody to tell; Python would exit with 120
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def _show_warning(message: Warning | str, category: type[Warning], filename: str, lineno: int, *_: Any) -> None:
    with suppress(OSError):
        click.echo(printable(f"{filename}:{lineno}: {category.__name__}: {message}"), err=True)
