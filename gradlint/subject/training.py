"""Facts about the training of a model: the recipe, the loss, its curvature, and the rehearsal."""

from __future__ import annotations

from dataclasses import dataclass

from gradlint.measurements.curvature import Curvature
from gradlint.measurements.loss import LossFacts
from gradlint.measurements.rehearsal import LEARNED, Rehearsal
from gradlint.recipe import Task
from gradlint.result import Measurement, Severity

_FALLEN = 0.9  # share of the first loss below which the last loss of a rehearsal that trains must lie


@dataclass(frozen=True)
class Training:
    """The training of one model; see `Subject.training`. Properties are None if they were not measured.

    Attributes:
        task: The loss, the target and the recipe, as far as they are known.
        measurement: What the probe measured, or None without a probe.
    """

    task: Task
    measurement: Measurement | None

    @property
    def loss(self) -> LossFacts | None:
        """Facts about the loss of the first batch, before any update."""
        return self.measurement.loss if self.measurement is not None else None

    @property
    def curvature(self) -> Curvature | None:
        """Curvature of the loss at the initial weights."""
        return self.measurement.curvature if self.measurement is not None else None

    @property
    def rehearsal(self) -> Rehearsal | None:
        """The rehearsal, with the user's loss or a surrogate."""
        return self.measurement.rehearsal if self.measurement is not None else None

    @property
    def own_rehearsal(self) -> Rehearsal | None:
        """The rehearsal with the user's loss, or None if there was none."""
        return self.rehearsal if self.rehearsal is not None and not self.rehearsal.is_surrogate else None

    @property
    def diverges(self) -> bool:
        """Whether the rehearsal with the user's loss diverged."""
        return self.own_rehearsal is not None and self.own_rehearsal.diverged_at is not None

    @property
    def trains(self) -> bool:
        """Whether the rehearsal did not fail and reduced the loss by more than a tenth."""
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
        """Severity of a fault that made the rehearsal fail: an error if training is certain to fail, otherwise a warning."""
        return Severity.ERROR if self.rehearsal is not None and self.rehearsal.is_certain else Severity.WARNING
