"""Count the units that pass no gradient, at every activation that can have such units."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from gradlint.measurements.units import Units
from gradlint.ops import Kind, Operator, operator
from gradlint.structure import Structure

_NONE = (0.0, 0.0)  # bounds of an activation that is flat on one side only
_FEW = 3  # indices of each axis in the sample that is examined first
_OVER_CHANNELS = frozenset({"batch_norm", "group_norm", "instance_norm", "local_response_norm"})


@dataclass
class _Record:
    """The units of one activation in one pass.

    Attributes:
        dead: Whether each unit is dead, of shape (units,).
        constant: Whether each unit has the same value throughout, of shape (units,).
        low: Least value of each unit, of shape (units,).
        samples: Number of values of each unit.
    """

    dead: NDArray[np.bool_]
    constant: NDArray[np.bool_]
    low: NDArray[np.float64]
    samples: int


class UnitObserver:
    """An observer of dead and constant units; see `gradlint.probe.observers.Observer`."""

    field: ClassVar[str] = "units"

    def __init__(self) -> None:
        self.operators: Callable[[str], Sequence[Operator]] = lambda _: ()
        self._seen: dict[str, _Record] = {}
        self._channels = False  # whether the last layer that ran has its units on axis 1

    def forward(self, node: str, outputs: Sequence[Tensor | None], inputs: Sequence[Tensor | None]) -> None:
        """Count the units of an activation. A layer determines the axis of the units for the activations after it."""
        del inputs
        for row in self.operators(node):
            if row.kind is Kind.CONV or row.name in _OVER_CHANNELS:
                self._channels = True
            elif row.kind in {Kind.LINEAR, Kind.ATTENTION} or row.name in {"layer_norm", "rms_norm"}:
                self._channels = False
            elif row.dead and outputs:
                self._look(node, row, outputs[0])

    def backward(self, node: str, port: int, gradient: Tensor) -> None:
        """Ignore the gradient, because values alone show that a derivative is zero."""

    def restart(self) -> None:
        """Discard the counts of the pass."""
        self._seen.clear()

    def _look(self, node: str, row: Operator, output: Tensor | None) -> None:
        if output is None or output.ndim < 2 or not output.numel() or not output.is_floating_point() or not output.requires_grad:
            return
        record = _record(output.detach(), 1 if self._channels else -1, row)
        before = self._seen.get(node)
        if before is not None and before.dead.shape == record.dead.shape:  # in a loop, a unit is dead if every iteration says so
            record.constant &= before.constant & (record.low == before.low)
            record.dead &= before.dead
            record.samples += before.samples
        self._seen[node] = record

    @classmethod
    def summary(cls, passes: Sequence[Self], structure: Structure) -> tuple[Units, ...]:
        """Return the shares of dead and constant units of each activation on the signal, in execution order.

        Shares are medians over the seeds in which the activation has the same number of units as in the first one.
        """
        found = []
        for node, first in passes[0]._seen.items():  # noqa: SLF001 - an attribute of the same class
            records = [one._seen[node] for one in passes if node in one._seen]  # noqa: SLF001
            records = [record for record in records if record.dead.shape == first.dead.shape]
            if node not in structure.signal_set or not operator(structure.graph[node].op).dead:
                continue
            dead, constant = (float(median(getattr(r, name).mean() for r in records)) for name in ("dead", "constant"))
            always = float(np.logical_and.reduce([record.dead for record in records]).mean())
            found.append(Units(node, first.dead.size, first.samples, dead, always, constant))
        return tuple(found)


def _record(values: Tensor, axis: int, row: Operator) -> _Record:
    """Return the record of one activation with its units on `axis`.

    A unit that is neither dead nor constant in a small sample is neither in all values, so only the other units are examined
    in full.
    """
    axis %= values.ndim
    few = values[tuple(slice(None, None, 1 if d == axis else max(size // _FEW, 1)) for d, size in enumerate(values.shape))]
    ends = row.ends or (float(few.min()), float(few.max()))
    bounds = ends if row.dead == "ends" else _NONE
    dead, constant, low = _judged(few, axis, bounds)
    doubtful = (dead | constant).nonzero()[:, 0]
    if len(doubtful):
        whole = _judged(values.index_select(axis, doubtful), axis, bounds)
        for part, judged in zip((dead, constant, low), whole, strict=True):
            part[doubtful] = judged
    return _Record(dead.cpu().numpy(), constant.cpu().numpy(), low.double().cpu().numpy(), values.numel() // values.shape[axis])


def _judged(values: Tensor, axis: int, bounds: tuple[float, float]) -> tuple[Tensor, Tensor, Tensor]:
    """Return for each unit whether it is dead, whether it is constant, and its least value, each of shape (units,).

    A unit is dead if all its values are equal and at most 0, or if `bounds` are given and each value is one of the two.
    """
    others = [index for index in range(values.ndim) if index != axis]
    high, low = values.amax(others), values.amin(others)
    constant = high == low
    if bounds == _NONE:
        return constant & (low <= 0.0), constant, low
    ends = ((low == bounds[0]) | (low == bounds[1])) & ((high == bounds[0]) | (high == bounds[1]))
    if bool((ends & ~constant).any()):
        ends &= ((values - bounds[0]) * (bounds[1] - values)).amax(others) <= 0.0
    return ends, constant, low
