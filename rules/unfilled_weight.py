"""GL109 unfilled-weight: a trainable weight holds numbers so small that nobody meant them.

What it finds:
    A trainable weight whose elements are not all zero, and none of which is larger than 1e-20: memory that nobody filled, in
    which torch.empty leaves what was there, mostly zeros and subnormal numbers.

Why it vanishes:
    Such a layer passes nothing, neither forward nor back, and weights behind products of two such numbers underflow to zero. What
    is in memory changes from run to run: the next one may find numbers of 1e30 there.

How to fix it:
    Fill it: nn.init.normal_(w, std=0.02) for an embedding, nn.init.zeros_ for a bias.

References:
    PyTorch documentation, torch.empty (uninitialized data).
    Goldberg 1991, What Every Computer Scientist Should Know About Floating-Point Arithmetic (underflow).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Rule, Severity, Subject

TINY = 1e-20
"""The smallest that 111 architectures and 24 trained models begin with is 1e-6, a layer scale; the square of this underflows."""


def _added(size: float) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, 64))
    place = builder.weight(64, gain=size, max_abs=size, name="place")
    builder.op("add", x, None, shape=(8, 64), weights={"bias": place})
    return builder


class UnfilledWeight(Rule):
    """Weights that are what was in memory."""

    code = "GL109"
    name = "unfilled-weight"
    severity = Severity.WARNING
    examples = (
        Example(lambda: _added(1e-41), fires_on=("add0",)),
        Example(lambda: _added(1e-19)),
        Example(lambda: _added(0.0)),
        Example(lambda: _added(0.02)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per weight."""
        told: set[str] = set()
        for node in subject.graph:
            for weight in node.weights.values():
                if weight.name in told or not weight.trainable:
                    continue
                told.add(weight.name)
                facts = weight.statistics
                if facts.finite and 0.0 < facts.max_abs < TINY:
                    yield self.finding(
                        subject,
                        [node.id],
                        f"{weight.name} has elements up to {facts.max_abs:.1e} and not all zero: memory that nobody filled",
                        remedy="fill it, e.g. nn.init.normal_(w, std=0.02); torch.empty leaves what was in memory",
                        weight=weight.name,
                        largest=facts.max_abs,
                        limit=TINY,
                    )
