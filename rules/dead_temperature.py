"""GL406 dead-temperature: a temperature makes a softmax choose one element for good, or none at all.

What it finds:
    A softmax or a sigmoid behind a product with, or a division by, one number, a constant or a trainable scalar, where the
    measured logits show that this number is off: it enlarges 30 times or more, and the logits have a root mean square over 30; or
    it shrinks 30 times or more, and they have one under 0.01. It is an error where every path of the model passes it.

Why it vanishes:
    The gradient of a softmax is p (g - sum p g). With logits far apart one p is 1 and the gradient underflows but for ties, where
    it is as large as the factor; with logits that are all equal, every p is 1 / K, and the gradient is divided by the
    temperature on the way back. Small networks with a softmax inside stay at the base rate in 24 of 24 runs with a temperature of
    0.001 and of 10 and more, under Adam and SGD; with 0.1 and 1 all train.

How to fix it:
    Let the temperature be of the size of the logits: sqrt(d) for products of vectors of d elements, 0.05 to 0.5 for cosines.
    Learn its logarithm, and clamp it.

References:
    Radford et al. 2021, Learning Transferable Visual Models, arXiv 2103.00020, 2.5 (a factor of 14 at the start, 100 at most).
    Jang, Gu, Poole 2017, Categorical Reparameterization with Gumbel-Softmax, arXiv 1611.01144 (temperatures of 0.5 and above).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Kind, Needs, Node, Rule, Severity, Subject, kind_of

FACTOR = 30.0  # a published factor at the start is 25 at most (DINO), 1/16 at least (heads of 256 units)
LOUD = 1.5  # decades: with a root mean square of 30 the second largest of two p is under 1e-13 in the median
FLAT = -2.0  # decades: every p within a per cent of 1 / K
FARTHEST = 4  # operators between the product and the softmax: masks, reshapes
BETWEEN = frozenset({Kind.ADD, Kind.SHAPE, Kind.DROPOUT})


def _tempered(temperature: float, level: float) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, 64))
    x = builder.op("div", x, None, constant=temperature, shape=(8, 64))
    builder.gains(x, 0.0, level)
    builder.linear(builder.op("softmax", x, dim=-1))
    return builder


class DeadTemperature(Rule):
    """Softmax without a slope."""

    code = "GL406"
    name = "dead-temperature"
    severity = Severity.ERROR
    needs = Needs.PROBE
    explains = ("GL802", "GL806", "GL807")
    examples = (
        Example(lambda: _tempered(1e-3, 2.8), fires_on=("softmax0",)),
        Example(lambda: _tempered(1e3, -3.0), fires_on=("softmax0",)),
        Example(lambda: _tempered(1e-3, 1.4)),
        Example(lambda: _tempered(0.04, 2.0)),
        Example(lambda: _tempered(1e3, -1.9)),
        Example(lambda: _tempered(8.0, -3.0)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per softmax."""
        spine = set(subject.structure.spine)
        for node in subject.graph:
            if node.op not in {"softmax", "sigmoid"} or node.id not in subject.structure.signal_set:
                continue
            scale = _scale(subject, node)
            if scale is None:
                continue
            at, factor = scale
            gains = subject.probe.gains.get(at)
            level = gains.forward if gains is not None else None
            if level is None or not math.isfinite(level):
                continue
            loud = factor >= FACTOR and level >= LOUD
            if not loud and not (factor <= 1.0 / FACTOR and level <= FLAT):
                continue
            what = "picks one element for good" if loud else "is flat"
            yield self.finding(
                subject,
                [node.id],
                f"a factor of {factor:.3g} gives the logits a root mean square of {10.0**level:.3g}: the {node.op} {what}",
                severity=Severity.ERROR if node.id in spine else Severity.WARNING,
                remedy="let the temperature be of the size of the logits; learn its logarithm, and clamp it",
                factor=factor,
                logits=10.0**level,
            )


def _scale(subject: Subject, node: Node) -> tuple[str, float] | None:
    """The operator before a softmax that multiplies by one number, and this factor; None if there is none."""
    for _ in range(FARTHEST):
        parents = [parent for parent in subject.graph.parents(node.id) if parent.is_float]
        if not parents:
            return None
        node = parents[0]
        if node.op in {"mul", "div"}:
            number = _number(node)
            if number is None or (node.op == "div" and node.inputs[0] is None):
                return None
            return node.id, 1.0 / number if node.op == "div" else number
        if kind_of(node) not in BETWEEN:
            return None
    return None


def _number(node: Node) -> float | None:
    """The size of the one number that a product or a quotient takes, or None."""
    constant = node.attrs.get("constant")
    if isinstance(constant, (int, float)):
        return abs(float(constant)) or None
    weights = [weight for weight in node.weights.values() if weight.size == 1]
    return weights[0].statistics.max_abs or None if len(weights) == 1 and len(node.weights) == 1 else None
