"""Which parameters learn: those with a gradient, those that wait for the first updates, and those that never get one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Trainability:
    """How many parameters learn, on inputs exactly as they were given.

    Attributes:
        sizes: Number of elements of each trainable parameter, by name.
        frozen: Number of elements of the parameters that do not require grad.
        opened: Number of virtual steps after which a parameter gets a gradient, by name, for those whose gradient is zero at
            first. A virtual step moves all parameters that have a gradient a little; it is undone.
        stuck: Names of parameters of layers that ran and that still get no gradient.
        unused: Names of parameters that no operator used.
        numbers: Whether the module returns Python numbers or arrays of floats, through which no gradient comes back.
    """

    sizes: Mapping[str, int] = field(default_factory=dict)
    frozen: int = 0
    opened: Mapping[str, int] = field(default_factory=dict)
    stuck: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    numbers: bool = False

    @property
    def learning(self) -> int:
        """Number of elements that get a gradient, at first or after virtual steps."""
        return sum(self.sizes.values()) - self.size(self.stuck) - self.size(self.unused)

    def size(self, names: tuple[str, ...]) -> int:
        """Return the number of elements of some parameters."""
        return sum(self.sizes.get(name, 0) for name in names)

    @property
    def learns_nothing(self) -> bool:
        """Whether a model that has parameters cannot learn at all."""
        return bool(self.frozen or self.sizes) and self.learning == 0
