"""Exit codes, and settings of a process that ends after one command. A program that calls gradlint keeps its own."""

from __future__ import annotations

import gc
from collections.abc import Sequence

CLEAN, FAILED, NOT_ANALYZED, INTERRUPTED = 0, 1, 2, 130
_SELDOM = (100_000, 50, 100)


def begin(arguments: Sequence[str]) -> None:
    """Collect garbage seldom where nothing is probed: modules and graphs stay until the end."""
    if "--no-probe" in arguments or arguments[:1] == ["rule"]:
        gc.set_threshold(*_SELDOM)


def end() -> None:
    """Leave everything to the operating system: the passes that Python makes when it ends cost a tenth of a short run."""
    gc.freeze()
