"""GL203 residual-branch-gain: residual branches are far larger than the skip paths that they are added to.

What it finds:
    Residual sums, with or without a norm, whose branch multiplies the gradient by two or more relative to an identity skip, so
    that the gradient is predicted to grow by 2.2 decades or more over them. Branches about as large as the skip are GL202, skips
    that are no identity GL204.

Why it explodes:
    A sum of an identity and an independent branch of gain g multiplies the mean square of the gradient by 1 + g^2: with g = 3
    by ten, half a decade of size a block. The skip path, which is there to hand the gradient on unchanged, no longer counts;
    the stack behaves like the plain chain of its branches. A norm of the branch's input alone does not prevent it where
    something else keeps the skip path from growing along.

How to fix it:
    Draw the last weight of each branch smaller, by the factor that the finding gives, or at zero; or multiply the branch by a
    learned scale that starts small.

References:
    Zhang, Dauphin, Ma 2019, Fixup Initialization, arXiv 1901.09321.
    Hanin, Rolnick 2018, How to Start Training, arXiv 1803.01719 (the sum of the branch scales decides).
    Touvron et al. 2021, Going Deeper with Image Transformers, arXiv 2103.17239 (LayerScale).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log10, sqrt
from statistics import median

from gradlint.rule import Example, Finding, GraphBuilder, Rule, Severity, Step, Subject

STRONG = 0.5 * log10(1.0 + 2.0**2)  # decades of a sum whose branch is twice as large as its skip path


def _blocks(depth: int, gain: float, *, norm: str | None = None) -> GraphBuilder:
    builder = GraphBuilder()
    builder.blocks(depth, norm=norm, scale=gain)
    return builder


class ResidualBranchGain(Rule):
    """Residual branches that drown their skip path."""

    code = "GL203"
    name = "residual-branch-gain"
    severity = Severity.ERROR
    examples = (
        Example(lambda: _blocks(7, 3.0), fires_on=tuple(f"add{index}" for index in range(7))),
        Example(lambda: _blocks(5, 3.0)),
        Example(lambda: _blocks(16, 1.0)),
        Example(lambda: _blocks(30, 3.0, norm="layer_norm")),
        Example(lambda: _blocks(7, 0.1)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where there are residual sums on the spine."""
        return None if any(step.residual for step in subject.steps) else "no residual sum that every path passes"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per run of steps that theory follows."""
        for trend in subject.claims.rising(subject.runs()):
            strong = [step for step in trend.steps if _is_strong(subject, step)]
            if not subject.claims.explains(trend, {step.node: step.decades or 0.0 for step in strong}, strong):
                continue
            gain = median(sqrt(10 ** (2.0 * (step.decades or 0.0)) - 1.0) for step in strong)
            scale = 1.0 / (gain * sqrt(2.0 * len(strong)))
            yield self.claim(
                subject,
                trend,
                [step.node for step in strong],
                f"{len(strong)} residual branches have gain {gain:.2f} beside an identity: "
                f"the gradient grows x{sqrt(1.0 + gain**2):.2f} at each sum",
                remedy=f"scale the last weight of each branch by {scale:.2g}, or start it at zero",
                gain=gain,
                branches=len(strong),
            )


def _is_strong(subject: Subject, step: Step) -> bool:
    """Whether a step is a sum that a branch much larger than its identity makes grow."""
    return subject.residuals.is_identity(step) and (step.decades or 0.0) >= STRONG
