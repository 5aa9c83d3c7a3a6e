"""Which classes and functions are the user's own, and which globals they name."""

from __future__ import annotations

import sys
import sysconfig
import types
from collections.abc import Iterator
from functools import cache
from typing import Any

from gradlint.frontends.user_code import is_user_file


@cache
def _is_own_file(file: str) -> bool:
    """Return whether a file is the user's and in no installed package: the state of a package is its own affair."""
    paths = sysconfig.get_paths()
    return is_user_file(file) and not file.startswith((paths["purelib"], paths["platlib"]))


def is_user_class(kind: type) -> bool:
    """Return whether a class is defined in the user's own code: a file, a notebook or a prompt."""
    module = sys.modules.get(kind.__module__)
    file = getattr(module, "__file__", None)
    return kind.__module__ == "__main__" if file is None else _is_own_file(file)


def is_user_function(function: types.FunctionType) -> bool:
    """Return whether a function is defined in the user's own code."""
    file = function.__code__.co_filename
    return _is_own_file(file) or (file.startswith("<") and function.__module__ == "__main__")


def globals_of(function: types.FunctionType) -> frozenset[str]:
    """Return the names in the code of a function, and of functions inside it, that may be globals."""
    return _names(function.__code__)


@cache
def _names(code: types.CodeType) -> frozenset[str]:
    return frozenset(_all_names(code))


def _all_names(code: Any) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _all_names(constant)
