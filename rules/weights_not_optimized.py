"""GL711 weights-not-optimized: the optimizer does not hold all weights that require grad.

What it finds:
    Trainable weights of the model that none of the given optimizers holds. It is an error if they hold none of them: they were
    built for another instance, or from an iterator that was used up. It is a warning where part is missing, and a note where
    that is under a hundredth of the elements. Weights that do not require grad, or that no operator used, are not counted. Give
    all optimizers, in a list, where several train one model.

Why it matters:
    What no optimizer holds stays at its random start, while its gradient is computed and added up in every step. The loss falls
    by what the rest can do, so nothing looks broken.

How to fix it:
    Build the optimizer from model.parameters() after the model is complete: after layers were added or replaced, and after it
    was moved or wrapped. If the weights are meant to be frozen, say so with requires_grad_(False).

References:
    Humbatova et al. 2020, Taxonomy of Real Faults in Deep Learning Systems, ICSE, arXiv 1910.11015.
    PyTorch documentation, torch.optim (how to construct an optimizer).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Needs, Recipe, Rule, Severity, Subject, listed, probed

SMALL = 0.01  # of the elements: a scale or a bias, without which models train


def _held(held: int, *missing: str, foreign: int = 0) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.linear(builder.input(8, 64), name="a", weight=builder.array(np.eye(64), name="a.weight"))
    builder.linear(x, name="b", weight=builder.array(np.eye(64), name="b.weight"))
    return builder.measured(held=probed.Held(held, missing, foreign)).trained(Recipe())


class WeightsNotOptimized(Rule):
    """Weights that no step moves."""

    code = "GL711"
    name = "weights-not-optimized"
    severity = Severity.ERROR
    needs = Needs.RECIPE
    explains = ("GL807",)
    examples = (
        Example(lambda: _held(1, "b.weight"), fires_on=("b",)),
        Example(lambda: _held(0, "a.weight", "b.weight", foreign=2), fires_on=("a", "b")),
        Example(lambda: _held(1, "unused.weight")),
        Example(lambda: _held(2)),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where the user gave optimizers."""
        measured = subject.measurement
        return None if measured is not None and measured.held is not None else "no optimizer was given that could be looked at"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for all weights."""
        held = subject.probe.held
        used = [name for name in held.missing if name in subject.graph.weights] if held is not None else []
        if held is None or not used:
            return
        weights = subject.graph.weights
        share = sum(weights[name].size for name in used) / max(sum(w.size for w in weights.values() if w.trainable), 1)
        severity = Severity.NOTE if share < SMALL else Severity.WARNING
        nodes = [node.id for node in subject.graph if any(weight.name in used for weight in node.weights.values())]
        others = f": the {held.foreign} weights that it holds belong to another model" if held.foreign else ""
        what = f"none of the weights{others}" if not held.held else f"{len(used)} weights: {listed(used)}"
        yield self.finding(
            subject,
            nodes,
            f"the optimizer holds {what}"
            if not held.held
            else f"the optimizer does not hold {what}, {share:.0%} of the elements",
            severity=Severity.ERROR if not held.held else severity,
            confidence=Confidence.MEASURED,
            remedy="build it from model.parameters() once the model is complete, or freeze what should stay",
            missing=used,
            share=share,
            foreign=held.foreign,
        )
