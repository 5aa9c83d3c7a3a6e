"""GL802 jacobian-decay: the measured gradient vanishes on its way from the output to the first layers.

What it finds:
    A sustained decay of the measured gradient by 3.5 decades or more along a track (the layers that every path passes, a tower,
    the inner path of a U-Net, a deep head) that the gradients of weights follow, a drift of these between like layers by 2.2
    decades or more, or a model in which no weight can get a gradient at all. Decay over the steps of a recurrence is not reported
    here: it costs memory, not training. It is a warning where BatchNorm stands in eval mode on statistics that are not those of
    the signal, such as those of a model that has seen no data: training uses those of the batch.

Why it vanishes:
    Each layer multiplies the gradient by its Jacobian. Where the factors are under one on average, the product fades
    exponentially with depth: the last layers learn on top of first layers that hardly move.

How to fix it:
    Look at the finding that names the cause. Where there is none: raise the weight gain to the critical value of the
    activation, or add normalization or skip connections between start and end.

References:
    Hochreiter 1991; Bengio, Simard, Frasconi 1994, Learning long-term dependencies with gradient descent is difficult.
    Schoenholz, Gilmer, Ganguli, Sohl-Dickstein 2017, Deep Information Propagation, arXiv 1611.01232 (depth scale).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import LIMIT, Effect, Example, Finding, GraphBuilder, Needs, Rule, Severity, Subject, is_weight_layer

REMEDY = "raise the weight gain, add normalization or skip connections here"
SETTLE = "lint the torch module in train mode, or feed its BatchNorms before the export"


def _stack(decades: float, *, dead: bool = False) -> GraphBuilder:
    builder = GraphBuilder()
    builder.stack(4, "tanh")
    return builder.ramp(decades).measured(dead=dead)


class JacobianDecay(Rule):
    """The measured vanishing itself."""

    code = "GL802"
    name = "jacobian-decay"
    severity = Severity.ERROR
    needs = Needs.PROBE
    explained_by = (Effect.VANISHES, Effect.EITHER)
    states_growth = True
    examples = (
        Example(lambda: _stack(-4.2), fires_on=("linear0", "linear1", "linear2", "linear3")),
        Example(lambda: _stack(0.0, dead=True), fires_on=("linear0", "linear1", "linear2", "linear3")),
        Example(lambda: _stack(-3.6)),
        Example(lambda: _stack(4.2)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        found = subject.growth
        if subject.probe.dead:
            nodes = [node.id for node in subject.graph if is_weight_layer(node)]
            message = "no weight of the model gets a gradient that is not zero"
            remedy = "draw the weights at random; look for a layer of zeros, a dead activation or a detach"
            yield self.finding(subject, nodes, message, remedy=remedy, layers=len(nodes))
        elif found is not None and min(found.decades, found.counted) <= -LIMIT:
            factor = found.factor(found.decades)
            yield self.finding(
                subject,
                found.nodes,
                found.reason
                or f"the gradient shrinks to 10^{found.decades:.1f} over {found.layers} layers, x{factor:.2f} a layer"
                f"{found.remarks}",
                severity=Severity.WARNING if found.is_doubtful else None,
                remedy=SETTLE if found.is_unsettled else REMEDY,
                decades=found.decades,
                layers=found.layers,
                per_layer=factor,
                **found.evidence,
            )
