"""GL801 jacobian-growth: the measured gradient explodes on its way from the output to the first layers.

What it finds:
    A sustained growth of the measured gradient by 3.5 decades or more along a track: the layers that every path passes, a tower,
    the inner path of a U-Net, a deep head; step-growth tells of the steps of a recurrence. The largest single step is left out: a
    head or a stem is not an explosion. Gradients of weights decide: it is a warning where they do not follow, and an error
    without that growth where those of like layers drift apart by 2.2 decades, or where the output of a drawn model reaches
    10^2.25. It is also a warning where BatchNorm stands in eval mode on statistics that are not those of the signal, since
    training uses those of the batch.

Why it explodes:
    Each layer multiplies the gradient by its Jacobian. Where the factors are over one on average, the product is exponential in
    the number of layers or steps. An update that suits the last layers then throws the first ones out of range.

How to fix it:
    Look at the finding that names the cause. Where there is none: lower the weight gain, add normalization or skip connections
    between start and end; clipping the gradient norm keeps a run alive and does not fix the ratio between layers.

References:
    Philipp, Song, Carbonell 2018, The exploding gradient problem demystified, arXiv 1712.05577.
    Pennington, Schoenholz, Ganguli 2017, Resurrecting the sigmoid in deep learning, arXiv 1711.04735 (spectrum of the Jacobian).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import LIMIT, Effect, Example, Finding, GraphBuilder, Needs, Rule, Severity, Subject

REMEDY = "lower the weight gain, add normalization or skip connections here; clip the gradient norm meanwhile"
RESCALE = "only the scale is wrong, for the relative gain stays flat: lower the weight gain or add normalization here"
FLAT = 0.5  # share of growth that the relative gain has, below which a network is mis-scaled and not chaotic (GL803)
SETTLE = "lint the torch module in train mode, or feed its BatchNorms before the export"


def _stack(decades: float) -> GraphBuilder:
    builder = GraphBuilder()
    builder.stack(4, "tanh")
    return builder.ramp(decades)


class JacobianGrowth(Rule):
    """The measured explosion itself."""

    code = "GL801"
    name = "jacobian-growth"
    severity = Severity.ERROR
    needs = Needs.PROBE
    explained_by = (Effect.EXPLODES, Effect.EITHER)
    states_growth = True
    examples = (
        Example(lambda: _stack(4.2), fires_on=("linear0", "linear1", "linear2", "linear3")),
        Example(lambda: _stack(3.6)),
        Example(lambda: _stack(-4.2)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding: growth along time is that of GL505."""
        found, relative = subject.growth, subject.probe.growth.relative
        if found is not None and max(found.decades, found.counted) >= LIMIT:
            flat = relative is not None and relative < FLAT * found.decades
            factor = found.factor(found.decades)
            yield self.finding(
                subject,
                found.nodes,
                found.reason
                or f"the gradient grows 10^{found.decades:.1f} over {found.layers} layers, x{factor:.2f} a layer{found.remarks}",
                severity=Severity.WARNING if found.is_doubtful else None,
                remedy=SETTLE if found.is_unsettled else RESCALE if flat else REMEDY,
                decades=found.decades,
                layers=found.layers,
                per_layer=factor,
                relative_decades=relative,
                **found.evidence,
            )
