"""GL108 huge-weight: a trainable weight is so large that no update can move it.

What it finds:
    A trainable weight with an element of 10^6 or more: memory that nobody filled (`torch.empty`), a unit that was forgotten, or a
    model that has diverged. A thousand updates of 10^-3, a usual learning rate of Adam, move a weight by 1. Masks that are added
    to logits, whose elements are zero or one negative number, are not reported.

Why it matters:
    A norm behind the weight hides its size from the loss, and the signal that it is added to is lost in its rounding. The weight
    stays as it is throughout training. Without a norm the first loss overflows.

How to fix it:
    Fill it: nn.init.normal_(w, std=0.02) for an embedding, nn.init.zeros_ for a bias.

References:
    Goldberg 1991, What Every Computer Scientist Should Know About Floating-Point Arithmetic (absorption).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Rule, Severity, Subject, Verdict, Weight

HUGE = 1e6
"""What 10^9 updates of 10^-3 would undo: no training run takes so many."""


def _added(size: float) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, 64))
    place = builder.weight(64, gain=8.0 * size, max_abs=size, name="place")
    builder.op("layer_norm", builder.op("add", x, None, shape=(8, 64), weights={"bias": place}), shape=(8, 64))
    return builder


class HugeWeight(Rule):
    """Weights that nobody filled."""

    code = "GL108"
    name = "huge-weight"
    severity = Severity.ERROR
    verdict = Verdict.UNTRAINABLE
    examples = (
        Example(lambda: _added(1e15), fires_on=("add0",)),
        Example(lambda: _added(1e5)),
        Example(lambda: _added(0.02)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per weight."""
        told: set[str] = set()
        for node in subject.graph:
            if node.id in subject.masks.masked and subject.masks.is_masked_by(node):
                continue
            for weight in node.weights.values():
                if weight.name in told or not weight.trainable or not _is_huge(weight):
                    continue
                told.add(weight.name)
                largest = weight.statistics.max_abs
                yield self.finding(
                    subject,
                    [node.id],
                    f"{weight.name} has elements up to {largest:.1e}: no update moves it, and it drowns what it is added to",
                    remedy="fill it, e.g. nn.init.normal_(w, std=0.02); torch.empty leaves what was in memory",
                    weight=weight.name,
                    largest=largest,
                    limit=HUGE,
                )


def _is_huge(weight: Weight) -> bool:
    """Return whether a weight has an element of HUGE or more and is no additive mask, of zeros and one negative number."""
    found = weight.statistics
    if not found.finite or found.max_abs < HUGE:
        return False
    return abs(found.mean_square + found.mean * found.max_abs) > 1e-6 * found.mean_square
