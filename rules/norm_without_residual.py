"""GL302 norm-without-residual: BatchNorm after every layer of a deep chain without skips explodes by itself.

What it finds:
    A plain chain in which normalizations alternate with weight layers and no skip goes round them, whose gradient is predicted
    to grow by 2.2 decades or more.

Why it explodes:
    BatchNorm divides by the deviation over the batch. A ReLU turns part of the signal into a mean that all samples share, and
    what is left over the batch is smaller, so the division magnifies it, and the gradient with it: by pi/(pi-1) = 1.47 in the
    mean square at each BatchNorm and ReLU, 1.21 in size, for any weights. 40 layers make more than three decades.

How to fix it:
    Add skip connections, x + f(norm(x)); then each block adds instead of multiplying. LayerNorm or RMSNorm over features with
    ReLU has factor 1, and so has a rescaled activation of zero mean.

References:
    Yang, Pennington, Rao, Sohl-Dickstein, Schoenholz 2019, A Mean Field Theory of Batch Normalization, arXiv 1902.08129.
    Doshi, He, Gromov 2021, Critical Initialization of Wide and Deep Neural Networks through Partial Jacobians, arXiv 2111.12143.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Kind, Rule, Severity, Subject, is_weight_layer, kind_of

SHARE = 0.5  # norms per weight layer; with fewer the weights decide


def _stack(depth: int, norm: str | None) -> GraphBuilder:
    builder = GraphBuilder(batch=4096)
    builder.stack(depth, "relu", gain=2.0**0.5, norm=norm)
    return builder


def _blocks() -> GraphBuilder:
    builder = GraphBuilder()
    builder.blocks(60, norm="batch_norm")
    return builder


class NormWithoutResidual(Rule):
    """Deep normalized chains without skips."""

    code = "GL302"
    name = "norm-without-residual"
    severity = Severity.ERROR
    examples = (
        Example(lambda: _stack(30, "batch_norm"), fires_on=tuple(f"batch_norm{index}" for index in range(1, 30))),
        Example(lambda: _stack(24, "batch_norm")),
        Example(lambda: _stack(60, "layer_norm")),
        Example(_blocks),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per chain."""
        graph = subject.graph
        for trend in subject.claims.rising(subject.chains(norms=True)):
            norms = [step.node for step in trend.steps if kind_of(graph[step.node]) is Kind.NORM]
            weighted = [step.node for step in trend.steps if is_weight_layer(graph[step.node])]
            if not norms or len(norms) < SHARE * len(weighted) or not subject.claims.stands(weighted):
                continue
            op = Counter(graph[node].op for node in norms).most_common(1)[0][0]
            yield self.claim(
                subject,
                trend,
                norms,
                f"{len(norms)} {op} in a row and no skip connection: the gradient {trend.pace(len(norms))} at each",
                remedy="add skip connections, x + f(norm(x)), every two or three layers",
                norms=len(norms),
                factor=trend.factor(len(norms)),
            )
