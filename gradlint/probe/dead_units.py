"""Units that pass no gradient: counted at every activation that can have them."""

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

_NONE = (0.0, 0.0)  # for an activation with one flat side
_FEW = 3  # indices of each axis that are looked at first
_OVER_CHANNELS = frozenset({"batch_norm", "group_norm", "instance_norm", "local_response_norm"})


@dataclass
class _Record:
    """One activation in one pass: by unit, whether its slope was zero, and whether its value never changed."""

    dead: NDArray[np.bool_]
    constant: NDArray[np.bool_]
    low: NDArray[np.float64]
    samples: int


class UnitObserver:
    """An observer (see `probe.observers`) of dead and constant units."""

    field: ClassVar[str] = "units"

    def __init__(self) -> None:
        self.operators: Callable[[str], Sequence[Operator]] = lambda _: ()
        self._seen: dict[str, _Record] = {}
        self._channels = False  # whether the last layer that ran put its units on axis 1

    def forward(self, node: str, outputs: Sequence[Tensor | None], inputs: Sequence[Tensor | None]) -> None:
        """Count at activations; layers tell where the units of what follows are."""
        del inputs
        for row in self.operators(node):
            if row.kind is Kind.CONV or row.name in _OVER_CHANNELS:
                self._channels = True
            elif row.kind in {Kind.LINEAR, Kind.ATTENTION} or row.name in {"layer_norm", "rms_norm"}:
                self._channels = False
            elif row.dead and outputs:
                self._look(node, row, outputs[0])

    def backward(self, node: str, port: int, gradient: Tensor) -> None:
        """Nothing: a slope of zero shows in the values."""

    def restart(self) -> None:
        """Forget the pass."""
        self._seen.clear()

    def _look(self, node: str, row: Operator, output: Tensor | None) -> None:
        if output is None or output.ndim < 2 or not output.numel() or not output.is_floating_point() or not output.requires_grad:
            return
        record = _record(output.detach(), 1 if self._channels else -1, row)
        before = self._seen.get(node)
        if before is not None and before.dead.shape == record.dead.shape:  # a loop's body: dead in every iteration
            record.constant &= before.constant & (record.low == before.low)
            record.dead &= before.dead
            record.samples += before.samples
        self._seen[node] = record

    @classmethod
    def summary(cls, passes: Sequence[Self], structure: Structure) -> tuple[Units, ...]:
        """Shares of units by activation of the signal, in execution order, over the seeds that saw the same units."""
        found = []
        for node, first in passes[0]._seen.items():  # noqa: SLF001 - of its own class
            records = [one._seen[node] for one in passes if node in one._seen]  # noqa: SLF001
            records = [record for record in records if record.dead.shape == first.dead.shape]
            if node not in structure.signal_set or not operator(structure.graph[node].op).dead:
                continue
            dead, constant = (float(median(getattr(r, name).mean() for r in records)) for name in ("dead", "constant"))
            always = float(np.logical_and.reduce([record.dead for record in records]).mean())
            found.append(Units(node, first.dead.size, first.samples, dead, always, constant))
        return tuple(found)


def _record(values: Tensor, axis: int, row: Operator) -> _Record:
    """What is not so for a few values of a unit is not so for all: only the other units are looked at in full."""
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
    """By unit: whether it is dead, whether it is constant, its least value.

    A unit is dead where it is constant at the floor of its activation or at zero, or does nothing but jump between two ends.
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
