"""GL303 deep-post-norm: a norm behind every residual sum, over so many blocks that the gradient fades or grows on the way.

What it finds:
    Residual sums with a norm right behind each, norm(x + f(x)), over which the gradient is predicted to shrink or grow by 2.2
    decades or more.

Why it vanishes:
    A block norm(x + f(x)) hands nothing on unchanged: the sum multiplies the gradient by sqrt(1 + b^2), b being what the branch
    does to gradients, and the norm divides it by sqrt(1 + g^2), g being what the branch adds to the signal. The quotient is
    raised to the power of the depth. It is near one with LayerNorm. RMSNorm keeps the mean: a branch that ends in ReLU, sigmoid
    or softplus adds to the mean of the signal at every block, the norm pays for it, and the gradient loses 4.4 decades over 60
    blocks of ReLU, ten of sigmoid.

How to fix it:
    Move the norm into the branch, x + f(norm(x)), with one more behind the last sum. To keep the norm behind, use LayerNorm, end
    the branch in a linear layer, or scale the skip path up and the branch down with depth (DeepNorm).

References:
    Xiong et al. 2020, On Layer Normalization in the Transformer Architecture, arXiv 2002.04745.
    Wang et al. 2022, DeepNet: Scaling Transformers to 1,000 Layers, arXiv 2203.00555 (DeepNorm).
    Wang et al. 2019, Learning Deep Transformer Models for Machine Translation, arXiv 1906.01787 (why the norm should come first).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from gradlint.rule import Example, Finding, GraphBuilder, Rule, Severity, Step, Subject

SHARE = 0.5  # of the residual sums; the one norm behind the last sum of a pre-norm stack makes no post-norm stack


def _blocks(depth: int, norm: str = "rms_norm", *, post: bool = True) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for _ in range(depth):
        h = builder.op("sigmoid", builder.linear(x if post else builder.norm(x, norm)))
        x = builder.op("add", x, h)
        x = builder.norm(x, norm) if post else x
    return builder


class DeepPostNorm(Rule):
    """Deep stacks with a norm behind each sum."""

    code = "GL303"
    name = "deep-post-norm"
    severity = Severity.ERROR
    examples = (
        Example(lambda: _blocks(30), fires_on=tuple(f"rms_norm{index}" for index in range(1, 30))),
        Example(lambda: _blocks(12)),
        Example(lambda: _blocks(60, "layer_norm")),
        Example(lambda: _blocks(30, post=False)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where a norm stands behind a residual sum."""
        return None if any(_pairs(subject, subject.steps)) else "no norm behind a residual sum"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per run of steps that theory follows, and direction."""
        for trend in subject.claims.trends(subject.runs()):
            blocks = list(_pairs(subject, trend.steps))
            laid = {step.node: step.decades or 0.0 for block in blocks for step in block}
            if len(blocks) < SHARE * sum(step.residual is not None for step in trend.steps):
                continue
            if not subject.claims.explains(trend, laid, [total for total, _ in blocks]):
                continue
            yield self.claim(
                subject,
                trend,
                [norm.node for _, norm in blocks],
                f"{len(blocks)} residual sums in a row with a norm behind each: the gradient {trend.pace(len(blocks))} a block",
                remedy="move the norm into the branch, x + f(norm(x)), and put one behind the last sum; or use LayerNorm",
                norms=len(blocks),
                factor=trend.factor(len(blocks)),
            )


def _pairs(subject: Subject, steps: Sequence[Step]) -> Iterator[tuple[Step, Step]]:
    """Sums over an identity skip, each with the norm right behind it."""
    for total, norm in pairwise(steps):
        behind = norm.residual is None and subject.normalizes(subject.graph[norm.node])
        if behind and subject.residuals.is_identity(total):
            yield total, norm
