"""GL501 unbounded-recurrent-activation: a recurrence through ReLU multiplies its state at every step, and nothing bounds it.

What it finds:
    A recurrence whose activation is unbounded (ReLU, GELU, ELU and their kin), whose recurrent matrix has a spectral radius
    over one, and whose gradient is predicted, or measured, to grow by 2.2 decades or more over the sequence.

Why it explodes:
    The state is multiplied by the same matrix at every step. A bounded activation ends that; ReLU passes whatever comes, so
    signal and gradient along the leading direction grow as the spectral radius to the power of the number of steps.

How to fix it:
    Use tanh, an LSTM or a GRU, or normalize the state at every step. To keep ReLU, start the recurrent matrix at the identity
    or at an orthogonal matrix times 1 or less, and clip the gradient norm.

References:
    Le, Jaitly, Hinton 2015, A Simple Way to Initialize Recurrent Networks of Rectified Linear Units, arXiv 1504.00941.
    Pascanu, Mikolov, Bengio 2013, On the difficulty of training recurrent neural networks, arXiv 1211.5063.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradlint.rule import HEALTHY, LIMIT, Confidence, Effect, Example, Finding, GraphBuilder, Rule, Severity, Subject, operator

STEPS = 100  # assumed where the length is not known, as in the experiments of Pascanu 2013


def _rnn(radius: float, nonlinearity: str = "relu", steps: int = 40, measured: float | None = None) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(steps, 8, 16)
    weights = {"weight": builder.weight(16, 16), "recurrent": builder.array(radius * np.eye(16), "recurrent")}
    builder.op("rnn", x, weights=weights, shape=(steps, 8, 16), nonlinearity=nonlinearity, time_axis=0)
    return builder if measured is None else builder.over_time("rnn0", measured)


class UnboundedRecurrentActivation(Rule):
    """Recurrences that nothing bounds."""

    code = "GL501"
    name = "unbounded-recurrent-activation"
    severity = Severity.WARNING
    explains = ("GL502", "GL505")
    examples = (
        Example(lambda: _rnn(1.3), fires_on=("rnn0",)),
        Example(lambda: _rnn(1.3, measured=4.0), fires_on=("rnn0",)),
        Example(lambda: _rnn(1.1)),
        Example(lambda: _rnn(1.0)),
        Example(lambda: _rnn(1.3, "tanh")),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where there is a recurrence."""
        return None if subject.time.loops else "no recurrence in the graph"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per recurrence."""
        for loop in subject.time.loops:
            unbounded, steps = operator(loop.activation or "").is_unbounded, subject.time.steps(loop) or STEPS
            radius = loop.radius if unbounded else None
            if radius is None or radius <= 1.0:
                continue
            measured = subject.time.growth(loop)
            decades = subject.time.predicted(loop, steps) if measured is None else measured
            if measured is None and decades < HEALTHY:
                continue
            start = "factors of 1 or less" if loop.elementwise else "nn.init.orthogonal_ on the recurrent weight"
            holds = Confidence.MEASURED if decades >= HEALTHY else Confidence.REFUTED
            yield self.finding(
                subject,
                loop.nodes,
                f"{loop.activation} does not bound a recurrence of spectral radius {radius:.2f}: "
                f"the gradient grows 10^{decades:.1f} over {steps} steps",
                severity=Severity.ERROR if measured is not None and measured >= LIMIT else self.severity,
                confidence=Confidence.PREDICTED if measured is None else holds,
                effect=Effect.EXPLODES,
                remedy=f"use tanh, an LSTM or a GRU, or {start} and clip the gradient norm",
                radius=radius,
                steps=steps,
                decades=decades,
            )
