"""GL712 weight-decay-on-norms: a weight decay as strong as is used for matrices also shrinks scales of norms and biases.

What it finds:
    Optimizers whose groups apply a weight decay of 0.05 or more to the scales of norms or to biases. It is a note.

Why it matters:
    A matrix behind a norm may shrink without an effect; the scale of the norm, and a bias, are the function itself. Decay of 0.05
    and more, at which published recipes for transformers and ConvNets leave both out, pulls scales from one to zero by
    1 - exp(-lr decay steps): 40 % in 10 000 steps at a learning rate of 1e-3. SGD at 1e-4 to everything is common and harmless.

How to fix it:
    Two groups: weight_decay=0 for every parameter with one axis, p.ndim < 2, and the decay for the others.

References:
    Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv 1706.02677, 5.3 (no decay on BatchNorm scales).
    He et al. 2019, Bag of Tricks for Image Classification, arXiv 1812.01187, 3.1 (no bias decay).
    Touvron et al. 2021, Training data-efficient image transformers, arXiv 2012.12877 (a decay of 0.05).
    Brown et al. 2020, Language Models are Few-Shot Learners, arXiv 2005.14165 (a decay of 0.1).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import (
    Confidence,
    Example,
    Finding,
    GraphBuilder,
    Kind,
    Needs,
    Recipe,
    Rule,
    Severity,
    Subject,
    kind_of,
    probed,
)

STRONG = 0.05  # the least decay of published recipes that leave norms and biases out (DeiT, Swin, ConvNeXt)


def _decayed(**decay: float) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, 64), name="fc", weight=builder.weight(64, 64, name="w"))
    builder.op("layer_norm", x, name="norm", weights={"scale": builder.weight(64, mean=1.0, gain=0.0, name="scale")})
    return builder.measured(held=probed.Held(2, (), 0, decay)).trained(Recipe("adamw", lr=1e-3, weight_decay=0.1))


class WeightDecayOnNorms(Rule):
    """Decay of what is no matrix."""

    code = "GL712"
    name = "weight-decay-on-norms"
    severity = Severity.NOTE
    needs = Needs.RECIPE
    examples = (
        Example(lambda: _decayed(w=0.1, scale=0.1), fires_on=("norm",)),
        Example(lambda: _decayed(w=0.049, scale=0.049)),
        Example(lambda: _decayed(w=0.1)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where the user gave optimizers: a recipe does not say what its decay is applied to."""
        measured = subject.measurement
        return None if measured is not None and measured.held is not None else "no optimizer was given that could be looked at"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for all of them."""
        held = subject.probe.held
        strong = {name for name, rate in held.decay.items() if rate >= STRONG} if held is not None else set()
        names: dict[str, str] = {}
        for node in subject.graph:
            for role, weight in node.weights.items():
                if weight.name in strong and len(weight.shape) < 2 and (kind_of(node) is Kind.NORM or role == "bias"):
                    names.setdefault(weight.name, node.id)
        if held is None or not names:
            return
        rate = max(held.decay[name] for name in names)
        yield self.finding(
            subject,
            list(dict.fromkeys(names.values())),
            f"weight decay {rate:g} also shrinks {len(names)} scales of norms and biases",
            confidence=Confidence.MEASURED,
            remedy="put parameters with one axis into a group with weight_decay=0",
            decay=rate,
            weights=list(names),
        )
