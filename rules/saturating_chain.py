"""GL402 saturating-chain: activations that squash, one after another, let little of the gradient through.

What it finds:
    Sigmoids, or other bounded activations on large inputs, in a plain chain without skips, that shrink the predicted gradient by
    2.2 decades or more although the weights are large enough. A norm between them does not always make up for it: LayerNorm
    divides by a signal of which most is a mean.

Why it vanishes:
    The slope of a sigmoid is 1/4 at most, and 0.21 on unit inputs; that of tanh is 1 at zero and falls with the square of the
    signal beyond. The gradient is multiplied by it at every layer. Weights cannot make up for it: a sigmoid would need gain 10.

How to fix it:
    Use ReLU, GELU or tanh between layers and keep the sigmoid for the last one. Where tanh or its kin saturates, make the
    weights and biases before it smaller, or normalize its input.

References:
    Hochreiter 1991; Bengio, Simard, Frasconi 1994, Learning long-term dependencies with gradient descent is difficult.
    Glorot, Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, AISTATS (saturation).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Layer, Rule, Severity, Subject, operator

REACHABLE = 2.0  # critical gain; no initializer in use draws a larger one (tanh has 5/3), beyond it the activation is to blame
MARGIN = 0.95  # gain over critical from which on the weights are large enough
EXPLAINED = 0.5  # of the predicted decay: activations that explain less are not the cause


def _stack(depth: int, act: str, norm: str | None = None, bias: float = 0.0) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for _ in range(depth):
        x = builder.linear(x)
        x = builder.op("add", x, weights={"bias": builder.weight(64, 1, gain=bias)}, shape=(8, 64)) if bias else x
        x = builder.norm(x, norm) if norm else x
        x = builder.op(act, x, shape=(8, 64))
    return builder


class SaturatingChain(Rule):
    """Chains of bounded activations."""

    code = "GL402"
    name = "saturating-chain"
    severity = Severity.ERROR
    examples = (
        Example(lambda: _stack(20, "sigmoid"), fires_on=tuple(f"sigmoid{index}" for index in range(19))),
        Example(lambda: _stack(20, "tanh", bias=3.0), fires_on=tuple(f"tanh{index}" for index in range(20))),
        Example(lambda: _stack(20, "sigmoid", norm="layer_norm"), fires_on=tuple(f"sigmoid{index}" for index in range(1, 19))),
        Example(lambda: _stack(4, "sigmoid")),
        Example(lambda: _stack(20, "tanh")),
        Example(lambda: _stack(20, "relu")),
        Example(lambda: _stack(20, "sigmoid", norm="batch_norm")),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per chain."""
        for trend in subject.claims.falling(subject.chains(norms=True)):
            found = [layer for layer in subject.layers(trend.steps) if _saturates(layer)]
            blamed = {layer.activation.id for layer in found if layer.activation}
            steps = [step for step in trend.steps if step.node in blamed]
            passed = sum(step.decades or 0.0 for step in steps)
            if passed > EXPLAINED * trend.decades or not subject.claims.stands(layer.node for layer in found):
                continue
            act = Counter(subject.graph[step.node].op for step in steps).most_common(1)[0][0]
            factor, steepest = 10 ** (passed / len(steps)), operator(act).steepest
            yield self.claim(
                subject,
                trend,
                [step.node for step in steps],
                f"{len(steps)} {act} in a row: each passes {factor:.2f} of the gradient, {steepest:.3g} at most",
                remedy=f"use ReLU, GELU or another activation of unit slope in place of {act}"
                if steepest < 1.0
                else f"make what feeds {act} smaller: weights, biases or inputs; or normalize it",
                factor=factor,
                activations=len(steps),
            )


def _saturates(layer: Layer) -> bool:
    if layer.activation is None or not operator(layer.activation.op).saturates:
        return False
    return layer.critical > REACHABLE or layer.gain >= MARGIN * layer.critical
