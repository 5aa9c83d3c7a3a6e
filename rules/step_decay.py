"""GL506 step-decay: the gradient of the last step fades long before it reaches the first steps of a sequence.

What it finds:
    A recurrence, fused or written out, a scan, a state-space model or linear attention, over a sequence that is two and a half
    times or more as long as its horizon, the steps that take three decades of the gradient; measured, or predicted for an RNN,
    an LSTM or a GRU. It is a warning where nothing but the last state is read, or where a single step takes nine tenths of the
    gradient, which no usual start does; a note elsewhere, for recurrences start that way and learn near things at every step.

Why it vanishes:
    Each step multiplies the gradient by the Jacobian of the state, and a mean factor under one makes the share of early steps
    exponentially small. What they contribute to the gradient of a weight is lost among what late steps do, so that dependencies
    over more than one or two horizons are not learned from the last state alone (`benchmarks/recurrent_memory.py`).

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

import numpy as np

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Rule, Severity, Subject, is_weight_layer, probed

FEW = 2.5  # horizons of three decades
STEEP = -1.0  # decades per step; default cells lose 0.15 to 0.45


def _gru(steps: int, slope: float | None = None, *, axis: int | None = 0, reads: str = "every") -> GraphBuilder:
    builder = GraphBuilder()
    drawn = np.random.default_rng(0).uniform(-0.25, 0.25, (2, 48, 16))
    weights = {"weight": builder.array(drawn[0], "weight"), "recurrent": builder.array(drawn[1], "recurrent")}
    builder.op("gru", builder.input(steps, 8, 16), weights=weights, shape=(steps, 8, 16), time_axis=0)
    return builder if slope is None else builder.over_time("gru0", slope * steps, steps, axis=axis, reads=reads)


class StepDecay(Rule):
    """The fading along time itself."""

    code = "GL506"
    name = "step-decay"
    severity = Severity.WARNING
    examples = (
        Example(lambda: _gru(64, -0.2), fires_on=("gru0",)),
        Example(lambda: _gru(64, -0.2, reads="last"), fires_on=("gru0",)),
        Example(lambda: _gru(64, -1.2), fires_on=("gru0",)),
        Example(lambda: _gru(100), fires_on=("gru0",)),
        Example(lambda: _gru(36, -0.2)),
        Example(lambda: _gru(64, -1.2, axis=None)),
        Example(lambda: _gru(12)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for recurrences of like places, about the one that fades fastest."""
        if subject.measurement is None:
            yield from self._predicted(subject)
            return
        for alike in subject.time.alike(item for item in subject.probe.time if item.axis is not None and _fades(item)):
            item = min(alike, key=lambda item: item.slope or 0.0)
            slope = item.slope or 0.0
            lstm = subject.graph[item.node].op.startswith("lstm")
            yield self.finding(
                subject,
                list(dict.fromkeys(one.node for one in alike)),
                f"the gradient fades x{10**slope:.2f} a step and loses three decades in {item.horizon:.0f} of {item.steps} steps",
                severity=self._severity(slope, final=any(one.reads == "last" for one in alike)),
                confidence=Confidence.MEASURED,
                remedy=_remedy(subject, item.node, lstm=lstm),
                horizon=item.horizon,
                steps=item.steps,
                decades_per_step=slope,
                slope_error=item.slope_error,
                lyapunov=list(item.lyapunov),
                axis=item.axis,
                direction=item.direction,
                reads=str(item.reads),
            )

    def _predicted(self, subject: Subject) -> Iterator[Finding]:
        for loop in subject.time.loops:
            rate = subject.time.rate(loop) if subject.claims.stands(loop.nodes) else None
            if rate is None or rate.horizons < FEW:
                continue
            yield self.finding(
                subject,
                [loop.node],
                f"the gradient fades x{10**rate.slope:.2f} a step and loses three decades in {rate.horizon:.0f} of "
                f"{rate.steps} steps",
                severity=self._severity(rate.slope, final=loop.final),
                remedy=_remedy(subject, loop.node, lstm=loop.activation == "lstm"),
                horizon=rate.horizon,
                steps=rate.steps,
                decades_per_step=rate.slope,
                reads=loop.reads.value,
            )

    def _severity(self, slope: float, *, final: bool) -> Severity:
        return self.severity if final or slope <= STEEP else Severity.NOTE


def _remedy(subject: Subject, node: str, *, lstm: bool) -> str:
    gate = "set the forget-gate bias to 1 or more, " if lstm else ""
    matrix = is_weight_layer(subject.graph[node])
    start = "draw the recurrent weight with nn.init.orthogonal_" if matrix else "start the factors of the state nearer to one"
    return f"{gate}{start}, or shorten the sequence"


def _fades(item: probed.TimeGrowth) -> bool:
    return item.slope is not None and item.slope < 0.0 and bool(item.horizon) and item.steps >= FEW * (item.horizon or 0.0)
