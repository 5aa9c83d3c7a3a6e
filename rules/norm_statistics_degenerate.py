"""GL304 norm-statistics-degenerate: BatchNorm takes its statistics over a handful of values, and distorts gradients by itself.

What it finds:
    BatchNorm on the statistics of the batch that sees fewer than 8 values per channel: samples times positions of the map. It is
    a note, for a larger batch may be trained with; a warning where there is one value, from a batch of one on a map of 1x1.

Why it explodes:
    The variance of B values is often far below the one that they were drawn with, and the gradient is divided by it: behind a
    linear layer its mean square grows by (B-2)/(B-3) at every BatchNorm, 1.2 for 8 values, 2 for 4, and without a bound for 3.
    What is measured on such a batch is not what training on a larger one does. A single value equals its own mean: the output
    is the bias whatever the input is, and no gradient passes.

How to fix it:
    Give a larger batch, --input x=float32[32,3,224,224], or larger maps. Where training has to do with so few samples, use
    GroupNorm or LayerNorm, whose statistics are of one sample, or BatchNorm over all devices (nn.SyncBatchNorm).

References:
    Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz 2019, A Mean Field Theory of Batch Normalization, arXiv 1902.08129.
    Ioffe 2017, Batch Renormalization: Towards Reducing Minibatch Dependence in Batch-Normalized Models, arXiv 1702.03275.
    Wu, He 2018, Group Normalization, arXiv 1803.08494.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Rule, Severity, Subject

FEW = 8  # values per channel: with 8, the batch that gradlint infers, the factor 1.2 adds a decade in 25 layers


def _norms(*shapes: tuple[int, ...], mode: str = "train", **attrs: Any) -> GraphBuilder:
    builder = GraphBuilder(mode)
    for index, shape in enumerate(shapes):
        x = builder.input(*shape, name=f"x{index}")
        builder.op("batch_norm", builder.op("relu", x), **attrs)
    return builder


class NormStatisticsDegenerate(Rule):
    """Statistics of next to nothing."""

    code = "GL304"
    name = "norm-statistics-degenerate"
    severity = Severity.WARNING
    examples = (
        Example(lambda: _norms((7, 64)), fires_on=("batch_norm0",)),
        Example(lambda: _norms((4, 64), (32, 64), (1, 64, 2, 2)), fires_on=("batch_norm0", "batch_norm2")),
        Example(lambda: _norms((1, 64, 1, 1)), fires_on=("batch_norm0",)),
        Example(lambda: _norms((4, 64), mode="eval", training=True), fires_on=("batch_norm0",)),
        Example(lambda: _norms((8, 64))),
        Example(lambda: _norms((1, 64, 3, 3))),
        Example(lambda: _norms((4, 64), mode="eval")),
        Example(lambda: _norms((4, 64), training=False)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where a BatchNorm takes the statistics of the batch."""
        return None if _values(subject) else "no BatchNorm on the statistics of the batch"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for all of them."""
        few = {node: values for node, values in _values(subject).items() if values < FEW}
        if not few:
            return
        fewest = min(few.values())
        message = f"BatchNorm sees only {fewest} values per channel, which distorts gradients by itself"
        if fewest <= 1:
            message = "BatchNorm sees a single value per channel: its output is constant, and no gradient passes it"
        yield self.finding(
            subject,
            list(few),
            message,
            severity=Severity.WARNING if fewest <= 1 else Severity.NOTE,
            confidence=Confidence.PREDICTED if subject.measurement is None else Confidence.MEASURED,
            remedy="give a larger batch",
            values=fewest,
            limit=FEW,
            norms=len(few),
        )


def _values(subject: Subject) -> dict[str, int]:
    """Values per channel of each BatchNorm on the statistics of the batch, where its shape is known."""
    training = subject.graph.mode == "train"
    return {
        node.id: math.prod(size or 1 for size in node.shape) // (node.shape[1] or 1)
        for node in subject.graph
        if node.op == "batch_norm" and node.attrs.get("training", training) and node.shape and len(node.shape) > 1
    }
