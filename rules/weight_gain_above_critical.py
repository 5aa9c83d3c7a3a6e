"""GL101 weight-gain-above-critical: weight layers in a row are drawn too large for the activation between them.

What it finds:
    Weight layers in a plain chain, neither normalized nor bypassed by a skip, whose gain sqrt(fan_in x mean square weight)
    exceeds the critical gain of their activation, so that the predicted gradient grows by 2.2 decades or more.

Why it explodes:
    Going back through a layer multiplies the mean square of the gradient by chi = gain^2 E phi'(z)^2. At the critical gain chi
    is 1. Above it the factor is the same at every layer, so the gradient grows exponentially with depth: N(0, 1) weights of 64
    inputs have gain 8. Depth turns a small excess into a large one: 1.2 a layer is 10^4 after 50 layers.

How to fix it:
    Draw the weights at the critical gain: nn.init.orthogonal_ or nn.init.xavier_normal_ with that gain for tanh,
    nn.init.kaiming_normal_ for ReLU. Or scale the weights that are there once, or normalize between the layers.

References:
    Schoenholz, Gilmer, Ganguli, Sohl-Dickstein 2017, Deep Information Propagation, arXiv 1611.01232 (chi, critical line).
    He, Zhang, Ren, Sun 2015, Delving Deep into Rectifiers, arXiv 1502.01852 (fan_in Var W = 2 for ReLU).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Rule, Severity, Subject

MARGIN = 1.05  # gain over critical: sampling error of a drawn gain is 1/sqrt(2 n) for n weights, 5 % at n = 200


def _stack(depth: int, act: str, gain: float, norm: str | None = None) -> GraphBuilder:
    builder = GraphBuilder()
    builder.stack(depth, act, gain=gain, norm=norm)
    return builder


def _trained() -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for _ in range(30):
        x = builder.op("tanh", builder.linear(x, weight=builder.weight(64, 64, gain=2.5, mean=0.1)), shape=(8, 64))
    return builder


class WeightGainAboveCritical(Rule):
    """Weight layers whose gain lies over the critical gain of their activation."""

    code = "GL101"
    name = "weight-gain-above-critical"
    severity = Severity.ERROR
    examples = (
        Example(lambda: _stack(30, "tanh", 2.5), fires_on=tuple(f"linear{index}" for index in range(30))),
        Example(lambda: _stack(12, "relu", 2.5), fires_on=tuple(f"linear{index}" for index in range(12))),
        Example(lambda: _stack(20, "tanh", 2.5)),
        Example(lambda: _stack(30, "tanh", 1.0)),
        Example(lambda: _stack(30, "tanh", 2.5, norm="layer_norm")),
        Example(_trained),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per chain that grows."""
        for trend in subject.claims.rising(subject.chains()):
            off = subject.claims.imbalance(trend, lambda layer: layer.gain > MARGIN * layer.critical)
            if off is not None and subject.is_initialized(off.nodes):
                yield self.claim_gain(subject, trend, off)
