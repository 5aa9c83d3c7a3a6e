"""The time that a measurement may take: what it has not come to by then is left out, and said."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Budget:
    """A number of seconds, counted from when it is made.

    Attributes:
        seconds: The seconds.
        start: The time at which it was made, in seconds of the monotonic clock.
    """

    seconds: float = math.inf
    start: float = field(default_factory=time.monotonic)

    @property
    def end(self) -> float:
        """When the time is over, by the monotonic clock."""
        return self.start + self.seconds

    @property
    def is_spent(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() > self.end

    def lacks(self, *what: str) -> str:
        """Return the note that names what was not measured."""
        return f"the time limit of {self.seconds:g} s was reached: not measured: {', '.join(what)} (--time-limit allows more)"


ENDLESS = Budget()
"""The budget of a measurement without a time limit."""
