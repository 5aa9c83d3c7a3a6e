"""GL902 probe-partial: the probe could not run the whole model.

What it finds:
    A run that stopped at an operator which cannot be evaluated. What lies before it was measured as if that were the output.

Why it matters:
    Growth, cuts and non-finite values behind that operator went unseen: a clean report covers the first part of the model
    alone.

How to fix it:
    Lint the torch module instead of its ONNX file, export with operators of the standard domain, or export the custom operator
    as an ONNX function, whose body can be run.

References:
    ONNX specification, Functions (onnx/docs/IR.md): a model may carry the body of an operator of its own.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Needs, Rule, Severity, Subject


def _run(stopped_at: str | None) -> GraphBuilder:
    builder = GraphBuilder()
    builder.linear(builder.op("unknown", builder.linear(builder.input(8, 64)), shape=(8, 64), name="odd"))
    return builder.measured(stopped_at=stopped_at)


class ProbePartial(Rule):
    """A probe that stopped on the way."""

    code = "GL902"
    name = "probe-partial"
    severity = Severity.WARNING
    needs = Needs.PROBE
    examples = (
        Example(lambda: _run("unknown at odd: no function body"), fires_on=("odd",)),
        Example(lambda: _run(None)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        reason = subject.probe.stopped_at
        if reason is None:
            return
        named = [node.id for node in subject.graph if f" at {node.id}:" in reason]
        yield self.finding(
            subject,
            named[:1],
            f"the probe stopped half-way: {reason}",
            remedy="lint the torch module, or export the operator as an ONNX function with a body",
            stopped_at=reason,
        )
