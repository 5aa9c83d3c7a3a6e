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
    Confidence,
    Example,
    Finding,
    Growth,
    Needs,
    Rule,
    Severity,
    Sketch,
    Subject,
    TimeGrowth,
)


def _scan(decades: float, steps: int = 40) -> Sketch:
    sketch = Sketch()
    sketch.op("control", sketch.input(steps, 8, 16), weights={"MatMul.weight": sketch.weight(16, 16)}, shape=(steps, 8, 16))
    growth = Growth(decades, rise=max(decades, 0.0), fall=max(-decades, 0.0))
    return sketch.measured(time=(TimeGrowth("control0", (), growth, decades / steps, lyapunov=(0.2,), axis=0, steps=steps),))


class StepGrowth(Rule):
    """The measured explosion along time itself."""

    code = "GL505"
    name = "step-growth"
    severity = Severity.ERROR
    needs = Needs.PROBE
    examples = (
        Example(lambda: _scan(4.0), fires_on=("control0",)),
        Example(lambda: _scan(2.5), fires_on=("control0",)),
        Example(lambda: _scan(2.1)),
        Example(lambda: _scan(-4.0)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for recurrences of like places, about the one that grows most."""
        found = subject.measurement.time if subject.measurement is not None else ()
        for alike in subject.alike([item for item in found if item.growth.rise >= HEALTHY]):
            item = max(alike, key=lambda item: item.growth.rise)
            rise, slope, steps = item.growth.rise, item.slope or 0.0, item.steps or len(item.backward)
            yield self.finding(
                subject,
                list(dict.fromkeys(one.node for one in alike)),
                f"the gradient grows 10^{rise:.1f} over {steps} steps of time, x{10**slope:.2f} a step",
                severity=self.severity if rise >= LIMIT else Severity.WARNING,
                confidence=Confidence.MEASURED,
                remedy="scale the recurrent weight down or nn.init.orthogonal_ it, and clip the gradient norm",
                decades=rise,
                limit=HEALTHY,
                steps=steps,
                decades_per_step=slope,
                slope_error=item.slope_error,
                lyapunov=list(item.lyapunov),
                axis=item.axis,
                direction=item.direction,
            )
