"""GL701 clipping-absent: nothing bounds the gradient of a recurrence over many steps, or one whose size jumps between batches.

What it finds:
    A recipe without gradient clipping for a model that applies a weight to its own state 32 times or more in a row, or whose
    gradient on one batch is five times its median over the batches that were looked at. It is a warning for SGD on a plain
    recurrence or such jumps, else a note: gates bound what a recurrence does, and an adaptive optimizer the length of a step.

Why it explodes:
    The gradient of a recurrence is a product of one factor for each step. While the weights move, that product crosses one, and
    then grows with the power of the length: the loss has cliffs, before which the gradient is thousands of times its usual size.
    A single step there throws away what was learned.

How to fix it:
    Clip the norm of the gradient at about its usual size: torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm) between
    backward() and step().

References:
    Pascanu, Mikolov, Bengio 2013, On the difficulty of training recurrent neural networks, arXiv 1211.5063 (clipping, cliffs).
    Zaremba, Sutskever, Vinyals 2014, Recurrent Neural Network Regularization, arXiv 1409.2329 (clips over 35 steps).
    Zhang et al. 2020, Why are Adaptive Methods Good for Attention Models?, arXiv 1912.03194 (heavy tails).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Confidence, Example, Finding, GraphBuilder, Needs, Recipe, Rule, Severity, Subject, probed

LONG = 32  # steps; recurrent language models are unrolled over 35 (Zaremba 2014) and clip
TAIL = 5.0  # largest gradient norm over the median; at most 2.3 over four drawn batches on 85 transformers architectures
GATED = frozenset({"lstm", "gru"})


def _recurrent(steps: int, op: str = "rnn", recipe: Recipe | None = None) -> GraphBuilder:
    builder = GraphBuilder()
    gates = {"rnn": 1, "gru": 3, "lstm": 4}[op]
    weights = {"weight": builder.weight(16 * gates, 16), "recurrent": builder.weight(16 * gates, 16)}
    builder.op(op, builder.input(steps, 8, 16), weights=weights, shape=(steps, 8, 16), nonlinearity="tanh", time_axis=0)
    return builder.trained(recipe or Recipe())


def _norms(*norms: float, recipe: Recipe | None = None) -> GraphBuilder:
    builder = GraphBuilder()
    builder.linear(builder.input(8, 64))
    found = probed.Curvature(2.3, 10.0, -1.0, 0.001, norms, 1.0, 4096, 0.2)
    return builder.measured(curvature=found).trained(recipe or Recipe())


class ClippingAbsent(Rule):
    """Gradients without a bound."""

    code = "GL701"
    name = "clipping-absent"
    severity = Severity.WARNING
    needs = Needs.RECIPE
    examples = (
        Example(lambda: _recurrent(32), fires_on=("rnn0",)),
        Example(lambda: _recurrent(32, "lstm", Recipe("adam", lr=1e-3)), fires_on=("lstm0",)),
        Example(lambda: _norms(1.0, 1.0, 1.0, 5.1), fires_on=("linear0",)),
        Example(lambda: _recurrent(31)),
        Example(lambda: _recurrent(32, recipe=Recipe(clip_norm=1.0))),
        Example(lambda: _norms(1.0, 1.0, 1.0, 4.9)),
        Example(lambda: _norms(1.0, 1.0, 1.0, 5.1, recipe=Recipe(clip_value=0.5))),
    )

    def applies(self, subject: Subject) -> str | None:
        """Only where nothing clips."""
        return "the recipe clips" if subject.recipe.clips else None

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding for the recurrences, one for jumps between batches."""
        recipe, curvature = subject.recipe, subject.training.curvature
        long = [loop for loop in subject.time.loops if (loop.steps or 0) >= LONG]
        if long:
            steps = max(loop.steps or 0 for loop in long)
            bounded = recipe.adaptive or all(loop.activation in GATED for loop in long)
            yield self.finding(
                subject,
                sorted({loop.node for loop in long}),
                f"a recurrence over {steps} steps is trained by {recipe.optimizer} without gradient clipping",
                severity=Severity.NOTE if bounded else Severity.WARNING,
                remedy="clip the norm of the gradient: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)",
                steps=steps,
                limit=LONG,
            )
        if curvature is not None and curvature.gradient_norm and max(curvature.gradient_norms) > TAIL * curvature.gradient_norm:
            largest, usual = max(curvature.gradient_norms), curvature.gradient_norm
            yield self.finding(
                subject,
                subject.outputs,
                f"the gradient norm of one batch is {largest:.3g}, {largest / usual:.3g} times the median {usual:.3g} of "
                f"{len(curvature.gradient_norms)}, and nothing clips it",
                severity=Severity.NOTE if recipe.adaptive else Severity.WARNING,
                remedy=f"clip the norm of the gradient near {usual:.1g}: torch.nn.utils.clip_grad_norm_",
                confidence=Confidence.MEASURED,
                largest=largest,
                median=usual,
            )
