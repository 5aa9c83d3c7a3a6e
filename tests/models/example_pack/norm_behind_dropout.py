"""XP101 norm-behind-dropout: a BatchNorm takes its statistics of a signal that a dropout has scaled.

What it finds:
    A BatchNorm in train mode with a dropout before it and no norm between the two: what it reads has another variance when the
    model is used, for dropout is off then.

Why it matters:
    Dropout at rate p multiplies the mean square of a signal of zero mean by 1/(1-p), which the running statistics take in. In
    eval mode the BatchNorm divides by a variance that the signal no longer has: at p = 0.5 every one shrinks it by 0.71.

How to fix it:
    Put the dropout behind the last BatchNorm, or use LayerNorm, whose statistics are of the sample that it normalizes.

References:
    Li, Chen, Hu, Yang 2018, Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift,
    arXiv 1801.05134.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Kind, Node, Rule, Severity, Subject, is_weight_layer, kind_of, listed

FEWEST = 0.2  # rate from which on it is told: the variance is off by 1/(1-p) = 1.25


def _stack(*ops: str, p: float = 0.5, mode: str = "train") -> GraphBuilder:
    builder = GraphBuilder(mode)
    x = builder.input(64, 64)
    for op in ops:
        x = builder.linear(x) if op == "linear" else builder.op(op, x, p=p)
    return builder


class NormBehindDropout(Rule):
    """Statistics of a signal with dropout."""

    code = "XP101"
    name = "norm-behind-dropout"
    severity = Severity.WARNING
    examples = (
        Example(lambda: _stack("linear", "dropout", "linear", "batch_norm"), fires_on=("batch_norm0",)),
        Example(lambda: _stack("dropout", "batch_norm", "dropout", "batch_norm"), fires_on=("batch_norm0", "batch_norm1")),
        Example(lambda: _stack("linear", "dropout", "linear", "batch_norm", p=0.1)),
        Example(lambda: _stack("linear", "dropout", "linear", "batch_norm", mode="eval")),
        Example(lambda: _stack("linear", "batch_norm", "dropout", "linear")),
        Example(lambda: _stack("linear", "dropout", "layer_norm", "linear", "batch_norm")),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only in train mode, and where there is a dropout."""
        if subject.graph.mode != "train":
            return "the model is in eval mode"
        return None if any(kind_of(node) is Kind.DROPOUT for node in subject.graph) else "no dropout in the graph"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for all of them."""
        found = {node.id: dropped for node in subject.graph if node.op == "batch_norm" and (dropped := _dropped(subject, node))}
        if found:
            rate = max(_rate(node) for node in found.values())
            yield self.finding(
                subject,
                list(found),
                f"{len(found)} BatchNorm read what a dropout has scaled: {listed([node.label for node in found.values()])}",
                remedy="put the dropout behind the last BatchNorm, or use LayerNorm",
                rate=rate,
                variance=1.0 / (1.0 - rate),
                layers=sum(is_weight_layer(node) for node in subject.graph),
            )


def _dropped(subject: Subject, norm: Node) -> Node | None:
    """The dropout that a norm reads, along a chain without forks and without another norm."""
    node = norm
    while len(parents := subject.graph.parents(node.id)) == 1:
        node = parents[0]
        if subject.normalizes(node):
            return None
        if kind_of(node) is Kind.DROPOUT and FEWEST <= _rate(node) < 1.0:
            return node
    return None


def _rate(node: Node) -> float:
    return float(node.attrs.get("p", 0.5))
