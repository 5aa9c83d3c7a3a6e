"""GL403 dead-relu: most units of a layer are silent for every sample of the batch, and get no gradient.

What it finds:
    Activations of the ReLU family whose output stays at zero, or saturated sigmoids and tanhs beyond the reach of float numbers,
    for the whole batch in every seed. Weights drawn symmetrically leave at most half of the units dead, however much the samples
    resemble one another; a share above that by three standard errors is a warning, one of 90 % on every path an error. Of a
    trained model it speaks only where its inputs were given.

Why it vanishes:
    The slope of a dead unit is zero, so neither its weights nor anything before it learn from this batch. Nothing but a change
    of its input brings it back. A network whose layers are too narrow or biases too negative may be born like this; a learning
    rate that is too high makes it so with one large step.

How to fix it:
    Start biases at zero, center and scale the inputs, put a norm before the activation, or use one with a slope on both sides:
    leaky ReLU, ELU, GELU. If training brought it about, lower the learning rate or warm it up.

References:
    Lu, Shin, Su, Karniadakis 2019, Dying ReLU and Initialization: Theory and Numerical Examples, arXiv 1903.06733.
    Maas, Hannun, Ng 2013, Rectifier Nonlinearities Improve Neural Network Acoustic Models, ICML workshop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Needs, Node, Rule, Severity, Subject, is_weight_layer, probed

BY_CHANCE = 0.5  # symmetric weights on samples that are all alike: each unit is silent for all of them, or for none
ERRORS = 3.0  # standard errors of a share of so many units
FATAL = 0.9
FEWEST = 8  # units; a share of fewer says little


def _layer(share: float, *, units: int = 64, seen: bool = True) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, units), units)
    builder.linear(builder.op("relu", x, shape=(8, units)), 8)
    return builder.measured(units=(probed.Units("relu0", units, 8, share, share, share),) if seen else ())


class DeadRelu(Rule):
    """Layers most of whose units are dead."""

    code = "GL403"
    name = "dead-relu"
    severity = Severity.ERROR
    needs = Needs.PROBE
    examples = (
        Example(lambda: _layer(0.95), fires_on=("relu0",)),
        Example(lambda: _layer(0.75), fires_on=("relu0",)),
        Example(lambda: _layer(0.65)),
        Example(lambda: _layer(0.75, units=16)),
        Example(lambda: _layer(0.0)),
        Example(lambda: _layer(0.95, seen=False)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for all layers of one severity."""
        found = subject.probe
        if not found.inputs and not subject.is_initialized(subject.structure.signal):
            return
        graver: dict[Severity, list[probed.Units]] = {}
        for units in found.units:
            if units.count >= FEWEST and units.always > BY_CHANCE + ERRORS * math.sqrt(0.25 / units.count):
                fatal = units.always >= FATAL and units.node in subject.structure.spine_index
                graver.setdefault(Severity.ERROR if fatal else Severity.WARNING, []).append(units)
        for severity, layers in graver.items():
            dead, of = sum(round(units.always * units.count) for units in layers), sum(units.count for units in layers)
            where = f" in {len(layers)} layers" if len(layers) > 1 else ""
            bias = _bias(subject, layers[0])
            cause = f"; its biases have a mean of {bias:.3g}" if bias < 0.0 else ""
            yield self.finding(
                subject,
                [units.node for units in layers],
                f"{dead} of {of} units{where} are dead: no sample of the batch gets a gradient through them{cause}",
                severity=severity,
                remedy="start these biases at zero"
                if bias < 0.0
                else "center and scale what feeds it, put a norm before it, or use leaky ReLU, ELU or GELU",
                dead=dead,
                units=of,
                share=dead / of,
                expected=BY_CHANCE,
            )


def _bias(subject: Subject, units: probed.Units) -> float:
    """Mean bias of the layer before an activation, where it is the better part of what its units read; 0 elsewhere."""
    node: Node = subject.graph[units.node]
    for _ in range(3):  # a norm, or a bias that is added by itself
        parents = subject.graph.parents(node.id)
        if len(parents) != 1:
            return 0.0
        node = parents[0]
        bias = node.weights.get("bias")
        if bias is not None and bias.statistics.finite:
            low = bias.statistics.mean
            return low if low < -bias.statistics.std and low < -0.5 else 0.0
        if is_weight_layer(node):
            return 0.0
    return 0.0
