"""What the user's code, or torch in its name, warns of while it is measured."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_ABOUT_THE_CODE = (DeprecationWarning, FutureWarning, PendingDeprecationWarning)


@contextmanager
def captured_warnings() -> Iterator[list[str]]:
    """A context that collects warnings instead of printing them at every pass; filters decide as elsewhere.

    Those that differ in numbers alone are one: a loss is asked about batches of several sizes.
    """
    found: list[str] = []
    known: set[str] = set()

    def hear(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        text = str(message).split("\n")[0]
        pattern = re.sub(r"\d+", "#", text)
        if not issubclass(category, _ABOUT_THE_CODE) and pattern not in known:
            known.add(pattern)
            found.append(text)

    with warnings.catch_warnings():
        warnings.showwarning = hear
        yield found
