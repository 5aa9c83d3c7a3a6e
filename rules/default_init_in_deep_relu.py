"""GL103 default-init-in-deep-relu: a deep chain of rectifiers keeps PyTorch's default weights, which starve it.

What it finds:
    Weight layers in a plain chain of rectifiers (ReLU, GELU, SiLU and their kin), neither normalised nor bypassed by a skip,
    whose weights are as nn.Linear and nn.Conv2d draw them, so that the predicted gradient shrinks by 2.2 decades or more.

Why it vanishes:
    The default draw is kaiming_uniform with a = sqrt 5, that is U(-b, b) with b = 1/sqrt(fan_in): fan_in Var W = 1/3. ReLU lets
    half of the squares pass and needs fan_in Var W = 2. Each layer keeps 1/6 of the mean square of the gradient, 0.41 of its
    size: six layers lose more than two decades.

How to fix it:
    nn.init.kaiming_normal_(w, nonlinearity="relu") on every weight of the chain; for GELU and SiLU, whose critical gain is
    higher, nn.init.orthogonal_ with that gain. Or a normalisation after each layer, or skip connections.

References:
    He, Zhang, Ren, Sun 2015, Delving Deep into Rectifiers, arXiv 1502.01852 (fan_in Var W = 2 for ReLU).
    torch.nn.Linear, torch.nn.Conv2d: reset_parameters calls init.kaiming_uniform_(weight, a=math.sqrt(5)).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from math import log10, sqrt
from statistics import median

from gradlint.rule import (
    RECTIFIERS,
    Effect,
    Example,
    Finding,
    GraphBuilder,
    Layer,
    Rule,
    Severity,
    Subject,
    fall,
    is_torch_default,
    layers,
    main_weight,
)

EXPLAINED = 0.5  # of the predicted decay: a deficit that explains less is not the cause
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
        for chain in subject.chains():
            trend = fall(chain)
            if trend.span is None or not subject.is_claim(trend):
                continue
            default = [layer for layer in layers(subject.structure, trend.steps) if self._is_default(subject, layer)]
            nodes = [layer.node for layer in default]
            if sum(log10(layer.critical / layer.gain) for layer in default) < -EXPLAINED * trend.decades:
                continue
            act = Counter(layer.activation.op for layer in default if layer.activation).most_common(1)[0][0]
            critical = median(layer.critical for layer in default)
            cure = f"nn.init.orthogonal_(w, gain={critical:.2f})"
            if act in {"relu", "relu6", "leaky_relu", "prelu"}:
                cure = 'nn.init.kaiming_normal_(w, nonlinearity="relu")'
            yield self.claim(
                subject,
                nodes,
                f"{len(nodes)} weight layers keep PyTorch's default init, gain {DEFAULT:.2f}; {act} needs "
                f"{critical:.2f}: the gradient shrinks x{10 ** (trend.decades / len(nodes)):.2f} a layer",
                effect=Effect.VANISHES,
                span=trend.span,
                decades=trend.decades,
                remedy=f"{cure} on these weights, or a norm after each layer",
                gain=DEFAULT,
                critical=critical,
                layers=len(nodes),
            )

    @staticmethod
    def _is_default(subject: Subject, layer: Layer) -> bool:
        weight = main_weight(subject.graph[layer.node])
        rectified = layer.activation is not None and layer.activation.op in RECTIFIERS
        return rectified and weight is not None and is_torch_default(weight) and 0.0 < layer.gain < layer.critical
