"""Registries of functions by operator. An operator without a function of its own uses that of its kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

from gradlint.ops.operator import Kind
from gradlint.ops.table import operator

F = TypeVar("F", bound=Callable[..., Any])


class Dispatch(Generic[F]):
    """A registry of functions by operator name and by kind.

    Each function is registered where it is defined:

    @TRANSFER.rule(Kind.POOL, "upsample")
    def pool(call): ...
    """

    def __init__(self) -> None:
        self._by_name: dict[str, F] = {}
        self._by_kind: dict[Kind, F] = {}

    def rule(self, *of: str) -> Callable[[F], F]:
        """Register the decorated function for kinds and names of operators.

        Raises:
            ValueError: A kind or a name already has a function.
        """

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
        """Return the function that is registered for the name of an operator, or None."""
        return self._by_name.get(name)

    def find(self, name: str) -> F | None:
        """Return the function that is registered for the name of an operator, or else for its kind; None without both."""
        return self._by_name.get(name) or self._by_kind.get(operator(name).kind)
