"""Collect the warnings that the user's code, or torch on its behalf, issues while it is measured."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from gradlint.frontends.turns import own_thread

_ABOUT_THE_CODE = (DeprecationWarning, FutureWarning, PendingDeprecationWarning)


@contextmanager
def captured_warnings() -> Iterator[list[str]]:
    """Collect warnings in a list instead of printing them, while the body of the context runs.

    The usual warning filters apply. Deprecations and similar remarks on the code are ignored. Warnings that differ only in
    numbers are collected once, because a loss is called on batches of several sizes. Those of other threads are shown as usual.
    """
    found: list[str] = []
    known: set[str] = set()

    mine, usual = own_thread(), warnings.showwarning

    def record(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        if not mine():
            usual(message, category, *where, **more)
            return
        text = str(message).split("\n")[0]
        pattern = re.sub(r"\d+", "#", text)
        if not issubclass(category, _ABOUT_THE_CODE) and pattern not in known:
            known.add(pattern)
            found.append(text)

    with warnings.catch_warnings():
        warnings.showwarning = record
        yield found
