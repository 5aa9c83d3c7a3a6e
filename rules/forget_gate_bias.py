"""GL503 forget-gate-bias: the forget gates of an LSTM start half open, and the sequence is many times longer than their memory.

What it finds:
    An LSTM with weights as drawn whose forget gates have a mean bias under one (the sum of both biases), over a sequence in which
    the gradient of the last step fades by three decades four times over or more. That is a note: the default of most libraries
    is a bias of zero, and gates learn. It is a warning where nothing but the last state is read, which then has to know of all
    steps; where the sequence is fifty times the memory; or where gates start nearly closed, with a mean bias under -1.

Why it vanishes:
    A forget gate multiplies the memory cell by sigmoid(bias) at every step: by 0.5 without a bias, so that three decades are
    lost in ten steps. Training can open the gates only where a gradient reaches them.

How to fix it:
    Set the forget-gate bias to 1 (in PyTorch rows hidden_size to 2 hidden_size of bias_ih_l0, or of bias_hh_l0), which keeps
    73 % a step; for a known range of dependencies T draw it as log U(1, T) and use its negative for the input gate.

References:
    Gers, Schmidhuber, Cummins 2000, Learning to Forget, Neural Computation 12(10).
    Jozefowicz, Zaremba, Sutskever 2015, An Empirical Exploration of Recurrent Network Architectures, ICML.
    Tallec, Ollivier 2018, Can recurrent neural networks warp time?, arXiv 1804.11188.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Rule, Severity, Subject

OPEN = 1.0  # the bias of Gers 2000 and Jozefowicz 2015
CLOSED = -1.0  # a gate that keeps a quarter: four steps lose what a default one loses in ten
FEW, MANY = 4.0, 50.0  # horizons of three decades


def _lstm(bias: float, horizon: float | None = None, steps: int = 200) -> GraphBuilder:
    builder = GraphBuilder()
    rng = np.random.default_rng(0)
    bound = 0.25
    drawn = {name: builder.array(rng.uniform(-bound, bound, (64, 16)), name) for name in ("weight", "recurrent")}
    biases = builder.array(np.repeat((0.0, bias, 0.0, 0.0), 16), "bias")
    builder.op("lstm", builder.input(steps, 8, 16), weights={**drawn, "bias": biases}, shape=(steps, 8, 16), time_axis=0)
    return builder if horizon is None else builder.over_time("lstm0", -3.0 * steps / horizon, steps)


class ForgetGateBias(Rule):
    """Forget gates that forget too soon."""

    code = "GL503"
    name = "forget-gate-bias"
    severity = Severity.WARNING
    explains = ("GL506",)
    examples = (
        Example(lambda: _lstm(0.0), fires_on=("lstm0",)),
        Example(lambda: _lstm(0.0, horizon=12.0), fires_on=("lstm0",)),
        Example(lambda: _lstm(-2.0, horizon=5.0), fires_on=("lstm0",)),
        Example(lambda: _lstm(0.0, steps=40)),
        Example(lambda: _lstm(0.0, horizon=60.0)),
        Example(lambda: _lstm(1.0)),
        Example(lambda: _lstm(1.0, horizon=12.0)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where there is an LSTM."""
        return None if any(loop.activation == "lstm" for loop in subject.time.loops) else "no LSTM in the graph"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per LSTM."""
        for loop in subject.time.loops:
            bias = loop.forget_bias if loop.activation == "lstm" else None
            rate = subject.time.rate(loop) if bias is not None and bias < OPEN else None
            if bias is None or rate is None or rate.horizons < FEW or not subject.is_initialized(loop.nodes):
                continue
            bad = loop.final or rate.horizons >= MANY or bias <= CLOSED
            yield self.finding(
                subject,
                loop.nodes,
                f"forget gates start with a mean bias of {bias:.2f}: the gradient loses three decades in {rate.horizon:.0f} of "
                f"{rate.steps} steps",
                severity=self.severity if bad else Severity.NOTE,
                confidence=Confidence.MEASURED if rate.measured else Confidence.PREDICTED,
                remedy="set the forget-gate bias to 1, or draw it as log U(1, T) for dependencies over T steps",
                forget_bias=bias,
                horizon=rate.horizon,
                steps=rate.steps,
                decades_per_step=rate.slope,
                reads=loop.reads.value,
            )
