"""GL804 non-finite-forward: an operator makes NaN or infinity out of better numbers in the forward pass of model or loss.

What it finds:
    The first operator whose result ranks above all its operands, where finite < infinity < NaN, and from which that reaches an
    output of the model, or the loss that was given. An infinity that is put in on purpose is none: a mask of -inf that a softmax
    takes away again. Where an operator trips over such a mask, as 0 * -inf in p log p, it is named, with the line of the mask.

Why it matters:
    NaN and infinity spread to everything behind them; the loss and every gradient are lost with the first step. Common makers
    are log 0, division by 0, the square root of a negative number, exp or a product that leaves the range of the type, a row that
    is masked wholly, the mean of an empty selection, and a cross-entropy whose labels are all ignored.

How to fix it:
    What helps depends on the operator, and the finding says it: the fused form (log_softmax, logsigmoid, cross_entropy on logits)
    or eps for log and division, a finite value in place of -inf before a product, at least one label, row entry or value for a
    mean. Where the signal itself has grown out of range, reduce that growth.

References:
    IEEE 754-2019, section 7 (exceptions: invalid operation, division by zero, overflow).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import (
    Effect,
    Example,
    Finding,
    GraphBuilder,
    Kind,
    Needs,
    Rule,
    Severity,
    Subject,
    Verdict,
    guard,
    kind_of,
    probed,
)


def _log(found: probed.NonFinite | None, in_loss: probed.NonFiniteUpdate | None = None) -> GraphBuilder:
    builder = GraphBuilder()
    builder.op("log", builder.linear(builder.input(8, 64)), shape=(8, 64))
    loss = probed.LossFacts(float("nan"), float("nan"), {"fc.weight": float("nan")}, breach=in_loss) if in_loss else None
    return builder.measured(nonfinite_forward=found, loss=loss)


class NonFiniteForward(Rule):
    """The first operator that breaks the forward pass."""

    code = "GL804"
    name = "non-finite-forward"
    severity = Severity.ERROR
    needs = Needs.PROBE
    explained_by = (Effect.EXPLODES,)
    verdict = Verdict.NON_FINITE
    examples = (
        Example(lambda: _log(probed.NonFinite("log0", "NaN", ((-3.0, 2.0),))), fires_on=("log0",)),
        Example(lambda: _log(None, probed.NonFiniteUpdate("log0", "log", "infinity", ((0.0, 2.0),))), fires_on=("log0",)),
        Example(lambda: _log(None, probed.NonFiniteUpdate("log0", "log", "NaN", ((0.0, 2.0),), backward=True))),
        Example(lambda: _log(None)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        found, loss = subject.probe.nonfinite_forward, subject.training.loss
        if found is not None:
            yield self._in_model(subject, found)
        elif loss is not None and loss.breach is not None and not loss.breach.backward:
            yield self._in_step(subject, loss.breach)

    def _in_model(self, subject: Subject, found: probed.NonFinite) -> Finding:
        node = subject.graph[found.node]
        given = kind_of(node) is Kind.INPUT
        spelled = kind_of(node) in {Kind.SOFTMAX, Kind.ATTENTION}  # its last operator may be a division
        name = node.op if spelled else node.called
        return self.finding(
            subject,
            [found.node],
            f"the input {node.label!r} holds {found.kind}"
            if given
            else f"{name} makes {found.kind} in the forward pass{found.given}{found.because}",
            remedy=guard(name, found.fault, product=found.becomes.startswith("mul")),
            kind=found.kind,
            operands=found.operands,
        )

    def _in_step(self, subject: Subject, found: probed.NonFiniteUpdate) -> Finding:
        """The loss on the given batch, of which the model's outputs may be masked."""
        operands = f" (operands in {found.given})" if found.operands else ""
        made = f"{found.op} {'makes' if found.source or found.node else 'holds'} {found.kind}{operands}"
        where = ", and the loss is not finite" if found.node else ""
        return self.finding(
            subject,
            [found.node] if found.node else [],
            f"{'' if found.node else 'in the loss: '}{made}{where}{found.because}",
            remedy=guard(found.op, found.fault, squashed=found.squashed, product=found.becomes.startswith("mul")),
            source=found.source,
            kind=found.kind,
            operands=found.operands,
        )
