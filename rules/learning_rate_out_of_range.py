"""GL704 learning-rate-out-of-range: no published recipe of this optimizer has such a learning rate.

What it finds:
    A learning rate above the largest, or below the smallest, that published recipes of the same optimizer use, or of zero. It is
    a note where the rehearsal shows that the model trains with it.

Why it explodes:
    Adam and its kin move every weight by about the learning rate at each step, whatever the gradient is: with 0.5 all weights of
    a usual size are overwritten by the first step, and activations and gradients with them. SGD multiplies by the gradient, so
    that its range is wider. Far below the range a model does not move in any affordable number of steps.

How to fix it:
    Start from what is usual: 1e-3 for Adam on small models, 3e-4 down to 1e-5 on large ones and for fine-tuning; 0.1 for SGD with
    normalization, 0.01 without. A learning rate that was read from an optimizer whose scheduler starts with a warm-up may be
    that of the first step alone: give the recipe itself.

References:
    Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv 1706.02677 (SGD 0.1 to 3.2 with momentum).
    Merity, Keskar, Socher 2017, Regularizing and Optimizing LSTM Language Models, arXiv 1708.02182 (SGD 30, clipped at 0.25).
    Kingma, Ba 2014, Adam, arXiv 1412.6980 (1e-3; Adamax 2e-3); Kerbl et al. 2023, 3D Gaussian Splatting (Adam 0.05).
    Rafailov et al. 2023, Direct Preference Optimization, arXiv 2305.18290 (RMSprop 1e-6, adapting a trained model).
    Tan, Le 2019, EfficientNet, arXiv 1905.11946 (RMSprop 0.256); Naumov et al. 2019, DLRM, arXiv 1906.00091 (Adagrad, SGD).
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Needs, Recipe, Rule, Severity, Subject, probed

# Smallest and largest learning rate of published recipes, each widened to the next power of ten or so.
ADAM = (1e-8, 0.1)  # 5e-7 in preference tuning of language models, 0.05 in 3D Gaussian splatting
RANGES = {
    "sgd": (1e-7, 30.0),  # 1e-5 and less in fine-tuning, 30 in AWD-LSTM
    "adam": ADAM,
    "adamw": ADAM,
    "adamax": ADAM,
    "nadam": ADAM,
    "radam": ADAM,
    "rmsprop": (1e-8, 0.3),  # 1e-6 in DPO, 0.256 in EfficientNet, with eps 1e-3
    "adagrad": (1e-6, 1.0),  # 0.05 in GloVe, 0.1 and more in recommenders
}


def _builder(optimizer: str, lr: float, *, last: float | None = None) -> GraphBuilder:
    builder = GraphBuilder()
    builder.linear(builder.input(8, 64))
    if last is not None:
        builder.measured(rehearsal=probed.Rehearsal(40, (2.3, last), (1.0,), {}, (0.1,), 2.3, last))
    return builder.trained(Recipe(optimizer, lr=lr))


class LearningRateOutOfRange(Rule):
    """Learning rates that nobody uses."""

    code = "GL704"
    name = "learning-rate-out-of-range"
    severity = Severity.ERROR
    needs = Needs.RECIPE
    examples = (
        Example(lambda: _builder("adam", 0.11), fires_on=("linear0",)),
        Example(lambda: _builder("adamw", 5e-9), fires_on=("linear0",)),
        Example(lambda: _builder("sgd", 31.0, last=0.5), fires_on=("linear0",)),
        Example(lambda: _builder("sgd", 0.0), fires_on=("linear0",)),
        Example(lambda: _builder("adam", 0.1)),
        Example(lambda: _builder("adamw", 1e-3)),
        Example(lambda: _builder("sgd", 30.0)),
        Example(lambda: _builder("sgd", 1e-6)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """At most one finding."""
        recipe = subject.recipe
        smallest, largest = RANGES.get(recipe.optimizer, (0.0, math.inf))
        if recipe.lr and smallest <= recipe.lr <= largest:
            return
        bound, side = (largest, "above") if recipe.lr > largest else (smallest, "below")
        severity = Severity.NOTE if subject.training.trains else Severity.WARNING
        yield self.finding(
            subject,
            subject.outputs,
            f"learning rate {recipe.lr:g} is {side} what published recipes of {recipe.optimizer} use, {smallest:g} to {largest:g}"
            if recipe.lr
            else "the learning rate is 0: no weight ever moves",
            severity=severity if recipe.lr else Severity.ERROR,
            remedy="start from a published recipe: 1e-3 for Adam on small models, 3e-4 on large ones, 0.1 for SGD with norms",
            learning_rate=recipe.lr,
            bound=bound,
        )
