"""GL903 prediction-and-probe-disagree: the gradient is not what theory expects of weights that nobody has trained.

What it finds:
    A measured gradient that differs from the predicted one by more than a decade, and by more than the 90 % interval of the
    prediction, somewhere between input and output. It names the operator at which the two part most. Models whose weights look
    trained, hide a norm that was folded away, or are used again at every step of a loop, are left out: theory speaks of weights
    as an initializer draws them, each on its own.

Why it matters:
    One of the two knows something that the other does not. A weight with a structure (equal rows, low rank, an identity) or an
    input that is far from noise acts on the gradient as no random one does: that may be meant, or a slip in the initialization.
    Else theory is wrong about this operator, and rules that need no probe may be wrong about the layers before it.

How to fix it:
    Trust the probe: verdict and score rest on it. Look at the operator that is named, at its weight and at what feeds it. If both
    are as they should be, nothing has to change; please report the model.

References:
    Schoenholz, Gilmer, Ganguli, Sohl-Dickstein 2017, Deep Information Propagation, arXiv 1611.01232 (what is assumed: wide
    layers of independent weights).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from gradlint.rule import Example, Finding, GraphBuilder, Needs, Rule, Severity, Subject, is_weight_layer

FAR = 1.0  # decades: over 111 standard architectures at default initialization one differs by more


@dataclass(frozen=True, slots=True)
class _Point:
    """A node of the chain: predicted and measured backward gain in decades, and what the prediction leaves open."""

    node: str
    predicted: float
    measured: float
    margin: float

    @property
    def error(self) -> float:
        return self.predicted - self.measured

    @property
    def beyond(self) -> float:
        return abs(self.error) - self.margin


def _stack(jump: float, *, trained: bool = False) -> GraphBuilder:
    """A critical stack whose measured gradient grows by `jump` decades at linear3."""
    builder = GraphBuilder()
    x, level = builder.input(8, 64), jump
    builder.gains(x, level)
    for index in range(6):
        weight = builder.weight(64, 64, gain=2.0**0.5, mean=0.1 if trained else 0.0)
        level = 0.0 if index == 3 else level
        for op in ("linear", "relu"):
            x = builder.linear(x, weight=weight) if op == "linear" else builder.op(op, x)
            builder.gains(x, level)
    return builder


class PredictionAndProbeDisagree(Rule):
    """Where theory and measurement part."""

    code = "GL903"
    name = "prediction-and-probe-disagree"
    severity = Severity.NOTE
    needs = Needs.PROBE
    examples = (
        Example(lambda: _stack(3.0), fires_on=("linear3",)),
        Example(lambda: _stack(-3.0), fires_on=("linear3",)),
        Example(lambda: _stack(0.7)),
        Example(lambda: _stack(0.0)),
        Example(lambda: _stack(3.0, trained=True)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only to whole runs of models whose weights are as they were drawn, and used once."""
        found, signal = subject.probe, subject.structure.signal
        if found.stopped_at or found.trunk != tuple(ref.node for ref in subject.structure.trunk):
            return "the probe did not run the whole model"
        if subject.structure.recurrences:
            return "a weight is used again on its own result, and theory speaks of independent ones"
        if any(subject.hides_norm(subject.graph[node]) for node in signal):
            return "a norm may be folded into the weights"
        return None if subject.is_initialized(signal) else "the weights look trained, and theory speaks of random ones"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        points = _points(subject)
        far = [point for point in points if point.beyond > 0.0 and abs(point.error) >= FAR]
        if not far:
            return
        worst = max(far, key=lambda point: point.beyond)
        node, parted = _parting(subject, points[points.index(worst) :], math.copysign(1.0, worst.error))
        operator = subject.graph[node]
        look = "its weight: equal rows, low rank, an identity" if is_weight_layer(operator) else "what it is fed"
        where = subject.graph[worst.node].module or worst.node
        yield self.finding(
            subject,
            [node],
            f"theory expects a gradient of 10^{worst.predicted:.1f} (+-{worst.margin:.1f}) at {where}, the probe measured "
            f"10^{worst.measured:.1f}: they part most at this {operator.op}, by {abs(parted):.1f} decades",
            remedy=f"trust the probe, and look at {look}",
            predicted=worst.predicted,
            measured=worst.measured,
            margin=worst.margin,
        )


def _points(subject: Subject) -> list[_Point]:
    """The chain from input to output, where both gradients are known and neither is zero."""
    expected, gains, found = subject.predicted_growth, subject.probe.spine_gains, []
    for node in expected.chain:
        predicted = expected.gains[node].backward if node in expected.gains else None
        measured = gains[node].backward if node in gains else None
        if predicted is not None and measured is not None and math.isfinite(predicted) and math.isfinite(measured):
            found.append(_Point(node, predicted, measured, expected.margin(node)))
    return found


def _parting(subject: Subject, points: Sequence[_Point], sign: float) -> tuple[str, float]:
    """The operator that adds most to an error of this sign, and how much, from the first point down to the output."""
    steps = [(before.error - after.error, before.node, after.node) for before, after in pairwise(points)]
    if not steps or max(sign * step for step, _, _ in steps) < sign * points[-1].error:
        return points[-1].node, points[-1].error  # behind the chain: where several outputs are made
    step, before, after = max(steps, key=lambda item: sign * item[0])
    inside = _inside(subject, before, after)
    errors = [(sign * error, node) for node, error in inside if abs(error) >= 0.5 * abs(step)]
    return max(errors, default=(0.0, after))[1], step


def _inside(subject: Subject, before: str, after: str) -> Iterator[tuple[str, float]]:
    """Operators between two nodes of the chain, with the error that each adds on its way to an operand read by nothing else."""
    structure, predictions, measured = subject.structure, subject.prediction.nodes, subject.probe
    if subject.probe.cut_gains:
        return
    for node in (*structure.between(before, after), after):
        for parent in structure.signal_parents(node):
            if parent == before or len(subject.graph.children(parent)) != 1:
                continue
            values = [predictions[at].backward if at in predictions else None for at in (parent, node)]
            values += [measured.backward(at) for at in (parent, node)]
            known = [value for value in values if value is not None and math.isfinite(value)]
            if len(known) == 4:
                yield node, (known[0] - known[1]) - (known[2] - known[3])
