"""GL304 norm-statistics-degenerate: a norm takes its statistics over a handful of values, and distorts gradients by itself.

What it finds:
    BatchNorm on the statistics of the batch that sees fewer than 8 values per channel: samples times positions of the map. It is
    a note, for a larger batch may be trained with; a warning where there is one value, from a batch of one on a map of 1x1.

    LayerNorm, GroupNorm and InstanceNorm over a single value: one feature, or one channel in each group of a map of 1x1. It is an
    error of LayerNorm, which no larger input changes, and a warning of the others.

    BatchNorm that uses running variances of which at least half are below its eps. It is a warning: statistics of a constant
    input, or of a model that never ran on data.

Why it explodes:
    The variance of B values is often far below the one that they were drawn with, and the gradient is divided by it: behind a
    linear layer its mean square grows by (B-2)/(B-3) at every BatchNorm, 1.2 for 8 values, 2 for 4, and without a bound for 3.
    What is measured on such a batch is not what training on a larger one does. A single value equals its own mean: the output
    is the bias whatever the input is, and no gradient passes. A running variance near zero makes an amplifier of the layer, by
    1/sqrt(eps), 316 at the default.

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

import numpy as np

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Kind, Node, Rule, Severity, Subject, kind_of

FEW = 8  # values per channel: with 8, the batch that gradlint infers, the factor 1.2 adds a decade in 25 layers


OWN = frozenset({"layer_norm", "group_norm", "instance_norm"})  # norms of one sample
SPENT = 0.5  # of the channels: trained networks have single dead channels


def _norms(*shapes: tuple[int, ...], mode: str = "train", **attrs: Any) -> GraphBuilder:
    builder = GraphBuilder(mode)
    for index, shape in enumerate(shapes):
        x = builder.input(*shape, name=f"x{index}")
        builder.op("batch_norm", builder.op("relu", x), **attrs)
    return builder


def _one(op: str, *shape: int, mode: str = "train", variance: float | None = None, **attrs: Any) -> GraphBuilder:
    builder = GraphBuilder(mode)
    x = builder.linear(builder.input(*shape))
    weights = {}
    if variance is not None:
        values = np.array([variance] * (shape[1] // 2) + [1.0] * (shape[1] - shape[1] // 2))
        weights = {"running_var": builder.array(values, name="running_var")}
    builder.op(op, x, shape=shape, weights=weights, **attrs)
    return builder


class NormStatisticsDegenerate(Rule):
    """Statistics of next to nothing."""

    code = "GL304"
    name = "norm-statistics-degenerate"
    severity = Severity.ERROR
    explains = ("GL806", "GL801")
    examples = (
        Example(lambda: _norms((7, 64)), fires_on=("batch_norm0",)),
        Example(lambda: _norms((4, 64), (32, 64), (1, 64, 2, 2)), fires_on=("batch_norm0", "batch_norm2")),
        Example(lambda: _norms((1, 64, 1, 1)), fires_on=("batch_norm0",)),
        Example(lambda: _norms((4, 64), mode="eval", training=True), fires_on=("batch_norm0",)),
        Example(lambda: _one("layer_norm", 8, 1, normalized_shape=(1,)), fires_on=("layer_norm0",)),
        Example(lambda: _one("group_norm", 8, 64, 1, 1, num_groups=64), fires_on=("group_norm0",)),
        Example(lambda: _one("batch_norm", 8, 64, mode="eval", variance=1e-9, eps=1e-5), fires_on=("batch_norm0",)),
        Example(lambda: _one("layer_norm", 8, 2, normalized_shape=(2,))),
        Example(lambda: _one("group_norm", 8, 64, 1, 1, num_groups=32)),
        Example(lambda: _one("batch_norm", 8, 64, mode="eval", variance=1e-4, eps=1e-5)),
        Example(lambda: _norms((8, 64))),
        Example(lambda: _norms((1, 64, 3, 3))),
        Example(lambda: _norms((4, 64), mode="eval")),
        Example(lambda: _norms((4, 64), training=False)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where there is a norm."""
        return None if any(kind_of(node) is Kind.NORM for node in subject.graph) else "no normalization in the graph"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for each kind of it."""
        yield from self._single(subject)
        yield from self._spent(subject)
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

    def _single(self, subject: Subject) -> Iterator[Finding]:
        single = {node.id: node.op for node in subject.graph if node.op in OWN and _own_values(node) == 1}
        if single:
            sure = "layer_norm" in single.values()
            yield self.finding(
                subject,
                list(single),
                f"{' and '.join(dict.fromkeys(single.values()))} over a single value: the output is constant, and no gradient "
                "passes it",
                severity=Severity.ERROR if sure else Severity.WARNING,
                confidence=Confidence.PREDICTED if subject.measurement is None else Confidence.MEASURED,
                remedy="normalize over more features, or leave the norm out",
                values=1,
                norms=len(single),
            )

    def _spent(self, subject: Subject) -> Iterator[Finding]:
        spent = [node.id for node in subject.graph if _spent_share(subject, node) >= SPENT]
        if spent:
            yield self.finding(
                subject,
                spent,
                f"{len(spent)} BatchNorms use running variances that are mostly below eps: they amplify up to "
                f"{_eps(subject.graph[spent[0]]) ** -0.5:.0f} times",
                severity=Severity.WARNING,
                confidence=Confidence.PREDICTED if subject.measurement is None else Confidence.MEASURED,
                remedy="run the model on data in train mode first, or reset the statistics",
                norms=len(spent),
            )


def _own_values(node: Node) -> int | None:
    """Values over which a norm of one sample takes its statistics, if the shape is known."""
    shape = node.shape or ()
    if not shape or any(size is None for size in shape) or len(shape) < 2:
        return None
    sizes = [size or 1 for size in shape]
    if node.op == "layer_norm":
        axis = node.attrs.get("axis")
        over = node.attrs.get("normalized_shape", sizes[axis:] if isinstance(axis, int) else None)
        return math.prod(over) if over else None
    groups = sizes[1] if node.op == "instance_norm" else node.attrs.get("num_groups")
    return math.prod(sizes[1:]) // groups if isinstance(groups, int) and groups > 0 else None


def _spent_share(subject: Subject, node: Node) -> float:
    """Share of the channels whose running variance is below eps, of a BatchNorm that uses it; 0 for all others."""
    variance = node.weights.get("running_var")
    if node.op != "batch_norm" or variance is None or node.attrs.get("training", subject.graph.mode == "train"):
        return 0.0
    return float(np.mean(variance.vector < _eps(node))) if variance.size else 0.0


def _eps(node: Node) -> float:
    found = node.attrs.get("eps", node.attrs.get("epsilon", 1e-5))
    return float(found) if isinstance(found, (int, float)) and found > 0.0 else 1e-5


def _values(subject: Subject) -> dict[str, int]:
    """Values per channel of each BatchNorm on the statistics of the batch, where its shape is known."""
    training = subject.graph.mode == "train"
    return {
        node.id: math.prod(size or 1 for size in node.shape) // (node.shape[1] or 1)
        for node in subject.graph
        if node.op == "batch_norm" and node.attrs.get("training", training) and node.shape and len(node.shape) > 1
    }
