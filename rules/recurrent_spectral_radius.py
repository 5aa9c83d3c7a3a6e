"""GL502 recurrent-spectral-radius: the recurrent matrix stretches the state at every step of the sequence.

What it finds:
    A recurrence whose recurrent matrix, or that of one of its gates, has a spectral radius over one, and whose gradient is
    predicted, or measured, to grow by 2.2 decades or more over the sequence. The prediction runs the real cell under noise of
    the size that reaches it, so a bounded or gated one that holds itself is not reported.

Why it explodes:
    The gradient at a step is the gradient at the last one times a product of the same matrix, so a radius of 1.1 makes 10^4.1
    of 100 steps. A tanh network above its critical gain is chaotic: its Lyapunov exponent is positive and the gradient grows,
    though the state is bounded.

How to fix it:
    Scale the recurrent weight by 1/radius, or draw it with nn.init.orthogonal_; set the forget-gate bias of an LSTM to 1; clip
    the gradient norm; cut the sequence (truncated backpropagation).

References:
    Pascanu, Mikolov, Bengio 2013, On the difficulty of training recurrent neural networks, arXiv 1211.5063.
    Engelken, Wolf, Abbott 2020, Lyapunov spectra of chaotic recurrent neural networks, arXiv 2006.02427.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradlint.rule import HEALTHY, LIMIT, Confidence, Effect, Example, Finding, GraphBuilder, Loop, Rule, Severity, Subject

STEPS = 100  # assumed where the length is not known, as in the experiments of Pascanu 2013


def _rnn(radius: float, op: str = "rnn", nonlinearity: str = "relu", measured: float | None = None) -> GraphBuilder:
    builder = GraphBuilder()
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[op]
    weights = {"weight": builder.weight(16 * gates, 16), "recurrent": builder.array(np.tile(radius * np.eye(16), (gates, 1)))}
    builder.op(op, builder.input(40, 8, 16), weights=weights, shape=(40, 8, 16), nonlinearity=nonlinearity, time_axis=0)
    return builder if measured is None else builder.over_time(f"{op}0", measured)


def _random(gain: float, nonlinearity: str = "tanh") -> GraphBuilder:
    builder = GraphBuilder()
    matrix = gain / 8.0 * np.random.default_rng(0).standard_normal((64, 64))
    weights = {"weight": builder.weight(64, 64, gain=0.1), "recurrent": builder.array(matrix)}
    builder.op("rnn", builder.input(40, 8, 64), weights=weights, shape=(40, 8, 64), nonlinearity=nonlinearity, time_axis=0)
    return builder


def _loop(radius: float) -> GraphBuilder:
    builder = GraphBuilder()
    h = builder.input(8, 16)
    weight = builder.array(radius * np.eye(16), "w_hh")
    for _ in range(40):
        h = builder.op("relu", builder.linear(h, weight=weight), shape=(8, 16))
    return builder


class RecurrentSpectralRadius(Rule):
    """Recurrent matrices that stretch."""

    code = "GL502"
    name = "recurrent-spectral-radius"
    severity = Severity.ERROR
    explains = ("GL505",)
    examples = (
        Example(lambda: _rnn(1.3), fires_on=("rnn0",)),
        Example(lambda: _loop(1.3), fires_on=tuple(f"linear{index}" for index in range(40))),
        Example(lambda: _rnn(2.0, nonlinearity="tanh", measured=3.0), fires_on=("rnn0",)),
        Example(lambda: _rnn(2.0, "lstm", measured=3.0), fires_on=("lstm0",)),
        Example(lambda: _random(3.0), fires_on=("rnn0",)),
        Example(lambda: _random(1.1)),
        Example(lambda: _rnn(1.1)),
        Example(lambda: _loop(1.1)),
        Example(lambda: _rnn(2.0, nonlinearity="tanh")),
        Example(lambda: _rnn(2.0, nonlinearity="tanh", measured=1.0)),
        Example(lambda: _rnn(2.0, "lstm")),
        Example(lambda: _rnn(0.9, "lstm", measured=3.0)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where there is a recurrence."""
        return None if subject.time.loops else "no recurrence in the graph"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding per recurrence."""
        for loop in subject.time.loops:
            if loop.radius is None or loop.radius <= 1.0:
                continue
            measured = subject.time.growth(loop)
            predicted = subject.time.predicted(loop, subject.time.steps(loop) or STEPS)
            decades = predicted if measured is None else measured
            if max(decades, predicted) >= HEALTHY:
                yield self._report(subject, loop, decades, measured=measured is not None)

    def relates(self, cause: Finding, symptom: Finding) -> bool:
        """What explains this is about the same matrix, and no milder: its activation alone lets that grow."""
        same = cause.nodes == symptom.nodes and cause.severity.rank <= symptom.severity.rank
        return same or symptom.rule != self.code

    def _report(self, subject: Subject, loop: Loop, decades: float, *, measured: bool) -> Finding:
        radius, steps = loop.radius or 0.0, subject.time.steps(loop) or STEPS
        scale = f"scale the recurrent weight by {1.0 / radius:.2f}"
        remedy = f"{scale}, so that no unit grows" if loop.elementwise else f"{scale}, or nn.init.orthogonal_ it"
        holds = Confidence.MEASURED if decades >= HEALTHY else Confidence.REFUTED
        return self.finding(
            subject,
            loop.nodes,
            f"the recurrent weight has spectral radius {radius:.2f}: the gradient grows 10^{decades:.1f} over {steps} steps",
            severity=self.severity if decades >= LIMIT else Severity.WARNING,
            confidence=holds if measured else Confidence.PREDICTED,
            effect=Effect.EXPLODES,
            remedy=f"{remedy}, and clip the gradient norm",
            radius=radius,
            steps=steps,
            decades=decades,
        )
