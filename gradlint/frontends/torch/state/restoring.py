"""What is to be done on exit, each step whatever becomes of the others, and what could not be put back."""

from __future__ import annotations

from collections.abc import Callable


class Restoring:
    """Steps that restore something, in the order in which they were added.

    Attributes:
        left: What could not be restored, a sentence each.
    """

    def __init__(self) -> None:
        self.left: list[str] = []
        self._steps: list[tuple[str, Callable[[], None]]] = []

    def later(self, name: str, step: Callable[[], None]) -> None:
        """Add a step. `name` says what it restores."""
        self._steps.append((name, step))

    def say(self, sentence: str) -> None:
        """Add a sentence to `left`, once."""
        if sentence not in self.left:
            self.left.append(sentence)

    def restore(self) -> None:
        """Run all steps, also after one that raises."""
        for name, step in self._steps:
            try:
                step()
            except Exception as error:  # noqa: BLE001 - the other steps must run, and the report says what failed
                text = str(error).strip().split("\n")[0]
                self.say(f"{name} could not be restored: {type(error).__name__}" + (f": {text}" if text else ""))
        self._steps.clear()
