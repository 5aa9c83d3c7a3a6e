"""GL506 step-decay: the measured gradient of the last step fades long before it reaches the first steps of a sequence.

What it finds:
    A recurrence, fused or written out, a scan, a state-space model or linear attention, over a sequence that is four times or
    more as long as its horizon, the steps that take three decades of the gradient. It is a note, for recurrences start that way
    and learn to remember; a warning where a single step takes nine tenths of the gradient, which no usual start does.

Why it vanishes:
    Each step multiplies the gradient by the Jacobian of the state, and a mean factor under one makes the share of early steps
    exponentially small. What they contribute to the gradient of a weight is lost among what late steps do, so that dependencies
    over more than the horizon are not learned.

How to fix it:
    Set the forget-gate bias of an LSTM to 1 or more, draw the recurrent weight orthogonal, start the decay of a state-space model
    nearer to one, or cut the sequence to what the gradient reaches.

References:
    Hochreiter 1998, The vanishing gradient problem during learning recurrent neural nets, IJUFKS 6(2).
    Pascanu, Mikolov, Bengio 2013, On the difficulty of training recurrent neural networks, arXiv 1211.5063.
    Gu et al. 2020, HiPPO: Recurrent Memory with Optimal Polynomial Projections, arXiv 2008.07669.
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Needs, Rule, Severity, Subject, probed

FEW = 4.0  # horizons of three decades
STEEP = -1.0  # decades per step; default cells lose 0.15 to 0.45


def _gru(slope: float, steps: int, axis: int | None = 0) -> GraphBuilder:
    builder = GraphBuilder()
    weights = {"weight": builder.weight(48, 16), "recurrent": builder.weight(48, 16)}
    builder.op("gru", builder.input(steps, 8, 16), weights=weights, shape=(steps, 8, 16), time_axis=0)
    return builder.over_time("gru0", slope * steps, steps, axis=axis)


class StepDecay(Rule):
    """The measured fading along time itself."""

    code = "GL506"
    name = "step-decay"
    severity = Severity.WARNING
    needs = Needs.PROBE
    examples = (
        Example(lambda: _gru(-0.2, 64), fires_on=("gru0",)),
        Example(lambda: _gru(-1.2, 64), fires_on=("gru0",)),
        Example(lambda: _gru(-0.2, 56)),
        Example(lambda: _gru(-1.2, 64, axis=None)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for recurrences of like places, about the one that fades fastest."""
        for alike in subject.time.alike(item for item in subject.probe.time if item.axis is not None and _fades(item)):
            item = min(alike, key=lambda item: item.slope or 0.0)
            slope = item.slope or 0.0
            gate = "set the forget-gate bias to 1 or more, " if subject.graph[item.node].op.startswith("lstm") else ""
            yield self.finding(
                subject,
                list(dict.fromkeys(one.node for one in alike)),
                f"the gradient fades x{10**slope:.2f} a step and loses three decades in {item.horizon:.0f} of {item.steps} steps",
                severity=self.severity if slope <= STEEP else Severity.NOTE,
                remedy=f"{gate}draw the recurrent weight with nn.init.orthogonal_, or shorten the sequence",
                horizon=item.horizon,
                steps=item.steps,
                decades_per_step=slope,
                slope_error=item.slope_error,
                lyapunov=list(item.lyapunov),
                axis=item.axis,
                direction=item.direction,
            )


def _fades(item: probed.TimeGrowth) -> bool:
    return item.slope is not None and item.slope < 0.0 and bool(item.horizon) and item.steps >= FEW * (item.horizon or 0.0)
