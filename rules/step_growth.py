"""GL505 step-growth: the measured gradient of the last step grows towards the first steps of a sequence.

What it finds:
    A recurrence, fused or written out, a scan, a state-space model or linear attention, along whose time axis the gradient of
    the last step really grows by 2.2 decades or more (a warning), or by 3.5 or more (an error). Where a rule names the cause,
    this finding points at it.

Why it explodes:
    Each step multiplies the gradient by the Jacobian of the state. A mean factor over one, which is a positive Lyapunov exponent,
    makes the gradient of early steps exponential in their distance, so that one long sequence drowns a whole batch.

How to fix it:
    Scale the recurrent weight down or draw it orthogonal, bound the state (tanh, gates, a norm at every step), keep the decay of
    a state-space model under one, clip the gradient norm, or cut the sequence (truncated backpropagation).

References:
    Pascanu, Mikolov, Bengio 2013, On the difficulty of training recurrent neural networks, arXiv 1211.5063.
    Engelken, Wolf, Abbott 2020, Lyapunov spectra of chaotic recurrent neural networks, arXiv 2006.02427.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import (
    HEALTHY,
    LIMIT,
    Example,
    Finding,
    GraphBuilder,
    Kind,
    Needs,
    Rule,
    Severity,
    Subject,
    is_weight_layer,
    kind_of,
    operator,
)


def _scan(decades: float, steps: int = 40) -> GraphBuilder:
    builder = GraphBuilder()
    builder.op("control", builder.input(steps, 8, 16), weights={"MatMul.weight": builder.weight(16, 16)}, shape=(steps, 8, 16))
    return builder.over_time("control0", decades, steps, lyapunov=(0.2,))


def _state_space(decades: float) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 16)
    return builder.over_time(builder.op("mul", x, x, shape=(8, 16)), decades, axis=1)


class StepGrowth(Rule):
    """The measured explosion along time itself."""

    code = "GL505"
    name = "step-growth"
    severity = Severity.ERROR
    needs = Needs.PROBE
    examples = (
        Example(lambda: _scan(4.0), fires_on=("control0",)),
        Example(lambda: _scan(2.5), fires_on=("control0",)),
        Example(lambda: _state_space(4.0), fires_on=("mul0",)),
        Example(lambda: _scan(2.1)),
        Example(lambda: _scan(-4.0)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for recurrences of like places, about the one that grows most."""
        for alike in subject.time.alike(item for item in subject.probe.time if item.growth.rise >= HEALTHY):
            item = max(alike, key=lambda item: item.growth.rise)
            rise, slope, steps = item.growth.rise, item.slope or 0.0, item.steps or len(item.backward)
            told, remedy = _advice(subject, item.node)
            yield self.finding(
                subject,
                list(dict.fromkeys(one.node for one in alike)),
                f"the gradient grows 10^{rise:.1f} over {steps} steps of time, x{10**slope:.2f} a step{told}",
                severity=self.severity if rise >= LIMIT else Severity.WARNING,
                remedy=remedy,
                decades=rise,
                limit=HEALTHY,
                steps=steps,
                decades_per_step=slope,
                slope_error=item.slope_error,
                lyapunov=list(item.lyapunov),
                axis=item.axis,
                direction=item.direction,
            )


def _advice(subject: Subject, node_id: str) -> tuple[str, str]:
    """Return what else the graph shows about a loop, as the end of the message, and the remedy."""
    node = subject.graph[node_id]
    if not is_weight_layer(node) and kind_of(node) not in {Kind.RNN, Kind.CONTROL, Kind.UNKNOWN}:
        return "", "keep the decay of the state below one, as in A = -exp(log_A), whatever the input"
    loop = next((item.nodes for item in subject.structure.recurrences if node_id in item.nodes), ())
    between = subject.structure.between(*loop[:2]) if len(loop) > 1 else []
    unbounded = next((op for op in (subject.graph[inner].op for inner in between) if operator(op).rectifier), None)
    if unbounded is None:
        return "", "scale the recurrent weight down or nn.init.orthogonal_ it, and clip the gradient norm"
    remedy = f"use tanh in place of {unbounded}, or scale the recurrent weight down, and clip the gradient norm"
    return f", through {unbounded}, which does not bound the state", remedy
