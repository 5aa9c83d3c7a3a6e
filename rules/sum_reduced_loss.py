"""GL705 sum-reduced-loss: the loss adds up over the batch, so its gradient grows with the size of the batch.

What it finds:
    A loss that doubles when the batch is taken twice. It is a warning where the recipe is plain gradient descent without
    clipping and its learning rate, times the number of values that are summed, is over 1: what it would be for a mean.

Why it explodes:
    The gradient is as many times that of the mean as there are values in the sum, and so is the step. A learning rate that suits
    a mean is beyond the stability limit then, and it changes with every batch size.

How to fix it:
    Use the mean (reduction="mean", or divide by the batch size), or divide the learning rate by the number of values. Where a
    sum over features is meant, as in a variational bound, take the mean over the batch alone.

References:
    Bengio 2012, Practical Recommendations for Gradient-Based Training of Deep Architectures, arXiv 1206.5533 (learning rates).
    Goyal et al. 2017, Accurate, Large Minibatch SGD, arXiv 1706.02677, section 3 (pitfalls of loss and batch size).
"""

from __future__ import annotations

from collections.abc import Iterator

from gradlint.rule import Example, Finding, GraphBuilder, Needs, Rule, Severity, Subject, probed

HIGHEST = 1.0  # learning rate of a mean loss: beyond any in use for standardized inputs (Bengio 2012: below 1)


def _summed(repeated: float) -> GraphBuilder:
    builder = GraphBuilder()
    builder.linear(builder.input(8, 64), 10)
    return builder.measured(loss=probed.LossFacts(18.0, 3.0, chance=18.0, repeated=repeated, batch=8, terms=8))


class SumReducedLoss(Rule):
    """Losses that grow with the batch."""

    code = "GL705"
    name = "sum-reduced-loss"
    severity = Severity.WARNING
    needs = Needs.PROBE
    examples = (
        Example(lambda: _summed(2.0), fires_on=("linear0",)),
        Example(lambda: _summed(1.0)),
        Example(lambda: _summed(1.5)),
    )

    def check(self, subject: Subject) -> Iterator[Finding]:
        """One finding, at the output."""
        loss = subject.training.loss
        if loss is None or not loss.is_sum:
            return
        recipe = subject.task.recipe
        terms = max(loss.terms or 1, loss.batch or 1)
        unclipped = recipe is not None and not recipe.adaptive and not recipe.clips
        rate = recipe.lr * terms if recipe is not None and unclipped else 0.0
        as_mean = f", like a learning rate of {rate:.3g} for the mean" if rate > HIGHEST else ""
        yield self.on_loss(
            subject,
            f"the loss is a sum over the batch: its gradient is that of the mean times up to {terms}{as_mean}",
            severity=Severity.WARNING if rate > HIGHEST else Severity.NOTE,
            remedy="take the mean over the batch"
            + (f", or a learning rate of {recipe.lr / terms:.2g}" if recipe is not None and rate > HIGHEST else ""),
            repeated=loss.repeated,
            terms=terms,
        )

    def applies(self, subject: Subject) -> str | None:
        """None where a loss was measured."""
        return None if subject.training.loss is not None else "no loss was given"
