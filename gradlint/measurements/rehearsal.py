"""The result of the rehearsal: what the first optimizer steps, which are undone afterwards, did to the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum

from gradlint.measurements import is_surrogate
from gradlint.measurements.faults import Fault, because

FLAT = 1e-3  # relative change of the first loss below which a loss did not move
RISEN = 0.1  # relative rise over the first loss above which a run did not train
ABOVE = 1.5  # a run that ends above this multiple of chance did not train
LEARNED = 0.03  # of the loss by chance: a run that learned something ends more than this below it
LEARNED_CLEARLY = 0.25  # of the best constant: a run that ends so far below it trains, whatever its gradients look like
CLEARLY = 1.25  # the factor by which the progress of one run must exceed that of another to be clearly better


def below(loss: float, share: float = LEARNED) -> float:
    """Return the loss that is lower by a share of the size of `loss`."""
    return loss - share * abs(loss)


class Cause(StrEnum):
    """The cause of a failed rehearsal."""

    OPERATOR = "operator"  # one operator returns a NaN or an infinity for finite operands
    PRECISION = "precision"  # the model trains in full precision and not in half precision
    UNITS = "units"  # a layer of rectifiers is zero for the whole batch
    WARMUP = "warm-up"  # the model trains with a warm-up
    GROWTH = "growth"  # the gradient already explodes at initialization
    RATE = "rate"  # the model trains at a lower learning rate
    SLOW = "slow"  # the learning rate is too small for any run
    SCALE = "scale"  # the first loss is far above that of the best constant
    UNKNOWN = "unknown"


class Outlook(StrEnum):
    """What becomes of a run that ends no better than the best constant."""

    STUCK = "stuck"  # the steps were long enough to learn, and the loss shows no trend
    SLOW = "slow"  # at this pace a long run does not come below the constant either
    SCALE = "scale"  # it began at more than a thousand times the constant, and did not come down
    OPEN = "open"  # the run is too short to tell


@dataclass(frozen=True, slots=True)
class Leaving:
    """A weight that stands bare under a log, a root or a fraction bar, and that updates move to zero.

    Attributes:
        weight: Name of the weight.
        function: Name of the function that breaks at zero.
        value: The element that arrives first, at the end of the rehearsal.
        drift: How much it changes in one update.
        step: The update with which it arrives, if it goes on like that.
        confirmed: Whether as many updates were taken, and the loss was no longer finite.
    """

    weight: str
    function: str
    value: float
    drift: float
    step: int
    confirmed: bool = False


@dataclass(frozen=True, slots=True)
class NonFiniteUpdate:
    """The first operator of an update whose result ranks above all its operands, where finite < infinity < NaN.

    Attributes:
        node: Id of the node; "" for an operator of the loss function.
        op: Name of the operator, as the code calls it.
        kind: "NaN" or "infinity".
        operands: Smallest and largest value of each float operand.
        source: The line of code that calls it.
        backward: Whether its value is finite and only its derivative is not.
        squashed: "softmax" or "sigmoid" if the operator takes the result of one, else "".
        fault: Why, where the name of the operator does not say it.
        becomes: The operator that makes NaN of the infinity, with its line; "" if there is none.
        mask: What put in the infinity that the operator meets, with its line; "" if there is none.
    """

    node: str
    op: str
    kind: str
    operands: tuple[tuple[float, float], ...] = ()
    source: str = ""
    backward: bool = False
    squashed: str = ""
    fault: Fault | None = None
    becomes: str = ""
    mask: str = ""

    @property
    def given(self) -> str:
        """The operands for a message, "[-3, 5], [0, 0]"."""
        return ", ".join(f"[{low:.3g}, {high:.3g}]" for low, high in self.operands)

    @property
    def because(self) -> str:
        """Why, as the end of a message."""
        return because(self.fault, self.becomes, self.mask)


@dataclass(frozen=True, slots=True)
class Trial:
    """A rerun of the rehearsal with one setting changed.

    `change` describes the setting. `first` and `last` are the losses before and after the updates, on the same batches; NaN
    stands for a loss that is not finite. `lr` is the learning rate of the run.
    """

    change: str
    first: float
    last: float
    trains: bool
    lr: float

    @property
    def falls(self) -> bool:
        """Whether the loss fell by more than the fraction `FLAT`."""
        return self.last < self.first - FLAT * abs(self.first)


@dataclass(frozen=True, slots=True)
class DeadUnits:
    """The dead units of a layer of rectifiers: the share that is zero for the whole batch, before and after the updates."""

    node: str
    count: int
    before: float
    after: float


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """Optimizer steps that were taken on the model and undone.

    Attributes:
        asked: Number of steps that were requested.
        longer: Whether more steps than by default were taken, as the loss had not come below that of the best constant.
        losses: Loss before each update, and once after the last.
        gradient_norms: Gradient norm over all weights before each update, before clipping.
        layers: The same for single weights, by name, for those whose norm rose most.
        changes: The largest norm of the change of a weight tensor in each update, relative to its initial norm.
        first: Median loss on the batches of the last quarter, before any update.
        last: Median loss on the same batches, after the updates.
        diverged_at: Number of updates after which the loss was not finite, stayed above ten times the first one, or could not
            be computed. None if it did not diverge.
        behind: Whether the loss ended higher than it began, or fell (below chance) only in one of the `trials`.
        stalled: Whether a loss at or above chance did not move.
        cause: Why the rehearsal failed, if that was found.
        breach: The first operator whose result was not finite.
        dead: The layer of rectifiers that died.
        trials: Reruns with one setting changed.
        skipped: Number of updates that were skipped because gradients overflowed under a loss scale.
        stands_in: Description of the loss if the user gave none, else "".
        stopped: Why not all steps were taken, else "".
        raised: The error that the model or the loss raised, else "".
        chance: Loss of the best constant, or of an uninformative prediction. None if it is unknown.
        outlook: What becomes of a run that ended no better than the best constant; None if the loss fell below it, or falls.
        leaving: Weights that go out of the domain of the function they stand in, the first to arrive first.
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
    outlook: Outlook | None = None
    leaving: tuple[Leaving, ...] = field(default=())
    longer: bool = False

    @property
    def steps(self) -> int:
        """Number of updates, including skipped ones."""
        return len(self.losses) - 1

    @property
    def fails(self) -> bool:
        """Whether the rehearsal failed."""
        return self.diverged_at is not None or self.dead is not None or self.behind or self.stalled or self.is_lost

    @property
    def is_surrogate(self) -> bool:
        """Whether gradlint made the loss up."""
        return is_surrogate(self.stands_in)

    @property
    def is_certain(self) -> bool:
        """Whether training is certain to fail.

        With the real loss, it diverged, a layer died, the loss clearly rose, or it stays no better than the best constant.
        """
        broke = self.diverged_at is not None or self.dead is not None or self.breaks
        return (broke or self.is_lost or (self.behind and self._is_high)) and not self.is_surrogate

    @property
    def lingers(self) -> bool:
        """Whether a longer run ended where it began, of a loss whose best constant is not known."""
        return self.longer and self.chance is None and not self.is_surrogate and not self.fails and not self._fell

    @property
    def _fell(self) -> bool:
        return self.last < below(self.first)

    @property
    def learned(self) -> bool:
        """Whether the loss that the model will have came down clearly below that of the best constant."""
        if self.chance is None or self.is_surrogate or self.fails:
            return False
        return self.last <= below(self.chance, LEARNED_CLEARLY)

    @property
    def breaks(self) -> bool:
        """Whether a weight was seen to leave the domain of the function it stands in."""
        return any(item.confirmed for item in self.leaving)

    @property
    def is_lost(self) -> bool:
        """Whether the loss ended no better than the best constant, and more steps would not change that."""
        return self.outlook is not None and self.outlook is not Outlook.OPEN

    @property
    def _is_high(self) -> bool:
        """Whether the last loss is clearly higher than the first one or than chance."""
        return self.last > self.first + RISEN * abs(self.first) or (self.chance or math.inf) * ABOVE < self.last

    @property
    def floor(self) -> float:
        """The loss that training must fall below: the first loss, or chance if that is lower."""
        return self.first if self.chance is None else min(self.first, self.chance)

    @property
    def finite(self) -> bool:
        """Whether every loss and every gradient was finite."""
        return all(map(math.isfinite, (*self.losses, *self.gradient_norms)))

    @property
    def steepest(self) -> str | None:
        """Name of the weight whose gradient norm rose most, or None if none rose."""
        rises = {name: rise for name, norms in self.layers.items() if (rise := rise_of(norms)) > 1.0}
        return max(rises, key=rises.__getitem__, default=None)

    @property
    def cure(self) -> Trial | None:
        """The first trial that trains, or a later one as long as each clearly beats the one before; None if none trains."""
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
    """Return the ratio of the largest finite norm to the first one, or 0 if the first one is zero or not finite."""
    finite = [norm for norm in norms if math.isfinite(norm)]
    return max(finite) / norms[0] if finite and 0.0 < norms[0] < math.inf else 0.0
