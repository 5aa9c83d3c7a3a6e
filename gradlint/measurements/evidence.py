"""What is known of a model when its score is made: plain numbers, the same in a check and in the benchmark that fits it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How much is known of a model."""

    STATIC = "static"  # the graph and the weights
    MODEL = "model"  # the same, and the model was run
    LOSS = "loss"  # the loss and the target as well
    RECIPE = "recipe"  # the recipe as well, and it was rehearsed


@dataclass(frozen=True, slots=True)
class Evidence:
    """The numbers that a score is made of. What is not known is None.

    Attributes:
        level: How much is known.
        conclusive: Whether the growth is that of the whole model.
        growth: Growth that counts, in decades; see `gradlint.growth.tracks.counted`.
        spread: Spread of the gradients of like weights, in decades.
        tangent: Level of the gradients of all weights together, in decades.
        output: Level of the output, in decades.
        reach: Share of tasks that the reach of recurrences allows, 1 without any.
        along: Growth along time, in decades, at least 0.
        silent: Largest share of units of one activation that are dead in every seed.
        errors: Codes of the rules with an error that is not refuted.
        warnings: The same with a warning.
        inputs: Largest distance of the level of a given float input from 1, in decades.
        value: First loss.
        constant: Loss of the best constant.
        neutral: Loss of an uninformative prediction of a known loss.
        ratio: Whether ratios of the loss have a meaning.
        gradient: Norm of the gradient of the loss.
        magnitude: Root mean square of the output.
        target: Root mean square of the target.
        rate: First learning rate over the stability limit.
        first: First loss of the rehearsal.
        last: Last loss of the rehearsal; NaN if it is not finite.
        peak: Largest loss of the rehearsal.
        steps: Updates that were taken.
        late: Whether the rehearsal was made longer, as the loss had not come below that of the best constant.
        diverged: Whether the rehearsal diverged.
        outlook: `Outlook` of a rehearsal that ended no better than the best constant.
        broken: Whether a layer died, or a weight left its domain.
        behind: Whether a loss rose, or fell only with another recipe.
        stalled: Whether a loss at chance did not move.
        moved: Median over updates of the largest relative change of a weight.
        skipped: Share of updates that were skipped because gradients overflowed.
    """

    level: Level
    conclusive: bool = True
    growth: float | None = None
    spread: float | None = None
    tangent: float | None = None
    output: float | None = None
    reach: float = 1.0
    along: float = 0.0
    silent: float = 0.0
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    inputs: float = 0.0
    value: float | None = None
    constant: float | None = None
    neutral: float | None = None
    ratio: bool = False
    gradient: float | None = None
    magnitude: float | None = None
    target: float | None = None
    rate: float | None = None
    first: float | None = None
    last: float | None = None
    peak: float | None = None
    steps: int = 0
    late: bool = False
    diverged: bool = False
    outlook: str = ""
    broken: bool = False
    behind: bool = False
    stalled: bool = False
    moved: float | None = None
    skipped: float = 0.0

    @property
    def floor(self) -> float | None:
        """The loss that training must fall below: that of the best constant or of a neutral prediction, else the first one."""
        known = (self.constant, self.neutral, self.first)
        return next((value for value in known if value is not None), None)


@dataclass(frozen=True, slots=True)
class Score:
    """The score of a model, and how it came about.

    Attributes:
        points: An integer from 0 to 100: 100 times the probability that training does not fail.
        best: The points of a model of which as much is known, with nothing against it.
        moved: What moved the score down from there, by feature, in points; the largest first.
        most: The most points that the verdict allows.
    """

    points: int
    best: int
    moved: tuple[tuple[str, int], ...] = ()
    most: int = 100
