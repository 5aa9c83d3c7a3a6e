"""GL103 default-init-in-deep-relu: a deep chain of rectifiers keeps PyTorch's default weights, which starve it.

What it finds:
    Weight layers in a plain chain of rectifiers (ReLU, GELU, SiLU and their kin), neither normalized nor bypassed by a skip,
    whose weights are as nn.Linear and nn.Conv2d draw them, so that the predicted gradient shrinks by 2.2 decades or more.

Why it vanishes:
    The default draw is kaiming_uniform with a = sqrt 5, that is U(-b, b) with b = 1/sqrt(fan_in): fan_in Var W = 1/3. ReLU lets
    half of the squares pass and needs fan_in Var W = 2. Each layer keeps 1/6 of the mean square of the gradient, 0.41 of its
    size: six layers lose more than two decades.

How to fix it:
    nn.init.kaiming_normal_(w, nonlinearity="relu") on every weight of the chain; for GELU and SiLU, whose critical gain is
    higher, nn.init.orthogonal_ with that gain. Or a normalization after each layer, or skip connections.

References:
    He, Zhang, Ren, Sun 2015, Delving Deep into Rectifiers, arXiv 1502.01852 (fan_in Var W = 2 for ReLU).
    torch.nn.Linear, torch.nn.Conv2d: reset_parameters calls init.kaiming_uniform_(weight, a=math.sqrt(5)).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import sqrt

from gradlint.rule import Example, Finding, GraphBuilder, Rule, Severity, Subject, operator

DEFAULT = sqrt(1 / 3)  # gain of kaiming_uniform(a=sqrt 5)


def _stack(depth: int, gain: float = DEFAULT, *, norm: str | None = None, uniform: bool = True) -> GraphBuilder:
    builder = GraphBuilder()
    builder.stack(depth, "relu", gain=gain, norm=norm, uniform=uniform)
    return builder


def _convolutions(depth: int) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 16, 32, 32)
    for _ in range(depth):
        weight = builder.weight(16, 16, 3, 3, gain=DEFAULT, max_abs=1 / sqrt(16 * 9))
        x = builder.op("conv", x, weights={"weight": weight}, shape=(8, 16, 32, 32))
        x = builder.op("relu", x, shape=(8, 16, 32, 32))
    return builder


class DefaultInitInDeepRelu(Rule):
    """Rectifier chains under PyTorch's default weights."""

    code = "GL103"
    name = "default-init-in-deep-relu"
    severity = Severity.ERROR
    examples = (
        Example(lambda: _stack(40), fires_on=tuple(f"linear{index}" for index in range(40))),
        Example(lambda: _convolutions(8), fires_on=tuple(f"conv{index}" for index in range(8))),
        Example(lambda: _stack(6)),
        Example(lambda: _stack(40, sqrt(2.0))),
        Example(lambda: _stack(40, norm="batch_norm")),
        Example(lambda: _stack(40, uniform=False)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per chain that shrinks."""
        is_default = subject.claims.is_torch_default
        for trend in subject.claims.falling(subject.chains()):
            off = subject.claims.imbalance(trend, lambda layer: 0.0 < layer.gain < layer.critical and is_default(layer))
            if off is None:
                continue
            cure = f"nn.init.orthogonal_(w, gain={off.typical:.2f})"
            if 0.0 in operator(off.usual).kinks:
                cure = 'nn.init.kaiming_normal_(w, nonlinearity="relu")'
            yield self.claim_gain(
                subject,
                trend,
                replace(off, gain=DEFAULT, critical=off.typical),
                f"{len(off.nodes)} weight layers keep PyTorch's default init, gain {DEFAULT:.2f}; {off.usual} needs "
                f"{off.typical:.2f}",
                remedy=f"{cure} on these weights, or a norm after each layer",
            )
