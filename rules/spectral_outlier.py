"""GL105 spectral-outlier: one direction of a drawn weight outweighs all others together.

What it finds:
    Weights of layers that were not trained whose largest singular value is at least 3 times that of random numbers of the same
    deviation, as their mean or a single element alone makes it: weights drawn between 0 and 1 (torch.rand, nn.init.uniform_
    without a lower bound) or with an offset. It is an error if the layers together, each at its excess, bring the signal along
    that direction up by 3 decades or more, without a norm between them, or if the output was measured at 2.25 decades.

Why it explodes:
    n x m random numbers of deviation s have singular values up to s (sqrt(n) + sqrt(m)); a mean of m0 adds one of m0 sqrt(n m).
    All units then compute nearly the same, the sum of their inputs, and signal and gradient grow along this one direction while
    the others fade. Scaling the weights does not help: it is the ratio that is wrong. Eight ReLU layers with a ratio of 1 train
    like those without a mean; with 3, two of three runs stay at the base rate.

How to fix it:
    Draw around zero: nn.init.kaiming_normal_(w), or torch.randn(n, m) / m**0.5.

References:
    Marchenko, Pastur 1967, Distribution of eigenvalues for some sets of random matrices, Math. USSR Sbornik 1.
    Baik, Ben Arous, Peche 2005, Phase transition of the largest eigenvalue, Ann. Probab. 33 (an outlier leaves the bulk).
    Glorot, Bengio 2010, Understanding the difficulty of training deep feedforward neural networks, AISTATS.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Node, Rule, Severity, Subject, Weight, is_weight_layer

RATIO = (
    3.0  # of 2800 drawn weights of 111 architectures the largest has 1.1; trained ones reach 5.2 with a mean of 0.55 deviations
)
EXCESS = 3.0  # decades: eight layers with a ratio of 3 have 3.8 and do not train, three with 8 have 2.7 and train
BLOWN = 2.25  # decades of the output at which a drawn model is as likely to fail as not; see benchmarks/planted_faults.py
SMALLEST = 8  # rows and columns


def _offset(depth: int, ratio: float) -> GraphBuilder:
    """Layers of width 64 and unit deviation times 1/8, whose mean makes the ratio."""
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for _ in range(depth):
        weight = builder.weight(64, 64, gain=1.0, mean=ratio * 0.125 * 16.0 / 64.0)
        x = builder.op("relu", builder.linear(x, weight=weight), shape=(8, 64))
    return builder


class SpectralOutlier(Rule):
    """Weights with one direction."""

    code = "GL105"
    name = "spectral-outlier"
    severity = Severity.ERROR
    explains = ("GL101", "GL107", "GL703", "GL801", "GL807")
    examples = (
        Example(lambda: _offset(2, 5.0), fires_on=("linear0", "linear1")),
        Example(lambda: _offset(8, 4.5), fires_on=tuple(f"linear{index}" for index in range(8))),
        Example(lambda: _offset(8, 2.9)),
        Example(lambda: _offset(8, 0.0)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for all of them."""
        drawn = subject.is_initialized(subject.structure.signal)
        found: dict[str, tuple[float, Weight]] = {}
        for node in subject.graph:
            weight = _matrix(node)
            if weight is None or subject.hides_norm(node):
                continue
            mean, element = _ratios(weight)
            apart = abs(weight.statistics.mean) >= weight.statistics.std
            ratio = max(mean if drawn or apart else 0.0, element if drawn else 0.0)
            if ratio >= RATIO:
                found[node.id] = ratio, weight
        if not found:
            return
        worst, weight = max(found.values(), key=lambda item: item[0])
        bare = [node for node in found if not any(map(subject.normalizes, subject.graph.children(node)))]
        excess = sum(math.log10(found[node][0]) for node in bare)
        facts = weight.statistics
        output = subject.measurement.learning.output if subject.measurement is not None else None
        blown = bool(bare) and output is not None and output >= BLOWN
        yield self.finding(
            subject,
            list(found),
            f"{len(found)} weight layers have one direction that outweighs the rest, up to {worst:.1f} times the largest of "
            f"random numbers: {weight.name} has mean {facts.mean:.2g} at deviation {facts.std:.2g}, up to {facts.max_abs:.2g}",
            severity=Severity.ERROR if blown or excess >= EXCESS else Severity.WARNING,
            confidence=Confidence.PREDICTED if subject.measurement is None else Confidence.MEASURED,
            remedy="draw the weights around zero: nn.init.kaiming_normal_(w), or torch.randn(n, m) / m**0.5",
            ratio=worst,
            mean=facts.mean,
            deviation=facts.std,
            excess=excess,
        )


def _matrix(node: Node) -> Weight | None:
    """The weight of a layer, large enough to speak of directions; attention may hold masks."""
    weight = node.weights.get("weight")
    if weight is None or not is_weight_layer(node) or node.op == "attention" or not weight.trainable:
        return None
    sides = min(weight.fan_in, weight.fan_out) if len(weight.shape) > 1 else 0
    return weight if sides >= SMALLEST and weight.statistics.finite and weight.statistics.std > 0.0 else None


def _ratios(weight: Weight) -> tuple[float, float]:
    """What the mean, and what the largest element, make of the largest singular value, over that of random numbers."""
    rows, columns, facts = weight.fan_out, weight.fan_in, weight.statistics
    edge = facts.std * (math.sqrt(rows) + math.sqrt(columns))
    identity = abs(facts.max_abs**2 - facts.mean_square * columns) <= 1e-6 * facts.max_abs**2  # one element in each row
    return abs(facts.mean) * math.sqrt(rows * columns) / edge, 0.0 if identity else facts.max_abs / edge
