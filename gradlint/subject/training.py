"""What is known of the training to come: the recipe, the loss, its curvature, and the updates that were rehearsed."""

from __future__ import annotations

from dataclasses import dataclass

from gradlint.measurements.curvature import Curvature
from gradlint.measurements.loss import LossFacts
from gradlint.measurements.rehearsal import LEARNED, Rehearsal
from gradlint.recipe import Task
from gradlint.result import Measurement, Severity

_FALLEN = 0.9  # of the first loss: a rehearsal that ends lower has trained


@dataclass(frozen=True)
class Training:
    """The training of one model, as `Subject.training`. What was not measured is None."""

    task: Task
    measurement: Measurement | None

    @property
    def loss(self) -> LossFacts | None:
        """The loss of the first batch, before any update."""
        return self.measurement.loss if self.measurement is not None else None

    @property
    def curvature(self) -> Curvature | None:
        """The loss around the weights as they are."""
        return self.measurement.curvature if self.measurement is not None else None

    @property
    def rehearsal(self) -> Rehearsal | None:
        """The updates that were rehearsed, with the user's loss or with one that stands in for it."""
        return self.measurement.rehearsal if self.measurement is not None else None

    @property
    def own_rehearsal(self) -> Rehearsal | None:
        """The rehearsal with the loss that the model will have; None where there was none."""
        return self.rehearsal if self.rehearsal is not None and not self.rehearsal.is_surrogate else None

    @property
    def diverges(self) -> bool:
        """Whether the rehearsal with the loss that the model will have diverged."""
        return self.own_rehearsal is not None and self.own_rehearsal.diverged_at is not None

    @property
    def trains(self) -> bool:
        """Whether a rehearsal brought the loss down."""
        found = self.rehearsal
        return found is not None and not found.fails and found.last < _FALLEN * found.first

    @property
    def learns(self) -> bool:
        """Whether a rehearsal with the loss that the model will have ended below the best constant."""
        found = self.own_rehearsal
        known = found is not None and found.chance is not None
        return known and found is not None and not found.fails and found.last < (1.0 - LEARNED) * (found.chance or 0.0)

    @property
    def severity(self) -> Severity:
        """How grave a fault is that made the rehearsal fail: an error where training is certain to fail like it."""
        return Severity.ERROR if self.rehearsal is not None and self.rehearsal.is_certain else Severity.WARNING
