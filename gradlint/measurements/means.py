"""Whether the means of training fit: what optimizers hold, how low a loss comes, and weights that stand bare."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Held:
    """Which trainable weights of a model the optimizers of the user hold.

    Attributes:
        held: Number of these weights.
        missing: Names of the trainable weights that none of them holds.
        foreign: Number of weights that they hold and the model does not have.
        decay: Weight decay by name, of the weights that are held and shrink.
    """

    held: int
    missing: tuple[str, ...] = ()
    foreign: int = 0
    decay: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Floor:
    """How low the loss of a classifier comes, by trying outputs that predict the target.

    Attributes:
        certain: Loss of the certain probabilities, 0 and 1, of the target. None if the loss does not take them.
        logits: Lowest loss of logits of the target. None if the loss does not take them.
        bottomless: Whether the loss falls below zero in proportion to the output.
        bounded: Whether the output is one of probabilities, or of logarithms of them.
    """

    certain: float | None = None
    logits: float | None = None
    bottomless: bool = False
    bounded: bool = False

    @property
    def takes_logits(self) -> bool:
        """Whether the loss is made for logits: those of the target cost clearly less than its probabilities."""
        if self.certain is None or self.logits is None:
            return False
        return 0.0 <= self.logits < 0.75 * self.certain


@dataclass(frozen=True, slots=True)
class Bare:
    """A weight that is the argument of a function which breaks at zero, as it is.

    Attributes:
        weight: Name of the weight.
        function: Name of the function.
        least: Smallest absolute value of an element.
        gradient: Largest absolute gradient of an element of the loss; None if it is not known.
    """

    weight: str
    function: str
    least: float
    gradient: float | None = None
