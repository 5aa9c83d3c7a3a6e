"""GL504 long-horizon-plain-rnn: a recurrence without gates runs over many more steps than its gradient reaches back.

What it finds:
    A recurrence whose state passes an activation at every step and no gate (nn.RNN and loops like it), over a sequence in which
    the gradient of the last step fades by three decades two and a half times over: a warning where nothing but the last state
    is read, for what only far steps tell is not learned over so many steps; a note where every step is read.

Why it vanishes:
    The state is squashed and mixed at every step. With a contracting recurrent matrix, as in PyTorch's default with its gain of
    0.58, the gradient loses a quarter of a decade a step: what happened fifty steps ago is 10^-12 of what happened now. A larger
    matrix does not help for long: a bounded activation then saturates, or the state becomes chaotic.

How to fix it:
    Use an LSTM or a GRU, whose gates carry a state unchanged; draw the recurrent matrix with nn.init.orthogonal_; or cut the
    sequence to the steps that the gradient reaches.

References:
    Bengio, Simard, Frasconi 1994, Learning long-term dependencies with gradient descent is difficult, IEEE TNN 5(2).
    Pascanu, Mikolov, Bengio 2013, On the difficulty of training recurrent neural networks, arXiv 1211.5063.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Rule, Severity, Subject

FEW = 2.5  # horizons of three decades: from 2 on, no network of benchmarks/recurrent_memory.py learned to remember


def _rnn(gain: float = 0.58, steps: int = 200, *, op: str = "rnn", horizon: float | None = None) -> GraphBuilder:
    builder = GraphBuilder()
    rng = np.random.default_rng(0)
    gates = 3 if op == "gru" else 1
    bound = gain * np.sqrt(3.0 / 64)
    matrix = builder.array(rng.uniform(-bound, bound, (64 * gates, 64)), "recurrent")
    weights = {"weight": builder.weight(64 * gates, 64), "recurrent": matrix}
    builder.op(op, builder.input(steps, 8, 64), weights=weights, shape=(steps, 8, 64), nonlinearity="tanh", time_axis=0)
    return builder if horizon is None else builder.over_time(f"{op}0", -3.0 * steps / horizon, steps)


class LongHorizonPlainRnn(Rule):
    """Plain recurrences over long sequences."""

    code = "GL504"
    name = "long-horizon-plain-rnn"
    severity = Severity.WARNING
    explains = ("GL506",)
    examples = (
        Example(_rnn, fires_on=("rnn0",)),
        Example(lambda: _rnn(horizon=12.0), fires_on=("rnn0",)),
        Example(lambda: _rnn(horizon=90.0)),
        Example(lambda: _rnn(steps=16)),
        Example(lambda: _rnn(op="gru", horizon=12.0)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where there is a recurrence without gates."""
        return None if any(loop.is_plain for loop in subject.time.loops) else "no recurrence without gates in the graph"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per recurrence."""
        for loop in subject.time.loops:
            rate = subject.time.rate(loop) if loop.is_plain and subject.claims.stands(loop.nodes) else None
            if rate is None or rate.horizons < FEW:
                continue
            factors = "factors nearer to one" if loop.elementwise else "nn.init.orthogonal_ on the recurrent weight"
            yield self.finding(
                subject,
                loop.nodes,
                f"{loop.activation} without gates: the gradient fades x{10**rate.slope:.2f} a step and loses three decades in "
                f"{rate.horizon:.0f} of {rate.steps} steps",
                severity=self.severity if loop.final else Severity.NOTE,
                confidence=Confidence.MEASURED if rate.measured else Confidence.PREDICTED,
                remedy=f"use an LSTM or a GRU, {factors}, or shorter sequences",
                horizon=rate.horizon,
                steps=rate.steps,
                decades_per_step=rate.slope,
                reads=loop.reads.value,
            )
