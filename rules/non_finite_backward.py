"""GL805 non-finite-backward: the forward pass is finite, and an operator of model or loss makes NaN or infinity backward.

What it finds:
    The first operator, coming from the output or from the loss that was given, whose gradient is not finite although the gradient
    that it got was, where the forward pass is finite and a weight gets any of it.

Why it matters:
    One such gradient makes every weight before it NaN with the next update. Common makers are the square root, the norm or a
    power below one at exactly 0, whose slope is infinite, torch.where over a branch that is not finite, whose zero gradient times
    infinity is NaN, and eigenvectors of a matrix with repeated eigenvalues.

How to fix it:
    What helps depends on the operator, and the finding says it. Roots, powers, logs and angles: keep the operand away from the
    singular point, sqrt(x + eps), with the safe value put in before the operator and not behind it. Eigenvectors and singular
    vectors: distinct jitter on the diagonal, for their gradient divides by differences of eigenvalues. A mask of -inf that enters
    a product: a finite value. Where the gradient has grown out of the range of the type, reduce that growth.

References:
    IEEE 754-2019, section 7 (exceptions: invalid operation, division by zero, overflow).
    JAX documentation, Frequently asked questions: gradients contain NaN where using where.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Effect, Example, Finding, GraphBuilder, Needs, Rule, Severity, Subject, Verdict, guard, probed


def _sqrt(
    backward: probed.NonFinite | None,
    forward: probed.NonFinite | None = None,
    in_loss: probed.NonFiniteUpdate | None = None,
) -> GraphBuilder:
    builder = GraphBuilder()
    builder.op("sqrt", builder.op("relu", builder.linear(builder.input(8, 64)), shape=(8, 64)), shape=(8, 64))
    loss = probed.LossFacts(1.0, float("nan"), {"fc.weight": float("nan")}, breach=in_loss) if in_loss else None
    return builder.measured(nonfinite_backward=backward, nonfinite_forward=forward, loss=loss)


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
        Example(lambda: _sqrt(None, in_loss=probed.NonFiniteUpdate("sqrt0", "sqrt", "NaN", backward=True)), fires_on=("sqrt0",)),
        Example(lambda: _sqrt(None)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        found, loss = subject.probe.nonfinite_backward, subject.training.loss
        step = loss.breach if loss is not None else None
        if subject.probe.nonfinite_forward is not None or (step is not None and not step.backward):
            return  # GL804
        if found is not None:
            name = subject.graph[found.node].called
            yield self.finding(
                subject,
                [found.node],
                f"{name} makes {found.kind} in the backward pass{found.given}{found.because}",
                remedy=guard(name, found.fault, backward=True),
                kind=found.kind,
                operands=found.operands,
            )
        elif step is not None:
            yield self._in_step(subject, step)

    def _in_step(self, subject: Subject, found: probed.NonFiniteUpdate) -> Finding:
        """The gradient of the loss on the given batch."""
        operands = f" (operands in {found.given})" if found.operands else ""
        where = "" if found.node else "in the loss: "
        return self.finding(
            subject,
            [found.node] if found.node else [],
            f"{where}{found.op} makes {found.kind} in the backward pass{operands}{found.because}",
            remedy=guard(found.op, found.fault, squashed=found.squashed, backward=True),
            source=found.source,
            kind=found.kind,
            operands=found.operands,
        )
