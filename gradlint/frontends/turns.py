"""One check at a time: the lock of this process for what torch and Python have once for all threads."""

from __future__ import annotations

import os
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_TURN = threading.RLock()


@contextmanager
def turn() -> Iterator[None]:
    """Wait until no other thread checks a model, and hold the others off while the body of the context runs."""
    with _TURN:
        yield


def _renewed() -> None:
    """Forget a lock that another thread held when this process was forked, since nobody would ever release it."""
    global _TURN  # noqa: PLW0603
    _TURN = threading.RLock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renewed)


def own_thread() -> Callable[[], bool]:
    """Return a function that says whether it is called in the thread that called `own_thread`."""
    own = threading.get_ident()
    return lambda: threading.get_ident() == own


class _Silent:
    """The pattern of a warning filter. It matches all messages of one thread, while it is `active`."""

    def __init__(self) -> None:
        self.active = True
        self._own = own_thread()

    def match(self, _text: str) -> bool:
        return self.active and self._own()


@contextmanager
def silent() -> Iterator[None]:
    """Ignore the warnings of this thread while the body of the context runs.

    `warnings.simplefilter` would hide those of other threads too, and hide them for good where contexts of two threads overlap.
    """
    pattern = _Silent()
    entry: Any = ("ignore", pattern, Warning, None, 0)
    module: Any = warnings  # its `filters` are a list, and not the sequence that types say
    filters = module.filters
    filters.insert(0, entry)
    _filters_changed()
    try:
        yield
    finally:
        pattern.active = False
        for table in (filters, module.filters):
            if entry in table:
                table.remove(entry)
        _filters_changed()


def _filters_changed() -> None:
    """Make the module warnings forget which warnings it has shown, and read the filters again."""
    with warnings.catch_warnings():
        pass
