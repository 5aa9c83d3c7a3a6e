"""Facts about the skip paths and the branches of a model's residual sums."""

from __future__ import annotations

from dataclasses import dataclass

from gradlint.graph import Node
from gradlint.structure import Structure
from gradlint.theory.branches import has_norm, on_skip, starts_at_zero
from gradlint.theory.reading.steps import Step


@dataclass(frozen=True)
class Residuals:
    """Facts about steps of the spine that end in a residual sum; see `Subject.residuals`.

    Methods return False or an empty list for any other step.
    """

    structure: Structure

    def has_norm(self, step: Step) -> bool:
        """Return whether a norm, or a layer with a folded BatchNorm, lies between the fork and the sum."""
        return step.residual is not None and has_norm(self.structure, step.residual)

    def starts_at_zero(self, step: Step) -> bool:
        """Return whether the last weight layer or scale of the branch is zero, so that the block starts as the identity."""
        return step.residual is not None and starts_at_zero(self.structure, step.residual)

    def on_skip(self, step: Step) -> list[Node]:
        """Return the operators on the skip path that make it differ from the identity: weight layers, activations, scales."""
        return on_skip(self.structure, step.residual) if step.residual is not None else []

    def is_identity(self, step: Step) -> bool:
        """Return whether a step ends in a residual sum whose skip path is the identity."""
        return step.residual is not None and not self.on_skip(step)
