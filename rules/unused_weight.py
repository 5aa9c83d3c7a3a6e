"""GL808 unused-weight: trainable weights that no operator used, on inputs as they were given.

What it finds:
    Parameters that require grad and that the forward pass never touched: a layer that was built and is not called, a head that
    was replaced, an embedding of a branch that the inputs did not take. It is a note.

Why it matters:
    They get no gradient and stay at their random start. They cost memory in the optimizer, weight decay shrinks them in its
    decoupled form, and data-parallel training waits for their gradients, or stops.

How to fix it:
    Call the layer, or leave it out. Where other inputs use it, ignore this; in data-parallel training set
    find_unused_parameters=True.

References:
    PyTorch documentation, torch.nn.parallel.DistributedDataParallel (find_unused_parameters).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradlint.rule import Example, Finding, GraphBuilder, Needs, Rule, Severity, Subject, listed, probed


def _left_out(*unused: str) -> GraphBuilder:
    builder = GraphBuilder()
    builder.linear(builder.input(8, 64))
    sizes: dict[str, Any] = {"a.weight": 4096, **dict.fromkeys(unused, 64)}
    return builder.measured(trainability=probed.Trainability(sizes, unused=unused))


class UnusedWeight(Rule):
    """Weights that nothing reads."""

    code = "GL808"
    name = "unused-weight"
    severity = Severity.NOTE
    needs = Needs.PROBE
    examples = (
        Example(lambda: _left_out("old.weight", "old.bias"), fires_on=("linear0",)),
        Example(_left_out),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for all of them, at the output."""
        learn = subject.probe.trainability
        if not learn.unused or learn.learns_nothing:
            return
        share = learn.size(learn.unused) / max(sum(learn.sizes.values()), 1)
        yield self.finding(
            subject,
            subject.outputs,
            f"{len(learn.unused)} trainable weights, {share:.0%} of all elements, were not used: {listed(learn.unused)}",
            remedy="call the layers that they belong to, or leave them out",
            unused=list(learn.unused),
            share=share,
        )
