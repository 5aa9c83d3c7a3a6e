"""GL707 weight-decay-absent: weights that a norm makes free of scale only grow, and the learning rate fades with them.

What it finds:
    A recipe for SGD or AdamW without weight decay, for a model of a million weights or more of which most belong to layers with a
    normalization right behind. It is a note.

Why it vanishes:
    Behind a norm the size of a weight does not matter, so that its gradient is orthogonal to it: every step makes it longer, and
    the gradient shrinks with its size. The steps, relative to the weights, get shorter as the inverse square of that size.
    Weight decay balances the growth.

How to fix it:
    Use a weight decay: 1e-4 for SGD at 0.1, 0.01 to 0.1 for AdamW; leave out biases and the scales of norms.

References:
    van Laarhoven 2017, L2 Regularization versus Batch and Weight Normalization, arXiv 1706.05350.
    Zhang et al. 2019, Three Mechanisms of Weight Decay Regularization, arXiv 1810.12281.
    Loshchilov, Hutter 2019, Decoupled Weight Decay Regularization, arXiv 1711.05101.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Needs, Recipe, Rule, Severity, Subject, Weight, is_weight_layer

LARGE = 1_000_000  # weights: small models are trained for a short time
SHARE = 0.5  # of them that are free of scale
DECAYED = frozenset({"sgd", "adamw"})  # optimizers that are used with weight decay; plain Adam commonly goes without


def _builder(depth: int = 4, *, norm: bool = True, recipe: Recipe | None = None) -> GraphBuilder:
    builder = GraphBuilder(width=512)
    builder.stack(depth, "relu", norm="batch_norm" if norm else None)
    return builder.trained(recipe or Recipe())


class WeightDecayAbsent(Rule):
    """Scale-free weights that nothing holds."""

    code = "GL707"
    name = "weight-decay-absent"
    severity = Severity.NOTE
    needs = Needs.RECIPE
    examples = (
        Example(_builder, fires_on=tuple(f"linear{index}" for index in range(4))),
        Example(lambda: _builder(3)),
        Example(lambda: _builder(norm=False)),
        Example(lambda: _builder(recipe=Recipe(weight_decay=1e-4))),
        Example(lambda: _builder(recipe=Recipe("adam", lr=1e-3))),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where weight decay is usual, and missing."""
        recipe = subject.recipe
        lacks = recipe.weight_decay == 0.0 and recipe.optimizer in DECAYED
        return None if lacks else f"{recipe.optimizer} with weight decay {recipe.weight_decay:g}"

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding, on the layers with a norm behind."""
        recipe = subject.recipe
        layers = {node.id: node.weights.get("weight") for node in subject.graph if is_weight_layer(node)}
        free = {node: weight for node, weight in layers.items() if weight is not None and _is_free(subject, node)}
        every = _count(list(subject.graph.weights.values()))
        if every < LARGE or _count(list(free.values())) < SHARE * every:
            return
        yield self.finding(
            subject,
            list(free),
            f"{recipe.optimizer} without weight decay: the weights of {len(free)} layers with a norm behind them only grow",
            remedy=f"use a weight decay, such as {'1e-4' if recipe.optimizer == 'sgd' else '0.01'}",
            weights=every,
        )


def _is_free(subject: Subject, node: str) -> bool:
    """Whether a norm alone reads a layer."""
    readers = list(subject.graph.children(node))
    return len(readers) == 1 and subject.normalizes(readers[0])


def _count(weights: list[Weight]) -> int:
    return sum(math.prod(size or 0 for size in weight.shape) for weight in {weight.name: weight for weight in weights}.values())
