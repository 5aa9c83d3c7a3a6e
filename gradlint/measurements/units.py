"""Units and cuts that pass no gradient, and weights whose gradient is zero by construction."""

from __future__ import annotations

from dataclasses import dataclass

ASIDE = "a result that reaches no output"
"""Cause of weights whose layer ran for nothing that is returned: what is kept as an attribute may still be part of a loss."""

ONE_POSITION = "attention to one position"
"""Cause of queries and keys that sequences of one token teach nothing; longer ones may."""


@dataclass(frozen=True, slots=True)
class Units:
    """The units (features or channels) of one activation, each over the whole batch and all positions.

    Attributes:
        node: Id of the activation.
        count: Number of units.
        samples: Number of values of each unit.
        dead: Share of the units whose derivative is zero for every value, the median over seeds.
        always: Share of the units that are dead in every seed.
        constant: Share of the units that have one and the same value throughout, including dead ones.
    """

    node: str
    count: int
    samples: int
    dead: float
    always: float
    constant: float


@dataclass(frozen=True, slots=True)
class ZeroGradient:
    """Weights whose gradient is zero by construction, and the operator that is the reason.

    `cause` is "zero-initialized branch" or "zero-initialized head", whose weights learn from the second update on, or "bias
    before a norm", which has no effect on the output.
    """

    node: str
    cause: str
    weights: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Cut:
    """A node at which the gradient stops although there are trainable weights before it.

    Attributes:
        node: Id of the node.
        cause: "detach", "argmax", "no-grad region", "dead relu", "mul with zero gradient", ...
        starved: Names of the weights that get no gradient because of it.
        on_spine: Whether every path from input to output passes it.
        lasting: Whether it stays so for other inputs, of an operator whose gradient depends on values.
    """

    node: str
    cause: str
    starved: tuple[str, ...] = ()
    on_spine: bool = False
    lasting: bool = False

    @property
    def depends_on_values(self) -> bool:
        """Whether the operator has a gradient, and passed none for the values that it met."""
        return self.cause == ONE_POSITION or self.cause.startswith("dead ") or self.cause.endswith(" with zero gradient")

    @property
    def stops_all(self) -> bool:
        """Whether no weight before the cut can learn."""
        return (self.on_spine or self.lasting) and bool(self.starved)
