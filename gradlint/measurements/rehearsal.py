"""What the first updates did to a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from gradlint.measurements import is_surrogate

FLAT = 1e-3  # of the first loss
RISEN = 0.1  # of the first loss: what ends higher than that has not trained
ABOVE = 1.5  # times chance: what ends there knows less than nothing
CLEARLY = 1.25  # times the progress of another run


class Cause(StrEnum):
    """Why a rehearsal failed, as far as it could be told."""

    OPERATOR = "operator"  # one operator makes a NaN or an infinity of ordinary numbers
    PRECISION = "precision"  # half precision cannot hold the numbers, full precision can
    UNITS = "units"  # a layer of rectifiers is zero for the whole batch
    WARMUP = "warm-up"  # it trains when the learning rate rises from zero
    GROWTH = "growth"  # the gradient explodes at initialization already
    RATE = "rate"  # it trains at a lower learning rate
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class NonFiniteUpdate:
    """The first operator that is not finite. `node` is empty where it is part of the loss function.

    `operands` are the smallest and the largest value of each float operand, `source` the line where it is called, `backward`
    tells that its value is finite and its derivative is not. `squashed` is the softmax or sigmoid whose result it takes, if any.
    """

    node: str
    op: str
    kind: str  # "NaN" or "infinity"
    operands: tuple[tuple[float, float], ...] = ()
    source: str = ""
    backward: bool = False
    squashed: str = ""  # "softmax" or "sigmoid"


@dataclass(frozen=True, slots=True)
class Trial:
    """The same steps with one thing changed: the loss at the start and, on the same batches, at the end (NaN: not finite)."""

    change: str
    first: float
    last: float
    trains: bool
    lr: float

    @property
    def falls(self) -> bool:
        """Whether the loss came down at all."""
        return self.last < self.first - FLAT * abs(self.first)


@dataclass(frozen=True, slots=True)
class DeadUnits:
    """A layer of rectifiers: the share of its units that are zero for the whole batch, before and after the updates."""

    node: str
    count: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Optimizer steps that were taken and undone.

    `losses` and `gradient_norms` have one value before each update, the losses one more behind the last; norms are those over
    all weights, before clipping, and `layers` those of the weights whose norm rose most. `changes` has the largest change of a
    weight tensor in each update, relative to its norm at first. `first` and `last` are the median losses on the batches of the
    last quarter, before and after the updates. `diverged_at` counts the updates after which the loss was not finite or stayed
    over ten times the first one, or could not be computed, because of what `raised`. `behind` tells that it came down, or below
    `chance`, only with one of the `trials`, `stalled` that a loss at or above chance did not move at all, and `stopped` why not
    all steps were taken; `skipped` counts updates left out because gradients overflowed under a loss scale. `chance` is the loss
    of a prediction that says nothing, where it is known.
    """

    asked: int
    losses: tuple[float, ...]
    gradient_norms: tuple[float, ...]
    layers: Mapping[str, tuple[float, ...]]
    changes: tuple[float, ...]
    first: float
    last: float
    diverged_at: int | None = None
    behind: bool = False
    stalled: bool = False
    cause: Cause | None = None
    breach: NonFiniteUpdate | None = None
    dead: DeadUnits | None = None
    trials: tuple[Trial, ...] = field(default=())
    skipped: int = 0
    stands_in: str = ""
    stopped: str = ""
    raised: str = ""
    chance: float | None = None

    @property
    def steps(self) -> int:
        """How many updates were taken, those that were skipped included."""
        return len(self.losses) - 1

    @property
    def fails(self) -> bool:
        """Whether training would fail in this way."""
        return self.diverged_at is not None or self.dead is not None or self.behind or self.stalled

    @property
    def is_surrogate(self) -> bool:
        """Whether the loss was one that nobody asked for."""
        return is_surrogate(self.stands_in)

    @property
    def is_certain(self) -> bool:
        """Whether training fails: the loss that it will have diverges, a layer of rectifiers dies, or other steps would train."""
        return (
            self.diverged_at is not None or self.dead is not None or (self.behind and self._is_lost)
        ) and not self.is_surrogate

    @property
    def _is_lost(self) -> bool:
        """Whether the loss ends clearly higher than it began, or than chance."""
        return self.last > self.first + RISEN * abs(self.first) or (self.chance or math.inf) * ABOVE < self.last

    @property
    def floor(self) -> float:
        """What a loss must fall below to have learned: chance, where a model starts above it."""
        return self.first if self.chance is None else min(self.first, self.chance)

    @property
    def finite(self) -> bool:
        """Whether every loss and every gradient was finite."""
        return all(map(math.isfinite, (*self.losses, *self.gradient_norms)))

    @property
    def steepest(self) -> str | None:
        """The weight whose gradient norm rose most; None where none rose."""
        rises = {name: rise for name, norms in self.layers.items() if (rise := rise_of(norms)) > 1.0}
        return max(rises, key=rises.__getitem__, default=None)

    @property
    def cure(self) -> Trial | None:
        """The first change that made it train, or one behind it that clearly beats all before it."""
        best = None
        for trial in self.trials:
            if best is None:
                best = trial if trial.trains else None
            elif self.floor - trial.last > CLEARLY * (self.floor - best.last):
                best = trial
            else:
                break
        return best


def rise_of(norms: Sequence[float]) -> float:
    """How many times the first of them the largest finite one is; 0 where that is not known."""
    finite = [norm for norm in norms if math.isfinite(norm)]
    return max(finite) / norms[0] if finite and 0.0 < norms[0] < math.inf else 0.0
