"""GL604 non-finite-weight: a parameter or buffer holds NaN or infinity.

What it finds:
    Weights, biases, scales and running statistics with at least one element that is not finite. A fixed tensor that is -inf in
    some places and is added to logits is a mask, and is left out.

Why it matters:
    NaN spreads to everything that it is added to or multiplied with, and infinity times zero is NaN: the output, the loss and
    every gradient are lost with the first forward pass. The file was written after a run had diverged, was damaged, or was cast
    to a type that cannot hold its values (float16 ends at 65504).

How to fix it:
    Go back to a checkpoint from before the weight broke. If none has it finite, look for the step that broke it, with
    torch.autograd.set_detect_anomaly, and for casts to float16.

References:
    IEEE 754-2019, section 6 (infinity, NaN and their propagation).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Rule, Severity, Subject, Verdict, Weight, listed


def _layer(value: float) -> GraphBuilder:
    builder = GraphBuilder()
    values = np.linspace(-1.0, 1.0, 64).reshape(8, 8)
    values[3, 4] = value
    builder.linear(builder.linear(builder.input(8, 8), weight=builder.array(values, "fc.weight")))
    return builder


def _masked(value: float) -> GraphBuilder:
    builder = GraphBuilder()
    values = np.where(np.eye(8) > 0.0, 0.0, value)
    mask = Weight("mask", values.shape, "float64", lambda: values, trainable=False)
    logits = builder.op("add", builder.linear(builder.input(8, 8)), None, shape=(8, 8), weights={"bias": mask})
    builder.op("softmax", logits, shape=(8, 8), dim=-1)
    return builder


class NonFiniteWeight(Rule):
    """Weights with NaN or infinity."""

    code = "GL604"
    name = "non-finite-weight"
    severity = Severity.ERROR
    explains = ("GL804", "GL805")
    verdict = Verdict.NON_FINITE
    examples = (
        Example(lambda: _layer(float("nan")), fires_on=("linear0",)),
        Example(lambda: _layer(float("inf")), fires_on=("linear0",)),
        Example(lambda: _masked(float("nan")), fires_on=("add0",)),
        Example(lambda: _masked(float("-inf"))),
        Example(lambda: _layer(1e30)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for all of them."""
        broken = {node.id: names for node in subject.graph if (names := [weight.name for weight in subject.masks.broken(node)])}
        names = list(dict.fromkeys(name for found in broken.values() for name in found))
        if not names:
            return
        seen = subject.measurement is not None and subject.measurement.nonfinite_forward is not None
        yield self.finding(
            subject,
            list(broken),
            f"NaN or infinity in {listed(names)}",
            confidence=Confidence.MEASURED if seen else Confidence.PREDICTED,
            remedy="load a checkpoint from before the weight broke; find what broke it with torch.autograd.set_detect_anomaly",
            weights=names,
        )
