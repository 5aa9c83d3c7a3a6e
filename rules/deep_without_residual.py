"""GL201 deep-without-residual: many weight layers in a row and no skip connection round any of them.

What it finds:
    20 or more weight layers in a plain chain, with or without normalization, through which the gradient is predicted (or
    measured) to grow or shrink by 2.2 decades or more. Layers that a BatchNorm may have been folded into end a chain.

Why it explodes:
    The gradient of the first layer is a product over all layers of the chain. A product of many factors is stable only while
    each is very close to one, which holds at initialization at best and for the first updates at most; the depth that
    information survives is finite on both sides of the critical line. A skip connection turns the product into a sum that
    always has the identity as a term.

How to fix it:
    Group two or three layers to a block and add its input to its output, x + f(norm(x)). Without skips, orthogonal weights at
    the critical gain hold the longest.

References:
    He, Zhang, Ren, Sun 2016, Deep Residual Learning, arXiv 1512.03385 (a plain net of 34 layers trains worse than one of 18).
    Schoenholz, Gilmer, Ganguli, Sohl-Dickstein 2017, Deep Information Propagation, arXiv 1611.01232 (depth scale).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Effect, Example, Finding, GraphBuilder, Rule, Severity, Step, Subject, Trend, is_weight_layer

DEEP = 20  # weight layers: plain nets train well at 18 and degrade at 34 (He 2016, figure 4); VGG-19 is the deepest in wide use


def _stack(depth: int, act: str, gain: float) -> GraphBuilder:
    builder = GraphBuilder()
    builder.stack(depth, act, gain=gain)
    return builder


def _folded() -> GraphBuilder:
    builder = GraphBuilder(mode="eval")
    x = builder.input(8, 64)
    for _ in range(20):
        weights = {"weight": builder.weight(64, 64, gain=2.0)}
        x = builder.op("relu", builder.op("linear", x, weights=weights, notes=("batch-norm-folded",)), shape=(8, 64))
    return builder


def _blocks() -> GraphBuilder:
    builder = GraphBuilder()
    builder.blocks(20, norm="layer_norm")
    return builder


class DeepWithoutResidual(Rule):
    """Long plain chains."""

    code = "GL201"
    name = "deep-without-residual"
    severity = Severity.WARNING
    examples = (
        Example(lambda: _stack(20, "relu", 2.0), fires_on=tuple(f"linear{index}" for index in range(20))),
        Example(lambda: _stack(20, "relu", 1.0), fires_on=tuple(f"linear{index}" for index in range(20))),
        Example(lambda: _stack(19, "relu", 2.0)),
        Example(lambda: _stack(40, "relu", 2.0**0.5)),
        Example(_blocks),
        Example(_folded),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per chain."""
        structure = subject.structure
        for chain in subject.runs(lambda step: subject.is_plain(step) and not subject.hides_norm(subject.graph[step.node])):
            nodes = [step.node for step in chain if is_weight_layer(subject.graph[step.node])]
            depth = structure.depths[chain[-1].node] - structure.depths[structure.signal_parents(chain[0].node)[0]]
            if depth < DEEP or not _is_likely(subject, chain) or not subject.claims.stands(nodes):
                continue
            yield self.claim(
                subject,
                Trend(subject.claims.largest(chain).decades, chain),
                nodes,
                f"{depth} weight layers in a row and no skip connection: the gradient is a product over all of them",
                effect=Effect.EITHER,
                remedy="add each block's input to its output, x + f(norm(x)), every two or three layers",
                depth=depth,
                limit=DEEP,
            )


def _is_likely(subject: Subject, chain: tuple[Step, ...]) -> bool:
    """Whether the chain is worth a claim: for its growth, or since theory cannot follow a step and the probe will tell."""
    blind = subject.measurement is not None and any(step.decades is None for step in chain)
    return blind or subject.claims.is_large(subject.claims.largest(chain))
