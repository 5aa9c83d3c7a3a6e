"""Find the lines of the user's own code in call stacks and tracebacks."""

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

_GRADLINT_ROOT = str(Path(__file__).parents[1]) + os.sep


@cache
def _library_roots() -> tuple[str, ...]:
    spec = importlib.util.find_spec("torch")
    torch_roots = [root + os.sep for root in (spec.submodule_search_locations or ())] if spec else []
    return (_GRADLINT_ROOT, *torch_roots)


@cache
def is_user_file(file: str) -> bool:
    """Return whether `file` counts as the user's code.

    Files of torch, of gradlint and of the standard library do not, nor does generated code. Other installed packages do.
    """
    if file.startswith(("<", *_library_roots())):
        return False
    inside_standard = file.startswith(sysconfig.get_paths()["stdlib"] + os.sep)
    return not inside_standard or f"{os.sep}site-packages{os.sep}" in file


@cache
def shown(file: str) -> str:
    """Return `file` as reports show it: relative to the working directory if it lies inside, and absolute otherwise."""
    path = Path(file).resolve()
    return path.relative_to(Path.cwd()).as_posix() if path.is_relative_to(Path.cwd()) else str(path)


def calling_line(depth: int, stop: CodeType | None = None) -> Source | None:
    """Return the innermost line of user code among the callers, or None.

    The search skips the `depth` innermost callers and ends at the frame that runs the code object `stop`.
    """
    frame: FrameType | None = sys._getframe(depth + 1)  # noqa: SLF001 - `inspect.stack` would read source files
    while frame is not None and frame.f_code is not stop:
        if is_user_file(frame.f_code.co_filename):
            return Source(shown(frame.f_code.co_filename), frame.f_lineno)
        frame = frame.f_back
    return None


def raising_line(error: BaseException) -> Source | None:
    """Return the innermost line of user code in the traceback of `error`, or None. A syntax error has the line at fault."""
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        return Source(shown(error.filename), error.lineno)
    for frame, line in reversed(list(traceback.walk_tb(error.__traceback__))):
        if is_user_file(frame.f_code.co_filename):
            return Source(shown(frame.f_code.co_filename), line)
    return None


def described(error: BaseException) -> str:
    """Return an exception as the last line of its traceback, "ValueError: message"."""
    return "".join(traceback.format_exception_only(error)[-1:]).strip()
