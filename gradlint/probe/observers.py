"""Observers: they compute further statistics during the passes of the probe, one class per statistic.

An observer sees the tensors of one pass. It must keep numbers, not tensors, and it must be cheap, because it is part of every
check.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, Self, runtime_checkable

from torch import Tensor

from gradlint.ops import Operator
from gradlint.probe.dead_units import UnitObserver
from gradlint.structure import Structure


class Observer(Protocol):
    """An observer of one pass. `field` is the name of the field of `Measurement` that the class fills."""

    field: ClassVar[str]

    def forward(self, node: str, outputs: Sequence[Tensor | None], inputs: Sequence[Tensor | None]) -> None:
        """Receive the outputs of a node, by port, and its inputs. Integer tensors are included."""

    def backward(self, node: str, port: int, gradient: Tensor) -> None:
        """Receive the gradient with respect to output `port` of a node."""

    def restart(self) -> None:
        """Discard everything received so far: the pass starts again from the inputs."""

    @classmethod
    def summary(cls, passes: Sequence[Self], structure: Structure) -> Any:
        """Combine the observers of all passes, one per seed, to the value of the field; None if there is nothing to report."""


@runtime_checkable
class NeedsOperators(Protocol):
    """An observer that needs the operators of nodes.

    The probe sets `operators` to a function of the node id. It returns several operators if only the id is known, because the
    graph is still being captured.
    """

    operators: Callable[[str], Sequence[Operator]]


OBSERVERS: tuple[type[Observer], ...] = (UnitObserver,)


def summaries(passes: Sequence[Sequence[Observer]], structure: Structure) -> Mapping[str, Any]:
    """Return the fields of `Measurement` that observers fill. Each element of `passes` has the observers of one seed."""
    return {kind.field: kind.summary([one[index] for one in passes], structure) for index, kind in enumerate(OBSERVERS)}
