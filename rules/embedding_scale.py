"""GL106 embedding-scale: what is added to an embedding of the input drowns it.

What it finds:
    A sum of an embedding that inputs choose and of something that they do not choose, such as positions, which is 20 times as
    large or more and has a root mean square of 1.5 or more.

Why it vanishes:
    The next norm divides by the size of the sum, so that one token differs from another by a twentieth of what every token has in
    common, and so do the gradients that teach them apart. Small numbers on both sides grow quickly under Adam: tokens of 0.02
    below sines of 0.7 are no problem. Tokens of 1 below positions of 30 leave a transformer at 13 % on a task that it else
    solves, tokens of 0.02 below positions of 2 at 53 % with a learning rate of 3e-4.

How to fix it:
    Multiply the embedding by sqrt(d), or draw the positions as small as the tokens.

References:
    Vaswani et al. 2017, Attention Is All You Need, arXiv 1706.03762, 3.4 (embeddings times sqrt(d)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Kind, Node, Rule, Severity, Subject, kind_of

RATIO = 20.0  # 30 fails and 35 does not, with others of 30 and 0.7
LEAST = 1.5  # root mean square of what drowns: 2 costs half the accuracy, 0.7 nothing
THROUGH = frozenset({Kind.SHAPE, Kind.DROPOUT, Kind.MUL})


def _summed(tokens: float, positions: float, *, chosen: bool = False) -> GraphBuilder:
    builder = GraphBuilder()
    ids = builder.input(8, 16, name="ids", dtype="int64")
    table = builder.weight(100, 64, gain=8.0 * tokens, name="tokens")
    x = builder.op("embedding", ids, weights={"weight": table}, shape=(8, 16, 64))
    places = builder.weight(16, 64, gain=8.0 * positions, name="places")
    if chosen:
        other = builder.op("embedding", ids, weights={"weight": places}, shape=(8, 16, 64))
        x = builder.op("add", x, other, shape=(8, 16, 64))
    else:
        x = builder.op("add", x, None, weights={"bias": places}, shape=(8, 16, 64))
    builder.linear(builder.norm(x), 64)
    return builder


class EmbeddingScale(Rule):
    """Embeddings that are drowned."""

    code = "GL106"
    name = "embedding-scale"
    severity = Severity.WARNING
    examples = (
        Example(lambda: _summed(0.02, 2.0), fires_on=("add0",)),
        Example(lambda: _summed(1.0, 30.0), fires_on=("add0",)),
        Example(lambda: _summed(0.02, 1.4)),
        Example(lambda: _summed(0.11, 2.0)),
        Example(lambda: _summed(0.02, 2.0, chosen=True)),
        Example(lambda: _summed(1.0, 1.0)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where there is an embedding."""
        found = any(kind_of(node) is Kind.EMBEDDING for node in subject.graph)
        return None if found else "no embedding in the graph"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per sum."""
        chosen = {subject.graph.inputs[0]} if subject.graph.inputs else set()
        for node in subject.graph:
            if node.op == "input" or any(parent.id in chosen for parent in subject.graph.parents(node.id)):
                chosen.add(node.id)
        for node in subject.graph:
            if node.op != "add":
                continue
            terms = [parent for parent in subject.graph.parents(node.id) if parent.is_float]
            tokens = [term for term in terms if term.id in chosen and _is_embedded(subject, term)]
            others = [level for term in terms if term.id not in chosen and (level := _level(subject, term)) is not None]
            others += [_size(weight.statistics.mean_square) for weight in node.weights.values() if len(weight.shape) > 1]
            own = _level(subject, tokens[0]) if len(tokens) == 1 and len(terms) < 3 else None
            largest = max(others, default=0.0)
            if own is None or own <= 0.0 or largest < LEAST or largest < RATIO * own:
                continue
            yield self.finding(
                subject,
                [node.id],
                f"an embedding of root mean square {own:.2g} is added to one of {largest:.2g}, which drowns it",
                confidence=Confidence.PREDICTED if subject.measurement is None else Confidence.MEASURED,
                remedy="multiply the embedding by sqrt(d), or draw what is added as small as it",
                embedding=own,
                other=largest,
            )


def _is_embedded(subject: Subject, node: Node) -> bool:
    """Whether a node is an embedding, perhaps scaled or reshaped."""
    return _source(subject, node) is not None


def _source(subject: Subject, node: Node) -> Node | None:
    while kind_of(node) in THROUGH:
        parents = [parent for parent in subject.graph.parents(node.id) if parent.is_float]
        if len(parents) != 1:
            return None
        node = parents[0]
    return node if kind_of(node) is Kind.EMBEDDING else None


def _level(subject: Subject, node: Node) -> float | None:
    """Root mean square of a node's output, as measured or, of an embedding without factors, that of its table."""
    measured = subject.measurement
    if measured is not None and node.id in measured.gains:
        level = measured.gains[node.id].forward
        return 10.0 ** min(level, 300.0) if level is not None and not math.isnan(level) else None
    tables = [weight for weight in node.weights.values() if len(weight.shape) == 2]
    return _size(tables[0].statistics.mean_square) if kind_of(node) is Kind.EMBEDDING and tables else None


def _size(square: float) -> float:
    return math.sqrt(square) if math.isfinite(square) else math.inf
