"""What else is looked at during the passes of the probe, one small observer for each concern.

An observer sees the tensors of one pass. It keeps numbers, never tensors, and does little work: it is part of every check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from torch import Tensor

from gradlint.ops import Operator
from gradlint.probe.dead_units import UnitObserver
from gradlint.structure import Structure


class Observer(Protocol):
    """One concern during one pass; `field` names the field of Measurement that it fills."""

    field: ClassVar[str]

    def forward(self, node: str, outputs: Sequence[Tensor | None], inputs: Sequence[Tensor | None]) -> None:
        """See a node's outputs by port, and what it read. Integers are shown too."""

    def backward(self, node: str, port: int, gradient: Tensor) -> None:
        """See the gradient of one output."""

    def restart(self) -> None:
        """Forget the pass: it starts again from the inputs."""

    @classmethod
    def summary(cls, passes: Sequence[Self], structure: Structure) -> Any:
        """What the passes, one for each seed, say together; None for nothing."""


@runtime_checkable
class Reader(Protocol):
    """An observer that is told what runs: `operators` gives those of a node, as far as its id tells while a graph is captured."""

    operators: Callable[[str], Sequence[Operator]]


OBSERVERS: tuple[type[Observer], ...] = (UnitObserver,)


def summaries(passes: Sequence[Sequence[Observer]], structure: Structure) -> Mapping[str, Any]:
    """The fields of a Measurement that observers fill, from those of each seed in the order of OBSERVERS."""
    return {kind.field: kind.summary([one[index] for one in passes], structure) for index, kind in enumerate(OBSERVERS)}
