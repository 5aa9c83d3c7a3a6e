"""GL104 constant-init: all elements of a weight are equal, so its units start alike and stay alike.

What it finds:
    Weight matrices whose elements are all the same number and whose units learn the same: the probe compares the gradients of the
    units. Without a probe it is where the next layer is constant as well; a random one behind it tells the units apart, and such
    a start trains. Zeros are reported where they stop learning: where no gradient arrives within a few small steps, which the
    probe takes and undoes. Without a probe the same is worked out on the graph: a weight moves if its operand is not zero and its
    result gets a gradient, and may open others. A zero layer at the end of a residual branch, at the head, or on a
    side path is a known good start and is not reported; nor are depthwise layers, frozen ones, layers that a BatchNorm may have
    been folded into, and trained models.

Why it matters:
    Units with equal weights compute the same value and receive the same gradient: they never differ, and the layer works as one
    unit. With zeros in two consecutive layers each gets its gradient through the other, which is zero: neither ever moves.

How to fix it:
    Draw the weights at random, for example with nn.init.kaiming_normal_ or nn.init.xavier_normal_; keep zeros for biases and
    for the last layer of a residual branch.

References:
    Goodfellow, Bengio, Courville 2016, Deep Learning, section 8.4 (symmetry between units must be broken).
    Zhang, Dauphin, Ma 2019, Fixup Initialization, arXiv 1901.09321 (the last layer of a branch may start at zero).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from gradlint.rule import (
    Confidence,
    Effect,
    Example,
    Finding,
    GraphBuilder,
    Node,
    Rule,
    Severity,
    Subject,
    Weight,
    is_weight_layer,
)


def _stack(*gains: float, means: dict[int, float] | None = None) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for index, gain in enumerate(gains):
        weight = builder.weight(64, 64, gain=gain, mean=(means or {}).get(index, 0.0))
        x = builder.linear(x, weight=weight)
        if index < len(gains) - 1:
            x = builder.op("relu", x, shape=(8, 64))
    return builder


def _branches(first: float) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 64)
    for _ in range(2):
        h = builder.op("relu", builder.linear(x, gain=first), shape=(8, 64))
        x = builder.op("add", x, builder.linear(h, gain=0.0), shape=(8, 64))
    return builder


def _folded() -> GraphBuilder:
    builder = GraphBuilder(mode="eval")
    x = builder.input(8, 64)
    for _ in range(3):
        weights = {"weight": builder.weight(64, 64, gain=0.0)}
        x = builder.op("relu", builder.op("linear", x, weights=weights, notes=("batch-norm-folded",)), shape=(8, 64))
    return builder


def _depthwise() -> GraphBuilder:
    builder = GraphBuilder()
    blur = builder.weight(16, 1, 3, 3, gain=0.0, mean=1 / 9)
    builder.op("conv", builder.input(8, 16, 32, 32), weights={"weight": blur}, shape=(8, 16, 32, 32), groups=16)
    return builder


class ConstantInit(Rule):
    """Weight matrices of equal elements."""

    code = "GL104"
    name = "constant-init"
    severity = Severity.ERROR
    explains = ("GL403", "GL802", "GL806")
    examples = (
        Example(lambda: _stack(1.4, 0.0, 0.0, 1.4, means={1: 0.01, 2: 0.01}), fires_on=("linear1",)),
        Example(lambda: _stack(1.4, 0.0, 1.4, means={1: 0.01})),
        Example(lambda: _stack(0.0, 0.0, 0.0), fires_on=("linear0", "linear1", "linear2")),
        Example(lambda: _stack(1.4, 0.0, 1.4), fires_on=("linear1",)),
        Example(lambda: _branches(0.0), fires_on=("linear0", "linear1", "linear2", "linear3")),
        Example(lambda: _stack(1.4, 1.4, 0.0)),
        Example(lambda: _stack(1.4, 1.4, 1.4, means={1: 0.01})),
        Example(lambda: _branches(1.4)),
        Example(_depthwise),
        Example(_folded),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for constants, one for zeros."""
        flat = {node.id: weights for node in subject.graph if (weights := _flat(subject, node))}
        others = (node for node in subject.graph if node.id not in flat and is_weight_layer(node))
        matrices = (weight for node in others for weight in node.weights.values() if len(weight.shape) > 1)
        if not flat or not subject.look_drawn(matrices):
            return
        zeros = {node: None for node, weights in flat.items() if all(weight.statistics.max_abs == 0.0 for weight in weights)}
        if constants := [node for node in flat if node not in zeros and _stay_alike(subject, node, flat)]:
            yield self._report(subject, constants, "the same number everywhere; their units start alike and stay alike")
        if stuck := _stuck(subject, zeros):
            unprobed = subject.measurement is None
            claim: dict[str, Any] = {"effect": Effect.VANISHES, "decades": math.inf} if unprobed else {}
            yield self._report(subject, stuck, "all zeros; no gradient passes them", **claim)

    def _report(self, subject: Subject, nodes: list[str], why: str, **claim: Any) -> Finding:
        layers = "1 weight layer is" if len(nodes) == 1 else f"{len(nodes)} weight layers are"
        dead = subject.measurement is not None and subject.measurement.dead
        return self.finding(
            subject,
            nodes,
            f"{layers} {why}",
            remedy="draw these weights at random, e.g. nn.init.kaiming_normal_(w)",
            confidence=Confidence.MEASURED if dead else Confidence.PREDICTED,
            layers=len(nodes),
            **claim,
        )


def _flat(subject: Subject, node: Node) -> list[Weight]:
    """The constant matrices of a weight layer that mix several inputs into several units; a folded norm may have made them so."""
    if not is_weight_layer(node) or subject.hides_norm(node):
        return []
    return [
        weight
        for role, weight in node.weights.items()
        if "bias" not in role and _mixes(weight) and weight.trainable and subject.is_constant(weight)
    ]


def _mixes(weight: Weight) -> bool:
    return len(weight.shape) > 1 and weight.fan_out > 1 and weight.size // weight.fan_out > 1 and 1 not in weight.shape[:2]


def _stay_alike(subject: Subject, node: str, flat: Mapping[str, Sequence[Weight]]) -> bool:
    """Whether the units of a constant layer learn the same, as their gradients show; without these, as the next layers tell."""
    found = subject.measurement
    if found is not None and found.learning.levels:
        return all(weight.name in found.learning.alike for weight in flat[node])
    bias = subject.graph[node].weights.get("bias")
    behind = list(_next_layers(subject, node))
    return (bias is None or subject.is_constant(bias)) and bool(behind) and all(layer in flat for layer in behind)


def _next_layers(subject: Subject, node: str) -> Iterator[str]:
    """The weight layers that read the output of a node, through operators between them."""
    seen = {node}
    waiting = [node]
    while waiting:
        for child in subject.graph.children(waiting.pop()):
            if child.id not in seen:
                seen.add(child.id)
                if is_weight_layer(child):
                    yield child.id
                else:
                    waiting.append(child.id)


def _stuck(subject: Subject, zeros: Collection[str]) -> list[str]:
    """Zero layers that never learn, as virtual steps showed; without these, as zeros open one another."""
    learn = subject.measurement.trainability if subject.measurement is not None else None
    shut = learn.stuck if learn is not None and learn.sizes else subject.shut_weights
    return [node for node in zeros if all(weight.name in shut for weight in _flat(subject, subject.graph[node]))]
