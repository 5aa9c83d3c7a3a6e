"""What the benchmarks share: the option --quick, tables that print each row as soon as it is known, times, and memory."""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

Item = TypeVar("Item")


def parser(description: str | None, quick: str) -> argparse.ArgumentParser:
    """An argument parser with --quick; `quick` tells what that leaves out."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help=f"in under two minutes: {quick}")
    return made


def every(items: Sequence[Item], step: int) -> list[Item]:
    """Every `step`-th item, so that no choice of ours decides what a quick run sees."""
    return list(items[::step])


class Rows:
    """A table whose rows are printed, and flushed, one by one.

    A column is its heading or "heading:FORMAT", FORMAT being that of a string, such as "<20". By default the first column is 28
    characters wide, the others are as wide as their heading and aligned to the right. The last column may overflow.
    """

    def __init__(self, *columns: str, title: str = "") -> None:
        parts = [column.partition(":") for column in columns]
        usual = ["<28", *(f">{max(len(heading), 6)}" for heading, _, _ in parts[1:])]
        self._formats = [given or default for (_, _, given), default in zip(parts, usual, strict=True)]
        if title:
            print(f"\n{title}", flush=True)
        self.add(*(heading for heading, _, _ in parts))

    def add(self, *cells: object) -> None:
        """Print one row; cells that are left out at its end stay empty."""
        line = "  ".join(format(str(cell), style) for cell, style in zip(cells, self._formats, strict=False))
        print(line.rstrip(), flush=True)


def wall_seconds(run: Callable[[], object]) -> float:
    """Seconds of one call by the clock on the wall."""
    gc.collect()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def processor_seconds(run: Callable[[], object]) -> float:
    """Seconds of one call on all processors together."""
    gc.collect()
    start = time.process_time()
    run()
    return time.process_time() - start


def peak_growth(run: Callable[[], object]) -> float:
    """Megabytes by which one call raises the peak of this process's memory (Linux); ru_maxrss would count its parent's."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
    before = _peak()
    run()
    return _peak() - before


def _peak() -> float:
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return float(next(line for line in status if line.startswith("VmHWM")).split()[1]) / 1024
