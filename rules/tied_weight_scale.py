"""GL110 tied-weight-scale: an embedding that is also the last layer is drawn for the one, and too large for the other.

What it finds:
    A weight that an embedding and a linear layer at the end of the model share, untrained, with logits of a root mean square of
    5 or more, measured or, for an input of unit size, predicted: nn.Embedding draws from N(0, 1).

Why it matters:
    An embedding of unit elements makes logits of deviation sqrt(d): 22 for 512 units, where the cross-entropy starts at
    hundreds. The first steps shrink the logits, and with them the embedding, by gradients as large as the loss.

How to fix it:
    Draw the weight with deviation 0.02 or 1/sqrt(d) and multiply the embedding by sqrt(d), as in Vaswani 2017; or divide the
    logits by sqrt(d), as T5 does.

References:
    Press, Wolf 2017, Using the Output Embedding to Improve Language Models, arXiv 1608.05859.
    Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762, 3.4.
    Raffel et al. 2020, Exploring the Limits of Transfer Learning, arXiv 1910.10683 (T5 scales its logits).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Kind, Rule, Severity, Subject, kind_of

LARGE = 5.0  # of 17 tied architectures the largest is 1.1; logits of deviation s cost up to s^2 / 2 nats: here 12


def _tied(deviation: float, *, measured: float | None = None, shared: bool = True) -> GraphBuilder:
    builder = GraphBuilder()
    table = builder.weight(100, 64, gain=8.0 * deviation, name="table")
    tokens = builder.input(8, 16, name="tokens", dtype="int64")
    x = builder.op("embedding", tokens, weights={"weight": table}, shape=(8, 16, 64))
    x = builder.norm(builder.linear(x, 64))
    builder.linear(x, 100, name="head", weight=table if shared else builder.weight(100, 64, gain=8.0 * deviation))
    return builder if measured is None else builder.gains("head", 0.0, measured)


class TiedWeightScale(Rule):
    """An embedding as the last layer."""

    code = "GL110"
    name = "tied-weight-scale"
    severity = Severity.WARNING
    explains = ("GL107", "GL703")
    examples = (
        Example(lambda: _tied(1.0), fires_on=("head",)),
        Example(lambda: _tied(0.1, measured=0.75), fires_on=("head",)),
        Example(lambda: _tied(0.6)),
        Example(lambda: _tied(1.0, measured=0.65)),
        Example(lambda: _tied(1.0, shared=False)),
        Example(lambda: _tied(0.02)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per shared weight."""
        tables = {
            weight.name: weight
            for node in subject.graph
            if kind_of(node) is Kind.EMBEDDING
            for weight in node.weights.values()
            if len(weight.shape) == 2
        }
        ends = {ref.node for ref in subject.structure.trunk}
        for node in subject.graph:
            shared = [weight for weight in node.weights.values() if weight.name in tables]
            if kind_of(node) is not Kind.LINEAR or node.id not in ends or not shared or not subject.look_drawn(shared):
                continue
            size = self._logits(subject, node.id, tables[shared[0].name].statistics.mean_square * shared[0].shape[1])
            if size < LARGE:
                continue
            deviation = math.sqrt(shared[0].statistics.mean_square)
            yield self.finding(
                subject,
                [node.id],
                f"{shared[0].name}, shared with an embedding, has elements of deviation {deviation:.2g}: the logits have a root "
                f"mean square of {size:.3g}",
                confidence=Confidence.PREDICTED if subject.measurement is None else Confidence.MEASURED,
                remedy="draw it with deviation 0.02 or 1/sqrt(d), and multiply the embedding by sqrt(d); or divide the logits",
                deviation=deviation,
                logits=size,
            )

    @staticmethod
    def _logits(subject: Subject, node: str, square: float) -> float:
        """Root mean square of the logits, as measured, or for an input of unit size."""
        measured = subject.measurement
        level = measured.gains[node].forward if measured is not None and node in measured.gains else None
        return 10.0 ** min(level, 300.0) if level is not None and math.isfinite(level) else math.sqrt(square)
