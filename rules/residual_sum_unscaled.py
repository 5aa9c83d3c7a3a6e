"""GL202 residual-sum-unscaled: residual sums in a row add up with neither a norm nor a small branch to hold them.

What it finds:
    Consecutive residual sums whose branches are not normalized, not scaled down and do not start at zero, so that the gradient
    is predicted to grow by 2.2 decades or more over them. Branches more than twice as large as their skip path are GL203.

Why it explodes:
    At initialization the branch is independent of the skip path, so their squares add: a block multiplies the mean square of
    signal and gradient by 1 + g, g being the squared gain of the branch. With the usual g = 1 that is 2 a block, 0.15 decades:
    30 blocks make 10^4.5.

How to fix it:
    Scale each of L branches by 1/sqrt(2 L), or start the last weight of each branch at zero, or normalize at the start of each
    branch.

References:
    Zhang, Dauphin, Ma 2019, Fixup Initialization, arXiv 1901.09321 (growth of 2 a block, scaling by depth).
    De, Smith 2020, Batch Normalization Biases Residual Blocks Towards the Identity Function, arXiv 2002.10444.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import log10, sqrt

from gradlint.rule import Example, Finding, GraphBuilder, Rule, Severity, Step, Subject

STRONG = 0.5 * log10(1.0 + 2.0**2)  # decades of a sum whose branch is twice as large as its skip path: what GL203 is about


def _blocks(depth: int, *, norm: str | None = None, scale: float = 1.0) -> GraphBuilder:
    builder = GraphBuilder()
    builder.blocks(depth, norm=norm, scale=scale)
    return builder


def _gains(*last: float) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for gain in last:
        h = builder.op("relu", builder.linear(x, gain=sqrt(2.0)), shape=(8, 64))
        x = builder.op("add", x, builder.linear(h, gain=gain), shape=(8, 64))
    return builder


class ResidualSumUnscaled(Rule):
    """Residual sums that nothing holds."""

    code = "GL202"
    name = "residual-sum-unscaled"
    severity = Severity.ERROR
    examples = (
        Example(lambda: _blocks(16), fires_on=tuple(f"add{index}" for index in range(16))),
        Example(lambda: _blocks(15)),
        Example(lambda: _blocks(30, norm="layer_norm")),
        Example(lambda: _blocks(30, scale=1 / sqrt(60))),
        Example(lambda: _gains(*[0.0] * 30)),
        Example(lambda: _gains(*[1.0] * 16, 0.0, 0.0), fires_on=tuple(f"add{index}" for index in range(16))),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per run of steps without a norm between them."""
        runs = subject.runs(lambda step: step.decades is not None and not _is_normed(subject, step))
        for trend in subject.claims.rising(runs):
            sums = [step for step in trend.steps if step.residual and not subject.residuals.starts_at_zero(step)]
            even = {step.node: step.decades or 0.0 for step in sums if _is_even(subject, step)}
            if not subject.claims.explains(trend, even, sums):
                continue
            count = len(sums)
            yield self.claim(
                subject,
                trend,
                [step.node for step in sums],
                f"{count} residual sums in a row have no norm and no small branch: "
                f"the gradient grows x{10 ** (trend.decades / max(count - 1, 1)):.2f} a block",
                remedy=f"scale each branch by 1/sqrt(2 L) = {1 / sqrt(2 * count):.2f}, or zero its last weight, "
                "or normalize its input",
                sums=count,
            )


def _is_even(subject: Subject, step: Step) -> bool:
    """Whether a sum grows since a branch of about the same size is added to an identity."""
    return subject.residuals.is_identity(step) and (step.decades or 0.0) < STRONG


def _is_normed(subject: Subject, step: Step) -> bool:
    if step.residual is not None:
        return subject.residuals.has_norm(step)
    return subject.normalizes(subject.graph[step.node])
