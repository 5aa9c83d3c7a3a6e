"""Settings of a process that checks models and then ends. A program that calls gradlint keeps its own."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Sequence

_SELDOM = (100_000, 50, 100)
_THREADS = ("OPENBLAS_NUM_THREADS", "GOTO_NUM_THREADS", "OMP_NUM_THREADS")


def begin(arguments: Sequence[str]) -> None:
    """Collect garbage seldom where nothing is probed: modules and graphs stay until the end."""
    if "--no-probe" in arguments:
        gc.set_threshold(*_SELDOM)


def end() -> None:
    """Leave everything to the operating system: the passes that Python makes when it ends cost a tenth of a short run."""
    gc.freeze()


def import_numpy() -> None:
    """Import numpy with one thread for its BLAS, unless the user has chosen a number or numpy is there.

    The products of a static check are small: threads spend their time waiting for one another. The variable is read once and
    taken back, so that child processes and torch do not see it.
    """
    if "numpy" in sys.modules or any(name in os.environ for name in _THREADS):
        return
    os.environ[_THREADS[0]] = "1"
    try:
        import numpy as np  # noqa: F401, PLC0415 - this is where it is wanted
    finally:
        del os.environ[_THREADS[0]]
