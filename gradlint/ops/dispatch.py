"""How a room finds what it has to say of an operator: by the operator's name, or else by its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from gradlint.ops.operator import Kind
from gradlint.ops.table import operator

F = TypeVar("F", bound=Callable[..., Any])


class Dispatch(Generic[F]):
    """Functions by operator. A family's file registers its own, so that a new one is known where it stands.

    @TRANSFER.rule(Kind.POOL, "upsample")
    def pool(call): ...
    """

    def __init__(self) -> None:
        self._by_name: dict[str, F] = {}
        self._by_kind: dict[Kind, F] = {}

    def rule(self, *of: str) -> Callable[[F], F]:
        """Register the decorated function for kinds and for names of operators; raises ValueError where there is one already."""

        def register(function: F) -> F:
            for key in of:
                if key in self._by_kind if isinstance(key, Kind) else key in self._by_name:
                    raise ValueError(f"{key!r} has a rule already, {function.__name__} is a second one")
                if isinstance(key, Kind):
                    self._by_kind[key] = function
                else:
                    self._by_name[key] = function
            return function

        return register

    def own(self, name: str) -> F | None:
        """The function that was registered for an operator by its name."""
        return self._by_name.get(name)

    def find(self, name: str) -> F | None:
        """The function for an operator: its own, or that of its kind; None where there is neither."""
        return self._by_name.get(name) or self._by_kind.get(operator(name).kind)
