"""GL803 chaotic-growth: the gradient explodes because the network amplifies every change of its input, not for want of a scale.

What it finds:
    A sustained growth of the gradient by 3.5 decades or more of which at least half remains in the relative gain: the change of
    the output, relative to its size, for a relative change of a layer. Weights that are merely too large leave the relative
    gain flat, for the signal grows with them: measured shares are 0.10 and less for mis-scaled networks (ReLU, GELU, ELU,
    linear, at 1.3 to 2 times their critical gain), and 1.0 for chaotic ones (tanh and sine at large gains, norms without skips).

Why it explodes:
    Nearby inputs are driven apart by a factor at every layer until the output is a hash of the input. No factor on weights,
    loss or learning rate fixes that, and clipping does not either: the function itself is too rough to follow its gradient.

How to fix it:
    Add skip connections round the layers, with branches that are scaled down or start at zero; or initialize at the edge of
    chaos, with a smaller weight gain where the activation is bounded (tanh: 1), where each layer keeps distances.
    BatchNorm and LayerNorm do not help where there is no skip: they keep the signal and let the chaos grow.

References:
    Philipp, Song, Carbonell 2018, The exploding gradient problem demystified, arXiv 1712.05577.
    Poole et al. 2016, Exponential expressivity in deep neural networks through transient chaos, arXiv 1606.05340.
    Yang et al. 2019, A Mean Field Theory of Batch Normalization, arXiv 1902.08129.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import (
    LIMIT,
    Effect,
    Example,
    Finding,
    GraphBuilder,
    Kind,
    Needs,
    Rule,
    Severity,
    Subject,
    kind_of,
    operator,
)

CHAOTIC = 0.5  # share of growth that the relative gain has: measured 0.01 to 0.10 in mis-scaled networks, 1.0 in chaotic ones


def _stack(decades: float, relative: float, norm: str | None = None) -> GraphBuilder:
    builder = GraphBuilder()
    builder.stack(4, "tanh", norm=norm)
    spine = [node.id for node in builder.graph]
    for index, node in enumerate(spine):
        left = 1.0 - index / (len(spine) - 1)
        builder.gains(node, decades * left, 0.0, relative * left)
    return builder.measured()


class ChaoticGrowth(Rule):
    """Growth that the relative gain shares."""

    code = "GL803"
    name = "chaotic-growth"
    severity = Severity.ERROR
    needs = Needs.PROBE
    explains = ("GL801",)
    explained_by = (Effect.EXPLODES, Effect.EITHER)
    examples = (
        Example(lambda: _stack(4.4, 4.4), fires_on=("linear0", "linear1", "linear2", "linear3")),
        Example(lambda: _stack(4.4, 2.4, "layer_norm"), fires_on=("linear0", "linear1", "linear2", "linear3")),
        Example(lambda: _stack(4.4, 0.4)),
        Example(lambda: _stack(4.4, 1.7)),
        Example(lambda: _stack(3.0, 3.0)),
        Example(lambda: _stack(-4.4, -4.4)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        found, relative = subject.growth, subject.probe.growth.relative
        if found is None or relative is None or found.decades < LIMIT:
            return
        share, factor = relative / found.decades, found.factor(relative)
        if share < CHAOTIC or found.is_doubtful:
            return
        yield self.finding(
            subject,
            found.nodes,
            f"a relative change at {found.start.module or found.start.node} arrives 10^{relative:.1f} times larger, "
            f"x{factor:.2f} a layer: the network is chaotic, not mis-scaled",
            remedy=_remedy(subject, found.start.node, found.end.node),
            relative_decades=relative,
            share=share,
            limit=CHAOTIC,
            per_layer=factor,
            **found.evidence,
        )


def _remedy(subject: Subject, start: str, end: str) -> str:
    position = subject.graph.position
    within = [node for node in subject.graph if position[start] <= position[node.id] <= position[end]]
    if any(kind_of(node) is Kind.NORM for node in within):
        return "add skip connections round the layers: a norm without them makes the chaos worse"
    rows = [operator(node.op) for node in within]
    gain = "lower the weight gain (tanh: 1), or " if any(row.bounded and not row.rectifier for row in rows) else ""
    return f"{gain}add skip connections round the layers, with branches scaled down"
