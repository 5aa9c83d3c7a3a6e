"""The residual sums of a model: what lies on their skip paths and branches."""

from __future__ import annotations

from dataclasses import dataclass

from gradlint.graph import Node
from gradlint.structure import Structure
from gradlint.theory.branches import has_norm, on_skip, starts_at_zero
from gradlint.theory.reading.steps import Step


@dataclass(frozen=True)
class Residuals:
    """The residual sums that steps of the spine end in, as `Subject.residuals`. Of other steps nothing is true."""

    structure: Structure

    def has_norm(self, step: Step) -> bool:
        """Whether anything between the fork and the sum is normalized, or was before its BatchNorm was folded away."""
        return step.residual is not None and has_norm(self.structure, step.residual)

    def starts_at_zero(self, step: Step) -> bool:
        """Whether the last weight layer or scale of the branch is zero, so that the block starts as the identity."""
        return step.residual is not None and starts_at_zero(self.structure, step.residual)

    def on_skip(self, step: Step) -> list[Node]:
        """Operators on the skip path that make it differ from an identity: weight layers, activations and scales."""
        return on_skip(self.structure, step.residual) if step.residual is not None else []

    def is_identity(self, step: Step) -> bool:
        """Whether a step is a residual sum whose skip path is the identity."""
        return step.residual is not None and not self.on_skip(step)
