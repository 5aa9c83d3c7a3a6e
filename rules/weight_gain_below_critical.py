"""GL102 weight-gain-below-critical: weight layers in a row are drawn too small for the activation between them.

What it finds:
    Weight layers in a plain chain, neither normalized nor bypassed by a skip, whose gain sqrt(fan_in x mean square weight) lies
    under the critical gain of their activation, so that the predicted gradient shrinks by 2.2 decades or more. PyTorch's
    default draw under rectifiers is GL103, activations that saturate at any sensible gain are GL402.

Why it vanishes:
    Going back through a layer multiplies the mean square of the gradient by chi = gain^2 E phi'(z)^2. At the critical gain chi
    is 1. Under it signal and gradient shrink by the same factor at every layer: the first layers hardly learn.

How to fix it:
    Draw the weights at the critical gain: nn.init.xavier_normal_ or nn.init.orthogonal_ with that gain for tanh and for linear
    chains, nn.init.kaiming_normal_ for rectifiers. Or normalize between the layers, or add skip connections.

References:
    Glorot, Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, AISTATS.
    Schoenholz, Gilmer, Ganguli, Sohl-Dickstein 2017, Deep Information Propagation, arXiv 1611.01232 (chi, critical line).
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

from gradlint.rule import Example, Finding, GraphBuilder, Layer, Rule, Severity, Subject

MARGIN = 0.95  # gain under critical: sampling error of a drawn gain is 1/sqrt(2 n) for n weights, 5 % at n = 200
REACHABLE = 2.0  # critical gain; no initializer in use draws a larger one (tanh has 5/3), beyond it the activation is to blame


def _stack(depth: int, act: str, gain: float, *, norm: str | None = None, uniform: bool = False) -> GraphBuilder:
    builder = GraphBuilder()
    builder.stack(depth, act, gain=gain, norm=norm, uniform=uniform)
    return builder


class WeightGainBelowCritical(Rule):
    """Weight layers whose gain lies under the critical gain of their activation."""

    code = "GL102"
    name = "weight-gain-below-critical"
    severity = Severity.ERROR
    examples = (
        Example(lambda: _stack(12, "tanh", 0.5), fires_on=tuple(f"linear{index}" for index in range(12))),
        Example(lambda: _stack(20, "relu", 1.0), fires_on=tuple(f"linear{index}" for index in range(20))),
        Example(lambda: _stack(7, "tanh", 0.5)),
        Example(lambda: _stack(12, "tanh", 1.0)),
        Example(lambda: _stack(12, "tanh", 0.5, norm="layer_norm")),
        Example(lambda: _stack(40, "relu", sqrt(1 / 3), uniform=True)),
        Example(lambda: _stack(20, "sigmoid", 1.0)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per chain that shrinks."""
        for trend in subject.claims.falling(subject.chains()):
            off = subject.claims.imbalance(trend, lambda layer: _is_low(layer) and not subject.claims.is_torch_default(layer))
            if off is not None and subject.is_initialized(off.nodes):
                yield self.claim_gain(subject, trend, off)


def _is_low(layer: Layer) -> bool:
    return 0.0 < layer.gain < MARGIN * layer.critical and layer.critical <= REACHABLE
