"""GL706 no-warmup-post-norm: a transformer with its norms behind the residual sums is trained by Adam without a warm-up.

What it finds:
    Six blocks or more of attention and feed-forward layers whose residual sums are read by a norm alone, initial weights, an
    adaptive optimizer with a learning rate of 5e-4 or more, and no warm-up. It is a warning where the rehearsal trains the model
    with a warm-up alone; else a note where it trains without one, or where the recipe names no schedule at all.

Why it explodes:
    At initialization the gradients of the layers near the output are large, and Adam's estimate of their size is poor: in its
    first steps every weight moves by about the full learning rate. The output of each block changes by more than the norms behind
    can undo, the attention saturates, and the loss stays where it is, or diverges.

How to fix it:
    Let the learning rate rise from zero over some thousand steps (a hundredth to a tenth of the training), or put the norms
    into the residual branches, x + f(norm(x)), with one more behind the last sum.

References:
    Xiong et al. 2020, On Layer Normalization in the Transformer Architecture, arXiv 2002.04745 (six layers at 5e-4 and 1e-3).
    Liu et al. 2020, Understanding the Difficulty of Training Transformers, arXiv 2004.08249.
    Huang et al. 2020, Improving Transformer Optimization Through Better Initialization (T-Fixup), ICML.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from gradlint.rule import (
    Confidence,
    Example,
    Finding,
    GraphBuilder,
    Kind,
    Needs,
    Recipe,
    Rule,
    Severity,
    Subject,
    is_weight_layer,
    kind_of,
    probed,
)

SUMS = 12  # residual sums: six layers of attention and feed-forward, as in Vaswani 2017 and Xiong 2020
RATE = 5e-4  # the smaller of the two learning rates at which Xiong 2020 saw training fail


def _builder(blocks: int = 6, *, post: bool = True, last: float | None = None, **recipe: Any) -> GraphBuilder:
    builder = GraphBuilder()
    x = builder.input(8, 16, 64)
    for _ in range(blocks):
        for layer in ("attention", "relu"):
            h = builder.linear(x if post else builder.norm(x))
            h = builder.op("attention", h, h, h) if layer == "attention" else builder.op("relu", h)
            x = builder.op("add", x, builder.linear(h))
            x = builder.norm(x) if post else x
    if last is not None:
        builder.measured(rehearsal=probed.Rehearsal(40, (2.3, last), (1.0,), {}, (0.1,), 2.3, last))
    return builder.trained(Recipe(**{"optimizer": "adam", "lr": 1e-3, "schedule": "cosine", **recipe}))


class NoWarmupPostNorm(Rule):
    """Post-norm transformers that start at full speed."""

    code = "GL706"
    name = "no-warmup-post-norm"
    severity = Severity.WARNING
    needs = Needs.RECIPE
    examples = (
        Example(_builder, fires_on=tuple(f"layer_norm{index}" for index in range(12))),
        Example(lambda: _builder(lr=5e-4, last=0.5), fires_on=tuple(f"layer_norm{index}" for index in range(12))),
        Example(lambda: _builder(schedule="warmup:1000")),
        Example(lambda: _builder(blocks=5)),
        Example(lambda: _builder(post=False)),
        Example(lambda: _builder(lr=4e-4)),
        Example(lambda: _builder(optimizer="sgd")),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only for an adaptive optimizer without a warm-up, on a graph with attention."""
        if subject.recipe.warmup or not subject.recipe.adaptive:
            return "the recipe has a warm-up" if subject.recipe.warmup else "plain SGD"
        return None if _attends(subject) else "no attention in the graph"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding, on the norms."""
        recipe, rehearsal = subject.recipe, subject.training.rehearsal
        if recipe.lr < RATE:
            return
        norms = list(_norms(subject))
        sums = len(subject.structure.residual_sums)
        layers = [node.id for node in subject.graph if is_weight_layer(node)]
        if len(norms) < SUMS or 2 * len(norms) <= sums or not subject.is_initialized(layers):
            return
        cured = rehearsal is not None and rehearsal.cause is probed.Cause.WARMUP
        yield self.finding(
            subject,
            norms,
            f"{len(norms)} residual sums with a norm behind each, {recipe.optimizer} at {recipe.lr:g}, and no warm-up",
            severity=Severity.WARNING if cured or not (subject.training.trains or recipe.schedule is None) else Severity.NOTE,
            confidence=Confidence.MEASURED if cured else Confidence.PREDICTED,
            remedy="let the learning rate rise over some thousand steps (schedule=warmup:4000), or use x + f(norm(x))",
            norms=len(norms),
            learning_rate=recipe.lr,
        )


def _attends(subject: Subject) -> bool:
    return any(node.op == "attention" or kind_of(node) in {Kind.ATTENTION, Kind.SOFTMAX} for node in subject.graph)


def _norms(subject: Subject) -> Iterator[str]:
    """Norms that alone read a residual sum."""
    for total in subject.structure.residual_sums:
        readers = list(subject.graph.children(total.node))
        if len(readers) == 1 and subject.normalizes(readers[0]):
            yield readers[0].id
