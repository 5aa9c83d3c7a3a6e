"""GL301 missing-normalization: a deep residual or attention model has no normalization anywhere.

What it finds:
    Residual sums, with attention or without, in a model without a single normalization, over which the gradient is predicted to
    grow by 2.2 decades or more. A layer that a BatchNorm was, or may have been, folded into counts as a norm.

Why it explodes:
    Each sum adds the square of its branch to that of the skip path, and nothing ever takes it back: growth is exponential in
    depth. In attention the logits grow with the square of the signal, so the softmax saturates as well. A norm at the start of
    each branch makes the growth linear; a norm of the sum resets it.

How to fix it:
    Put a LayerNorm or RMSNorm before each branch, x + f(norm(x)), and one behind the last sum. Without norms, scale the
    branches by 1/sqrt(2 L) and start their last weights at zero.

References:
    Xiong et al. 2020, On Layer Normalization in the Transformer Architecture, arXiv 2002.04745.
    De, Smith 2020, Batch Normalization Biases Residual Blocks Towards the Identity Function, arXiv 2002.10444.
    Zhang, Dauphin, Ma 2019, Fixup Initialization, arXiv 1901.09321 (what it takes to do without).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

from gradlint.rule import Example, Finding, GraphBuilder, Kind, Rule, Severity, Step, Subject, kind_of


def _transformer(depth: int, *, norm: bool = False, gain: float = 1.0, notes: tuple[str, ...] = ()) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 16, 64)
    for _ in range(depth):
        h = builder.norm(x) if norm else x
        q, k, v = (builder.linear(h, gain=gain) for _ in range(3))
        h = builder.linear(builder.op("attention", q, k, v, notes=notes), gain=gain)
        x = builder.op("add", x, h)
        h = builder.op("relu", builder.linear(builder.norm(x) if norm else x, gain=sqrt(2.0)))
        x = builder.op("add", x, builder.linear(h, gain=gain))
    return builder


def _probed(depth: int) -> GraphBuilder:
    builder = GraphBuilder()
    builder.blocks(depth)
    return builder.ramp(4.0)


class MissingNormalization(Rule):
    """Deep residual and attention models without a norm."""

    code = "GL301"
    name = "missing-normalization"
    severity = Severity.ERROR
    examples = (
        Example(lambda: _transformer(9), fires_on=tuple(f"add{index}" for index in range(18))),
        Example(lambda: _probed(16), fires_on=tuple(f"add{index}" for index in range(16))),
        Example(lambda: _transformer(4)),
        Example(lambda: _probed(11)),
        Example(lambda: _transformer(9, gain=0.2)),
        Example(lambda: _transformer(9, norm=True)),
        Example(lambda: _transformer(9, notes=("batch-norm-folded",))),
    )

    def applies(self, subject: Subject) -> str | None:
        """Not where something is normalized."""
        return "the model has a normalization" if any(map(subject.normalizes, subject.graph)) else None

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per run of steps that theory follows."""
        for trend in subject.claims.rising(subject.runs()):
            sums = [step for step in trend.steps if step.residual and not subject.residuals.starts_at_zero(step)]
            plain = {step.node: step.decades or 0.0 for step in sums if subject.residuals.is_identity(step)}
            if not subject.claims.explains(trend, plain, sums):
                continue
            attentive = sum(_attends(subject, step) for step in sums)
            what = f"{attentive} of them with attention, " if attentive else ""
            yield self.claim(
                subject,
                trend,
                [step.node for step in sums],
                f"{len(sums)} residual sums, {what}and no normalization in the whole model",
                remedy="normalize the input of every branch, x + f(norm(x)), with LayerNorm or RMSNorm",
                sums=len(sums),
                attention=attentive,
            )


def _attends(subject: Subject, step: Step) -> bool:
    kinds = {kind_of(subject.graph[node]) for node in step.via}
    return Kind.ATTENTION in kinds or {Kind.SOFTMAX, Kind.MATMUL} <= kinds
