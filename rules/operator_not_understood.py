"""GL901 operator-not-understood: the vocabulary has no row for an operator that the signal passes.

What it finds:
    Operators of unknown meaning between input and output: custom autograd functions, custom ONNX domains, functions that are
    newer than gradlint.

Why it matters:
    Theory predicts nothing across them, so rules that need no probe may miss what happens there. The probe measures them all
    the same, as long as they can be run.

How to fix it:
    Nothing in the model has to change. Run with the probe; report the operator, or add its name to the table in gradlint/ops.

References:
    gradlint/ops/table.py (the operators that are understood).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Kind, Rule, Severity, Subject, kind_of, listed


def _stack(op: str) -> GraphBuilder:
    builder = GraphBuilder()
    builder.linear(builder.op(op, builder.linear(builder.input(8, 64)), shape=(8, 64), name="odd"))
    return builder


def _unused() -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, 64))
    builder.op("unknown", x, shape=(8, 64))
    return builder.output(x)


class OperatorNotUnderstood(Rule):
    """Unknown operators on the signal."""

    code = "GL901"
    name = "operator-not-understood"
    severity = Severity.NOTE
    examples = (
        Example(lambda: _stack("unknown"), fires_on=("odd",)),
        Example(lambda: _stack("relu")),
        Example(_unused),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for all of them."""
        signal = Subject(subject.graph).structure.signal  # also what a probe that stopped half-way did not reach
        unknown = [subject.graph[node] for node in signal if kind_of(subject.graph[node]) is Kind.UNKNOWN]
        if not unknown:
            return
        names = Counter(str(node.attrs.get("name", node.op)) for node in unknown)
        counted = [f"{name} x{count}" if count > 1 else name for name, count in names.most_common()]
        yield self.finding(
            subject,
            [node.id for node in unknown],
            f"not understood, so not predicted: {listed(counted)}",
            remedy="rely on the probe here",
            operators=dict(names),
        )
