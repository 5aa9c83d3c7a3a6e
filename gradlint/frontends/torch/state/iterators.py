"""Iterators without copies: stand-ins that know whether they were used, and where a generator stands."""

from __future__ import annotations

import types
from collections.abc import Iterator
from typing import Any

GENERATORS = (types.GeneratorType, types.AsyncGeneratorType, types.CoroutineType)


class Watched(Iterator[Any]):
    """Stands for an iterator that has no copy. `used` says whether it was advanced."""

    __slots__ = ("_iterator", "used")

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator
        self.used = False

    def __next__(self) -> Any:
        self.used = True
        return next(self._iterator)

    def __getattr__(self, name: str) -> Any:
        self.used = self.used or name in {"send", "throw", "close"}
        return getattr(self._iterator, name)


def place(generator: Any) -> Any:
    """Return where a generator stands: its instruction and its local variables, by identity."""
    frame = next(getattr(generator, name) for name in ("gi_frame", "ag_frame", "cr_frame") if hasattr(generator, name))
    return None if frame is None else (frame.f_lasti, {name: id(value) for name, value in frame.f_locals.items()})
