"""GL804 non-finite-forward: an operator makes NaN or infinity out of finite numbers in the forward pass.

What it finds:
    The first operator, in the order of execution, whose output is not finite although its operands were, and from which that
    reaches an output of the model. A mask of -inf that a softmax takes away again is none.

Why it matters:
    NaN and infinity spread to everything behind them; the loss and every gradient are lost with the first step. Common makers
    are log 0, division by 0, the square root of a negative number, and exp or a product that leaves the range of the type.

How to fix it:
    Bound the operand: clamp, add an epsilon inside the log, the division or the root, or use the fused form (log_softmax,
    logsigmoid, cross_entropy on logits). Where the signal itself has grown out of range, reduce that growth.

References:
    IEEE 754-2019, section 7 (exceptions: invalid operation, division by zero, overflow).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Effect, Example, Finding, GraphBuilder, Kind, Needs, Rule, Severity, Subject, Verdict, kind_of, probed

REMEDY = "bound the operand (clamp, an epsilon inside) or use the fused form; where the signal has grown, reduce the growth"


def _log(found: probed.NonFinite | None) -> GraphBuilder:
    builder = GraphBuilder()
    builder.op("log", builder.linear(builder.input(8, 64)), shape=(8, 64))
    return builder.measured(nonfinite_forward=found)


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
        Example(lambda: _log(None)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        found = subject.probe.nonfinite_forward
        if found is None:
            return
        node = subject.graph[found.node]
        given = kind_of(node) is Kind.INPUT
        yield self.finding(
            subject,
            [found.node],
            f"the input {node.label!r} holds {found.kind}"
            if given
            else f"{node.called} makes {found.kind} in the forward pass{found.given}",
            remedy="clean the data: a NaN or an infinity in one sample reaches every weight" if given else REMEDY,
            kind=found.kind,
            operands=found.operands,
        )
