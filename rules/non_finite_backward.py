"""GL805 non-finite-backward: the forward pass is finite, and an operator makes NaN or infinity in the backward pass.

What it finds:
    The first operator, coming from the output, whose gradient is not finite although the gradient that it got was, in a model
    whose forward pass is finite, where a weight gets any of it.

Why it matters:
    One such gradient makes every weight before it NaN with the next update. Common makers are the square root, the norm or a
    power below one at exactly 0, whose slope is infinite, and torch.where over a branch that is not finite: its zero gradient
    times infinity is NaN.

How to fix it:
    Keep the operand away from the singular point, sqrt(x + eps); put the safe value in before the operator and not behind it.
    Where the gradient has grown out of the range of the type, reduce that growth.

References:
    IEEE 754-2019, section 7 (exceptions: invalid operation, division by zero, overflow).
    JAX documentation, Frequently asked questions: gradients contain NaN where using where.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Effect, Example, Finding, GraphBuilder, Needs, Rule, Severity, Subject, Verdict, probed

REMEDY = "keep the operand off the singular point, e.g. sqrt(x + eps), before the operator and not behind it"


def _sqrt(backward: probed.NonFinite | None, forward: probed.NonFinite | None = None) -> GraphBuilder:
    builder = GraphBuilder()
    builder.op("sqrt", builder.op("relu", builder.linear(builder.input(8, 64)), shape=(8, 64)), shape=(8, 64))
    return builder.measured(nonfinite_backward=backward, nonfinite_forward=forward)


class NonFiniteBackward(Rule):
    """The first operator that breaks the backward pass."""

    code = "GL805"
    name = "non-finite-backward"
    severity = Severity.ERROR
    needs = Needs.PROBE
    explained_by = (Effect.EXPLODES,)
    verdict = Verdict.NON_FINITE
    examples = (
        Example(lambda: _sqrt(probed.NonFinite("sqrt0", "infinity", ((0.0, 2.0),))), fires_on=("sqrt0",)),
        Example(lambda: _sqrt(probed.NonFinite("sqrt0", "NaN"), probed.NonFinite("sqrt0", "NaN"))),
        Example(lambda: _sqrt(None)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        found = subject.probe.nonfinite_backward
        if found is None or subject.probe.nonfinite_forward is not None:
            return
        yield self.finding(
            subject,
            [found.node],
            f"{subject.graph[found.node].called} makes {found.kind} in the backward pass{found.given}",
            remedy=REMEDY,
            kind=found.kind,
            operands=found.operands,
        )
