"""Which lines are the user's, and how a report shows them."""

from __future__ import annotations

import importlib.util
import os
import sys
import sysconfig
import traceback
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

from gradlint.graph import Source

_OURS = str(Path(__file__).parents[1]) + os.sep


@cache
def _library_roots() -> tuple[str, ...]:
    spec = importlib.util.find_spec("torch")
    torch_roots = [root + os.sep for root in (spec.submodule_search_locations or ())] if spec else []
    return (_OURS, *torch_roots)


@cache
def is_user_file(file: str) -> bool:
    """Whether a line of `file` may be shown as the user's: not torch's, gradlint's, the standard library's or generated."""
    if file.startswith(("<", *_library_roots())):
        return False
    inside_standard = file.startswith(sysconfig.get_paths()["stdlib"] + os.sep)
    return not inside_standard or f"{os.sep}site-packages{os.sep}" in file


@cache
def shown(file: str) -> str:
    """`file` as reports show it: relative to the working directory when it lies inside."""
    path = Path(file).resolve()
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else str(path)


def calling_line(depth: int, stop: CodeType | None = None) -> Source | None:
    """The innermost user line among the callers, from `depth` frames up to the frame that runs `stop`."""
    frame: FrameType | None = sys._getframe(depth + 1)  # noqa: SLF001 - the stack without the cost of reading source files
    while frame is not None and frame.f_code is not stop:
        if is_user_file(frame.f_code.co_filename):
            return Source(shown(frame.f_code.co_filename), frame.f_lineno)
        frame = frame.f_back
    return None


def raising_line(error: BaseException) -> Source | None:
    """The innermost user line in the traceback of `error`; for a syntax error the line that does not parse."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return Source(shown(error.filename), error.lineno)
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if is_user_file(frame.f_code.co_filename):
            return Source(shown(frame.f_code.co_filename), line)
    return None


def described(error: BaseException) -> str:
    """`error` in one line, type first, as Python ends a traceback."""
    return "".join(traceback.format_exception_only(error)[-1:]).strip()
